//! What an attempt leaves: its bundle where it failed, its report, and nothing else. A whole worker on the real engine.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hivemind_worker::docker::{CreateBody, Docker, DockerHost, NetworkCreate, VolumeCreate};
use hivemind_worker::node::account::EndedBy;
use hivemind_worker::node::id::{AttemptKey, Id};
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{Outcome, Phase};
use hivemind_worker::node::snapshot::NodeState;
use hivemind_worker::sandbox::Identity;
use node_util::own_engine::{Containers, IMAGE, OwnEngine};
use node_util::{Scene, gated, python, until, until_true};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const FAILING: &str = "import os, sys\n\
    os.makedirs('/workspace/output/deep')\n\
    open('/workspace/output/deep/why.txt', 'w').write('because')\n\
    open('/workspace/big.bin', 'wb').write(bytes(20 << 20))\n\
    os.symlink('/etc/passwd', '/workspace/link')\n\
    print('to out\\x1b[2J', flush=True)\n\
    print('to err', file=sys.stderr, flush=True)\n\
    sys.exit(3)\n";

fn stdout(scene: &Scene, args: &[&str]) -> String {
    let output = scene.run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command says that ends with 1.
fn refusal(scene: &Scene, args: &[&str]) -> String {
    let output = scene.run(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

fn entries(bundle: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(bundle);
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    };
    archive.entries().unwrap().map(read).collect()
}

fn bundle_path(scene: &Scene, task: &str) -> PathBuf {
    scene.dir.join(format!("state/bundles/{task}.1.tar"))
}

fn bundle_names(scene: &Scene) -> Vec<String> {
    let folder = fs::read_dir(scene.dir.join("state/bundles"));
    let mut names: Vec<String> =
        folder.into_iter().flatten().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Lets a file look as if it was made an hour ago.
fn age(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3_600)).unwrap();
}

#[test]
fn a_failed_task_is_explained_by_its_report_and_its_bundle() {
    let mut scene = Scene::with_master("bundle");
    scene.start(&["--slots", "2"]);
    scene.submit(gated("bad", FAILING));
    scene.submit(python("good", "print('fine')\n"));
    scene.until_up("bad");
    scene.until_status("its use was seen", |status| {
        status.attempts.iter().any(|held| held.key.task.as_str() == "bad" && held.usage.memory_bytes > 0)
    });
    scene.go("bad");
    let report = scene.until_complete("bad");
    scene.until_complete("good");
    scene.until_clean();

    // What the master has.
    let limits = report.limits.clone().unwrap();
    assert_eq!((limits.memory_bytes, limits.cpu_millis, limits.pids), (Some(64 << 20), Some(500), Some(256)));
    assert_eq!((limits.network.as_str(), limits.disk_bytes), ("none", 256 << 20));
    let figures = report.figures.unwrap();
    assert!((1..64 << 20).contains(&figures.average_memory_bytes.unwrap()), "{figures:?}");
    assert!(figures.peak_pids.unwrap() >= 1 && figures.average_pids.unwrap() <= figures.peak_pids.unwrap());
    assert!((20 << 20..30 << 20).contains(&figures.peak_disk_bytes.unwrap()), "{figures:?}");
    assert_eq!((figures.network_received_bytes, figures.network_sent_bytes), (Some(0), Some(0)));
    let evidence = report.evidence.clone().unwrap();
    assert_eq!((evidence.ended_by, evidence.oom_killed, evidence.signal), (EndedBy::Task, Some(false), None));
    assert!(evidence.started_at < evidence.finished_at, "{evidence:?}");
    let phases: Vec<Phase> = report.phases.iter().map(|time| time.phase).collect();
    let expected =
        [Phase::Received, Phase::Queued, Phase::Preparing, Phase::Starting, Phase::Running, Phase::Collecting];
    assert_eq!(phases, expected);
    let running = report.phases[4].duration_ms;
    assert!(running > 0 && running.abs_diff(report.duration_ms) < 2_000, "{report:?}");

    // What the owner has.
    assert_eq!(bundle_names(&scene), ["bad.1.tar"]);
    let path = bundle_path(&scene, "bad");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    let piped = scene.run(&["tasks", "bundle", "bad"]).stdout;
    assert_eq!(piped, fs::read(&path).unwrap());
    let saved = scene.dir.join("saved.tar");
    stdout(&scene, &["tasks", "bundle", "bad#1", "--output", saved.to_str().unwrap()]);
    assert_eq!(fs::read(&saved).unwrap(), piped);
    assert!(refusal(&scene, &["tasks", "bundle", "bad", "--output", saved.to_str().unwrap()]).contains("File exists"));
    let entries = entries(&piped);
    let json = |name: &str| serde_json::from_slice::<Value>(&entries[name]).unwrap();
    assert_eq!(
        (json("report.json")["exit_code"].as_i64(), json("report.json")["outcome"].as_str()),
        (Some(3), Some("Failed"))
    );
    assert_eq!(json("report.json")["phases"].as_array().unwrap().len(), 6);
    assert_eq!(json("inspect.json")["Config"]["Labels"]["hivemind.task"], "bad");
    assert_eq!(json("task.json")["memory_bytes"], 64 << 20);
    assert!(json("events.json").to_string().contains("running"));
    assert_eq!(
        (entries["stdout.log"].as_slice(), entries["stderr.log"].as_slice()),
        (&b"up\nto out\x1b[2J\n"[..], &b"to err\n"[..])
    );
    assert_eq!(entries["output.log"].len(), 21);
    assert_eq!(entries["work/output/deep/why.txt"], b"because");
    let files = String::from_utf8(entries["files.txt"].clone()).unwrap();
    assert!(
        files.contains("file 20971520 - workspace/big.bin\n") && files.contains("symlink 0 - workspace/link\n"),
        "{files}"
    );
    assert!(!entries.keys().any(|name| name.contains("big.bin") || name.contains("link")));

    // What the owner is shown.
    let text = stdout(&scene, &["tasks", "show", "bad"]);
    for wanted in [
        "Failed: exit code 3",
        "ended by",
        "itself",
        "memory 64.0 MiB, pids 256",
        "running ",
        "tasks bundle bad#1",
        // What else is in this line is for the engine to say: two streams have no order.
        "to out\\x1b[2J",
    ] {
        assert!(text.contains(wanted), "{wanted:?} in {text}");
    }
    let value: Value = serde_json::from_str(&stdout(&scene, &["tasks", "show", "good#1", "--json"])).unwrap();
    assert_eq!((value["report"]["outcome"].as_str(), value["tail"].as_str()), (Some("Succeeded"), Some("fine\n")));
    assert!(value["bundle_bytes"].is_null() && value["ended"]["reason"] == "", "{value}");
    let none = refusal(&scene, &["tasks", "bundle", "good"]);
    assert!(none.contains("good#1 has no bundle: it ended Succeeded"), "{none}");
    assert!(refusal(&scene, &["tasks", "show", "nobody"]).contains("this node holds no task nobody"));
    assert!(refusal(&scene, &["tasks", "show", "bad#7"]).contains("the latest is bad#1"));
}

#[test]
fn bundles_stay_within_budget_and_age() {
    let mut scene = Scene::with_master("budget");
    scene.env.push(("HIVEMIND_BUNDLES".to_owned(), "1000KiB".to_owned()));
    scene.env.push(("HIVEMIND_BUNDLE_AGE".to_owned(), "30m".to_owned()));
    scene.start(&["--slots", "1"]);
    let fail = |scene: &Scene, task: &str| {
        scene.submit(python(
            task,
            "import os, sys\nopen('/workspace/f', 'wb').write(os.urandom(300 << 10))\nsys.exit(1)\n",
        ));
        scene.until_complete(task);
        until_true("its bundle is there", || bundle_path(scene, task).exists());
    };
    for task in ["a", "b", "c", "d"] {
        fail(&scene, task);
    }
    // Three of more than 300 KiB fit into 1000 KiB.
    assert_eq!(bundle_names(&scene), ["b.1.tar", "c.1.tar", "d.1.tar"]);
    // By word.
    age(&bundle_path(&scene, "c"));
    let would = stdout(&scene, &["gc", "--dry-run"]);
    assert_eq!(would, "bundle  c#1  would be removed  over the age limit\n");
    assert_eq!(bundle_names(&scene).len(), 3);
    assert_eq!(stdout(&scene, &["gc"]), "bundle  c#1  removed  over the age limit\n");
    assert_eq!(bundle_names(&scene), ["b.1.tar", "d.1.tar"]);
    assert_eq!(stdout(&scene, &["gc"]), "");
    // At each new one.
    age(&bundle_path(&scene, "b"));
    fail(&scene, "e");
    assert_eq!(bundle_names(&scene), ["d.1.tar", "e.1.tar"]);
    // At the start.
    scene.signal(Signal::TERM);
    scene.until_exit();
    age(&bundle_path(&scene, "d"));
    scene.start(&[]);
    scene.until_ready();
    assert_eq!(bundle_names(&scene), ["e.1.tar"]);
    scene.signal(Signal::TERM);
    scene.until_exit();
    scene.set_env("HIVEMIND_BUNDLES", "0");
    scene.start(&[]);
    scene.until_ready();
    assert!(bundle_names(&scene).is_empty());
    scene.submit(python("f", "import sys\nsys.exit(1)\n"));
    scene.until_complete("f");
    scene.until_clean();
    assert!(bundle_names(&scene).is_empty());
}

#[test]
fn a_worker_killed_over_a_bundle_leaves_no_half_of_one() {
    let mut scene = Scene::with_master("half");
    scene.env.push(("HIVEMIND_FAIL_AT".to_owned(), "K14".to_owned()));
    scene.start(&["--slots", "1"]);
    scene.submit(python("t", "import sys\nsys.exit(4)\n"));
    let status = scene.until_exit();
    assert!(!status.success(), "{status:?}");
    assert_eq!(bundle_names(&scene), ["t.1.new"]);
    scene.env.clear();
    scene.start(&[]);
    assert_eq!(scene.until_complete("t").exit_code, Some(4));
    scene.until_clean();
    assert!(bundle_names(&scene).is_empty());
}

/// Things at the engine that go with the test.
struct Things {
    docker: Docker,
    names: Vec<String>,
}

impl Things {
    /// One of each kind.
    fn make(&mut self, name: &str, subnet: &str, labels: &BTreeMap<String, String>) {
        let volume = VolumeCreate { name: name.to_owned(), labels: labels.clone(), ..VolumeCreate::default() };
        self.docker.create_volume(&volume).unwrap();
        let network = NetworkCreate { labels: labels.clone(), ..NetworkCreate::bridge(name, subnet) };
        self.docker.create_network(&network).unwrap();
        let body = CreateBody {
            image: "justin308/hivemind-worker:latest".to_owned(),
            labels: labels.clone(),
            ..CreateBody::default()
        };
        self.docker.create_container(name, &body).unwrap();
        self.names.push(name.to_owned());
    }

    /// How many of the three are there.
    fn count(&self, name: &str) -> usize {
        usize::from(self.docker.inspect_container(name).is_ok())
            + usize::from(self.docker.inspect_volume(name).is_ok())
            + self.docker.list_networks(&[]).unwrap().iter().filter(|network| network.name == name).count()
    }
}

impl Drop for Things {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = self.docker.remove_container(name);
            let _ = self.docker.remove_volume(name);
            let _ = self.docker.remove_network(name);
        }
    }
}

#[test]
fn only_what_is_this_nodes_and_belongs_to_no_attempt_is_collected() {
    let mut scene = Scene::with_master("gc");
    scene.start(&["--slots", "1"]);
    scene.submit(gated("runs", "sys.exit(0)\n"));
    scene.until_up("runs");
    let key = |task: &str| AttemptKey { task: Id::parse(task).unwrap(), attempt: 1 };
    let mut things = Things { docker: scene.docker.clone(), names: Vec::new() };
    let name = |word: &str| format!("hm-gc-test-{word}-{}", std::process::id());
    let ours = scene.identity.labels(&key("gone"), "task");
    // The same names of node and task, another key: another state folder on this machine.
    let other = Identity::new(&scene.identity.node, b"another key").labels(&key("gone"), "task");
    things.make(&name("ours"), "10.213.77.0/28", &ours);
    things.make(&name("other"), "10.213.77.16/28", &other);
    things.make(&name("bare"), "10.213.77.32/28", &BTreeMap::new());

    let would: Value = serde_json::from_str(&stdout(&scene, &["gc", "--dry-run", "--json"])).unwrap();
    let found: Vec<(&str, &str)> = would["left_over"]
        .as_array()
        .unwrap()
        .iter()
        .map(|thing| (thing["kind"].as_str().unwrap(), thing["name"].as_str().unwrap()))
        .collect();
    let ours_name = name("ours");
    let expected = ["container", "volume", "network"].map(|kind| (kind, ours_name.as_str()));
    assert_eq!(found, expected);
    assert_eq!(things.count(&ours_name), 3, "a dry run removes nothing");

    let removed = stdout(&scene, &["gc"]);
    assert_eq!(removed.lines().count(), 3, "{removed}");
    assert!(removed.contains("removed  gone#1 is not held any more"), "{removed}");
    assert_eq!(things.count(&ours_name), 0);
    let untouched = |things: &Things| {
        assert_eq!((things.count(&name("other")), things.count(&name("bare"))), (3, 3));
    };
    untouched(&things);

    // The start collects too, and lets what is held live.
    scene.kill_worker();
    things.make(&name("again"), "10.213.77.0/28", &ours);
    scene.start(&["--slots", "1"]);
    until_true("the start collects", || things.count(&name("again")) == 0);
    scene.until_adopted("runs", 1);
    untouched(&things);
    scene.go("runs");
    let report = scene.until_complete("runs");
    assert_eq!((report.outcome, report.exit_code), (Outcome::Succeeded, Some(0)));
    scene.until_clean();
    untouched(&things);
}

/// A task of the test's own engine that takes no notice of SIGTERM, and the process that stands between it and the engine.
fn frozen(name: &str) -> (OwnEngine, Scene, Frozen) {
    let engine = OwnEngine::start(name, Containers::EndWithIt);
    let mut scene = Scene::with_engine(name, DockerHost::parse(&engine.host()).unwrap());
    scene.env.push(("DOCKER_HOST".to_owned(), engine.host()));
    scene.env.push(("HIVEMIND_CLOCKS".to_owned(), scene.dir.join("clocks").display().to_string()));
    scene.start_master();
    scene.start(&["--slots", "2"]);
    let program = "trap '' TERM; echo up; while :; do /bin/busybox sleep 0.1; done";
    scene.submit(Offer {
        image: IMAGE.to_owned(),
        command: ["/bin/busybox", "sh", "-c", program].map(str::to_owned).to_vec(),
        grace_ms: Some(0),
        ..gated("t", "")
    });
    scene.until_up("t");
    let shim = Frozen::new(shim_of(&scene.container("t").unwrap()));
    scene.master().cancel("t").unwrap();
    scene
        .until_status("it is being stopped", |status| status.attempts.iter().any(|held| held.phase == Phase::Stopping));
    (engine, scene, shim)
}

/// A process that does nothing until this goes: also where a test fails, or its engine would wait for it without end.
struct Frozen(Pid);

impl Frozen {
    fn new(process: Pid) -> Self {
        kill_process(process, Signal::STOP).unwrap();
        Self(process)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

fn shim_of(container: &str) -> Pid {
    let is_it = |words: &str| words.contains("containerd-shim") && words.contains(container);
    let ids = fs::read_dir("/proc").unwrap().map_while(Result::ok).filter_map(|entry| {
        let words = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let id = entry.file_name().to_str()?.parse::<i32>().ok()?;
        is_it(&words).then_some(id)
    });
    Pid::from_raw(ids.min().expect("the container has a shim")).unwrap()
}

/// Seconds by which the worker's boot clock is ahead from now on.
fn jump(scene: &Scene, boot: i64) {
    let path = scene.dir.join("clocks");
    fs::write(path.with_extension("new"), format!("{boot} 0\n")).unwrap();
    fs::rename(path.with_extension("new"), path).unwrap();
}

fn until_undying(scene: &Scene) {
    let is_it = |text: &String| text.contains("t#1: its container hivemind-") && text.contains("after SIGKILL");
    // A call that is under way at the jump ends by its deadline, and the node may be degraded for that first.
    let status = scene.until_status("the node tells of it", |status| {
        status.state == NodeState::Degraded && is_it(&status.state_reason)
    });
    assert!(status.alerts.iter().any(is_it), "{:?}", status.alerts);
}

#[test]
fn a_container_that_can_not_be_killed_degrades_the_node_until_it_ends() {
    let (_engine, scene, shim) = frozen("undying");
    jump(&scene, 25);
    until_undying(&scene);
    assert!(scene.view("t").outcome.is_none());
    drop(shim);
    let report = scene.until_complete("t");
    assert_eq!(report.outcome, Outcome::Cancelled, "{report:?}");
    assert_eq!(report.evidence.unwrap().ended_by, EndedBy::Master);
    let status = scene.until_ready();
    assert!(status.alerts.iter().any(|text| text == "t#1: its container has ended after all"), "{:?}", status.alerts);
    scene.until_clean();
}

#[test]
fn a_container_that_never_ends_is_given_up_as_the_nodes_fault_and_holds_what_it_has() {
    let (_engine, scene, shim) = frozen("given-up");
    jump(&scene, 25);
    until_undying(&scene);
    jump(&scene, 25 + 700);
    let report = scene.until_complete("t");
    assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
    assert!(report.reason.contains("does not end"), "{}", report.reason);
    assert_eq!(report.evidence.clone().unwrap().ended_by, EndedBy::Nobody);
    // Delivered, and still in the way.
    let status =
        scene.until_status("it is delivered", |status| status.history.iter().any(|row| row.key.task.as_str() == "t"));
    assert_eq!((status.state, status.promised.slots), (NodeState::Degraded, 1), "{}", status.state_reason);
    drop(shim);
    let status = until("the node is itself again", || scene.status().filter(|status| status.state == NodeState::Ready));
    assert_eq!(status.promised.slots, 0);
    scene.until_clean();
}
