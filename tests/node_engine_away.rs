//! A node whose engine is not there, appears, goes away under a running task, and comes back.
#![allow(clippy::unwrap_used)]

mod node_util;

use hivemind_worker::node::record::{Outcome, Phase};
use hivemind_worker::node::snapshot::{AttemptView, NodeState};
use node_util::relay::EngineRelay;
use node_util::{Scene, gated, how, python, until_true};

fn scene(name: &str) -> (Scene, std::path::PathBuf) {
    let mut scene = Scene::with_master(name);
    let socket = scene.dir.join("engine.sock");
    scene.env.push(("DOCKER_HOST".to_owned(), format!("unix://{}", socket.display())));
    (scene, socket)
}

#[test]
fn without_an_engine_the_node_says_what_is_missing_and_begins_when_it_appears() {
    let (mut scene, socket) = scene("no-engine");
    scene.submit(gated("waits", "sys.exit(5)\n"));
    scene.start(&[]);
    let status = scene.until_status("the node is degraded and registered", |status| {
        status.state == NodeState::Degraded
            && !status.engine.detail.contains("not looked")
            && status.master.is_connected
    });
    let path = socket.display().to_string();
    for words in ["there is no engine socket at", path.as_str(), "install and start Docker, or set DOCKER_HOST"] {
        assert!(status.state_reason.contains(words), "{:?} says nothing of {words:?}", status.state_reason);
    }
    assert!(status.alerts.is_empty() || status.alerts[0].contains("engine"), "{:?}", status.alerts);
    let text = String::from_utf8(scene.run(&["status"]).stdout).unwrap();
    assert!(text.contains("degraded") && text.contains("not usable"), "{text}");
    let before = scene.heartbeats();
    until_true("heartbeats go on", || scene.heartbeats() >= before + 2);
    assert_eq!(scene.view("waits").phase, "waiting", "{:?}", scene.view("waits"));
    assert_eq!(scene.left_overs(), 0);
    let engine = EngineRelay::open(&socket);
    scene.until_up("waits");
    scene.go("waits");
    assert_eq!(how(&scene.until_complete("waits")), (Outcome::Failed, Some(5)));
    let status = scene.until_ready();
    assert!(status.engine.is_usable, "{status:?}");
    scene.until_clean();
    drop(engine);
}

#[test]
fn a_task_lives_through_an_engine_that_goes_away_and_ends_with_its_own_exit_code() {
    let (mut scene, socket) = scene("cut");
    let engine = EngineRelay::open(&socket);
    scene.start(&["--slots", "3"]);
    scene.submit(gated("ends-meanwhile", "sys.exit(7)\n"));
    scene.submit(gated("ends-later", "print('late', flush=True)\nsys.exit(9)\n"));
    scene.submit(gated("killed-later", "os.kill(os.getpid(), signal.SIGKILL)\n"));
    scene.until_up("ends-meanwhile");
    scene.until_up("ends-later");
    scene.until_up("killed-later");
    // A task's first output can come before the node has read its limits back.
    scene.until_status("all three run", |status| {
        status.attempts.iter().filter(|attempt| attempt.phase == Phase::Running).count() == 3
    });
    engine.cut();
    let status = scene.until_status("the node sees that the engine is away", |status| {
        status.state == NodeState::Degraded && status.attempts.len() == 3
    });
    assert!(status.attempts.iter().all(|attempt| attempt.phase == Phase::Running), "{:?}", status.attempts);
    let container = scene.container("ends-meanwhile").unwrap();
    scene.go("ends-meanwhile");
    until_true("the container ends", || !scene.docker.inspect_container(&container).unwrap().state.running);
    let before = scene.heartbeats();
    until_true("heartbeats go on", || scene.heartbeats() >= before + 2);
    for task in ["ends-meanwhile", "ends-later", "killed-later"] {
        assert!(scene.view(task).outcome.is_none(), "{:?}", scene.view(task));
    }
    let engine = EngineRelay::open(&socket);
    let report = scene.until_complete("ends-meanwhile");
    assert_eq!(how(&report), (Outcome::Failed, Some(7)), "{report:?}");
    let is_told = || scene.view("ends-later").notes.iter().any(|note| note.contains("is missing"));
    until_true("the gap is told", is_told);
    scene.until_status("the tasks no longer wait for the engine", |status| {
        let is_well = |held: &&AttemptView| held.phase == Phase::Running && held.detail.is_empty();
        status.attempts.iter().filter(is_well).count() == 2
    });
    scene.go("ends-later");
    let report = scene.until_complete("ends-later");
    assert_eq!(how(&report), (Outcome::Failed, Some(9)), "{report:?}");
    assert_eq!(scene.stdout("ends-later"), "up\nlate\n");
    // What it does to itself is not the engine's doing, though the engine was away before.
    scene.go("killed-later");
    let report = scene.until_complete("killed-later");
    assert_eq!(how(&report), (Outcome::Failed, Some(137)), "{report:?}");
    for task in ["ends-meanwhile", "ends-later", "killed-later"] {
        assert_eq!(scene.containers_ever(task).len(), 1);
    }
    scene.until_clean();
    drop(engine);
}

#[test]
fn a_worker_that_starts_without_its_engine_keeps_its_running_task() {
    let (mut scene, socket) = scene("blind");
    let engine = EngineRelay::open(&socket);
    scene.start(&[]);
    scene.submit(gated("kept", "sys.exit(4)\n"));
    scene.until_up("kept");
    scene.kill_worker();
    engine.cut();
    scene.start(&[]);
    scene.until_status("the attempt is held", |status| {
        status.state == NodeState::Degraded
            && status.attempts.iter().any(|held| held.detail.contains("waits for the engine"))
    });
    assert!(scene.view("kept").outcome.is_none());
    let engine = EngineRelay::open(&socket);
    scene.until_adopted("kept", 1);
    scene.go("kept");
    assert_eq!(how(&scene.until_complete("kept")), (Outcome::Failed, Some(4)));
    assert_eq!(scene.containers_ever("kept").len(), 1);
    scene.until_clean();
    drop(engine);
}

#[test]
fn a_task_that_is_cancelled_before_its_start_is_answered_still_has_its_grace() {
    let (mut scene, socket) = scene("young");
    let engine = EngineRelay::open(&socket);
    engine.hold_starts(true);
    scene.start(&["--slots", "1"]);
    let program = "import signal, sys\n\
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))\nprint('up', flush=True)\n\
        while True: signal.pause()\n";
    scene.submit(python("young", program));
    // It runs, but the engine has not said so.
    scene.until_up("young");
    let said = scene.run(&["cancel", "young"]);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    engine.hold_starts(false);
    assert_eq!(how(&scene.until_complete("young")), (Outcome::Cancelled, Some(4)));
    scene.until_clean();
}
