//! Lane two: delivery of the records, on its own connection, so that a large result never delays a heartbeat.
//!
//! The thread `submit` owns the lane and blocks in it only. It is released by [`Order::Close`] and the lane's waker. What
//! is sent next is the outbox's decision: fair between attempts, events before logs before outputs.

use std::collections::BTreeMap;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use crate::grpc::{CallError, CallId, Code};
use crate::node::record::{EventKind, Piece, PieceContent};
use crate::rpc::backoff::Urgency;
use crate::rpc::master::{Master, MasterEvent, Reply, Verdict};
use crate::session::{self, Session};
use crate::store::{Ack, Outbox};
use crate::sys::clock::boottime;
use crate::sys::failpoint::{self, FailPoint};
use crate::sys::text::printable;
use crate::sys::watch::Watch;

/// Calls under way at a time (design section 2).
const MAX_CALLS: usize = 4;
/// What a chunk should take on the wire.
const CHUNK_TIME: Duration = Duration::from_millis(250);
/// Below this the head of a call weighs more than its load.
const MIN_CHUNK: usize = 16 << 10;
/// Well below the 4 MiB of a call, and small enough to share a connection fairly.
const MAX_CHUNK: usize = 1 << 20;
/// Between two looks at an outbox that has something and gave nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Before the rate of the line is known.
const FIRST_CHUNK: usize = 128 << 10;
/// After a piece failed by its status: first and longest pause.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// See [`FIRST_PAUSE`].
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// What the thread is told.
#[derive(Debug)]
pub enum Order {
    /// End.
    Close,
}

/// What the thread is made from.
pub struct Parts {
    /// The lane.
    pub master: Master,
    /// What waits.
    pub outbox: Outbox,
    /// What the other lane's registration gave.
    pub session: Watch<Session>,
    /// From the daemon.
    pub orders: Receiver<Order>,
    /// To the session, when the token was refused; with its waker.
    pub session_orders: Sender<session::Order>,
    /// Wakes the session.
    pub wake_session: Box<dyn Fn() + Send>,
}

/// A call under way.
struct Sent {
    at: Duration,
    bytes: usize,
    /// Version of the session whose token it carries.
    session_version: u64,
}

/// The thread's state.
pub struct SubmitThread {
    parts: Parts,
    session_version: u64,
    is_registered: bool,
    sent: BTreeMap<CallId, Sent>,
    chunk: usize,
    pause: Duration,
    not_before: Duration,
}

impl SubmitThread {
    /// Sends nothing before the other lane has registered.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            session_version: u64::MAX,
            is_registered: false,
            sent: BTreeMap::new(),
            chunk: FIRST_CHUNK,
            pause: FIRST_PAUSE,
            not_before: Duration::ZERO,
        }
    }

    /// Runs until it is told to close.
    pub fn run(mut self) {
        loop {
            if let Ok(Order::Close) = self.parts.orders.try_recv() {
                return;
            }
            self.learn_session();
            let now = boottime();
            self.send(now);
            let event = self.parts.master.next(self.due(now));
            self.handle(event);
        }
    }

    /// When to look again though nothing has happened. What waits and was not given out could not be read for the moment.
    fn due(&self, now: Duration) -> Duration {
        if now < self.not_before {
            self.not_before
        } else if self.is_registered && self.sent.is_empty() && self.parts.outbox.pending().0 > 0 {
            now + LOOK_AGAIN
        } else {
            Duration::MAX
        }
    }

    fn learn_session(&mut self) {
        let (version, session) = self.parts.session.latest_with_version();
        if version != self.session_version {
            self.session_version = version;
            self.is_registered = session.token.is_some();
            let token = session.token.as_ref().map(|token| token.0.clone());
            self.parts.master.set_session(&session.node_id, token);
            if self.is_registered {
                // The other lane has just reached the master.
                self.parts.master.lane().retry_now();
            }
            self.not_before = Duration::ZERO;
            self.pause = FIRST_PAUSE;
        }
    }

    fn send(&mut self, now: Duration) {
        let urgency = if self.parts.outbox.pending().0 > 0 { Urgency::ResultsWait } else { Urgency::Normal };
        self.parts.master.lane().set_urgency(urgency);
        if !self.is_registered || now < self.not_before || !self.parts.master.lane().is_connected() {
            return;
        }
        while self.sent.len() < MAX_CALLS {
            let Some(piece) = self.parts.outbox.next_piece(self.chunk) else { return };
            pass_if_final(&piece, FailPoint::Collected);
            let bytes = match &piece.content {
                PieceContent::Event(_) => 0,
                PieceContent::Chunk { bytes, .. } => bytes.len(),
            };
            let call = self.parts.master.submit(piece);
            self.sent.insert(call, Sent { at: now, bytes, session_version: self.session_version });
        }
    }

    fn handle(&mut self, event: MasterEvent) {
        match event {
            MasterEvent::Reply(call, Reply::Submitted { piece, verdict }) => {
                pass_if_final(&piece, FailPoint::Submitted);
                self.measure(call);
                if self.settle(&piece, verdict) {
                    self.pause = FIRST_PAUSE;
                } else {
                    // The same would be sent again at once.
                    self.back_off();
                }
            }
            MasterEvent::Failed(call, error, piece) => {
                let sent = self.sent.remove(&call);
                if let Some(piece) = piece {
                    self.parts.outbox.failed(&piece);
                }
                self.handle_failure(sent.as_ref(), &error);
            }
            MasterEvent::Connected => {
                self.not_before = Duration::ZERO;
                self.pause = FIRST_PAUSE;
            }
            _ => {}
        }
    }

    /// Chunks grow and shrink with what the line carries in a quarter of a second.
    fn measure(&mut self, call: CallId) {
        let Some(Sent { at, bytes, .. }) = self.sent.remove(&call) else { return };
        if bytes < self.chunk / 2 {
            return;
        }
        let took = boottime().saturating_sub(at).max(Duration::from_millis(1));
        let wanted = bytes as u128 * CHUNK_TIME.as_micros() / took.as_micros().max(1);
        let wanted = usize::try_from(wanted).unwrap_or(MAX_CHUNK);
        // Half way each time, so that one slow answer changes little.
        self.chunk = usize::midpoint(self.chunk, wanted).clamp(MIN_CHUNK, MAX_CHUNK);
    }

    /// Tells whether the record has come any further.
    fn settle(&self, piece: &Piece, verdict: Verdict) -> bool {
        match (verdict, &piece.content) {
            (Verdict::Refused(reason), _) => {
                self.parts.outbox.refused(piece, &printable(&reason));
                true
            }
            (Verdict::Event(number), PieceContent::Event(_)) => self.parts.outbox.acked(&piece.key, Ack::Event(number)),
            (Verdict::Chunk(offset), PieceContent::Chunk { stream, epoch, .. }) => {
                self.parts.outbox.acked(&piece.key, Ack::Stream { stream: *stream, epoch: *epoch, offset })
            }
            // An answer to another kind of piece says nothing on this one.
            _ => {
                self.parts.outbox.failed(piece);
                false
            }
        }
    }

    /// Calls that were under way together fail together: that is one reason to wait, not four.
    fn back_off(&mut self) {
        let now = boottime();
        if now < self.not_before {
            return;
        }
        self.not_before = now + self.pause;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
    }

    fn handle_failure(&mut self, sent: Option<&Sent>, error: &CallError) {
        let session_version = self.parts.session.latest_with_version().0;
        match error.status.code {
            // The token of an earlier session: the present one is another.
            Code::Unauthenticated if sent.is_some_and(|sent| sent.session_version != session_version) => {}
            Code::Unauthenticated => {
                self.is_registered = false;
                if self.parts.session_orders.try_send(session::Order::TokenRefused).is_ok() {
                    (self.parts.wake_session)();
                }
            }
            // The connection is at fault: the lane itself waits before the next one.
            Code::Unavailable if !self.parts.master.lane().is_connected() => {}
            code => {
                // Too large, or too much for the time that a slow line has.
                if matches!(code, Code::ResourceExhausted | Code::DeadlineExceeded) {
                    self.chunk = (self.chunk / 2).max(MIN_CHUNK);
                }
                log::debug!("a piece failed: {code:?}: {}", printable(&error.status.message));
                self.back_off();
            }
        }
    }
}

fn pass_if_final(piece: &Piece, point: FailPoint) {
    if matches!(&piece.content, PieceContent::Event(event) if matches!(event.kind, EventKind::Final(_))) {
        failpoint::pass(point);
    }
}
