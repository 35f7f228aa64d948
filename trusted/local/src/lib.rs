//! The only door to the operating system.
//!
//! Sockets whose callers are proved ([`server`], [`peer`]), strict HTTP ([`http`]), endpoint types
//! made into services and calls ([`routes`], [`client`]). Nothing outside this crate and `warden`
//! opens a local socket, writes a file, or asks the kernel who somebody is.

pub mod client;
pub mod http;
pub mod os;
pub mod peer;
pub mod routes;
pub mod server;
pub mod warden;
