//! Simulated world, conformance, load generator, tidy tests; never shipped.
//!
//! [`tidy`] and [`crates`] read our own sources and dependencies for the tidy tests and for
//! `make tcb`; [`callers`] writes the table of who may call what. [`disk`] is a disk that loses
//! power and fails, for the crash tests.

pub mod callers;
pub mod crates;
pub mod disk;
pub mod tidy;
