//! The kernel's own count of processes that it killed for memory.
//!
//! With cgroup v2 the engine learns of such a kill from the container's `memory.events`, and the cgroup is gone soon after
//! its last process: an engine that comes too late flags nothing (Engine 20.10 on a slow machine: once in eight). The
//! worker reads the same count while the container runs; and the cgroup above it keeps count when that one is gone. Left
//! out on purpose: v1, where the engine is told by an event of its own that is not lost.

use std::fs;
use std::path::{Path, PathBuf};

use super::meter::Meter;
use super::verdict::KILLED;

/// Watches one container's count and that of all its siblings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KillCount {
    own: PathBuf,
    siblings: PathBuf,
    /// Kills in this container.
    seen: u64,
    /// Kills in it and all its siblings, at the last look at which it had none.
    before: Option<u64>,
}

impl KillCount {
    /// Of the container with these cgroups; nothing is ever seen where they don't tell.
    pub fn new(meter: &Meter, container_id: &str) -> Self {
        let Meter::Unified(folder) = meter else { return Self::default() };
        // The container's processes may be in a cgroup below its own: Podman with crun.
        let is_above = |folder: &&Path| !folder.to_string_lossy().contains(container_id);
        let Some(above) = folder.ancestors().find(is_above) else { return Self::default() };
        Self { own: folder.join("memory.events"), siblings: above.join("memory.events"), ..Self::default() }
    }

    /// Looks at the counts; of a container that is gone nothing changes.
    pub fn look(&mut self) {
        // In this order: a kill between the two is in the second, so that the first is never one too high.
        let siblings = kills(&self.siblings);
        let Some(own) = kills(&self.own) else { return };
        self.seen = self.seen.max(own);
        if own == 0 {
            self.before = siblings;
        }
    }

    /// Whether the kernel has killed a process of the container for memory, now that it has ended with this code, without
    /// anybody's order. The siblings' count is believed for process 1 only: that it was killed by somebody in the very
    /// moment in which the kernel killed another container's process is the one way to be wrong.
    pub fn has_killed(&mut self, exit_code: i64) -> bool {
        self.look();
        let has_grown = || self.before.zip(kills(&self.siblings)).is_some_and(|(before, now)| now > before);
        self.seen > 0 || (exit_code == KILLED && has_grown())
    }
}

/// `oom_kill` of a `memory.events` (the kernel's cgroup-v2.rst): kills in this cgroup and those below it.
fn kills(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123abcd";

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("hivemind-oom-{name}-{}", std::process::id()));
            let folder = Self(root);
            fs::create_dir_all(folder.own()).unwrap();
            folder
        }

        fn own(&self) -> PathBuf {
            self.0.join(format!("docker-{ID}.scope/container"))
        }

        /// Counts of the container and of all together.
        fn counts(&self, own: u64, all: u64) {
            let text = |kills: u64| format!("low 0\nhigh 0\nmax 7\noom 5\noom_kill {kills}\noom_group_kill 0\n");
            fs::write(self.own().join("memory.events"), text(own)).unwrap();
            fs::write(self.0.join("memory.events"), text(all)).unwrap();
        }

        fn watch(&self) -> KillCount {
            KillCount::new(&Meter::Unified(self.own()), ID)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_kill_that_was_seen_counts_whatever_the_code() {
        let folder = Folder::new("seen");
        let mut watch = folder.watch();
        folder.counts(1, 9);
        watch.look();
        fs::remove_dir_all(folder.own()).unwrap();
        assert!(watch.has_killed(0));
    }

    #[test]
    fn a_container_that_is_gone_is_found_in_the_count_above() {
        let folder = Folder::new("gone");
        let mut watch = folder.watch();
        folder.counts(0, 8);
        watch.look();
        // Others', before the last look at which it lived.
        folder.counts(0, 9);
        watch.look();
        fs::remove_dir_all(folder.own()).unwrap();
        assert!(!watch.has_killed(137), "somebody else's kill");
        fs::write(folder.0.join("memory.events"), "oom_kill 10\n").unwrap();
        assert!(watch.has_killed(137));
        assert!(!watch.has_killed(3), "it ended by itself");
    }

    #[test]
    fn where_nothing_is_told_nothing_is_seen() {
        let legacy = Meter::Legacy { cpu: None, memory: None, pids: None, disk: None };
        assert!(!KillCount::new(&legacy, ID).has_killed(137));
        assert!(!Folder::new("empty").watch().has_killed(137));
    }
}
