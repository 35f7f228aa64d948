//! Certificates, identities and provisioning.
