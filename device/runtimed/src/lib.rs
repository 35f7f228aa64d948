//! Module registrations, attestation, engines, workload and management APIs.
//!
//! Start at [`api`]: the two tables of what can be asked. Who may ask is in [`gate`], how a caller
//! is matched to a module in [`attest`]; a module's life (listen, start, register, end) is in
//! [`runtime`], watched by [`watchdog`]. This daemon has no capabilities and holds no key: it asks
//! `keyd` for signatures, `identityd` for identities and certificates, `warden` for processes.

pub mod api;
pub mod attest;
pub mod certificates;
pub mod config;
pub mod edge_ca;
pub mod engine;
pub mod gate;
pub mod identities;
pub mod identity;
pub mod module;
pub mod modules;
pub mod remote_key;
pub mod runtime;
pub mod systeminfo;
pub mod watchdog;
pub mod workload;
