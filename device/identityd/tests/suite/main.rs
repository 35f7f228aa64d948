//! The daemon's parts together, over real files and with doubles only for what is not its own: the
//! key service and the cloud.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops where its world cannot be built"
)]

mod certificates;
mod identities;
mod support;
mod wire;
