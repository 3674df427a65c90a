//! A real worker process, a master of the test's own, and the real engine of this machine.
//!
//! Nothing here waits for a time: [`until`] looks for a condition until it holds or the test has failed. A task that has
//! to wait for the test does so for a signal ([`GATED`]), which the engine passes on.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hivemind_worker::docker::{Docker, DockerHost, Event as EngineEvent, EventAction, EventFilter, NodeTimeouts, Stop};
use hivemind_worker::monitor::{SubmissionView, Submissions};
use hivemind_worker::node::id::Id;
use hivemind_worker::node::net::NetworkPolicy;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{Event, EventKind, FinalReport, Outcome, Phase};
use hivemind_worker::node::runtime::Runtimes;
use hivemind_worker::node::snapshot::{NodeState, Snapshot};
use hivemind_worker::node::spec::SpecDefaults;
use hivemind_worker::rpc::key::NodeKey;
use hivemind_worker::sandbox::Identity;
use hivemind_worker::standalone::core::Terms;
use hivemind_worker::standalone::{Desk, Master, MasterConfig, record};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

mod address;
pub mod link;
pub mod namespace;
pub mod neighbourhood;
pub mod own_engine;
mod programs;
pub mod python_master;
pub mod relay;
mod volumes;

#[allow(unused_imports, reason = "each test file uses a part")]
pub use programs::{GATED, gated, python};

pub use python_master::Contract;
use python_master::PythonMaster;

/// Whose master a scene has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MasterKind {
    /// Ours, in the test's own process.
    BuiltIn,
    /// The one in Python.
    Python(Contract),
}

/// Makes tests of functions that take a [`MasterKind`]: what delivery promises, it promises with each master.
#[allow(unused_macros, reason = "each test file uses a part")]
macro_rules! for_each_master {
    ($($name:ident),* $(,)?) => {
        mod built_in {
            $(#[test] fn $name() { super::$name(super::node_util::MasterKind::BuiltIn); })*
        }
        mod python {
            $(#[test] fn $name() {
                super::$name(super::node_util::MasterKind::Python(super::node_util::Contract::Ours));
            })*
        }
        mod newer_python {
            $(#[test] fn $name() {
                super::$name(super::node_util::MasterKind::Python(super::node_util::Contract::Newer));
            })*
        }
    };
}
#[allow(unused_imports, reason = "each test file uses a part")]
pub(crate) use for_each_master;

/// Longest wait for anything on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until there is something to see.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

/// As [`until`], for what is true or not yet.
pub fn until_true(what: &str, mut look: impl FnMut() -> bool) {
    until(what, || look().then_some(()));
}

/// The engine that `DOCKER_HOST` names, or the machine's.
pub fn engine_host() -> DockerHost {
    std::env::var("DOCKER_HOST").map_or_else(|_| DockerHost::default(), |text| text.parse().unwrap())
}

/// A node's folder, its worker, its master, and what the engine says of its containers.
pub struct Scene {
    /// Everything of this test is below it.
    pub dir: PathBuf,
    /// The test's own way to the engine.
    pub docker: Docker,
    /// Whose containers are this node's.
    pub identity: Identity,
    /// The worker, when one was started.
    pub worker: Option<Child>,
    /// Words before each command of the binary, such as those that lead into a name space.
    pub prefix: Vec<String>,
    /// Variables of the worker's environment.
    pub env: Vec<(String, String)>,
    /// What the next master tells its nodes.
    pub terms: Terms,
    /// What our master lets tasks ask for.
    pub limits: SpecDefaults,
    kind: MasterKind,
    /// Where our first master listens.
    pub listen: Ipv4Addr,
    master: Option<Master>,
    master_address: Option<SocketAddr>,
    /// One process for the whole scene: it goes away and comes back by word.
    python: Option<Arc<PythonMaster>>,
    is_forgotten: bool,
    engine_says: Arc<Mutex<Vec<EngineEvent>>>,
    listener: (Stop, Option<JoinHandle<()>>),
}

impl Scene {
    /// A node without a worker and a master.
    pub fn new(name: &str) -> Self {
        let mut scene = Self::with_engine(name, engine_host());
        // Else a worker of this scene would not get it: its environment is empty.
        scene.env.push(("DOCKER_HOST".to_owned(), engine_host().to_string()));
        scene
    }

    /// As [`Self::new`], with an engine of the test's own for the test. The worker is told of it by its environment.
    pub fn with_engine(name: &str, host: DockerHost) -> Self {
        let dir = std::env::temp_dir().join(format!("hivemind-node-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        DirBuilder::new().mode(0o700).create(&dir).unwrap();
        DirBuilder::new().mode(0o700).create(dir.join("state")).unwrap();
        let key = NodeKey::load_or_make(&dir.join("state")).unwrap();
        let identity = Identity::new(name, key.public());
        let docker = Docker::new(host, NodeTimeouts::default());
        docker.ping().expect("these tests need a Docker engine: scripts/test.sh starts one");
        let stop = Stop::new();
        let filter = EventFilter { labels: vec![identity.filter()], since_ns: None };
        let events = docker.with_stop(&stop).events(&filter).unwrap();
        let engine_says = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&engine_says);
        let thread = thread::spawn(move || {
            for event in events.map_while(Result::ok) {
                heard.lock().unwrap().push(event);
            }
        });
        Self {
            dir,
            docker,
            identity,
            worker: None,
            prefix: Vec::new(),
            env: Vec::new(),
            listen: address::own(),
            terms: Terms { heartbeat_interval: Duration::from_secs(1), ..Terms::default() },
            limits: SpecDefaults::default(),
            kind: MasterKind::BuiltIn,
            master: None,
            master_address: None,
            python: None,
            is_forgotten: false,
            engine_says,
            listener: (stop, Some(thread)),
        }
    }

    /// A node with our master.
    pub fn with_master(name: &str) -> Self {
        Self::of(MasterKind::BuiltIn, name)
    }

    /// A node with a master of this kind.
    pub fn of(kind: MasterKind, name: &str) -> Self {
        let mut scene = Self::without_master(kind, name);
        scene.start_master();
        scene
    }

    /// A node whose master, of this kind, does not run yet.
    pub fn without_master(kind: MasterKind, name: &str) -> Self {
        let suffix = match kind {
            MasterKind::BuiltIn => "",
            MasterKind::Python(Contract::Ours) => "-py",
            MasterKind::Python(Contract::Newer) => "-newer",
        };
        let mut scene = Self::new(&format!("{name}{suffix}"));
        scene.kind = kind;
        scene
    }

    // ---- the master

    /// Starts the master on the folder and the port that it had.
    pub fn start_master(&mut self) {
        if let MasterKind::Python(contract) = self.kind {
            return self.start_python(contract);
        }
        let listen = self.master_address.unwrap_or_else(|| (self.listen, 0).into());
        // What a node's owner allows is the node's to judge.
        let defaults =
            SpecDefaults { network: NetworkPolicy::everything(), runtimes: Runtimes::Any, ..self.limits.clone() };
        let terms = self.terms.clone();
        let config = MasterConfig { listen, terms, defaults, ..MasterConfig::new(self.dir.join("master")) };
        let master = Master::start(config).unwrap();
        self.master_address = Some(master.address());
        self.master = Some(master);
    }

    fn start_python(&mut self, contract: Contract) {
        match &self.python {
            Some(python) => {
                python.ask(json!({"do": "back", "forget": self.is_forgotten}));
                self.is_forgotten = false;
            }
            None => {
                let python = PythonMaster::start(contract);
                self.master_address = Some(python.address);
                self.python = Some(Arc::new(python));
            }
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap();
        self.python().set(json!({
            "heartbeat_interval_ms": millis(self.terms.heartbeat_interval),
            "lease_ms": millis(self.terms.lease),
        }));
    }

    /// The master in Python.
    pub fn python(&self) -> &PythonMaster {
        self.python.as_ref().unwrap()
    }

    /// Takes the master away.
    pub fn stop_master(&mut self) {
        match &self.python {
            Some(python) => drop(python.ask(json!({"do": "away"}))),
            None => self.master.take().unwrap().stop(),
        }
    }

    /// Lets a master that is away forget everything.
    pub fn forget_master(&mut self) {
        match &self.python {
            Some(_) => self.is_forgotten = true,
            // With its key gone too it would be another master.
            None => {
                let folder = self.dir.join("master");
                let key = fs::read(folder.join("signing.key")).unwrap();
                fs::remove_dir_all(&folder).unwrap();
                fs::create_dir(&folder).unwrap();
                fs::write(folder.join("signing.key"), key).unwrap();
            }
        }
    }

    /// What the master's own people see, whichever master it is.
    pub fn master(&self) -> Arc<dyn Submissions> {
        match &self.python {
            Some(python) => Arc::clone(python) as Arc<dyn Submissions>,
            None => Arc::new(self.desk()),
        }
    }

    /// Where the master listens, or did.
    pub fn master_address(&self) -> SocketAddr {
        self.master_address.unwrap()
    }

    /// With which the master signs.
    pub fn signing_key(&self) -> [u8; 32] {
        self.master.as_ref().unwrap().signing_key()
    }

    /// Our master's desk.
    pub fn desk(&self) -> Desk {
        self.master.as_ref().unwrap().desk()
    }

    /// Gives a task to the master.
    pub fn submit(&self, offer: Offer) {
        match &self.python {
            Some(python) => python.submit_offer(offer),
            None => drop(self.desk().submit_offer(offer).unwrap()),
        }
    }

    /// A task as the master sees it.
    pub fn view(&self, task: &str) -> SubmissionView {
        self.master().view(task, 0, Duration::ZERO).unwrap()
    }

    /// Waits until the master sees this of a task.
    pub fn until_view(&self, task: &str, what: &str, is_it: impl Fn(&SubmissionView) -> bool) -> SubmissionView {
        let (master, end) = (self.master(), Instant::now() + PATIENCE);
        let mut seen = u64::MAX;
        loop {
            let view = master.view(task, seen, Duration::from_secs(1)).unwrap();
            if is_it(&view) {
                return view;
            }
            assert!(Instant::now() < end, "{task}: waited in vain: {what}: {view:?}");
            seen = view.version;
        }
    }

    /// Waits until the master has heard the task say `up`.
    pub fn until_up(&self, task: &str) {
        self.until_view(task, "the task says up", |view| view.stdout_bytes >= 3 || view.is_complete);
        assert!(self.stdout(task).starts_with("up\n"), "{task}: {:?}", self.view(task));
    }

    /// Waits until the master has all of a task, then checks its record.
    pub fn until_complete(&self, task: &str) -> FinalReport {
        self.until_view(task, "all of it has arrived", |view| view.is_complete);
        self.checked_report(task)
    }

    /// All of a task's standard output that the master has.
    pub fn stdout(&self, task: &str) -> String {
        let (master, mut bytes) = (self.master(), Vec::new());
        loop {
            let part = master.read(task, 1, bytes.len() as u64, 4 << 20).unwrap();
            if part.bytes.is_empty() {
                return String::from_utf8(bytes).unwrap();
            }
            bytes.extend(part.bytes);
        }
    }

    /// The master's record of the first attempt.
    pub fn record(&self, task: &str) -> Vec<Event> {
        self.record_of(task, 1)
    }

    fn record_of(&self, task: &str, attempt: u32) -> Vec<Event> {
        if let Some(python) = &self.python {
            python.check();
            return python.events(task, attempt);
        }
        let path = self.dir.join(format!("master/tasks/{task}/{attempt}/record.jsonl"));
        let found = record::parse(&fs::read(path).unwrap_or_default());
        assert_eq!(found.broken, 0, "{task}: lines that can't be read");
        found.lines.into_iter().map(|line| line.event).collect()
    }

    /// The one final report, behind events that are numbered without a hole.
    pub fn checked_report(&self, task: &str) -> FinalReport {
        self.checked_report_of(task, 1)
    }

    /// As [`Self::checked_report`], of this attempt.
    pub fn checked_report_of(&self, task: &str, attempt: u32) -> FinalReport {
        let events = self.record_of(task, attempt);
        let numbers: Vec<u64> = events.iter().map(|event| event.number).collect();
        assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>(), "{task}");
        let is_final = |event: &&Event| matches!(event.kind, EventKind::Final(_));
        assert_eq!(events.iter().filter(is_final).count(), 1, "{task}: {events:?}");
        match events.into_iter().last().map(|event| event.kind) {
            Some(EventKind::Final(report)) => *report,
            other => panic!("{task}: the final report is not the last word: {other:?}"),
        }
    }

    /// How often the master heard that a restarted worker has taken the task over.
    pub fn adoptions(&self, task: &str) -> usize {
        let is_it = |event: &&Event| matches!(&event.kind, EventKind::Note(text) if text.starts_with("the worker was restarted"));
        self.record(task).iter().filter(is_it).count()
    }

    /// Waits until the task was taken over so often, and runs on.
    pub fn until_adopted(&self, task: &str, times: usize) {
        until_true("the master hears of the adoption", || self.adoptions(task) == times);
        self.until_status("it runs", |status| {
            let held = status.attempts.iter().find(|held| held.key.task.as_str() == task);
            held.is_some_and(|held| held.phase == Phase::Running && held.detail.starts_with("adopted"))
        });
    }

    // ---- the worker

    /// Sets a variable of the next worker's environment, whatever it was.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// A command of the binary on this node's state folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let binary = env!("CARGO_BIN_EXE_hivemind-worker");
        let mut words = self.prefix.iter().map(String::as_str).chain([binary]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(args).arg("--state").arg(self.dir.join("state"));
        command.env_clear().envs(self.env.iter().cloned()).current_dir(&self.dir);
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Starts the worker as a node of the scene's master.
    pub fn start(&mut self, args: &[&str]) {
        let url = format!("http://{}", self.master_address());
        self.start_worker(&[&["--master-url", &url], args].concat());
    }

    /// Starts the worker with these words; its log goes to a file that a failed test shows.
    pub fn start_worker(&mut self, args: &[&str]) {
        assert!(self.worker.is_none(), "one worker at a time");
        let log = OpenOptions::new().create(true).append(true).open(self.dir.join("worker.log")).unwrap();
        let node = self.identity.node.clone();
        let mut command = self.command(args);
        command.args(["--node-id", &node, "--monitor-port", "0"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.worker = Some(command.spawn().unwrap());
    }

    /// What the workers of this scene have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("worker.log")).unwrap_or_default()
    }

    /// Ends the worker as a power cut would.
    pub fn kill_worker(&mut self) {
        let mut worker = self.worker.take().unwrap();
        worker.kill().unwrap();
        worker.wait().unwrap();
    }

    /// Sends the worker a signal.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.worker.as_ref().unwrap().id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Waits for the worker's end.
    pub fn until_exit(&mut self) -> ExitStatus {
        let mut worker = self.worker.take().unwrap();
        until("the worker ends", || worker.try_wait().unwrap())
    }

    /// The node as it tells itself, while it answers.
    pub fn status(&self) -> Option<Snapshot> {
        let output = self.run(&["status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Waits until the node tells this of itself.
    pub fn until_status(&self, what: &str, is_it: impl Fn(&Snapshot) -> bool) -> Snapshot {
        until(what, || self.status().filter(|status| is_it(status)))
    }

    /// Waits until the node can take work.
    pub fn until_ready(&self) -> Snapshot {
        self.until_status("the node is ready", |status| status.state == NodeState::Ready)
    }

    /// The node's last heartbeat at the master; 0 before the first.
    pub fn heartbeats(&self) -> u64 {
        if let Some(python) = &self.python {
            return python.node(&self.identity.node)["heartbeat"].as_u64().unwrap_or(0);
        }
        let node = self.desk().node(&Id::parse(&self.identity.node).unwrap());
        node.and_then(|row| row.heartbeat).map_or(0, |heartbeat| heartbeat.sequence)
    }

    // ---- the engine

    /// The container of a task, while there is one.
    pub fn container(&self, task: &str) -> Option<String> {
        let labels = [self.identity.filter(), format!("hivemind.task={task}"), "hivemind.role=task".to_owned()];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let found = self.docker.list_containers(&labels).unwrap();
        assert!(found.len() <= 1, "two containers of one attempt: {found:?}");
        found.into_iter().next().map(|container| container.id)
    }

    /// Lets a gated task go on.
    pub fn go(&self, task: &str) {
        self.docker.kill_container(&self.container(task).unwrap(), "SIGUSR1").unwrap();
    }

    /// What the engine said of this node's task containers, oldest first.
    pub fn engine_events(&self) -> Vec<EngineEvent> {
        let events = self.engine_says.lock().unwrap();
        let is_task = |event: &&EngineEvent| event.labels.get("hivemind.role").is_some_and(|role| role == "task");
        events.iter().filter(is_task).cloned().collect()
    }

    /// Ids of all containers that there ever were of a task.
    pub fn containers_ever(&self, task: &str) -> BTreeSet<String> {
        let events = self.engine_events();
        let is_of = |event: &&EngineEvent| event.labels.get("hivemind.task").is_some_and(|of| of == task);
        events.iter().filter(is_of).map(|event| event.id.clone()).collect()
    }

    /// Tasks in the order of their start, and the most that ran at a time.
    pub fn starts(&self) -> (Vec<String>, usize) {
        let (mut order, mut running, mut most) = (Vec::new(), BTreeSet::new(), 0);
        for event in self.engine_events() {
            match event.action {
                EventAction::Start => {
                    order.push(event.labels["hivemind.task"].clone());
                    running.insert(event.id);
                }
                EventAction::Die(_) => {
                    running.remove(&event.id);
                }
                EventAction::Oom | EventAction::Destroy => {}
            }
            most = most.max(running.len());
        }
        (order, most)
    }

    /// How many containers, volumes and networks have this node's label.
    pub fn left_overs(&self) -> usize {
        let filter = self.identity.filter();
        self.docker.list_containers(&[&filter]).unwrap().len()
            + self.docker.list_volumes(&[&filter]).unwrap().len()
            + self.docker.list_networks(&[&filter]).unwrap().len()
    }

    /// Waits until the engine has nothing of this node.
    pub fn until_clean(&self) {
        until_true("nothing of the node is left", || self.left_overs() == 0 && volumes::are_gone(self));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            let _ = worker.kill();
            let _ = worker.wait();
        }
        if thread::panicking() {
            let mut text = format!("---- log of {}\n{}", self.identity.node, self.log());
            for event in self.engine_events() {
                let _ =
                    writeln!(text, "engine: {:?} {} {:?}", event.action, event.name, event.labels.get("hivemind.task"));
            }
            eprintln!("{text}");
        }
        self.listener.0.stop();
        let _ = self.listener.1.take().unwrap().join();
        let filter = self.identity.filter();
        for container in self.docker.list_containers(&[&filter]).unwrap_or_default() {
            let _ = self.docker.remove_container(&container.id);
        }
        for volume in self.docker.list_volumes(&[&filter]).unwrap_or_default() {
            let _ = self.docker.remove_volume(&volume.name);
        }
        for network in self.docker.list_networks(&[&filter]).unwrap_or_default() {
            let _ = self.docker.remove_network(&network.id);
        }
        drop(self.master.take());
        volumes::remove(self);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Outcome and exit code.
pub fn how(report: &FinalReport) -> (Outcome, Option<i64>) {
    (report.outcome, report.exit_code)
}

/// A file with this text.
pub fn write(path: PathBuf, text: &str) -> PathBuf {
    use std::io::Write;
    File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    path
}
