//! A node and its master, ours and the one in Python: cancellation, a master that goes away, much output, many tasks, and nobody there at all.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{Outcome, Phase};
use node_util::{MasterKind, Scene, for_each_master, gated, how, python, until_true};

for_each_master!(
    a_cancelled_task_is_stopped_where_it_is,
    a_master_that_was_away_gets_everything_once,
    a_master_that_has_forgotten_everything_gets_the_node_back,
    at_the_end_of_its_lease_an_exclusive_task_stops_and_another_goes_on,
    a_newer_attempt_replaces_the_one_that_runs,
    every_numbered_line_reaches_the_master_in_order,
);

fn a_cancelled_task_is_stopped_where_it_is(master: MasterKind) {
    let mut scene = Scene::of(master, "cancel");
    scene.start(&["--slots", "1"]);
    scene.submit(Offer { grace_ms: Some(1_000), ..gated("runs", "") });
    scene.until_up("runs");
    scene.submit(python("waits", "print('up')\n"));
    scene.master().cancel("waits").unwrap();
    let view = scene.until_view("waits", "it is over", |view| view.is_complete);
    assert_eq!(view.outcome, Some(Outcome::Cancelled), "{view:?}");
    assert!(scene.master().cancel("nobody-knows-it").is_err());
    scene.master().cancel("runs").unwrap();
    let report = scene.until_complete("runs");
    assert_eq!(how(&report), (Outcome::Cancelled, Some(143)), "{report:?}");
    assert_eq!(report.reason, "cancelled by its author");
    assert!(scene.master().cancel("runs").is_err(), "what is over can't be cancelled");
    assert!(scene.containers_ever("waits").is_empty());

    // By the node's owner.
    scene.submit(Offer { grace_ms: Some(500), ..gated("owners", "") });
    scene.until_up("owners");
    let said = scene.run(&["cancel", "owners"]);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    let report = scene.until_complete("owners");
    assert_eq!(report.outcome, Outcome::Cancelled, "{report:?}");
    assert_eq!(report.reason, "stopped by the node's owner");
    let said = scene.run(&["cancel", "nobody-knows-it"]);
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains("holds no task nobody-knows-it"), "{said:?}");
    scene.until_clean();
}

fn a_master_that_was_away_gets_everything_once(master: MasterKind) {
    const SMALL: usize = 20;
    let mut scene = Scene::of(master, "away");
    scene.start(&["--slots", "24"]);
    let names: Vec<String> = (0..SMALL).map(|number| format!("small-{number}")).collect();
    let light = |task: &str, rest: &str| Offer { cpu_millis: 80, memory_bytes: 32 << 20, ..gated(task, rest) };
    scene.submit(light("long", "print('long is over', flush=True)\n"));
    for name in &names {
        scene.submit(light(name, &format!("print('{name} is over')\nopen('output/x', 'w').write('{name}')\n")));
    }
    for name in names.iter().map(String::as_str).chain(["long"]) {
        scene.until_up(name);
    }
    scene.stop_master();
    for name in &names {
        scene.go(name);
    }
    scene.until_status("all small ones wait for the master", |status| {
        status.attempts.iter().filter(|attempt| attempt.phase == Phase::Reporting).count() == SMALL
            && !status.master.is_connected
    });
    let back = Instant::now();
    scene.start_master();
    for name in &names {
        let report = scene.until_complete(name);
        assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
        assert_eq!(report.outputs.len(), 1, "{report:?}");
        assert_eq!(scene.stdout(name), format!("up\n{name} is over\n"));
        assert!(scene.master().output(name, "output/x").is_some());
    }
    println!("all results are there {:?} after the master", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(60), "{:?}", back.elapsed());
    scene.go("long");
    assert_eq!(how(&scene.until_complete("long")), (Outcome::Succeeded, Some(0)));
    assert_eq!(scene.stdout("long"), "up\nlong is over\n");
    scene.until_clean();
}

fn a_master_that_has_forgotten_everything_gets_the_node_back(master: MasterKind) {
    let mut scene = Scene::of(master, "forgotten");
    scene.start(&["--slots", "2"]);
    scene.submit(gated("before", ""));
    scene.until_up("before");
    scene.stop_master();
    scene.forget_master();
    scene.start_master();
    scene.submit(python("after", "print('up')\n"));
    assert_eq!(how(&scene.until_complete("after")), (Outcome::Succeeded, Some(0)));
    // Nobody asks for the old one any more; it ends all the same, and nothing of it stays.
    scene.go("before");
    scene.until_status("nothing is held any more", |status| status.attempts.is_empty() && status.history.len() == 2);
    scene.until_clean();
}

fn at_the_end_of_its_lease_an_exclusive_task_stops_and_another_goes_on(master: MasterKind) {
    let mut scene = Scene::without_master(master, "lease");
    scene.terms.lease = Duration::from_secs(3);
    scene.start_master();
    scene.start(&["--slots", "2"]);
    let exclusive = Offer { at_lease_end: "stop".to_owned(), grace_ms: Some(1_000), ..gated("exclusive", "") };
    scene.submit(exclusive);
    scene.submit(gated("patient", ""));
    scene.until_up("exclusive");
    scene.until_up("patient");
    scene.stop_master();
    scene.until_status("the exclusive one has ended", |status| {
        status.attempts.iter().any(|held| held.key.task.as_str() == "exclusive" && held.phase == Phase::Reporting)
    });
    scene.start_master();
    let report = scene.until_complete("exclusive");
    assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
    assert_eq!(report.reason, "the lease ended without a word from the master");
    assert!(scene.view("patient").outcome.is_none());
    scene.go("patient");
    assert_eq!(how(&scene.until_complete("patient")), (Outcome::Succeeded, Some(0)));
    scene.until_clean();
}

fn a_newer_attempt_replaces_the_one_that_runs(master: MasterKind) {
    let mut scene = Scene::of(master, "attempts");
    scene.start(&["--slots", "2"]);
    scene.submit(Offer { grace_ms: Some(1_000), ..gated("again", "") });
    scene.until_up("again");
    scene.submit(Offer { attempt: 2, ..python("again", "print('second')\n") });
    let view = scene.until_view("again", "the second one ends", |view| view.attempt == 2 && view.is_complete);
    assert_eq!(view.outcome, Some(Outcome::Succeeded), "{view:?}");
    assert_eq!(scene.stdout("again"), "second\n");
    scene.until_status("nothing is held any more", |status| status.attempts.is_empty());
    let report = scene.checked_report("again");
    assert_eq!(report.outcome, Outcome::Superseded, "{report:?}");
    scene.checked_report_of("again", 2);
    assert_eq!(scene.containers_ever("again").len(), 2, "one of each attempt");
    scene.until_clean();
}

fn every_numbered_line_reaches_the_master_in_order(master: MasterKind) {
    const LINES: usize = 300_000;
    let mut scene = Scene::of(master, "lines");
    scene.start(&[]);
    let program = format!("import sys\nsys.stdout.writelines(f'{{i}}\\n' for i in range({LINES}))\n");
    scene.submit(Offer { cpu_millis: 1_000, ..python("lines", &program) });
    let report = scene.until_complete("lines");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    let expected: String = (0..LINES).map(|i| format!("{i}\n")).collect();
    let got = scene.stdout("lines");
    assert!(got == expected, "{} of {} bytes; notes: {:?}", got.len(), expected.len(), scene.view("lines").notes);
    println!("{LINES} lines, {} bytes, ran {} ms", got.len(), report.duration_ms);
    scene.until_clean();
}

#[test]
fn twelve_tasks_never_take_more_than_is_lent_and_leave_nothing() {
    let mut scene = Scene::with_master("twelve");
    for number in 0..12 {
        let name = format!("t{number:02}");
        // The first two wait for each other, so that two at a time is sure; the rest comes and goes as it may.
        let offer = if number >= 10 { gated(&name, "") } else { python(&name, "print('up')\n") };
        // Those that came last are the most important.
        scene.submit(Offer { cpu_millis: 900, memory_bytes: 256 << 20, priority: Some(number * 8), ..offer });
    }
    scene.start(&["--cpus", "2", "--memory", "1GiB", "--slots", "2"]);
    for name in ["t10", "t11"] {
        scene.until_up(name);
    }
    let status = scene.status().unwrap();
    assert_eq!((status.lent.cpu_millis, status.lent.memory_bytes, status.lent.slots), (2_000, 1 << 30, 2));
    for name in ["t10", "t11"] {
        scene.go(name);
    }
    for number in 0..12 {
        let report = scene.until_complete(&format!("t{number:02}"));
        assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    }
    let (order, most) = scene.starts();
    println!("order {order:?}, at most {most} at a time");
    assert_eq!(order.len(), 12, "{order:?}");
    assert_eq!(most, 2, "{order:?}");
    let place = |numbers: std::ops::Range<usize>| -> usize {
        numbers.map(|number| order.iter().position(|task| *task == format!("t{number:02}")).unwrap()).sum()
    };
    assert!(place(6..12) < place(0..6), "the more important half comes first: {order:?}");
    scene.until_clean();
    assert!(scene.until_ready().promised.slots == 0);
}

#[test]
fn an_idle_node_without_a_master_hardly_works() {
    const WINDOW: Duration = Duration::from_secs(6);
    let mut scene = Scene::new("idle");
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    scene.start_worker(&["--master-url", &format!("http://{nobody}")]);
    scene.until_ready();
    let pid = scene.worker.as_ref().unwrap().id();
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (begin, before) = (Instant::now(), ticks());
    // The measurement itself: nothing is waited for here.
    thread::sleep(WINDOW);
    let percent = (ticks() - before) as f64 / begin.elapsed().as_secs_f64();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let (threads, rss_kib) = (field("Threads:"), field("VmRSS:"));
    println!("CPU {percent:.2} %, {threads} threads, {rss_kib} KiB resident");
    assert!(percent < 2.0, "{percent} %");
    assert!((5..=24).contains(&threads), "{threads} threads");
    let view = scene.status().unwrap();
    assert!(!view.master.is_connected && view.master.detail.contains("refused"), "{:?}", view.master);
    until_true("no connection is tried without a pause", || scene.log().lines().count() < 40);
}
