//! Many tasks of every kind: what they leave behind.

use std::time::{Duration, Instant};

use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::Outcome;

use crate::node_util::python;
use crate::yard::Yard;

/// Each kind once: how it is asked for, and how it must end.
const KINDS: [(&str, Outcome); 8] = [
    ("good", Outcome::Succeeded),
    ("files", Outcome::Succeeded),
    ("fails", Outcome::Failed),
    ("memory", Outcome::OutOfMemory),
    ("late", Outcome::TimedOut),
    ("deaf", Outcome::TimedOut),
    ("cancelled", Outcome::Cancelled),
    ("noimage", Outcome::Rejected),
];

/// `HM_MIXED_TASKS`, or three of each kind.
fn count() -> usize {
    std::env::var("HM_MIXED_TASKS").map_or(3 * KINDS.len(), |text| text.parse().unwrap())
}

fn offer(kind: &str, name: &str) -> Offer {
    let program = match kind {
        "good" => "print('well')",
        "files" => "[open(f'output/{i}', 'wb').write(bytes(100_000)) for i in range(20)]",
        "fails" => "raise SystemExit(3)",
        "memory" => "b'x' * (300 << 20)",
        "deaf" => "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)",
        _ => "import time; time.sleep(600)",
    };
    let is_late = matches!(kind, "late" | "deaf");
    let is_absent = kind == "noimage";
    Offer {
        timeout_ms: if is_late { 1_000 } else { 0 },
        grace_ms: Some(500),
        image: if is_absent { "hivemind.invalid/none:1".to_owned() } else { String::new() },
        inputs: crate::yard::archive(),
        ..python(name, program)
    }
}

#[test]
fn nothing_is_left_of_many_mixed_tasks() {
    let yard = Yard::open("escape-mixed");
    let tasks: Vec<(String, &str, Outcome)> = (0..count())
        .map(|i| {
            let (kind, outcome) = KINDS[i % KINDS.len()];
            (format!("{kind}{i}"), kind, outcome)
        })
        .collect();
    for (name, kind, _) in &tasks {
        yard.scene.submit(offer(kind, name));
    }
    let (begin, limit) = (Instant::now(), Duration::from_secs(120 + 3 * tasks.len() as u64));
    let (mut most, mut waits) = (yard.before, tasks.iter().collect::<Vec<_>>());
    while !waits.is_empty() {
        assert!(begin.elapsed() < limit, "{waits:?}");
        let running: Vec<String> = yard.scene.status().map_or_else(Vec::new, |status| {
            let is_running = |phase: &str| phase == "running";
            let held = status.attempts.iter().filter(|held| is_running(held.phase.as_str()));
            held.map(|held| held.key.task.to_string()).collect()
        });
        waits.retain(|(name, kind, _)| {
            if *kind == "cancelled" && running.contains(name) {
                // A second word changes nothing.
                let _ = yard.scene.master().cancel(name);
            }
            !yard.scene.view(name).is_complete
        });
        let now = yard.holds();
        most.memory = most.memory.max(now.memory);
        most.files = most.files.max(now.files);
        most.threads = most.threads.max(now.threads);
    }
    for (name, _, outcome) in &tasks {
        let report = yard.scene.checked_report(name);
        assert_eq!(report.outcome, *outcome, "{name}: {report:?}");
    }
    println!("{} tasks in {:?}, at the most {most:?}", tasks.len(), begin.elapsed());
    yard.unharmed();
}
