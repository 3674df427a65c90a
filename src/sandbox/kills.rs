//! The kernel's own count of processes that it killed for memory: of a container whose end comes at once, the engine
//! flags nothing at times (Engine 20.10 on a busy machine: one in eight with cgroup v2, one in thirty with v1).
//!
//! With v2 the count is in the container's `memory.events`, and the cgroup above it keeps count when that one is gone.
//! With v1 it is in `memory.oom_control`, which nobody can read any more then; but the kernel signals an eventfd once for
//! each time that the memory ran out, and once when the cgroup goes (cgroup-v1/memory.rst, "OOM Control"; seen with
//! Linux 6.18: two signals after such an end, one after any other). Watched from the start on; what ended before it was
//! looked at is for `oom` and the engine to tell.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::meter::Meter;
use super::verdict::KILLED;

/// The kernel tells of a cgroup's end from a work queue, a moment after it.
const LAST_SIGNAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Watches one container.
#[derive(Debug, Default)]
pub struct KillCount {
    source: Source,
    /// Kills in this container.
    seen: u64,
}

#[derive(Debug, Default)]
enum Source {
    #[default]
    Untold,
    Unified {
        own: PathBuf,
        siblings: PathBuf,
        /// Kills in the container and all its siblings, at the last look at which it had none.
        before: Option<u64>,
    },
    Legacy {
        control: PathBuf,
        signals: Signals,
    },
}

/// The signals of one cgroup v1.
#[derive(Debug)]
struct Signals {
    event: File,
    /// The kernel wants it open for as long as it signals.
    _control: File,
    count: u64,
}

impl KillCount {
    /// Of the container with these cgroups; nothing is ever seen where they don't tell.
    pub fn new(meter: &Meter, container_id: &str) -> Self {
        let source = match meter {
            Meter::Unified(folder) => unified(folder, container_id),
            Meter::Legacy { memory, .. } => memory.as_deref().and_then(legacy),
        };
        Self { source: source.unwrap_or_default(), seen: 0 }
    }

    /// Looks at the counts; of a container that is gone nothing changes.
    pub fn look(&mut self) {
        match &mut self.source {
            Source::Untold => {}
            Source::Unified { own, siblings, before } => {
                // In this order: a kill between the two is in the second, so that the first is never one too high.
                let all = kills(siblings);
                let Some(own) = kills(own) else { return };
                self.seen = self.seen.max(own);
                if own == 0 {
                    *before = all;
                }
            }
            Source::Legacy { control, .. } => self.seen = self.seen.max(kills(control).unwrap_or(0)),
        }
    }

    /// Whether the kernel has killed a process of the container for memory, now that it has ended with this code, without
    /// anybody's order. What is not seen in the container's own count is believed for process 1 only. With v2, that it was
    /// killed by somebody in the very moment in which the kernel killed another container's process is the one way to be
    /// wrong.
    pub fn has_killed(&mut self, exit_code: i64) -> bool {
        self.look();
        if self.seen > 0 || exit_code != KILLED {
            return self.seen > 0;
        }
        match &mut self.source {
            Source::Untold => false,
            Source::Unified { siblings, before, .. } => {
                before.zip(kills(siblings)).is_some_and(|(before, now)| now > before)
            }
            // While the cgroup is there its count is right, and the signal of its end has not come.
            Source::Legacy { control, signals } => !control.exists() && signals.wait_for(2),
        }
    }
}

fn unified(folder: &Path, container_id: &str) -> Option<Source> {
    // The container's processes may be in a cgroup below its own: Podman with crun.
    let is_above = |folder: &&Path| !folder.to_string_lossy().contains(container_id);
    let above = folder.ancestors().find(is_above)?;
    Some(Source::Unified { own: folder.join("memory.events"), siblings: above.join("memory.events"), before: None })
}

/// Needs the right to write into the cgroup: root, as a rule.
fn legacy(folder: &Path) -> Option<Source> {
    let control = folder.join("memory.oom_control");
    let file = File::open(&control).ok()?;
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
    let line = format!("{} {}", event.as_raw_fd(), file.as_raw_fd());
    fs::write(folder.join("cgroup.event_control"), line).ok()?;
    Some(Source::Legacy { control, signals: Signals { event: event.into(), _control: file, count: 0 } })
}

impl Signals {
    /// Whether so many have come, since the beginning.
    fn wait_for(&mut self, wanted: u64) -> bool {
        loop {
            let mut more = [0; 8];
            if self.event.read(&mut more).is_ok_and(|len| len == more.len()) {
                self.count = self.count.saturating_add(u64::from_ne_bytes(more));
            }
            if self.count >= wanted {
                return true;
            }
            let mut fds = [PollFd::new(&self.event, PollFlags::IN)];
            if !poll(&mut fds, Some(&LAST_SIGNAL)).is_ok_and(|ready| ready > 0) {
                return false;
            }
        }
    }
}

/// `oom_kill` of a `memory.events` (the kernel's cgroup-v2.rst), in this cgroup and those below it, or of a
/// `memory.oom_control` (since Linux 4.13).
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
    fn the_second_signal_of_a_cgroup_that_is_gone_tells_of_a_kill() {
        let folder = Folder::new("signals");
        let watch = |signals: u64| {
            let event = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
            rustix::io::write(&event, &signals.to_ne_bytes()).unwrap();
            let control = File::open(&folder.0).unwrap();
            let signals = Signals { event: event.into(), _control: control, count: 0 };
            KillCount { source: Source::Legacy { control: folder.0.join("memory.oom_control"), signals }, seen: 0 }
        };
        assert!(!watch(1).has_killed(137), "only its end");
        assert!(watch(2).has_killed(137));
        assert!(!watch(2).has_killed(0), "no process was killed, or none that mattered");
        fs::write(folder.0.join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n").unwrap();
        assert!(!watch(2).has_killed(137), "it is there, and counts none");
        fs::write(folder.0.join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n").unwrap();
        assert!(watch(0).has_killed(0));
    }

    #[test]
    fn where_nothing_is_told_nothing_is_seen() {
        let legacy = Meter::Legacy { cpu: None, memory: None, pids: None, disk: None };
        assert!(!KillCount::new(&legacy, ID).has_killed(137));
        assert!(!Folder::new("empty").watch().has_killed(137));
    }
}
