//! The master's own thread: takes calls from the sockets, lets the core decide, answers.
//!
//! | thread | stack | waits on | released by |
//! | --- | --- | --- | --- |
//! | master | 1 MiB | its server: sockets, waker, time | the waker, after the stop flag |

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::SystemTime;

use super::core::{Core, Handled, HeldId, Terms};
use super::desk::{Desk, Shared};
use super::fail::Fail;
use crate::grpc::{Metadata, Status};
use crate::monitor::SubmitError;
use crate::node::id::AttemptKey;
use crate::node::spec::SpecDefaults;
use crate::rpc::schema::Assignment;
use crate::rpc::server::{Server, ServerCallId, ServerEvent};
use crate::rpc::signing::PublicKey;
use crate::sys::clock::boottime;

const STACK_BYTES: usize = 1 << 20;

/// Where and how a small master runs.
#[derive(Clone, Debug)]
pub struct MasterConfig {
    /// Where it listens; port 0 takes a free one. Plain HTTP/2: only loopback makes sense.
    pub listen: SocketAddr,
    /// Its folder, made when it isn't there.
    pub dir: PathBuf,
    /// What it tells its nodes.
    pub terms: Terms,
    /// Running times that a submitter may ask for: those of the nodes that it serves.
    pub defaults: SpecDefaults,
}

impl MasterConfig {
    /// A master on a free port of 127.0.0.1 that wants no join token.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            dir: dir.into(),
            terms: Terms::default(),
            defaults: SpecDefaults::default(),
        }
    }
}

/// A running small master. Dropping it stops it.
pub struct Master {
    address: SocketAddr,
    signing_key: PublicKey,
    desk: Desk,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Master {
    /// Reads the folder, listens and starts the thread.
    ///
    /// # Errors
    /// The folder, the address or the thread can't be had.
    pub fn start(config: MasterConfig) -> io::Result<Self> {
        let started = boottime();
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
        let core = Core::open(&config.dir, config.terms, unix_ms)?;
        let signing_key = core.signer.public();
        let server = Server::bind(config.listen)?;
        let address = server.local_addr()?;
        let shared = Arc::new(Shared::new(core, started));
        let desk = Desk { shared: Arc::clone(&shared), waker: server.waker(), defaults: config.defaults };
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker { server, shared, stop: Arc::clone(&stop), held: BTreeMap::new() };
        let thread = Builder::new().name("master".to_owned()).stack_size(STACK_BYTES).spawn(|| worker.run())?;
        Ok(Self { address, signing_key, desk, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a node takes as `MASTER_NODE_URL`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// With which its assignments are signed.
    pub fn signing_key(&self) -> PublicKey {
        self.signing_key
    }

    /// Submit, watch, read, fetch and cancel.
    pub fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Queues a task after the checks that a node makes.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn submit(&self, assignment: Assignment) -> Result<AttemptKey, SubmitError> {
        self.desk.submit_offer(super::convert::offer(assignment))
    }

    /// Queues bytes as they are under this key.
    ///
    /// # Errors
    /// As [`Desk::submit_raw`].
    pub fn submit_raw(&self, key: &AttemptKey, assignment: &[u8]) -> Result<(), Fail> {
        self.desk.submit_raw(key, assignment)
    }

    /// Stops the thread and waits for it. Calls under way end with their connections; nodes try again.
    pub fn stop(mut self) {
        self.stop_now();
    }

    fn stop_now(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.desk.waker.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the master's thread had ended in a panic");
        }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.stop_now();
    }
}

struct Worker {
    server: Server,
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    held: BTreeMap<HeldId, ServerCallId>,
}

impl Worker {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let until = self.shared.lock().poll_timeout(self.shared.now());
            match self.server.next(self.shared.started.saturating_add(until)) {
                ServerEvent::Request { call, path, metadata, body, .. } => self.handle(call, &path, &metadata, &body),
                ServerEvent::Cancelled(call) => self.drop_held(call),
                ServerEvent::Woken | ServerEvent::TimedOut => {}
            }
            self.answer_due();
            self.shared.tell();
        }
    }

    fn handle(&mut self, call: ServerCallId, path: &str, metadata: &Metadata, body: &[u8]) {
        let bearer = bearer(metadata);
        let handled = self.shared.lock().handle(path, bearer, body, self.shared.now());
        match handled {
            Handled::Answer(bytes) => self.server.respond(call, Ok(bytes)),
            Handled::Fail(fail) => {
                log::debug!("standalone master: {path} refused: {}", Status::from(fail.clone()));
                self.server.respond(call, Err(fail.into()));
            }
            Handled::Hold(id) => {
                self.held.insert(id, call);
            }
        }
    }

    fn answer_due(&mut self) {
        let due = self.shared.lock().handle_timeout(self.shared.now());
        for (id, answer) in due {
            if let Some(call) = self.held.remove(&id) {
                self.server.respond(call, answer.map_err(Status::from));
            }
        }
    }

    fn drop_held(&mut self, call: ServerCallId) {
        let id = self.held.iter().find(|(_, held)| **held == call).map(|(id, _)| *id);
        if let Some(id) = id {
            self.held.remove(&id);
            self.shared.lock().drop_held(id);
        }
    }
}

/// The token of `authorization: Bearer TOKEN`; the scheme's case does not count.
fn bearer(metadata: &Metadata) -> Option<&str> {
    let value = std::str::from_utf8(metadata.find("authorization")?).ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}
