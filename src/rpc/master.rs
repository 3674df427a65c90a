//! The typed calls to a master: the one seam for another master protocol. Callers speak the node's words; messages, paths
//! and deadlines are here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use super::convert;
use super::key::NodeKey;
use super::lane::{Lane, LaneEvent};
use super::method::{Method, Tally};
use super::signing::Signing;
use super::tls::TrustedTime;
use super::{schema, wire};
use crate::grpc::{CallError, CallId, Code, Metadata, Processed, Request};
use crate::h2::Instant;
use crate::node::id::AttemptKey;
use crate::node::offer::Offer;
use crate::node::order::{CancelState, Directive, Refusal};
use crate::node::record::Piece;
use crate::node::snapshot::Snapshot;
use crate::node::spec::FieldError;

/// Offers, directives and cancellations of one answer that are read; a master has no reason for more, and repeats them.
const MAX_ORDERS: usize = 1_000;
/// Of a cancellation's reason, which goes into the final report: that must stay below the limit of a call.
const MAX_REASON_BYTES: usize = 1 << 10;

/// Fields of an answer, counted before anything is made of them: more than all offers and orders that are read.
const MAX_ANSWER_FIELDS: usize = 8_192;

/// Who the node says it is.
pub struct Introduction {
    /// As the owner configured it.
    pub node_id: String,
    /// Its key.
    pub key: Arc<NodeKey>,
    /// Shared secret to join the network, if the owner has one.
    pub join_token: Option<String>,
    /// The owner's labels.
    pub labels: Vec<(String, String)>,
}

/// A master wants an attempt stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancellation {
    /// Which.
    pub key: AttemptKey,
    /// For people.
    pub reason: String,
    /// A later attempt has replaced it.
    pub is_superseded: bool,
}

/// What a master orders beside its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// For the node.
    pub directives: Vec<Directive>,
    /// For attempts.
    pub cancellations: Vec<Cancellation>,
}

/// A good registration.
#[derive(Debug)]
pub struct Registration {
    /// Under which the master knows the node.
    pub node_id: String,
    /// For all further calls; on both lanes.
    pub session_token: String,
    /// How long it is good.
    pub token_life: Duration,
    /// Between heartbeats.
    pub heartbeat_interval: Duration,
    /// How long the node may hold an attempt unheard.
    pub lease: Duration,
    /// Of what the owner lends.
    pub trust_percent: u32,
    /// Held attempts that were replaced.
    pub superseded: Vec<AttemptKey>,
    /// The master's clock, since 1970.
    pub server_time: Option<Duration>,
    /// With which the master signs its assignments; may be empty.
    pub signing_key: Vec<u8>,
}

/// What the master says to a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Events up to this number are durable.
    Event(u64),
    /// The stream is durable up to this offset.
    Chunk(u64),
    /// Never, for this reason.
    Refused(String),
}

/// What a poll tells of the answer to the poll before.
#[derive(Debug, Default)]
pub struct Settled {
    /// Offers that are on disk.
    pub taken: Vec<u64>,
    /// Offers that will not be.
    pub refused: Vec<Refusal>,
    /// The answer was longer than this node takes, and was not read.
    pub was_too_large: bool,
}

/// Offers of a poll, by their ids.
pub type Offers = Vec<(u64, Result<Box<Offer>, FieldError>)>;

/// A good answer.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are explained with their variant")]
pub enum Reply {
    /// First step of a registration.
    Nonce(Vec<u8>),
    /// Second step.
    Registered(Box<Registration>),
    /// The lease goes on.
    Heartbeat { lease: Option<Duration>, trust_percent: Option<u32>, orders: Orders },
    /// The report is read.
    Reported(Orders),
    /// The poll that `poll` numbers.
    Assigned { poll: u64, offers: Offers, orders: Orders },
    /// To this piece.
    Submitted { piece: Box<Piece>, verdict: Verdict },
    /// The master has noted it.
    CancelNoted,
}

/// What happened with the master.
#[derive(Debug)]
pub enum MasterEvent {
    /// A connection is there.
    Connected,
    /// There is none, for this reason.
    Disconnected(String),
    /// A call was answered.
    Reply(CallId, Reply),
    /// A call failed. A piece comes back to be offered again.
    Failed(CallId, CallError, Option<Box<Piece>>),
    /// Somebody woke the lane.
    Woken,
    /// Nothing until the time that was given.
    TimedOut,
}

#[derive(Debug)]
enum Kind {
    Register,
    Heartbeat,
    Report,
    Assign(u64),
    Submit(Box<Piece>),
    Cancel,
}

/// A lane to a master, in the node's words.
pub struct Master {
    lane: Lane,
    introduction: Arc<Introduction>,
    node_id: String,
    session_token: Option<String>,
    calls: BTreeMap<CallId, Kind>,
    clock: Option<Arc<TrustedTime>>,
    signing: Option<Signing>,
    tally: Arc<Tally>,
}

impl Master {
    /// Calls over `lane`.
    pub fn new(lane: Lane, introduction: Arc<Introduction>) -> Self {
        let node_id = introduction.node_id.clone();
        Self {
            lane,
            introduction,
            node_id,
            session_token: None,
            calls: BTreeMap::new(),
            clock: None,
            signing: None,
            tally: Arc::default(),
        }
    }

    /// Where the master's time is told. Only for a lane with TLS: the time must be the master's own.
    pub fn set_clock(&mut self, clock: Arc<TrustedTime>) {
        self.clock = Some(clock);
    }

    /// What offers are checked with. Without it none needs a signature.
    pub fn set_signing(&mut self, signing: Signing) {
        self.signing = Some(signing);
    }

    /// The key that a registration told; what the owner should know of it, in words.
    pub fn learn_signing_key(&mut self, told: &[u8]) -> Result<(), String> {
        self.signing.as_mut().map_or(Ok(()), |signing| signing.learn(told))
    }

    /// Counts into `tally`, which another lane may share.
    pub fn set_tally(&mut self, tally: Arc<Tally>) {
        self.tally = tally;
    }

    /// What the calls of all lanes that share it have cost.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The lane below, for its waker and urgency.
    pub fn lane(&mut self) -> &mut Lane {
        &mut self.lane
    }

    /// Sets what a registration gave.
    pub fn set_session(&mut self, node_id: &str, session_token: Option<String>) {
        node_id.clone_into(&mut self.node_id);
        self.session_token = session_token;
    }

    /// Calls under way.
    pub fn open_calls(&self) -> usize {
        self.calls.len()
    }

    /// A step of the registration: the first without a nonce, the second with it.
    pub fn register(&mut self, snapshot: &Snapshot, nonce: Option<&[u8]>) -> CallId {
        let introduction = Arc::clone(&self.introduction);
        let engine = &snapshot.engine;
        let proof = nonce.map(|nonce| schema::RegistrationProof {
            nonce: nonce.to_vec(),
            signature: introduction.key.prove(nonce, &introduction.node_id),
        });
        let request = schema::NodeRegistrationRequest {
            node_id: introduction.node_id.clone(),
            version: snapshot.version.clone(),
            arch: snapshot.machine.arch.clone(),
            os: snapshot.machine.os.clone(),
            capacity: Some(convert::resources(&snapshot.lent)),
            gpus: Vec::new(),
            engine: Some(schema::EngineFacts {
                usable: engine.is_usable,
                version: engine.version.clone(),
                api_version: engine.api_version.clone(),
                cgroup_version: engine.cgroup_version,
                rootless: engine.is_rootless,
                detail: engine.detail.clone(),
            }),
            labels: introduction.labels.iter().cloned().collect(),
            join_token: introduction.join_token.clone().unwrap_or_default(),
            public_key: introduction.key.public().to_vec(),
            held: convert::held(snapshot),
            proof,
        };
        self.session_token = None;
        self.call(&request, Duration::ZERO, Kind::Register)
    }

    /// Tells that the node is alive.
    pub fn heartbeat(&mut self, sequence: u64, snapshot: &Snapshot) -> CallId {
        let request = schema::HeartbeatRequest {
            node_id: self.node_id.clone(),
            sequence,
            state: convert::state_number(snapshot.state),
            reason: snapshot.state_reason.clone(),
            held: convert::held(snapshot),
        };
        self.call(&request, Duration::ZERO, Kind::Heartbeat)
    }

    /// Tells how the machine and its tasks fare.
    pub fn report(&mut self, sequence: u64, snapshot: &Snapshot) -> CallId {
        let tasks = snapshot.attempts.iter().map(|view| convert::usage(&view.key, &view.usage));
        let request = schema::NodeStatusRequest {
            node_id: self.node_id.clone(),
            sequence,
            host: Some(convert::host(&snapshot.host)),
            tasks: tasks.collect(),
            alerts: snapshot.alerts.clone(),
            reward_estimate: snapshot.reward_estimate,
        };
        self.call(&request, Duration::ZERO, Kind::Report)
    }

    /// Opens the long poll.
    pub fn assign(&mut self, poll: u64, snapshot: &Snapshot, wait: Duration, settled: &Settled) -> CallId {
        let refused = settled.refused.iter().map(|refusal| schema::Refusal {
            offer_id: refusal.offer_id,
            code: refusal.code.to_owned(),
            reason: refusal.reason.clone(),
        });
        let request = schema::TaskAssignmentRequest {
            node_id: self.node_id.clone(),
            poll_id: poll,
            free: Some(convert::resources(&snapshot.free)),
            max_assignments: snapshot.free.slots,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            taken: settled.taken.clone(),
            refused: refused.collect(),
            last_answer_too_large: settled.was_too_large,
        };
        self.call(&request, wait, Kind::Assign(poll))
    }

    /// Sends one piece of a record.
    pub fn submit(&mut self, piece: Piece) -> CallId {
        let request = convert::piece(&self.node_id, &piece);
        self.call(&request, Duration::ZERO, Kind::Submit(Box::new(piece)))
    }

    /// Says how a cancellation stands.
    pub fn answer_cancel(&mut self, key: &AttemptKey, state: CancelState, reason: &str) -> CallId {
        let state = match state {
            CancelState::Stopping => schema::CancelState::Stopping,
            CancelState::Unknown => schema::CancelState::Unknown,
            CancelState::AlreadyOver => schema::CancelState::AlreadyOver,
            CancelState::StoppedByOwner => schema::CancelState::StoppedByOwner,
        };
        let request = schema::TaskCancelRequest {
            node_id: self.node_id.clone(),
            key: Some(convert::key_message(key)),
            state: state.into(),
            reason: reason.to_owned(),
        };
        self.call(&request, Duration::ZERO, Kind::Cancel)
    }

    /// Gives up a call, for instance a poll whose figures are old.
    pub fn give_up(&mut self, id: CallId) {
        self.calls.remove(&id);
        self.lane.cancel(id);
    }

    /// `hold` is how long the master keeps the call on purpose.
    fn call(&mut self, request: &impl Message, hold: Duration, kind: Kind) -> CallId {
        let mut metadata = Metadata::default();
        if let Some(token) = &self.session_token
            && let Err(error) = metadata.add_secret("authorization", format!("Bearer {token}"))
        {
            log::error!("the session token can't be sent: {error}");
        }
        let method = kind.method();
        let request = Request {
            path: method.path().to_owned(),
            metadata,
            body: request.encode_to_vec(),
            timeout: method.timeout(hold),
            max_response: method.max_response(),
        };
        self.tally.began(method, request.body.len());
        let id = self.lane.call(request);
        self.calls.insert(id, kind);
        id
    }

    /// Waits for the next thing, at most until `until`. The one place where a lane's thread blocks.
    pub fn next(&mut self, until: Instant) -> MasterEvent {
        loop {
            match self.lane.next(until) {
                LaneEvent::Connected { .. } => return MasterEvent::Connected,
                LaneEvent::Disconnected { reason, .. } => return MasterEvent::Disconnected(reason),
                LaneEvent::Woken => return MasterEvent::Woken,
                LaneEvent::TimedOut => return MasterEvent::TimedOut,
                LaneEvent::Answer { id, result } => {
                    // Of a call that was given up nothing is waited for.
                    let Some(kind) = self.calls.remove(&id) else { continue };
                    let method = kind.method();
                    let bytes = result.as_ref().map_or(0, |response| response.body.len());
                    let event = match result {
                        Ok(response) => self.read(id, kind, &response.body),
                        Err(error) => MasterEvent::Failed(id, error, kind.into_piece()),
                    };
                    self.tally.ended(method, bytes, matches!(event, MasterEvent::Reply(..)));
                    self.learn_time(&event);
                    return event;
                }
            }
        }
    }
}

impl Master {
    fn read(&self, id: CallId, kind: Kind, body: &[u8]) -> MasterEvent {
        let (reply, piece) = match kind {
            Kind::Register => (read_registration(body), None),
            Kind::Heartbeat => (read_heartbeat(body), None),
            Kind::Report => (read_report(body), None),
            Kind::Assign(poll) => (self.read_assignments(poll, body), None),
            Kind::Cancel => (decode::<schema::TaskCancelResponse>(body).map(|_| Reply::CancelNoted), None),
            Kind::Submit(piece) => match read_verdict(body) {
                Ok(verdict) => (Ok(Reply::Submitted { piece, verdict }), None),
                Err(reason) => (Err(reason), Some(piece)),
            },
        };
        match reply {
            Ok(reply) => MasterEvent::Reply(id, reply),
            Err(reason) => MasterEvent::Failed(id, CallError::new(Code::Internal, reason, Processed::Maybe), piece),
        }
    }

    fn read_assignments(&self, poll: u64, body: &[u8]) -> Result<Reply, String> {
        let answer: schema::TaskAssignmentResponse = decode(body)?;
        let offers = answer.offers.into_iter().take(MAX_ORDERS).map(|offer| {
            let signed = self
                .signing
                .as_ref()
                .map_or(Ok(()), |signing| signing.check(&self.node_id, &offer.assignment, &offer.signature));
            let read = signed.and_then(|()| convert::decode_offer(&offer.assignment));
            (offer.offer_id, read.map(Box::new))
        });
        Ok(Reply::Assigned { poll, offers: offers.collect(), orders: orders(&answer.directives, answer.cancellations) })
    }

    fn learn_time(&self, event: &MasterEvent) {
        if let (Some(clock), MasterEvent::Reply(_, Reply::Registered(registration))) = (&self.clock, event)
            && let Some(time) = registration.server_time
        {
            clock.learn(time);
        }
    }
}

impl Kind {
    fn method(&self) -> Method {
        match self {
            Self::Register => Method::Register,
            Self::Heartbeat => Method::Heartbeat,
            Self::Report => Method::Report,
            Self::Assign(_) => Method::Assign,
            Self::Submit(_) => Method::Submit,
            Self::Cancel => Method::Cancel,
        }
    }

    fn into_piece(self) -> Option<Box<Piece>> {
        match self {
            Self::Submit(piece) => Some(piece),
            _ => None,
        }
    }
}

fn decode<M: Message + Default>(body: &[u8]) -> Result<M, String> {
    if !wire::has_at_most(body, MAX_ANSWER_FIELDS) {
        return Err(format!("the master's answer has more than {MAX_ANSWER_FIELDS} fields"));
    }
    M::decode(body).map_err(|error| format!("the master's answer can't be read: {error}"))
}

fn read_registration(body: &[u8]) -> Result<Reply, String> {
    let answer: schema::NodeRegistrationResponse = decode(body)?;
    if answer.session_token.is_empty() {
        return match answer.nonce.len() {
            16..=64 => Ok(Reply::Nonce(answer.nonce)),
            len => Err(format!("the master's answer has no session_token and a nonce of {len} bytes, not of 16 to 64")),
        };
    }
    let millis = |given: u64, default: u64| Duration::from_millis(if given == 0 { default } else { given });
    Ok(Reply::Registered(Box::new(Registration {
        node_id: answer.node_id,
        session_token: answer.session_token,
        token_life: millis(answer.session_token_life_ms, 3_600_000),
        heartbeat_interval: millis(answer.heartbeat_interval_ms, 10_000).clamp(MIN_HEARTBEAT, MAX_HEARTBEAT),
        lease: millis(answer.lease_ms, 120_000),
        trust_percent: convert::trust_percent(answer.trust_level),
        superseded: answer.superseded.into_iter().filter_map(|key| convert::key_from(Some(key))).collect(),
        signing_key: answer.signing_key,
        server_time: (answer.server_time_ms > 0).then(|| Duration::from_millis(answer.server_time_ms)),
    })))
}

/// A master that wants more heartbeats than this is not served better by them.
const MIN_HEARTBEAT: Duration = Duration::from_secs(1);
/// Above this a half-open connection would be noticed too late.
const MAX_HEARTBEAT: Duration = Duration::from_secs(60);

fn read_report(body: &[u8]) -> Result<Reply, String> {
    let answer: schema::NodeStatusResponse = decode(body)?;
    Ok(Reply::Reported(Orders { directives: directives(&answer.directives), ..Orders::default() }))
}

fn read_heartbeat(body: &[u8]) -> Result<Reply, String> {
    let answer: schema::HeartbeatResponse = decode(body)?;
    Ok(Reply::Heartbeat {
        lease: (answer.lease_ms > 0).then(|| Duration::from_millis(answer.lease_ms)),
        trust_percent: (answer.trust_level != 0).then(|| convert::trust_percent(answer.trust_level)),
        orders: orders(&answer.directives, answer.cancellations),
    })
}

fn read_verdict(body: &[u8]) -> Result<Verdict, String> {
    use schema::task_result_response::Answer;
    match decode::<schema::TaskResultResponse>(body)?.answer {
        Some(Answer::EventDurable(number)) => Ok(Verdict::Event(number)),
        Some(Answer::ChunkDurable(offset)) => Ok(Verdict::Chunk(offset)),
        Some(Answer::Refused(reason)) => Ok(Verdict::Refused(reason)),
        None => Err("the master's answer to a piece has none of event_durable, chunk_durable, refused".to_owned()),
    }
}

fn orders(directive_numbers: &[i32], cancellations: Vec<schema::Cancellation>) -> Orders {
    let cancellations = cancellations.into_iter().take(MAX_ORDERS).filter_map(|cancellation| {
        let key = convert::key_from(cancellation.key)?;
        let mut reason = cancellation.reason;
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        Some(Cancellation { key, reason, is_superseded: cancellation.superseded })
    });
    Orders { directives: directives(directive_numbers), cancellations: cancellations.collect() }
}

/// Directives that are not known here change nothing.
fn directives(numbers: &[i32]) -> Vec<Directive> {
    let known = numbers.iter().take(MAX_ORDERS).filter_map(|number| match number {
        1 => Some(Directive::Drain),
        2 => Some(Directive::Resume),
        3 => Some(Directive::RegisterAgain),
        _ => None,
    });
    known.collect()
}
