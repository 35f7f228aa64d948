//! The running modules and how the ended ones ended: one owner, one table.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use contract::names::ModuleName;
use contract::warden::{End, LIST_PAGE, Reason, Refusal, Reply, Request, Start, State};
use local::log;
use rustix::process::Signal;

use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::digest::Digests;
use crate::measure::measure;
use crate::privileges;
use crate::start::{self, Module, refuse};

/// Most modules at once.
const MAX_RUNNING: usize = 128;
/// Most ends remembered.
const MAX_ENDED: usize = 256;

/// Everything warden knows.
pub(crate) struct Modules {
    config: Config,
    cgroups: Option<Cgroups>,
    digests: Digests,
    running: BTreeMap<ModuleName, Entry>,
    ended: BTreeMap<ModuleName, End>,
}

struct Entry {
    module: Module,
    /// When its grace is over.
    deadline: Option<Instant>,
}

/// A reply and the descriptors beside it.
pub(crate) type Answer = (Reply, Vec<OwnedFd>);

impl Modules {
    pub(crate) fn new(config: Config, cgroups: Option<Cgroups>) -> Self {
        let (digests, running, ended) = Default::default();
        Self {
            config,
            cgroups,
            digests,
            running,
            ended,
        }
    }

    /// Answers one request; `beside` has as many descriptors as the request says.
    pub(crate) fn answer(&mut self, request: &Request, beside: &[OwnedFd]) -> Answer {
        let answer = match request {
            Request::Start(start) => self.start(start, beside),
            Request::Stop { module, grace_ms } => {
                self.stop(module, Duration::from_millis((*grace_ms).into()))
            }
            Request::Kill(module) => self.kill(module),
            Request::Status(module) => Ok((Reply::Status(self.status(module)), Vec::new())),
            Request::List { after } => self.list(after.as_ref()),
            Request::Measure => match beside {
                [pidfd] => measure(pidfd.as_fd(), &mut self.digests)
                    .map(|measured| (Reply::Measured(measured), Vec::new()))
                    .map_err(Refusal::from),
                _ => Err(refuse(Reason::BadFrame, "no process descriptor")),
            },
        };
        answer.unwrap_or_else(|refusal| {
            log::warn(format_args!(
                "refused ({:?}): {}",
                refusal.reason, refusal.detail
            ));
            (Reply::Refused(refusal), Vec::new())
        })
    }

    fn start(&mut self, start: &Start, beside: &[OwnedFd]) -> Result<Answer, Refusal> {
        self.reap();
        if self.running.contains_key(&start.module) {
            return Err(refuse(Reason::AlreadyRunning, start.module.as_str()));
        }
        if self.running.len() >= MAX_RUNNING {
            return Err(refuse(
                Reason::Full,
                format!("{MAX_RUNNING} modules run already"),
            ));
        }
        let cgroups = self.cgroups.as_ref();
        let module = start::start(&self.config, cgroups, &mut self.digests, start, beside)?;
        let pidfd = match duplicate(&module) {
            Ok(pidfd) => pidfd,
            // A module nobody can watch must not run.
            Err(refusal) => {
                module.destroy();
                return Err(refusal);
            }
        };
        let facts = &module.facts;
        log::info(format_args!(
            "started {} under grant {} as {}:{}, process {}",
            facts.module,
            start.grant.as_str(),
            facts.uid,
            facts.gid,
            facts.pid,
        ));
        let reply = Reply::Started(facts.clone());
        self.ended.remove(&start.module);
        self.running.insert(
            start.module.clone(),
            Entry {
                module,
                deadline: None,
            },
        );
        Ok((reply, vec![pidfd]))
    }

    fn stop(&mut self, module: &ModuleName, grace: Duration) -> Result<Answer, Refusal> {
        let entry = self.entry(module)?;
        entry.module.signal(Signal::TERM);
        let deadline = Instant::now() + grace;
        entry.deadline = Some(
            entry
                .deadline
                .map_or(deadline, |earlier| earlier.min(deadline)),
        );
        Ok((Reply::Done, Vec::new()))
    }

    fn kill(&mut self, module: &ModuleName) -> Result<Answer, Refusal> {
        self.entry(module)?.module.signal(Signal::KILL);
        Ok((Reply::Done, Vec::new()))
    }

    fn entry(&mut self, module: &ModuleName) -> Result<&mut Entry, Refusal> {
        self.reap();
        self.running
            .get_mut(module)
            .ok_or_else(|| refuse(Reason::NotRunning, module.as_str()))
    }

    fn status(&mut self, module: &ModuleName) -> State {
        self.reap();
        match (self.running.contains_key(module), self.ended.get(module)) {
            (true, _) => State::Running,
            (false, Some(end)) => State::Exited(*end),
            (false, None) => State::Unknown,
        }
    }

    fn list(&mut self, after: Option<&ModuleName>) -> Result<Answer, Refusal> {
        self.reap();
        let mut rest = self
            .running
            .iter()
            .filter(|(name, _)| after.is_none_or(|after| *name > after));
        let page: Vec<_> = rest
            .by_ref()
            .take(LIST_PAGE)
            .map(|(_, entry)| &entry.module)
            .collect();
        let pidfds = page
            .iter()
            .copied()
            .map(duplicate)
            .collect::<Result<_, _>>()?;
        let running = page.iter().map(|module| module.facts.clone()).collect();
        Ok((
            Reply::Listed {
                running,
                more: rest.next().is_some(),
            },
            pidfds,
        ))
    }

    /// The process descriptors to watch.
    pub(crate) fn pidfds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.running
            .values()
            .map(|entry| entry.module.pidfd.as_fd())
    }

    /// Buries what has ended.
    pub(crate) fn reap(&mut self) {
        let ended: Vec<_> = self
            .running
            .iter()
            .filter_map(|(name, entry)| Some((name.clone(), entry.module.reap()?)))
            .collect();
        for (name, end) in ended {
            log::info(format_args!("{name} ended: {end:?}"));
            self.running.remove(&name);
            if let Some(cgroups) = &self.cgroups {
                cgroups.remove(&name);
            }
            if self.ended.len() >= MAX_ENDED {
                self.ended.pop_first();
            }
            self.ended.insert(name, end);
        }
    }

    /// Ends by force those whose grace is over, and tells how long the next has left.
    pub(crate) fn enforce(&mut self, now: Instant) -> Option<Duration> {
        let mut next = None;
        for entry in self.running.values_mut() {
            match entry.deadline {
                Some(deadline) if deadline <= now => {
                    entry.module.signal(Signal::KILL);
                    entry.deadline = None;
                }
                Some(deadline) => {
                    let left = deadline - now;
                    next = Some(next.map_or(left, |next: Duration| next.min(left)));
                }
                None => {}
            }
        }
        next
    }

    /// Ends all modules and removes every trace of them.
    pub(crate) fn close(mut self) {
        for entry in self.running.values() {
            entry.module.signal(Signal::KILL);
        }
        for (name, entry) in &self.running {
            entry.module.destroy();
            if let Some(cgroups) = &self.cgroups {
                cgroups.remove(name);
            }
        }
        if let Some(cgroups) = self.cgroups.take() {
            // Without it one empty cgroup stays, and the next warden takes that over.
            let _ = privileges::finish();
            cgroups.close();
        }
    }
}

fn duplicate(module: &Module) -> Result<OwnedFd, Refusal> {
    let copy = module.pidfd.try_clone();
    copy.map_err(|cause| refuse(Reason::Setup, format!("copy a descriptor: {cause}")))
}
