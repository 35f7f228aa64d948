//! Who holds a connection of a socket, and which one goes when another needs its place (R14).

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use super::Limits;

/// The open connections of one socket.
#[derive(Default)]
pub(super) struct Slots {
    all: Arc<Mutex<Vec<Weak<Slot>>>>,
    /// Held from counting to taking, so that nobody gets in between.
    taking: Mutex<()>,
}

/// One connection's place; it is free again when this is dropped.
pub(super) struct Slot {
    uid: u32,
    stream: UnixStream,
    /// Milliseconds from the first look at the clock to the last answer, plus one; 0 in a request.
    idle_since: AtomicU64,
    all: Weak<Mutex<Vec<Weak<Slot>>>>,
}

impl Slots {
    /// A place for a new connection. When the user or the socket is at its limit, a connection
    /// that is idle gives up its place; when none is, there is none.
    pub(super) fn take(&self, uid: u32, limits: &Limits, stream: &UnixStream) -> Option<Arc<Slot>> {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let open = self.open();
        let mine = open.iter().filter(|slot| slot.uid == uid).count();
        let all = open.len();
        drop(open);
        if mine >= limits.per_user {
            self.oldest_idle(Some(uid))?.end();
        } else if all >= limits.per_socket {
            self.oldest_idle(None)?.end();
        }
        let slot = Arc::new(Slot {
            uid,
            stream: stream.try_clone().ok()?,
            idle_since: AtomicU64::new(0),
            all: Arc::downgrade(&self.all),
        });
        let mut slots = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        slots.push(Arc::downgrade(&slot));
        Some(slot)
    }

    /// The connection, of this user or of anybody, that has been idle longest.
    pub(super) fn oldest_idle(&self, uid: Option<u32>) -> Option<Oldest> {
        self.open()
            .into_iter()
            .filter(|slot| uid.is_none_or(|uid| slot.uid == uid))
            .map(|slot| Oldest(slot.idle_since.load(Ordering::Relaxed), slot))
            .filter(|oldest| oldest.0 > 0)
            .min()
    }

    /// Ends every connection.
    pub(super) fn end_all(&self) {
        self.open().iter().for_each(|slot| slot.end());
    }

    /// All that are open. They are handed out of the lock: one that ends meanwhile takes it too.
    fn open(&self) -> Vec<Arc<Slot>> {
        let slots = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        slots.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Slot {
    /// From here to [`Self::active`] the connection may be ended for another.
    pub(super) fn idle(&self) {
        self.idle_since.store(now(), Ordering::Relaxed);
    }

    /// A request has begun.
    pub(super) fn active(&self) {
        self.idle_since.store(0, Ordering::Relaxed);
    }

    fn end(&self) {
        // An error means that the other side has gone first.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.active();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(all) = self.all.upgrade() {
            let mut slots = all.lock().unwrap_or_else(PoisonError::into_inner);
            slots.retain(|slot| slot.strong_count() > 0);
        }
    }
}

/// An idle connection, ordered by when it became idle.
pub(super) struct Oldest(u64, Arc<Slot>);

impl Oldest {
    pub(super) fn end(&self) {
        self.1.end();
    }
}

impl PartialEq for Oldest {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Oldest {}

impl PartialOrd for Oldest {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Oldest {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

fn now() -> u64 {
    static FIRST: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let elapsed = FIRST.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX - 1) + 1
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn connections_that_end_while_others_are_looked_at_do_not_hold_anybody_up() {
        let slots = Slots::default();
        let (stream, _other) = UnixStream::pair().unwrap();
        let limits = Limits {
            per_user: usize::MAX,
            per_socket: usize::MAX,
            ..Limits::default()
        };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    drop(slots.take(0, &limits, &stream));
                }
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                drop(slots.oldest_idle(None));
                slots.end_all();
            }
        });
    }
}
