//! The socket server of every daemon (D1, R13, R14).
//!
//! A few threads, parked. One of them at a time waits for all listeners; it takes one connection,
//! leaves its place to the next and serves that connection itself, so a request never changes
//! threads and no thread is made per connection. Each read is checked for its writer, and the
//! writer for being alive *after* the read (D3).

mod connection;
mod listener;
mod slots;

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::Duration;

use contract::audit::Event;
use contract::refusal::{Class, Refusal};
use rustix::event::epoll;
use rustix::net::SocketFlags;

use self::connection::Connection;
pub use self::listener::Listener;
use self::slots::{Slot, Slots};
use crate::os::socket::peer_credentials;
use crate::peer::{Caller, KernelFacts, PeerError, Require};
use crate::routes::Service;

/// What one socket allows (security.md section 7).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections of one user at a time.
    pub per_user: usize,
    /// Connections of everybody at a time.
    pub per_socket: usize,
    /// From the first byte of a request to its last; also for writing an answer.
    pub request: Duration,
    /// From the end of an answer to the next request.
    pub idle: Duration,
    /// Whose processes may connect.
    pub reach: Reach,
}

/// Whose processes may connect to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Those of our own pid namespace: daemons and people. Modules live below it, and where they
    /// share the daemons' user this is what keeps them from the daemons' sockets.
    Host,
    /// Modules too: each request is attested.
    Modules,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_user: 10,
            per_socket: 64,
            request: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            reach: Reach::Host,
        }
    }
}

/// Most threads of a server; connections beyond wait in the socket's queue.
const THREADS: usize = 256;
/// Threads that stay parked when nothing is to do.
const PARKED: usize = 4;
/// Only what is touched of it costs memory.
const STACK: usize = 256 * 1024;

/// One listening socket with its API.
struct Socket {
    listener: Listener,
    service: Arc<dyn Service>,
    limits: Limits,
    slots: Slots,
}

/// A set of listening sockets, served together.
pub struct Server {
    sockets: RwLock<HashMap<u64, Arc<Socket>>>,
    next: AtomicU64,
    /// Held by the one thread that waits for connections.
    lead: Mutex<()>,
    poll: std::os::fd::OwnedFd,
    threads: AtomicUsize,
    parked: AtomicUsize,
    /// Signalled when a connection ends, for a leader that ran out of descriptors (A37).
    ended: (Mutex<()>, Condvar),
    facts: KernelFacts,
    require: Require,
}

/// A socket of a [`Server`], to close it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketId(u64);

impl Server {
    /// A server without sockets.
    ///
    /// # Errors
    /// When the kernel gives no poll descriptor.
    pub fn new(facts: KernelFacts, require: Require) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            sockets: RwLock::new(HashMap::new()),
            next: AtomicU64::new(1),
            lead: Mutex::new(()),
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            threads: AtomicUsize::new(0),
            parked: AtomicUsize::new(0),
            ended: (Mutex::new(()), Condvar::new()),
            facts,
            require,
        }))
    }

    /// Serves an API on a socket from now on.
    ///
    /// # Errors
    /// When the kernel refuses to poll it.
    pub fn open(
        &self,
        listener: Listener,
        service: Arc<dyn Service>,
        limits: Limits,
    ) -> io::Result<SocketId> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let socket = Arc::new(Socket {
            listener,
            service,
            limits,
            slots: Slots::default(),
        });
        let mut sockets = self.sockets.write().unwrap_or_else(PoisonError::into_inner);
        let data = epoll::EventData::new_u64(id);
        epoll::add(
            &self.poll,
            socket.listener.as_fd(),
            data,
            epoll::EventFlags::IN,
        )?;
        sockets.insert(id, socket);
        Ok(SocketId(id))
    }

    /// Stops listening and ends the socket's connections; its file is removed.
    pub fn close(&self, id: SocketId) {
        let removed = {
            let mut sockets = self.sockets.write().unwrap_or_else(PoisonError::into_inner);
            sockets.remove(&id.0)
        };
        if let Some(socket) = removed {
            // An error means that the kernel no longer polls it, which is what is wanted.
            let _ = epoll::delete(&self.poll, socket.listener.as_fd());
            socket.slots.end_all();
        }
    }

    /// Serves for ever, on this thread and others.
    pub fn run(self: &Arc<Self>) {
        self.threads.fetch_add(1, Ordering::Relaxed);
        self.work(Stay::Always);
    }

    /// Serves in the background from now on.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(self: &Arc<Self>) -> io::Result<()> {
        self.threads.fetch_add(1, Ordering::Relaxed);
        self.spawn()
    }

    fn spawn(self: &Arc<Self>) -> io::Result<()> {
        let server = Arc::clone(self);
        let work = move || server.work(Stay::WhileNeeded);
        std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(work)
            .map(drop)
            .inspect_err(|_| {
                self.threads.fetch_sub(1, Ordering::Relaxed);
            })
    }

    fn work(self: &Arc<Self>, stay: Stay) {
        loop {
            self.parked.fetch_add(1, Ordering::Relaxed);
            let accepted = {
                let _lead = self.lead.lock().unwrap_or_else(PoisonError::into_inner);
                self.accept()
            };
            let parked = self.parked.fetch_sub(1, Ordering::Relaxed) - 1;
            if parked == 0 {
                self.grow();
            }
            // From here on whatever this peer makes us wait for holds up nobody else.
            if let Some((socket, stream)) = accepted {
                self.serve(&socket, stream);
                drop(socket);
                self.ended.1.notify_one();
            }
            if stay == Stay::WhileNeeded && self.parked.load(Ordering::Relaxed) >= PARKED {
                self.threads.fetch_sub(1, Ordering::Relaxed);
                crate::os::process::give_back_memory();
                return;
            }
        }
    }

    /// Makes sure that somebody waits for the next connection.
    fn grow(self: &Arc<Self>) {
        if self.threads.fetch_add(1, Ordering::Relaxed) < THREADS {
            // Without a new thread the next connection waits until one is free.
            let _ = self.spawn();
            return;
        }
        self.threads.fetch_sub(1, Ordering::Relaxed);
        // Idle connections must not hold a thread that an active one needs (R14).
        let sockets = self.sockets.read().unwrap_or_else(PoisonError::into_inner);
        let oldest = sockets
            .values()
            .filter_map(|socket| socket.slots.oldest_idle(None))
            .min();
        if let Some(oldest) = oldest {
            oldest.end();
        }
    }

    /// Waits for one connection and takes it.
    fn accept(&self) -> Option<(Arc<Socket>, UnixStream)> {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }];
        let ready = epoll::wait(&self.poll, &mut events[..], None).ok()?;
        let id = events[..ready].first()?.data.u64();
        let socket = {
            let sockets = self.sockets.read().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(sockets.get(&id)?)
        };
        let flags = SocketFlags::CLOEXEC;
        match rustix::net::accept_with(socket.listener.as_fd(), flags) {
            Ok(stream) => Some((socket, UnixStream::from(stream))),
            Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                self.pause();
                None
            }
            Err(_) => None,
        }
    }

    /// Out of descriptors: accepting pauses. Those who are connected are served, and one that ends
    /// wakes us (A37).
    fn pause(&self) {
        let guard = self.ended.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.ended.1.wait_timeout(guard, Duration::from_millis(200)));
    }

    /// Proves who connected, finds a place, and serves.
    fn serve(&self, socket: &Arc<Socket>, stream: UnixStream) {
        let service = &*socket.service;
        let caller = match Caller::connected(&stream, self.facts, self.require) {
            Ok(caller) => caller,
            Err(PeerError::Full) => {
                connection::refuse(&stream, 503, "out of descriptors");
                return self.pause();
            }
            Err(error) => {
                let path = socket.listener.path().display();
                crate::log::warn(format_args!("{path}: {error}"));
                // What the socket says of it, proved or not, is worth a record.
                if let Ok(who) = peer_credentials(&stream) {
                    let event = error.event();
                    service.refused(who, &Refusal::forbidden(error).recorded_as(event));
                }
                return connection::refuse(&stream, 403, "forbidden");
            }
        };
        if socket.limits.reach == Reach::Host && caller.is_nested() {
            let stranger = Refusal::forbidden("a module has no business on this socket");
            service.refused(caller.credentials(), &stranger);
            return connection::refuse(&stream, 403, "forbidden");
        }
        let Some(slot) = socket.slots.take(caller.uid(), &socket.limits, &stream) else {
            let many = Refusal::new(Class::TooMany, "too many connections");
            service.refused(caller.credentials(), &many.recorded_as(Event::InputLimit));
            return connection::refuse(&stream, 429, "too many connections");
        };
        let reach = socket.limits.reach;
        Connection::new(stream, caller, slot, self.facts, self.require, reach)
            .serve(service, &socket.limits);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stay {
    Always,
    WhileNeeded,
}
