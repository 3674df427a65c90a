//! A worker that runs what tries to escape, what it and the machine looked like before, and containers of the test's own
//! in which the same tries succeed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{FinalReport, Outcome};

use crate::node_util::{Scene, how, until_true};

/// The base image of tasks: scripts/build-image.sh makes it.
pub const IMAGE: &str = "justin308/hivemind-worker:latest";
const PROBE: &[u8] = include_bytes!("probe.py");

/// What the worker may have more of than after its first task. Its allocator keeps what it had.
const MAX_MORE_MEMORY: u64 = 48 << 20;
/// A connection to the engine that is still open, and one to the master.
const MAX_MORE_FILES: usize = 6;
/// Threads that are about to end.
const MAX_MORE_THREADS: usize = 2;

/// What a process has.
#[derive(Clone, Copy, Debug)]
pub struct Holds {
    /// Resident, without files.
    pub memory: u64,
    pub files: usize,
    pub threads: usize,
}

impl Holds {
    pub fn of(process: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let files = fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
        Self { memory: number("RssAnon:") << 10, files, threads: usize::try_from(number("Threads:")).unwrap() }
    }
}

/// What of the machine a task must not change.
fn machine() -> Vec<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    ["/etc/shadow", "/etc/passwd", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname"].map(read).to_vec()
}

pub struct Yard {
    pub scene: Scene,
    machine: Vec<String>,
    pub before: Holds,
}

impl Yard {
    /// A worker that has run one task.
    pub fn open(name: &str) -> Self {
        Self::of(Scene::with_master(name))
    }

    /// As [`Self::open`], of a scene with a master.
    pub fn of(mut scene: Scene) -> Self {
        scene.env.push(("LOG_LEVEL".to_owned(), "debug".to_owned()));
        scene.start(&["--slots", "4"]);
        scene.until_ready();
        let mut yard = Self { scene, machine: machine(), before: Holds { memory: 0, files: 0, threads: 0 } };
        yard.good("first");
        yard.before = yard.holds();
        yard
    }

    pub fn holds(&self) -> Holds {
        Holds::of(self.scene.worker.as_ref().unwrap().id())
    }

    /// Runs the probes as one task that must succeed; what each said.
    pub fn probe(&self, task: &str, words: &[&str]) -> BTreeMap<String, String> {
        let (report, said) = self.run(probes(task, words));
        assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?} {said}");
        results(&said)
    }

    /// Runs a task to its end.
    pub fn run(&self, offer: Offer) -> (FinalReport, String) {
        let task = offer.task.clone();
        self.scene.submit(offer);
        let report = self.scene.until_complete(&task);
        let said = self.scene.stdout(&task);
        (report, said)
    }

    /// A task that does nothing wrong goes through.
    pub fn good(&self, task: &str) {
        let results = self.probe(task, &["interfaces"]);
        assert_eq!(results.get("interfaces").map(String::as_str), Some("lo"), "{results:?}");
    }

    /// The worker lives and has no more than before, the machine is as it was, nothing is left, and work goes on.
    pub fn unharmed(mut self) {
        self.good("last");
        self.scene.until_clean();
        assert_eq!(machine(), self.machine, "the machine was changed");
        let before = self.before;
        let mut now = self.holds();
        until_true("the worker lets go of files and threads", || {
            now = self.holds();
            now.files <= before.files + MAX_MORE_FILES && now.threads <= before.threads + MAX_MORE_THREADS
        });
        println!("{}: before {before:?}, after {now:?}; {}", self.scene.identity.node, self.look_times());
        assert!(now.memory <= before.memory + MAX_MORE_MEMORY, "{before:?} {now:?}");
        let worker = self.scene.worker.as_mut().unwrap();
        assert!(worker.try_wait().unwrap().is_none(), "the worker has ended");
        assert!(!self.scene.log().contains("panic"), "{}", self.scene.log());
    }

    /// What reading the sandbox back from inside took: median and most, in microseconds.
    pub fn look_times(&self) -> String {
        let log = self.scene.log();
        let took = log.lines().filter_map(|line| line.split_once("looked into ")?.1.split_once(" within "));
        let mut times: Vec<Duration> = took.filter_map(|(_, rest)| duration(rest.split(',').next()?)).collect();
        times.sort();
        assert!(!times.is_empty(), "no task was looked into: {log}");
        format!("{} looks inside: median {:?}, most {:?}", times.len(), times[times.len() / 2], times[times.len() - 1])
    }
}

/// As `Debug` prints it.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.')?);
    let unit = match unit {
        "ns" => 1e-9,
        "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(number.parse::<f64>().ok()? * unit))
}

/// A task that runs these probes.
pub fn probes(task: &str, words: &[&str]) -> Offer {
    let command = ["python3", "probe.py"].iter().chain(words).map(|word| (*word).to_owned()).collect();
    Offer { command, inputs: archive(), ..crate::node_util::python(task, "") }
}

/// The probe as a task's input.
pub fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(PROBE.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "probe.py", PROBE).unwrap();
    builder.into_inner().unwrap()
}

/// What each probe said, by its word.
pub fn results(said: &str) -> BTreeMap<String, String> {
    let pairs = said.lines().map(|line| line.split_once(' ').unwrap_or_else(|| panic!("{said}")));
    pairs.map(|(word, result)| (word.to_owned(), result.to_owned())).collect()
}

/// Runs the probes in a container of the test's own, with these options of `docker run`.
pub fn outside(options: &[&str], words: &[&str]) -> BTreeMap<String, String> {
    outside_on(None, IMAGE, options, words)
}

/// As [`outside`], with another engine and image.
pub fn outside_on(host: Option<&str>, image: &str, options: &[&str], words: &[&str]) -> BTreeMap<String, String> {
    let mut command = Command::new("docker");
    command.args(host.map(|host| format!("--host={host}")));
    command.args(["run", "--rm", "-i", "--label", "hivemind.test=escape", "--pull=never", "--entrypoint", "python3"]);
    command.args(options).arg(image).arg("-").args(words);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(PROBE).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    results(&String::from_utf8(output.stdout).unwrap())
}

/// A probe, what it may say inside, and what outside. Several where kernels differ.
pub type Try<'a> = (&'a str, &'a [&'a str], &'a [&'a str]);

/// Every try must have failed in its way inside, and gone its way outside.
pub fn compare(tries: &[Try<'_>], inside: &BTreeMap<String, String>, outside: &BTreeMap<String, String>) {
    let mut wrong = Vec::new();
    for (word, refused, granted) in tries {
        let (got, control) = (inside[*word].as_str(), outside[*word].as_str());
        println!("{word}: inside {got}, outside {control}");
        if !refused.contains(&got) {
            wrong.push(format!("{word} inside: {got}, not {refused:?}"));
        }
        if !granted.contains(&control) {
            wrong.push(format!("{word} outside: {control}, not {granted:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
