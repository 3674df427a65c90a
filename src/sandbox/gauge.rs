//! When a container's use is read, and what is made of the readings.

use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use super::kills::KillCount;
use super::meter::{self, Meter, Reading};
use crate::docker::{Docker, Stats};
use crate::node::account::UsageFigures;
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
    pid: i64,
    oom: KillCount,
    started: Duration,
    readings: usize,
    next: Duration,
    told: Option<(Duration, u64)>,
    sums: Sums,
    /// Of now; peak and counters never fall.
    pub usage: Usage,
}

/// What averages and peaks are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    /// When it was read last.
    last: Option<Duration>,
    /// Milliseconds of which the next two know something.
    memory_ms: u64,
    pids_ms: u64,
    /// Bytes times milliseconds, processes times milliseconds.
    memory: u128,
    pids: u128,
    figures: UsageFigures,
}

impl Sums {
    fn take(&mut self, reading: &Reading, now: Duration) {
        // What a reading shows counts for the time since the one before; the first one for a millisecond, so that the
        // average of a short task is not empty.
        let passed = self.last.map_or(1, |last| millis(now.saturating_sub(last)));
        self.last = Some(now);
        let add = |sum: &mut u128, weight: &mut u64, value: Option<u64>| {
            if let Some(value) = value {
                *sum = sum.saturating_add(u128::from(value) * u128::from(passed));
                *weight = weight.saturating_add(passed);
            }
        };
        add(&mut self.memory, &mut self.memory_ms, reading.memory_bytes);
        add(&mut self.pids, &mut self.pids_ms, reading.pids);
        let figures = &mut self.figures;
        figures.peak_pids = figures.peak_pids.max(reading.pids);
        if let Some((received, sent)) = reading.network_bytes {
            figures.network_received_bytes = figures.network_received_bytes.max(Some(received));
            figures.network_sent_bytes = figures.network_sent_bytes.max(Some(sent));
        }
    }

    fn figures(&self, cpu_ms: u64, duration: Duration) -> UsageFigures {
        let mean =
            |sum: u128, weight: u64| (weight > 0).then(|| u64::try_from(sum / u128::from(weight)).unwrap_or(u64::MAX));
        let duration_ms = millis(duration);
        UsageFigures {
            average_cpu_millis: self
                .last
                .filter(|_| duration_ms > 0)
                .map(|_| cpu_ms.saturating_mul(1_000) / duration_ms),
            average_memory_bytes: mean(self.memory, self.memory_ms),
            average_pids: mean(self.pids, self.pids_ms),
            ..self.figures
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
        let oom = meter.as_ref().map_or_else(KillCount::default, |meter| KillCount::new(meter, id));
        let source = meter.map_or(Source::Engine(None), Source::Cgroup);
        let (sums, usage) = (Sums::default(), Usage::default());
        Self { source, pid, oom, started, readings: 0, next: now, told: None, sums, usage }
    }

    /// Peaks and averages of a container that ran for so long.
    pub fn figures(&self, duration: Duration) -> UsageFigures {
        self.sums.figures(self.usage.cpu_ms, duration)
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
            Source::Cgroup(meter) => {
                let mut reading = meter.read();
                // Of a container that has ended, the process number may be another's.
                reading.network_bytes = reading.cpu_ns.and_then(|_| meter::network(self.pid));
                reading
            }
            Source::Engine(pending) => {
                let answer = pending.take().and_then(|answer| answer.try_recv().ok());
                *pending = ask(docker, container);
                Reading::from(answer?)
            }
        };
        self.take(&reading, now);
        let cpu_ns = reading.cpu_ns?;
        let since = self.told.map(|(at, before)| (now.saturating_sub(at), cpu_ns.saturating_sub(before)));
        if since.is_some_and(|(passed, _)| passed < TELL_EVERY) {
            return None;
        }
        self.told = Some((now, cpu_ns));
        let cpu_percent = since.map(|(passed, used)| 100.0 * used as f64 / passed.as_nanos().max(1) as f64);
        let in_millis = |(passed, used): (Duration, u64)| u128::from(used) * 1_000 / passed.as_nanos().max(1);
        let cpu_millis = since.map(|since| u64::try_from(in_millis(since)).unwrap_or(u64::MAX));
        self.sums.figures.peak_cpu_millis = self.sums.figures.peak_cpu_millis.max(cpu_millis);
        Some(Told { cpu_percent })
    }

    fn take(&mut self, reading: &Reading, now: Duration) {
        self.sums.take(reading, now);
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
            network_bytes: stats.cpu_total_ns.map(|_| (stats.net_rx, stats.net_tx)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_weigh_each_reading_by_its_time() {
        let reading = |memory, pids| Reading {
            memory_bytes: Some(memory),
            pids: Some(pids),
            network_bytes: Some((memory, 1)),
            ..Reading::default()
        };
        let at = Duration::from_millis;
        let mut sums = Sums::default();
        assert_eq!(sums.figures(5, at(1_000)), UsageFigures::default(), "nothing was read");
        sums.take(&reading(500, 9), at(10));
        // 500 for 1 ms, 1,000 for 99 ms, 4,000 for 900 ms, nothing known for 1 s: 3,699,500 / 1,000.
        sums.take(&reading(1_000, 2), at(109));
        sums.take(&reading(4_000, 3), at(1_009));
        sums.take(&Reading::default(), at(2_009));
        let figures = sums.figures(1_500, at(2_000));
        assert_eq!((figures.average_memory_bytes, figures.average_pids), (Some(3_699), Some(2)));
        assert_eq!((figures.peak_pids, figures.average_cpu_millis), (Some(9), Some(750)));
        assert_eq!((figures.network_received_bytes, figures.network_sent_bytes), (Some(4_000), Some(1)));
        assert_eq!(figures.peak_disk_bytes, None);
    }
}
