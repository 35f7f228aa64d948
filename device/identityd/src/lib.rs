//! Certificates, identities and provisioning.
//!
//! Two APIs over one daemon: certificates ([`certs`], [`csr`], [`issue`], [`pem`]) and identities
//! ([`identities`], [`modules`], [`provision`], [`reconcile`], [`act`], [`store`]). It may call keyd
//! ([`keys`]) and the network ([`cloud`]); it holds no private key of the device. Start at [`api`];
//! `main.rs` puts the parts together.

pub mod act;
pub mod api;
pub mod certs;
pub mod cloud;
pub mod config;
pub mod csr;
pub mod error;
pub mod identities;
pub mod issue;
pub mod keys;
pub mod modules;
pub mod pem;
pub mod provision;
pub mod reconcile;
pub mod store;
