//! Simulated world, conformance, load generator, tidy tests; never shipped.
//!
//! [`tidy`] and [`crates`] read our own sources and dependencies for the tidy tests and for
//! `make tcb`; [`callers`] writes the table of who may call what. [`disk`] is a disk that loses
//! power and fails, for the crash tests. [`conformance`] compares every wire answer with what is recorded in
//! `conformance/`, on a [`stage`] with a [`puppet`] for each kind of caller; [`load`] is the client
//! that measures, [`mod@bench`] the table it fills.

pub mod bench;
pub mod callers;
pub mod conformance;
pub mod crates;
pub mod device;
pub mod disk;
pub mod load;
pub mod puppet;
pub mod stage;
pub mod tidy;
