//! What a container uses, read from its cgroup: the engine's own figures come a second late (its `stats` waits for the
//! next round of its collector), and a task of half a second would have none.
//!
//! Where the cgroup can't be seen, since the worker runs in a container itself, the engine is asked after all.

use std::fs;
use std::path::{Path, PathBuf};

/// A reading. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// CPU time in nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Memory without the file cache that the kernel would give back, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes read from block devices.
    pub disk_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub disk_written_bytes: Option<u64>,
    /// Bytes received and sent over all interfaces but loopback.
    pub network_bytes: Option<(u64, u64)>,
}

/// The folders of one container's cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meter {
    /// cgroup v2: one folder.
    Unified(PathBuf),
    /// cgroup v1: a folder for each controller.
    Legacy { cpu: Option<PathBuf>, memory: Option<PathBuf>, pids: Option<PathBuf>, disk: Option<PathBuf> },
}

impl Meter {
    /// Finds the cgroups of the container's first process. `None` where they can't be seen from here, or where the
    /// process number is another process by now.
    pub fn find(pid: i64, container_id: &str) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let meter = Self::parse(&text, container_id, Path::new("/sys/fs/cgroup"))?;
        meter.read().cpu_ns.map(|_| meter)
    }

    /// From the content of `/proc/PID/cgroup` (cgroups(7)) and the place where cgroups are mounted.
    fn parse(text: &str, container_id: &str, root: &Path) -> Option<Self> {
        let lines = text.lines().filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            // Only a folder that is named after the container is its own.
            (!container_id.is_empty() && path.contains(container_id))
                .then(|| (controllers, path.trim_start_matches('/')))
        });
        let lines: Vec<(&str, &str)> = lines.collect();
        let legacy = |name: &str| {
            let (controllers, path) =
                lines.iter().find(|(controllers, _)| controllers.split(',').any(|c| c == name))?;
            Some(root.join(controllers).join(path))
        };
        if let Some(memory) = legacy("memory") {
            let (cpu, pids, disk) = (legacy("cpuacct"), legacy("pids"), legacy("blkio"));
            return Some(Self::Legacy { cpu, memory: Some(memory), pids, disk });
        }
        let (_, path) = lines.iter().find(|(controllers, _)| controllers.is_empty())?;
        Some(Self::Unified(root.join(path)))
    }

    /// Reads now; absent is what is gone or not kept by this kernel.
    pub fn read(&self) -> Reading {
        match self {
            Self::Unified(folder) => read_unified(folder),
            Self::Legacy { cpu, memory, pids, disk } => Reading {
                cpu_ns: cpu.as_deref().and_then(|folder| number(&folder.join("cpuacct.usage"))),
                memory_bytes: memory.as_deref().and_then(|folder| {
                    let used = number(&folder.join("memory.usage_in_bytes"))?;
                    let cache = field(&folder.join("memory.stat"), "total_inactive_file").unwrap_or(0);
                    Some(used.saturating_sub(cache))
                }),
                pids: pids.as_deref().and_then(|folder| number(&folder.join("pids.current"))),
                disk_read_bytes: disk.as_deref().and_then(|folder| throttled(folder, "Read")),
                disk_written_bytes: disk.as_deref().and_then(|folder| throttled(folder, "Write")),
                network_bytes: None,
            },
        }
    }
}

fn read_unified(folder: &Path) -> Reading {
    let memory = number(&folder.join("memory.current"))
        .map(|used| used.saturating_sub(field(&folder.join("memory.stat"), "inactive_file").unwrap_or(0)));
    let io = fs::read_to_string(folder.join("io.stat")).ok();
    let io_sum = |key: &str| io.as_deref().map(|text| sum_pairs(text, key));
    Reading {
        cpu_ns: field(&folder.join("cpu.stat"), "usage_usec").and_then(|usec| usec.checked_mul(1_000)),
        memory_bytes: memory,
        pids: number(&folder.join("pids.current")),
        disk_read_bytes: io_sum("rbytes="),
        disk_written_bytes: io_sum("wbytes="),
        network_bytes: None,
    }
}

/// What the interfaces of a process's network name space have received and sent, without loopback.
pub fn network(pid: i64) -> Option<(u64, u64)> {
    parse_network(&fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?)
}

/// `/proc/PID/net/dev` (proc(5)): two lines of headings, then a line an interface; the first number behind its name is
/// what it has received, the ninth what it has sent.
fn parse_network(text: &str) -> Option<(u64, u64)> {
    let mut sums = (0u64, 0u64);
    for line in text.lines().skip(2) {
        let (name, numbers) = line.split_once(':')?;
        if name.trim() == "lo" {
            continue;
        }
        let mut numbers = numbers.split_whitespace().map(str::parse::<u64>);
        sums.0 = sums.0.saturating_add(numbers.next()?.ok()?);
        sums.1 = sums.1.saturating_add(numbers.nth(7)?.ok()?);
    }
    Some(sums)
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The value behind `name ` in a file of such lines.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

/// `io.stat` of v2: a line for each device with pairs such as `rbytes=1`.
fn sum_pairs(text: &str, key: &str) -> u64 {
    let values = text.split_whitespace().filter_map(|pair| pair.strip_prefix(key)?.parse::<u64>().ok());
    values.fold(0, u64::saturating_add)
}

/// `blkio.throttle.io_service_bytes` of v1: a line such as `8:0 Read 1` for each device and kind.
fn throttled(folder: &Path, kind: &str) -> Option<u64> {
    let text = fs::read_to_string(folder.join("blkio.throttle.io_service_bytes")).ok()?;
    let values = text.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        (words.next()? == kind).then(|| words.next()?.parse::<u64>().ok())?
    });
    Some(values.fold(0, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123abcd";

    fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("hivemind-meter-{name}-{}", std::process::id()));
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn reads_the_files_of_cgroup_v1() {
        let root = folder(
            "v1",
            &[
                ("cpu,cpuacct/docker/0123abcd/cpuacct.usage", "1234567\n"),
                ("memory/docker/0123abcd/memory.usage_in_bytes", "9000\n"),
                ("memory/docker/0123abcd/memory.stat", "cache 5000\ninactive_file 1\ntotal_inactive_file 4000\n"),
                ("pids/docker/0123abcd/pids.current", "3\n"),
                (
                    "blkio/docker/0123abcd/blkio.throttle.io_service_bytes",
                    "8:0 Read 10\n8:0 Write 20\n8:16 Read 1\nTotal 31\n",
                ),
            ],
        );
        let text = "9:memory:/docker/0123abcd\n4:cpu,cpuacct:/docker/0123abcd\n3:pids:/docker/0123abcd\n2:blkio:/docker/0123abcd\n0::/\n";
        let reading = Meter::parse(text, ID, &root).unwrap().read();
        assert_eq!(
            reading,
            Reading {
                cpu_ns: Some(1_234_567),
                memory_bytes: Some(5_000),
                pids: Some(3),
                disk_read_bytes: Some(11),
                disk_written_bytes: Some(20),
                network_bytes: None,
            }
        );
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn reads_the_files_of_cgroup_v2() {
        let root = folder(
            "v2",
            &[
                ("system.slice/docker-0123abcd.scope/cpu.stat", "usage_usec 2500\nuser_usec 2000\n"),
                ("system.slice/docker-0123abcd.scope/memory.current", "9000\n"),
                ("system.slice/docker-0123abcd.scope/memory.stat", "anon 1\ninactive_file 4000\n"),
                ("system.slice/docker-0123abcd.scope/pids.current", "3\n"),
                (
                    "system.slice/docker-0123abcd.scope/io.stat",
                    "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=0\n",
                ),
            ],
        );
        let reading = Meter::parse("0::/system.slice/docker-0123abcd.scope\n", ID, &root).unwrap().read();
        assert_eq!(
            reading,
            Reading {
                cpu_ns: Some(2_500_000),
                memory_bytes: Some(5_000),
                pids: Some(3),
                disk_read_bytes: Some(11),
                disk_written_bytes: Some(20),
                network_bytes: None,
            }
        );
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn loopback_is_no_network() {
        // As a container with one interface beside loopback shows it.
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
            \x20   lo:     500       5    0    0    0     0          0         0      500       5    0    0    0     0       0          0\n\
            \x20 eth0:    1390      17    0    0    0     0          0         0      806       9    0    0    0     0       0          0\n";
        assert_eq!(parse_network(text), Some((1_390, 806)));
        let without: String = text.lines().take(3).map(|line| format!("{line}\n")).collect();
        assert_eq!(parse_network(&without), Some((0, 0)));
        assert_eq!(parse_network("a\nb\neth0: 1 2\n"), None);
    }

    #[test]
    fn another_process_by_that_number_is_not_measured() {
        assert_eq!(Meter::parse("0::/user.slice\n9:memory:/user\n", ID, Path::new("/sys/fs/cgroup")), None);
        assert_eq!(Meter::parse("0::/x\n", "", Path::new("/sys/fs/cgroup")), None);
    }
}
