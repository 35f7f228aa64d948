//! The real hub, driven from outside by hand-written HTTPS and MQTT, and by a foreign SDK.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a failure is what a panic is for, also in its helpers"
)]

mod https;
mod mqtt;
mod program;
mod sdk;
mod world;
