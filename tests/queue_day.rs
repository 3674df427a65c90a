//! The queue over whole days of load in simulated time: never more promised than lent, and everybody's turn comes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use hivemind_worker::node::id::{AttemptKey, Id};
use hivemind_worker::node::queue::{HALF_LIFE, Holding, Line, Next, PATIENCE, POINT, TURN, Waiting};
use hivemind_worker::node::resources::Resources;

const DAY: u64 = 24 * 3_600;
/// As many as a node lets wait.
const MAX_QUEUED: usize = 64;
const MAX_TIMEOUT: u64 = 900;
const LENT: Resources = Resources { cpu_millis: 8_000, memory_bytes: 16 << 30, disk_bytes: 100 << 30, slots: 8 };

/// Numbers that look random: xorshift.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[derive(Clone)]
struct Task {
    key: AttemptKey,
    owner: Id,
    priority: u8,
    since: u64,
    arrival: u64,
    needs: Resources,
    timeout: u64,
    runs: u64,
}

struct Running {
    needs: Resources,
    ends: u64,
    until: u64,
}

#[derive(Default)]
struct Day {
    now: u64,
    waiting: Vec<Task>,
    running: Vec<Running>,
    line: Line,
    arrivals: u64,
    /// Seconds that each waited that has started, by owner.
    waits: BTreeMap<Id, Vec<u64>>,
    refused: usize,
    /// CPU-milliseconds that tasks ran.
    used: u64,
}

impl Day {
    fn arrive(&mut self, owner: &str, priority: u8, needs: Resources, timeout: u64, runs: u64) {
        if self.waiting.len() == MAX_QUEUED {
            self.refused += 1;
            return;
        }
        self.arrivals += 1;
        let key = AttemptKey { task: Id::parse(&format!("t{}", self.arrivals)).unwrap(), attempt: 1 };
        let (owner, since, arrival) = (Id::parse(owner).unwrap(), self.now, self.arrivals);
        self.waiting.push(Task { key, owner, priority, since, arrival, needs, timeout, runs });
    }

    /// Lets a second pass.
    fn pass(&mut self) {
        self.now += 1;
        self.running.retain(|task| task.ends > self.now);
        while let Some(place) = self.next() {
            let task = self.waiting.remove(place);
            self.waits.entry(task.owner).or_default().push(self.now - task.since);
            self.running.push(Running {
                needs: task.needs,
                ends: self.now + task.runs,
                until: self.now + task.timeout,
            });
            self.used += task.needs.cpu_millis * task.runs;
        }
        let promised = self.running.iter().fold(Resources::default(), |sum, task| sum.plus(&task.needs));
        assert!(promised.fits(&LENT), "{promised:?} at {}", self.now);
    }

    fn next(&mut self) -> Option<usize> {
        let holding: Vec<Holding> = self
            .running
            .iter()
            .map(|task| Holding { needs: task.needs, until: Some(Duration::from_secs(task.until)) })
            .collect();
        let waiting = self.waiting.iter().map(|task| Waiting {
            key: &task.key,
            owner: &task.owner,
            priority: task.priority,
            since: Duration::from_secs(task.since),
            arrival: task.arrival,
            needs: task.needs,
            timeout: Duration::from_secs(task.timeout),
        });
        match self.line.next(waiting, &holding, &LENT, Duration::from_secs(self.now)) {
            Next::Start(key) => self.waiting.iter().position(|task| task.key == *key),
            _ => None,
        }
    }

    fn longest_wait(&self) -> u64 {
        self.waits.values().flatten().copied().max().unwrap_or(0)
    }
}

fn amount(cpus: u64) -> Resources {
    Resources { cpu_millis: cpus * 1_000, memory_bytes: cpus << 30, disk_bytes: 1 << 30, slots: 1 }
}

#[test]
fn days_of_random_load_promise_no_more_than_is_lent_and_forget_nobody() {
    // By hand: an hour by which priorities differ at most; what an owner is charged, which is at most what it was given in
    // a row, eight at a time; the patience; then those before it, of whom the largest need the whole machine each.
    let charged = TURN.as_secs() * 8 * (1 + HALF_LIFE.as_secs() / 60);
    let bound = POINT.as_secs() * 100 + charged + PATIENCE.as_secs() + MAX_QUEUED as u64 * MAX_TIMEOUT;
    for seed in 1..=3 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ seed);
        let mut day = Day::default();
        while day.now < DAY {
            // Twice as much as can run, and now and then one that needs all of it.
            if dice.roll(40) == 0 {
                let cpus = if dice.roll(30) == 0 { 8 } else { 1 + dice.roll(4) };
                let timeout = 1 + dice.roll(MAX_TIMEOUT);
                let owner = format!("owner-{}", dice.roll(5));
                day.arrive(&owner, dice.roll(101) as u8, amount(cpus), timeout, 1 + dice.roll(timeout));
            }
            day.pass();
        }
        while !day.waiting.is_empty() {
            day.pass();
            assert!(day.now < DAY + bound, "seed {seed}: {} wait without end", day.waiting.len());
        }
        let (longest, share) = (day.longest_wait(), day.used as f64 / (day.now * LENT.cpu_millis) as f64);
        println!(
            "seed {seed}: {} ran, {} refused, longest wait {longest} s, CPU {share:.2}",
            day.arrivals, day.refused
        );
        assert!(longest <= bound, "seed {seed}: {longest} s of {bound}");
        assert!(day.arrivals > 500, "a day with load");
    }
}

#[test]
fn a_task_that_needs_all_of_it_starts_among_many_small_ones() {
    let mut day = Day::default();
    for _ in 0..8 {
        day.arrive("small", 100, amount(1), 600, 600);
    }
    day.pass();
    day.arrive("large", 0, amount(8), 600, 600);
    // Small ones of the highest priority come for ever, as fast as they go.
    while !day.waits.contains_key(&Id::parse("large").unwrap()) {
        if day.waiting.len() < 16 {
            day.arrive("small", 100, amount(1), 600, 600);
        }
        day.pass();
        // An hour of priority, and then no more than what has begun.
        assert!(day.now < 3_600 + 600 * 2, "it still waits");
    }
}

#[test]
fn an_owner_of_a_few_tasks_does_not_wait_for_all_of_one_with_many() {
    let mut day = Day::default();
    for _ in 0..60 {
        day.arrive("many", 50, amount(8), 120, 120);
    }
    (0..300).for_each(|_| day.pass());
    for _ in 0..3 {
        day.arrive("few", 50, amount(8), 120, 120);
    }
    (0..1_200).for_each(|_| day.pass());
    let waits = &day.waits[&Id::parse("few").unwrap()];
    // All of the others' would have been two hours.
    assert_eq!(waits.len(), 3);
    assert!(waits.iter().all(|wait| *wait <= 600), "{waits:?}");
}
