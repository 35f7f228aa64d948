//! The hub: devices enrol here, keep their identities and twins here, and send their messages
//! here (D8).
//!
//! One HTTPS listener speaks to devices, operators and the provisioning API, one listener speaks
//! MQTT 3.1.1 over TLS. State is in SQLite, on a thread of its own. Every protocol is the public
//! one (reference/cloud.md), so a device cannot tell this hub from a cloud.
//!
//! Start at [`Running::start`], then `api/mod.rs` for the table of routes or `mqtt.rs` for a connection;
//! decisions are in `auth`, `topic`, `deploy` and in `contract::{sas, twin}`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use contract::twin::Limits;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::auth::Authority;
use crate::bus::Bus;
use crate::config::{Config, ConfigError};
use crate::store::{Store, StoreError};

mod admit;
mod api;
pub mod auth;
pub mod bus;
mod clock;
pub mod config;
pub mod deploy;
pub mod enrolments;
pub mod error;
pub mod events;
mod files;
pub mod init;
mod listen;
mod mqtt;
mod random;
pub mod record;
pub mod registry;
pub mod store;
pub mod topic;
pub mod twins;
pub mod wire;

/// The file of the state folder that tells where a hub listens.
const ENDPOINTS: &str = "endpoints.json";

/// What all connections share.
pub(crate) struct Hub {
    pub(crate) store: Store,
    pub(crate) bus: Bus,
    pub(crate) authority: Authority,
    /// The provisioning id scope.
    pub(crate) scope: String,
    /// What enrolled devices are told to connect to.
    pub(crate) advertise: String,
    pub(crate) twin_limits: Limits,
    pub(crate) events_kept: i64,
}

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store cannot be opened.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// An address cannot be listened on.
    #[error("listen on {address}: {cause}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// Certificate or key cannot be used.
    #[error("{file}: {why}")]
    Tls {
        /// Which file.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// A file of the state folder cannot be written.
    #[error("state folder: {0}")]
    State(#[from] std::io::Error),
    /// An enrolment of the configuration is not accepted.
    #[error("enrolment {id}: {cause}")]
    Enrolment {
        /// Which.
        id: String,
        /// Why.
        #[source]
        cause: error::Error,
    },
}

/// Where the hub listens: the content of `endpoints.json` in its state folder.
#[derive(Debug, Clone, Serialize)]
pub struct Endpoints {
    /// The hub's own name.
    pub hostname: String,
    /// What enrolled devices are told to connect to.
    pub advertise: String,
    /// The provisioning id scope.
    pub scope_id: String,
    /// Device, service and provisioning API.
    pub https: SocketAddr,
    /// MQTT.
    pub mqtt: SocketAddr,
}

/// A hub that is running. Dropping it closes all connections.
pub struct Running {
    endpoints: Endpoints,
    tasks: JoinSet<()>,
}

impl Running {
    /// Opens the store, binds both listeners, tells their addresses in `endpoints.json`, and serves.
    ///
    /// # Errors
    /// [`StartError`]; nothing is served then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        files::private_folder(&config.state)?;
        let store = Store::open(&config.state.join("hub.sqlite"))?;
        // The store is ours now; a file of an earlier run would tell addresses where nobody listens.
        files::remove(&config.state, ENDPOINTS)?;
        enrol(&store, &config).await?;
        let tls = listen::tls(&config)?;
        let https = listen::bind(config.listen.https).await?;
        let mqtt = listen::bind(config.listen.mqtt).await?;
        let (https_at, mqtt_at) = (https.local_addr()?, mqtt.local_addr()?);
        let own = config.hostnames[0].as_str();
        let advertise = match (&config.advertise, https_at.port()) {
            (Some(name), _) => name.to_string(),
            (None, 443) => own.to_owned(),
            (None, port) => format!("{own}:{port}"),
        };
        let endpoints = Endpoints {
            hostname: own.to_owned(),
            advertise: advertise.clone(),
            scope_id: config.scope_id.to_string(),
            https: https_at,
            mqtt: mqtt_at,
        };
        let watched = store.clone();
        let hub = Arc::new(Hub {
            store,
            bus: Bus::default(),
            authority: Authority {
                hosts: hosts(&config, &advertise, https_at.port()),
                policies: config.policies,
            },
            scope: config.scope_id.to_string(),
            advertise,
            twin_limits: Limits {
                size: config.twin_bytes,
                ..Limits::PROPERTIES
            },
            events_kept: config.events_kept,
        });
        let text = serde_json::to_vec_pretty(&endpoints).map_err(std::io::Error::other)?;
        files::replace(&config.state, ENDPOINTS, &text)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { watched.stopped().await });
        let permits = listen::permits(config.connections);
        let router = api::router(Arc::clone(&hub));
        tasks.spawn(listen::serve(
            https,
            tls.clone(),
            Arc::clone(&permits),
            move |stream| listen::http(router.clone(), stream),
        ));
        tasks.spawn(listen::serve(mqtt, tls, permits, move |stream| {
            mqtt::serve(Arc::clone(&hub), stream)
        }));
        Ok(Self { endpoints, tasks })
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Serves until a listener or the store fails, which only happens when the process is in
    /// trouble: better ended and started anew than half alive.
    pub async fn wait(&mut self) {
        let _ = self.tasks.join_next().await;
    }
}

/// Writes the enrolments of the configuration that do not exist yet.
async fn enrol(store: &Store, config: &Config) -> Result<(), StartError> {
    for enrolment in config.enrolments.clone() {
        let id = enrolment.id.to_string();
        let made = store.run(move |connection| {
            let at = clock::stamp();
            let absent = registry::IfMatch::Absent;
            let (kind, id) = (enrolment.kind, enrolment.id.as_str());
            match enrolments::put(connection, kind, id, &enrolment.document, &absent, &at) {
                Ok(_) | Err(error::Error::EnrolmentExists) => Ok(()),
                Err(other) => Err(other),
            }
        });
        made.await
            .map_err(|cause| StartError::Enrolment { id, cause })?;
    }
    Ok(())
}

/// Every name under which a token may know the hub: identity daemons take what the assignment
/// said, with its port; SDKs take the plain name.
fn hosts(config: &Config, advertise: &str, port: u16) -> Vec<String> {
    let mut hosts: Vec<String> = config.hostnames.iter().map(ToString::to_string).collect();
    hosts.extend(config.hostnames.iter().map(|name| format!("{name}:{port}")));
    hosts.push(advertise.to_owned());
    hosts
}

/// A date that an API version may be: any since the protocol is what it is.
pub(crate) fn is_api_version(text: &str) -> bool {
    let date = text.strip_suffix("-preview").unwrap_or(text).as_bytes();
    let shape = date.len() == 10
        && date.iter().enumerate().all(|(at, byte)| match at {
            4 | 7 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    shape && date >= b"2016-11-14".as_slice()
}
