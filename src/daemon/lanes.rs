//! The two lanes to the master: where they go, under which terms, and their threads.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use crate::config::{Config, MasterUrl};
use crate::coordinator::Event;
use crate::node::snapshot::Snapshot;
use crate::rpc::Waker;
use crate::rpc::dial::Target;
use crate::rpc::lane::{Lane, LaneConfig};
use crate::rpc::master::{Introduction, Master};
use crate::rpc::tls::{self, Roots};
use crate::session::{self, Session, SessionThread};
use crate::store::Store;
use crate::submit::{self, SubmitThread};
use crate::sys::time::unix_ms;
use crate::sys::watch::Watch;

/// Orders wait here only while the session handles one answer.
const MAX_ORDERS: usize = 256;
/// rustls and a message of 4 MiB live on the heap; the stack holds one frame at a time.
const STACK_BYTES: usize = 1 << 20;
/// 2026-11-24, when this was written: a board whose clock says less has none, and must still be able to connect.
const NOT_BEFORE: Duration = Duration::from_secs(1_795_478_400);

/// Where the lanes go and with what.
pub struct Route {
    target: Target,
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Route {
    /// From the owner's configuration.
    ///
    /// # Errors
    /// There is no master, or the token would go over an open line without the owner's word.
    pub fn from_config(config: &Config) -> Result<Self, String> {
        let url = config.master_grpc_url.as_ref().or(config.master_url.as_ref());
        let url = url.ok_or_else(|| "no master is set".to_owned())?;
        if !url.is_https && !url.is_loopback() && !config.is_plaintext_allowed {
            return Err(format!(
                "{} is plain HTTP: the token and all results could be read and changed on the way. Use https://, or set \
                 HIVEMIND_ALLOW_PLAINTEXT=yes if the network itself is trusted",
                shown(url)
            ));
        }
        let roots = config.master_ca_file.clone().map_or(Roots::System, Roots::File);
        Self::new(&shown(url), &roots)
    }

    /// To this URL.
    ///
    /// # Errors
    /// The URL, or the certificate authorities, can't be used.
    pub fn new(url: &str, roots: &Roots) -> Result<Self, String> {
        let target = Target::parse(url).map_err(|error| error.to_string())?;
        let is_encrypted = url.starts_with("https://");
        let clock = tls::Clock(|| Duration::from_millis(unix_ms()).max(NOT_BEFORE));
        let config = is_encrypted.then(|| tls::client_config(roots, Arc::new(clock))).transpose();
        let tls = config.map_err(|error| match std::error::Error::source(&error) {
            Some(source) => format!("failed to {error}: {source}"),
            None => format!("failed to {error}"),
        })?;
        Ok(Self { target, tls })
    }

    /// For people.
    pub fn url(&self) -> String {
        self.target.to_string()
    }

    fn master(&self, introduction: &Arc<Introduction>) -> Result<(Master, Waker), String> {
        let config = LaneConfig {
            target: self.target.clone(),
            tls: self.tls.clone(),
            proxy: None,
            user_agent: concat!("hivemind-worker/", env!("CARGO_PKG_VERSION")).to_owned(),
            seed: random_seed()?,
        };
        let lane = Lane::new(config).map_err(|error| format!("can't make a lane to the master: {error}"))?;
        let waker = lane.waker();
        Ok((Master::new(lane, Arc::clone(introduction)), waker))
    }
}

fn shown(url: &MasterUrl) -> String {
    let scheme = if url.is_https { "https" } else { "http" };
    format!("{scheme}://{}", url.authority())
}

fn random_seed() -> Result<u64, String> {
    let random = ring::rand::generate::<[u8; 8]>(&ring::rand::SystemRandom::new());
    random.map(|bytes| u64::from_le_bytes(bytes.expose())).map_err(|_| "the system gives no random bytes".to_owned())
}

/// The running lanes.
pub struct Lanes {
    /// To the session.
    pub session_orders: Sender<session::Order>,
    /// Wakes the session.
    pub session_waker: Waker,
    submit_orders: Sender<submit::Order>,
    submit_waker: Waker,
    threads: Vec<JoinHandle<()>>,
}

/// What the lanes need of the node.
pub struct Needs {
    /// Who the node is.
    pub introduction: Arc<Introduction>,
    /// The node as it is.
    pub snapshot: Watch<Snapshot>,
    /// To the coordinator.
    pub events: Sender<Event>,
    /// What is to be delivered.
    pub store: Store,
    /// Between reports.
    pub report_interval: Duration,
}

impl Lanes {
    /// Starts the threads `session` and `submit`.
    ///
    /// # Errors
    /// The system has no descriptor or thread to give.
    pub fn start(route: &Route, needs: Needs) -> Result<Self, String> {
        let (session_orders, session_inbox) = bounded(MAX_ORDERS);
        let (submit_orders, submit_inbox) = bounded(MAX_ORDERS);
        let (session_master, session_waker) = route.master(&needs.introduction)?;
        let (submit_master, submit_waker) = route.master(&needs.introduction)?;
        let session = Watch::new(Session::default());
        let outbox = needs.store.outbox();
        outbox.set_waker(waking(&submit_waker));
        let session_thread = SessionThread::new(session::Parts {
            master: session_master,
            snapshot: needs.snapshot,
            events: needs.events,
            orders: session_inbox,
            session: session.clone(),
            session_changed: waking(&submit_waker),
            report_interval: needs.report_interval,
        });
        let submit_thread = SubmitThread::new(submit::Parts {
            master: submit_master,
            outbox,
            session,
            orders: submit_inbox,
            session_orders: session_orders.clone(),
            wake_session: waking(&session_waker),
        });
        let threads = vec![spawn("session", || session_thread.run())?, spawn("submit", || submit_thread.run())?];
        Ok(Self { session_orders, session_waker, submit_orders, submit_waker, threads })
    }

    /// Ends both threads and waits for them.
    pub fn release(self) {
        // A thread that has ended already takes no order.
        let _ = self.session_orders.send(session::Order::Close);
        let _ = self.submit_orders.send(submit::Order::Close);
        self.session_waker.wake();
        self.submit_waker.wake();
        for thread in self.threads {
            if thread.join().is_err() {
                log::error!("a lane's thread ended by a panic");
            }
        }
    }
}

fn waking(waker: &Waker) -> Box<dyn Fn() + Send + Sync> {
    let waker = waker.clone();
    Box::new(move || waker.wake())
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, String> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(run)
        .map_err(|error| format!("can't start the thread {name}: {error}"))
}
