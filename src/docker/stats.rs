//! What a container uses at this moment.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Docker;
use super::call::{Call, operation};
use super::containers::container;
use super::error::Error;
use super::model::or_default;

/// One sample of what a container uses. Counters only grow while it runs; take differences of two samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time of the container, in nanoseconds; `None` where it doesn't run.
    pub cpu_total_ns: Option<u64>,
    /// CPU time of the host over all processors, idle included, in nanoseconds.
    pub system_ns: Option<u64>,
    /// Processors of the host.
    pub online_cpus: Option<u32>,
    /// Bytes without the file cache that the kernel would give back: what counts against the limit in earnest.
    pub memory: Option<u64>,
    /// Bytes as the kernel counts, cache included.
    pub memory_with_cache: Option<u64>,
    /// The highest `memory_with_cache` so far; only with cgroup v1.
    pub memory_max: Option<u64>,
    /// Bytes.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes read from block devices.
    pub block_read: u64,
    /// Bytes written to block devices.
    pub block_write: u64,
    /// Bytes received over all networks.
    pub net_rx: u64,
    /// Bytes sent over all networks.
    pub net_tx: u64,
}

impl Stats {
    /// Processors in use between two samples, where 1.5 is one and a half of them.
    pub fn cpus_since(&self, before: &Stats) -> Option<f64> {
        let used = self.cpu_total_ns?.checked_sub(before.cpu_total_ns?)?;
        let system = self.system_ns?.checked_sub(before.system_ns?)?;
        let online = self.online_cpus?;
        (system > 0).then(|| used as f64 / system as f64 * f64::from(online))
    }
}

impl Docker {
    /// One sample, at once. Of a container that doesn't run it is empty.
    pub fn stats(&self, id: &str) -> Result<Stats, Error> {
        let target = container(id).word("stats").query("stream", "0").query("one-shot", "1");
        self.fetch::<Answer>(Call::get(target, operation("read the usage of container", id))).map(Stats::from)
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default, deserialize_with = "or_default")]
    cpu_stats: CpuStats,
    #[serde(default, deserialize_with = "or_default")]
    memory_stats: MemoryStats,
    #[serde(default, deserialize_with = "or_default")]
    pids_stats: PidsStats,
    #[serde(default, deserialize_with = "or_default")]
    blkio_stats: BlkioStats,
    #[serde(default, deserialize_with = "or_default")]
    networks: BTreeMap<String, NetworkStats>,
}

#[derive(Default, Deserialize)]
struct CpuStats {
    #[serde(default, deserialize_with = "or_default")]
    cpu_usage: CpuUsage,
    #[serde(default)]
    system_cpu_usage: Option<u64>,
    #[serde(default)]
    online_cpus: Option<u32>,
}

#[derive(Default, Deserialize)]
struct CpuUsage {
    #[serde(default)]
    total_usage: Option<u64>,
}

#[derive(Default, Deserialize)]
struct MemoryStats {
    #[serde(default)]
    usage: Option<u64>,
    #[serde(default)]
    max_usage: Option<u64>,
    #[serde(default)]
    limit: Option<u64>,
    #[serde(default, deserialize_with = "or_default")]
    stats: MemoryDetail,
}

/// The first is cgroup v1's, the second that of v2.
#[derive(Default, Deserialize)]
struct MemoryDetail {
    #[serde(default)]
    total_inactive_file: Option<u64>,
    #[serde(default)]
    inactive_file: Option<u64>,
}

#[derive(Default, Deserialize)]
struct PidsStats {
    #[serde(default)]
    current: Option<u64>,
}

#[derive(Default, Deserialize)]
struct BlkioStats {
    #[serde(default, deserialize_with = "or_default")]
    io_service_bytes_recursive: Vec<BlkioEntry>,
}

#[derive(Deserialize)]
struct BlkioEntry {
    #[serde(default)]
    op: String,
    #[serde(default)]
    value: u64,
}

#[derive(Deserialize)]
struct NetworkStats {
    #[serde(default)]
    rx_bytes: u64,
    #[serde(default)]
    tx_bytes: u64,
}

impl From<Answer> for Stats {
    fn from(answer: Answer) -> Stats {
        let block = |op: &str| {
            let entries = answer.blkio_stats.io_service_bytes_recursive.iter();
            entries
                .filter(|entry| entry.op.eq_ignore_ascii_case(op))
                .fold(0, |sum: u64, entry| sum.saturating_add(entry.value))
        };
        let net = |of: fn(&NetworkStats) -> u64| {
            answer.networks.values().fold(0, |sum: u64, one| sum.saturating_add(of(one)))
        };
        let memory = &answer.memory_stats;
        let inactive = memory.stats.total_inactive_file.or(memory.stats.inactive_file).unwrap_or(0);
        // The engine sends a zero for a container that doesn't run, and one that runs has used some CPU.
        let cpu_total_ns = answer.cpu_stats.cpu_usage.total_usage.filter(|total| *total > 0);
        Stats {
            cpu_total_ns,
            system_ns: answer.cpu_stats.system_cpu_usage,
            online_cpus: answer.cpu_stats.online_cpus.filter(|cpus| *cpus > 0),
            memory: memory.usage.map(|usage| usage.saturating_sub(inactive)),
            memory_with_cache: memory.usage,
            memory_max: memory.max_usage,
            memory_limit: memory.limit,
            pids: answer.pids_stats.current,
            block_read: block("read"),
            block_write: block("write"),
            net_rx: net(|one| one.rx_bytes),
            net_tx: net(|one| one.tx_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_kinds_of_cgroups() {
        let v1: Answer = serde_json::from_str(
            r#"{"cpu_stats":{"cpu_usage":{"total_usage":500},"system_cpu_usage":9000,"online_cpus":2},
                "memory_stats":{"usage":1000,"max_usage":2000,"limit":4000,"stats":{"total_inactive_file":300,"inactive_file":7}},
                "pids_stats":{"current":3},
                "blkio_stats":{"io_service_bytes_recursive":[{"op":"Read","value":1},{"op":"Write","value":2},
                    {"op":"Read","value":10},{"op":"Total","value":13}]},
                "networks":{"eth0":{"rx_bytes":5,"tx_bytes":6},"eth1":{"rx_bytes":50,"tx_bytes":60}}}"#,
        )
        .unwrap();
        let stats = Stats::from(v1);
        assert_eq!((stats.memory, stats.memory_with_cache, stats.memory_max), (Some(700), Some(1000), Some(2000)));
        assert_eq!((stats.block_read, stats.block_write, stats.net_rx, stats.net_tx), (11, 2, 55, 66));
        let v2: Answer = serde_json::from_str(
            r#"{"memory_stats":{"usage":1000,"stats":{"inactive_file":300}},"blkio_stats":{"io_service_bytes_recursive":null}}"#,
        )
        .unwrap();
        assert_eq!(Stats::from(v2).memory, Some(700));
    }

    #[test]
    fn of_a_container_that_does_not_run_nothing_is_known() {
        let answer: Answer = serde_json::from_str(
            r#"{"read":"0001-01-01T00:00:00Z","pids_stats":{},"cpu_stats":{"cpu_usage":{"total_usage":0}},"memory_stats":{}}"#,
        )
        .unwrap();
        assert_eq!(Stats::from(answer), Stats::default());
    }

    #[test]
    fn counts_processors_between_two_samples() {
        let sample = |cpu, system| Stats {
            cpu_total_ns: Some(cpu),
            system_ns: Some(system),
            online_cpus: Some(4),
            ..Stats::default()
        };
        assert_eq!(sample(150, 1400).cpus_since(&sample(50, 1000)), Some(1.0));
        assert_eq!(sample(50, 1000).cpus_since(&sample(150, 1400)), None);
        assert_eq!(sample(1, 1).cpus_since(&sample(1, 1)), None);
    }
}
