//! Makes the modules of a device match their deployment.
//!
//! The agent is a module like others: attested for each signature, hostile until then. It follows
//! its twin over MQTT ([`net::mqtt`]), reads the deployment ([`desired`]), compares it with what
//! is there ([`plan`]), acts through the management API ([`act`]) and reports ([`report`]). The
//! decisions are pure; the loop around them is [`agent`]. It never touches a key, an engine or a
//! file of state: what it must remember is in its twin.

pub mod act;
pub mod agent;
pub mod config;
pub mod desired;
pub mod error;
pub mod plan;
pub mod report;
pub mod spec;
