//! The engine as a whole: whether it can be used, what its event stream says of our containers, and what is left over.
//!
//! One thread, `engine-events`. It is released by [`EngineWatch::release`].

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{info, warn};

use super::collector::log_one;
use super::naming::{Identity, attempt_of};
use super::sweep;
use super::volume::Volumes;
use crate::docker::{Docker, EngineFacts, Error, EventFilter, Stop};
use crate::node::id::AttemptKey;
use crate::node::leftover::Collecting;
use crate::node::snapshot::EngineView;
use crate::store::Packages;

/// Longest pause between two tries at an engine that does not answer (fault matrix row 24).
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Tries at what is left over and can't go yet, ...
const SWEEPS: u32 = 25;
/// ... and the pause between them.
const SWEEP_PAUSE: Duration = Duration::from_millis(200);
/// First pause.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// One HTTP exchange and one line of an event at a time.
const STACK_BYTES: usize = 512 << 10;

/// What the watch tells.
pub enum EngineNews {
    /// Usable or not.
    View(EngineView),
    /// Something happened to an attempt's container.
    Container(AttemptKey),
}

/// What the watch needs to know of the node.
pub struct Hooks {
    /// Tells news; may wait.
    pub tell: Box<dyn Fn(EngineNews) + Send>,
    /// Whether the node still has use for what an attempt has at the engine.
    pub is_held: Box<dyn Fn(&AttemptKey) -> bool + Send>,
    /// Work folders that are bounded by their size.
    pub volumes: Arc<Volumes>,
    /// Sets of packages, which stay.
    pub packages: Arc<Packages>,
}

/// The running watch.
pub struct EngineWatch {
    stop: Stop,
    ended: Sender<()>,
    thread: JoinHandle<()>,
}

impl EngineWatch {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(docker: &Docker, identity: Identity, hooks: Hooks) -> io::Result<Self> {
        let stop = Stop::new();
        let (ended, end) = bounded(1);
        let watcher = Watcher { docker: docker.with_stop(&stop), identity, hooks, end };
        let thread = thread::Builder::new()
            .name("engine-events".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || watcher.run())?;
        Ok(Self { stop, ended, thread })
    }

    /// Ends the thread and waits for it.
    pub fn release(self) {
        self.stop.stop();
        drop(self.ended);
        if self.thread.join().is_err() {
            warn!("the engine watch ended by a panic");
        }
    }
}

struct Watcher {
    docker: Docker,
    identity: Identity,
    hooks: Hooks,
    end: Receiver<()>,
}

impl Watcher {
    fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.watch() {
                Err(Error::Stopped) => return,
                Err(error) => self.tell_unusable(&error.to_string()),
                Ok(true) => pause = FIRST_PAUSE,
                Ok(false) => {}
            }
            match self.end.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(MAX_PAUSE),
                _ => return,
            }
        }
    }

    fn tell_unusable(&self, detail: &str) {
        (self.hooks.tell)(EngineNews::View(EngineView { detail: detail.to_owned(), ..EngineView::default() }));
    }

    /// One life of the engine, as long as its event stream holds; whether it was usable.
    fn watch(&self) -> Result<bool, Error> {
        self.docker.ping()?;
        let facts = self.docker.facts()?;
        if let Err(reason) = can_hold(&facts) {
            self.tell_unusable(&reason);
            return Ok(false);
        }
        let filter = EventFilter { labels: vec![self.identity.filter()], since_ns: None };
        let events = self.docker.events(&filter)?;
        // Whatever happened before the stream was open is found by looking.
        self.sweep()?;
        (self.hooks.tell)(EngineNews::View(view(&facts)));
        for event in events {
            let event = event?;
            if let Some(key) = attempt_of(&event.labels) {
                (self.hooks.tell)(EngineNews::Container(key));
            }
        }
        self.tell_unusable("the engine closed its event stream");
        Ok(true)
    }

    /// Wakes every attempt that has a container, and removes what belongs to none.
    fn sweep(&self) -> Result<(), Error> {
        let found = sweep::look(&self.docker, &self.identity, &self.hooks.is_held, &self.hooks.packages)?;
        for key in found.running {
            (self.hooks.tell)(EngineNews::Container(key));
        }
        // A worker that was killed over a removal has left it to the engine, and what hangs on it is in use until then.
        let mut orphans = found.orphans;
        for sweep in 1..=SWEEPS {
            orphans.retain(|orphan| self.is_left(orphan, sweep == SWEEPS));
            if orphans.is_empty() || self.end.recv_timeout(SWEEP_PAUSE) != Err(RecvTimeoutError::Timeout) {
                break;
            }
        }
        self.hooks.volumes.reap(&self.hooks.is_held, Collecting::Removes).iter().for_each(log_one);
        Ok(())
    }

    /// Removes it; whether it is to be tried again.
    fn is_left(&self, orphan: &sweep::Orphan, is_last: bool) -> bool {
        let (kind, name) = (orphan.kind.as_str(), &orphan.name);
        match orphan.remove(&self.docker) {
            Ok(()) => info!("removed the left-over {kind} {name}: {}", orphan.reason),
            Err(error) if error.is_conflict() && !is_last => return true,
            Err(error) => warn!("can't remove the left-over {kind} {name}: {error}"),
        }
        false
    }
}

/// What was seen with Podman 4.3.1, with either version of cgroups; tests/sandbox_podman.rs looks whether it is still so.
const PODMAN_LACKS: &str = "through its Docker-compatible API it ignores the wish for a cgroup namespace and tells \
    nothing of it (HostConfig.CgroupnsMode), adds writable file systems without a size limit to a read-only container \
    (/run, /var/tmp), and can't change the limits of a running one";

/// Whether the engine can hold what the sandbox asks for.
///
/// # Errors
/// What it lacks and how to mend it.
pub fn can_hold(facts: &EngineFacts) -> Result<(), String> {
    let lacks = |what: &str, mend: &str| Err(format!("engine {} can't limit {what}: {mend}", facts.version));
    if facts.os != "linux" {
        return Err(format!("the engine runs {} containers; switch it to Linux containers", facts.os));
    }
    if facts.podman {
        return Err(format!(
            "the engine is Podman {}: {PODMAN_LACKS}; use Docker Engine 20.10 or later",
            facts.version
        ));
    }
    if facts.rootless && facts.cgroup_driver == "none" {
        return lacks("anything", "without root it needs cgroup v2, delegated to its user by systemd");
    }
    if !facts.memory_limit {
        return lacks("memory", "enable the memory cgroup (on a Raspberry Pi: cgroup_enable=memory in cmdline.txt)");
    }
    if !facts.cpu_quota {
        return lacks("CPU time", "the kernel needs CONFIG_CFS_BANDWIDTH");
    }
    if !facts.pids_limit {
        return lacks("processes", "the kernel needs the pids cgroup");
    }
    let seccomp = facts.security_options.iter().find(|option| option.split(',').any(|part| part == "name=seccomp"));
    if seccomp.is_none_or(|option| option.contains("profile=unconfined")) {
        return lacks("system calls", "the kernel needs CONFIG_SECCOMP_FILTER, the engine its default seccomp profile");
    }
    Ok(())
}

fn view(facts: &EngineFacts) -> EngineView {
    let rootless = if facts.rootless { ", rootless" } else { "" };
    EngineView {
        is_usable: true,
        detail: format!(
            "engine {} (API {}, cgroup v{}, {}{rootless})",
            facts.version, facts.api, facts.cgroup_version, facts.storage_driver
        ),
        version: facts.version.clone(),
        api_version: facts.api.clone(),
        cgroup_version: u32::from(facts.cgroup_version),
        is_rootless: facts.rootless,
        runtimes: facts.runtimes.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_an_engine_lacks() {
        let good = EngineFacts {
            version: "20.10.24".to_owned(),
            os: "linux".to_owned(),
            memory_limit: true,
            cpu_quota: true,
            pids_limit: true,
            security_options: vec!["name=apparmor".to_owned(), "name=seccomp,profile=default".to_owned()],
            ..EngineFacts::default()
        };
        assert_eq!(can_hold(&good), Ok(()));
        // As Engine 20.10.24 without root says on cgroup v1.
        let bare = EngineFacts { rootless: true, cgroup_driver: "none".to_owned(), ..good.clone() };
        assert!(can_hold(&EngineFacts { memory_limit: false, ..bare }).unwrap_err().contains("cgroup v2"));
        for options in [vec![], vec!["name=apparmor".to_owned()], vec!["name=seccomp,profile=unconfined".to_owned()]] {
            let open = EngineFacts { security_options: options, ..good.clone() };
            assert!(can_hold(&open).unwrap_err().contains("system calls"));
        }
        for (what, lacking) in [
            ("CPU time", EngineFacts { cpu_quota: false, ..good.clone() }),
            ("processes", EngineFacts { pids_limit: false, ..good.clone() }),
        ] {
            assert!(can_hold(&lacking).unwrap_err().contains(what));
        }
        let without_memory = EngineFacts { memory_limit: false, ..good.clone() };
        assert!(can_hold(&without_memory).unwrap_err().contains("cgroup_enable=memory"));
        let podman = EngineFacts { podman: true, version: "4.3.1".to_owned(), ..good.clone() };
        let reason = can_hold(&podman).unwrap_err();
        assert!(reason.starts_with("the engine is Podman 4.3.1: ") && reason.contains("CgroupnsMode"), "{reason}");
        assert!(can_hold(&EngineFacts { os: "windows".to_owned(), ..good }).unwrap_err().contains("Linux containers"));
    }
}
