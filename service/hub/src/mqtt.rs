//! One MQTT connection from CONNECT to its end (reference/cloud.md 2.1-2.6).
//!
//! A reader and a writer share a bounded queue ([`crate::bus`]). Requests are handed to the store
//! in the order in which they came; what answers them is queued by the store after the commit, so
//! a PUBACK means that the message is on the disk. The number of unanswered requests is limited by
//! permits: a client that sends too fast is not read. What has no meaning ends the connection.

use std::sync::Arc;
use std::time::Duration;

use contract::json;
use rusqlite::{Connection, params};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use crate::admit::{Guest, admit};
use crate::bus::{Link, Out};
use crate::error::Error;
use crate::record::Identity;
use crate::topic::{self, Bag, Filter, Publish};
use crate::wire::{self, Packet, Reader, Welcome, WireError};
use crate::{Hub, clock, events, twins};

/// Requests without answer per client.
const IN_FLIGHT: usize = 64;
/// Packets that may wait for a slow reader: an answer and an acknowledgement for each request, and
/// as many changes again.
const QUEUE: usize = 4 * IN_FLIGHT;
/// From TCP connection to CONNECT.
const GREETING: Duration = Duration::from_secs(15);
/// From DISCONNECT to the end of what is still to be written.
const FAREWELL: Duration = Duration::from_secs(10);
type Stream = TlsStream<TcpStream>;

/// Why a connection ends early. Told to nobody: MQTT 3.1.1 has no words for it.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("connection: {0}")]
    Io(#[from] std::io::Error),
    #[error("packet: {0}")]
    Wire(#[from] WireError),
    #[error("a topic without meaning for this client")]
    Topic,
    #[error("silent, expired, taken over, or no longer allowed")]
    Over,
    #[error("request: {0}")]
    Request(#[from] Error),
}

/// Serves one connection until it ends.
pub(crate) async fn serve(hub: Arc<Hub>, stream: Stream) {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut reader = Reader::default();
    let mut buffer = Buffer::default();
    let greeting = tokio::time::timeout(GREETING, buffer.next(&mut reader, &mut read)).await;
    let welcome = match greeting {
        Ok(Ok(Packet::Connect(connect))) => admit(&hub, *connect).await,
        Ok(Err(End::Wire(bad))) if bad.is_version() => Err(Welcome::Version),
        _ => return,
    };
    let guest = match welcome {
        Ok(guest) => guest,
        Err(refusal) => {
            if let Ok(bytes) = wire::connack(refusal) {
                let _ = write.write_all(&bytes).await;
                let _ = write.shutdown().await;
            }
            return;
        }
    };
    reader.welcome();
    let (out, queue) = mpsc::channel(QUEUE);
    let link = Arc::new(Link::new(out, guest.filters));
    // Before anyone else can use the link: CONNACK is the first packet.
    let Ok(bytes) = wire::connack(Welcome::Accepted {
        session: guest.present,
    }) else {
        return;
    };
    link.send(bytes, None);
    hub.bus.join(&guest.identity, &link);
    let mut writer = tokio::spawn(write_all(write, queue));
    let client = Client {
        hub: Arc::clone(&hub),
        link: Arc::clone(&link),
        permits: Arc::new(Semaphore::new(IN_FLIGHT)),
        guest,
    };
    let end = client.run(&mut reader, &mut buffer, &mut read).await;
    hub.bus.leave(&client.guest.identity, &link);
    // The writer ends when nobody can queue anything any more.
    let Client {
        guest, link: own, ..
    } = client;
    drop((own, link));
    match end {
        // What is queued still goes out, but a peer that does not read is not waited for.
        Ok(()) => {
            if tokio::time::timeout(FAREWELL, &mut writer).await.is_err() {
                writer.abort();
            }
        }
        Err(_) => {
            writer.abort();
            if let Some((bag, body)) = guest.will {
                append(&hub, &guest.identity, bag, body, |_| {}).await;
            }
        }
    }
}

/// Bytes read and not yet understood.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    at: usize,
}

impl Buffer {
    async fn next(
        &mut self,
        reader: &mut Reader,
        stream: &mut ReadHalf<Stream>,
    ) -> Result<Packet, End> {
        loop {
            while self.at < self.bytes.len() {
                let (packet, used) = reader.next(&self.bytes[self.at..])?;
                self.at += used;
                if let Some(packet) = packet {
                    return Ok(packet);
                }
            }
            self.bytes.clear();
            self.at = 0;
            self.bytes.reserve(4096);
            if stream.read_buf(&mut self.bytes).await? == 0 {
                return Err(End::Over);
            }
        }
    }
}

async fn write_all(mut stream: WriteHalf<Stream>, mut queue: mpsc::Receiver<Out>) {
    while let Some(mut next) = queue.recv().await {
        loop {
            let Out { bytes, permit } = next;
            if stream.write_all(&bytes).await.is_err() {
                return;
            }
            drop(permit);
            match queue.try_recv() {
                Ok(more) => next = more,
                Err(_) => break,
            }
        }
        if stream.flush().await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

struct Client {
    hub: Arc<Hub>,
    link: Arc<Link>,
    permits: Arc<Semaphore>,
    guest: Guest,
}

impl Client {
    /// Until the client says goodbye (`Ok`) or something else ends it.
    async fn run(
        &self,
        reader: &mut Reader,
        buffer: &mut Buffer,
        stream: &mut ReadHalf<Stream>,
    ) -> Result<(), End> {
        let left = u64::try_from(self.guest.closes.saturating_sub(clock::now())).unwrap_or(0);
        // A century is as good as never, and no clock overflows.
        let expiry = Instant::now() + Duration::from_secs(left.min(3_000_000_000));
        loop {
            let deadline = expiry.min(Instant::now() + self.guest.silence);
            let packet = tokio::select! {
                biased;
                () = self.link.closed() => return Err(End::Over),
                () = tokio::time::sleep_until(deadline) => return Err(End::Over),
                packet = buffer.next(reader, stream) => packet?,
            };
            let handled = tokio::select! {
                () = self.link.closed() => return Err(End::Over),
                () = tokio::time::sleep_until(expiry) => return Err(End::Over),
                handled = self.handle(packet) => handled?,
            };
            if !handled {
                return Ok(());
            }
        }
    }

    /// Handles one packet; `false` for the last.
    async fn handle(&self, packet: Packet) -> Result<bool, End> {
        match packet {
            Packet::Publish(message) => self.publish(message).await?,
            Packet::Subscribe { id, filters } => self.subscribe(id, &filters).await?,
            Packet::Unsubscribe { id, filters } => {
                let gone = filters
                    .iter()
                    .filter_map(|text| self.filter(text))
                    .map(Filter::bit);
                let filters = self.link.filters() & !gone.fold(0, |all, bit| all | bit);
                self.keep(filters).await?;
                self.link.send(wire::unsuback(id)?, None);
            }
            Packet::Ping => self.link.send(wire::pong()?, Some(self.permit().await?)),
            // Nothing is sent at QoS 1, so there is nothing to acknowledge; it does no harm.
            Packet::Puback => {}
            Packet::Disconnect => return Ok(false),
            Packet::Connect(_) => return Err(End::Over),
        }
        Ok(true)
    }

    fn filter(&self, text: &str) -> Option<Filter> {
        Filter::parse(text, &self.guest.identity)
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, End> {
        Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| End::Over)
    }

    async fn subscribe(&self, id: u16, wanted: &[(String, u8)]) -> Result<(), End> {
        let found: Vec<_> = wanted
            .iter()
            .map(|(text, qos)| self.filter(text).map(|f| (f, (*qos).min(1))))
            .collect();
        let bits = found
            .iter()
            .flatten()
            .fold(0, |all, (filter, _)| all | filter.bit());
        let permit = self.permit().await?;
        self.keep(self.link.filters() | bits).await?;
        let granted: Vec<_> = found.iter().map(|f| f.map(|(_, qos)| qos)).collect();
        self.link.send(wire::suback(id, &granted)?, Some(permit));
        Ok(())
    }

    /// Makes the filters part of the session, then of the link.
    async fn keep(&self, filters: u8) -> Result<(), End> {
        if !self.guest.clean {
            let whom = self.guest.identity.clone();
            self.hub
                .store
                .run(move |connection| {
                    connection
                        .prepare_cached(
                            "UPDATE session SET filters = ?3 WHERE device = ?1 AND module = ?2",
                        )?
                        .execute(params![whom.device.as_str(), whom.module_text(), filters])?;
                    Ok(())
                })
                .await?;
        }
        self.link.subscribe(filters);
        Ok(())
    }

    async fn publish(&self, message: wire::Publish) -> Result<(), End> {
        let wire::Publish {
            topic,
            body,
            id,
            retain,
        } = message;
        let permit = self.permit().await?;
        let identity = &self.guest.identity;
        match Publish::parse(&topic, identity).ok_or(End::Topic)? {
            Publish::Telemetry(mut bag) => {
                if retain {
                    bag.application.insert("mqtt-retain".into(), "true".into());
                }
                let link = Arc::clone(&self.link);
                append(&self.hub, identity, bag, body, move |stored| {
                    acknowledge(&link, stored, id, permit);
                })
                .await;
            }
            Publish::TwinGet { rid } => {
                self.acknowledge_request(id)?;
                let (link, rid, whom) = (Arc::clone(&self.link), rid.to_owned(), identity.clone());
                let work = move |connection: &Connection| twins::for_device(connection, &whom);
                let then = move |twin: Result<Value, Error>| {
                    let (topic, body) = match twin {
                        Ok(twin) => (topic::twin_answer(200, &rid, None), twin.to_string()),
                        Err(bad) => refused(&rid, &bad),
                    };
                    answer(&link, &topic, &body, permit);
                };
                self.hub
                    .store
                    .submit(work, then)
                    .await
                    .map_err(Error::from)?;
            }
            Publish::TwinPatch { rid } => {
                self.acknowledge_request(id)?;
                let (link, rid, whom) = (Arc::clone(&self.link), rid.to_owned(), identity.clone());
                let limits = self.hub.twin_limits;
                let work = move |connection: &Connection| {
                    json::check(&body, json::Limits::document(2 * limits.size))?;
                    let patch: Value = serde_json::from_slice(&body)?;
                    twins::report(connection, &whom, &patch, &limits, &clock::stamp())
                };
                let then = move |version: Result<i64, Error>| {
                    let (topic, body) = match version {
                        Ok(version) => {
                            (topic::twin_answer(204, &rid, Some(version)), String::new())
                        }
                        Err(bad) => refused(&rid, &bad),
                    };
                    answer(&link, &topic, &body, permit);
                };
                self.hub
                    .store
                    .submit(work, then)
                    .await
                    .map_err(Error::from)?;
            }
            Publish::MethodAnswer { rid, status } => {
                self.acknowledge_request(id)?;
                self.link.answered(rid, status, body);
            }
        }
        Ok(())
    }

    /// A request at QoS 1 is acknowledged at once: its answer is the real one.
    fn acknowledge_request(&self, id: Option<u16>) -> Result<(), End> {
        if let Some(id) = id {
            self.link.send(wire::puback(id)?, None);
        }
        Ok(())
    }
}

async fn append(
    hub: &Arc<Hub>,
    sender: &Identity,
    bag: Bag,
    body: Vec<u8>,
    then: impl FnOnce(Result<i64, Error>) + Send + 'static,
) {
    let (sender, kept) = (sender.clone(), hub.events_kept);
    let work = move |connection: &Connection| {
        events::append(connection, &sender, &bag, &body, kept, &clock::stamp())
    };
    // If the store has stopped, `then` is dropped with its permit, and nothing is acknowledged.
    let _ = hub.store.submit(work, then).await;
}

/// After the commit: PUBACK, or the end. MQTT 3.1.1 has no negative answer.
fn acknowledge(
    link: &Link,
    stored: Result<i64, Error>,
    id: Option<u16>,
    permit: OwnedSemaphorePermit,
) {
    match (stored, id) {
        (Ok(_), None) => {}
        (Ok(_), Some(id)) => match wire::puback(id) {
            Ok(bytes) => link.send(bytes, Some(permit)),
            Err(_) => link.close(),
        },
        (Err(_), _) => link.close(),
    }
}

fn refused(rid: &str, bad: &Error) -> (String, String) {
    let body = bad.hub_body(&clock::stamp()).to_string();
    (topic::twin_answer(bad.status(), rid, None), body)
}

fn answer(link: &Link, topic: &str, body: &str, permit: OwnedSemaphorePermit) {
    if link.filters() & Filter::TwinAnswers.bit() == 0 {
        return;
    }
    match wire::message(topic, body.as_bytes()) {
        Ok(bytes) => link.send(bytes, Some(permit)),
        Err(_) => link.close(),
    }
}
