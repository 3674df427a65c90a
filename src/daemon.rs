//! Wires the node together: the only module that knows all others. Start, signals, shutdown.
//!
//! | thread | stack | does | released by |
//! | --- | --- | --- | --- |
//! | main | the system's | start, signals, shutdown | a signal |
//! | signals | 128 KiB | hands signals over | drop of `SignalSource` |
//! | coordinator | 1 MiB | decides (`daemon::driver`) | its own `Exit` |
//! | store | see `store` | database and spool | `Store::close` |
//! | session, submit | 1 MiB | the lanes (`daemon::lanes`) | order `Close` and waker |
//! | resolve | see `rpc::resolve` | one look-up of the master's name, which can't be interrupted | its own end |
//! | collector | 512 KiB | collects what is left over (`sandbox::collector`) | `Collector::release` |
//! | engine-events | 512 KiB | the engine's state and events (`sandbox::engine`) | `EngineWatch::release` |
//! | egress, program | 1 MiB, 128 KiB | the firewall's rules for tasks (`sandbox::guard`); an nft's pipes | `EgressGuard::release`; nft's end |
//! | sampler | 256 KiB | looks at the machine | drop of its channel |
//! | monitor-* | see `monitor` | page, API, control socket | `Monitor::stop` |
//! | task-N, call-N, output-N | 512, 512, 256 KiB | one attempt (`sandbox::task`) | the attempt's desired state; `Stop` for calls and output |
//! | fetch-dial | 256 KiB | name and connection of a fetch, neither of which can be interrupted (`fetch::dial`) | its own end, at most 20 s after the resolver's |
//! | pull-N | 512 KiB | one pull, for all tasks that want it (`sandbox::pulls`) | the last of them that leaves |
//! | inputs, stats | 256, 512 KiB | an input archive; figures where no cgroup is seen | the end of the pipe; the call's deadline |
//! | master | 1 MiB | standalone mode's small master | `Master::stop` |

mod driver;
mod lanes;
mod lives;
mod logs;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, after, bounded, never, select};
use log::{info, warn};

use self::driver::{Driver, HeldCell};
use self::lanes::{Lanes, Needs, Route};
use self::lives::{Lives, SHORT_LIFE};
use crate::config::{Config, Shutdown};
use crate::coordinator::{Coordinator, Event, Held, Past, Settings, ShutdownMode};
use crate::docker::{Docker, DockerHost, NodeTimeouts};
use crate::fetch::Fetcher;
use crate::host::{self, Sampler};
use crate::monitor::{Monitor, MonitorConfig, Submissions};
use crate::node::action::Action;
use crate::node::guard::Guard;
use crate::node::id::AttemptKey;
use crate::node::snapshot::{EngineView, MasterView, Snapshot};
use crate::rpc::key::NodeKey;
use crate::rpc::master::Introduction;
use crate::rpc::signing::Signing;
use crate::sandbox::{self, Collector, CollectorParts, Context, Egress, EgressGuard, EgressSettings};
use crate::sandbox::{EngineNews, EngineWatch, Hooks, Identity, Index, Registries, Stock, StockSettings, Volumes};
use crate::standalone::{Master, MasterConfig};
use crate::store::{BundleLimits, Bundles, PackageLimits, Packages, Recovered, Store, StoreConfig, StoreEvent};
use crate::sys::clock::boottime;
use crate::sys::lock::StateLock;
use crate::sys::private::private_dir;
use crate::sys::signal::{Signal, SignalSource};
use crate::sys::time::{boot_id, unix_ms};
use crate::sys::watch::Watch;

/// Events that wait for the coordinator. Senders wait when it is full.
const MAX_EVENTS: usize = 1_024;
/// What the store has to say. It must never wait for a coordinator that waits for it: more than the tickets that can be
/// under way and the attempts that the spool can hold.
const MAX_STORE_EVENTS: usize = 16_384;
/// Wishes of the owner that wait; the monitor answers 503 beyond.
const MAX_ACTIONS: usize = 64;
/// Ended attempts that are remembered over a restart. A master repeats an offer within minutes, or not at all.
const MAX_REMEMBERED: u32 = 1_000;
/// Between two looks at the machine.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Between the first two looks.
const FIRST_SAMPLES: Duration = Duration::from_secs(1);
/// A worker that was told to stop is gone after this, whatever hangs.
const STOP_WITHIN: Duration = Duration::from_secs(29);
/// A worker that leaves its containers alone has nothing to wait for.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// What the last reports get to reach the master; the rest stays in the spool.
const LAST_DELIVERY: Duration = Duration::from_secs(2);
/// The driver handles one event at a time.
const COORDINATOR_STACK_BYTES: usize = 1 << 20;
/// The sampler reads small files.
const SAMPLER_STACK_BYTES: usize = 256 << 10;
/// Deadlines of engine calls between two looks at a task: a wish of the coordinator waits no longer than this.
const QUICK_TIMEOUTS: NodeTimeouts =
    NodeTimeouts { connect: Duration::from_secs(2), quick: Duration::from_secs(5), slow: Duration::from_secs(10) };

/// What the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A node of a master elsewhere.
    Node,
    /// A node and a small master.
    Standalone,
}

/// Why the worker does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operator has to change the configuration or the machine: exit code 78.
    Setup(String),
    /// Something else.
    Other(String),
}

/// How the daemon reads its configuration again at SIGHUP.
pub type Reload<'a> = &'a dyn Fn() -> Result<Config, String>;
/// How it changes the level of the log.
pub type SetLogLevel<'a> = &'a dyn Fn(log::LevelFilter);

/// Runs until a signal ends it.
///
/// # Errors
/// What is missing and how to mend it.
pub fn run(config: Config, mode: Mode, reload: Reload<'_>, set_log_level: SetLogLevel<'_>) -> Result<(), Fault> {
    private_dir(&config.state_dir).map_err(|error| setup(&error))?;
    let _lock = StateLock::acquire(&config.state_dir).map_err(|error| setup(&error))?;
    let signals = SignalSource::start().map_err(|error| other("can't catch signals", &error))?;
    let (mut lives, past) = Lives::begin(&config.state_dir, config.crash_limit);
    let worker = match Worker::start(&config, mode, past) {
        Ok(worker) => worker,
        Err(fault) => {
            lives.end();
            return Err(fault);
        }
    };
    let outcome = worker.attend(config, &mut lives, signals.receiver(), reload, set_log_level);
    let ending = worker.stop(outcome);
    lives.end();
    if ending == Ending::Forced {
        // Threads that hang can't be joined. The store has synced what it promised; the rest is the next start's.
        std::process::exit(1);
    }
    Ok(())
}

/// The proxy on the way to the master, for people; what of the way can't be used, when something can't.
///
/// # Errors
/// Says which key, certificate or file is wrong.
pub fn proxy_to_master(config: &Config) -> Result<Option<String>, String> {
    Route::from_config(config).map(|route| route.proxy())
}

/// An error with all its causes, as one line.
fn setup(error: &dyn std::error::Error) -> Fault {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    Fault::Setup(causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")))
}

fn other(what: &str, error: &dyn std::fmt::Display) -> Fault {
    Fault::Other(format!("{what}: {error}"))
}

/// How the wait for the end went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The coordinator said so.
    Clean,
    /// Told twice, or too slow.
    Forced,
}

struct Worker {
    store: Store,
    lanes: Lanes,
    /// None in the safe state.
    engine: Option<EngineWatch>,
    /// None in the safe state.
    collector: Option<Collector>,
    egress: EgressGuard,
    monitor: Monitor,
    master: Option<Master>,
    sampler: (Sender<()>, JoinHandle<()>),
    events: Sender<Event>,
    done: Receiver<Receiver<StoreEvent>>,
}

impl Worker {
    fn start(config: &Config, mode: Mode, past: Past) -> Result<Self, Fault> {
        let key = Arc::new(NodeKey::load_or_make(&config.state_dir).map_err(|error| setup(&error))?);
        let host = DockerHost::parse(&config.docker_host).map_err(|error| setup(&error))?;
        let master = match mode {
            Mode::Node => None,
            Mode::Standalone => Some(start_master(config)?),
        };
        let route = match &master {
            None => Route::from_config(config),
            Some(master) => Route::plain(&master.url()),
        };
        let route = route.map_err(Fault::Setup)?;
        let signing_key = master.as_ref().map_or(config.master_signing_key, |master| Some(master.signing_key()));
        let signing = Signing::load(&config.state_dir, &route.url(), signing_key).map_err(Fault::Setup)?;
        let fetcher = fetcher(config)?;
        let registries = registries(config)?;
        let (store_sender, store_events) = bounded(MAX_STORE_EVENTS);
        let store_config = StoreConfig {
            log_budget_bytes: config.log_budget_bytes,
            waiting_logs_bytes: config.waiting_logs_bytes,
            ..StoreConfig::default()
        };
        // The receiver lives as long as the coordinator and the last delivery; later events interest nobody.
        let notify = Box::new(move |event| store_sender.send(event).unwrap_or_default());
        let (store, recovered) = Store::open(&config.state_dir, store_config, notify).map_err(|error| setup(&error))?;

        let limits = BundleLimits { bytes: config.bundles_bytes, age: config.bundle_age };
        let bundles = Arc::new(Bundles::open(&config.state_dir, limits));

        let book = Arc::new(sandbox::Book::open(store.clone()));
        let stock = Arc::new(Stock::open(&config.state_dir, stock_settings(config)));

        let (events, event_inbox) = bounded(MAX_EVENTS);
        let (actions, action_inbox) = bounded(MAX_ACTIONS);
        let mut view = first_view(config, mode, &route, &recovered);
        let snapshot = Watch::new(view.clone());
        let desk = master.as_ref().map(Master::desk);
        let (collector_asks, collector_inbox) = sandbox::asks();
        let logs =
            logs::NodeLogs { store: store.clone(), desk, bundles: Arc::clone(&bundles), collector: collector_asks };
        let monitor = start_monitor(config, &snapshot, actions, logs)?;
        view.monitor = monitor_url(&monitor);
        let identity = Identity::new(config.node_id.as_str(), key.public());
        let volumes = Volumes::new(config.task_disk, &config.state_dir, identity.clone());
        let volumes = volumes.map_err(|reason| Fault::Setup(config.refuse("HIVEMIND_TASK_DISK", &reason)))?;
        let volumes = Arc::new(volumes);
        let held_specs: Vec<_> = recovered.attempts.iter().map(|attempt| attempt.spec.clone()).collect();
        let is_safe = past.safe_because.is_some();
        let mut coordinator = coordinator(config, past, view, recovered);
        coordinator.remember_over(store.history(MAX_REMEMBERED, None).into_iter().rev().map(|row| row.key));
        snapshot.set(coordinator.snapshot());
        let held = HeldCell::new(coordinator.held());

        let lanes = Lanes::start(
            &route,
            Needs {
                introduction: Arc::new(Introduction {
                    node_id: config.node_id.to_string(),
                    key,
                    join_token: config.token.as_ref().map(|token| token.expose().clone()),
                    labels: config.labels.clone(),
                }),
                snapshot: snapshot.clone(),
                events: events.clone(),
                store: store.clone(),
                report_interval: config.report_interval,
                signing,
            },
        )
        .map_err(Fault::Other)?;
        let docker = Docker::new(host.clone(), NodeTimeouts::default());
        let quick_docker = Docker::new(host, QUICK_TIMEOUTS);
        let egress = EgressSettings::new(config.spec_defaults.network.clone(), config.egress_dns.clone());
        let egress = EgressGuard::start((&docker, &quick_docker), identity.clone(), egress, &held_specs)
            .map_err(|error| other("can't guard the tasks' networks", &error))?;
        let watch = || {
            watch_engine(
                &docker,
                identity.clone(),
                (events.clone(), egress.egress()),
                held.clone(),
                (Arc::clone(&volumes), Arc::clone(&stock.packages)),
            )
        };
        let engine = (!is_safe).then(watch).transpose()?;
        let collect = || {
            let (identity, bundles, held) = (identity.clone(), Arc::clone(&bundles), held.clone());
            let volumes = Arc::clone(&volumes);
            let is_held = Box::new(move |key: &AttemptKey| held.latest().contains(key));
            let (docker, images, stock) = (docker.clone(), Arc::clone(&book), Arc::clone(&stock));
            let parts = CollectorParts { docker, identity, bundles, images, volumes, is_held, stock };
            let started = Collector::start(parts, collector_inbox);
            started.map_err(|error| other("can't start the collector", &error))
        };
        let collector = (!is_safe).then(collect).transpose()?;
        let sampler = start_sampler(&config.state_dir, events.clone())?;
        let context = Context {
            docker,
            fetcher,
            quick_docker,
            store: store.clone(),
            identity,
            egress: egress.egress(),
            clock: boottime,
            boot_id: boot_id().unwrap_or_default(),
            bundles: Arc::clone(&bundles),
            stock: Arc::clone(&stock),
            pull_limit: config.pull_limit,
            images: sandbox::Images::new(registries, Arc::clone(&book)),
            volumes,
        };
        let driver = Driver::new(driver::Parts {
            coordinator,
            store: store.clone(),
            context: Arc::new(context),
            events: (events.clone(), event_inbox),
            store_events,
            actions: action_inbox,
            snapshot,
            held,
            session: (lanes.session_orders.clone(), lanes.session_waker.clone()),
        });
        let done = start_driver(driver)?;
        tell_start(config, mode, &monitor);
        Ok(Self { store, lanes, engine, egress, collector, monitor, master, sampler, events, done })
    }

    /// Waits for signals until the coordinator has ended.
    fn attend(
        &self,
        mut config: Config,
        lives: &mut Lives,
        signals: &Receiver<Signal>,
        reload: Reload<'_>,
        set_log_level: SetLogLevel<'_>,
    ) -> Option<Receiver<StoreEvent>> {
        let mut deadline = never();
        let mut lasted = after(SHORT_LIFE);
        let mut was_told = false;
        loop {
            select! {
                recv(lasted) -> _ => {
                    lives.has_lasted();
                    lasted = never();
                }
                recv(self.done) -> store_events => return store_events.ok(),
                recv(deadline) -> _ => {
                    warn!("something does not end: leaving it to the next start");
                    return None;
                }
                recv(signals) -> signal => match signal {
                    Ok(Signal::Hangup) => self.reconfigure(&mut config, reload, set_log_level),
                    _ if was_told => {
                        warn!("told twice: ending at once");
                        return None;
                    }
                    _ => {
                        was_told = true;
                        let mode = shutdown_mode(config.shutdown);
                        info!("shutting down: {mode:?}; a second signal ends at once");
                        match mode {
                            ShutdownMode::Stop => deadline = after(STOP_WITHIN),
                            ShutdownMode::Leave => deadline = after(LEAVE_WITHIN),
                            ShutdownMode::Finish => {}
                        }
                        self.tell(Event::Shutdown(mode));
                    }
                },
            }
        }
    }

    fn reconfigure(&self, config: &mut Config, reload: Reload<'_>, set_log_level: SetLogLevel<'_>) {
        let new = match reload() {
            Ok(new) => new,
            Err(error) => return warn!("the configuration stays as it was: {error}"),
        };
        let reloaded = config.reload(&new);
        *config = reloaded.config;
        set_log_level(config.log_level);
        self.tell(Event::Reconfigured { settings: settings(config), report_interval: config.report_interval });
        info!("configuration read again; changed: {:?}", reloaded.changed);
        if !reloaded.needs_restart.is_empty() {
            warn!("changed, but only a restart can use it: {:?}", reloaded.needs_restart);
        }
    }

    fn tell(&self, event: Event) {
        if self.events.send(event).is_err() {
            log::error!("the coordinator has ended");
        }
    }

    /// Ends all threads in the order in which they use each other.
    fn stop(self, store_events: Option<Receiver<StoreEvent>>) -> Ending {
        let ending = if store_events.is_some() { Ending::Clean } else { Ending::Forced };
        if let Some(store_events) = store_events {
            self.await_last_delivery(&store_events);
        }
        if ending == Ending::Forced {
            info!("ended");
            return ending;
        }
        self.lanes.release();
        if let Some(engine) = self.engine {
            engine.release();
        }
        if let Some(collector) = self.collector {
            collector.release();
        }
        self.egress.release();
        self.monitor.stop();
        if let Some(master) = self.master {
            master.stop();
        }
        drop(self.sampler.0);
        if self.sampler.1.join().is_err() {
            log::error!("the sampler ended by a panic");
        }
        self.store.close();
        info!("ended");
        ending
    }

    fn await_last_delivery(&self, store_events: &Receiver<StoreEvent>) {
        let end = after(LAST_DELIVERY);
        while self.store.outbox().pending().0 > 0 {
            select! {
                recv(store_events) -> event => if event.is_err() { return },
                recv(end) -> _ => return,
            }
        }
    }
}

fn fetcher(config: &Config) -> Result<Fetcher, Fault> {
    // This version builds no tunnel, whose networks would stand here.
    let guard = Guard::new(config.fetch_allowed.clone(), Vec::new());
    let made = Fetcher::new(guard, config.fetch_ca_file.clone());
    made.map_err(|problem| Fault::Setup(config.refuse("HIVEMIND_FETCH_CA_FILE", &problem)))
}

fn registries(config: &Config) -> Result<Registries, Fault> {
    let login = config.registry_login.clone();
    let registries = login.map_or_else(Registries::default, |(file, hosts)| Registries::new(file, hosts));
    let checked = registries.check();
    checked.map_err(|problem| Fault::Setup(config.refuse("HIVEMIND_REGISTRY_AUTH_FILE", &problem)))?;
    Ok(registries)
}

fn stock_settings(config: &Config) -> StockSettings {
    StockSettings {
        kept_bytes: config.kept_bytes,
        packages: PackageLimits { bytes: config.packages_bytes, age: config.package_age },
        index: Index { url: config.package_index.clone(), ca_file: config.package_index_ca_file.clone() },
        prepare_limit: config.prepare_limit,
    }
}

fn shutdown_mode(choice: Shutdown) -> ShutdownMode {
    match choice {
        Shutdown::Stop => ShutdownMode::Stop,
        Shutdown::Finish => ShutdownMode::Finish,
        Shutdown::Leave => ShutdownMode::Leave,
    }
}

fn settings(config: &Config) -> Settings {
    Settings { lent: config.lent, defaults: config.spec_defaults.clone(), alerts: config.alerts }
}

fn first_view(config: &Config, mode: Mode, route: &Route, recovered: &Recovered) -> Snapshot {
    Snapshot {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node_id: config.node_id.to_string(),
        started_ms: unix_ms(),
        is_standalone: mode == Mode::Standalone,
        machine: host::machine_facts(),
        master: MasterView { url: route.url(), detail: "not connected yet".to_owned(), ..MasterView::default() },
        engine: EngineView { detail: "not looked at yet".to_owned(), ..EngineView::default() },
        history: recovered.history.clone(),
        alerts: recovered.warnings.clone(),
        ..Snapshot::default()
    }
}

fn coordinator(config: &Config, past: Past, view: Snapshot, recovered: Recovered) -> Coordinator {
    for warning in &recovered.warnings {
        warn!("{warning}");
    }
    let held = recovered.attempts.into_iter().map(|attempt| Held {
        spec: attempt.spec,
        phase: attempt.phase,
        marks: attempt.marks,
        report: attempt.final_report,
        logs: attempt.logs,
    });
    Coordinator::after(past, settings(config), view, held.collect(), boottime(), unix_ms())
}

fn tell_start(config: &Config, mode: Mode, monitor: &Monitor) {
    let lent = &config.lent;
    info!(
        "hivemind-worker {} as {}: state folder {}, monitor {}, lends {} CPUs, {} MiB of memory, {} MiB of disk, {} slots",
        env!("CARGO_PKG_VERSION"),
        config.node_id,
        config.state_dir.display(),
        monitor_url(monitor),
        lent.cpu_millis as f64 / 1_000.0,
        lent.memory_bytes >> 20,
        lent.disk_bytes >> 20,
        lent.slots,
    );
    if mode == Mode::Standalone {
        info!("give it tasks with: hivemind-worker submit FILE|FOLDER --wait --state {}", config.state_dir.display());
    }
}

fn start_master(config: &Config) -> Result<Master, Fault> {
    let folder = config.state_dir.join("master");
    let master = MasterConfig { defaults: config.spec_defaults.clone(), ..MasterConfig::new(folder) };
    Master::start(master).map_err(|error| other("can't start the small master", &error))
}

fn start_monitor(
    config: &Config,
    snapshot: &Watch<Snapshot>,
    actions: Sender<Action>,
    logs: logs::NodeLogs,
) -> Result<Monitor, Fault> {
    let mut addresses = vec![config.monitor];
    if config.monitor.ip().is_loopback() && config.monitor.is_ipv4() && config.monitor.port() != 0 {
        addresses.push((std::net::Ipv6Addr::LOCALHOST, config.monitor.port()).into());
    }
    let is_run_dir_there = Path::new(crate::config::SERVICE_SOCKET).parent().is_some_and(|folder| folder.is_dir());
    let monitor_config = MonitorConfig {
        addresses,
        control_socket: config.control_socket(is_run_dir_there),
        ..MonitorConfig::new(&config.state_dir)
    };
    let submissions = logs.desk.clone().map(|desk| Arc::new(desk) as Arc<dyn Submissions>);
    Monitor::start(monitor_config, snapshot.clone(), actions, submissions, Arc::new(logs)).map_err(|error| {
        Fault::Setup(format!("can't start the monitor: {error}; --monitor-port N (or MONITOR_PORT) names another port"))
    })
}

fn monitor_url(monitor: &Monitor) -> String {
    monitor.local_addresses().first().map_or_else(String::new, |address| format!("http://{address}/monitor.html"))
}

fn watch_engine(
    docker: &Docker,
    identity: Identity,
    (events, egress): (Sender<Event>, Egress),
    held: Watch<BTreeSet<AttemptKey>>,
    (volumes, packages): (Arc<Volumes>, Arc<Packages>),
) -> Result<EngineWatch, Fault> {
    let hooks = Hooks {
        // A send fails only when the coordinator has ended, and this thread is released then.
        tell: Box::new(move |news| {
            if let EngineNews::View(EngineView { is_usable: true, .. }) = news {
                egress.engine_is_new();
            }
            let event = match news {
                EngineNews::View(view) => Event::Engine(view),
                EngineNews::Container(key) => Event::EngineNews(key),
            };
            events.send(event).unwrap_or_default();
        }),
        is_held: Box::new(move |key| held.latest().contains(key)),
        volumes,
        packages,
    };
    EngineWatch::start(docker, identity, hooks).map_err(|error| other("can't watch the engine", &error))
}

fn start_sampler(state_dir: &Path, events: Sender<Event>) -> Result<(Sender<()>, JoinHandle<()>), Fault> {
    let (end, ended) = bounded::<()>(0);
    let mut sampler = Sampler::new(state_dir);
    let thread = thread::Builder::new()
        .name("sampler".to_owned())
        .stack_size(SAMPLER_STACK_BYTES)
        .spawn(move || {
            // Shares of time need two looks, so the second follows soon. The channel carries nothing: it only breaks when
            // the worker ends.
            let mut pause = FIRST_SAMPLES;
            while events.send(Event::Host(sampler.sample())).is_ok() {
                let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(pause) else { return };
                pause = SAMPLE_EVERY;
            }
        })
        .map_err(|error| other("can't start the sampler", &error))?;
    Ok((end, thread))
}

fn start_driver(driver: Driver) -> Result<Receiver<Receiver<StoreEvent>>, Fault> {
    let (sender, done) = bounded(1);
    thread::Builder::new()
        .name("coordinator".to_owned())
        .stack_size(COORDINATOR_STACK_BYTES)
        .spawn(move || {
            // Main waits for this, or is about to end the process.
            let _ = sender.send(driver.run());
        })
        .map_err(|error| other("can't start the coordinator", &error))?;
    Ok(done)
}
