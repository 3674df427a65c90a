//! How a worker ends, how it refuses to begin, and what SIGHUP changes.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::{Duration, Instant};

use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::Outcome;
use node_util::{Scene, gated, how, python, until, until_true};
use rustix::process::Signal;

#[test]
fn a_stop_lets_the_task_save_its_work_and_reports_it_preempted() {
    let mut scene = Scene::with_master("stop");
    scene.start(&["--shutdown", "stop"]);
    let program = "import signal, sys\n\
        def save(*_):\n    open('output/saved', 'w').write('saved')\n    sys.exit(0)\n\
        signal.signal(signal.SIGTERM, save)\nprint('up', flush=True)\n\
        while True: signal.pause()\n";
    scene.submit(python("saves", program));
    // Deaf to SIGTERM: killed when its grace is over.
    let deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\n\
        while True: signal.pause()\n";
    scene.submit(Offer { grace_ms: Some(2_000), ..python("deaf", deaf) });
    scene.until_up("saves");
    scene.until_up("deaf");
    let told = Instant::now();
    scene.signal(Signal::TERM);
    assert_eq!(scene.until_exit().code(), Some(0), "{}", scene.log());
    println!("stopped in {:?}", told.elapsed());
    assert!(told.elapsed() < Duration::from_secs(30), "{:?}", told.elapsed());
    // The last reports were delivered before the end.
    let report = scene.until_complete("saves");
    assert_eq!(how(&report), (Outcome::Preempted, Some(0)), "{report:?}");
    assert_eq!(report.outputs.len(), 1, "{report:?}");
    assert_eq!(report.reason, "the node is shutting down");
    let report = scene.until_complete("deaf");
    assert_eq!(how(&report), (Outcome::Preempted, Some(137)), "{report:?}");
    assert_eq!(scene.left_overs(), 0);
}

#[test]
fn leaving_lets_the_container_run_on_for_the_next_start() {
    let mut scene = Scene::with_master("leave");
    scene.start(&["--shutdown", "leave"]);
    scene.submit(gated("left", "print('after', flush=True)\n"));
    scene.until_up("left");
    let container = scene.container("left").unwrap();
    let told = Instant::now();
    scene.signal(Signal::TERM);
    assert_eq!(scene.until_exit().code(), Some(0), "{}", scene.log());
    println!("left in {:?}", told.elapsed());
    assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
    assert!(scene.docker.inspect_container(&container).unwrap().state.running);
    scene.start(&["--shutdown", "leave"]);
    scene.until_adopted("left", 1);
    scene.go("left");
    let report = scene.until_complete("left");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    assert_eq!(scene.stdout("left"), "up\nafter\n");
    assert_eq!(scene.containers_ever("left").len(), 1);
    scene.until_clean();
}

#[test]
fn finishing_waits_for_what_runs_and_takes_nothing_new() {
    let mut scene = Scene::with_master("finish");
    scene.start(&["--shutdown", "finish"]);
    scene.submit(gated("runs", "print('after', flush=True)\n"));
    scene.until_up("runs");
    scene.signal(Signal::TERM);
    scene.until_status("it drains", |status| status.state_reason.contains("shutting down"));
    scene.submit(python("late", "print('up')\n"));
    let before = scene.heartbeats();
    until_true("heartbeats go on", || scene.heartbeats() >= before + 2);
    assert_eq!(scene.view("late").phase, "waiting");
    assert!(scene.worker.as_mut().unwrap().try_wait().unwrap().is_none());
    scene.go("runs");
    assert_eq!(scene.until_exit().code(), Some(0), "{}", scene.log());
    let report = scene.until_complete("runs");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    assert_eq!(scene.stdout("runs"), "up\nafter\n");
    assert_eq!(scene.left_overs(), 0);
}

#[test]
fn a_second_signal_ends_at_once_and_the_next_start_goes_on() {
    let mut scene = Scene::with_master("twice");
    scene.start(&["--shutdown", "finish"]);
    scene.submit(gated("runs", ""));
    scene.until_up("runs");
    scene.signal(Signal::TERM);
    scene.until_status("it drains", |status| status.state_reason.contains("shutting down"));
    let told = Instant::now();
    scene.signal(Signal::INT);
    let status = scene.until_exit();
    assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
    assert_eq!(status.code(), Some(1), "{}", scene.log());
    scene.start(&[]);
    scene.until_adopted("runs", 1);
    scene.go("runs");
    assert_eq!(how(&scene.until_complete("runs")), (Outcome::Succeeded, Some(0)));
    scene.until_clean();
}

#[test]
fn a_second_worker_on_the_same_folder_is_refused_in_one_line() {
    let mut scene = Scene::with_master("second");
    scene.start(&[]);
    scene.until_ready();
    let pid = scene.worker.as_ref().unwrap().id();
    let told = Instant::now();
    let second = scene.run(&["--master-url", "http://127.0.0.1:1", "--monitor-port", "0"]);
    assert!(told.elapsed() < Duration::from_secs(5));
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!((second.status.code(), said.lines().count()), (Some(78), 1), "{said}");
    assert!(said.contains(&format!("process {pid}")) && said.contains("state/lock"), "{said}");
    assert!(scene.status().is_some(), "the first one goes on");
}

#[test]
fn a_state_folder_that_is_not_private_is_refused_in_words() {
    let scene = Scene::with_master("folders");
    let state = scene.dir.join("state");
    let refused = |words: &str| {
        let output = scene.run(&["--master-url", "http://127.0.0.1:1", "--monitor-port", "0"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(78), 1), "{said}");
        assert!(said.contains(words), "{said:?} says nothing of {words:?}");
    };
    fs::set_permissions(&state, Permissions::from_mode(0o777)).unwrap();
    refused("mode 0777, so others may look into it: chmod 700");
    fs::set_permissions(&state, Permissions::from_mode(0o700)).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(&state, Some(12_345), None).unwrap();
        refused("belongs to user 12345");
    }
    fs::remove_dir_all(&state).unwrap();
    fs::write(&state, "").unwrap();
    refused("is no folder");
}

#[test]
fn sighup_says_what_changed_and_what_needs_a_restart() {
    let mut scene = Scene::with_master("hup");
    let file = node_util::write(scene.dir.join("worker.conf"), "HIVEMIND_SLOTS=3\nLOG_LEVEL=info\n");
    let file = file.display().to_string();
    scene.start(&["--config", &file]);
    assert_eq!(scene.until_ready().lent.slots, 3);
    let new = "HIVEMIND_SLOTS=2\nLOG_LEVEL=debug\nNODE_LABELS=a=b\nHIVEMIND_LOG_BUDGET=1MiB\n";
    node_util::write(scene.dir.join("worker.conf"), new);
    scene.signal(Signal::HUP);
    scene.until_status("the new slots are lent", |status| status.lent.slots == 2);
    let log = until("it says what changed", || {
        let log = scene.log();
        (log.contains("configuration read again") && log.contains("only a restart")).then_some(log)
    });
    let line = |words: &str| log.lines().find(|line| line.contains(words)).unwrap().to_owned();
    let changed = line("configuration read again");
    assert!(changed.contains("HIVEMIND_SLOTS") && changed.contains("LOG_LEVEL"), "{changed}");
    assert!(!changed.contains("NODE_LABELS"), "{changed}");
    let later = line("only a restart");
    assert!(later.contains("NODE_LABELS") && later.contains("HIVEMIND_LOG_BUDGET"), "{later}");
    // A mistake changes nothing.
    node_util::write(scene.dir.join("worker.conf"), "HIVEMIND_SLOTS=many\n");
    scene.signal(Signal::HUP);
    until_true("the mistake is named", || scene.log().contains("the configuration stays as it was"));
    assert!(scene.log().contains("HIVEMIND_SLOTS"), "{}", scene.log());
    assert_eq!(scene.status().unwrap().lent.slots, 2);
}
