//! What only tests need unsafe code for: process tricks that no daemon ever does.
//!
//! A [`puppet`] is a process that does what a test tells it over a [`channel`]: connect, write,
//! hand a connection to another, fork, become another program. [`process`] starts one where an
//! attacker would like to be: in a module's pid namespace, in its control group, under a number
//! that a dead process had. [`kernel`] takes away what an older kernel does not have. Program
//! `holdfast-puppet` is all of it on a command line; nothing here is ever shipped.

pub mod channel;
pub mod kernel;
pub mod process;
pub mod puppet;
