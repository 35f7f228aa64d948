//! Keys, key policy and the software store.
