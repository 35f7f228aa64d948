//! What is said and what is allowed, as types and pure functions.
//!
//! Every string from outside becomes a type here or an error; every path, version, limit and
//! caller class of the wire APIs is written here once, in [`api`]. Nothing in this crate reads a
//! clock, a file or a socket, so every decision in it can be tested with plain values.
//! Start at [`endpoint`] for the shape of an API, then open one file of [`api`].

pub mod api;
pub mod audit;
pub mod bytes;
pub mod endpoint;
pub mod grant;
pub mod handle;
pub mod json;
pub mod names;
pub mod policy;
pub mod refusal;
pub mod sas;
pub mod time;
pub mod twin;
pub mod warden;
