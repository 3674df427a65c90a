//! The kernel's own word that a container ran out of memory.
//!
//! The engine loses it at times: its runtime asks whether the container's cgroup is still there when it hears of the event,
//! and one whose only process was killed is gone by then. `kills` counts for itself, but only from its first look on: of a
//! container that ended before that, or while no worker was there, the kernel's log is what is left. No container can write
//! there; the kernel limits it to ten such ends in five seconds. Where it can't be read, there is only the engine's word.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

/// One record of `/dev/kmsg` is never longer.
const MAX_RECORD_BYTES: usize = 8 << 10;
/// Records that are looked at: more than a log of a megabyte has.
const MAX_RECORDS: usize = 50_000;

/// Whether the kernel's log says that a process of this container was killed for its memory limit.
pub fn is_in_kernel_log(container_id: &str) -> bool {
    let flags = OFlags::NONBLOCK.bits().try_into().unwrap_or_default();
    let Ok(mut log) = OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg") else { return false };
    let mut record = vec![0; MAX_RECORD_BYTES];
    for _ in 0..MAX_RECORDS {
        match log.read(&mut record) {
            Ok(count) if count > 0 => {
                if tells_of(&String::from_utf8_lossy(&record[..count]), container_id) {
                    return true;
                }
            }
            // Some were overwritten before they were read; the next are there.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            _ => return false,
        }
    }
    false
}

/// Whether its own limit was the one that was reached, not that of a cgroup above it. Since Linux 5.0 that cgroup has a
/// field of its own, before it was told in words.
fn tells_of(record: &str, container_id: &str) -> bool {
    let limit = match record.split_once("oom_memcg=") {
        Some((_, rest)) if record.contains("oom-kill:constraint=CONSTRAINT_MEMCG") => rest.split(',').next(),
        _ => record.split_once("killed as a result of limit of ").map(|(_, rest)| rest),
    };
    !container_id.is_empty() && limit.is_some_and(|cgroup| cgroup.contains(container_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_kernels_words_for_a_container_without_memory() {
        // Of Linux 6.18 and, by mm/memcontrol.c, 4.19.
        let new = "6,2207,29071690842,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=docker/abc123,\
            mems_allowed=0,oom_memcg=/docker/abc123,task_memcg=/docker/abc123,task=python3,pid=20318,uid=1000\n";
        let old = "6,1,1,-;Task in /docker/abc123 killed as a result of limit of /docker/abc123\n";
        for record in [new, old] {
            assert!(tells_of(record, "abc123"));
            assert!(!tells_of(record, "abc124") && !tells_of(record, ""));
        }
        assert!(!tells_of("6,1,1,-;docker0: port 1(veth) entered abc123\n", "abc123"));
        // The memory of the machine, or of all containers together, is not the task's fault.
        assert!(!tells_of(&new.replace("oom_memcg=/docker/abc123", "oom_memcg=/docker"), "abc123"));
        assert!(!tells_of(&new.replace("CONSTRAINT_MEMCG", "CONSTRAINT_NONE"), "abc123"));
        assert!(!is_in_kernel_log("no-container-has-this-id"));
    }
}
