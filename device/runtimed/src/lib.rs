//! Module registrations, attestation, engines, workload and management APIs.
