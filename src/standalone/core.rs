//! The small master's decisions: a call and the time go in, an answer comes out. No sockets, no clock.
//!
//! A held AssignTask poll has a number; [`Core::handle_timeout`] gives the answers of those that are due. It is to be
//! called after anything that happened, and at [`Core::poll_timeout`].

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;

use super::attempt::Attempt;
use super::book::{Book, rank};
use super::convert;
use super::fail::Fail;
use super::folder::{Folder, StreamId};
use super::gate::{Gate, SESSION_LIFE, Step};
use super::polls::Polls;
use super::why;
use crate::config::Secret;
use crate::grpc::Code;
use crate::node::id::{AttemptKey, Id};
use crate::node::resources::Resources;
use crate::rpc::key::SigningKey;
use crate::rpc::schema;

/// How often ended tasks are looked through for old ones.
pub const CLEAN_EVERY: Duration = Duration::from_secs(3_600);
/// Path of each call, as gRPC has it.
pub const REGISTER_NODE: &str = "/hivemind.v1.NodeService/RegisterNode";
/// See [`REGISTER_NODE`].
pub const HEARTBEAT: &str = "/hivemind.v1.NodeService/Heartbeat";
/// See [`REGISTER_NODE`].
pub const REPORT_NODE_STATUS: &str = "/hivemind.v1.NodeService/ReportNodeStatus";
/// See [`REGISTER_NODE`].
pub const ASSIGN_TASK: &str = "/hivemind.v1.TaskService/AssignTask";
/// See [`REGISTER_NODE`].
pub const SUBMIT_TASK_RESULT: &str = "/hivemind.v1.TaskService/SubmitTaskResult";
/// See [`REGISTER_NODE`].
pub const CANCEL_TASK: &str = "/hivemind.v1.TaskService/CancelTask";

/// What the master tells its nodes.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Shared secret that a node must know; absent: none.
    pub join_token: Option<Secret<String>>,
    /// Time between heartbeats.
    pub heartbeat_interval: Duration,
    /// How long a node may hold an attempt unheard.
    pub lease: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self { join_token: None, heartbeat_interval: Duration::from_secs(10), lease: Duration::from_secs(120) }
    }
}

/// Number of a held call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeldId(pub u64);

/// What becomes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handled {
    /// An encoded answer.
    Answer(Vec<u8>),
    /// A refusal.
    Fail(Fail),
    /// The answer comes later.
    Hold(HeldId),
}

/// A node of this start, as it told itself.
#[derive(Clone, Debug, Default)]
pub struct NodeRow {
    /// What it lends.
    pub capacity: Resources,
    /// Its last heartbeat.
    pub heartbeat: Option<schema::HeartbeatRequest>,
    /// Room that its last poll told.
    pub free: Option<Resources>,
    /// Its last report.
    pub status: Option<schema::NodeStatusRequest>,
}

/// See the module.
pub struct Core {
    pub(super) book: Book,
    pub(super) polls: Polls,
    pub(super) nodes: BTreeMap<Id, NodeRow>,
    gate: Gate,
    pub(super) signer: SigningKey,
    terms: Terms,
    next_clean: Duration,
}

impl Core {
    /// A master with what the folder holds. `unix_ms` is the time of `now == 0`.
    ///
    /// # Errors
    /// The folder can't be made or read, or the system has no randomness.
    pub fn open(dir: &Path, terms: Terms, unix_ms: u64) -> io::Result<Self> {
        let (folder, found) = Folder::open(dir)?;
        let signer = SigningKey::load_or_make(dir).map_err(io::Error::other)?;
        for trouble in &found.troubles {
            log::warn!("standalone master: {trouble}; left as it is");
        }
        let join_token = terms.join_token.as_ref().map(|token| token.expose().as_str());
        let gate = Gate::new(join_token, found.keys);
        let random = gate.random_bytes().map_err(io::Error::other)?;
        let mut book = Book::new(folder, found.attempts, unix_ms, u64::from_le_bytes(random) >> 1);
        book.clean(Duration::ZERO)?;
        Ok(Self { book, polls: Polls::default(), nodes: BTreeMap::new(), gate, signer, terms, next_clean: CLEAN_EVERY })
    }

    /// Takes a call: its path, its bearer token, its message.
    pub fn handle(&mut self, path: &str, bearer: Option<&str>, body: &[u8], now: Duration) -> Handled {
        self.try_handle(path, bearer, body, now).unwrap_or_else(Handled::Fail)
    }

    fn try_handle(&mut self, path: &str, bearer: Option<&str>, body: &[u8], now: Duration) -> Result<Handled, Fail> {
        match path {
            REGISTER_NODE => self.register(decode(body)?, now).map(answer),
            HEARTBEAT => {
                let request: schema::HeartbeatRequest = decode(body)?;
                let node = self.caller(bearer, &request.node_id, now)?;
                self.heartbeat(request, &node, now).map(answer)
            }
            REPORT_NODE_STATUS => {
                let request: schema::NodeStatusRequest = decode(body)?;
                let node = self.caller(bearer, &request.node_id, now)?;
                Ok(answer(self.report(request, &node)))
            }
            ASSIGN_TASK => {
                let request: schema::TaskAssignmentRequest = decode(body)?;
                let node = self.caller(bearer, &request.node_id, now)?;
                self.assign(&request, &node, now)
            }
            SUBMIT_TASK_RESULT => {
                let request: schema::TaskResultRequest = decode(body)?;
                let node = self.caller(bearer, &request.node_id, now)?;
                let piece = self.book.piece(request, &node, now)?;
                Ok(answer(schema::TaskResultResponse { answer: Some(piece) }))
            }
            CANCEL_TASK => {
                let request: schema::TaskCancelRequest = decode(body)?;
                let node = self.caller(bearer, &request.node_id, now)?;
                self.cancel_answered(&request, &node, now).map(answer)
            }
            _ => {
                let message = format!("there is no call {:.100}", path.escape_debug());
                Err(Fail::new(Code::Unimplemented, message))
            }
        }
    }

    /// The node that calls, by its token and its own word.
    fn caller(&self, bearer: Option<&str>, node_id: &str, now: Duration) -> Result<Id, Fail> {
        let node = self.gate.session(bearer, now)?;
        match node_id {
            "" => Err(Fail::missing("node_id")),
            id if id == node.as_str() => Ok(node),
            _ => Err(Fail::new(Code::PermissionDenied, "node_id is not the session's node")),
        }
    }

    fn register(
        &mut self,
        request: schema::NodeRegistrationRequest,
        now: Duration,
    ) -> Result<schema::NodeRegistrationResponse, Fail> {
        let (node, key, is_new) = match self.gate.check(&request, now)? {
            Step::Nonce(nonce) => {
                return Ok(schema::NodeRegistrationResponse { nonce, ..Default::default() });
            }
            Step::Proved { node, key, is_new } => (node, key, is_new),
        };
        if is_new {
            let mut keys = self.gate.keys().clone();
            keys.insert(node.clone(), key);
            self.book.folder.put_nodes(&keys)?;
        }
        let session_token = self.gate.admit(&node, key, now)?;
        self.polls.forget(&node);
        let row = NodeRow { capacity: convert::resources(request.capacity.as_ref()), ..NodeRow::default() };
        self.nodes.insert(node.clone(), row);
        let superseded = self.held(&request.held, &node)?;
        Ok(schema::NodeRegistrationResponse {
            nonce: Vec::new(),
            session_token,
            session_token_life_ms: millis(SESSION_LIFE),
            node_id: node.to_string(),
            heartbeat_interval_ms: millis(self.terms.heartbeat_interval),
            lease_ms: millis(self.terms.lease),
            trust_level: schema::TrustLevel::High.into(),
            server_time_ms: self.book.unix_ms(now),
            superseded,
            signing_key: self.signer.public().to_vec(),
        })
    }

    /// Takes the attempts that a node holds as placed there, and returns those that were replaced.
    fn held(&mut self, held: &[schema::HeldAttempt], node: &Id) -> Result<Vec<schema::AttemptKey>, Fail> {
        let mut superseded = Vec::new();
        // One that can't be read is not ours: it must not keep the node out.
        for key in held.iter().filter_map(|held| convert::key(held.key.as_ref()).ok()) {
            let at_other = |known: &Id| known != node;
            let attempt = self.book.attempts.get(&key);
            let is_elsewhere = attempt.is_some_and(|attempt| attempt.node().is_some_and(at_other));
            if attempt.is_some_and(|attempt| !attempt.is_over()) && !is_elsewhere {
                self.book.place(&key, node)?;
            }
            let latest = self.book.latest(&key.task).map_or(0, |latest| latest.key.attempt);
            if latest > key.attempt || is_elsewhere {
                superseded.push(convert::key_message(&key));
            }
        }
        Ok(superseded)
    }

    fn heartbeat(
        &mut self,
        request: schema::HeartbeatRequest,
        node: &Id,
        now: Duration,
    ) -> Result<schema::HeartbeatResponse, Fail> {
        self.held(&request.held, node)?;
        let row = self.nodes.entry(node.clone()).or_default();
        if row.heartbeat.as_ref().is_none_or(|last| last.sequence < request.sequence) {
            row.heartbeat = Some(request);
        }
        Ok(schema::HeartbeatResponse {
            lease_ms: millis(self.terms.lease),
            trust_level: schema::TrustLevel::High.into(),
            directives: Vec::new(),
            cancellations: self.cancellations(node, now),
            server_time_ms: self.book.unix_ms(now),
        })
    }

    fn report(&mut self, request: schema::NodeStatusRequest, node: &Id) -> schema::NodeStatusResponse {
        let row = self.nodes.entry(node.clone()).or_default();
        if row.status.as_ref().is_none_or(|last| last.sequence < request.sequence) {
            row.status = Some(request);
        }
        schema::NodeStatusResponse::default()
    }

    /// A new attempt whose bytes are taken as they are, for instance to see what a node says to wrong ones.
    ///
    /// # Errors
    /// The key is taken by this or a later attempt, the queue is full, or the disk refuses.
    pub fn submit(&mut self, key: &AttemptKey, assignment: &[u8], now: Duration) -> Result<(), Fail> {
        self.book.submit(key, assignment, now)
    }

    /// Asks for the end of a task.
    ///
    /// # Errors
    /// There is no such task, it is over, or the disk refuses.
    pub fn cancel(&mut self, task: &Id, reason: &str, now: Duration) -> Result<(), String> {
        self.book.cancel(task, reason, now)
    }

    /// The latest attempt at a task.
    pub fn latest(&self, task: &Id) -> Option<&Attempt> {
        self.book.latest(task)
    }

    /// The latest attempt at each task.
    pub fn latest_of_each(&self) -> Vec<&Attempt> {
        let mut latest: Vec<&Attempt> = Vec::new();
        for attempt in self.book.attempts.values() {
            match latest.last_mut() {
                Some(last) if last.key.task == attempt.key.task => *last = attempt,
                _ => latest.push(attempt),
            }
        }
        latest
    }

    /// Whose task an attempt is; `None` where its assignment can't be read.
    pub fn owner_of(&self, key: &AttemptKey) -> Option<String> {
        let bytes = self.book.folder.assignment(key).ok()?;
        let owner = schema::Assignment::decode(bytes.as_slice()).ok()?.owner_id;
        Some(if owner.is_empty() { "anonymous".to_owned() } else { owner })
    }

    /// One attempt.
    pub fn attempt(&self, key: &AttemptKey) -> Option<&Attempt> {
        self.book.attempts.get(key)
    }

    /// The first in the queue that has no room itself and lets none pass.
    pub fn blocker(&self, now: Duration) -> Option<&Attempt> {
        self.book.blocker(self.nodes.iter(), now)
    }

    /// Why an attempt is still in the queue, as far as the nodes have told; `None` for one that is not.
    pub fn waits(&self, attempt: &Attempt, blocker: Option<&Attempt>) -> Option<String> {
        if !attempt.is_queued() {
            return None;
        }
        if let Some(reason) = why::waits(&attempt.meta.wants.needs, self.nodes.iter()) {
            return Some(reason);
        }
        match blocker.filter(|first| rank(first) < rank(attempt)) {
            Some(first) => Some(format!("{} comes first and has waited too long to be passed", first.key.task)),
            None => attempt.put_off.clone(),
        }
    }

    /// Where the bytes of a stream are.
    pub fn stream_path(&self, key: &AttemptKey, id: StreamId) -> PathBuf {
        self.book.folder.stream(key, id)
    }

    /// Milliseconds since 1970.
    pub fn unix_ms(&self, now: Duration) -> u64 {
        self.book.unix_ms(now)
    }

    /// Bytes that tell a made-up name from others.
    ///
    /// # Errors
    /// The system gives none.
    pub fn random_name(&self) -> Result<[u8; 4], Fail> {
        self.gate.random_bytes()
    }

    /// A node as it last told itself.
    pub fn node(&self, node: &Id) -> Option<&NodeRow> {
        self.nodes.get(node)
    }

    pub(super) fn clean_when_due(&mut self, now: Duration) {
        if now >= self.next_clean {
            self.next_clean = now.saturating_add(CLEAN_EVERY);
            if let Err(error) = self.book.clean(now) {
                log::warn!("standalone master: old tasks can't be removed: {error}");
            }
        }
    }

    pub(super) fn next_clean(&self) -> Duration {
        self.next_clean
    }
}

fn decode<M: Message + Default>(body: &[u8]) -> Result<M, Fail> {
    M::decode(body).map_err(|error| Fail::new(Code::InvalidArgument, format!("the message can't be read: {error}")))
}

pub(super) fn answer(message: impl Message) -> Handled {
    Handled::Answer(message.encode_to_vec())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
