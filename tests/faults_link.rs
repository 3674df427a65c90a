//! Rows 34 and 36 of the fault matrix: a link to the master that is cut in silence, and answers that come too late.
//!
//! The link joins two network name spaces that each test makes; the test itself runs again in one of them.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::time::{Duration, Instant};

use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{Outcome, Phase};
use node_util::link::{Cut, Link, MASTER};
use node_util::namespace::in_namespace;
use node_util::relay::MasterRelay;
use node_util::{Scene, gated, how, python, until_true};

/// Within which a cut is to be noticed.
const NOTICED: Duration = Duration::from_secs(45);

/// A master here and a node at the other end.
fn scene(name: &str, lease: Duration) -> (Link, Scene) {
    let link = Link::make();
    let mut scene = Scene::new(name);
    scene.terms.lease = lease;
    scene.listen = MASTER;
    scene.prefix = link.prefix();
    // Not by the paths of a login: iptables and nsenter are found by the test.
    scene.env.push(("HIVEMIND_ALLOW_PLAINTEXT".to_owned(), "yes".to_owned()));
    scene.start_master();
    scene.start(&["--slots", "4"]);
    (link, scene)
}

/// How long it takes until the node says that it has no connection. Its log costs less to look at than its status.
fn until_noticed(scene: &Scene, what: Cut) {
    let begin = Instant::now();
    until_true("the node notices", || scene.log().contains("no connection to the master"));
    let took = begin.elapsed();
    println!("cut {what:?}: noticed after {took:?}");
    assert!(took <= NOTICED, "{what:?}: {took:?}");
    assert!(!scene.status().unwrap().master.is_connected);
}

fn survives(name: &str, cut: Cut) {
    let (link, mut scene) = scene(name, Duration::from_secs(300));
    scene.submit(gated("t", "print('over', flush=True)\nsys.exit(3)\n"));
    scene.until_up("t");
    link.cut(cut);
    until_noticed(&scene, cut);
    // It ends while nobody can be told.
    scene.go("t");
    scene.until_status("it waits for the master", |status| {
        status.attempts.iter().any(|held| held.phase == Phase::Reporting)
    });
    link.heal();
    let report = scene.until_complete("t");
    assert_eq!(how(&report), (Outcome::Failed, Some(3)), "{report:?}");
    assert_eq!(scene.stdout("t"), "up\nover\n");
    assert_eq!(scene.containers_ever("t").len(), 1);
    scene.until_clean();
    scene.stop_master();
}

#[test]
fn row_34_cut_both_ways_the_lease_decides_and_what_was_replaced_is_superseded() {
    if !in_namespace("row_34_cut_both_ways_the_lease_decides_and_what_was_replaced_is_superseded") {
        return;
    }
    let (link, scene) = scene("cut-both", Duration::from_secs(5));
    let quick = |offer: Offer| Offer { grace_ms: Some(500), ..offer };
    scene.submit(quick(Offer { at_lease_end: "stop".to_owned(), ..gated("exclusive", "") }));
    scene.submit(quick(gated("patient", "")));
    scene.submit(quick(gated("replaced", "")));
    for task in ["exclusive", "patient", "replaced"] {
        scene.until_up(task);
    }
    link.cut(Cut::Both);
    // The lease is shorter than what it takes to notice the cut: it ends without a word from the master.
    scene.until_status("the exclusive one has ended", |status| {
        status.attempts.iter().any(|held| held.key.task.as_str() == "exclusive" && held.phase == Phase::Reporting)
    });
    // Meanwhile the master wants another try of one.
    scene.submit(Offer { attempt: 2, ..python("replaced", "print('second')\n") });
    until_noticed(&scene, Cut::Both);
    for task in ["patient", "replaced"] {
        let id = scene.container(task).unwrap();
        assert!(scene.docker.inspect_container(&id).unwrap().state.running, "{task}");
    }
    link.heal();
    let report = scene.until_complete("exclusive");
    assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
    let view = scene.until_view("replaced", "the second one ends", |view| view.attempt == 2 && view.is_complete);
    assert_eq!(view.outcome, Some(Outcome::Succeeded), "{view:?}");
    scene.go("patient");
    assert_eq!(how(&scene.until_complete("patient")), (Outcome::Succeeded, Some(0)));
    scene.until_status("nothing is held any more", |status| status.attempts.is_empty());
    assert_eq!(scene.checked_report("replaced").outcome, Outcome::Superseded);
    scene.until_clean();
}

#[test]
fn row_34_cut_to_the_master_only() {
    if in_namespace("row_34_cut_to_the_master_only") {
        survives("cut-to", Cut::ToMaster);
    }
}

#[test]
fn row_34_cut_from_the_master_only() {
    if in_namespace("row_34_cut_from_the_master_only") {
        survives("cut-from", Cut::FromMaster);
    }
}

/// The master's end forgets the connection while the link is cut, so that no reset tells the node.
#[test]
fn row_34_half_open() {
    if !in_namespace("row_34_half_open") {
        return;
    }
    let (link, mut scene) = scene("half-open", Duration::from_secs(300));
    scene.submit(gated("t", ""));
    scene.until_up("t");
    link.cut(Cut::Both);
    scene.stop_master();
    scene.start_master();
    link.heal();
    let begin = Instant::now();
    until_true("the node is back", || scene.heartbeats() > 0);
    println!("half-open: back after {:?}", begin.elapsed());
    assert!(begin.elapsed() <= NOTICED, "{:?}", begin.elapsed());
    scene.go("t");
    assert_eq!(how(&scene.until_complete("t")), (Outcome::Succeeded, Some(0)));
    assert_eq!(scene.containers_ever("t").len(), 1);
    scene.until_clean();
}

/// All that the node says arrives; what the master says comes after the node has given its calls up.
#[test]
fn row_36_answers_after_the_deadline_have_no_double_effect() {
    let mut scene = Scene::with_master("late-answers");
    let line = MasterRelay::open(scene.master_address(), u64::MAX);
    scene.start_worker(&["--slots", "2", "--master-url", &format!("http://{}", line.address)]);
    scene.submit(gated("first", "print('over', flush=True)\nopen('output/x', 'w').write('x')\n"));
    scene.until_up("first");
    let before = scene.until_ready().master.failed_calls;
    line.hold_answers(true);
    scene.go("first");
    // Its offer is under way for as long.
    scene.submit(python("second", "print('up', flush=True)\nopen('output/x', 'w').write('x')\n"));
    let begin = Instant::now();
    // A call's deadline is 20 s.
    until_true("calls are given up", || {
        begin.elapsed() > Duration::from_secs(15)
            && scene.status().is_some_and(|status| status.master.failed_calls > before)
    });
    line.hold_answers(false);
    for (task, stdout) in [("first", "up\nover\n"), ("second", "up\n")] {
        let report = scene.until_complete(task);
        assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
        assert_eq!(report.outputs.len(), 1, "{report:?}");
        assert_eq!(scene.stdout(task), stdout);
        assert_eq!(scene.containers_ever(task).len(), 1);
    }
    assert_eq!(scene.starts().0.len(), 2);
    scene.until_status("nothing is held any more", |status| status.attempts.is_empty());
    scene.until_clean();
}
