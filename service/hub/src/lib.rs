//! The hub: enrolment, registry, twins, messages, deployments.
