//! Rows 33, 57 and 58 of the fault matrix: a whole worker whose clocks jump. They jump for this worker alone, through the seam
//! `sys::failpoint`; the machine's clocks are never touched.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{EventKind, Outcome, Phase};
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

/// A line of 1 KiB.
fn line(number: usize) -> String {
    format!("{number:08} {}\n", "x".repeat(1_014))
}

/// Bytes of standard output that the record of a task says are missing, each as from and to.
fn gaps(scene: &Scene, task: &str) -> Vec<(usize, usize)> {
    let notes = scene.record(task).into_iter().filter_map(|event| match event.kind {
        EventKind::Note(text) => Some(text),
        _ => None,
    });
    let read = |text: String| {
        let rest = text.strip_prefix("bytes ")?;
        let (range, why) = rest.split_once(" of stream 1, epoch 1, ")?;
        // The second, where a restart came between: then the master has told where the gap begins.
        const WHYS: [&str; 2] = [
            "were dropped, since too many logs waited for the master",
            "are gone at the node, and the master lacks them",
        ];
        assert!(WHYS.contains(&why), "{why}");
        let (from, to) = range.split_once(" to ")?;
        Some((from.parse().unwrap(), to.parse().unwrap()))
    };
    notes.filter_map(read).collect()
}

#[test]
fn row_33_seven_days_without_a_master_lose_nothing_that_is_not_told() {
    const LINES: usize = 24 << 10;
    let mut scene = scene("week");
    scene.stop_master();
    scene.limits.max_timeout = Duration::from_secs(30 * 86_400);
    scene.start_master();
    scene.env.push(("HIVEMIND_WAITING_LOGS".to_owned(), "16MiB".to_owned()));
    scene.env.push(("HIVEMIND_MAX_TIMEOUT".to_owned(), "30d".to_owned()));
    scene.start(&["--slots", "8"]);
    let patient = |task: &str, rest: &str| Offer {
        cpu_millis: 200,
        memory_bytes: 32 << 20,
        timeout_ms: 30 * 86_400_000,
        grace_ms: Some(500),
        ..gated(task, rest)
    };
    let done = |task: &str| patient(task, &format!("print('{task} is over')\nopen('output/x', 'w').write('{task}')\n"));
    let chatty = format!("for number in range({LINES}):\n    print('%08d' % number, 'x' * 1014)\n");
    scene.submit(done("before"));
    scene.until_up("before");
    scene.go("before");
    scene.until_complete("before");
    for task in ["day-0", "day-2", "day-5"] {
        scene.submit(done(task));
    }
    scene.submit(Offer { priority: Some(10), ..patient("chatty", &chatty) });
    scene.submit(Offer { at_lease_end: "stop".to_owned(), ..patient("exclusive", "") });
    scene.submit(patient("through", ""));
    let all = ["day-0", "day-2", "day-5", "chatty", "exclusive", "through"];
    for task in all {
        scene.until_up(task);
    }
    scene.stop_master();
    until_true("the node notices", || scene.log().contains("no connection to the master"));
    let mut ended = 0;
    for day in 0..=7 {
        jump(&scene, day * DAY_S, day * DAY_S);
        match day {
            0 | 2 | 5 => {
                scene.go(&format!("day-{day}"));
                ended += 1;
            }
            // The exclusive one ends by itself.
            1 => ended += 1,
            3 => {
                scene.go("chatty");
                ended += 1;
            }
            6 => {
                scene.kill_worker();
                scene.start(&["--slots", "8"]);
            }
            _ => {}
        }
        let status = scene.until_status("those that have ended wait", |status| {
            let wait = status.attempts.iter().filter(|held| held.phase == Phase::Reporting).count();
            wait == ended && status.attempts.iter().any(|held| held.phase == Phase::Running)
        });
        assert_eq!(status.attempts.len(), all.len(), "day {day}: {:?}", status.attempts);
        assert!(!status.master.is_connected);
    }
    let registrations = |scene: &Scene| scene.log().matches("registered with the master").count();
    let before = registrations(&scene);
    let begin = Instant::now();
    scene.start_master();
    for task in ["day-0", "day-2", "day-5"] {
        assert_eq!(how(&scene.until_complete(task)), (Outcome::Succeeded, Some(0)), "{task}");
        assert_eq!(scene.stdout(task), format!("up\n{task} is over\n"));
        let mut file = String::new();
        scene.master().output(task, "output/x").unwrap().reader.read_to_string(&mut file).unwrap();
        assert_eq!(file, task);
        assert_eq!(gaps(&scene, task), [], "{task}");
    }
    let report = scene.until_complete("exclusive");
    assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
    assert_eq!(report.reason, "the lease ended without a word from the master");
    // What is missing of a log is noted when the master has come past it, behind the final report.
    scene.until_view("chatty", "all of it has arrived", |view| view.is_complete);
    let events = scene.record("chatty");
    let numbers: Vec<u64> = events.iter().map(|event| event.number).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
    let finals: Vec<Outcome> = events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Final(report) => Some(report.outcome),
            _ => None,
        })
        .collect();
    assert_eq!(finals, [Outcome::Succeeded]);
    println!("delivered {:?} after the master was back", begin.elapsed());
    // No token of a week ago is good at this master, and the node has asked for one by itself.
    assert_eq!(registrations(&scene), before + 1);

    let (heard, gaps) = (scene.stdout("chatty"), gaps(&scene, "chatty"));
    let mut expected: String = "up\n".to_owned() + &(0..LINES).map(line).collect::<String>();
    let told: usize = gaps.iter().map(|(from, to)| to - from).sum();
    for (from, to) in &gaps {
        expected.replace_range(from..to, &"\0".repeat(to - from));
    }
    assert!(heard == expected, "what is missing is what was told: {gaps:?} of {} and {}", heard.len(), expected.len());
    // A little more than 8 MiB is over the budget, in segments of 4.
    assert!((8 << 20..=12 << 20).contains(&told), "{gaps:?}");

    assert!(scene.view("through").outcome.is_none());
    scene.go("through");
    assert_eq!(how(&scene.until_complete("through")), (Outcome::Succeeded, Some(0)));
    for task in all {
        assert_eq!(scene.containers_ever(task).len(), 1, "{task}");
    }
    scene.until_status("nothing is held any more", |status| status.attempts.is_empty());

    // A master that has forgotten them offers attempts again that were over a week ago and since.
    scene.stop_master();
    scene.forget_master();
    scene.start_master();
    for task in ["before", "day-0"] {
        scene.submit(done(task));
        let view = scene.until_view(task, "it is refused", |view| view.outcome.is_some());
        assert_eq!(view.outcome, Some(Outcome::Rejected), "{view:?}");
        let reason = view.final_report.unwrap().reason;
        assert_eq!(reason, "stale: this attempt has ended here and was delivered");
        assert_eq!(scene.containers_ever(task).len(), 1, "{task}");
    }
    scene.until_clean();
}
