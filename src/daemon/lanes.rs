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
use crate::rpc::method::Tally;
use crate::rpc::proxy::{Proxy, ProxyRules};
use crate::rpc::signing::Signing;
use crate::rpc::tls::{self, Identity, Roots, TlsError, TrustedTime};
use crate::session::{self, Session, SessionThread};
use crate::store::Store;
use crate::submit::{self, SubmitThread};
use crate::sys::watch::Watch;

/// Orders wait here only while the session handles one answer.
const MAX_ORDERS: usize = 256;
/// rustls and a message of 4 MiB live on the heap; the stack holds one frame at a time.
const STACK_BYTES: usize = 1 << 20;

/// Where the lanes go and with what.
pub struct Route {
    target: Target,
    /// With the time that certificates are checked at.
    tls: Option<(Arc<rustls::ClientConfig>, Arc<TrustedTime>)>,
    proxy: Option<Proxy>,
}

impl Route {
    /// From the owner's configuration.
    ///
    /// # Errors
    /// There is no master, the token would go over an open line without the owner's word, or a certificate, key or proxy
    /// can't be used.
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
        let target = Target::parse(&shown(url)).map_err(|error| error.to_string())?;
        let rules = ProxyRules {
            https_proxy: config.https_proxy.as_ref().map(|text| text.expose().as_str()),
            http_proxy: config.http_proxy.as_ref().map(|text| text.expose().as_str()),
            no_proxy: config.no_proxy.as_deref(),
        };
        let proxy = rules.pick(&target).map_err(|(key, problem)| config.refuse(key, &problem))?;
        let tls = url.is_https.then(|| encryption(config)).transpose().map_err(|error| words(&error))?;
        Ok(Self { target, tls, proxy })
    }

    /// To a master on this machine.
    ///
    /// # Errors
    /// The URL can't be used.
    pub fn plain(url: &str) -> Result<Self, String> {
        let target = Target::parse(url).map_err(|error| error.to_string())?;
        Ok(Self { target, tls: None, proxy: None })
    }

    /// For people.
    pub fn url(&self) -> String {
        self.target.to_string()
    }

    /// The proxy on the way, for people.
    pub fn proxy(&self) -> Option<String> {
        self.proxy.as_ref().map(Proxy::to_string)
    }

    fn master(&self, introduction: &Arc<Introduction>) -> Result<(Master, Waker), String> {
        let config = LaneConfig {
            target: self.target.clone(),
            tls: self.tls.as_ref().map(|(tls, _)| Arc::clone(tls)),
            proxy: self.proxy.clone(),
            user_agent: concat!("hivemind-worker/", env!("CARGO_PKG_VERSION")).to_owned(),
            seed: random_seed()?,
        };
        let lane = Lane::new(config).map_err(|error| format!("can't make a lane to the master: {error}"))?;
        let waker = lane.waker();
        let mut master = Master::new(lane, Arc::clone(introduction));
        if let Some((_, time)) = &self.tls {
            master.set_clock(Arc::clone(time));
        }
        Ok((master, waker))
    }
}

fn encryption(config: &Config) -> Result<(Arc<rustls::ClientConfig>, Arc<TrustedTime>), TlsError> {
    let roots = config.master_ca_file.clone().map_or(Roots::System, Roots::File);
    let files = config.master_client_files.as_ref();
    let identity = files.map(|(chain, key)| Identity::from_files(chain, key)).transpose()?;
    let time = Arc::new(TrustedTime::default());
    let tls = tls::client_config(&roots, identity.as_ref(), &time)?;
    Ok((tls, time))
}

fn words(error: &TlsError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("failed to {error}: {source}"),
        None => format!("failed to {error}"),
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
    /// What offers are checked with.
    pub signing: Signing,
}

impl Lanes {
    /// Starts the threads `session` and `submit`.
    ///
    /// # Errors
    /// The system has no descriptor or thread to give.
    pub fn start(route: &Route, needs: Needs) -> Result<Self, String> {
        let (session_orders, session_inbox) = bounded(MAX_ORDERS);
        let (submit_orders, submit_inbox) = bounded(MAX_ORDERS);
        let (mut session_master, session_waker) = route.master(&needs.introduction)?;
        let (mut submit_master, submit_waker) = route.master(&needs.introduction)?;
        let tally = Arc::new(Tally::default());
        session_master.set_signing(needs.signing);
        session_master.set_tally(Arc::clone(&tally));
        submit_master.set_tally(tally);
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
