//! A blocking client for unary calls, several at a time on one connection: what another crate uses.
//!
//! ```no_run
//! use std::time::Duration;
//! use hivemind_worker::grpc::{Metadata, Request};
//! use hivemind_worker::rpc::client::{Client, Options};
//!
//! let mut client = Client::connect("http://127.0.0.1:50051", &Options::default())?;
//! let request = Request {
//!     path: "/package.Service/Method".into(),
//!     metadata: Metadata::default(),
//!     body: b"message".to_vec(),
//!     timeout: Duration::from_secs(10),
//!     max_response: 4 << 20,
//! };
//! let first = client.start(request.clone());
//! let second = client.start(request);
//! println!("{:?} {:?}", client.finish(second), client.finish(first));
//! # Ok::<(), hivemind_worker::rpc::client::ConnectError>(())
//! ```
//!
//! A call fails fast: where there is no connection and the next attempt to have one fails, it is UNAVAILABLE, with the
//! reason. A connection that is lost is made again by the next call. Built on the same lane that the node's threads use.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::dial::{Scheme, Target, TargetError};
use super::lane::{Lane, LaneConfig, LaneEvent};
use super::proxy::{self, Proxy};
use super::tls::{self, Identity, Roots, TlsError, TrustedTime};
use crate::grpc::{CallError, CallId, Code, Processed, Request, Response};
use crate::sys::clock::boottime;

/// How a client connects.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose certificates are trusted, for `https`.
    pub roots: Roots,
    /// What a server that asks for a client certificate gets.
    pub identity: Option<Identity>,
    /// How the connection goes there.
    pub route: Route,
    /// Sent with each call.
    pub user_agent: String,
    /// How long [`Client::connect`] may take.
    pub connect_timeout: Duration,
}

impl Default for Options {
    /// The system's authorities, no client certificate, the environment's proxy, 20 s.
    fn default() -> Options {
        Options {
            roots: Roots::System,
            identity: None,
            route: Route::default(),
            user_agent: concat!("hivemind-worker/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(20),
        }
    }
}

/// The way to a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Route {
    /// Through the proxy that `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` name, if they do: see [`super::proxy`].
    #[default]
    Environment,
    /// To the server itself.
    Direct,
    /// Through this HTTP proxy.
    Proxy(Proxy),
}

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// The URL is none.
    Url(TargetError),
    /// TLS can't be set up with these options.
    Tls(TlsError),
    /// A variable of the environment names no proxy that can be used: which, and why.
    Proxy(&'static str, String),
    /// The server can't be reached or does not speak HTTP/2; why, for people.
    Unavailable(String),
    /// This machine lacks what it needs, such as descriptors.
    System(io::Error),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Url(error) => error.fmt(f),
            ConnectError::Tls(error) => error.fmt(f),
            ConnectError::Proxy(name, reason) => write!(f, "{name}: {reason}"),
            ConnectError::Unavailable(reason) => f.write_str(reason),
            ConnectError::System(error) => write!(f, "make a connection: {error}"),
        }
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConnectError::Url(error) => Some(error),
            ConnectError::Tls(error) => Some(error),
            ConnectError::Proxy(..) | ConnectError::Unavailable(_) => None,
            ConnectError::System(error) => Some(error),
        }
    }
}

/// One server, at most one connection at a time that takes new calls.
#[derive(Debug)]
pub struct Client {
    lane: Lane,
    /// Calls that have not ended; few at a time.
    open: Vec<CallId>,
    /// Ends that were not asked for yet.
    ended: BTreeMap<CallId, Result<Response, CallError>>,
}

impl Client {
    /// Connects to `http(s)://host[:port]` and waits until the server has shown that it speaks HTTP/2.
    pub fn connect(url: &str, options: &Options) -> Result<Client, ConnectError> {
        let target = Target::parse(url).map_err(ConnectError::Url)?;
        let tls = match target.scheme {
            Scheme::Http => Ok(None),
            Scheme::Https => {
                let time = Arc::new(TrustedTime::default());
                tls::client_config(&options.roots, options.identity.as_ref(), &time).map(Some)
            }
        };
        let tls = tls.map_err(ConnectError::Tls)?;
        let proxy = match &options.route {
            Route::Environment => proxy::pick_from(&|name| std::env::var(name).ok(), &target)
                .map_err(|(name, reason)| ConnectError::Proxy(name, reason))?,
            Route::Direct => None,
            Route::Proxy(proxy) => Some(proxy.clone()),
        };
        let config = LaneConfig {
            target,
            tls,
            proxy,
            user_agent: options.user_agent.clone(),
            // Jitter is for many nodes; this is one client.
            seed: boottime().subsec_nanos().into(),
        };
        let mut lane = Lane::new(config).map_err(ConnectError::System)?;
        let give_up = boottime() + options.connect_timeout;
        loop {
            match lane.next(give_up) {
                LaneEvent::Connected { .. } => break,
                LaneEvent::Disconnected { reason, .. } => return Err(ConnectError::Unavailable(reason)),
                LaneEvent::TimedOut => return Err(ConnectError::Unavailable("no connection in time".to_owned())),
                LaneEvent::Answer { .. } | LaneEvent::Woken => {}
            }
        }
        Ok(Client { lane, open: Vec::new(), ended: BTreeMap::new() })
    }

    /// Makes a call and waits for its end.
    pub fn unary(&mut self, request: Request) -> Result<Response, CallError> {
        let id = self.start(request);
        self.finish(id)
    }

    /// Starts a call beside those that run. It goes on in [`Client::finish`] and [`Client::next_end`].
    pub fn start(&mut self, request: Request) -> CallId {
        // A call that comes while the lane waits is what asks for the next attempt.
        self.lane.retry_now();
        let id = self.lane.call(request);
        self.open.push(id);
        id
    }

    /// Waits for the end of a call. One that was never started, or whose end was given already, is an error.
    pub fn finish(&mut self, id: CallId) -> Result<Response, CallError> {
        loop {
            if let Some(result) = self.ended.remove(&id) {
                return result;
            }
            if !self.open.contains(&id) {
                return Err(CallError::new(Code::FailedPrecondition, "there is no such call", Processed::No));
            }
            // The usual call is the only one: its end takes no way through the maps.
            match self.wait() {
                Some((ended, result)) if ended == id => return result,
                Some((ended, result)) => drop(self.ended.insert(ended, result)),
                None => {}
            }
        }
    }

    /// Waits for the end of any call; `None` when none runs.
    pub fn next_end(&mut self) -> Option<(CallId, Result<Response, CallError>)> {
        loop {
            if let Some(end) = self.ended.pop_first() {
                return Some(end);
            }
            if self.open.is_empty() {
                return None;
            }
            if let Some(end) = self.wait() {
                return Some(end);
            }
        }
    }

    /// Gives a call up: the server is told, and the call has no end any more.
    pub fn cancel(&mut self, id: CallId) {
        self.forget(id);
        self.ended.remove(&id);
        self.lane.cancel(id);
    }

    /// Calls that have not ended.
    pub fn open_calls(&self) -> usize {
        self.open.len()
    }

    fn forget(&mut self, id: CallId) {
        if let Some(place) = self.open.iter().position(|open| *open == id) {
            self.open.swap_remove(place);
        }
    }

    /// Waits for what happens next on the lane. Each call has a deadline, so it does not wait for ever.
    fn wait(&mut self) -> Option<(CallId, Result<Response, CallError>)> {
        match self.lane.next(Duration::MAX) {
            LaneEvent::Answer { id, result } => {
                self.forget(id);
                Some((id, result))
            }
            LaneEvent::Disconnected { reason, retry_at } => {
                if retry_at > boottime() {
                    self.fail_queued(&reason);
                }
                None
            }
            LaneEvent::Connected { .. } | LaneEvent::Woken | LaneEvent::TimedOut => None,
        }
    }

    fn fail_queued(&mut self, reason: &str) {
        for id in self.lane.take_queued() {
            self.forget(id);
            self.ended.insert(id, Err(CallError::new(Code::Unavailable, reason, Processed::No)));
        }
    }
}
