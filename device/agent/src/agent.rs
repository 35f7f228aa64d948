//! The loop: follow the twin, look, plan, act, report.
//!
//! [`Agent`] holds what the agent knows; [`run`] drives it by waiting on the hub, a second at a
//! time, so that neither a lost connection nor a slow hub keeps modules from being looked after.
//! Rounds come every five seconds, at once when the deployment changes, and later and later while
//! they fail. Modules outlive the agent: when it ends, it says so, and leaves them running.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use contract::api::management::SystemInfo;
use contract::api::workload::{Sign, SignRequest};
use contract::bytes::Bytes;
use contract::time::rfc3339;
use contract::twin::Members;
use local::client::Client;
use local::clock::Clock;
use local::log;
use net::mqtt::{Event, Identity, RETRY, Session, Settings};
use net::tls::{self, Roots, Target};
use net::token::Source;
use net::twin::Desired;
use serde_json::Value;

use crate::act::{ActError, Runtime};
use crate::config::Config;
use crate::desired::{self, Deployment};
use crate::error::AgentError;
use crate::plan::{Applied, Call, Current, History, plan};
use crate::report::{self, Facts, Outcome};

/// The longest wait on the hub before modules are looked at.
const TURN: Duration = Duration::from_secs(1);
/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(5);
const LONGEST_PERIOD: Duration = Duration::from_secs(300);
/// For one request to the hub.
const PATIENCE: Duration = Duration::from_secs(30);
/// A token's life, in seconds.
const TOKEN: u32 = 3600;
/// The largest bundle of roots read from a file.
const MAX_ROOTS: u64 = tls::MAX_BUNDLE as u64;

/// What the agent knows and remembers.
pub struct Agent {
    config: Config,
    clock: Arc<Clock>,
    runtime: Runtime,
    system: Option<SystemInfo>,
    deployment: Option<Deployment>,
    /// Version and error of desired properties that are no deployment.
    refused: Option<Outcome>,
    version: i64,
    outcome: Option<Outcome>,
    current: Current,
    applied: Applied,
    histories: BTreeMap<String, History>,
    reported: Members,
    failures: u32,
    next: Duration,
}

impl Agent {
    /// An agent that knows nothing yet.
    pub fn new(config: Config, clock: Arc<Clock>) -> Self {
        Self {
            runtime: Runtime::new(&config),
            config,
            clock,
            system: None,
            deployment: None,
            refused: None,
            version: 0,
            outcome: None,
            current: Current::default(),
            applied: Applied::new(),
            histories: BTreeMap::new(),
            reported: Members::new(),
            failures: 0,
            next: Duration::ZERO,
        }
    }

    /// Takes over what a former run reported.
    pub fn remember(&mut self, reported: Members) {
        self.applied = report::remembered(&reported);
        self.reported = reported;
    }

    /// Takes new desired properties. What cannot be read leaves the former deployment in force.
    pub fn take(&mut self, desired: &Desired) {
        self.version = desired.version;
        self.next = Duration::ZERO;
        match desired::parse(&desired.properties) {
            Ok(deployment) => {
                log::info(format_args!(
                    "deployment version {} is taken",
                    desired.version
                ));
                self.deployment = Some(deployment);
                self.refused = None;
                self.failures = 0;
            }
            Err(error) => {
                log::warn(format_args!(
                    "deployment version {}: {error}",
                    desired.version
                ));
                self.refused = Some(Outcome {
                    version: desired.version,
                    code: error.code(),
                    description: error.to_string(),
                });
            }
        }
    }

    /// Looks, plans and acts, if it is time for that. Says whether it was.
    pub fn round(&mut self) -> bool {
        let now = self.now();
        if now < self.next {
            return false;
        }
        let failed = match self.work(now) {
            Ok(None) => None,
            Ok(Some(error)) | Err(error) => Some(error),
        };
        let failed = failed.map(|error| {
            log::failure(log::Level::Warn, &error);
            in_words(&error)
        });
        self.failures = if failed.is_some() {
            self.failures.saturating_add(1)
        } else {
            0
        };
        self.next = self.now() + period(self.failures);
        self.outcome = match (&self.refused, &self.deployment) {
            (Some(refused), _) => Some(refused.clone()),
            (None, None) => None,
            (None, Some(_)) => Some(Outcome {
                version: self.version,
                code: if failed.is_some() { 500 } else { 200 },
                description: failed.unwrap_or_default(),
            }),
        };
        true
    }

    /// One round; the first thing that went wrong for a single module is passed on as a value.
    fn work(&mut self, now: Duration) -> Result<Option<ActError>, ActError> {
        if self.system.is_none() {
            // The report can do without it until it is there.
            self.system = self.runtime.system().ok();
        }
        self.look(now)?;
        let Some(deployment) = self.deployment.clone() else {
            return Ok(None);
        };
        let calls = plan(
            &deployment,
            &self.current,
            &self.applied,
            &self.histories,
            now,
        );
        let mut identities = self.current.identities.clone();
        let mut broken = BTreeSet::new();
        let mut first = None;
        for call in &calls {
            let name = call
                .module()
                .unwrap_or(&self.config.module)
                .plain()
                .to_owned();
            if broken.contains(&name) {
                continue;
            }
            log::info(call);
            match self
                .runtime
                .perform(call, &deployment, &self.config, &mut identities)
            {
                Ok(()) => self.done(call, &deployment),
                Err(error) => {
                    broken.insert(name);
                    if first.is_none() {
                        first = Some(error);
                    } else {
                        log::failure(log::Level::Warn, &error);
                    }
                }
            }
        }
        // Whatever was asked for and needed no further call is as it should be.
        for (name, module) in &deployment.modules {
            if !broken.contains(name) {
                self.applied.insert(name.clone(), module.describe());
            }
        }
        self.applied.retain(|name, _| {
            name == "edgeAgent" || deployment.modules.contains_key(name) || broken.contains(name)
        });
        if !calls.is_empty() {
            self.look(self.now())?;
        }
        Ok(first)
    }

    fn look(&mut self, now: Duration) -> Result<(), ActError> {
        self.current = self.runtime.current()?;
        self.histories
            .retain(|name, _| self.current.modules.contains_key(name));
        for (name, details) in &self.current.modules {
            let history = self.histories.entry(name.clone()).or_default();
            history.observe(details.status.runtime_status.status, now);
        }
        Ok(())
    }

    /// What a call that succeeded changes in what we remember.
    fn done(&mut self, call: &Call, deployment: &Deployment) {
        match call {
            Call::Restart(name) => {
                let at = rfc3339(self.clock.now().wall);
                self.histories
                    .entry(name.plain().to_owned())
                    .or_default()
                    .restarted(at);
            }
            Call::Create(name) | Call::Update(name) => {
                self.histories.remove(name.plain());
                if let Some(module) = deployment.modules.get(name.plain()) {
                    self.applied
                        .insert(name.plain().to_owned(), module.describe());
                }
            }
            Call::UpdateAgent => {
                if let Some(agent) = &deployment.agent {
                    self.applied
                        .insert("edgeAgent".to_owned(), agent.describe());
                }
            }
            _ => {}
        }
    }

    /// What the hub does not know yet: the patch, and the report it leads to.
    pub fn unreported(&self) -> Option<(Members, Members)> {
        let report = self.report();
        report::difference(&self.reported, &report).map(|patch| (patch, report))
    }

    /// The hub has this report now.
    pub fn was_reported(&mut self, report: Members) {
        self.reported = report;
    }

    /// The patch that tells the hub that nobody looks after the modules any more.
    pub fn farewell(&self) -> Option<Members> {
        let last = report::farewell(self.report(), self.version);
        report::difference(&self.reported, &last)
    }

    fn report(&self) -> Members {
        report::report(&Facts {
            deployment: self.deployment.as_ref(),
            current: &self.current,
            applied: &self.applied,
            histories: &self.histories,
            system: self.system.as_ref(),
            outcome: self.outcome.as_ref(),
            now: self.now(),
        })
    }

    fn now(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.clock.now().monotonic_ms).unwrap_or(0))
    }
}

/// Works until `stop` is set.
///
/// # Errors
/// [`AgentError`] when the agent cannot even begin.
pub fn run(config: Config, clock: Clock, stop: &AtomicBool) -> Result<(), AgentError> {
    let clock = Arc::new(clock);
    let mut session = Session::new(settings(&config, Arc::clone(&clock))?);
    let mut agent = Agent::new(config, clock);
    let mut remembers = false;
    let mut complaint = String::new();
    while !stop.load(Ordering::Relaxed) {
        match session.next(Instant::now() + TURN) {
            Ok(Event::Desired(desired)) => agent.take(&desired),
            Ok(Event::Idle) => complaint.clear(),
            Err(error) => complain(&mut complaint, &error),
        }
        if !remembers && session.is_connected() {
            match session.twin(Instant::now() + PATIENCE) {
                Ok(twin) => {
                    agent.remember(twin.reported.properties);
                    remembers = true;
                }
                Err(error) => complain(&mut complaint, &error),
            }
        }
        // Without its memory the agent would take every module for a changed one.
        if !remembers || !agent.round() || !session.is_connected() {
            continue;
        }
        if let Some((patch, report)) = agent.unreported() {
            match session.report(&Value::Object(patch), Instant::now() + PATIENCE) {
                Ok(_) => agent.was_reported(report),
                Err(error) => complain(&mut complaint, &error),
            }
        }
    }
    if remembers
        && session.is_connected()
        && let Some(patch) = agent.farewell()
        && let Err(error) = session.report(&Value::Object(patch), Instant::now() + 2 * TURN)
    {
        log::failure(log::Level::Warn, &error);
    }
    session.close();
    Ok(())
}

fn settings(config: &Config, clock: Arc<Clock>) -> Result<Settings, AgentError> {
    let identity = Identity {
        hub: config.hub.to_string(),
        device: config.device.to_string(),
        module: Some(config.module.identity()),
    };
    let workload = Arc::new(Client::new(&config.workload));
    let roots = match &config.hub_roots {
        Some(path) => read_roots(path)?,
        None => workload
            .call::<contract::api::workload::ReadTrustBundle>(&(), &contract::endpoint::Empty)
            .map_err(AgentError::TrustBundle)?
            .certificate
            .into_bytes(),
    };
    // The hub has to prove its own name, or the gateway's, wherever it is reached.
    let name = config.gateway.as_deref().unwrap_or(config.hub.as_str());
    let name = Target::parse(name, 8883)?.host().to_owned();
    let target = Target::parse(&config.hub_address, 8883)?.named(&name)?;
    let signed = (config.module.clone(), config.generation.clone());
    let sign = move |data: &[u8]| {
        let request = SignRequest {
            data: Bytes(data.to_vec()),
            key_id: Some("primary".to_owned()),
            algo: Some("HMACSHA256".to_owned()),
        };
        let answer = workload.call::<Sign>(&signed, &request)?;
        <[u8; 32]>::try_from(answer.digest.0).map_err(|_| "a signature has 32 bytes".into())
    };
    let wall = move || {
        let now = clock.now();
        now.may_mint().then_some(now.wall)
    };
    Ok(Settings {
        tokens: Source::new(identity.owner(), TOKEN, sign, wall),
        identity,
        product: concat!("holdfast-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
        target,
        tls: tls::Client::new(&Roots::from_pem(&roots)?)?,
        retry: RETRY,
    })
}

/// Reads the roots; one byte too many is enough to refuse them.
fn read_roots(path: &std::path::Path) -> Result<Vec<u8>, AgentError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_ROOTS + 1).read_to_end(&mut bytes))
        .map_err(|cause| AgentError::Roots {
            path: path.display().to_string(),
            cause,
        })?;
    Ok(bytes)
}

/// Says what is wrong once, not every second.
fn complain(last: &mut String, error: &dyn Error) {
    let words = in_words(error);
    // Without a cause it is the same trouble, still waiting.
    if *last != words && error.source().is_some() {
        log::failure(log::Level::Warn, error);
        *last = words;
    }
}

/// An error and its causes in one line.
fn in_words(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        next = cause.source();
    }
    words.chars().take(500).collect()
}

fn period(failures: u32) -> Duration {
    PERIOD
        .saturating_mul(1 << failures.min(10))
        .min(LONGEST_PERIOD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_come_later_and_later_while_they_fail() {
        let seconds: Vec<u64> = (0..8).map(|failures| period(failures).as_secs()).collect();
        assert_eq!(seconds, [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(period(u32::MAX), LONGEST_PERIOD);
    }
}
