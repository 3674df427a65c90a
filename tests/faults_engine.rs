//! Rows 25 to 29 and 31 of the fault matrix: an engine that is killed or frozen, what somebody does to a container by hand,
//! and a registry that breaks off.
//!
//! The engine of the first rows is the test's own.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hivemind_worker::docker::DockerHost;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{Outcome, Phase};
use hivemind_worker::node::snapshot::NodeState;
use node_util::own_engine::{Containers, IMAGE, OwnEngine};
use node_util::{Scene, gated, how, until_true};
use rustix::process::{Pid, Signal, kill_process};

/// A task that ends with 9 when it is let go.
fn task(name: &str) -> Offer {
    let program = "trap 'exit 9' USR1; echo up; while :; do /bin/busybox sleep 0.1; done";
    Offer {
        image: IMAGE.to_owned(),
        command: ["/bin/busybox", "sh", "-c", program].map(str::to_owned).to_vec(),
        ..gated(name, "")
    }
}

fn scene(name: &str, containers: Containers) -> (OwnEngine, Scene) {
    let engine = OwnEngine::start(name, containers);
    let mut scene = Scene::with_engine(name, DockerHost::parse(&engine.host()).unwrap());
    scene.start_master();
    scene.env.push(("DOCKER_HOST".to_owned(), engine.host()));
    scene.start(&["--slots", "2"]);
    scene.submit(task("t"));
    scene.until_up("t");
    scene.until_status("it runs", |status| status.attempts.iter().any(|held| held.phase == Phase::Running));
    (engine, scene)
}

fn until_away(scene: &Scene) {
    let status = scene.until_status("the engine is away", |status| status.state == NodeState::Degraded);
    assert!(status.attempts.iter().all(|attempt| attempt.phase == Phase::Running), "{:?}", status.attempts);
    assert!(scene.view("t").outcome.is_none(), "{:?}", scene.view("t"));
}

#[test]
fn row_25_killed_engine_that_takes_its_containers_along_is_the_nodes_fault() {
    let (mut engine, scene) = scene("killed", Containers::EndWithIt);
    engine.kill();
    until_away(&scene);
    engine.start_again();
    let report = scene.until_complete("t");
    assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
    // By the engine's SIGKILL, or by the SIGTERM before it.
    assert!(matches!(report.exit_code, Some(137 | 143)), "{report:?}");
    assert_eq!(report.reason, "lost to the engine's restart");
    scene.until_clean();
}

#[test]
fn row_26_container_that_lives_through_its_engine_ends_with_its_own_code() {
    let (mut engine, scene) = scene("lives", Containers::LiveOn);
    engine.kill();
    until_away(&scene);
    engine.start_again();
    scene.until_status("it is followed again", |status| {
        status.attempts.iter().any(|held| held.phase == Phase::Running && held.detail.is_empty())
    });
    scene.go("t");
    let report = scene.until_complete("t");
    assert_eq!(how(&report), (Outcome::Failed, Some(9)), "{report:?}");
    scene.until_clean();
}

#[test]
fn row_27_frozen_engine_holds_up_neither_heartbeats_nor_the_result() {
    let (engine, scene) = scene("frozen", Containers::LiveOn);
    let begin = Instant::now();
    engine.signal(Signal::STOP);
    let held = scene.until_status("a call has met its deadline", |status| {
        status.attempts.iter().any(|held| held.detail.contains("waits for the engine"))
    });
    println!("told after {:?}: {}", begin.elapsed(), held.attempts[0].detail);
    let before = scene.heartbeats();
    until_true("heartbeats go on", || scene.heartbeats() >= before + 5);
    assert!(scene.view("t").outcome.is_none());
    engine.signal(Signal::CONT);
    scene.until_status("it is followed again", |status| {
        status.attempts.iter().any(|held| held.phase == Phase::Running && held.detail.is_empty())
    });
    scene.go("t");
    assert_eq!(how(&scene.until_complete("t")), (Outcome::Failed, Some(9)));
    scene.until_clean();
}

#[test]
fn row_28_what_the_owner_does_to_a_container_by_hand_ends_in_a_report() {
    let mut scene = Scene::with_master("by-hand");
    scene.start(&["--slots", "3"]);
    let program = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n\
        print('up', flush=True)\nwhile True: signal.pause()\n";
    for name in ["removed", "stopped"] {
        scene.submit(node_util::python(name, program));
    }
    scene.submit(Offer { timeout_ms: 5_000, grace_ms: Some(500), ..gated("paused", "") });
    for name in ["removed", "stopped", "paused"] {
        scene.until_up(name);
    }
    let id = |name: &str| scene.container(name).unwrap();
    // It can't run for ever though nobody lets it go on: its time runs.
    scene.docker.pause_container(&id("paused")).unwrap();
    scene.docker.remove_container(&id("removed")).unwrap();
    scene.docker.kill_container(&id("stopped"), "SIGTERM").unwrap();
    let report = scene.until_complete("removed");
    assert_eq!(report.outcome, Outcome::Cancelled, "{report:?}");
    assert_eq!(report.reason, "the container was removed from outside the worker");
    assert_eq!(how(&scene.until_complete("stopped")), (Outcome::Failed, Some(7)));
    let report = scene.until_complete("paused");
    assert_eq!(report.outcome, Outcome::TimedOut, "{report:?}");
    assert!(report.duration_ms < 20_000, "{report:?}");
    scene.until_clean();
}

/// Kills the process that the engine keeps for the task's container.
fn kill_shim(scene: &Scene, task: &str) {
    let process = scene.docker.inspect_container(&scene.container(task).unwrap()).unwrap().state.pid;
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    let name = fs::read_to_string(format!("/proc/{parent}/comm")).unwrap();
    assert!(name.starts_with("containerd-shim"), "the container's own parent: {name}");
    kill_process(Pid::from_raw(parent.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn row_29_killed_shim_is_the_nodes_fault() {
    let mut scene = Scene::with_master("shim");
    scene.start(&["--slots", "2"]);
    for task in ["fresh", "adopted"] {
        scene.submit(gated(task, ""));
        scene.until_up(task);
        if task == "adopted" {
            scene.kill_worker();
            scene.start(&["--slots", "2"]);
            scene.until_adopted(task, 1);
        }
        // From then on the worker has its eyes on the shim too.
        scene.until_status("its use was seen", |status| {
            status.attempts.iter().any(|held| held.key.task.as_str() == task && held.usage.memory_bytes > 0)
        });
        let begin = Instant::now();
        kill_shim(&scene, task);
        let report = scene.until_complete(task);
        println!("{task}: after {:?}: {}", begin.elapsed(), report.reason);
        assert_eq!(how(&report), (Outcome::NodeFault, Some(137)), "{task}: {report:?}");
        assert!(report.reason.contains("(its shim) ended"), "{report:?}");
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    }
    scene.until_clean();
}

#[test]
fn row_29_task_that_ends_with_137_before_its_shim_has_failed() {
    let mut scene = Scene::with_master("no-shim");
    scene.start(&["--slots", "3"]);
    for (task, rest) in [("exits", "sys.exit(137)\n"), ("killed", ""), ("other", "sys.exit(3)\n")] {
        scene.submit(gated(task, rest));
    }
    for task in ["exits", "killed", "other"] {
        scene.until_up(task);
    }
    scene.go("exits");
    scene.docker.kill_container(&scene.container("killed").unwrap(), "SIGKILL").unwrap();
    scene.go("other");
    for (task, code) in [("exits", 137), ("killed", 137), ("other", 3)] {
        assert_eq!(how(&scene.until_complete(task)), (Outcome::Failed, Some(code)), "{task}");
    }
    scene.until_clean();
}

/// Says that it is a registry, then breaks off each question for the image.
fn broken_registry() -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/broken:1", listener.local_addr().unwrap());
    let pulls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&pulls);
    // Ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            answer(stream, &counted);
        }
    });
    (name, pulls)
}

fn answer(mut stream: TcpStream, pulls: &AtomicU32) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    // The engine tries TLS first.
    while !head.ends_with(b"\r\n\r\n") && head.first() != Some(&0x16) && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    if head.starts_with(b"GET /v2/ ") {
        pulls.fetch_add(1, Ordering::Relaxed);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}");
    }
}

#[test]
fn row_31_pull_that_breaks_off_is_tried_three_times() {
    let (image, pulls) = broken_registry();
    let mut scene = Scene::with_master("broken-pull");
    scene.start(&[]);
    scene.submit(Offer { image, pull: "if-missing".to_owned(), ..gated("t", "") });
    let report = scene.until_complete("t");
    assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
    assert_eq!(pulls.load(Ordering::Relaxed), 3, "{report:?}");
    assert!(scene.containers_ever("t").is_empty());
    scene.until_clean();
}
