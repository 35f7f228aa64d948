//! Watches modules end, and brings back those that are ours to keep.
//!
//! One thread, waiting on the process descriptors themselves: no period, no polling. What it does
//! next is decided by [`due`], over values.

use std::collections::BTreeMap;
use std::sync::{Arc, TryLockError};

use contract::api::identity::{Device, DeviceRequest, Identity};
use local::log;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::attest::Registration;
use crate::module::{Keeper, Module};
use crate::runtime::Runtime;

/// A module that runs this long starts with a clean record, in milliseconds.
const PROVEN: i64 = 600_000;
/// Longest wait between two starts, in milliseconds.
const LONGEST: i64 = 60_000;
/// How soon something that failed is tried again, in milliseconds.
const AGAIN: i64 = 1_000;

/// Past starts of one module; times are monotonic milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Past {
    /// The last try, and how many before it did not last.
    last: Option<(i64, u32)>,
}

impl Past {
    /// A try at `now`.
    #[must_use]
    pub fn tried(self, now: i64) -> Self {
        let failures = match self.last {
            Some((last, failures)) if now - last < PROVEN => failures.saturating_add(1),
            _ => 0,
        };
        Self {
            last: Some((now, failures)),
        }
    }
}

/// When a module that does not run is started: at once the first time, then later and later while
/// it does not last.
#[must_use]
pub fn due(past: Past, now: i64) -> i64 {
    match past.last {
        None => now,
        Some((last, failures)) => last + (AGAIN << failures.min(6)).min(LONGEST),
    }
}

/// Watches for ever.
pub fn run(runtime: &Arc<Runtime>) {
    let mut past: BTreeMap<String, Past> = BTreeMap::new();
    let mut adopted = false;
    let mut edge_ca = false;
    let mut signed = false;
    loop {
        let mut wake = runtime.clock.now().monotonic_ms + LONGEST;
        if !adopted {
            adopted = adopt(runtime);
        }
        if !edge_ca {
            edge_ca = ensure_edge_ca(runtime);
        }
        if !adopted || !edge_ca {
            wake = runtime.clock.now().monotonic_ms + AGAIN;
        }
        let mut running = Vec::new();
        for module in runtime.modules() {
            if let Some(registration) = module.registration() {
                if registration.alive() {
                    running.push(registration);
                    continue;
                }
                runtime.ended(&module, &registration);
            }
            if adopted && module.keeper == Keeper::Us && !module.is_halted() {
                let record = past.entry(module.name.plain().to_owned()).or_default();
                wake = wake.min(keep(runtime, &module, record));
                running.extend(module.registration());
            }
        }
        if let Err(error) = runtime.audit.settle(&runtime.clock.now()) {
            log::failure(log::Level::Error, &error);
        }
        for module in runtime.modules() {
            runtime.bound_log(&module);
        }
        signed |= runtime.sign_heads(!signed);
        wait(runtime, &running, wake - runtime.clock.now().monotonic_ms);
    }
}

/// Starts a module if it is due; when to look again otherwise.
fn keep(runtime: &Arc<Runtime>, module: &Arc<Module>, past: &mut Past) -> i64 {
    let now = runtime.clock.now().monotonic_ms;
    let at = due(*past, now);
    if at > now {
        return at;
    }
    let _work = match module.work.try_lock() {
        Ok(work) => work,
        Err(TryLockError::Poisoned(work)) => work.into_inner(),
        Err(TryLockError::WouldBlock) => return now + AGAIN,
    };
    *past = past.tried(now);
    if let Err(refusal) = runtime.start(module) {
        let cause = refusal.cause.as_deref().unwrap_or_default();
        log::warn(format_args!(
            "module {} did not start: {refusal}: {cause}",
            module.name
        ));
    }
    due(*past, now)
}

/// Takes over what runs already: a restart of this daemon ends nobody.
fn adopt(runtime: &Arc<Runtime>) -> bool {
    let running = match runtime.engine.running() {
        Ok(running) => running,
        Err(error) => {
            log::failure(log::Level::Warn, &error);
            return false;
        }
    };
    for one in running {
        let name = one.facts.module.clone();
        match runtime.module(&name) {
            Some(module) if module.grant == one.facts.grant => {
                if module.registration().is_none() {
                    runtime.register(&module, one);
                }
            }
            _ => {
                log::warn(format_args!(
                    "ending {name}: it runs, but nobody asked for it"
                ));
                if let Err(error) = runtime.engine.stop(&name, 0) {
                    log::failure(log::Level::Warn, &error);
                }
            }
        }
    }
    for module in runtime.modules() {
        if let Err(refusal) = runtime.listen(&module) {
            log::warn(format_args!(
                "module {} has no socket: {refusal}",
                module.name
            ));
        }
    }
    true
}

fn ensure_edge_ca(runtime: &Runtime) -> bool {
    let request = DeviceRequest {
        kind: "aziot".to_owned(),
    };
    let device = match runtime.identities.call::<Device>(&(), &request) {
        Ok(Identity::Aziot(spec)) => Some(spec.device_id),
        Ok(Identity::Local(_)) => None,
        // A device without a hub has an Edge CA too; its name is then the host's.
        Err(error) if error.status() == Some(400) => None,
        Err(error) => {
            log::info(format_args!("waiting for the identity service: {error}"));
            return false;
        }
    };
    match runtime.ensure_edge_ca(device.as_deref()) {
        Ok(()) => true,
        Err(error) => {
            log::failure(log::Level::Warn, &error);
            false
        }
    }
}

/// Waits until a module ends, something changes, or the time is over.
fn wait(runtime: &Runtime, running: &[Arc<Registration>], longest: i64) {
    let longest = longest.clamp(0, LONGEST);
    let timeout = Timespec {
        tv_sec: longest / 1000,
        tv_nsec: longest % 1000 * 1_000_000,
    };
    let mut descriptors = vec![PollFd::new(runtime.changes(), PollFlags::IN)];
    descriptors.extend(
        running
            .iter()
            .map(|one| PollFd::new(&one.pidfd, PollFlags::IN)),
    );
    // An error only means another look at once.
    let _ = poll(&mut descriptors, Some(&timeout));
    runtime.clear_changes();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_come_later_and_later_while_a_module_does_not_last() {
        let mut past = Past::default();
        assert_eq!(due(past, 5), 5);
        let mut now = 5;
        for want in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            past = past.tried(now);
            assert_eq!(due(past, now) - now, want);
            now = due(past, now);
        }
        past = past.tried(now + PROVEN);
        assert_eq!(due(past, 0) - (now + PROVEN), 1_000);
    }
}
