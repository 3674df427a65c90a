//! Lane one: registration, heartbeats, reports and the poll for work, over one connection.
//!
//! The thread `session` owns the lane and blocks in it only. It is released by [`Order::Close`] and the lane's waker.
//! What it hears goes to the coordinator as events; what it says of the node comes from the latest snapshot.

use std::collections::VecDeque;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};
use log::{info, warn};

use crate::coordinator::Event;
use crate::grpc::{CallError, CallId, Code};
use crate::node::id::AttemptKey;
use crate::node::order::{CancelState, Directive, Refusal};
use crate::node::record::Phase;
use crate::node::resources::Resources;
use crate::node::snapshot::Snapshot;
use crate::rpc::backoff::Urgency;
use crate::rpc::master::{Master, MasterEvent, Orders, Registration, Reply, Settled};
use crate::sys::clock::boottime;
use crate::sys::failpoint::{self, FailPoint};
use crate::sys::text::printable;
use crate::sys::time::unix_ms;
use crate::sys::watch::Watch;

/// How long a master holds a poll: below the time after which the usual proxies cut a silent call.
const POLL_WAIT: Duration = Duration::from_secs(25);
/// Least time between two polls when the answer before had no offer, or none that was taken: a master that repeats a
/// cancellation or an offer must not make us spin.
const POLL_PAUSE: Duration = Duration::from_millis(250);
/// After a failed registration; a refused one waits longer. Also the least time between two good ones, so that a master
/// that forgets at once what it has admitted does not make us spin.
const REGISTER_PAUSE: Duration = Duration::from_secs(2);
/// After the master said that this node may not join: its owner has to do something first.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// After a poll that failed. A new connection ends it.
const FAILED_POLL_PAUSE: Duration = Duration::from_secs(2);
/// Disconnected for longer, the node asks which of its attempts still count, by registering again.
const REGISTER_AFTER: Duration = Duration::from_secs(30);

/// A clock that is further from the master's is told to the owner. Nothing here depends on it.
const CLOCK_SLACK: Duration = Duration::from_secs(120);

/// What the thread is told.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are explained with their variant")]
pub enum Order {
    /// Every offer of this poll is decided.
    SettlePoll { poll: u64, taken: Vec<u64>, refused: Vec<Refusal> },
    /// How a cancellation stands.
    AnswerCancel { key: AttemptKey, state: CancelState, reason: String },
    /// The other lane was told that the session token is not good.
    TokenRefused,
    /// The owner has set another interval.
    ReportInterval(Duration),
    /// End.
    Close,
}

/// What a registration gives to the other lane.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// Under which the master knows the node.
    pub node_id: String,
    /// For each call; absent while the node is not registered. Never shown.
    pub token: Option<SessionToken>,
}

/// A bearer token without `Debug` content.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionToken(pub String);

impl std::fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionToken")
    }
}

/// What the thread is made from.
pub struct Parts {
    /// The lane.
    pub master: Master,
    /// The node as it is.
    pub snapshot: Watch<Snapshot>,
    /// To the coordinator; waits while it is full.
    pub events: Sender<Event>,
    /// From the daemon.
    pub orders: Receiver<Order>,
    /// For the other lane, with its waker.
    pub session: Watch<Session>,
    /// Wakes the other lane after a change of `session`.
    pub session_changed: Box<dyn Fn() + Send>,
    /// Between reports.
    pub report_interval: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// The next step of the registration is due then.
    Unregistered { retry_at: Duration },
    /// A step is under way.
    Registering,
    /// The token is good until then.
    Registered { renew_at: Duration },
}

#[derive(Debug)]
enum Poll {
    /// None is open; the next is due then.
    None { due: Duration },
    /// Open, made with these figures.
    Open { call: CallId, free: Resources },
    /// Answered; the coordinator decides on the offers.
    Deciding { number: u64 },
}

/// The thread's state.
pub struct SessionThread {
    parts: Parts,
    standing: Standing,
    /// The last step of a registration. What fails of the calls before it says nothing on the new token.
    registration: Option<CallId>,
    registered_at: Duration,
    /// Orders that came while an event waited for the coordinator, which may itself wait with an order. At most a few for
    /// each event.
    backlog: VecDeque<Order>,
    poll: Poll,
    last_poll: u64,
    settled: Settled,
    heartbeat_interval: Duration,
    next_heartbeat: Duration,
    next_report: Duration,
    sequence: u64,
    lost_at: Option<Duration>,
    last_reason: String,
}

impl SessionThread {
    /// A session that registers as soon as there is a connection.
    pub fn new(parts: Parts) -> Self {
        let now = boottime();
        Self {
            standing: Standing::Unregistered { retry_at: now },
            registration: None,
            registered_at: Duration::ZERO,
            backlog: VecDeque::new(),
            poll: Poll::None { due: now },
            last_poll: 0,
            settled: Settled::default(),
            heartbeat_interval: Duration::from_secs(10),
            next_heartbeat: now,
            next_report: now,
            sequence: 0,
            lost_at: None,
            last_reason: String::new(),
            parts,
        }
    }

    /// Runs until it is told to close.
    pub fn run(mut self) {
        loop {
            while let Some(order) = self.backlog.pop_front().or_else(|| self.parts.orders.try_recv().ok()) {
                if let Order::Close = order {
                    return;
                }
                self.obey(order);
            }
            let urgency = urgency(self.parts.snapshot.latest().attempts.iter().map(|attempt| attempt.phase));
            self.parts.master.lane().set_urgency(urgency);
            self.act(boottime());
            let due = self.due();
            let event = self.parts.master.next(due);
            self.handle(event);
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::SettlePoll { poll, taken, refused } => {
                let pause = if taken.is_empty() { POLL_PAUSE } else { Duration::ZERO };
                self.settled.taken.extend(taken);
                self.settled.refused.extend(refused);
                if matches!(self.poll, Poll::Deciding { number } if number == poll) {
                    self.poll = Poll::None { due: boottime() + pause };
                }
            }
            Order::AnswerCancel { key, state, reason } => {
                if self.is_registered() {
                    self.parts.master.answer_cancel(&key, state, &reason);
                }
            }
            Order::TokenRefused if self.is_registered() => self.unregister(Duration::ZERO),
            // A new one is on its way.
            Order::TokenRefused => {}
            Order::ReportInterval(interval) => self.parts.report_interval = interval,
            Order::Close => {}
        }
    }

    fn is_registered(&self) -> bool {
        matches!(self.standing, Standing::Registered { .. })
    }

    /// When something is due, if nothing happens before.
    fn due(&self) -> Duration {
        match &self.standing {
            Standing::Unregistered { retry_at } => *retry_at,
            Standing::Registering => Duration::MAX,
            Standing::Registered { renew_at } => {
                let poll = match self.poll {
                    Poll::None { due } => due,
                    _ => Duration::MAX,
                };
                poll.min(self.next_heartbeat).min(self.next_report).min(*renew_at)
            }
        }
    }

    fn act(&mut self, now: Duration) {
        match self.standing {
            Standing::Unregistered { retry_at } if now >= retry_at => return self.register(None),
            Standing::Registered { renew_at } if now >= renew_at => return self.register(None),
            Standing::Registered { .. } => {}
            _ => return,
        }
        let snapshot = self.parts.snapshot.latest();
        if now >= self.next_heartbeat {
            self.next_heartbeat = now + self.heartbeat_interval;
            self.sequence += 1;
            self.parts.master.heartbeat(self.sequence, &snapshot);
            self.tell_calls();
        }
        if now >= self.next_report {
            self.next_report = now + self.parts.report_interval;
            self.sequence += 1;
            self.parts.master.report(self.sequence, &snapshot);
        }
        match &self.poll {
            Poll::None { due } if now >= *due => self.open_poll(&snapshot),
            // The master must know at once what has become free, or is no longer.
            Poll::Open { call, free, .. } if *free != snapshot.free => {
                let call = *call;
                self.parts.master.give_up(call);
                self.open_poll(&snapshot);
            }
            _ => {}
        }
    }

    fn open_poll(&mut self, snapshot: &Snapshot) {
        self.last_poll += 1;
        let call = self.parts.master.assign(self.last_poll, snapshot, POLL_WAIT, &self.settled);
        self.poll = Poll::Open { call, free: snapshot.free };
    }

    fn register(&mut self, nonce: Option<&[u8]>) {
        self.standing = Standing::Registering;
        let snapshot = self.parts.snapshot.latest();
        self.registration = Some(self.parts.master.register(&snapshot, nonce));
    }

    fn unregister(&mut self, pause: Duration) {
        if let Poll::Open { call, .. } = self.poll {
            self.parts.master.give_up(call);
        }
        self.poll = Poll::None { due: boottime() };
        let retry_at = (boottime() + pause).max(self.registered_at + REGISTER_PAUSE);
        self.standing = Standing::Unregistered { retry_at };
        self.share(Session::default());
    }

    fn share(&self, session: Session) {
        self.parts.session.set(session);
        (self.parts.session_changed)();
    }

    fn handle(&mut self, event: MasterEvent) {
        match event {
            MasterEvent::Connected => self.handle_connected(),
            MasterEvent::Disconnected(reason) => self.handle_lost(&reason),
            MasterEvent::Reply(call, reply) => {
                if matches!(self.poll, Poll::Open { call: poll, .. } if call > poll) && !self.settled.taken.is_empty() {
                    failpoint::pass(FailPoint::Confirmed);
                }
                self.handle_reply(reply);
            }
            MasterEvent::Failed(call, error, _) => self.handle_failure(call, &error),
            MasterEvent::Woken | MasterEvent::TimedOut => {}
        }
    }

    fn handle_connected(&mut self) {
        self.last_reason.clear();
        if let Poll::None { due } = &mut self.poll {
            *due = boottime();
        }
        let away = self.lost_at.take().map_or(Duration::ZERO, |at| boottime().saturating_sub(at));
        if away >= REGISTER_AFTER && self.is_registered() {
            self.unregister(Duration::ZERO);
        } else if let Standing::Unregistered { retry_at } = &mut self.standing {
            *retry_at = Duration::ZERO;
        }
    }

    fn handle_lost(&mut self, reason: &str) {
        let now = boottime();
        self.lost_at.get_or_insert(now);
        let hint = if reason.contains("HTTP/1.1") {
            "; is this a master's gRPC port? MASTER_GRPC_URL names another"
        } else {
            ""
        };
        let reason = format!("{}{hint}", printable(reason));
        if reason != self.last_reason {
            warn!("no connection to the master at {}: {reason}", self.parts.master.lane().target());
            self.last_reason.clone_from(&reason);
        }
        self.tell(Event::MasterLost { detail: reason });
    }

    fn handle_reply(&mut self, reply: Reply) {
        match reply {
            Reply::Nonce(nonce) => self.register(Some(&nonce)),
            Reply::Registered(registration) => self.handle_registered(*registration),
            Reply::Heartbeat { lease, trust_percent, orders } => {
                self.tell(Event::MasterHeard { lease, trust_percent });
                self.handle_orders(orders);
            }
            Reply::Reported(orders) => self.handle_orders(orders),
            Reply::Assigned { poll, offers, orders } => {
                // The answer confirms that what the poll said has arrived.
                self.settled = Settled::default();
                self.tell(Event::MasterHeard { lease: None, trust_percent: None });
                if offers.is_empty() {
                    self.poll = Poll::None { due: boottime() + POLL_PAUSE };
                } else {
                    failpoint::pass(FailPoint::AnswerRead);
                    self.poll = Poll::Deciding { number: poll };
                    self.tell(Event::Offers { poll, offers });
                }
                self.handle_orders(orders);
            }
            Reply::Submitted { .. } | Reply::CancelNoted => {}
        }
    }

    fn handle_registered(&mut self, registration: Registration) {
        let now = boottime();
        info!("registered with the master as {}", printable(&registration.node_id));
        // Renewed at four fifths of its life, so that no call ever carries a dead one.
        let life = (registration.token_life / 5 * 4).max(REGISTER_PAUSE);
        self.standing = Standing::Registered { renew_at: now + life };
        self.registered_at = now;
        self.heartbeat_interval = registration.heartbeat_interval;
        self.next_heartbeat = now;
        let here = Duration::from_millis(unix_ms());
        if let Some(words) = registration.server_time.and_then(|there| clock_words(here, there)) {
            warn!("{words}");
            self.tell(Event::Alert(words));
        }
        if let Err(words) = self.parts.master.learn_signing_key(&registration.signing_key) {
            warn!("{words}");
            self.tell(Event::Alert(words));
        }
        self.parts.master.set_session(&registration.node_id, Some(registration.session_token.clone()));
        self.share(Session {
            node_id: registration.node_id.clone(),
            token: Some(SessionToken(registration.session_token)),
        });
        self.tell(Event::Registered {
            node_id: registration.node_id,
            lease: registration.lease,
            trust_percent: registration.trust_percent,
            superseded: registration.superseded,
        });
    }

    fn handle_orders(&mut self, orders: Orders) {
        for cancellation in orders.cancellations {
            self.tell(Event::Cancel {
                key: cancellation.key,
                reason: cancellation.reason,
                is_superseded: cancellation.is_superseded,
            });
        }
        for directive in orders.directives {
            match directive {
                Directive::RegisterAgain => self.unregister(Duration::ZERO),
                directive => self.tell(Event::Directed(directive)),
            }
        }
    }

    fn handle_failure(&mut self, call: CallId, error: &CallError) {
        self.tell_calls();
        if self.standing == Standing::Registering && self.registration == Some(call) {
            return self.handle_refused_registration(error);
        }
        if let Poll::Open { call: open, .. } = self.poll
            && open == call
        {
            self.poll = Poll::None { due: boottime() + FAILED_POLL_PAUSE };
            if error.is_answer_too_large {
                warn!("the master's answer with tasks can't be read: {}", error.status.message);
                self.settled.was_too_large = true;
            }
        }
        if error.status.code == Code::Unauthenticated && self.is_registered() && Some(call) > self.registration {
            info!("the master wants this node to register again: {}", printable(&error.status.message));
            self.unregister(Duration::ZERO);
        }
    }

    fn handle_refused_registration(&mut self, error: &CallError) {
        let pause = match error.status.code {
            Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::Unimplemented => {
                REFUSED_PAUSE
            }
            _ => REGISTER_PAUSE,
        };
        let detail = format!("registration failed: {:?}: {}", error.status.code, printable(&error.status.message));
        if detail != self.last_reason {
            warn!("{detail}");
            self.last_reason.clone_from(&detail);
        }
        self.standing = Standing::Unregistered { retry_at: boottime() + pause };
        self.tell(Event::MasterLost { detail });
    }

    fn tell_calls(&mut self) {
        let calls = self.parts.master.tally().read();
        self.tell(Event::MasterCalls(calls));
    }

    fn tell(&mut self, event: Event) {
        let sent = loop {
            select! {
                send(self.parts.events, event) -> sent => break sent,
                recv(self.parts.orders) -> order => match order {
                    Ok(order) => self.backlog.push_back(order),
                    Err(_) => break self.parts.events.send(event),
                },
            }
        };
        if sent.is_err() {
            // The coordinator has ended; this thread is about to be told to.
            log::debug!("nobody hears the session any more");
        }
    }
}

/// Results wait for a session as much as for the lane that carries them.
fn urgency(mut phases: impl Iterator<Item = Phase>) -> Urgency {
    match phases.any(|phase| phase == Phase::Reporting) {
        true => Urgency::ResultsWait,
        false => Urgency::Normal,
    }
}

/// What the owner should know of a clock that is far from the master's. In whole units, so that the same is said again
/// in the same words.
fn clock_words(here: Duration, there: Duration) -> Option<String> {
    let off = here.abs_diff(there);
    if off <= CLOCK_SLACK {
        return None;
    }
    let side = if here < there { "behind" } else { "ahead of" };
    let minutes = off.as_secs() / 60;
    let much = match minutes {
        0..120 => format!("{minutes} minutes"),
        120..2_880 => format!("{} hours", minutes / 60),
        _ => format!("{} days", minutes / 1_440),
    };
    Some(format!(
        "the clock of this machine is {much} {side} the master's: set it right. Tasks are not affected, but times in log \
         and reports are wrong"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_waits_makes_it_urgent() {
        assert_eq!(urgency([Phase::Running, Phase::Reporting].into_iter()), Urgency::ResultsWait);
        assert_eq!(urgency([Phase::Running, Phase::Collecting].into_iter()), Urgency::Normal);
    }

    #[test]
    fn a_clock_that_is_far_off_is_told_in_words() {
        const DAY: u64 = 86_400;
        let now = 20_000 * DAY;
        for (here, words) in [
            (now, None),
            (now - 120, None),
            (now + 120, None),
            (now - 121, Some("is 2 minutes behind the master's")),
            (now + 3 * 3_600, Some("is 3 hours ahead of the master's")),
            (0, Some("is 20000 days behind the master's")),
        ] {
            let said = clock_words(Duration::from_secs(here), Duration::from_secs(now));
            assert_eq!(said.is_some(), words.is_some(), "{here}: {said:?}");
            assert!(words.is_none_or(|words| said.unwrap().contains(words)), "{here}");
        }
    }
}
