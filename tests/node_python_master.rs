//! A node and the master in Python (tests/peers/python_master.py): what a master may do that ours never does, such as
//! losing its answers, refusing pieces for ever, ending tokens early, or saying what no node of today can know.
//!
//! What both masters do alike is in tests/node_master.rs and tests/node_kill.rs.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{EventKind, Outcome, Phase};
use hivemind_worker::node::snapshot::NodeState;
use node_util::python_master::for_each_contract;
use node_util::{MasterKind, Scene, gated, how, python, until, until_true};
use ring::digest::{SHA256, digest};
use serde_json::json;

for_each_contract!(
    a_result_arrives_whole_and_once_though_answers_are_lost,
    an_offer_that_the_master_makes_again_runs_once,
    a_cancellation_is_answered_by_how_it_stands,
    a_master_that_has_forgotten_hears_of_what_runs_and_what_waits,
    tokens_that_end_are_renewed_and_nothing_is_lost,
    a_piece_that_is_refused_for_ever_is_noted_and_the_report_still_arrives,
    a_node_says_why_it_is_not_let_in,
    a_master_that_falls_silent_or_is_overloaded_gets_everything_once,
    unknown_words_of_the_master_change_nothing_else,
);

fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How often the master's call was begun.
fn calls(scene: &Scene, name: &str) -> u64 {
    scene.python().counts()["calls"][name].as_u64().unwrap_or(0)
}

/// How often the node has registered with a master that did not forget it.
fn registrations(scene: &Scene) -> u64 {
    scene.python().node(&scene.identity.node)["registrations"].as_u64().unwrap_or(0)
}

/// Waits until the node says this of its master.
fn until_told(scene: &Scene, words: &str) {
    scene.until_status(words, |status| !status.master.is_connected && status.master.detail.contains(words));
    assert!(scene.log().contains(words), "{}", scene.log());
}

fn a_result_arrives_whole_and_once_though_answers_are_lost(master: MasterKind) {
    let mut scene = Scene::of(master, "whole");
    scene.start(&[]);
    let program = "import hashlib\n\
        for name, size in [('empty', 0), ('small', 10), ('large', 700000)]:\n    \
            block = os.urandom(size)\n    \
            open(f'output/{name}', 'wb').write(block)\n    \
            print(name, hashlib.sha256(block).hexdigest())\n\
        print('quite', file=sys.stderr)\n\
        sys.exit(3)\n";
    scene.submit(gated("files", program));
    scene.until_up("files");
    // Each piece of these is taken by the master, which the node can't know.
    scene.python().set(json!({"lose_answers": 4, "odd_answers": 2}));
    let begin = Instant::now();
    scene.go("files");
    let report = scene.until_complete("files");
    // Calls that fail together make the node wait once, a second at first.
    assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
    assert_eq!(how(&report), (Outcome::Failed, Some(3)), "{report:?}");
    let text = scene.stdout("files");
    let mut told = text.lines().skip(1);
    for (name, size) in [("empty", 0), ("small", 10), ("large", 700_000)] {
        let mut bytes = Vec::new();
        scene.master().output("files", &format!("output/{name}")).unwrap().reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), size);
        let line = format!("{name} {}", sha256(&bytes));
        assert_eq!(told.next(), Some(line.as_str()));
        let file = report.outputs.iter().find(|file| file.path == format!("output/{name}")).unwrap();
        assert_eq!((file.size, file.sha256.as_str()), (size as u64, &line[name.len() + 1..]));
    }
    let record = scene.python().record("files", 1);
    assert_eq!((record["stderr_bytes"].as_u64(), record["offers"].as_u64()), (Some(6), Some(1)), "{record}");
    for stream in record["streams"].as_array().unwrap() {
        assert_eq!((&stream["gaps"], &stream["is_closed"]), (&json!([]), &json!(true)), "{record}");
    }
    let counts = scene.python().counts();
    assert!(counts["doubles"].as_u64() >= Some(6), "{counts}");
    assert_eq!(scene.containers_ever("files").len(), 1);
    scene.until_status("nothing is held any more", |status| status.attempts.is_empty());
    scene.until_clean();
    scene.python().check();
}

fn an_offer_that_the_master_makes_again_runs_once(master: MasterKind) {
    let mut scene = Scene::of(master, "again");
    scene.python().set(json!({"forget_taken": 3}));
    scene.start(&["--slots", "2"]);
    scene.submit(gated("once", ""));
    scene.until_up("once");
    until_true("it is offered again", || scene.python().record("once", 1)["offers"].as_u64() >= Some(2));
    scene.go("once");
    let report = scene.until_complete("once");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    let record = scene.python().record("once", 1);
    assert_eq!(record["refusals"], json!([]), "{record}");
    assert_eq!(scene.containers_ever("once").len(), 1);

    // The master's word on what is wrong with an offer, and nothing of it starts.
    scene.submit(Offer { image: "--privileged".to_owned(), ..python("wrong", "") });
    scene.until_view("wrong", "it is refused", |view| view.is_complete);
    let refusals = &scene.python().record("wrong", 1)["refusals"];
    assert_eq!(refusals[0][0], "invalid", "{refusals}");
    assert!(refusals[0][1].as_str().unwrap().contains("image"), "{refusals}");
    assert!(scene.containers_ever("wrong").is_empty());
    scene.until_clean();
}

fn a_cancellation_is_answered_by_how_it_stands(master: MasterKind) {
    let mut scene = Scene::of(master, "answers");
    scene.start(&["--slots", "2"]);
    let answers = |scene: &Scene, task| scene.python().record(task, 1)["cancel_answers"].clone();
    scene.submit(Offer { grace_ms: Some(0), ..gated("runs", "") });
    scene.submit(gated("lost", ""));
    scene.until_up("runs");
    scene.until_up("lost");
    scene.master().cancel("runs").unwrap();
    let report = scene.until_complete("runs");
    assert_eq!((report.outcome, report.reason.as_str()), (Outcome::Cancelled, "cancelled by its author"));
    assert_eq!(answers(&scene, "runs"), json!(["stopping"]));

    // A node that lost its disk, but not its key, knows of no attempt. The master goes on asking until it hears that.
    scene.kill_worker();
    scene.master().cancel("lost").unwrap();
    let state = scene.dir.join("state");
    for entry in fs::read_dir(&state).unwrap().map(Result::unwrap).filter(|entry| entry.file_name() != "node.key") {
        let path = entry.path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    scene.start(&["--slots", "2"]);
    let view = scene.until_view("lost", "the master gives it up", |view| view.is_complete);
    assert_eq!(view.outcome, Some(Outcome::Cancelled), "{view:?}");
    assert_eq!(answers(&scene, "lost"), json!(["unknown"]));
    scene.until_clean();
    scene.python().check();
}

fn a_master_that_has_forgotten_hears_of_what_runs_and_what_waits(master: MasterKind) {
    let mut scene = Scene::of(master, "spool");
    scene.start(&["--slots", "2", "--cpus", "2"]);
    for task in ["runs", "waits"] {
        scene.submit(gated(task, "print('over', flush=True)\nopen('output/x', 'w').write('x')\n"));
        scene.until_up(task);
    }
    scene.stop_master();
    scene.go("waits");
    scene.until_status("its report waits", |status| {
        status.attempts.iter().any(|held| held.key.task.as_str() == "waits" && held.phase == Phase::Reporting)
    });
    scene.forget_master();
    scene.start_master();
    let node = until("the node registers again", || {
        Some(scene.python().node(&scene.identity.node)).filter(|node| !node.is_null())
    });
    assert_eq!((&node["held"], &node["registrations"]), (&json!([["runs", 1], ["waits", 1]]), &json!(1)));
    scene.until_view("waits", "its report arrives", |view| view.final_report.is_some());
    scene.go("runs");
    scene.until_view("runs", "its report arrives", |view| view.final_report.is_some());
    scene.until_status("nothing is held any more", |status| status.attempts.is_empty());
    for task in ["runs", "waits"] {
        // What the master had before it forgot is not there any more, and nothing of the rest is missing.
        let record = scene.python().record(task, 1);
        let output = &record["streams"][0];
        assert_eq!((&output["start"], &output["end"]), (&json!(3), &json!(8)), "{record}");
        let finals = scene.python().events(task, 1);
        let finals = finals.iter().filter(|event| matches!(event.kind, EventKind::Final(_)));
        assert_eq!(finals.count(), 1, "{record}");
        assert_eq!(scene.stdout(task), "over\n");
        let mut text = String::new();
        scene.master().output(task, "output/x").unwrap().reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }
    scene.until_clean();
    scene.python().check();
}

fn tokens_that_end_are_renewed_and_nothing_is_lost(master: MasterKind) {
    let mut scene = Scene::of(master, "tokens");
    scene.python().set(json!({"token_life_ms": 2_600}));
    scene.start(&[]);
    let program = "import signal, time\n\
        go = []\n\
        signal.signal(signal.SIGUSR1, lambda *_: go.append(1))\n\
        n = 0\n\
        print('up', flush=True)\n\
        while not go:\n    print(n, flush=True)\n    n += 1\n    time.sleep(0.02)\n\
        open('output/n', 'w').write(str(n))\n";
    scene.submit(python("counts", program));
    scene.until_up("counts");
    let first = registrations(&scene);
    until_true("it is renewed in time", || registrations(&scene) >= first + 2);
    assert_eq!(scene.python().counts()["strangers"], 0, "no call carries a token that has ended");
    // All tokens end at once, of both lanes, in the middle of the output.
    let before = registrations(&scene);
    scene.python().ask(json!({"do": "expire"}));
    until_true("it registers again", || registrations(&scene) > before);
    scene.go("counts");
    let report = scene.until_complete("counts");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    let mut text = String::new();
    scene.master().output("counts", "output/n").unwrap().reader.read_to_string(&mut text).unwrap();
    let lines: String = (0..text.parse::<u64>().unwrap()).map(|n| format!("{n}\n")).collect();
    assert_eq!(scene.stdout("counts"), format!("up\n{lines}"));
    assert!(scene.python().counts()["strangers"].as_u64() > Some(0));
    assert_eq!(scene.containers_ever("counts").len(), 1);
    scene.until_clean();
    scene.python().check();
}

fn a_piece_that_is_refused_for_ever_is_noted_and_the_report_still_arrives(master: MasterKind) {
    let mut scene = Scene::of(master, "refused");
    scene.python().set(json!({"refuse_larger_than": 1_000}));
    scene.start(&[]);
    let program = "open('output/large', 'w').write('x' * 5000)\n\
        open('output/small', 'w').write('all of it')\n\
        print('over', flush=True)\n";
    scene.submit(gated("pieces", program));
    scene.until_up("pieces");
    scene.go("pieces");
    scene.until_view("pieces", "all of it has arrived, or was refused", |view| {
        view.is_complete && view.notes.iter().any(|note| note.contains("no more than 1000 bytes are taken"))
    });
    scene.until_status("nothing is held any more", |status| status.attempts.is_empty());
    let view = scene.view("pieces");
    let report = view.final_report.unwrap();
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    let large = report.outputs.iter().find(|file| file.path == "output/large").unwrap().stream;
    // In one piece or, as it comes, in several; a last one that is small enough is taken.
    let mut refused: Vec<(u64, u64)> = Vec::new();
    for note in view.notes.iter().filter(|note| note.contains(&format!(" of stream {large}, "))) {
        let words: Vec<&str> = note.split(' ').collect();
        refused.push((words[1].parse().unwrap(), words[3].parse().unwrap()));
    }
    assert!(refused[0].0 == 0 && refused.windows(2).all(|pair| pair[0].1 == pair[1].0), "{refused:?}");
    assert!(refused.last().unwrap().1 >= 4_000, "{refused:?}");
    assert_eq!(scene.stdout("pieces"), "up\nover\n");
    let mut text = String::new();
    scene.master().output("pieces", "output/small").unwrap().reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "all of it");
    // They were not tried again and again.
    assert_eq!(scene.python().counts()["refused"], refused.len());
    scene.until_clean();
    scene.python().check();
}

fn a_node_says_why_it_is_not_let_in(master: MasterKind) {
    let mut scene = Scene::of(master, "doors");
    scene.python().set(json!({"spoil_nonces": 1, "join_token": "open-sesame"}));
    scene.start(&[]);
    until_told(&scene, "join_token is not the right one");
    scene.kill_worker();
    scene.env.push(("HIVEMIND_TOKEN".to_owned(), "open-sesame".to_owned()));
    scene.start(&[]);
    until_told(&scene, "proof.signature does not fit nonce, id and key");
    assert_eq!(registrations(&scene), 0);
    scene.kill_worker();
    scene.start(&[]);
    scene.until_status("it is let in", |status| status.master.is_connected);
    scene.kill_worker();
    fs::remove_file(scene.dir.join("state/node.key")).unwrap();
    scene.start(&[]);
    until_told(&scene, &format!("{} is known here with another key", scene.identity.node));
    assert_eq!(registrations(&scene), 1);
    scene.python().check();
}

fn a_master_that_falls_silent_or_is_overloaded_gets_everything_once(master: MasterKind) {
    let mut scene = Scene::of(master, "silent");
    scene.start(&["--slots", "2"]);
    for (task, trouble) in [("silent", "is_silent"), ("overloaded", "is_unavailable")] {
        scene.submit(gated(task, "print('over')\nopen('output/x', 'w').write('x')\n"));
        scene.until_up(task);
        let before = calls(&scene, "submit");
        scene.python().set(json!({trouble: true}));
        scene.go(task);
        scene.until_status("it ends", |status| {
            status.attempts.iter().any(|held| held.key.task.as_str() == task && held.phase == Phase::Reporting)
        });
        until_true("a piece is on its way", || calls(&scene, "submit") > before);
        assert!(scene.view(task).final_report.is_none());
        scene.python().set(json!({trouble: false}));
        let report = scene.until_complete(task);
        assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
        assert_eq!(scene.stdout(task), "up\nover\n");
        assert_eq!(scene.containers_ever(task).len(), 1);
    }
    scene.until_clean();
    scene.python().check();
}

/// No contract has these numbers, or a later one; the answers of a later one have more beside them, everywhere.
fn unknown_words_of_the_master_change_nothing_else(master: MasterKind) {
    let mut scene = Scene::of(master, "words");
    scene.python().set(json!({"trust_level": 77, "directives": [77, -1]}));
    scene.start(&["--cpus", "2"]);
    // A level that is not known here is the least.
    let status = scene.until_status("it is registered", |status| {
        status.master.is_connected && status.free.cpu_millis == status.lent.cpu_millis * 3 / 10
    });
    assert_eq!((status.state, status.alerts), (NodeState::Ready, Vec::new()));
    scene.submit(python("little", "print('up')\n"));
    assert_eq!(how(&scene.until_complete("little")), (Outcome::Succeeded, Some(0)));
    scene.python().set(json!({"trust_level": 1}));
    scene.until_status("all is lent", |status| status.free == status.lent);
    scene.python().set(json!({"directives": [77, 1, 77]}));
    scene.until_status("the known one among the unknown is heard", |status| status.state == NodeState::Draining);
    scene.python().set(json!({"directives": [2, 99]}));
    scene.until_status("the other one too", |status| status.state == NodeState::Ready);
    let before = registrations(&scene);
    scene.python().set(json!({"directives": [3]}));
    until_true("it registers again", || registrations(&scene) > before);
    scene.submit(python("more", "print('up')\n"));
    assert_eq!(how(&scene.until_complete("more")), (Outcome::Succeeded, Some(0)));
    let node = scene.python().node(&scene.identity.node);
    assert_eq!(node["version"], env!("CARGO_PKG_VERSION"));
    let calls = scene.status().unwrap().master.calls;
    let failed: Vec<_> = calls.iter().filter(|method| method.failed > 0 && method.method != "AssignTask").collect();
    assert!(failed.is_empty(), "{failed:?}");
    scene.until_clean();
    scene.python().check();
}
