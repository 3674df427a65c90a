//! What the kernel says of a running container: the sandbox read back from its first process and its cgroup, whatever the
//! engine says of it. The comparison is pure, over texts of `/proc` and `/sys/fs/cgroup`.
//!
//! A runtime with a kernel of its own, such as runsc or kata, shows the processes of that kernel and not the task's: there
//! the cgroup around them is read back, and the rest is the runtime's word.
//!
//! A worker that is not root, or that runs in a container itself, sees only a part, or nothing: that part is not known, and
//! no fault.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use log::{debug, info};

use super::body::TASK_USER;
use super::mounts::check_mounts;
use super::task::Task;
use crate::docker::{ContainerInspect, CreateBody, HostConfig};
use crate::node::order::TaskNews;

/// Between the engine's start and the program's first instruction its process is still the engine's: it gives its rights
/// away as the last thing. That long it is looked at again.
const MAX_LOOKS: u32 = 14;
/// Before the second look. Each further pause is twice as long ...
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// ... up to this one: half a second in all.
const MAX_PAUSE: Duration = Duration::from_millis(64);
/// What the kernel rounds limits down to: the largest page.
const MAX_PAGE_BYTES: i64 = 64 << 10;
/// The runtime of which is known that its process is the task's. Of another one it is seen.
pub(super) const PLAIN_RUNTIME: &str = "runc";
/// Interfaces that a kernel with these modules puts into every name space. They are down and have no address, and a task
/// can't change that.
const FALLBACK_INTERFACES: [&str; 9] =
    ["tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"];

/// What can be seen of a container. An absent text can't be seen from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// `/proc/PID/status`.
    pub status: Option<String>,
    /// `/proc/PID/uid_map` and `gid_map`.
    pub id_maps: Option<(String, String)>,
    /// `/proc/PID/limits`.
    pub limits: Option<String>,
    /// `/proc/PID/mountinfo`.
    pub mounts: Option<String>,
    /// `/proc/PID/net/dev`.
    pub interfaces: Option<String>,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score_adj: Option<String>,
    /// Name spaces that it shares with the worker, or with the engine's process above it.
    pub shared_namespaces: Option<Vec<&'static str>>,
    /// By the names of cgroup v2.
    pub cgroup: Option<Cgroup>,
}

/// The limits of a cgroup, in the words of its files. An absent one is not kept by this kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Bytes.
    pub memory: Option<String>,
    /// Bytes of swap alone, or of memory and swap together where `is_legacy`.
    pub swap: Option<String>,
    /// Microseconds, and of how many.
    pub cpu: Option<(String, String)>,
    /// Processes and threads.
    pub pids: Option<String>,
    /// cgroup v1.
    pub is_legacy: bool,
}

/// What can't be seen is said once in the life of the worker.
static HAS_SAID_UNKNOWN: AtomicBool = AtomicBool::new(false);

impl Task {
    /// Looks at a started container until it is as asked for. One that has ended meanwhile is not looked at.
    ///
    /// # Errors
    /// What is not as asked for.
    pub fn look_inside(&self, found: &ContainerInspect, asked: &CreateBody) -> Result<(), String> {
        let begin = Instant::now();
        let (mut looks, mut pause) = (1, FIRST_PAUSE);
        let mut is_apart;
        let view = loop {
            let mut view = View::read(found.state.pid, &found.id, Path::new("/proc"), Path::new("/sys/fs/cgroup"));
            is_apart = found.host_config.runtime != PLAIN_RUNTIME && view.leave_to_runtime(&asked.host_config);
            match view.check(asked) {
                Ok(()) => break view,
                Err(what) if looks >= MAX_LOOKS => return Err(format!("the container {what}")),
                Err(_) => looks += 1,
            }
            // Any wish can wait for this long.
            let _ = self.wake.recv_timeout(pause);
            pause = (pause * 2).min(MAX_PAUSE);
        };
        if is_apart {
            self.tell(TaskNews::Note(format!(
                "the runtime {} runs the task on a kernel of its own: of its sandbox the limits of memory, CPU and \
                 processes were read back, the rest is the runtime's word",
                found.host_config.runtime
            )));
        }
        debug!("looked into {} within {:?}, {looks} times", self.name, begin.elapsed());
        self.say_unknown(&view);
        Ok(())
    }

    fn say_unknown(&self, view: &View) {
        let unknown = view.unknown();
        if unknown.is_empty() || HAS_SAID_UNKNOWN.load(Ordering::Relaxed) {
            return;
        }
        // Of a task that has ended nothing can be seen from anywhere.
        let is_running = self.context.quick_docker.inspect_container(&self.name).is_ok_and(|found| found.state.running);
        if is_running && !HAS_SAID_UNKNOWN.swap(true, Ordering::Relaxed) {
            info!("of a task's sandbox known by the engine's word alone: {}", unknown.join(", "));
        }
    }
}

impl View {
    /// Reads now. Nothing is known of a process that is not this container's, or that ends meanwhile.
    pub(super) fn read(pid: i64, id: &str, proc: &Path, cgroups: &Path) -> Self {
        let folder = proc.join(pid.to_string());
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok().filter(|text| !text.is_empty());
        let Some(own) = read("cgroup").filter(|text| !id.is_empty() && text.contains(id)) else {
            return Self::default();
        };
        let view = Self {
            id_maps: read("uid_map").zip(read("gid_map")),
            limits: read("limits"),
            mounts: read("mountinfo"),
            interfaces: read("net/dev"),
            oom_score_adj: read("oom_score_adj"),
            shared_namespaces: read("status").and_then(|status| shared_namespaces(&folder, proc, &status)),
            cgroup: Cgroup::read(&own, id, cgroups),
            status: read("status"),
        };
        let is_alive = view.status.as_deref().is_some_and(|text| !matches!(word(text, "State:"), Some("Z" | "X")));
        if is_alive && read("cgroup") == Some(own) { view } else { Self::default() }
    }

    /// Keeps what is true of a runtime's own process as well, if it is one: the task's has its work folder mounted.
    pub(super) fn leave_to_runtime(&mut self, asked: &HostConfig) -> bool {
        let has = |mounts: &str, target: &str| mounts.lines().any(|line| line.split(' ').nth(4) == Some(target));
        let Some(mounts) = &self.mounts else { return false };
        if asked.mounts.iter().any(|mount| has(mounts, &mount.target)) {
            return false;
        }
        *self = Self { cgroup: self.cgroup.take(), oom_score_adj: self.oom_score_adj.take(), ..Self::default() };
        true
    }

    /// What can't be seen from here.
    pub fn unknown(&self) -> Vec<&'static str> {
        let parts = [
            ("rights", self.status.is_none()),
            ("user", self.id_maps.is_none()),
            ("limits of each process", self.limits.is_none()),
            ("mounts", self.mounts.is_none()),
            ("network", self.interfaces.is_none()),
            ("OOM score", self.oom_score_adj.is_none()),
            ("name spaces", self.shared_namespaces.is_none()),
            ("cgroup", self.cgroup.is_none()),
        ];
        parts.into_iter().filter_map(|(part, is_unknown)| is_unknown.then_some(part)).collect()
    }

    /// All that can be seen, part by part.
    pub(super) fn check(&self, asked: &CreateBody) -> Result<(), String> {
        let host = &asked.host_config;
        if let Some(status) = &self.status {
            check_rights(status)?;
            if let Some((uids, gids)) = &self.id_maps {
                check_user(status, uids, gids)?;
            }
        }
        if let Some(limits) = &self.limits {
            check_ulimits(limits, host)?;
        }
        if let Some(mounts) = &self.mounts {
            check_mounts(mounts, host)?;
        }
        if let Some(interfaces) = &self.interfaces {
            check_interfaces(interfaces, host)?;
        }
        if let Some(score) = &self.oom_score_adj {
            expect("oom_score_adj", score.trim(), &host.oom_score_adj.to_string())?;
        }
        if let Some(shared) = self.shared_namespaces.as_ref().filter(|shared| !shared.is_empty()) {
            return Err(format!("shares the machine's name space: {}", shared.join(", ")));
        }
        self.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.check(host))
    }
}

pub(super) fn expect(what: &str, got: &str, wanted: &str) -> Result<(), String> {
    if got == wanted { Ok(()) } else { Err(format!("has {what} {got} instead of {wanted}")) }
}

/// The first word behind the name that begins a line.
fn word<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    rest(text, name)?.split_whitespace().next()
}

fn rest<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

fn check_rights(status: &str) -> Result<(), String> {
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        expect(name.trim_end_matches(':'), word(status, name).unwrap_or("?"), "0000000000000000")?;
    }
    expect("NoNewPrivs", word(status, "NoNewPrivs:").unwrap_or("?"), "1")?;
    // 2: a filter.
    expect("Seccomp", word(status, "Seccomp:").unwrap_or("?"), "2")
}

/// Real, effective, saved and file-system ids, and every further group, as the container counts.
fn check_user(status: &str, uids: &str, gids: &str) -> Result<(), String> {
    for (name, map) in [("Uid:", uids), ("Gid:", gids), ("Groups:", gids)] {
        let Some(ids) = rest(status, name) else { return Err(format!("tells no {name}")) };
        for id in ids.split_whitespace() {
            let inner = id.parse().ok().and_then(|id| inner_id(map, id));
            let inner = inner.map_or_else(|| format!("{id} (not mapped)"), |id| id.to_string());
            expect(name.trim_end_matches(':'), &inner, &TASK_USER.to_string())?;
        }
    }
    Ok(())
}

/// What an id as the worker counts is inside: lines of first id inside, first id outside, count (user_namespaces(7)).
fn inner_id(map: &str, outer: u64) -> Option<u64> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().ok());
        let (inside, outside, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let offset = outer.checked_sub(outside).filter(|offset| *offset < count)?;
        inside.checked_add(offset)
    })
}

fn check_ulimits(limits: &str, asked: &HostConfig) -> Result<(), String> {
    let names = BTreeMap::from([
        ("nofile", "Max open files"),
        ("core", "Max core file size"),
        ("fsize", "Max file size"),
        ("nproc", "Max processes"),
    ]);
    for limit in &asked.ulimits {
        let Some(line) = names.get(limit.name.as_str()).and_then(|name| rest(limits, name)) else {
            return Err(format!("tells no limit of {}", limit.name));
        };
        let mut words = line.split_whitespace();
        for wanted in [limit.soft, limit.hard] {
            expect(&limit.name, words.next().unwrap_or("?"), &wanted.to_string())?;
        }
    }
    Ok(())
}

fn check_interfaces(interfaces: &str, asked: &HostConfig) -> Result<(), String> {
    if asked.network_mode != "none" {
        return Ok(());
    }
    let names = interfaces.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    match names.into_iter().find(|name| *name != "lo" && !FALLBACK_INTERFACES.contains(name)) {
        None => Ok(()),
        Some(name) => Err(format!("has the network interface {name}")),
    }
}

/// `None` where links of name spaces can't be read. The engine may have others than the worker, and its process above the
/// container is in them.
fn shared_namespaces(folder: &Path, proc: &Path, status: &str) -> Option<Vec<&'static str>> {
    let parent = proc.join(word(status, "PPid:")?);
    let mut shared = Vec::new();
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(name)).ok();
        let (theirs, ours) = (of(folder)?, of(&proc.join("self"))?);
        if theirs == ours || Some(theirs) == of(&parent) {
            shared.push(name);
        }
    }
    Some(shared)
}

impl Cgroup {
    /// The container's own, by the content of `/proc/PID/cgroup` (cgroups(7)). `None` where it is not mounted here.
    fn read(text: &str, id: &str, root: &Path) -> Option<Self> {
        let lines = text.lines().filter_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            // A runtime may put the process one level below, where nothing is set.
            let end = path.find(id)? + id.len();
            let end = path[end..].find('/').map_or(path.len(), |slash| end + slash);
            Some((controllers, path[..end].trim_start_matches('/')))
        });
        let folders: Vec<(&str, PathBuf)> =
            lines.map(|(names, path)| (names, root.join(names.trim_start_matches("name=")).join(path))).collect();
        let of = |name: &str| {
            folders.iter().find(|(names, _)| names.split(',').any(|one| one == name)).map(|(_, folder)| folder)
        };
        let read =
            |folder: &Path, name: &str| fs::read_to_string(folder.join(name)).ok().map(|text| text.trim().to_owned());
        if ["memory", "cpu", "pids"].iter().any(|name| of(name).is_some()) {
            let file = |controller: &str, name: &str| of(controller).and_then(|folder| read(folder, name));
            return Some(Self {
                memory: file("memory", "memory.limit_in_bytes"),
                swap: file("memory", "memory.memsw.limit_in_bytes"),
                cpu: file("cpu", "cpu.cfs_quota_us").zip(file("cpu", "cpu.cfs_period_us")),
                pids: file("pids", "pids.max"),
                is_legacy: true,
            })
            .filter(|_| of("memory").is_none_or(|folder| folder.is_dir()));
        }
        let folder = of("").filter(|folder| folder.is_dir())?;
        let cpu = read(folder, "cpu.max");
        Some(Self {
            memory: read(folder, "memory.max"),
            swap: read(folder, "memory.swap.max"),
            cpu: cpu.and_then(|text| text.split_once(' ').map(|(quota, period)| (quota.to_owned(), period.to_owned()))),
            pids: read(folder, "pids.max"),
            is_legacy: false,
        })
    }

    fn check(&self, asked: &HostConfig) -> Result<(), String> {
        bytes("memory limit", self.memory.as_deref(), asked.memory)?;
        // A kernel that does not count swap has no file; the engine warned of it when the container was made.
        if let Some(swap) = &self.swap {
            let wanted = if self.is_legacy { asked.memory_swap } else { asked.memory_swap - asked.memory };
            bytes("swap limit", Some(swap), wanted)?;
        }
        let share = self.cpu.as_ref().and_then(|(quota, period)| {
            quota.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_div(period.parse().ok()?)
        });
        if share != Some(asked.nano_cpus) {
            return Err(format!("has the CPU limit {:?} instead of {} nano-CPUs", self.cpu, asked.nano_cpus));
        }
        let pids = asked.pids_limit.unwrap_or(0).to_string();
        expect("pids limit", self.pids.as_deref().unwrap_or("none"), &pids)
    }
}

/// As asked for, or less by the kernel's rounding.
fn bytes(what: &str, got: Option<&str>, wanted: i64) -> Result<(), String> {
    let known = got.and_then(|text| text.parse::<i64>().ok());
    if known.is_some_and(|got| got <= wanted && wanted - got < MAX_PAGE_BYTES) {
        return Ok(());
    }
    expect(what, got.unwrap_or("none"), &wanted.to_string())
}
