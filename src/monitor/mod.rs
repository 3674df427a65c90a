//! The owner's page and API, the gate before it and the control socket (design section 8).
//!
//! ```text
//! TCP  -> monitor-gate    -> monitor-conn -+-> event stream, written by the gate itself
//! Unix -> monitor-control -> monitor-conn -+-> private socket -> tiny_http -> monitor-request
//! ```
//!
//! A connection carries one request. The gate reads its head under caps and deadlines, decides on it, and writes a head
//! of its own for tiny_http, which so meets nothing that a stranger wrote but a target and a body of known length.
//!
//! | thread | stack | at most | released by |
//! | --- | --- | --- | --- |
//! | monitor-gate, monitor-control | 128 KiB | 1 each | the wake of [`Monitor::stop`] |
//! | monitor-conn | 256 KiB | 64 and 32 | shutdown of its socket; its deadlines |
//! | monitor-http | 128 KiB | 1 | tiny_http's `unblock` |
//! | monitor-request | 512 KiB | as monitor-conn | end of its answer; a long poll looks at the stop cell |
//! | tiny_http's own, unnamed | 2 MiB | as monitor-conn, and 5 | end of its connection, drop of the server |

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use serde::{Deserialize, Serialize};

use crate::node::action::Action;
use crate::node::id::{AttemptKey, Id};
use crate::node::leftover::{Collecting, LeftOver};
use crate::node::record::{FinalReport, Outcome};
use crate::node::resources::Resources;
use crate::node::snapshot::{AttemptView, HistoryRow, Snapshot};
use crate::sys::watch::Watch;

mod admit;
mod control;
mod events;
mod gate;
mod head;
mod metrics;
mod page;
mod relay;
mod routes;
mod server;
mod socket;
mod submissions;
mod tasks;
mod text;
mod token;
mod views;

pub use token::{TOKEN_FILE, read_token};

/// Port of the monitor page.
pub const DEFAULT_PORT: u16 = 5001;
/// Name of the control socket where the state folder holds it.
pub const CONTROL_SOCKET: &str = "control.sock";

/// A piece of a byte stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPart {
    /// The bytes, as the task wrote them.
    pub bytes: Vec<u8>,
    /// Of the first byte; above the one asked for where earlier bytes are gone.
    pub offset: u64,
    /// Bytes that the stream has so far.
    pub end: u64,
    /// Whether no more will come.
    pub is_closed: bool,
}

/// Output of the attempts that the node itself holds, and what it keeps of those that are over. Calls return soon:
/// [`Monitor::stop`] waits for them. A node without a store keeps nothing.
pub trait Logs: Send + Sync {
    /// At most `max` bytes of `stream` from `offset`; `None` when there is no such attempt.
    fn read(&self, key: &AttemptKey, stream: u32, offset: u64, max: usize) -> Option<LogPart>;
    /// The latest attempt of a task, held or over.
    fn latest(&self, _task: &Id) -> Option<u32> {
        None
    }
    /// The row of an attempt that is over.
    fn ended(&self, _key: &AttemptKey) -> Option<HistoryRow> {
        None
    }
    /// The final report of an attempt that has one.
    fn report(&self, _key: &AttemptKey) -> Option<FinalReport> {
        None
    }
    /// The bundle of an attempt that failed.
    fn bundle(&self, _key: &AttemptKey) -> Option<OutputContent> {
        None
    }
    /// Collects what is left over.
    ///
    /// # Errors
    /// Says why that can't be done now.
    fn collect(&self, _how: Collecting) -> Result<Vec<LeftOver>, String> {
        Err("this node collects nothing".to_owned())
    }
}

/// All that the node knows of one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskView {
    /// Which.
    #[serde(flatten)]
    pub key: AttemptKey,
    /// While the node holds it.
    pub held: Option<AttemptView>,
    /// Once the master has all of it.
    pub ended: Option<HistoryRow>,
    /// Once it has ended; without the tail.
    pub report: Option<FinalReport>,
    /// The last output that is known here, as text.
    pub tail: String,
    /// Size of the bundle, if there is one.
    pub bundle_bytes: Option<u64>,
}

/// Why a submission isn't taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmitError {
    /// The field of the task file or the part of the archive; empty where it is none's fault.
    pub field: String,
    /// What is wrong with it; reads on after the field.
    pub message: String,
}

/// Which submissions are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// All, newest first.
    All,
    /// Those that the node knows nothing of: the waiting ones as they stand in line, then those that
    /// ended here, newest first.
    AtMaster,
}

/// A submitted task, as its author sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SubmissionView {
    /// The task.
    pub task: String,
    /// The latest attempt.
    pub attempt: u32,
    /// Grows with each change.
    pub version: u64,
    /// Where it stands.
    pub phase: String,
    /// How it ended, once it has.
    pub outcome: Option<Outcome>,
    /// The report, without its tail.
    pub final_report: Option<FinalReport>,
    /// Whether everything has arrived, the outputs too.
    pub is_complete: bool,
    /// Bytes of standard output that arrived.
    pub stdout_bytes: u64,
    /// Bytes of standard error that arrived.
    pub stderr_bytes: u64,
    /// What a reader must know, oldest first.
    pub notes: Vec<String>,
    /// Why it waits for a node, while it does.
    pub waits: Option<String>,
    /// Whether it waits at the small master or was ended there, so that the node knows nothing of it.
    pub is_at_master: bool,
    /// What it asks for.
    pub limits: Resources,
    /// When it came, milliseconds since 1970.
    pub submitted_ms: u64,
    /// When it ended, milliseconds since 1970; 0 while it hasn't.
    pub finished_ms: u64,
}

/// The content of a result file.
pub struct OutputContent {
    /// Its bytes.
    pub reader: Box<dyn Read + Send>,
    /// How many.
    pub size: u64,
}

/// The small master of a standalone node. Calls but `view` return soon: [`Monitor::stop`] waits for them.
pub trait Submissions: Send + Sync {
    /// Takes a tar archive: `task.json` first, then the inputs below `workspace/`.
    ///
    /// # Errors
    /// Names the field that is wrong.
    fn submit(&self, archive: &mut dyn Read) -> Result<AttemptKey, SubmitError>;
    /// At most `limit` submissions, the latest attempt of each.
    fn list(&self, which: Listed, limit: usize) -> Vec<SubmissionView>;
    /// One of them, after waiting up to `wait` for a version other than `seen_version`.
    fn view(&self, task: &str, seen_version: u64, wait: Duration) -> Option<SubmissionView>;
    /// At most `max` bytes of what arrived of `stream` from `offset`.
    fn read(&self, task: &str, stream: u32, offset: u64, max: usize) -> Option<LogPart>;
    /// A result file, by its path in the final report.
    fn output(&self, task: &str, path: &str) -> Option<OutputContent>;
    /// Asks for the end of a task.
    ///
    /// # Errors
    /// Says why it can't be cancelled.
    fn cancel(&self, task: &str) -> Result<(), String>;
}

/// How many and how long. The defaults are for people; tests choose smaller ones.
#[derive(Clone, Debug)]
pub struct Limits {
    /// TCP connections at a time.
    pub connections: usize,
    /// Connections to the control socket at a time.
    pub control_connections: usize,
    /// Event streams at a time, below `connections` so that they can't use them up.
    pub event_streams: usize,
    /// Time for a whole head.
    pub head: Duration,
    /// Time between two pieces of a body.
    pub body_pause: Duration,
    /// Time for a whole body.
    pub body: Duration,
    /// Time for the first byte of an answer and between two pieces; above the longest poll.
    pub answer: Duration,
    /// Time for the client to take a piece of an answer.
    pub write: Duration,
    /// Shortest time between two snapshots on an event stream.
    pub event_interval: Duration,
    /// Longest silence on an event stream.
    pub heartbeat: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            control_connections: 32,
            event_streams: 32,
            head: Duration::from_secs(5),
            body_pause: Duration::from_secs(10),
            body: Duration::from_secs(120),
            answer: Duration::from_secs(45),
            write: Duration::from_secs(10),
            event_interval: Duration::from_millis(500),
            heartbeat: Duration::from_secs(15),
        }
    }
}

/// Where the monitor listens.
#[derive(Clone, Debug)]
pub struct MonitorConfig {
    /// TCP addresses. Failing to bind `::1` is a warning as long as another one is bound: machines without IPv6 are common.
    pub addresses: Vec<SocketAddr>,
    /// Path of the control socket.
    pub control_socket: PathBuf,
    /// The state folder, 0700, which the caller has locked: holds the token and the private socket.
    pub state_dir: PathBuf,
    /// How many and how long.
    pub limits: Limits,
}

impl MonitorConfig {
    /// Loopback on the usual port, everything else in `state_dir`.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        let state_dir = state_dir.into();
        Self {
            addresses: vec![
                SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_PORT),
                SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), DEFAULT_PORT),
            ],
            control_socket: state_dir.join(CONTROL_SOCKET),
            state_dir,
            limits: Limits::default(),
        }
    }
}

/// The running monitor. Dropping it stops it.
pub struct Monitor {
    gates: Vec<gate::Gate>,
    server: Option<server::Server>,
    stop: Watch<bool>,
    addresses: Vec<SocketAddr>,
    control: control::ControlSocket,
}

impl Monitor {
    /// Binds everything and starts the threads.
    ///
    /// # Errors
    /// Names the address or path that can't be had.
    pub fn start(
        config: MonitorConfig,
        snapshot: Watch<Snapshot>,
        actions: Sender<Action>,
        submissions: Option<Arc<dyn Submissions>>,
        tails: Arc<dyn Logs>,
    ) -> io::Result<Self> {
        let stop = Watch::new(false);
        let token = token::Token::load_or_make(&config.state_dir)
            .map_err(|error| naming(&error, &config.state_dir.join(TOKEN_FILE)))?;
        let listeners = bind(&config.addresses)?;
        let addresses = listeners.iter().filter_map(local_address).collect();
        let (control, control_listener) =
            control::bind(&config.control_socket).map_err(|error| naming(&error, &config.control_socket))?;
        let private = config.state_dir.join(server::PRIVATE_SOCKET);
        let context =
            routes::Context { snapshot: snapshot.clone(), actions, submissions, logs: tails, stop: stop.clone() };
        let server = server::Server::start(&private, context).map_err(|error| naming(&error, &private))?;
        let mut monitor = Self { gates: Vec::new(), server: Some(server), stop, addresses, control };
        let shared = Arc::new(gate::Common {
            limits: config.limits.clone(),
            token,
            private,
            snapshot,
            stop: monitor.stop.clone(),
        });
        for (name, listeners, places) in [
            ("monitor-gate", listeners, (config.limits.connections, gate::Overflow::Refuse)),
            ("monitor-control", vec![control_listener], (config.limits.control_connections, gate::Overflow::Wait)),
        ] {
            monitor.gates.push(gate::Gate::start(name, listeners, places, Arc::clone(&shared))?);
        }
        Ok(monitor)
    }

    /// The TCP addresses that are bound, with their ports.
    pub fn local_addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Ends all connections and threads, and waits for them.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.set(true);
        for gate in self.gates.drain(..) {
            gate.stop();
        }
        if let Some(server) = self.server.take() {
            server.stop();
        }
        self.control.remove();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.end();
    }
}

/// Binds what can be bound; see [`MonitorConfig::addresses`].
fn bind(addresses: &[SocketAddr]) -> io::Result<Vec<socket::Listener>> {
    let mut listeners = Vec::new();
    for &address in addresses {
        match socket::Listener::tcp(address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST) && !listeners.is_empty() => {
                log::warn!("the monitor does without {address}: {error}");
            }
            Err(error) => {
                let what = format!("the monitor can't listen on {address}: {error}");
                return Err(io::Error::new(error.kind(), what));
            }
        }
    }
    Ok(listeners)
}

fn local_address(listener: &socket::Listener) -> Option<SocketAddr> {
    match listener {
        socket::Listener::Tcp(_, local) => Some(*local),
        socket::Listener::Unix(_) => None,
    }
}

fn naming(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
