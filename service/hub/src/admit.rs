//! The first packet of an MQTT connection: who it is, and whether it may come in
//! (reference/cloud.md 2.1).
//!
//! Every trouble with a credential is one answer, and our own trouble is another: a client that
//! hears "not authorised" provisions anew.

use std::sync::Arc;
use std::time::Duration;

use contract::sas::Token;
use rusqlite::{Connection, params};

use crate::auth::Right;
use crate::error::Error;
use crate::record::Identity;
use crate::topic::{Bag, Publish};
use crate::wire::{Connect, Welcome};
use crate::{Hub, clock, registry};

/// The longest silence whatever the client asks for, in seconds.
const MAX_SILENCE: u64 = 1767;

/// A client that was let in.
pub(crate) struct Guest {
    /// Who it is.
    pub(crate) identity: Identity,
    /// Unix seconds at which its token ends.
    pub(crate) closes: i64,
    /// How long it may say nothing.
    pub(crate) silence: Duration,
    /// The filters of its session.
    pub(crate) filters: u8,
    /// Its session is not kept.
    pub(crate) clean: bool,
    /// Its session was kept.
    pub(crate) present: bool,
    /// Sent if the connection breaks.
    pub(crate) will: Option<(Bag, Vec<u8>)>,
}

/// Decides about a CONNECT; the refusal is what the client is told.
pub(crate) async fn admit(hub: &Arc<Hub>, connect: Connect) -> Result<Guest, Welcome> {
    let identity = identity(&hub.authority.hosts, &connect).ok_or(Welcome::NotAuthorized)?;
    if identity.client_id() != connect.client {
        return Err(Welcome::ClientId);
    }
    let token = connect
        .password
        .as_ref()
        .and_then(|text| Token::parse(text).ok());
    let token = token.ok_or(Welcome::NotAuthorized)?;
    let will = match &connect.will {
        None => None,
        Some((topic, body)) => match Publish::parse(topic, &identity) {
            Some(Publish::Telemetry(mut bag)) => {
                bag.system
                    .insert("iothub-MessageType".into(), "Will".into());
                Some((bag, body.clone()))
            }
            _ => return Err(Welcome::ClientId),
        },
    };
    let closes = token.closes();
    let (judge, clean, whom) = (Arc::clone(hub), connect.clean, identity.clone());
    let (present, filters) = hub
        .store
        .run(move |connection| {
            let record = registry::read(connection, &whom)?;
            let device = registry::read(connection, &whom.of_device())?;
            if !record.enabled || !device.enabled {
                return Err(Error::Unauthorized("disabled"));
            }
            if token.policy().is_some() {
                judge
                    .authority
                    .policy(&token, Right::DeviceConnect, Some(&whom), clock::now())?;
            } else {
                judge.authority.entity(&token, &record, clock::now())?;
            }
            registry::touch(connection, &whom, &clock::stamp())?;
            session(connection, &whom, clean)
        })
        .await
        .map_err(|error| match error {
            // Never "not authorised" for our own trouble: clients would provision anew.
            Error::Store(_) => Welcome::Unavailable,
            _ => Welcome::NotAuthorized,
        })?;
    let (silence, clean) = (silence(connect.keep_alive), connect.clean);
    Ok(Guest {
        identity,
        closes,
        silence,
        filters,
        clean,
        present,
        will,
    })
}

/// How long a client may say nothing: one and a half times what it promised.
fn silence(keep_alive: u16) -> Duration {
    let seconds = u64::from(keep_alive);
    let allowed = if seconds == 0 {
        MAX_SILENCE
    } else {
        seconds + seconds / 2
    };
    Duration::from_secs(allowed.min(MAX_SILENCE))
}

/// The identity that a user name claims: `H/D/?api-version=..` or `H/D/M/?api-version=..`, older
/// clients without the last slash.
fn identity(hosts: &[String], connect: &Connect) -> Option<Identity> {
    let (path, query) = match connect.user.split_once("/?") {
        Some(split) => split,
        None => connect.user.rsplit_once('/')?,
    };
    let version = query
        .split('&')
        .find_map(|field| field.strip_prefix("api-version="))?;
    if !crate::is_api_version(version) {
        return None;
    }
    let mut parts = path.split('/');
    let (host, device, module) = (parts.next()?, parts.next()?, parts.next());
    let known = hosts.iter().any(|own| own.eq_ignore_ascii_case(host));
    if !known || parts.next().is_some() {
        return None;
    }
    Identity::new(device, module).ok()
}

/// Opens or clears the stored session: whether there was one, and its filters.
fn session(connection: &Connection, identity: &Identity, clean: bool) -> Result<(bool, u8), Error> {
    let key = params![identity.device.as_str(), identity.module_text()];
    if clean {
        connection
            .prepare_cached("DELETE FROM session WHERE device = ?1 AND module = ?2")?
            .execute(key)?;
        return Ok((false, 0));
    }
    let mut statement = connection
        .prepare_cached("SELECT filters FROM session WHERE device = ?1 AND module = ?2")?;
    if let Some(row) = statement.query(key)?.next()? {
        return Ok((true, row.get(0)?));
    }
    connection
        .prepare_cached("INSERT INTO session (device, module, filters) VALUES (?1, ?2, 0)")?
        .execute(key)?;
    Ok((false, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_be_silent_for_one_and_a_half_intervals() {
        for (keep_alive, seconds) in [
            (0, 1767),
            (60, 90),
            (1178, 1767),
            (1179, 1767),
            (65535, 1767),
        ] {
            assert_eq!(silence(keep_alive).as_secs(), seconds, "{keep_alive}");
        }
    }

    #[test]
    fn user_names_are_read_in_all_their_forms() {
        let read = |user: &str| {
            let connect = Connect {
                client: String::new(),
                user: user.into(),
                password: None,
                clean: false,
                keep_alive: 0,
                will: None,
            };
            identity(&["hub".into(), "127.0.0.1:8443".into()], &connect).map(|i| i.client_id())
        };
        for (user, expected) in [
            (
                "hub/d/?api-version=2019-10-01&DeviceClientType=a%2Fb",
                Some("d"),
            ),
            ("HUB/d/api-version=2016-11-14", Some("d")),
            (
                "hub/d/$edgeAgent/?api-version=2021-04-12",
                Some("d/$edgeAgent"),
            ),
            ("127.0.0.1:8443/d/m/?api-version=2021-04-12", Some("d/m")),
            ("127.0.0.1/d/?api-version=2021-04-12", None),
            ("hub/d/?DeviceClientType=x", None),
            ("hub/d/?api-version=2016-01-01", None),
            ("hub/d/m/x/?api-version=2021-04-12", None),
            ("hub//?api-version=2021-04-12", None),
            ("hub/?api-version=2021-04-12", None),
            ("", None),
        ] {
            assert_eq!(read(user).as_deref(), expected, "{user}");
        }
    }
}
