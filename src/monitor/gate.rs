//! The gate: accepts a bounded number of connections and gives each a thread for its one request.
//!
//! When all places are taken, the connection that has kept us waiting for its request the longest goes; so a client that
//! opens many and says nothing locks out nobody. A place in use for an answer is never taken away: its deadlines end it.
//! When all are in use, the next client is told so, or waits until one is free: see [`Overflow`].

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Scope};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::admit::{Door, Service, admit};
use super::events;
use super::head::{Head, MAX_HEAD, Refusal, may_end, parse};
use super::relay;
use super::socket::{Listener, Socket};
use super::token::Token;
use super::{Limits, local_address};
use crate::node::snapshot::Snapshot;
use crate::sys::watch::Watch;

/// Time without accepting after an error such as EMFILE: long enough not to spin, short enough not to be felt.
const PAUSE_AFTER_ERROR: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Longest wait for a place whose connection was just ended.
const EVICTION: Duration = Duration::from_millis(250);
/// As [`Places::patience`], of the owner's own commands: one that was just accepted has not had the time to speak.
const OWNERS_PATIENCE: Duration = Duration::from_secs(2);
/// Connections accepted in a row before the other listeners get their turn.
const ACCEPT_BURST: usize = 16;
/// How long, and for how many bytes, a refused client is still listened to, so that it can read the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// What becomes of a client when all places are in use for answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// It is refused at once: strangers' browsers.
    Refuse,
    /// It waits in the kernel's queue: the owner's own commands, each of which is served in its turn.
    Wait,
}

/// What all gates share.
pub struct Common {
    /// How many and how long.
    pub limits: Limits,
    /// The owner's token.
    pub token: Token,
    /// Where tiny_http listens.
    pub private: PathBuf,
    /// What the event streams show.
    pub snapshot: Watch<Snapshot>,
    /// Becomes true at the end.
    pub stop: Watch<bool>,
}

/// A running gate.
pub struct Gate {
    thread: JoinHandle<()>,
    wake: UnixStream,
}

impl Gate {
    /// Starts the accepting thread.
    pub fn start(
        name: &str,
        listeners: Vec<Listener>,
        (capacity, overflow): (usize, Overflow),
        common: Arc<Common>,
    ) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        let thread = thread::Builder::new().name(name.to_owned()).stack_size(128 * 1024).spawn(move || {
            let places = Places::new(capacity, overflow);
            let streams = AtomicUsize::new(0);
            let worker = Worker { common: &common, places: &places, streams: &streams };
            thread::scope(|scope| {
                accept_until_woken(scope, &listeners, &woken, overflow, worker);
                drop(listeners);
                places.end_all();
            });
        })?;
        Ok(Self { thread, wake })
    }

    /// Ends all connections and waits for their threads. The stop cell must be set before.
    pub fn stop(mut self) {
        let _ = self.wake.write_all(&[1]);
        if self.thread.join().is_err() {
            log::error!("a gate of the monitor had panicked");
        }
    }
}

fn accept_until_woken<'scope>(
    scope: &'scope Scope<'scope, '_>,
    listeners: &[Listener],
    woken: &UnixStream,
    overflow: Overflow,
    worker: Worker<'scope>,
) {
    let mut is_failing = false;
    loop {
        if overflow == Overflow::Wait && !worker.places.wait_for_one() {
            if is_readable(woken) {
                return;
            }
            continue;
        }
        let mut fds = vec![PollFd::new(woken, PollFlags::IN)];
        fds.extend(listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
        if poll(&mut fds, None).is_err() {
            continue;
        }
        if !fds[0].revents().is_empty() {
            return;
        }
        let mut failed = None;
        for (listener, fd) in listeners.iter().zip(&fds[1..]) {
            if !fd.revents().is_empty()
                && let Err(error) = accept_burst(scope, listener, overflow, worker)
            {
                failed = Some(error);
            }
        }
        if let Some(error) = &failed {
            if !is_failing {
                log::warn!("the monitor can't take connections for now: {error}");
            }
            let mut wake = [PollFd::new(woken, PollFlags::IN)];
            let _ = poll(&mut wake, Some(&PAUSE_AFTER_ERROR));
        }
        is_failing = failed.is_some();
    }
}

fn is_readable(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
}

fn accept_burst<'scope>(
    scope: &'scope Scope<'scope, '_>,
    listener: &Listener,
    overflow: Overflow,
    worker: Worker<'scope>,
) -> io::Result<()> {
    let bound = local_address(listener);
    for _ in 0..ACCEPT_BURST {
        if overflow == Overflow::Wait && !worker.places.has_one() {
            return Ok(());
        }
        let socket = match listener.accept() {
            Ok(socket) => Arc::new(socket),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => continue,
            Err(error) => return Err(error),
        };
        let Some(place) = worker.places.take(&socket) else {
            let refusal = Refusal::new(503, "too many connections");
            let _ = socket.write_by(Instant::now() + EVICTION, &relay::refusal(&refusal, false));
            continue;
        };
        thread::Builder::new()
            .name("monitor-conn".to_owned())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, move || worker.serve(&socket, bound, &place))?;
    }
    Ok(())
}

/// What a connection's thread works with.
#[derive(Clone, Copy)]
struct Worker<'a> {
    common: &'a Common,
    places: &'a Places,
    streams: &'a AtomicUsize,
}

impl Worker<'_> {
    fn serve(self, socket: &Socket, bound: Option<SocketAddr>, place: &Place<'_>) {
        let mut buffer = Vec::new();
        let refused = match self.read_head(socket, &mut buffer) {
            Ok(None) => return,
            Ok(Some(head)) => {
                place.set_waiting(false);
                let is_head = head.method == super::head::Method::Head;
                self.answer(socket, bound, &head, &buffer[head.len..]).err().map(|refusal| (refusal, is_head))
            }
            Err(refusal) => Some((refusal, false)),
        };
        if let Some((refusal, is_head)) = refused {
            log::debug!("the monitor refuses a request: {} {}", refusal.status, refusal.message);
            let _ = socket.write_by(Instant::now() + self.common.limits.write, &relay::refusal(&refusal, is_head));
        }
        place.set_waiting(true);
        socket.linger(Instant::now() + LINGER.min(self.common.limits.head), LINGER_BYTES);
    }

    /// Reads until the head is whole; `None` when the client went away without a request.
    fn read_head(self, socket: &Socket, buffer: &mut Vec<u8>) -> Result<Option<Head>, Refusal> {
        let deadline = Instant::now() + self.common.limits.head;
        let mut piece = [0; 4096];
        loop {
            let seen = buffer.len();
            match socket.read_by(deadline, &mut piece) {
                Ok(0) => return Ok(None),
                Ok(len) => buffer.extend_from_slice(&piece[..len]),
                Err(error) if error.kind() == ErrorKind::TimedOut && seen > 0 => {
                    return Err(Refusal::new(408, "the request took too long"));
                }
                Err(_) => return Ok(None),
            }
            if may_end(buffer, seen)
                && let Some(head) = parse(buffer)?
            {
                if head.len > MAX_HEAD {
                    break;
                }
                return Ok(Some(head));
            }
            if buffer.len() > MAX_HEAD {
                break;
            }
        }
        Err(Refusal::new(431, "the request's head is too large"))
    }

    fn answer(self, socket: &Socket, bound: Option<SocketAddr>, head: &Head, rest: &[u8]) -> Result<(), Refusal> {
        let door = match (bound, socket) {
            (Some(bound), Socket::Tcp(stream)) => {
                Door::Tcp { local: stream.local_addr().unwrap_or(bound), is_open: !is_loopback(bound.ip()) }
            }
            _ => Door::Control,
        };
        let common = self.common;
        match admit(head, door, &common.token)? {
            Service::Events => {
                let Some(_stream) = Counted::below(self.streams, common.limits.event_streams) else {
                    return Err(Refusal::new(503, "too many event streams"));
                };
                events::stream(socket, head, common);
                Ok(())
            }
            Service::Forward => relay::forward(socket, head, rest, door, common),
        }
    }
}

fn is_loopback(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback(),
        IpAddr::V6(address) => address.is_loopback(),
    }
}

/// One of a bounded number.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn below(count: &'a AtomicUsize, most: usize) -> Option<Self> {
        count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now < most).then_some(now + 1))
            .ok()
            .map(|_| Self(count))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The bounded places for connections, in the order in which they were taken.
struct Places {
    capacity: usize,
    /// How long a client may keep us waiting before it goes for another's sake.
    patience: Duration,
    taken: Mutex<Taken>,
    freed: Condvar,
}

#[derive(Default)]
struct Taken {
    next: u64,
    open: BTreeMap<u64, Open>,
}

struct Open {
    socket: Arc<Socket>,
    /// When it is the client who keeps us waiting: since then.
    waiting: Option<Instant>,
}

impl Open {
    fn may_go(&self, patience: Duration) -> bool {
        self.waiting.is_some_and(|since| since.elapsed() >= patience)
    }
}

impl Places {
    fn new(capacity: usize, overflow: Overflow) -> Self {
        let patience = if overflow == Overflow::Wait { OWNERS_PATIENCE } else { Duration::ZERO };
        Self { capacity, patience, taken: Mutex::default(), freed: Condvar::new() }
    }

    /// A place for `socket`, by ending the longest wait if need be; `None` when all others are being answered.
    fn take(&self, socket: &Arc<Socket>) -> Option<Place<'_>> {
        let mut taken = self.lock();
        if taken.open.len() >= self.capacity {
            let oldest = taken.open.values().find(|open| open.may_go(self.patience))?;
            oldest.socket.shutdown(Shutdown::Both);
            let is_full = |taken: &mut Taken| taken.open.len() >= self.capacity;
            let waited = self.freed.wait_timeout_while(taken, EVICTION, is_full);
            taken = waited.unwrap_or_else(PoisonError::into_inner).0;
            if taken.open.len() >= self.capacity {
                return None;
            }
        }
        let id = taken.next;
        taken.next += 1;
        taken.open.insert(id, Open { socket: Arc::clone(socket), waiting: Some(Instant::now()) });
        Some(Place { places: self, id })
    }

    /// Whether [`Self::take`] would give one.
    fn has_one(&self) -> bool {
        self.would_give(&self.lock())
    }

    fn would_give(&self, taken: &Taken) -> bool {
        taken.open.len() < self.capacity || taken.open.values().any(|open| open.may_go(self.patience))
    }

    /// As [`Self::has_one`], but waits for a moment.
    fn wait_for_one(&self) -> bool {
        let is_full = |taken: &mut Taken| !self.would_give(taken);
        let waited = self.freed.wait_timeout_while(self.lock(), EVICTION, is_full);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn end_all(&self) {
        for open in self.lock().open.values() {
            open.socket.shutdown(Shutdown::Both);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A taken place; free again when dropped.
struct Place<'a> {
    places: &'a Places,
    id: u64,
}

impl Place<'_> {
    fn set_waiting(&self, is_waiting: bool) {
        if let Some(open) = self.places.lock().open.get_mut(&self.id) {
            open.waiting = is_waiting.then(Instant::now);
        }
        if is_waiting {
            self.places.freed.notify_all();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.places.lock().open.remove(&self.id);
        self.places.freed.notify_all();
    }
}
