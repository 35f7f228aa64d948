//! Starts, measures and ends processes; the one root process.
