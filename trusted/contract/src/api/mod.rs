//! The wire APIs, one file each.

pub mod certificate;
pub mod identity;
pub mod key;
pub mod management;
pub mod workload;

/// Implements [`crate::endpoint::Endpoint`] for a unit type: one line per fact.
macro_rules! endpoint {
    (
        $(#[$doc:meta])*
        $name:ident: $api:ty, $method:ident $path:literal $(since $since:literal)?,
        $callers:ident, $limit:expr,
        $target:ty, $request:ty => $response:ty $(, $success:literal)? $(, no_body $no_body:literal)?
    ) => {
        $(#[$doc])*
        pub struct $name;

        impl $crate::endpoint::Endpoint for $name {
            type Api = $api;
            const METHOD: $crate::endpoint::Method = $crate::endpoint::Method::$method;
            const PATH: &'static str = $path;
            $(const SINCE: &'static str = $since;)?
            const CALLERS: $crate::endpoint::Callers = $crate::endpoint::Callers::$callers;
            const LIMIT: usize = $limit;
            $(const SUCCESS: u16 = $success;)?
            $(const NO_BODY: &'static str = $no_body;)?
            type Target = $target;
            type Request = $request;
            type Response = $response;
        }
    };
}
use endpoint;

/// `n` KiB in bytes.
const fn kib(n: usize) -> usize {
    n * 1024
}
