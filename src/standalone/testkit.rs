//! A master in a folder of its own, a node that speaks to it, and a clock that only the test moves.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message;
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::core::*;
use super::fail::Fail;
use super::gate::proof_text;
use crate::node::id::{AttemptKey, Id};
use crate::rpc::schema::task_result_request::Piece;
use crate::rpc::schema::task_result_response::Answer;
use crate::rpc::schema::{AttemptKey as AttemptKeyMessage, *};

pub const START_MS: u64 = 1_700_000_000_000;

/// A folder that goes with the test.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("hivemind-master-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Rig {
    pub core: Core,
    pub now: Duration,
    pub dir: TempDir,
    pub terms: Terms,
    pub node: String,
    pub token: Option<String>,
    pub pair: Ed25519KeyPair,
    pub poll_id: u64,
}

pub fn key_pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

pub fn key(task: &str, attempt: u32) -> AttemptKey {
    AttemptKey { task: Id::parse(task).unwrap(), attempt }
}

pub fn key_message(task: &str) -> Option<AttemptKeyMessage> {
    Some(super::convert::key_message(&key(task, 1)))
}

pub fn free() -> Resources {
    Resources { cpu_millis: 4_000, memory_bytes: 4 << 30, disk_bytes: 100 << 30, slots: 4 }
}

pub fn assignment(task: &str, attempt: u32, priority: i64) -> Assignment {
    Assignment {
        key: Some(super::convert::key_message(&key(task, attempt))),
        priority: Some(priority),
        ..Assignment::default()
    }
}

impl Rig {
    pub fn new() -> Self {
        Self::with(Terms::default())
    }

    /// A master, not yet with a node.
    pub fn bare(terms: Terms) -> Self {
        let dir = TempDir::new();
        let core = Core::open(&dir.0, terms.clone(), START_MS).unwrap();
        let node = "node-1".to_owned();
        Self { core, now: Duration::ZERO, dir, terms, node, token: None, pair: key_pair(1), poll_id: 0 }
    }

    pub fn with(terms: Terms) -> Self {
        let mut rig = Self::bare(terms);
        rig.register().unwrap();
        rig
    }

    pub fn path(&self) -> &Path {
        &self.dir.0
    }

    /// As after `kill -9`: all that is not in the folder is gone.
    pub fn restart(&mut self) {
        self.core = Core::open(&self.dir.0, self.terms.clone(), START_MS + 1_000_000).unwrap();
        self.now = Duration::ZERO;
        self.token = None;
    }

    pub fn restart_and_register(&mut self) {
        self.restart();
        self.register().unwrap();
    }

    pub fn registration(&self) -> NodeRegistrationRequest {
        NodeRegistrationRequest {
            node_id: self.node.clone(),
            version: "0.1.0".to_owned(),
            capacity: Some(free()),
            join_token: self.terms.join_token.as_ref().map(|token| token.expose().clone()).unwrap_or_default(),
            public_key: self.pair.public_key().as_ref().to_vec(),
            ..NodeRegistrationRequest::default()
        }
    }

    pub fn prove(&self, request: &mut NodeRegistrationRequest, nonce: &[u8]) {
        let text = proof_text(nonce, &request.node_id, &request.public_key);
        let signature = self.pair.sign(&text).as_ref().to_vec();
        request.proof = Some(RegistrationProof { nonce: nonce.to_vec(), signature });
    }

    pub fn register(&mut self) -> Result<NodeRegistrationResponse, Fail> {
        self.register_with(self.registration())
    }

    pub fn register_with(&mut self, mut request: NodeRegistrationRequest) -> Result<NodeRegistrationResponse, Fail> {
        let first: NodeRegistrationResponse = self.call(REGISTER_NODE, &request)?;
        self.prove(&mut request, &first.nonce);
        let second: NodeRegistrationResponse = self.call(REGISTER_NODE, &request)?;
        self.token = Some(second.session_token.clone());
        self.poll_id = 0;
        Ok(second)
    }

    pub fn handle(&mut self, path: &str, request: &impl Message) -> Handled {
        self.core.handle(path, self.token.as_deref(), &request.encode_to_vec(), self.now)
    }

    pub fn call<R: Message + Default>(&mut self, path: &str, request: &impl Message) -> Result<R, Fail> {
        match self.handle(path, request) {
            Handled::Answer(bytes) => Ok(R::decode(bytes.as_slice()).unwrap()),
            Handled::Fail(fail) => Err(fail),
            Handled::Hold(id) => panic!("{path} is held as {id:?}"),
        }
    }

    pub fn submit(&mut self, task: &str, priority: i64) {
        self.submit_assignment(&assignment(task, 1, priority));
    }

    pub fn submit_assignment(&mut self, assignment: &Assignment) {
        let message = assignment.key.clone().unwrap();
        let key = key(&message.task_id, message.attempt);
        self.core.submit(&key, &assignment.encode_to_vec(), self.now).unwrap();
    }

    /// A poll that is answered at once.
    pub fn poll(&mut self, taken: &[u64], refused: Vec<Refusal>) -> TaskAssignmentResponse {
        let mut request = self.poll_request(taken, 0);
        request.refused = refused;
        self.call(ASSIGN_TASK, &request).unwrap()
    }

    pub fn poll_request(&mut self, taken: &[u64], wait_ms: u64) -> TaskAssignmentRequest {
        self.poll_id += 1;
        TaskAssignmentRequest {
            node_id: self.node.clone(),
            poll_id: self.poll_id,
            free: Some(free()),
            max_assignments: 4,
            wait_ms,
            taken: taken.to_vec(),
            refused: Vec::new(),
            last_answer_too_large: false,
        }
    }

    /// A poll that is held.
    pub fn hold(&mut self, wait_ms: u64) -> HeldId {
        let request = self.poll_request(&[], wait_ms);
        match self.handle(ASSIGN_TASK, &request) {
            Handled::Hold(id) => id,
            other => panic!("not held: {other:?}"),
        }
    }

    /// Submits a task and has it on disk at the node.
    pub fn placed(&mut self, task: &str) {
        self.submit(task, 50);
        let offers = self.poll(&[], Vec::new()).offers;
        let offers: Vec<u64> = offers.iter().map(|offer| offer.offer_id).collect();
        self.poll(&offers, Vec::new());
    }

    pub fn piece(&mut self, task: &str, piece: Piece) -> Result<Answer, Fail> {
        let request = TaskResultRequest { node_id: self.node.clone(), key: key_message(task), piece: Some(piece) };
        let answer: TaskResultResponse = self.call(SUBMIT_TASK_RESULT, &request)?;
        Ok(answer.answer.unwrap())
    }

    pub fn event(&mut self, task: &str, number: u64, kind: event::Kind) -> Result<Answer, Fail> {
        self.piece(task, Piece::Event(Event { number, time_ms: 1, kind: Some(kind) }))
    }

    pub fn note(&mut self, task: &str, number: u64) -> Result<Answer, Fail> {
        self.event(task, number, event::Kind::Note(format!("note {number}")))
    }

    pub fn finish(&mut self, task: &str, number: u64, streams: Vec<StreamEnd>) -> Result<Answer, Fail> {
        let report = FinalReport { outcome: Outcome::Succeeded.into(), streams, ..FinalReport::default() };
        self.event(task, number, event::Kind::FinalReport(report))
    }

    pub fn chunk(&mut self, task: &str, stream: u32, epoch: u64, offset: u64, data: &[u8]) -> Result<Answer, Fail> {
        let chunk = Chunk { stream, epoch, offset, data: data.to_vec(), last: false, after_gap: false };
        self.piece(task, Piece::Chunk(chunk))
    }

    pub fn attempt(&self, task: &str, attempt: u32) -> &super::attempt::Attempt {
        &self.core.book.attempts[&key(task, attempt)]
    }

    /// Names of the tasks in an answer, in its order.
    pub fn tasks(answer: &TaskAssignmentResponse) -> Vec<String> {
        let name = |offer: &Offer| {
            let assignment = Assignment::decode(offer.assignment.as_slice()).unwrap();
            assignment.key.unwrap().task_id
        };
        answer.offers.iter().map(name).collect()
    }
}
