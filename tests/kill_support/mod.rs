//! A real worker between the scripted engine and the scripted master, and what must be true of it in the end whatever
//! was done to it.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hivemind_worker::docker::DockerHost;
use hivemind_worker::node::record::{FIRST_OUTPUT, STDERR, STDOUT};
use hivemind_worker::rpc::schema::{FinalReport, Outcome};
use ring::digest::{SHA256, digest};

use crate::engine_support::script::{self, Script};
use crate::engine_support::{Engine, Sights};
use crate::node_util::Scene;

pub mod master;

use master::{Master, Record};

/// Longest wait for what must come: a lane may have to wait for its next try, and the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// The log of the workers is kept from here on.
const MAX_LOG: u64 = 4 << 20;

/// How the node was treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It was killed: not a byte may be lost, and no outcome be another.
    Killed,
    /// Its disk failed: it may say so.
    BadDisk,
}

/// A node with its engine and its master.
pub struct World {
    pub seed: u64,
    pub sights: Arc<Sights>,
    pub engine: Engine,
    pub master: Master,
    pub scene: Scene,
    judged: BTreeSet<String>,
}

impl World {
    /// A node that was never started.
    pub fn new(name: &str, seed: u64) -> Self {
        let sights = Arc::new(Sights::default());
        let engine = Engine::start(seed, Arc::clone(&sights));
        let master = Master::start(Arc::clone(&sights));
        let mut scene = Scene::with_engine(name, DockerHost::parse(&engine.host()).unwrap());
        scene.env = [
            ("DOCKER_HOST", engine.host()),
            // More deaths than an attempt is given, since here it is not to blame for them.
            ("HIVEMIND_CRASH_LIMIT", "1000000".to_owned()),
            ("HIVEMIND_SLOTS", "4".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        Self { seed, sights, engine, master, scene, judged: BTreeSet::new() }
    }

    /// Starts the worker.
    pub fn start(&mut self) {
        let log = self.scene.dir.join("worker.log");
        if fs::metadata(&log).is_ok_and(|log| log.len() > MAX_LOG) {
            File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
        }
        let url = format!("http://{}", self.master.address);
        self.scene.start_worker(&["--master-url", &url]);
    }

    /// Gives a task to the master, which cancels it if its script is to be ended by a signal.
    pub fn submit(&self, task: &str) {
        let script = Script::of(self.seed, task);
        // Anywhere between its first event, which says that it is received, and the fourth, that it runs.
        let cancel_after = script.is_endless.then_some(1 + script.prints.len() % 4);
        self.master.submit(script.offer(task), cancel_after);
    }

    /// What is wrong by now, in words.
    pub fn faults(&mut self, treatment: Treatment) -> Vec<String> {
        let mut faults = self.engine.broken();
        let book = self.master.book();
        faults.extend(book.broken.iter().cloned());
        if treatment == Treatment::Killed && book.refusals.contains_key("storage") {
            faults.push("the node blames its disk, which is good".to_owned());
        }
        for (task, record) in &book.tasks {
            if record.is_complete() && self.judged.insert(task.clone()) {
                faults.extend(
                    judge(&Script::of(self.seed, task), record, treatment).map(|what| format!("{task}: {what}")),
                );
            }
        }
        faults
    }

    /// With a worker that nobody disturbs all comes to its end, and nothing is left.
    pub fn come_to_rest(&mut self, treatment: Treatment) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        let mut faults = Vec::new();
        if !self.master.wait(until, |book| book.open() == 0 || !book.broken.is_empty()) {
            let book = self.master.book();
            let open = book.tasks.iter().filter(|(_, record)| !record.is_complete());
            faults.extend(
                open.map(|(task, record)| format!("I1 or I3: {task} has not come to its end: {}", record.summary())),
            );
        }
        while faults.is_empty() && self.master.book().broken.is_empty() {
            let status = self.scene.status();
            let held = status.map(|status| status.attempts.len());
            let spooled = fs::read_dir(self.scene.dir.join("state/spool")).unwrap();
            let spooled = spooled.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count();
            let left = self.engine.left_overs();
            if held == Some(0) && spooled == 0 && left.is_empty() {
                break;
            }
            if Instant::now() > until {
                faults.push(format!("I5: held {held:?}, in the spool {spooled}, at the engine {left:?}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.judged.clear();
        faults.extend(self.faults(treatment));
        faults
    }
}

/// What is wrong with a complete record.
fn judge<'a>(script: &'a Script, record: &'a Record, treatment: Treatment) -> impl Iterator<Item = String> + 'a {
    let report = record.report.as_ref().unwrap();
    let mut faults = Vec::new();
    let outcome = Outcome::try_from(report.outcome).unwrap();
    let own = if script.exit_code == 0 { Outcome::Succeeded } else { Outcome::Failed };
    let is_own = !script.is_endless && outcome == own && report.exit_code == Some(script.exit_code);
    let is_excused = match outcome {
        Outcome::Cancelled => record.is_cancelled(),
        Outcome::NodeFault => treatment == Treatment::BadDisk,
        _ => false,
    };
    if !is_own && !is_excused {
        faults.push(format!("ended as {outcome:?}, {:?}, {:?}; {script:?}", report.exit_code, report.reason));
    }
    if is_own {
        faults.extend(judge_outputs(script, record, report, treatment));
    }
    for stream in [STDOUT, STDERR] {
        let printed = script.printed(if stream == STDOUT { script::STDOUT } else { script::STDERR });
        let mut came = Vec::new();
        let mut has_gap = record.notes().iter().any(|note| note.contains("missing") || note.contains("dropped"));
        for (_, part) in record.streams.range((stream, 0)..(stream + 1, 0)) {
            has_gap |= part.has_gap;
            came.extend_from_slice(&part.bytes);
        }
        let is_right = match (has_gap, is_own) {
            (true, _) => true,
            (false, true) => came == printed,
            (false, false) => printed.starts_with(&came),
        };
        if !is_right {
            let texts = [&came, &printed].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            faults.push(format!("stream {stream} is not what was printed: {texts:?}"));
        }
        if has_gap && treatment == Treatment::Killed && record.streams.values().any(|part| part.has_gap) {
            faults.push(format!("stream {stream} has a gap, though nothing can have been lost"));
        }
    }
    faults.into_iter()
}

fn judge_outputs(script: &Script, record: &Record, report: &FinalReport, treatment: Treatment) -> Vec<String> {
    let mut faults = Vec::new();
    // What a bad disk had no room for is said to be missing.
    let is_cut = treatment == Treatment::BadDisk && !report.cut.is_empty();
    if !is_cut && (!report.cut.is_empty() || report.outputs.len() != script.files.len()) {
        faults.push(format!("other files than it left: {:?}, cut {:?}", report.outputs, report.cut));
    }
    for file in &report.outputs {
        let Some((path, content)) = script.files.iter().find(|(path, _)| *path == file.path) else {
            faults.push(format!("{} is nothing that it left", file.path));
            continue;
        };
        let sha256: String = digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let end = report.streams.iter().find(|end| end.stream == file.stream);
        let came = end.and_then(|end| record.streams.get(&(end.stream, end.epoch)));
        let is_right = file.stream >= FIRST_OUTPUT
            && (&file.sha256, file.size) == (&sha256, content.len() as u64)
            && came.is_some_and(|came| came.bytes == *content);
        if !is_right {
            let came = came.map(|came| (came.bytes.len(), came.is_ended));
            faults.push(format!("{path} is not what it left: {file:?}, {end:?}, {came:?} of {}", content.len()));
        }
    }
    faults
}
