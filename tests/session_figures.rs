//! How fast a node comes back, and what it costs when nothing happens. Each test prints its figure; here the amounts are
//! small and the bounds wide, `scripts/bench.sh session` makes them large and compares with the goals.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::fmt::Display;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hivemind_worker::monitor::Submissions;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{Outcome, Phase};
use node_util::{Scene, gated, how, until, until_true};
use rustix::process::{Pid, Signal, kill_process};

fn amount(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn figure(name: &str, value: impl Display, unit: &str) {
    println!("measured {name} {value} {unit}");
}

#[test]
fn a_restart_is_followed_by_the_adoption() {
    let mut scene = Scene::with_master("figure-restart");
    scene.start(&[]);
    scene.submit(gated("runs", ""));
    scene.until_up("runs");
    scene.kill_worker();
    let started = Instant::now();
    scene.start(&[]);
    scene.until_adopted("runs", 1);
    let took = started.elapsed();
    figure("restart_to_reattached", took.as_secs_f64(), "s");
    assert!(took < Duration::from_secs(20), "{took:?}");
}

/// The master goes while many tasks run, and comes back to all their results.
#[test]
fn results_that_waited_arrive_soon_after_the_master_is_back() {
    let results = amount("HM_FIGURES_RESULTS", 6);
    let outage = Duration::from_secs(amount("HM_FIGURES_OUTAGE_S", 0) as u64);
    let mut scene = Scene::with_master("figure-outage");
    let slots = results.to_string();
    scene.start(&["--slots", &slots]);
    let name = |number: usize| format!("t{number:03}");
    for number in 0..results {
        let small = Offer { cpu_millis: 15, memory_bytes: 24 << 20, disk_bytes: 4 << 20, ..gated(&name(number), "") };
        scene.submit(small);
    }
    (0..results).for_each(|number| scene.until_up(&name(number)));
    scene.stop_master();
    (0..results).for_each(|number| scene.go(&name(number)));
    scene.until_status("all wait for the master", |status| {
        status.attempts.len() == results && status.attempts.iter().all(|held| held.phase == Phase::Reporting)
    });
    thread::sleep(outage);
    let back = Instant::now();
    scene.start_master();
    let desk = scene.desk();
    let arrived = || {
        let names = (0..results).map(&name);
        names.filter(|name| desk.view(name, 0, Duration::ZERO).is_some_and(|view| view.is_complete)).count()
    };
    until_true("the first has arrived", || arrived() > 0);
    let first = back.elapsed();
    until_true("all have arrived", || arrived() == results);
    let all = back.elapsed();
    figure("first_result_after_outage", first.as_secs_f64(), "s");
    figure("all_results_after_outage", all.as_secs_f64(), "s");
    for number in 0..results {
        assert_eq!(how(&scene.checked_report(&name(number))), (Outcome::Succeeded, Some(0)));
    }
    assert!(first <= Duration::from_secs(35), "a pause of at most 30 s, then two steps of a registration: {first:?}");
    assert!(all <= Duration::from_secs(60), "{all:?}");
}

#[test]
fn a_large_output_does_not_hold_up_the_lines_of_another_task() {
    let mib = amount("HM_FIGURES_MIB", 16);
    let mut scene = Scene::with_master("figure-live");
    scene.start(&["--slots", "2"]);
    let program = format!(
        "with open('output/big', 'wb') as big:\n    for _ in range({mib}):\n        big.write(os.urandom(1 << 20))\n"
    );
    scene.submit(gated("large", &program));
    scene.until_up("large");
    let program = "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])\n\
        while True:\n    print(time.time(), flush=True)\n    time.sleep(0.05)\n";
    scene.submit(Offer { grace_ms: Some(0), ..gated("live", program) });
    scene.until_up("live");
    scene.go("live");
    let desk = scene.desk();
    let (mut at, mut text, mut slowest) = (0, String::new(), 0.0f64);
    let mut look = || {
        let part = desk.read("live", 1, at, 1 << 20).unwrap();
        at += part.bytes.len() as u64;
        text.push_str(std::str::from_utf8(&part.bytes).unwrap());
        let last = text.trim_end().rsplit('\n').next()?.parse::<f64>().ok()?;
        let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() - last;
        slowest = slowest.max(age);
        Some(())
    };
    until("the live lines come", &mut look);
    scene.go("large");
    until_true("the large output has arrived", || {
        look();
        desk.view("large", 0, Duration::ZERO).unwrap().is_complete
    });
    figure("oldest_last_line", slowest, "s");
    assert_eq!(scene.checked_report("large").outputs[0].size, (mib as u64) << 20);
    assert!(slowest < 5.0, "{slowest}");
}

#[test]
fn heartbeats_and_reports_sync_nothing() {
    let beats = amount("HM_FIGURES_HEARTBEATS", 8) as u64;
    let mut scene = Scene::with_master("figure-idle");
    scene.env.push(("RESOURCE_REPORT_INTERVAL".to_owned(), "5".to_owned()));
    scene.start(&[]);
    scene.until_ready();
    until_true("it is heard", || scene.heartbeats() > 0);
    let calls = scene.dir.join("calls");
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=fsync,fdatasync,sync_file_range,msync,pwrite64", "-y", "-o"])
        .arg(&calls)
        .args(["-p", &scene.worker.as_ref().unwrap().id().to_string()])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let before = scene.heartbeats();
    until_true("heartbeats and reports come", || scene.heartbeats() >= before + beats);
    kill_process(Pid::from_raw(i32::try_from(strace.id()).unwrap()).unwrap(), Signal::INT).unwrap();
    strace.wait().unwrap();
    let calls = std::fs::read_to_string(calls).unwrap();
    figure("synced_writes_of_idle_heartbeats", calls.lines().filter(|line| line.contains("sync")).count(), "calls");
    figure("heartbeats_and_reports", scene.heartbeats() - before, "calls");
    assert_eq!(calls, "", "nothing of it is worth a write");
}
