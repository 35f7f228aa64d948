//! Simulated world, conformance, load generator, tidy tests; never shipped.

pub mod disk;
