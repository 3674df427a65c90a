//! Whether a container lost its shim: the engine's process that is the parent of the container's first process
//! (containerd-shim, or conmon of Podman) and knows how that ends. Where a shim is killed, the engine kills what is left of
//! the container and tells 137, as of a task that was killed itself; it tells nothing else. So the evidence is the host's:
//! a shim ends after its container's first process, which it has to reap, unless it was ended itself.
//!
//! "Not known" is before Linux 5.3, where the worker runs in a container or `/proc` hides processes from it, and where the
//! shim ended while no worker ran: there 137 stays the task's.

use std::fs;

use super::verdict::Shim;
use crate::sys::ends::{EndOrder, Process};

/// Names of shims, as the kernel cuts them.
const SHIMS: [&str; 2] = ["containerd-shim", "conmon"];

/// The first process of a container, and its shim.
pub struct ShimWatch(EndOrder);

impl ShimWatch {
    /// For the container `id` with this first process. `None` where one of the two can't be seen.
    pub fn open(pid: i64, id: &str) -> Option<Self> {
        let first = Process::open(pid)?;
        // Numbers are used again: that it is this container's is told by the name of its control group.
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        if id.is_empty() || !cgroup.contains(id) {
            return None;
        }
        let parent = parent_of(pid)?;
        let shim = Process::open(parent)?;
        if !is_shim(fs::read_to_string(format!("/proc/{parent}/comm")).ok()?.trim()) {
            return None;
        }
        let order = EndOrder::of(first, shim).ok()?;
        // Both live after all that was read, and it is still the parent: what was read is about these two.
        (parent_of(pid) == Some(parent) && !order.has_end()).then_some(Self(order))
    }

    /// Of a container that has ended.
    pub fn verdict(&self) -> Shim {
        if self.0.is_second_earlier() { Shim::EndedFirst } else { Shim::Fine }
    }
}

fn parent_of(pid: i64) -> Option<i64> {
    parent_in_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The 4th field of `/proc/PID/stat` (proc(5)). The second one is a name in parentheses, which may have anything in it.
fn parent_in_stat(stat: &str) -> Option<i64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn is_shim(name: &str) -> bool {
    SHIMS.iter().any(|shim| name.starts_with(shim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_who_the_parent_is() {
        assert_eq!(parent_in_stat("7 (a) R 1 (b) S 12 7 7 0 -1 4194560"), Some(12));
        assert_eq!(parent_in_stat("7 (a) S"), None);
        assert_eq!(parent_in_stat(""), None);
        let own = i64::from(std::process::id());
        assert_eq!(parent_of(own), Some(i64::from(std::os::unix::process::parent_id())));
    }

    #[test]
    fn knows_shims_by_their_names() {
        for (name, is) in
            [("containerd-shim", true), ("conmon", true), ("conmonrs", true), ("systemd", false), ("", false)]
        {
            assert_eq!(is_shim(name), is, "{name}");
        }
    }

    #[test]
    fn a_process_of_no_container_is_not_watched() {
        let own = i64::from(std::process::id());
        assert!(ShimWatch::open(own, "0123abcd").is_none());
        assert!(ShimWatch::open(own, "").is_none());
        assert!(ShimWatch::open(0, "0123abcd").is_none());
    }
}
