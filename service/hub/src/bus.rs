//! Who is connected, and the way to them.
//!
//! One link per identity: a second connection takes over. Whatever goes to a client passes its
//! link's one bounded queue, so it leaves in the order in which it was put there. A client that
//! does not read fast enough is disconnected rather than told half: after a reconnect it reads its
//! twin again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};

use crate::error::Error;
use crate::record::Identity;
use crate::topic::{self, Filter};
use crate::twins::Notice;
use crate::wire;

/// Direct methods in flight per client.
const CALLS: usize = 16;

/// Bytes for a client, with the permit of the request they answer: it is free again when they
/// are written.
pub struct Out {
    /// A whole packet.
    pub bytes: Vec<u8>,
    /// Held until written.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// Who waits for the answer to a direct method: its status and body.
type Waiting = oneshot::Sender<(i32, Vec<u8>)>;

/// One connection.
pub struct Link {
    out: mpsc::Sender<Out>,
    filters: AtomicU8,
    close: Notify,
    calls: Mutex<HashMap<u64, Waiting>>,
}

impl Link {
    /// A link that puts packets into `out`.
    #[must_use]
    pub fn new(out: mpsc::Sender<Out>, filters: u8) -> Self {
        Self {
            out,
            filters: AtomicU8::new(filters),
            close: Notify::new(),
            calls: Mutex::default(),
        }
    }

    /// Queues a packet without waiting. If that is not possible the connection ends.
    pub fn send(&self, bytes: Vec<u8>, permit: Option<OwnedSemaphorePermit>) {
        if self.out.try_send(Out { bytes, permit }).is_err() {
            self.close();
        }
    }

    /// Queues a message if the client subscribed to its kind.
    fn tell(&self, filter: Filter, topic: &str, body: &[u8]) -> bool {
        if self.filters() & filter.bit() == 0 {
            return false;
        }
        match wire::message(topic, body) {
            Ok(bytes) => self.send(bytes, None),
            Err(_) => self.close(),
        }
        true
    }

    /// The filters subscribed to.
    pub fn filters(&self) -> u8 {
        self.filters.load(Ordering::Acquire)
    }

    /// Replaces the filters.
    pub fn subscribe(&self, filters: u8) {
        self.filters.store(filters, Ordering::Release);
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.close.notify_one();
    }

    /// Waits for [`Link::close`].
    pub async fn closed(&self) {
        self.close.notified().await;
    }

    /// Hands in the answer to a direct method; one that nobody waits for is dropped.
    pub fn answered(&self, rid: &str, status: i32, body: Vec<u8>) {
        let waiting = rid
            .parse()
            .ok()
            .and_then(|rid| lock(&self.calls).remove(&rid));
        if let Some(waiting) = waiting {
            let _ = waiting.send((status, body));
        }
    }
}

/// All connections.
#[derive(Default)]
pub struct Bus {
    links: Mutex<HashMap<Identity, Arc<Link>>>,
    calls: AtomicU64,
}

impl Bus {
    /// Makes a link the one of its identity; the one before is closed.
    pub fn join(&self, identity: &Identity, link: &Arc<Link>) {
        if let Some(old) = lock(&self.links).insert(identity.clone(), Arc::clone(link)) {
            old.close();
        }
    }

    /// Forgets a link, unless it was taken over.
    pub fn leave(&self, identity: &Identity, link: &Arc<Link>) {
        let mut links = lock(&self.links);
        if links
            .get(identity)
            .is_some_and(|own| Arc::ptr_eq(own, link))
        {
            links.remove(identity);
        }
    }

    /// Whether it is connected.
    #[must_use]
    pub fn is_connected(&self, identity: &Identity) -> bool {
        lock(&self.links).contains_key(identity)
    }

    /// Closes a connection whose credential is gone; a device's modules go with it.
    pub fn close(&self, identity: &Identity) {
        for (other, link) in lock(&self.links).iter() {
            let part = identity.module.is_none() && other.device == identity.device;
            if part || other == identity {
                link.close();
            }
        }
    }

    /// Tells a subscriber of new desired properties.
    pub fn notify(&self, notice: &Notice) {
        let link = lock(&self.links).get(&notice.identity).cloned();
        if let Some(link) = link {
            let topic = topic::desired(notice.version);
            link.tell(Filter::Desired, &topic, notice.body.to_string().as_bytes());
        }
    }

    /// Calls a direct method and waits for the answer.
    ///
    /// # Errors
    /// [`Error::NotOnline`], [`Error::Timeout`].
    pub async fn call(
        &self,
        identity: &Identity,
        name: &str,
        payload: &[u8],
        patience: Duration,
    ) -> Result<(i32, Vec<u8>), Error> {
        let offline = || Error::NotOnline(identity.client_id());
        let link = lock(&self.links)
            .get(identity)
            .cloned()
            .ok_or_else(offline)?;
        let rid = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let (answer, waiting) = oneshot::channel();
        {
            let mut calls = lock(&link.calls);
            if calls.len() >= CALLS {
                return Err(Error::Operation("too many direct methods in flight"));
            }
            calls.insert(rid, answer);
        }
        if !link.tell(Filter::Methods, &topic::method(name, rid), payload) {
            lock(&link.calls).remove(&rid);
            return Err(offline());
        }
        let result = tokio::time::timeout(patience, waiting).await;
        lock(&link.calls).remove(&rid);
        match result {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(offline()),
            Err(_) => Err(Error::Timeout),
        }
    }
}

/// The maps stay whole when a thread panics while it holds one: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn notice(version: i64) -> Notice {
        let identity = Identity::new("d", None).unwrap();
        Notice {
            identity,
            version,
            body: json!({"$version": version}),
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_closed_rather_than_told_half() {
        let bus = Bus::default();
        let (out, mut queue) = mpsc::channel(2);
        let link = Arc::new(Link::new(out, Filter::Desired.bit()));
        bus.join(&notice(0).identity, &link);
        for version in 1..=3 {
            bus.notify(&notice(version));
        }
        link.closed().await;
        for version in [1, 2] {
            let told = queue.try_recv().unwrap().bytes;
            assert!(String::from_utf8_lossy(&told).contains(&format!("?$version={version}{{")));
        }
        assert!(queue.try_recv().is_err(), "the third was not told");
    }

    #[test]
    fn a_link_that_was_taken_over_does_not_remove_its_successor() {
        let bus = Bus::default();
        let identity = notice(0).identity;
        let link = || Arc::new(Link::new(mpsc::channel(1).0, 0));
        let (first, second) = (link(), link());
        bus.join(&identity, &first);
        bus.join(&identity, &second);
        bus.leave(&identity, &first);
        assert!(bus.is_connected(&identity));
        bus.leave(&identity, &second);
        assert!(!bus.is_connected(&identity));
    }
}
