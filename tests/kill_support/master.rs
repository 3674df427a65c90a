//! A master that believes nothing: it keeps all that a node tells in memory, and notes each word that breaks a rule. It
//! offers again what was not confirmed, cancels some tasks, and answers each piece by how far it has the record.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hivemind_worker::node::offer::Offer;
use hivemind_worker::rpc::Waker;
use hivemind_worker::rpc::schema::event::Kind;
use hivemind_worker::rpc::schema::task_result_request::Piece;
use hivemind_worker::rpc::schema::task_result_response::Answer;
use hivemind_worker::rpc::schema::{
    AttemptKey, CancelState, Cancellation, Chunk, Event, FinalReport, HeartbeatRequest, HeartbeatResponse,
    NodeRegistrationRequest, NodeRegistrationResponse, NodeStatusResponse, Offer as OfferMessage, Phase,
    TaskAssignmentRequest, TaskAssignmentResponse, TaskCancelRequest, TaskCancelResponse, TaskResultRequest,
    TaskResultResponse,
};
use hivemind_worker::rpc::server::{Server, ServerCallId, ServerEvent};
use hivemind_worker::standalone::convert;
use hivemind_worker::sys::clock::boottime;
use prost::Message;

use crate::engine_support::Sights;

/// Between two looks at a poll that is held.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A cancellation that nobody has answered is told again after this.
const CANCEL_AGAIN: Duration = Duration::from_millis(100);

/// What came of a byte stream in one epoch.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    pub bytes: Vec<u8>,
    pub is_ended: bool,
    /// Something in it is missing for good.
    pub has_gap: bool,
}

/// A task, and all that came of its one attempt.
#[derive(Clone, Debug, Default)]
pub struct Record {
    assignment: Vec<u8>,
    /// The node has confirmed it, in one way or another.
    pub is_taken: bool,
    /// It is cancelled when so many events have come.
    cancel_after: Option<usize>,
    cancelled_at: Option<Instant>,
    is_cancel_answered: bool,
    /// From number 1.
    pub events: Vec<Event>,
    /// The final report, once it has come.
    pub report: Option<FinalReport>,
    /// By stream and epoch.
    pub streams: BTreeMap<(u32, u64), Stream>,
    /// Pieces that came more than once.
    pub doubles: u64,
}

impl Record {
    /// Whether the master wants it stopped.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled_at.is_some()
    }

    /// In words, without content.
    pub fn summary(&self) -> String {
        let streams: Vec<_> = self.streams.iter().map(|(name, part)| (name, part.bytes.len(), part.is_ended)).collect();
        format!("taken {}, cancelled {}, {:?}, streams {streams:?}", self.is_taken, self.is_cancelled(), self.events)
    }

    /// The notes among its events.
    pub fn notes(&self) -> Vec<&str> {
        let texts = self.events.iter().filter_map(|event| match &event.kind {
            Some(Kind::Note(text)) => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    /// Whether the report has come, and each stream that it names to its end.
    pub fn is_complete(&self) -> bool {
        let is_whole = |end: &hivemind_worker::rpc::schema::StreamEnd| {
            let stream = self.streams.get(&(end.stream, end.epoch));
            stream.is_some_and(|stream| stream.bytes.len() as u64 >= end.bytes && stream.is_ended)
        };
        self.report.as_ref().is_some_and(|report| report.streams.iter().all(is_whole))
    }

    /// Takes an event; how far the record is then. A broken rule, if it is one.
    fn take_event(&mut self, event: Event) -> (u64, Option<String>) {
        let known = self.events.len() as u64;
        let broken = if event.number == 0 {
            Some("an event without a number".to_owned())
        } else if event.number <= known {
            self.doubles += 1;
            let before = &self.events[usize::try_from(event.number).unwrap() - 1];
            (*before != event).then(|| format!("I4: event {} was {before:?} and is {event:?}", event.number))
        } else if event.number > known + 1 {
            // Behind a hole: the answer says where to go on.
            None
        } else if self.report.is_some() {
            Some(format!("I1: something after the final report: {event:?}"))
        } else {
            if let Some(Kind::FinalReport(report)) = &event.kind {
                self.report = Some(report.clone());
            }
            self.events.push(event);
            None
        };
        (self.events.len() as u64, broken)
    }

    fn take_chunk(&mut self, chunk: Chunk) -> (u64, Option<String>) {
        let name = (chunk.stream, chunk.epoch);
        let stream = self.streams.entry(name).or_default();
        let mut broken = None;
        let at = usize::try_from(chunk.offset).unwrap();
        if at > stream.bytes.len() {
            if !chunk.after_gap {
                return (stream.bytes.len() as u64, None);
            }
            stream.has_gap = true;
            stream.bytes.resize(at, 0);
        }
        let both = chunk.data.len().min(stream.bytes.len() - at);
        if both > 0 {
            self.doubles += 1;
        }
        if stream.bytes[at..at + both] != chunk.data[..both] {
            broken = Some(format!("I4: the bytes of {name:?} from {at} have changed"));
        }
        if both < chunk.data.len() && stream.is_ended {
            broken = Some(format!("I4: {name:?} goes on behind its end"));
        }
        stream.bytes.extend_from_slice(&chunk.data[both..]);
        stream.is_ended |= chunk.last && at + chunk.data.len() == stream.bytes.len();
        (stream.bytes.len() as u64, broken)
    }
}

/// What the master knows, and what the tests look at.
#[derive(Default)]
pub struct Book {
    pub tasks: BTreeMap<String, Record>,
    /// Not confirmed yet, in the order in which they are offered.
    waiting: VecDeque<String>,
    offers: BTreeMap<u64, String>,
    next_offer: u64,
    /// Broken rules, in words.
    pub broken: Vec<String>,
    /// Refusals that are no fault, by their code.
    pub refusals: BTreeMap<String, u64>,
}

impl Book {
    fn take(&mut self, task: &str) {
        self.waiting.retain(|waiting| waiting != task);
        match self.tasks.get_mut(task) {
            Some(record) => record.is_taken = true,
            None => self.broken.push(format!("the node holds {task}, which nobody gave it")),
        }
    }

    fn confirm(&mut self, request: &TaskAssignmentRequest) {
        for offer in &request.taken {
            if let Some(task) = self.offers.remove(offer) {
                self.take(&task);
            }
        }
        for refusal in &request.refused {
            let Some(task) = self.offers.remove(&refusal.offer_id) else { continue };
            let is_known = self.tasks[&task].is_taken;
            match refusal.code.as_str() {
                // Offered again before the word came that it is taken, or over.
                "stale" if is_known => {}
                "draining" | "capacity" | "storage" => {}
                _ => self.broken.push(format!("{task} is refused: {refusal:?}")),
            }
            *self.refusals.entry(refusal.code.clone()).or_default() += 1;
        }
        // What was neither taken nor refused is offered again.
        self.offers.clear();
    }

    fn cancellations(&mut self) -> Vec<Cancellation> {
        let mut told = Vec::new();
        for (task, record) in &mut self.tasks {
            let is_due = record.cancel_after.is_some_and(|after| record.events.len() >= after);
            let is_new = record.cancelled_at.is_none_or(|at| at.elapsed() >= CANCEL_AGAIN);
            if is_due && is_new && record.is_taken && record.report.is_none() && !record.is_cancel_answered {
                record.cancelled_at = Some(Instant::now());
                let key = Some(AttemptKey { task_id: task.clone(), attempt: 1 });
                told.push(Cancellation { key, reason: "no longer wanted".to_owned(), superseded: false });
            }
        }
        told
    }

    fn cancel_answered(&mut self, request: &TaskCancelRequest) {
        let task = request.key.clone().unwrap_or_default().task_id;
        let Some(record) = self.tasks.get_mut(&task) else { return };
        if request.state == i32::from(CancelState::Unknown) && record.report.is_none() {
            self.broken.push(format!("I1: the node does not know {task} any more, which it has confirmed"));
        }
        // An order that was answered is on the node's disk.
        record.is_cancel_answered = true;
    }

    /// Takes a piece; the answer.
    fn piece(&mut self, request: TaskResultRequest) -> Answer {
        let task = request.key.unwrap_or_default().task_id;
        self.take(&task);
        let Some(record) = self.tasks.get_mut(&task) else { return Answer::Refused("nobody's".to_owned()) };
        let (answer, broken) = match request.piece.unwrap() {
            Piece::Event(event) => {
                let (number, broken) = record.take_event(event);
                (Answer::EventDurable(number), broken)
            }
            Piece::Chunk(chunk) => {
                let (offset, broken) = record.take_chunk(chunk);
                (Answer::ChunkDurable(offset), broken)
            }
        };
        self.broken.extend(broken.map(|what| format!("{task}: {what}")));
        answer
    }

    fn offer(&mut self, request: &TaskAssignmentRequest) -> Vec<OfferMessage> {
        let room = usize::try_from(request.max_assignments).unwrap();
        let tasks: Vec<String> = self.waiting.iter().take(room).cloned().collect();
        let mut offers = Vec::new();
        for task in tasks {
            self.next_offer += 1;
            let assignment = self.tasks[&task].assignment.clone();
            offers.push(OfferMessage { offer_id: self.next_offer, assignment, signature: Vec::new() });
            self.offers.insert(self.next_offer, task);
        }
        offers
    }

    /// How many tasks are not complete.
    pub fn open(&self) -> usize {
        self.tasks.values().filter(|record| !record.is_complete()).count()
    }
}

struct Shared {
    book: Mutex<Book>,
    changed: Condvar,
    sights: Arc<Sights>,
    is_over: AtomicBool,
}

/// See the module's text.
pub struct Master {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Master {
    /// Begins to listen. What happens is noted in `sights`.
    pub fn start(sights: Arc<Sights>) -> Self {
        let server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, waker) = (server.local_addr().unwrap(), server.waker());
        let shared = Arc::new(Shared {
            book: Mutex::default(),
            changed: Condvar::new(),
            sights,
            is_over: AtomicBool::new(false),
        });
        let desk = Desk { server, shared: Arc::clone(&shared), poll: None };
        let thread = Some(thread::spawn(|| desk.run()));
        Self { address, shared, waker, thread }
    }

    /// What is known.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap()
    }

    /// Queues a task; it is cancelled when so many of its events have come.
    pub fn submit(&self, offer: Offer, cancel_after: Option<usize>) {
        let task = offer.task.clone();
        let assignment = convert::assignment(offer).encode_to_vec();
        let mut book = self.book();
        book.waiting.push_back(task.clone());
        book.tasks.insert(task, Record { assignment, cancel_after, ..Record::default() });
        drop(book);
        self.waker.wake();
    }

    /// Waits until the book is so, or until then; whether it is.
    pub fn wait(&self, until: Instant, is_it: impl Fn(&Book) -> bool) -> bool {
        let mut book = self.book();
        loop {
            if is_it(&book) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            book = self.shared.changed.wait_timeout(book, left).unwrap().0;
        }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.waker.wake();
        let _ = self.thread.take().unwrap().join();
    }
}

/// The master's thread.
struct Desk {
    server: Server,
    shared: Arc<Shared>,
    poll: Option<(ServerCallId, TaskAssignmentRequest, Duration)>,
}

impl Desk {
    fn run(mut self) {
        while !self.shared.is_over.load(Ordering::Relaxed) {
            let event = self.server.next(boottime() + LOOK_EVERY);
            match event {
                ServerEvent::Request { call, path, body, .. } => self.handle(call, &path, &body),
                ServerEvent::Cancelled(call) => {
                    self.poll.take_if(|(held, ..)| *held == call);
                }
                ServerEvent::Woken | ServerEvent::TimedOut => {}
            }
            self.answer_poll();
            self.shared.changed.notify_all();
        }
    }

    fn handle(&mut self, call: ServerCallId, path: &str, body: &[u8]) {
        let method = path.rsplit('/').next().unwrap();
        let mut book = self.shared.book.lock().unwrap();
        let answer = match method {
            "RegisterNode" => register(&mut book, &NodeRegistrationRequest::decode(body).unwrap()).encode_to_vec(),
            "Heartbeat" => {
                let request = HeartbeatRequest::decode(body).unwrap();
                for held in &request.held {
                    book.take(&held.key.clone().unwrap_or_default().task_id);
                }
                HeartbeatResponse { cancellations: book.cancellations(), ..Default::default() }.encode_to_vec()
            }
            "ReportNodeStatus" => NodeStatusResponse::default().encode_to_vec(),
            "CancelTask" => {
                book.cancel_answered(&TaskCancelRequest::decode(body).unwrap());
                TaskCancelResponse {}.encode_to_vec()
            }
            "SubmitTaskResult" => {
                let request = TaskResultRequest::decode(body).unwrap();
                self.note_piece(&request);
                TaskResultResponse { answer: Some(book.piece(request)) }.encode_to_vec()
            }
            "AssignTask" => {
                let request = TaskAssignmentRequest::decode(body).unwrap();
                book.confirm(&request);
                drop(book);
                self.shared.sights.note(if request.taken.is_empty() { "poll" } else { "confirmation" });
                if let Some((old, ..)) = self.poll.take() {
                    self.server.respond(old, Ok(TaskAssignmentResponse::default().encode_to_vec()));
                }
                let until = boottime() + Duration::from_millis(request.wait_ms);
                self.poll = Some((call, request, until));
                return;
            }
            _ => panic!("the contract has no call {path}"),
        };
        drop(book);
        self.server.respond(call, Ok(answer));
        self.shared.sights.note(method);
    }

    fn note_piece(&self, request: &TaskResultRequest) {
        let what = match &request.piece {
            Some(Piece::Event(event)) => match &event.kind {
                Some(Kind::FinalReport(_)) => "final report",
                Some(Kind::Phase(change)) if change.phase == i32::from(Phase::Running) => "told running",
                Some(Kind::Phase(change)) if change.phase == i32::from(Phase::Collecting) => "told collecting",
                _ => "event",
            },
            _ => "chunk",
        };
        self.shared.sights.note(what);
    }

    fn answer_poll(&mut self) {
        let Some((call, request, until)) = &self.poll else { return };
        let mut book = self.shared.book.lock().unwrap();
        let (offers, cancellations) = (book.offer(request), book.cancellations());
        if offers.is_empty() && cancellations.is_empty() && boottime() < *until {
            return;
        }
        drop(book);
        let what = if offers.is_empty() { "answer without offer" } else { "offer" };
        let answer = TaskAssignmentResponse { offers, cancellations, directives: Vec::new() };
        self.server.respond(*call, Ok(answer.encode_to_vec()));
        self.poll = None;
        self.shared.sights.note(what);
    }
}

fn register(book: &mut Book, request: &NodeRegistrationRequest) -> NodeRegistrationResponse {
    if request.proof.is_none() {
        return NodeRegistrationResponse { nonce: vec![7; 32], ..Default::default() };
    }
    for held in &request.held {
        book.take(&held.key.clone().unwrap_or_default().task_id);
    }
    NodeRegistrationResponse {
        node_id: request.node_id.clone(),
        session_token: "token".to_owned(),
        session_token_life_ms: 3_600_000,
        heartbeat_interval_ms: 1_000,
        lease_ms: 120_000,
        ..Default::default()
    }
}
