//! Looks at the machine now and then, and keeps what a share over time needs from look to look.

use std::path::{Path, PathBuf};

use crate::node::snapshot::HostSample;

use super::linux::{cpus_online, disk_space, read};
use super::parse::{self, CpuTicks};

/// One per process: the CPU share of a sample is over the time since the sample before.
pub struct Sampler {
    state_dir: PathBuf,
    before: Option<CpuTicks>,
}

impl Sampler {
    /// A sampler whose first sample covers the time since now.
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), before: ticks() }
    }

    /// Looks at the machine.
    pub fn sample(&mut self) -> HostSample {
        let ticks = ticks();
        let cpu_percent = match (&ticks, &self.before) {
            (Some(now), Some(before)) => now.percent_since(before),
            _ => None,
        };
        self.before = ticks;
        let memory = read("/proc/meminfo").map_or_else(Default::default, |text| parse::memory(&text));
        let disk = disk_space(&self.state_dir);
        let network = read("/proc/net/dev").and_then(|text| parse::network_bytes(&text));
        HostSample {
            cpu_percent,
            load_1m: read("/proc/loadavg").and_then(|text| parse::load_1m(&text)),
            cpus: cpus_online(),
            memory_total_bytes: memory.total,
            memory_available_bytes: memory.available,
            swap_total_bytes: memory.swap_total,
            swap_free_bytes: memory.swap_free,
            disk_total_bytes: disk.map(|disk| disk.total_bytes),
            disk_free_bytes: disk.map(|disk| disk.free_bytes),
            network_received_bytes: network.map(|(received, _)| received),
            network_sent_bytes: network.map(|(_, sent)| sent),
            uptime_s: read("/proc/uptime").and_then(|text| parse::uptime_s(&text)),
        }
    }
}

fn ticks() -> Option<CpuTicks> {
    read("/proc/stat").and_then(|text| parse::cpu_ticks(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_work_of_this_very_test() {
        let mut sampler = Sampler::new(Path::new("/tmp"));
        let start = std::time::Instant::now();
        while start.elapsed() < std::time::Duration::from_millis(60) {
            std::hint::black_box(start);
        }
        let sample = sampler.sample();
        assert!(sample.cpu_percent.is_some_and(|percent| percent > 0.0 && percent <= 100.0), "{sample:?}");
        assert!(sample.memory_total_bytes > sample.memory_available_bytes, "{sample:?}");
        assert!(sample.disk_total_bytes.is_some() && sample.uptime_s.is_some() && sample.load_1m.is_some());
    }
}
