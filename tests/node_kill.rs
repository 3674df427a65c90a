//! A worker that is killed at any moment and started again: one container, one final report, the same bytes.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::io::Read;
use std::time::{Duration, Instant};

use hivemind_worker::monitor::Submissions;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{Outcome, Phase};
use node_util::relay::MasterRelay;
use node_util::{Scene, gated, how, python, until_true};
use ring::digest::{SHA256, digest};

#[test]
fn a_running_task_is_adopted_after_kill_9_and_its_result_arrives_once() {
    let mut scene = Scene::with_master("adopt");
    scene.start(&[]);
    // Busy for as long as the test wants.
    let program = "import signal, sys\n\
        go = []\n\
        signal.signal(signal.SIGUSR1, lambda *_: go.append(1))\n\
        print('up', flush=True)\n\
        n = 0\n\
        while not go:\n    n = (n * 31 + 7) % 1000003\n\
        open('output/n', 'w').write('done')\n\
        print('over', flush=True)\n";
    scene.submit(python("busy", program));
    scene.until_up("busy");
    let container = scene.container("busy").unwrap();
    let mut slowest = Duration::ZERO;
    for round in 1..=2 {
        scene.kill_worker();
        assert!(scene.docker.inspect_container(&container).unwrap().state.running);
        let started = Instant::now();
        scene.start(&[]);
        scene.until_adopted("busy", round);
        slowest = slowest.max(started.elapsed());
        assert_eq!(scene.container("busy").as_ref(), Some(&container));
    }
    println!("from the start of the worker to the adoption at the master: {slowest:?} at most");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    scene.go("busy");
    let report = scene.until_complete("busy");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    assert_eq!(scene.stdout("busy"), "up\nover\n");
    assert_eq!(report.outputs.len(), 1, "{report:?}");
    assert!(report.usage.cpu_ms > 0, "{report:?}");
    assert_eq!(scene.containers_ever("busy").len(), 1);
    scene.until_clean();
    scene.until_status("nothing is held any more", |status| status.attempts.is_empty());
}

#[test]
fn twenty_megabytes_arrive_as_they_are_when_the_worker_dies_while_it_collects_and_while_it_delivers() {
    const SIZE: usize = 20 << 20;
    let mut scene = Scene::with_master("bytes");
    // Enough for all calls before, not for the file.
    let line = MasterRelay::open(scene.master_address(), 6 << 20);
    let url = format!("http://{}", line.address);
    let start = |scene: &mut Scene| scene.start_worker(&["--master-url", &url]);
    start(&mut scene);
    let program = format!(
        "import hashlib\nblock = os.urandom({SIZE})\n\
         open('output/big', 'wb').write(block)\nprint(hashlib.sha256(block).hexdigest())\n"
    );
    scene.submit(Offer { memory_bytes: 256 << 20, ..gated("big", &program) });
    scene.until_up("big");
    scene.go("big");
    // Dies as soon as it tells that it collects: some of the file is in the spool, or none, or all.
    scene.until_status("it collects", |status| {
        status.attempts.iter().any(|attempt| attempt.phase >= Phase::Collecting) || !status.history.is_empty()
    });
    scene.kill_worker();
    start(&mut scene);
    until_true("the line is full", || line.is_spent());
    scene.kill_worker();
    assert!(!scene.view("big").is_complete, "the file was to be under way");
    line.widen();
    start(&mut scene);
    let report = scene.until_complete("big");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    let file = &report.outputs[0];
    assert_eq!((report.outputs.len(), file.path.as_str(), file.size), (1, "output/big", SIZE as u64));
    assert!(report.cut.is_empty(), "{report:?}");
    let content = scene.desk().output("big", "output/big").expect("the parts at the master make up the file");
    let mut bytes = Vec::new();
    { content.reader }.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), SIZE);
    let full: String = digest(&SHA256, &bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(full, file.sha256);
    let printed = scene.stdout("big");
    if let Some(line) = printed.strip_prefix("up\n").filter(|rest| !rest.is_empty()) {
        assert_eq!(line.trim_end(), full, "what the task itself computed");
    }
    assert_eq!(scene.containers_ever("big").len(), 1);
    scene.until_clean();
}

#[test]
fn a_worker_that_dies_right_after_the_final_report_or_with_a_task_in_its_queue_reports_each_once() {
    let mut scene = Scene::with_master("late");
    scene.start(&["--slots", "1"]);
    scene.submit(gated("first", "sys.exit(3)\n"));
    scene.until_up("first");
    scene.submit(gated("second", ""));
    scene.go("first");
    // The report is at the master; whether the node knows that already is left to chance.
    scene.until_view("first", "the final report is there", |view| view.final_report.is_some());
    scene.kill_worker();
    scene.start(&["--slots", "1"]);
    scene.until_up("second");
    let report = scene.until_complete("first");
    assert_eq!(how(&report), (Outcome::Failed, Some(3)), "{report:?}");
    scene.go("second");
    let report = scene.until_complete("second");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    scene.until_clean();
    // Starting again finds nothing to do and says nothing twice.
    scene.until_status("nothing is held any more", |status| status.attempts.is_empty());
    scene.kill_worker();
    scene.start(&[]);
    let begin = scene.heartbeats();
    until_true("the node is back", || scene.heartbeats() != begin && scene.status().is_some());
    for task in ["first", "second"] {
        scene.checked_report(task);
        assert_eq!(scene.containers_ever(task).len(), 1);
    }
}

#[test]
fn a_worker_that_dies_in_each_phase_of_a_task_still_runs_it_once() {
    let mut scene = Scene::with_master("phases");
    // More short lives than a worker would go on after.
    scene.env.push(("HIVEMIND_CRASH_LIMIT".to_owned(), "1000".to_owned()));
    scene.start(&["--slots", "1"]);
    let phases = [
        Phase::Received,
        Phase::Preparing,
        Phase::Starting,
        Phase::Running,
        Phase::Collecting,
        Phase::Reporting,
        Phase::Delivered,
    ];
    for phase in phases {
        let program = "import os\nprint('up', flush=True)\nopen('output/x', 'w').write('x')\n";
        scene.submit(python(phase.as_str(), program));
        let is_there = |word: &str| Phase::ALL.iter().any(|is| is.as_str() == word && *is >= phase);
        scene.until_view(phase.as_str(), "it has come so far", |view| is_there(&view.phase));
        scene.kill_worker();
        scene.start(&["--slots", "1"]);
    }
    for phase in phases.map(Phase::as_str) {
        let report = scene.until_complete(phase);
        assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{phase}: {report:?}");
        assert_eq!(report.outputs.len(), 1, "{phase}: {report:?}");
        assert_eq!(scene.containers_ever(phase).len(), 1, "{:?}", scene.engine_events());
        assert!(scene.desk().output(phase, "output/x").is_some(), "{phase}");
    }
    scene.until_clean();
}
