//! The only door to the operating system.
//!
//! Sockets whose callers are proved ([`server`], [`peer`]), strict HTTP ([`http`]), endpoint types
//! made into services and calls ([`routes`], [`client`]); files that survive power cuts ([`files`],
//! [`records`]), configuration, log, audit log, clocks. Nothing outside this crate and `warden`
//! opens a local socket, writes a file, or asks the kernel who somebody is.

pub mod audit;
pub mod client;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod files;
pub mod http;
pub mod log;
pub mod os;
pub mod peer;
pub mod records;
pub mod routes;
pub mod server;
pub mod warden;
pub mod witness;

#[cfg(test)]
mod testing;
