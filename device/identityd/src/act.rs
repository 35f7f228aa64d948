//! Performs what [`crate::provision`] and [`crate::reconcile`] decide: asks the services, writes the
//! record, puts a device in force.
//!
//! One run at a time; a second one is told so instead of waiting. A device with a record serves
//! from the first moment, and everything that needs the network is tried in the background, again
//! and again with growing patience (P24, R56).

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use contract::audit::{Decision, Entry, Event as Audited};
use local::log;
use net::backoff::Backoff;

use crate::cloud::{CloudError, causes};
use crate::error::IdentityError;
use crate::identities::{Identities, Life, Provisioned};
use crate::provision::{Cause, Device, Event, Provision, Record, Step};
use crate::reconcile::{Action, Listed, plan};

/// Who acts when nobody asked.
const SELF: &str = "identityd";
/// How patient the background is.
const PATIENCE: Backoff = Backoff {
    first: Duration::from_secs(5),
    cap: Duration::from_secs(300),
    server_cap: Duration::from_secs(300),
};

/// Ends waits early, for good.
#[derive(Debug, Default)]
pub struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Waits; false when it was told to end.
    pub fn wait(&self, span: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopped, _) = self
            .changed
            .wait_timeout_while(stopped, span, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        !*stopped
    }

    /// Ends all waits, now and later.
    pub fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

/// Holds the one turn.
struct Turn<'a>(&'a Identities);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.changing.store(false, Ordering::Release);
    }
}

impl Identities {
    fn turn(&self) -> Result<Turn<'_>, IdentityError> {
        match self.changing.swap(true, Ordering::Acquire) {
            true => Err(IdentityError::Busy),
            false => Ok(Turn(self)),
        }
    }

    /// Puts in force what configuration and record alone can, without a network. Called before the
    /// socket is open; [`Self::catch_up`] does the rest.
    ///
    /// # Errors
    /// [`IdentityError`] when the record cannot be read or written.
    pub fn start(&self) -> Result<(), IdentityError> {
        let turn = self.turn()?;
        let mut machine = self.machine()?;
        match machine.next(Event::Begin(Cause::Start)) {
            Step::Unprovisioned => self.live(Life::None),
            Step::Serve(device) => self.serve(device)?,
            Step::Commit(device) => self.commit(SELF, device)?,
            Step::Register | Step::Probe(_) | Step::Keep(_) => self.live(Life::NotYet),
        }
        drop(turn);
        Ok(())
    }

    /// What needs the network after a start: registering if there is no record, and reconciling.
    /// Runs until both are done or `stop` says so.
    pub fn catch_up(&self, stop: &Stop, random: &dyn Fn() -> u64) {
        let mut failures = 0;
        loop {
            match self.settle() {
                Ok(()) => return,
                Err(error) => {
                    log::warn(format_args!("not settled yet: {}", causes(&error)));
                }
            }
            failures += 1;
            if !stop.wait(PATIENCE.delay(failures, random())) {
                return;
            }
        }
    }

    /// One attempt at it.
    ///
    /// # Errors
    /// [`IdentityError`]; what was in force stays.
    pub fn settle(&self) -> Result<(), IdentityError> {
        match self.provisioned() {
            Err(IdentityError::NoDevice) => return Ok(()),
            Err(IdentityError::NotYet) => self.provision(SELF, Cause::Start)?,
            _ => {}
        }
        match self.reconcile() {
            // The hub says no, and is not merely away: perhaps the device was assigned elsewhere.
            Err(IdentityError::Hub(error)) if !error.is_offline() => {
                log::warn(format_args!("the hub refuses: {}", causes(&error)));
                self.provision(SELF, Cause::HubRefused)?;
                self.reconcile()
            }
            done => done,
        }
    }

    /// Provisions anew because a caller asked, and reconciles.
    ///
    /// # Errors
    /// [`IdentityError`]; what was in force stays.
    pub fn reprovision(&self, who: &str) -> Result<(), IdentityError> {
        // Also when the answer is the hub we have: that somebody asked is on record (R37).
        let mut entry = Entry::new(Audited::ManagementDone, Decision::Allowed, who);
        "reprovision".clone_into(&mut entry.operation);
        (self.parts.journal)(entry).map_err(IdentityError::Audit)?;
        self.provision(who, Cause::Asked)?;
        self.reconcile()
    }

    fn machine(&self) -> Result<Provision, IdentityError> {
        let config = &self.parts.config;
        let record = self.parts.store.device()?;
        let source = config.provisioning.clone();
        Ok(Provision::new(
            source,
            config.gateway.clone(),
            &config.allowed_hubs,
            record,
        ))
    }

    fn provision(&self, who: &str, cause: Cause) -> Result<(), IdentityError> {
        let _turn = self.turn()?;
        let mut machine = self.machine()?;
        let mut failure = IdentityError::NotYet;
        let mut step = machine.next(Event::Begin(cause));
        loop {
            step = match step {
                Step::Unprovisioned => {
                    self.live(Life::None);
                    return Ok(());
                }
                Step::Serve(device) => return self.serve(device),
                Step::Commit(device) => return self.commit(who, device),
                Step::Register => match self.parts.cloud.register() {
                    Ok(assigned) => machine.next(Event::Assigned(assigned)),
                    Err(error) => {
                        failure = IdentityError::Dps(error);
                        machine.next(Event::NotAssigned)
                    }
                },
                Step::Probe(device) => match self.probe(&device) {
                    Ok(()) => machine.next(Event::HubAnswered),
                    Err(error) => {
                        failure = IdentityError::Hub(error);
                        machine.next(Event::HubFailed)
                    }
                },
                Step::Keep(_) => {
                    self.refused(who, &failure);
                    return Err(failure);
                }
            };
        }
    }

    fn probe(&self, device: &Device) -> Result<(), CloudError> {
        self.parts.cloud.hub(device).list().map(drop)
    }

    /// The record is durable and the change audited before anybody is served by it.
    fn commit(&self, who: &str, device: Device) -> Result<(), IdentityError> {
        let store = &self.parts.store;
        let old = store.device()?.map(|r| r.device);
        let other = old.as_ref().is_some_and(|old| *old != device);
        let mut entry = Entry::new(Audited::ProvisioningChanged, Decision::Allowed, who);
        "provision".clone_into(&mut entry.operation);
        entry.object = format!("{} at {}", device.id, device.hub);
        if let Some(old) = old.filter(|_| other) {
            entry.reason = format!("was {} at {}", old.id, old.hub);
        }
        (self.parts.journal)(entry).map_err(IdentityError::Audit)?;
        let record = Record::new(device.clone(), &self.parts.config.provisioning);
        store.put_device(&record, other)?;
        log::info(format_args!(
            "provisioned as {} at {}",
            device.id, device.hub
        ));
        self.serve(device)
    }

    fn serve(&self, device: Device) -> Result<(), IdentityError> {
        if let Ok(now) = self.provisioned()
            && now.device == device
        {
            return Ok(());
        }
        let hub = self.parts.cloud.hub(&device);
        let modules = self.parts.store.modules(&device)?;
        self.live(Life::Provisioned(Arc::new(Provisioned {
            device,
            hub,
            modules,
        })));
        Ok(())
    }

    fn refused(&self, who: &str, failure: &IdentityError) {
        let mut entry = Entry::new(Audited::ProvisioningRefused, Decision::Refused, who);
        "provision".clone_into(&mut entry.operation);
        entry.reason = causes(failure);
        // The refusal stands whether or not it could be recorded.
        if let Err(refusal) = (self.parts.journal)(entry) {
            log::error(format_args!("not recorded: {refusal}"));
        }
    }

    /// Makes the modules at the hub match the configured host processes.
    ///
    /// # Errors
    /// [`IdentityError`]; what was done stays done, and the next run goes on from there.
    pub fn reconcile(&self) -> Result<(), IdentityError> {
        let at = match self.provisioned() {
            Err(IdentityError::NoDevice) => return Ok(()),
            other => other?,
        };
        let _turn = self.turn()?;
        let config = self.config();
        let wanted: BTreeSet<_> = config.modules().cloned().collect();
        let previous = self.parts.store.previous()?;
        let list = at.hub.list().map_err(IdentityError::Hub)?;
        at.modules.put_list(&list);
        let listed: Vec<Listed> = list
            .iter()
            .map(|m| Listed {
                id: m.id.clone(),
                complete: m.generation.is_some(),
            })
            .collect();
        for action in plan(&wanted, &previous, &listed) {
            log::info(format_args!("module identities: {action:?}"));
            match action {
                Action::Create(id) => drop(self.create_at(SELF, &at, &id)?),
                Action::SetKeys(id) => drop(self.set_keys_at(SELF, &at, &id)?),
                Action::Delete(id) => self.delete_at(SELF, &at, &id)?,
            }
        }
        Ok(self.parts.store.put_previous(&config)?)
    }
}
