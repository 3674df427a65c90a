//! Linux's side of the host: which files hold the figures. The seam for another system: a file with these functions.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::node::snapshot::MachineFacts;

use super::cgroup::{self, Limits};
use super::{DiskSpace, parse};

/// `/proc/stat` and `cpuinfo` of a machine with a thousand CPUs have less.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A small file as text, when it is there.
pub(super) fn read(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// CPUs online, whatever the worker itself may use.
pub(super) fn cpus_online() -> u32 {
    read("/sys/devices/system/cpu/online")
        .and_then(|text| parse::cpu_count(&text))
        .or_else(|| {
            let count = std::thread::available_parallelism().ok()?;
            u32::try_from(count.get()).ok()
        })
        .unwrap_or(1)
}

/// What the machine is; when the worker runs in a container, as far as that container's limits let it be.
pub fn machine_facts() -> MachineFacts {
    let limits = own_limits();
    let online = cpus_online();
    let allowed = limits.cpu_millis.and_then(|millis| u32::try_from(millis.div_ceil(1_000)).ok());
    let memory = read("/proc/meminfo").and_then(|text| parse::memory(&text).total);
    let line = |path: &str| read(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    MachineFacts {
        hostname: line("/proc/sys/kernel/hostname"),
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        kernel: line("/proc/sys/kernel/osrelease"),
        cpu_model: read("/proc/cpuinfo").map(|text| parse::cpu_model(&text)).unwrap_or_default(),
        cpus: allowed.map_or(online, |allowed| allowed.clamp(1, online)),
        memory_bytes: match (memory, limits.memory_bytes) {
            (Some(has), Some(may)) => has.min(may),
            // Zero is this type's word for unknown.
            (has, may) => has.or(may).unwrap_or(0),
        },
    }
}

/// Limits count only in a container: a service's own (MemoryMax and such) don't hold for the engine beside it.
fn own_limits() -> Limits {
    let is_container = ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists());
    // With a cgroup namespace of its own a container sees itself at the root, where a real root has no limit file.
    let is_namespaced = Path::new("/sys/fs/cgroup/memory.max").exists();
    if !is_container && !is_namespaced {
        return Limits::default();
    }
    read("/proc/self/cgroup").map_or_else(Limits::default, |text| cgroup::limits(&text, &read))
}

/// Space of the file system that holds `path`.
pub fn disk_space(path: &Path) -> Option<DiskSpace> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(DiskSpace {
        total_bytes: stat.f_blocks.checked_mul(stat.f_frsize)?,
        free_bytes: stat.f_bavail.checked_mul(stat.f_frsize)?,
    })
}

/// Space where `path` is or would be made: of the nearest folder above it that exists.
pub fn disk_space_above(path: &Path) -> Option<DiskSpace> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find_map(disk_space)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_this_machine_is() {
        let facts = machine_facts();
        assert!(facts.cpus > 0 && facts.memory_bytes > 0, "{facts:?}");
        assert_eq!(facts.os, "linux");
        assert!(!facts.hostname.is_empty() && !facts.kernel.is_empty());
    }

    #[test]
    fn finds_the_space_of_a_folder_that_is_not_there_yet() {
        let space = disk_space_above(Path::new("/proc/../tmp/not/there/yet")).unwrap();
        assert!(space.total_bytes >= space.free_bytes && space.total_bytes > 0);
        assert_eq!(disk_space(Path::new("/not/there")), None);
    }
}
