//! What only tests need unsafe code for.
