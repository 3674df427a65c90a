//! What one look at the queue costs, by its length: scripts/bench.sh queue runs it. Each line: tasks that wait, then the
//! median and the longest look in microseconds.
#![allow(clippy::unwrap_used)] // A bench that fails has nothing better to say.

use std::hint::black_box;
use std::time::{Duration, Instant};

use hivemind_worker::node::id::{AttemptKey, Id};
use hivemind_worker::node::queue::{Holding, Line, Next, Waiting};
use hivemind_worker::node::resources::Resources;

const LOOKS: usize = 301;
const OWNERS: usize = 100;
const RUNNING: u64 = 32;
const NOW: Duration = Duration::from_secs(1_000_000);

fn main() {
    for tasks in [100, 1_000, 10_000] {
        let mut looks = measure(tasks);
        looks.sort_unstable();
        println!("{tasks} {:.1} {:.1}", looks[LOOKS / 2].as_secs_f64() * 1e6, looks[LOOKS - 1].as_secs_f64() * 1e6);
    }
}

/// The dearest case: the first in line does not fit, and all that wait are tried as fillers.
fn measure(tasks: usize) -> Vec<Duration> {
    let owners: Vec<Id> = (0..OWNERS).map(|i| Id::parse(&format!("owner-{i}")).unwrap()).collect();
    let keys: Vec<AttemptKey> =
        (0..tasks).map(|i| AttemptKey { task: Id::parse(&format!("task-{i}")).unwrap(), attempt: 1 }).collect();
    let gib = |n: u64| n << 30;
    let amount =
        |cpus: u64| Resources { cpu_millis: cpus * 1_000, memory_bytes: gib(cpus), disk_bytes: gib(1), slots: 1 };
    let lent = Resources { cpu_millis: 64_000, memory_bytes: gib(64), disk_bytes: gib(200), slots: 64 };
    let holding: Vec<Holding> = (0..RUNNING)
        .map(|i| Holding { needs: amount(1), until: Some(NOW + Duration::from_secs(60 * (i + 1))) })
        .collect();
    let mut line = Line::default();
    let waiting = keys.iter().enumerate().map(|(i, key)| Waiting {
        key,
        owner: &owners[i * 7 % OWNERS],
        priority: if i == 0 { 100 } else { (i * 13 % 100) as u8 },
        since: NOW - Duration::from_secs(i as u64 % 600),
        arrival: i as u64,
        needs: amount(40 + i as u64 % 8),
        timeout: Duration::from_secs(3_600),
    });
    // Each owner has had a turn.
    for owner in owners.iter().take(OWNERS) {
        let of_owner = waiting.clone().filter(|waits| waits.owner == owner);
        assert!(matches!(line.next(of_owner, &[], &lent, NOW), Next::Start(_)));
    }
    let mut timed = || {
        let begin = Instant::now();
        let next = black_box(line.next(waiting.clone(), &holding, &lent, NOW));
        let passed = begin.elapsed();
        assert!(matches!(next, Next::Waits(..)));
        passed
    };
    (0..LOOKS).map(|_| timed()).collect()
}
