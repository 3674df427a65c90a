//! A worker that crashes again and again: what it gives up, and when it stops trying. A crash is a `kill -9` in its first
//! minute here; which lives count is tested where they are counted.
#![allow(clippy::unwrap_used)]

mod node_util;

use hivemind_worker::node::record::{Outcome, STDOUT, StreamEnd};
use hivemind_worker::node::snapshot::NodeState;
use node_util::{Scene, gated, how, python, until_true};
use rustix::process::Signal;

#[test]
fn an_attempt_that_is_there_at_three_crashes_is_given_up_and_leaves_nothing() {
    let mut scene = Scene::with_master("quarantine");
    scene.start(&["--slots", "2"]);
    scene.submit(gated("suspect", ""));
    scene.until_up("suspect");
    scene.kill_worker();
    scene.start(&["--slots", "2"]);
    scene.until_adopted("suspect", 1);
    scene.submit(gated("innocent", ""));
    scene.until_up("innocent");
    scene.kill_worker();
    scene.start(&["--slots", "2"]);
    scene.until_adopted("suspect", 2);
    scene.until_adopted("innocent", 1);
    scene.kill_worker();
    scene.start(&["--slots", "2"]);
    let report = scene.until_complete("suspect");
    assert_eq!(report.outcome, Outcome::NodeFault);
    assert_eq!(report.reason, "given up: the worker crashed 3 times while this attempt was there");
    let said = |end: &StreamEnd| end.stream == STDOUT && end.bytes > 0;
    assert!(report.streams.iter().any(said), "its output is named: {:?}", report.streams);
    assert_eq!(scene.containers_ever("suspect").len(), 1);
    scene.until_adopted("innocent", 2);
    scene.go("innocent");
    assert_eq!(how(&scene.until_complete("innocent")), (Outcome::Succeeded, Some(0)));
    scene.until_clean();
}

#[test]
fn after_five_crashes_in_a_row_it_only_delivers_until_it_is_restarted_in_order() {
    let mut scene = Scene::with_master("safe");
    for _ in 0..3 {
        scene.start(&["--slots", "2"]);
        scene.until_ready();
        scene.kill_worker();
    }
    scene.start(&["--slots", "2"]);
    scene.submit(gated("goes-on", "print('end')\n"));
    scene.until_up("goes-on");
    scene.stop_master();
    scene.kill_worker();
    scene.start(&["--slots", "2"]);
    scene.until_status("it is adopted", |status| status.attempts.iter().any(|held| held.detail.starts_with("adopted")));
    scene.kill_worker();
    scene.start(&["--slots", "2"]);
    let status = scene.until_status("it is safe", |status| status.state == NodeState::Degraded);
    let reason = "safe state: the worker crashed 5 times in a row: it only delivers what it has";
    assert!(status.state_reason.starts_with(reason), "{}", status.state_reason);
    // What was on disk arrives; nothing new is taken, and the container is as it was.
    scene.start_master();
    until_true("the record arrives", || scene.adoptions("goes-on") == 1);
    scene.submit(python("waits", "print('up')\n"));
    scene.until_view("waits", "the master says why it waits", |view| {
        view.waits.as_ref().is_some_and(|why| why.contains("safe state"))
    });
    assert_eq!(scene.containers_ever("goes-on").len(), 1);
    scene.signal(Signal::TERM);
    assert!(scene.until_exit().success());
    scene.start(&["--slots", "2"]);
    scene.until_adopted("goes-on", 2);
    scene.go("goes-on");
    assert_eq!(how(&scene.until_complete("goes-on")), (Outcome::Succeeded, Some(0)));
    assert!(scene.stdout("goes-on").ends_with("end\n"));
    assert_eq!(how(&scene.until_complete("waits")), (Outcome::Succeeded, Some(0)));
    scene.until_clean();
}
