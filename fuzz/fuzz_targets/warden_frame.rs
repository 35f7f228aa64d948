//! The frames between runtimed and warden (A60).
//!
//! Round trip: each value has one encoding, so a frame that is accepted is the very bytes that
//! encoding its value gives, in both directions.
#![no_main]

use contract::warden::{HEADER, MAX_BODY, Reply, Request};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(request) = Request::decode(data) {
        assert_eq!(request.encode().as_deref(), Ok(data));
    }
    if let Ok(reply) = Reply::decode(data) {
        assert_eq!(reply.encode().as_deref(), Ok(data));
        assert!(data.len() <= HEADER + MAX_BODY);
    }
});
