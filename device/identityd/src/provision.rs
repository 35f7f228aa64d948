//! How the device comes to its hub: a state machine over configuration, last record and answers
//! (R54, A72, A75), and the text of that record.
//!
//! A record that serves is never given up for an answer that does not: a failed registration, a
//! foreign hub, a new hub that stays silent all leave the old one in force. Only a hub that has
//! answered replaces it. Nothing here reads a clock, a file or a socket; [`crate::act`] does.

use serde::Deserialize;

use contract::audit::hex;
use contract::names::{DeviceId, HostName};
use net::dps::{Assigned, HubRule};

use crate::config::Provisioning;

/// The device as it is known at a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The hub a token is made for.
    pub hub: HostName,
    /// The host a client connects to: the parent, or the hub itself.
    pub gateway: HostName,
    /// The device.
    pub id: DeviceId,
}

/// Why the device is provisioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The daemon starts.
    Start,
    /// A caller asked.
    Asked,
    /// The hub no longer knows the device.
    HubRefused,
}

/// What happened since the last step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It begins.
    Begin(Cause),
    /// The service assigned a hub that the rule allows.
    Assigned(Assigned),
    /// The service assigned none, could not be reached, or named a foreign hub.
    NotAssigned,
    /// The hub that was asked accepts the device.
    HubAnswered,
    /// It does not, or is silent.
    HubFailed,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Done: there is no device, by configuration.
    Unprovisioned,
    /// Done: go on with what was in force.
    Serve(Device),
    /// Register with the provisioning service.
    Register,
    /// Ask this hub whether it accepts the device.
    Probe(Device),
    /// Write the record, then serve; done when both are.
    Commit(Device),
    /// Done: it failed, and what was in force stays (`None`: nothing was).
    Keep(Option<Device>),
}

/// One run of provisioning.
#[derive(Debug)]
pub struct Provision {
    source: Provisioning,
    gateway: Option<HostName>,
    current: Option<Device>,
    candidate: Option<Device>,
}

impl Provision {
    /// A run with the record in force. A record of other settings, or of a hub that the rule no
    /// longer allows, is none.
    #[must_use]
    pub fn new(
        source: Provisioning,
        gateway: Option<HostName>,
        rule: &HubRule,
        record: Option<Record>,
    ) -> Self {
        let current = record.filter(|r| r.fits(&source, rule)).map(|r| r.device);
        Self {
            source,
            gateway,
            current,
            candidate: None,
        }
    }

    /// Takes what happened and says what to do.
    pub fn next(&mut self, event: Event) -> Step {
        match event {
            Event::Begin(cause) => self.begin(cause),
            Event::Assigned(Assigned { hub, device }) => {
                let assigned = Device {
                    gateway: hub.clone(),
                    hub,
                    id: device,
                };
                match &self.current {
                    Some(current) if *current == assigned => Step::Serve(assigned),
                    Some(_) => {
                        self.candidate = Some(assigned.clone());
                        Step::Probe(assigned)
                    }
                    None => Step::Commit(assigned),
                }
            }
            Event::HubAnswered => match self.candidate.take() {
                Some(device) => Step::Commit(device),
                None => Step::Keep(self.current.clone()),
            },
            Event::NotAssigned | Event::HubFailed => Step::Keep(self.current.clone()),
        }
    }

    fn begin(&mut self, cause: Cause) -> Step {
        match (&self.source, &self.current, cause) {
            (Provisioning::None, _, _) => Step::Unprovisioned,
            (Provisioning::Manual { hub, device, .. }, current, _) => {
                let gateway = self.gateway.clone().unwrap_or_else(|| hub.clone());
                let wanted = Device {
                    hub: hub.clone(),
                    gateway,
                    id: device.clone(),
                };
                match current {
                    Some(current) if *current == wanted => Step::Serve(wanted),
                    // The operator said so: there is nobody to ask.
                    _ => Step::Commit(wanted),
                }
            }
            (Provisioning::Dps { .. }, Some(current), Cause::Start) => Step::Serve(current.clone()),
            (Provisioning::Dps { .. }, _, _) => Step::Register,
        }
    }
}

/// The stored form of a [`Device`]: `device_info` as the reference writes and reads it, with one
/// comment line of ours that says from which settings it came and whether it is whole (R75).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The device.
    pub device: Device,
    /// Digest of the settings it came from; absent in a record of the reference.
    pub settings: Option<String>,
}

/// Why a stored record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not the document it should be.
    #[error("the record is not readable")]
    Syntax,
    /// Altered or cut since it was written (A134).
    #[error("the record's checksum does not fit")]
    Checksum,
}

const MARK: &str = "# holdfast 1 settings=";

#[derive(Deserialize)]
struct WireDevice {
    hub_name: HostName,
    local_gateway_hostname: HostName,
    device_id: DeviceId,
}

impl Record {
    /// A record of these settings.
    #[must_use]
    pub fn new(device: Device, source: &Provisioning) -> Self {
        Self {
            device,
            settings: Some(settings(source)),
        }
    }

    /// Reads the stored text; `Ok(None)` for the word that means no device.
    ///
    /// # Errors
    /// [`RecordError`]; the previous generation is then the one to read.
    pub fn parse(text: &str) -> Result<Option<Self>, RecordError> {
        if text.trim() == "unprovisioned" {
            return Ok(None);
        }
        let (body, settings) = match text.split_once(MARK) {
            None => (text, None),
            Some((body, mark)) => {
                let (settings, sum) = mark
                    .trim_end()
                    .split_once(" sum=")
                    .ok_or(RecordError::Syntax)?;
                if sum != checksum(body, settings) {
                    return Err(RecordError::Checksum);
                }
                (body, Some(settings.to_owned()))
            }
        };
        let wire: WireDevice = toml::from_str(body).map_err(|_| RecordError::Syntax)?;
        let device = Device {
            hub: wire.hub_name,
            gateway: wire.local_gateway_hostname,
            id: wire.device_id,
        };
        Ok(Some(Self { device, settings }))
    }

    /// The text to store. No name's grammar has a quote or backslash in it, so none is escaped.
    #[must_use]
    pub fn write(&self) -> String {
        let Device { hub, gateway, id } = &self.device;
        let body = format!(
            "hub_name = \"{hub}\"\nlocal_gateway_hostname = \"{gateway}\"\ndevice_id = \"{id}\"\n"
        );
        match &self.settings {
            None => body,
            Some(settings) => {
                let sum = checksum(&body, settings);
                format!("{body}{MARK}{settings} sum={sum}\n")
            }
        }
    }

    fn fits(&self, source: &Provisioning, rule: &HubRule) -> bool {
        let same = self
            .settings
            .as_ref()
            .is_none_or(|s| *s == settings(source));
        match source {
            Provisioning::None => false,
            Provisioning::Manual { .. } => same,
            Provisioning::Dps { .. } => same && rule.allows(&self.device.hub),
        }
    }
}

/// Which settings a record came from: a device that the operator gives another registration does
/// not go on as the old one.
fn settings(source: &Provisioning) -> String {
    let text = match source {
        Provisioning::None => "none".to_owned(),
        Provisioning::Manual { hub, device, .. } => format!("manual\n{hub}\n{device}"),
        Provisioning::Dps {
            endpoint,
            scope,
            registration,
            ..
        } => {
            format!("dps\n{endpoint}\n{scope}\n{registration}")
        }
    };
    sha256(&text)
}

fn checksum(body: &str, settings: &str) -> String {
    sha256(&format!("{settings}\n{body}"))
}

/// SHA-256 of a text, in lower-case hexadecimal.
pub fn sha256(text: &str) -> String {
    hex(&contract::audit::hash(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use contract::names::{KeyId, RegistrationId};

    use super::*;

    fn host(text: &str) -> HostName {
        HostName::new(text).unwrap()
    }

    fn device(hub: &str) -> Device {
        Device {
            hub: host(hub),
            gateway: host(hub),
            id: DeviceId::new("d1").unwrap(),
        }
    }

    fn dps() -> Provisioning {
        Provisioning::Dps {
            endpoint: host("dps.test:8443"),
            scope: "0ne1".to_owned(),
            registration: RegistrationId::new("reg-1").unwrap(),
            key: KeyId::new("device-id").unwrap(),
            payload: None,
        }
    }

    fn manual(hub: &str) -> Provisioning {
        let key = KeyId::new("device-id").unwrap();
        Provisioning::Manual {
            hub: host(hub),
            device: DeviceId::new("d1").unwrap(),
            key,
        }
    }

    fn rule() -> HubRule {
        HubRule::new([".hubs.test".to_owned()])
    }

    fn run(source: Provisioning, record: Option<Record>, events: Vec<Event>) -> Vec<Step> {
        let mut machine = Provision::new(source, None, &rule(), record);
        events.into_iter().map(|e| machine.next(e)).collect()
    }

    fn assigned(hub: &str) -> Event {
        Event::Assigned(Assigned {
            hub: host(hub),
            device: DeviceId::new("d1").unwrap(),
        })
    }

    type Road = (&'static str, Option<Record>, Vec<Event>, Vec<Step>);

    #[test]
    fn the_roads_to_a_hub() {
        use Cause::{Asked, HubRefused, Start};
        use Event::{Begin, HubAnswered, HubFailed, NotAssigned};
        let (old, new) = (device("a.hubs.test"), device("b.hubs.test"));
        let record = || Some(Record::new(old.clone(), &dps()));
        let keep = || Step::Keep(Some(old.clone()));
        let table: Vec<Road> = vec![
            (
                "first start",
                None,
                vec![Begin(Start), assigned("b.hubs.test")],
                vec![Step::Register, Step::Commit(new.clone())],
            ),
            (
                "first start without network",
                None,
                vec![Begin(Start), NotAssigned],
                vec![Step::Register, Step::Keep(None)],
            ),
            (
                "start with a record",
                record(),
                vec![Begin(Start)],
                vec![Step::Serve(old.clone())],
            ),
            (
                "asked, same hub",
                record(),
                vec![Begin(Asked), assigned("a.hubs.test")],
                vec![Step::Register, Step::Serve(old.clone())],
            ),
            (
                "asked, other hub that answers",
                record(),
                vec![Begin(Asked), assigned("b.hubs.test"), HubAnswered],
                vec![
                    Step::Register,
                    Step::Probe(new.clone()),
                    Step::Commit(new.clone()),
                ],
            ),
            (
                "asked, other hub that is silent",
                record(),
                vec![Begin(Asked), assigned("b.hubs.test"), HubFailed],
                vec![Step::Register, Step::Probe(new.clone()), keep()],
            ),
            (
                "asked, no answer",
                record(),
                vec![Begin(Asked), NotAssigned],
                vec![Step::Register, keep()],
            ),
            (
                "refused by the hub, no answer",
                record(),
                vec![Begin(HubRefused), NotAssigned],
                vec![Step::Register, keep()],
            ),
            (
                "an answer nobody waited for",
                record(),
                vec![HubAnswered],
                vec![keep()],
            ),
        ];
        for (what, record, events, want) in table {
            assert_eq!(run(dps(), record, events), want, "{what}");
        }
    }

    #[test]
    fn a72_a_hub_that_flips_on_each_call_replaces_nothing_until_it_answers() {
        let old = device("a.hubs.test");
        let record = Record::new(old.clone(), &dps());
        for hub in ["b.hubs.test", "c.hubs.test", "b.hubs.test"] {
            let steps = run(
                dps(),
                Some(record.clone()),
                vec![Event::Begin(Cause::Asked), assigned(hub), Event::HubFailed],
            );
            let want = [
                Step::Register,
                Step::Probe(device(hub)),
                Step::Keep(Some(old.clone())),
            ];
            assert_eq!(steps, want);
        }
    }

    #[test]
    fn a_record_of_other_settings_or_of_a_foreign_hub_is_not_served() {
        let start = vec![Event::Begin(Cause::Start)];
        let foreign = Record::new(device("hub.evil.test"), &dps());
        assert_eq!(run(dps(), Some(foreign), start.clone()), [Step::Register]);
        let other = Record::new(device("a.hubs.test"), &manual("a.hubs.test"));
        assert_eq!(run(dps(), Some(other), start.clone()), [Step::Register]);
        // The reference's record says nothing about its settings, and is taken over.
        let theirs = Record {
            device: device("a.hubs.test"),
            settings: None,
        };
        assert_eq!(
            run(dps(), Some(theirs), start),
            [Step::Serve(device("a.hubs.test"))]
        );
    }

    #[test]
    fn a_manual_device_is_what_the_operator_says() {
        let begin = |cause| vec![Event::Begin(cause)];
        for cause in [Cause::Start, Cause::Asked] {
            let steps = run(manual("h.test"), None, begin(cause));
            assert_eq!(steps, [Step::Commit(device("h.test"))]);
            let record = Record::new(device("h.test"), &manual("h.test"));
            let steps = run(manual("h.test"), Some(record), begin(cause));
            assert_eq!(steps, [Step::Serve(device("h.test"))]);
        }
        assert_eq!(
            run(Provisioning::None, None, begin(Cause::Start)),
            [Step::Unprovisioned]
        );
    }

    #[test]
    fn a134_a_record_cut_or_altered_anywhere_is_not_believed() {
        let record = Record::new(device("a.hubs.test"), &dps());
        let text = record.write();
        assert_eq!(Record::parse(&text), Ok(Some(record)));
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            if let Ok(altered) = String::from_utf8(bytes) {
                let parsed = Record::parse(&altered);
                let damaged = parsed.as_ref().is_err()
                    // Our mark itself was hit: it is then a comment, as in a foreign record.
                    || parsed.as_ref().is_ok_and(|r| r.as_ref().is_none_or(|r| r.settings.is_none()));
                assert!(damaged, "{at}: {altered}");
            }
        }
        assert_eq!(Record::parse(""), Err(RecordError::Syntax));
        assert_eq!(Record::parse("unprovisioned"), Ok(None));
    }

    #[test]
    fn the_references_record_is_read_and_ours_reads_as_theirs() {
        let theirs =
            "hub_name = \"h.test\"\nlocal_gateway_hostname = \"p.test\"\ndevice_id = \"d1\"\n";
        let record = Record::parse(theirs).unwrap().unwrap();
        assert_eq!(record.device.gateway, host("p.test"));
        assert_eq!(record.write(), theirs);
    }
}
