//! A lane: one thread's connection to a server, that comes back by itself.
//!
//! ```text
//!             .---------------- connection failed or ended ----------------.
//!             v                                                            |
//!        +---------+  time is up  +---------+  connected   +------------+  |
//!        | waiting |------------->| dialing |------------->|    up      |--+
//!        +---------+              +---------+              +------------+  |
//!             ^                        |                         | GOAWAY, calls under way
//!             '------------------------'                         v
//!                       failed                              (draining, beside the next connection)
//! ```
//!
//! A lane blocks in [`Lane::next`] only, in poll(2), and is released by its [`Waker`].

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::backoff::{Backoff, Urgency};
use super::dial::{Dial, Progress, Scheme, Target};
use super::link::{Answer, Link};
use super::poll::{self, Interest};
use super::proxy::Proxy;
use super::socket::Socket;
use super::tls;
use super::transport::Transport;
use super::wake::{Wake, Waker};
use crate::grpc::{CallError, CallId, Client, ClientConfig, Code, Processed, Request, Response, WaitingCall};
use crate::h2::{Instant, KeepAlive};
use crate::sys::clock::boottime;

/// PINGs while calls run: below the minute after which many NAT boxes forget a connection.
const KEEPALIVE: KeepAlive = KeepAlive { idle: Duration::from_secs(20), timeout: Duration::from_secs(10) };
/// Calls that wait for a connection. A lane has about eight calls under way; more would only reach their deadline here.
const MAX_QUEUED: usize = 64;
/// Connections whose calls the server still finishes. A proxy that ends one after few calls soon has several, while a
/// long poll waits on the first of them; each holds a socket.
const MAX_DRAINING: usize = 6;

/// What a lane is made with.
pub struct LaneConfig {
    /// Where it goes.
    pub target: Target,
    /// From [`tls::client_config`]; needed for `https`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Which proxy it goes through: what [`super::proxy::ProxyRules`] picked.
    pub proxy: Option<Proxy>,
    /// Sent with each call.
    pub user_agent: String,
    /// Of the jitter: different on each node and lane.
    pub seed: u64,
}

/// What happened on a lane.
#[derive(Debug)]
pub enum LaneEvent {
    /// The server speaks HTTP/2; queued calls are sent.
    Connected {
        /// Its address, or that of the proxy.
        peer: SocketAddr,
    },
    /// There is no connection for new calls, or an attempt to have one failed.
    Disconnected {
        /// Why, for people.
        reason: String,
        /// When the next attempt begins.
        retry_at: Instant,
    },
    /// A call has ended. Each call that is not cancelled ends exactly once.
    Answer {
        /// This call.
        id: CallId,
        /// How.
        result: Result<Response, CallError>,
    },
    /// The [`Waker`] was used.
    Woken,
    /// The time that was given to [`Lane::next`] has come.
    TimedOut,
}

#[derive(Debug)]
enum State {
    Waiting { until: Instant },
    Dialing(Box<Dial>),
    Up { link: Box<Link>, was_ready: bool },
}

/// One thread's connection to a server.
#[derive(Debug)]
pub struct Lane {
    target: Target,
    tls: Option<Arc<rustls::ClientConfig>>,
    proxy: Option<Proxy>,
    user_agent: String,
    wake: Wake,
    state: State,
    /// The connections before, whose calls the server still finishes, and whether the last poll found them readable.
    draining: VecDeque<(Box<Link>, bool)>,
    /// Calls that wait for a connection, with their deadlines.
    queue: VecDeque<WaitingCall>,
    next_id: u64,
    backoff: Backoff,
    urgency: Urgency,
    answers: VecDeque<Answer>,
    events: VecDeque<LaneEvent>,
    /// What the last poll found readable.
    is_woken: bool,
    can_read: bool,
}

impl Lane {
    /// A lane that connects at its first [`Lane::next`].
    pub fn new(config: LaneConfig) -> io::Result<Lane> {
        if config.target.scheme == Scheme::Https && config.tls.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an https target needs a TLS configuration"));
        }
        Ok(Lane {
            target: config.target,
            tls: config.tls,
            proxy: config.proxy,
            user_agent: config.user_agent,
            wake: Wake::new()?,
            state: State::Waiting { until: Duration::ZERO },
            draining: VecDeque::new(),
            queue: VecDeque::new(),
            next_id: 0,
            backoff: Backoff::new(config.seed),
            urgency: Urgency::Normal,
            answers: VecDeque::new(),
            events: VecDeque::new(),
            is_woken: false,
            can_read: false,
        })
    }

    /// Wakes [`Lane::next`] from another thread.
    pub fn waker(&self) -> Waker {
        self.wake.waker()
    }

    /// Where the lane goes.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether a new call would be sent at once.
    pub fn is_connected(&self) -> bool {
        matches!(&self.state, State::Up { link, .. } if link.is_ready)
    }

    /// How long waits between attempts may grow. With results waiting a wait that is longer is cut.
    pub fn set_urgency(&mut self, urgency: Urgency) {
        if self.urgency == urgency {
            return;
        }
        self.urgency = urgency;
        if let (State::Waiting { until }, Urgency::ResultsWait) = (&mut self.state, urgency) {
            let now = boottime();
            *until = (*until).min(now + self.backoff.failed(now, urgency));
        }
    }

    /// Connects now instead of waiting, for instance since the network changed.
    pub fn retry_now(&mut self) {
        if let State::Waiting { until } = &mut self.state {
            *until = Duration::ZERO;
        }
    }

    /// Makes a call. It waits for a connection if there is none; its time runs from now.
    pub fn call(&mut self, request: Request) -> CallId {
        self.next_id += 1;
        let id = CallId(self.next_id);
        let now = boottime();
        if let State::Up { link, .. } = &mut self.state
            && link.is_ready
        {
            link.client.call(id, request, now);
        } else if self.queue.len() < MAX_QUEUED {
            let deadline = now.saturating_add(request.timeout);
            self.queue.push_back(WaitingCall { id, request, deadline, is_second_try: false });
        } else {
            let words = "too many calls wait for a connection";
            self.answers.push_back((id, Err(CallError::new(Code::ResourceExhausted, words, Processed::No))));
        }
        id
    }

    /// Takes back the calls that wait for a connection.
    pub fn take_queued(&mut self) -> Vec<CallId> {
        self.queue.drain(..).map(|call| call.id).collect()
    }

    /// Gives a call up; it has no answer then, unless that was there already.
    pub fn cancel(&mut self, id: CallId) {
        let now = boottime();
        self.queue.retain(|call| call.id != id);
        if let State::Up { link, .. } = &mut self.state {
            link.client.cancel(id, now);
        }
        self.draining.iter_mut().for_each(|(link, _)| link.client.cancel(id, now));
    }

    /// Waits for what happens next, at most until this time. With a time that has passed it looks once and returns.
    pub fn next(&mut self, until: Instant) -> LaneEvent {
        let mut has_looked = false;
        loop {
            let now = boottime();
            self.drive(now);
            if let Some((id, result)) = self.answers.pop_front() {
                return LaneEvent::Answer { id, result };
            }
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            if std::mem::take(&mut self.is_woken) && self.wake.take() {
                return LaneEvent::Woken;
            }
            if has_looked && now >= until {
                return LaneEvent::TimedOut;
            }
            self.wait(now, until);
            has_looked = true;
        }
    }

    /// Does all that can be done without waiting.
    fn drive(&mut self, now: Instant) {
        self.expire_queue(now);
        self.drive_draining(now);
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Waiting { until: now }) {
                State::Waiting { until } if now < until => return self.state = State::Waiting { until },
                State::Waiting { .. } => State::Dialing(Box::new(Dial::new(&self.target, self.proxy.as_ref(), now))),
                State::Dialing(mut dial) => match dial.advance(now) {
                    Progress::Pending => return self.state = State::Dialing(dial),
                    Progress::Connected(socket, peer) => self.link(socket, peer, now),
                    Progress::Failed(reason) => self.disconnected(reason, now),
                },
                State::Up { link, was_ready } => match self.drive_up(link, was_ready, now) {
                    state @ State::Up { .. } => return self.state = state,
                    state => state,
                },
            };
        }
    }

    fn link(&mut self, socket: TcpStream, peer: SocketAddr, now: Instant) -> State {
        let socket = match Socket::new(socket) {
            Ok(socket) => socket,
            Err(error) => return self.disconnected(format!("set up the socket to {peer}: {error}"), now),
        };
        let transport = match (&self.tls, self.target.scheme) {
            (Some(config), Scheme::Https) => match tls::session(config, &self.target.host) {
                Ok(session) => Transport::tls(socket, session.into(), self.target.host.clone()),
                Err(reason) => return self.disconnected(reason, now),
            },
            _ => Transport::Plain(socket),
        };
        let client = ClientConfig {
            scheme: self.target.scheme.as_str(),
            authority: self.target.authority(),
            user_agent: self.user_agent.clone(),
            keepalive: Some(KEEPALIVE),
        };
        self.can_read = true;
        let mut client = Client::new(client, now);
        client.retry_unprocessed();
        let link = Box::new(Link::new(transport, client, peer));
        State::Up { link, was_ready: false }
    }

    fn drive_up(&mut self, mut link: Box<Link>, was_ready: bool, now: Instant) -> State {
        let can_read = std::mem::take(&mut self.can_read);
        let answered = self.answers.len();
        let driven = link.drive(now, can_read, &mut self.answers);
        if self.answers.iter().skip(answered).any(|(_, result)| has_begun(result)) {
            self.backoff.served();
        }
        if let Err(end) = driven {
            self.requeue(&mut link);
            return match end.is_orderly {
                true => self.go_on(end.reason, now),
                false => self.disconnected(end.reason, now),
            };
        }
        if link.is_ready && !was_ready {
            self.backoff.connected(now);
            self.events.push_back(LaneEvent::Connected { peer: link.peer });
        }
        if link.client.is_closing() {
            self.requeue(&mut link);
            if link.client.open_calls() > 0 {
                // It goes on with these.
                self.backoff.served();
            }
            if self.draining.len() == MAX_DRAINING
                && let Some((mut oldest, _)) = self.draining.pop_front()
            {
                oldest.close(now, &mut self.answers);
                self.requeue(&mut oldest);
            }
            self.draining.push_back((link, false));
            return self.go_on("server is closing the connection".into(), now);
        }
        if link.is_ready && !self.queue.is_empty() {
            for call in self.queue.drain(..) {
                link.client.resume(call, now);
            }
            // They are written, and those that fail at once are answered.
            if let Err(end) = link.drive(now, false, &mut self.answers) {
                self.requeue(&mut link);
                return self.disconnected(end.reason, now);
            }
        }
        let was_ready = link.is_ready;
        State::Up { link, was_ready }
    }

    fn drive_draining(&mut self, now: Instant) {
        let (answers, queue) = (&mut self.answers, &mut self.queue);
        // How one ends is of no interest: its calls are answered in each case, or made again.
        self.draining.retain_mut(|(link, can_read)| {
            let is_open = link.drive(now, std::mem::take(can_read), answers).is_ok();
            queue.extend(link.client.take_waiting());
            is_open
        });
    }

    /// Calls that a connection has not begun wait for the next one.
    fn requeue(&mut self, link: &mut Link) {
        self.queue.extend(link.client.take_waiting());
    }

    /// The server has ended a connection that served: the next one is tried at once, and only if that fails is it waited
    /// (RFC 9113 section 6.8).
    fn go_on(&mut self, reason: String, now: Instant) -> State {
        if !self.backoff.may_go_on() {
            return self.disconnected(reason, now);
        }
        self.events.push_back(LaneEvent::Disconnected { reason, retry_at: now });
        State::Waiting { until: now }
    }

    fn disconnected(&mut self, reason: String, now: Instant) -> State {
        let until = now + self.backoff.failed(now, self.urgency);
        self.events.push_back(LaneEvent::Disconnected { reason, retry_at: until });
        State::Waiting { until }
    }

    fn expire_queue(&mut self, now: Instant) {
        let answers = &mut self.answers;
        self.queue.retain(|call| {
            let is_late = call.deadline <= now;
            if is_late {
                answers.push_back((call.id, Err(CallError::deadline_exceeded(Processed::No))));
            }
            !is_late
        });
    }

    /// The one blocking point.
    fn wait(&mut self, now: Instant, until: Instant) {
        let queued = self.queue.iter().map(|call| call.deadline);
        let draining = self.draining.iter().filter_map(|(link, _)| link.client.poll_timeout());
        let due = queued.chain(draining).chain(self.state_timeout()).chain([until]).min().unwrap_or(until);
        // Where nobody can wake the lane and there is only one socket, the read itself may wait.
        if let State::Up { link, .. } = &mut self.state
            && self.draining.is_empty()
            && !self.wake.has_wakers()
            && link.wait(due.saturating_sub(now))
        {
            self.can_read = true;
            return;
        }
        let wake = Interest::read(self.wake.as_fd());
        let link = match &self.state {
            State::Up { link, .. } => Some(link.interest()),
            State::Waiting { .. } | State::Dialing(_) => None,
        };
        let (has_link, draining_place) = (link.is_some(), 1 + usize::from(link.is_some()));
        let draining = self.draining.iter().map(|(link, _)| link.interest());
        let (mut interests, mut count) = ([wake; 2 + MAX_DRAINING], 0);
        for (slot, interest) in interests.iter_mut().zip([wake].into_iter().chain(link).chain(draining)) {
            *slot = interest;
            count += 1;
        }
        let interests = interests.get(..count).unwrap_or_default();
        let ready = match &self.state {
            // Whatever of it is ready, the dial finds out by itself.
            State::Dialing(dial) => {
                let all: Vec<Interest<'_>> = interests.iter().copied().chain(dial.interests()).collect();
                poll::wait(&all, due.saturating_sub(now))
            }
            State::Waiting { .. } | State::Up { .. } => poll::wait(interests, due.saturating_sub(now)),
        };
        self.is_woken = ready.has(0);
        self.can_read = has_link && ready.has(1);
        for (i, (_, can_read)) in self.draining.iter_mut().enumerate() {
            *can_read = ready.has(draining_place + i);
        }
    }

    fn state_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting { until } => Some(*until),
            State::Dialing(dial) => Some(dial.poll_timeout()),
            State::Up { link, .. } => link.client.poll_timeout(),
        }
    }
}

/// Whether the server has begun a call, as far as we know.
fn has_begun(result: &Result<Response, CallError>) -> bool {
    result.as_ref().map_or_else(|error| error.processed == Processed::Maybe, |_| true)
}

impl Drop for Lane {
    /// Says goodbye, as far as the sockets take it without waiting.
    fn drop(&mut self) {
        let now = boottime();
        if let State::Up { link, .. } = &mut self.state {
            link.client.close(now);
            link.close(now, &mut self.answers);
        }
        for (link, _) in &mut self.draining {
            link.close(now, &mut self.answers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::Metadata;

    /// Nothing listens there: port 1 of loopback.
    fn lane(url: &str) -> io::Result<Lane> {
        let target = Target::parse(url).unwrap();
        Lane::new(LaneConfig { target, tls: None, proxy: None, user_agent: "test".into(), seed: 3 })
    }

    fn request(timeout: Duration) -> Request {
        let metadata = Metadata::default();
        Request { path: "/a/b".into(), metadata, body: Vec::new(), timeout, max_response: 10 }
    }

    #[test]
    fn tls_is_never_left_out() {
        assert!(lane("https://127.0.0.1:1").is_err());
    }

    #[test]
    fn queue_is_bounded_and_calls_in_it_can_be_cancelled() {
        let mut lane = lane("http://127.0.0.1:1").unwrap();
        let first = lane.call(request(Duration::ZERO));
        lane.cancel(first);
        for _ in 0..MAX_QUEUED {
            lane.call(request(Duration::from_secs(60)));
        }
        let last = lane.call(request(Duration::from_secs(60)));
        let LaneEvent::Answer { id, result } = lane.next(boottime()) else { panic!("no answer") };
        assert_eq!((id, result.unwrap_err().status.code), (last, Code::ResourceExhausted));
    }

    #[test]
    fn refused_connection_is_told_with_its_reason_and_tried_again() {
        let mut lane = lane("http://127.0.0.1:1").unwrap();
        for _ in 0..2 {
            let LaneEvent::Disconnected { reason, retry_at } = lane.next(boottime() + Duration::from_secs(60)) else {
                panic!("connected");
            };
            assert!(reason.contains("127.0.0.1:1"), "{reason}");
            assert!(retry_at <= boottime() + Duration::from_secs(2));
            lane.retry_now();
        }
        lane.waker().wake();
        lane.set_urgency(Urgency::ResultsWait);
        assert!(!lane.is_connected());
        assert!((0..10).any(|_| matches!(lane.next(boottime()), LaneEvent::Woken)));
    }
}
