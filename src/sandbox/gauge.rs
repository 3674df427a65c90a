//! When a container's use is read, and what is made of the readings.

use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use super::meter::{Meter, Reading};
use super::oom::OomWatch;
use crate::docker::{Docker, Stats};
use crate::node::record::Usage;

/// Readings come close at first, so that the figures of a short task are not empty.
const EARLY: [Duration; 5] = [
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
];
/// Until this age a reading each [`YOUNG_EVERY`]: what a task uses after its last reading is never known.
const YOUNG: Duration = Duration::from_secs(20);
/// See [`YOUNG`].
const YOUNG_EVERY: Duration = Duration::from_millis(200);
/// Between readings later.
const EVERY: Duration = Duration::from_secs(1);
/// Between two answers of the engine, where it has to be asked.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// Between two looks that are told.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// A call holds one small answer.
const STACK_BYTES: usize = 512 << 10;

/// The use of one container.
pub struct Gauge {
    source: Source,
    oom: OomWatch,
    started: Duration,
    readings: usize,
    next: Duration,
    told: Option<(Duration, u64)>,
    /// Of now; peak and counters never fall.
    pub usage: Usage,
}

enum Source {
    Cgroup(Meter),
    /// The engine is asked on a thread of its own, since its answer takes up to a second.
    Engine(Option<Receiver<Stats>>),
}

/// What is worth telling.
pub struct Told {
    /// Of one CPU, since what was told before.
    pub cpu_percent: Option<f64>,
}

impl Gauge {
    /// For the container `id` with this first process; `started` is when it started.
    pub fn new(pid: i64, id: &str, started: Duration, now: Duration) -> Self {
        let meter = Meter::find(pid, id);
        let oom = meter.as_ref().map_or_else(OomWatch::default, |meter| OomWatch::new(meter, id));
        let source = meter.map_or(Source::Engine(None), Source::Cgroup);
        Self { source, oom, started, readings: 0, next: now, told: None, usage: Usage::default() }
    }

    /// Whether the kernel has killed a process of the container for memory; asked when it has ended with this code.
    pub fn has_run_out_of_memory(&mut self, exit_code: i64) -> bool {
        self.oom.has_killed(exit_code)
    }

    /// When the next reading is due.
    pub fn next(&self) -> Duration {
        self.next
    }

    /// Reads if it is time to; gives what is to be told, at most once a second.
    pub fn read(&mut self, docker: &Docker, container: &str, now: Duration) -> Option<Told> {
        if now < self.next {
            return None;
        }
        self.readings += 1;
        let age = now.saturating_sub(self.started);
        self.next = match (&self.source, EARLY.get(self.readings)) {
            (Source::Engine(_), _) => now + ASK_EVERY,
            (_, Some(early)) => now.max(self.started + *early),
            _ if age < YOUNG => now + YOUNG_EVERY,
            _ => now + EVERY,
        };
        self.oom.look();
        let reading = match &mut self.source {
            Source::Cgroup(meter) => meter.read(),
            Source::Engine(pending) => {
                let answer = pending.take().and_then(|answer| answer.try_recv().ok());
                *pending = ask(docker, container);
                Reading::from(answer?)
            }
        };
        self.take(&reading);
        let cpu_ns = reading.cpu_ns?;
        let since = self.told.map(|(at, before)| (now.saturating_sub(at), cpu_ns.saturating_sub(before)));
        if since.is_some_and(|(passed, _)| passed < TELL_EVERY) {
            return None;
        }
        self.told = Some((now, cpu_ns));
        let cpu_percent = since.map(|(passed, used)| 100.0 * used as f64 / passed.as_nanos().max(1) as f64);
        Some(Told { cpu_percent })
    }

    fn take(&mut self, reading: &Reading) {
        let usage = &mut self.usage;
        let grow = |before: u64, now: Option<u64>| now.map_or(before, |now| now.max(before));
        usage.cpu_ms = grow(usage.cpu_ms, reading.cpu_ns.map(|ns| ns / 1_000_000));
        usage.peak_memory_bytes = grow(usage.peak_memory_bytes, reading.memory_bytes);
        usage.memory_bytes = reading.memory_bytes.unwrap_or(usage.memory_bytes);
        usage.pids = reading.pids.unwrap_or(usage.pids);
        usage.disk_read_bytes = grow(usage.disk_read_bytes, reading.disk_read_bytes);
        usage.disk_written_bytes = grow(usage.disk_written_bytes, reading.disk_written_bytes);
    }
}

/// The answer is fetched at the next reading; one that has not come by then is forgotten.
fn ask(docker: &Docker, container: &str) -> Option<Receiver<Stats>> {
    let (sender, answer) = bounded(1);
    let (docker, container) = (docker.clone(), container.to_owned());
    let thread = thread::Builder::new().name("stats".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        if let Ok(stats) = docker.stats(&container) {
            // Nobody waits any more when the task has ended.
            let _ = sender.send(stats);
        }
    });
    thread.is_ok().then_some(answer)
}

impl From<Stats> for Reading {
    fn from(stats: Stats) -> Self {
        Self {
            cpu_ns: stats.cpu_total_ns,
            memory_bytes: stats.memory,
            pids: stats.pids,
            disk_read_bytes: Some(stats.block_read),
            disk_written_bytes: Some(stats.block_write),
        }
    }
}
