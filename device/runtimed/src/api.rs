//! The two tables of this daemon: endpoint to function. The only file that knows HTTP exists.

use std::sync::Arc;

use contract::api::management::ManagementApi;
use contract::api::workload::WorkloadApi;
use local::routes::{Routes, Service};
use local::server::{Limits, Reach};

use crate::gate::{ManagementSocket, WorkloadSocket};
use crate::module::Module;
use crate::runtime::Runtime;
use crate::{certificates, identities, modules, systeminfo, workload};

/// A module's own socket.
#[must_use]
pub fn workload(runtime: Arc<Runtime>, module: Arc<Module>) -> Arc<dyn Service> {
    let socket = Arc::new(WorkloadSocket { runtime, module });
    Arc::new(
        Routes::<WorkloadApi, _>::new(socket)
            .on(workload::list)
            .on(workload::trust_bundle)
            .on(workload::manifest_trust_bundle)
            .on(workload::sign)
            .on(workload::encrypt)
            .on(workload::decrypt)
            .on(certificates::identity)
            .on(certificates::server),
    )
}

/// The management socket.
#[must_use]
pub fn management(runtime: Arc<Runtime>) -> Arc<dyn Service> {
    let socket = Arc::new(ManagementSocket { runtime });
    Arc::new(
        Routes::<ManagementApi, _>::new(socket)
            .on(modules::list)
            .on(modules::create)
            .on(modules::read)
            .on(modules::update)
            .on(modules::delete)
            .on(modules::prepare)
            .on(modules::act)
            .on(identities::list)
            .on(identities::create)
            .on(identities::update)
            .on(identities::delete)
            .on(systeminfo::read),
    )
}

/// Limits of a socket with this many connections per user.
#[must_use]
pub fn limits(per_user: usize, reach: Reach) -> Limits {
    Limits {
        per_user,
        reach,
        ..Limits::default()
    }
}
