//! Makes the modules match their deployment; hostile until attested.
