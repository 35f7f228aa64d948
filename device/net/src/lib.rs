//! The only door to the network on the device.
//!
//! One TLS policy ([`tls`]), one HTTPS client over it ([`https`]), and the three services a
//! device speaks to: provisioning ([`dps`]), the hub's registry of identities ([`registry`]) and
//! the hub's messages and twins ([`mqtt`]). Everything here blocks with a deadline; nothing here
//! holds a private key, reads a configuration file or decides what to do with what it learned.
//! Pure decisions (back-off, registration, topics, twin versions) are in files of their own.

pub mod backoff;
pub mod dps;
pub mod frame;
pub mod https;
pub mod mqtt;
pub mod packet;
pub mod registry;
pub mod tls;
pub mod token;
pub mod topic;
pub mod twin;
