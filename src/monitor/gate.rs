//! The gate: accepts a bounded number of connections and gives each a thread for its one request.
//!
//! When all places are taken, the connection that has kept us waiting for its request the longest goes; so a client that
//! opens many and says nothing locks out nobody. A place in use for an answer is never taken away: its deadlines end it.

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
/// Connections accepted in a row before the other listeners get their turn.
const ACCEPT_BURST: usize = 16;
/// How long, and for how many bytes, a refused client is still listened to, so that it can read the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

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
    pub fn start(name: &str, listeners: Vec<Listener>, capacity: usize, common: Arc<Common>) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        let thread = thread::Builder::new().name(name.to_owned()).stack_size(128 * 1024).spawn(move || {
            let places = Places::new(capacity);
            let streams = AtomicUsize::new(0);
            let worker = Worker { common: &common, places: &places, streams: &streams };
            thread::scope(|scope| {
                accept_until_woken(scope, &listeners, &woken, worker);
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
    worker: Worker<'scope>,
) {
    let mut is_failing = false;
    loop {
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
                && let Err(error) = accept_burst(scope, listener, worker)
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

fn accept_burst<'scope>(
    scope: &'scope Scope<'scope, '_>,
    listener: &Listener,
    worker: Worker<'scope>,
) -> io::Result<()> {
    let bound = local_address(listener);
    for _ in 0..ACCEPT_BURST {
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
    /// Whether it is the client who keeps us waiting.
    is_waiting: bool,
}

impl Places {
    fn new(capacity: usize) -> Self {
        Self { capacity, taken: Mutex::default(), freed: Condvar::new() }
    }

    /// A place for `socket`, by ending the longest wait if need be; `None` when all others are being answered.
    fn take(&self, socket: &Arc<Socket>) -> Option<Place<'_>> {
        let mut taken = self.lock();
        if taken.open.len() >= self.capacity {
            let oldest = taken.open.values().find(|open| open.is_waiting)?;
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
        taken.open.insert(id, Open { socket: Arc::clone(socket), is_waiting: true });
        Some(Place { places: self, id })
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
            open.is_waiting = is_waiting;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.places.lock().open.remove(&self.id);
        self.places.freed.notify_all();
    }
}
