//! The command line of Holdfast.
