//! Rows 57 and 58 of the fault matrix: a whole worker whose clocks jump. They jump for this worker alone, through the seam
//! `sys::failpoint`; the machine's clocks are never touched.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::fs;
use std::time::{Duration, Instant};

use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{Outcome, Phase};
use node_util::{Scene, gated, how, until_true};

const DAY_S: i64 = 86_400;
const YEAR_S: i64 = 365 * DAY_S;

fn scene(name: &str) -> Scene {
    let mut scene = Scene::new(name);
    let file = scene.dir.join("clocks").display().to_string();
    scene.env.push(("HIVEMIND_CLOCKS".to_owned(), file));
    scene.start_master();
    scene
}

/// Seconds by which the worker's clocks are ahead from now on.
fn jump(scene: &Scene, boot: i64, wall: i64) {
    // A reader sees the one or the other.
    let path = scene.dir.join("clocks");
    fs::write(path.with_extension("new"), format!("{boot} {wall}\n")).unwrap();
    fs::rename(path.with_extension("new"), path).unwrap();
}

#[test]
fn row_57_wall_clock_jumps_end_nothing_and_hold_nothing_up() {
    let mut scene = scene("wall");
    scene.start(&["--slots", "2"]);
    scene.submit(Offer { timeout_ms: 3_600_000, ..gated("t", "sys.exit(3)\n") });
    scene.submit(Offer { timeout_ms: 3_600_000, at_lease_end: "stop".to_owned(), ..gated("exclusive", "") });
    scene.until_up("t");
    scene.until_up("exclusive");
    for wall in [DAY_S, -DAY_S, 10 * YEAR_S, -10 * YEAR_S] {
        jump(&scene, 0, wall);
        let before = scene.heartbeats();
        until_true("heartbeats go on", || scene.heartbeats() >= before + 3);
        let status = scene.until_status("both run", |status| {
            status.attempts.iter().filter(|held| held.phase == Phase::Running).count() == 2
        });
        assert!(status.master.is_connected, "{status:?}");
    }
    // In back-off: ten years forth and back, and the node comes back as soon as ever.
    scene.stop_master();
    until_true("the node notices", || scene.log().contains("no connection to the master"));
    jump(&scene, 0, 10 * YEAR_S);
    jump(&scene, 0, -10 * YEAR_S);
    let begin = Instant::now();
    scene.start_master();
    until_true("the node is back", || scene.heartbeats() > 0);
    println!("back after {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    for (task, expected) in [("t", (Outcome::Failed, Some(3))), ("exclusive", (Outcome::Succeeded, Some(0)))] {
        scene.go(task);
        let report = scene.until_complete(task);
        assert_eq!(how(&report), expected, "{report:?}");
        assert!(report.duration_ms < 600_000, "{report:?}");
        assert_eq!(scene.containers_ever(task).len(), 1);
    }
    scene.until_clean();
}

#[test]
fn row_57_worker_starts_and_works_with_a_clock_that_is_years_off() {
    for (name, wall) in [("behind", -20 * YEAR_S), ("ahead", 20 * YEAR_S)] {
        let mut scene = scene(name);
        jump(&scene, 0, wall);
        scene.start(&[]);
        scene.submit(Offer { timeout_ms: 600_000, ..gated("t", "") });
        scene.until_up("t");
        // Taken over by a worker whose clock tells another year, with or without a note of the start.
        scene.kill_worker();
        jump(&scene, 0, -wall);
        scene.start(&[]);
        scene.until_adopted("t", 1);
        scene.go("t");
        let report = scene.until_complete("t");
        assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{name}: {report:?}");
        assert!(report.duration_ms < 600_000, "{name}: {report:?}");
        scene.until_clean();
    }
}

#[test]
fn row_58_after_eight_hours_of_suspend_leases_and_timeouts_are_looked_at_again() {
    const HOURS_S: i64 = 8 * 3_600;
    let mut scene = scene("suspend");
    scene.start(&["--slots", "3"]);
    let quick = |offer: Offer| Offer { grace_ms: Some(500), ..offer };
    scene.submit(quick(Offer { timeout_ms: 3_600_000, ..gated("short", "") }));
    scene.submit(quick(Offer {
        timeout_ms: 12 * 3_600_000,
        at_lease_end: "stop".to_owned(),
        ..gated("exclusive", "")
    }));
    scene.submit(quick(Offer { timeout_ms: 12 * 3_600_000, ..gated("long", "") }));
    for task in ["short", "exclusive", "long"] {
        scene.until_up(task);
    }
    // The machine sleeps where there is no master, and wakes.
    scene.stop_master();
    until_true("the node notices", || scene.log().contains("no connection to the master"));
    jump(&scene, HOURS_S, HOURS_S);
    scene.until_status("two have ended", |status| {
        status.attempts.iter().filter(|held| held.phase == Phase::Reporting).count() == 2
    });
    let begin = Instant::now();
    scene.start_master();
    let report = scene.until_complete("short");
    assert_eq!(report.outcome, Outcome::TimedOut, "{report:?}");
    let report = scene.until_complete("exclusive");
    assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
    assert_eq!(report.reason, "the lease ended without a word from the master");
    println!("delivered {:?} after the master was back", begin.elapsed());
    assert!(scene.view("long").outcome.is_none());
    scene.go("long");
    assert_eq!(how(&scene.until_complete("long")), (Outcome::Succeeded, Some(0)));
    scene.until_clean();
}
