//! A stand-in for a Docker engine: an HTTP server on a Unix socket in the test's own process, whose containers run scripts
//! ([`script`]) and live on while the worker is killed. It speaks the calls that the worker makes and no others, and behaves
//! as Engine 20.10 was measured to: a taken name is a 409, a second start a 304, what is gone a 404; attach gives what comes
//! from then on and never ends on a container that has exited; a removal takes a while, in which another one is a 409; a
//! call whose caller has died is carried out all the same.
//!
//! What a worker must never do it notes as a broken rule: [`Engine::broken`].
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hivemind_worker::node::spec::BASE_IMAGE;
use serde_json::{Value, json};

use crate::dice::Dice;

mod calls;
mod http;
pub mod script;

use script::Script;

/// A listener that takes nothing for so long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// What a call takes before and after its effect, at the most.
const MAX_WORK_US: u64 = 1_500;
/// What a removal takes at the most.
const MAX_REMOVAL_US: u64 = 4_000;
/// Exit codes after SIGKILL and SIGTERM.
const KILLED: i64 = 137;
const TERMINATED: i64 = 143;

/// What happened, by name, and how often: so that a test can act at a moment.
#[derive(Default)]
pub struct Sights {
    counts: Mutex<BTreeMap<String, u64>>,
    changed: Condvar,
}

impl Sights {
    /// Notes that this has happened.
    pub fn note(&self, what: &str) {
        *self.counts.lock().unwrap().entry(what.to_owned()).or_default() += 1;
        self.changed.notify_all();
    }

    /// Waits until it has happened so often, or until then; whether it has.
    pub fn wait(&self, what: &str, count: u64, until: Instant) -> bool {
        let mut counts = self.counts.lock().unwrap();
        loop {
            if counts.get(what).copied().unwrap_or(0) >= count {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            counts = self.changed.wait_timeout(counts, left).unwrap().0;
        }
    }

    /// How often it has happened.
    pub fn count(&self, what: &str) -> u64 {
        self.counts.lock().unwrap().get(what).copied().unwrap_or(0)
    }

    /// All that has happened.
    pub fn all(&self) -> BTreeMap<String, u64> {
        self.counts.lock().unwrap().clone()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Created,
    Running,
    Exited,
    Removing,
}

struct Container {
    name: String,
    labels: BTreeMap<String, String>,
    body: Value,
    status: Status,
    is_paused: bool,
    has_inputs: bool,
    exit_code: i64,
    signal: Option<i64>,
    started_at: Option<SystemTime>,
    finished_at: Option<SystemTime>,
    log: Vec<(u8, Vec<u8>)>,
    attached: Vec<UnixStream>,
    is_foreign: bool,
}

impl Container {
    fn role(&self) -> &str {
        self.labels.get("hivemind.role").map_or("", String::as_str)
    }

    fn attempt(&self) -> String {
        let label = |name: &str| self.labels.get(name).cloned().unwrap_or_default();
        format!("{}#{}", label("hivemind.task"), label("hivemind.attempt"))
    }

    fn volumes(&self) -> Vec<String> {
        let mounts = self.body["HostConfig"]["Mounts"].as_array().cloned().unwrap_or_default();
        mounts.iter().filter_map(|mount| mount["Source"].as_str().map(str::to_owned)).collect()
    }
}

#[derive(Default)]
struct Volume {
    labels: BTreeMap<String, String>,
    files: BTreeMap<String, Vec<u8>>,
    is_foreign: bool,
}

struct Listener {
    labels: Vec<String>,
    stream: UnixStream,
}

struct State {
    dice: Dice,
    containers: BTreeMap<String, Container>,
    volumes: BTreeMap<String, Volume>,
    images: BTreeSet<String>,
    listeners: Vec<Listener>,
    next_id: u64,
    made: BTreeMap<String, u32>,
    started: BTreeMap<String, u32>,
    broken: Vec<String>,
}

impl State {
    /// Notes that a rule is broken.
    fn break_rule(&mut self, what: String) {
        self.broken.push(what);
    }

    /// The id of a container by its name or id.
    fn find(&self, name: &str) -> Option<String> {
        let is_it = |(id, container): &(&String, &Container)| *id == name || container.name == name;
        self.containers.iter().find(is_it).map(|(id, _)| id.clone())
    }

    fn tell(&mut self, id: &str, action: &str, exit_code: Option<i64>) {
        let Some(container) = self.containers.get(id) else { return };
        let mut attributes = json!(container.labels);
        attributes["name"] = json!(container.name);
        attributes["image"] = container.body["Image"].clone();
        if let Some(code) = exit_code {
            attributes["exitCode"] = json!(code.to_string());
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let event = json!({"Type": "container", "Action": action, "Actor": {"ID": id, "Attributes": attributes},
            "time": since.as_secs(), "timeNano": u64::try_from(since.as_nanos()).unwrap()});
        let chunk = http::chunk(format!("{event}\n").as_bytes());
        let labels = container.labels.clone();
        self.listeners
            .retain_mut(|listener| !has_labels(&labels, &listener.labels) || listener.stream.write_all(&chunk).is_ok());
    }

    /// What the task of a running container prints.
    fn print(&mut self, id: &str, stream: u8, bytes: &[u8]) {
        let container = self.containers.get_mut(id).unwrap();
        container.log.push((stream, bytes.to_vec()));
        let frame = http::frame(stream, bytes);
        container.attached.retain_mut(|attached| attached.write_all(&frame).is_ok());
    }

    fn end(&mut self, id: &str, exit_code: i64) {
        let container = self.containers.get_mut(id).unwrap();
        container.status = Status::Exited;
        container.is_paused = false;
        container.exit_code = exit_code;
        container.finished_at = Some(SystemTime::now());
        for attached in container.attached.drain(..) {
            let _ = attached.shutdown(Shutdown::Both);
        }
        self.tell(id, "die", Some(exit_code));
    }
}

/// Whether these labels have each of these `name=value` or `name`.
fn has_labels(labels: &BTreeMap<String, String>, wanted: &[String]) -> bool {
    wanted.iter().all(|wanted| match wanted.split_once('=') {
        Some((name, value)) => labels.get(name).is_some_and(|is| is == value),
        None => labels.contains_key(wanted),
    })
}

struct Shared {
    seed: u64,
    state: Mutex<State>,
    changed: Condvar,
    sights: Arc<Sights>,
    is_over: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The engine works: whoever waits for it waits, and may die meanwhile.
    fn work(&self, at_most_us: u64) {
        let time = self.lock().dice.below(at_most_us);
        thread::sleep(Duration::from_micros(time));
    }

    /// A container's process 1, from its start to its end.
    fn run(&self, id: &str, script: &Script) {
        for (stream, bytes) in &script.prints {
            let Some(mut state) = self.pass(id, script.pause) else { return };
            state.print(id, *stream, bytes);
        }
        loop {
            let Some(mut state) = self.pass(id, script.pause) else { return };
            if !script.is_endless {
                state.end(id, script.exit_code);
                drop(state);
                return self.sights.note("exit");
            }
        }
    }

    /// Lets time pass in a container. `None` when it has been ended meanwhile.
    fn pass(&self, id: &str, time: Duration) -> Option<MutexGuard<'_, State>> {
        let until = Instant::now() + time;
        let mut state = self.lock();
        loop {
            let container = state.containers.get_mut(id)?;
            if container.status != Status::Running {
                return None;
            }
            if let Some(code) = container.signal.take() {
                state.end(id, code);
                return None;
            }
            let is_paused = container.is_paused;
            let left = until.saturating_duration_since(Instant::now());
            if self.is_over.load(Ordering::Relaxed) {
                return None;
            }
            if left.is_zero() && !is_paused {
                return Some(state);
            }
            state = self.changed.wait_timeout(state, left.max(Duration::from_millis(1))).unwrap().0;
        }
    }
}

/// See the module's text.
pub struct Engine {
    path: PathBuf,
    shared: Arc<Shared>,
}

impl Engine {
    /// Begins to listen. What happens is noted in `sights`.
    pub fn start(seed: u64, sights: Arc<Sights>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hm-scripted-{}-{number}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let foreign = |name: &str| {
            let labels = [("hivemind.node", "somebody"), ("hivemind.key", name), ("hivemind.role", "task")];
            labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect::<BTreeMap<_, _>>()
        };
        let stranger = |labels| Container {
            name: format!("of-somebody-{}", number),
            labels,
            body: json!({"Image": "other", "HostConfig": {}}),
            status: Status::Exited,
            is_paused: false,
            has_inputs: true,
            exit_code: 0,
            signal: None,
            started_at: Some(SystemTime::now()),
            finished_at: Some(SystemTime::now()),
            log: Vec::new(),
            attached: Vec::new(),
            is_foreign: true,
        };
        let containers = BTreeMap::from([
            ("foreign-1".to_owned(), stranger(foreign("0123456789abcdef"))),
            ("foreign-2".to_owned(), Container { name: "plain".to_owned(), ..stranger(BTreeMap::new()) }),
        ]);
        let volume = Volume { labels: foreign("0123456789abcdef"), is_foreign: true, ..Volume::default() };
        let state = State {
            dice: Dice::new(seed),
            containers,
            volumes: BTreeMap::from([("of-somebody".to_owned(), volume)]),
            images: BTreeSet::from([BASE_IMAGE.to_owned()]),
            listeners: Vec::new(),
            next_id: 1,
            made: BTreeMap::new(),
            started: BTreeMap::new(),
            broken: Vec::new(),
        };
        let shared = Arc::new(Shared {
            seed,
            state: Mutex::new(state),
            changed: Condvar::new(),
            sights,
            is_over: AtomicBool::new(false),
        });
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if server.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let (stream, shared) = (stream.unwrap(), Arc::clone(&server));
                thread::spawn(move || {
                    stream.set_write_timeout(Some(WRITE_TIMEOUT)).unwrap();
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    // A caller that has died in the middle of its request is none.
                    if let Some(request) = http::read(&mut reader) {
                        shared.answer(&request, &stream);
                    }
                });
            }
        });
        Self { path, shared }
    }

    /// What the worker takes as `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Broken rules, in words.
    pub fn broken(&self) -> Vec<String> {
        let state = self.shared.lock();
        let mut broken = state.broken.clone();
        let foreign = state.containers.values().filter(|container| container.is_foreign).count();
        let volumes = state.volumes.values().filter(|volume| volume.is_foreign).count();
        if (foreign, volumes) != (2, 1) {
            broken.push(format!("I6: of what is not the node's, {foreign} containers and {volumes} volumes are left"));
        }
        broken
    }

    /// Names of what the node has here.
    pub fn left_overs(&self) -> Vec<String> {
        let state = self.shared.lock();
        let containers = state.containers.values().filter(|container| !container.is_foreign);
        let volumes = state.volumes.iter().filter(|(_, volume)| !volume.is_foreign);
        let containers = containers.map(|container| format!("container {} of {}", container.name, container.attempt()));
        containers.chain(volumes.map(|(name, _)| format!("volume {name}"))).collect()
    }

    /// How often the container of an attempt was started.
    pub fn starts(&self, task: &str) -> u32 {
        self.shared.lock().started.get(&format!("{task}#1")).copied().unwrap_or(0)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
    }
}
