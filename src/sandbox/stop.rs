//! How a running container is ended or frozen. A signal that the engine did not hear is sent again until it did.

use std::time::Duration;

use super::disk::{self, Finding};
use super::run::{Run, Sight};
use super::task::Task;
use crate::docker::Error;
use crate::node::order::TaskNews;
use crate::node::record::{Outcome, Phase};

/// Between two tries at a signal.
const RETRY: Duration = Duration::from_secs(1);
/// Longest wait for the disk to keep why it is ended. A worker that died after the signal and without the reason would
/// take the end for the task's own; a disk that hangs must not keep a task running.
const KEPT_WITHIN: Duration = Duration::from_secs(1);
/// A container that is still there so long after SIGKILL gets another: the first was lost with the engine.
const KILL_AGAIN: Duration = Duration::from_secs(5);

/// A container that still runs so long after the first SIGKILL, with an engine that answers, does not end by it: the node
/// has trouble, and says so. A healthy kernel needs far less, also for much memory.
const UNDYING_AFTER: Duration = Duration::from_secs(20);
/// So long after the first SIGKILL the master gets its final report: NodeFault, since nobody knows how it would have ended.
/// The container is killed on, and what it holds stays promised until it is gone.
const GIVE_UP_AFTER: Duration = Duration::from_secs(600);

/// A container that is being ended.
#[derive(Debug)]
pub struct Stopping {
    /// Before the first signal: what the task gets behind it.
    grace: Option<Duration>,
    kill_at: Duration,
    next_signal: Duration,
    has_told: bool,
    /// When SIGKILL was sent first, or when the engine was back after that.
    killed_at: Option<Duration>,
    is_undying: bool,
}

impl Stopping {
    fn new(grace: Option<Duration>, next_signal: Duration) -> Self {
        Self { grace, kill_at: next_signal, next_signal, has_told: false, killed_at: None, is_undying: false }
    }

    /// When the next signal is due.
    pub fn next_signal(&self) -> Duration {
        self.next_signal
    }
}

impl Task {
    /// Begins to end it; the first reason stands, and outlives a restart of the worker.
    pub fn begin_stop(&mut self, run: &mut Run, outcome: Outcome, reason: &str, grace: Duration) {
        if run.stopping.is_some() {
            return;
        }
        let ending = (outcome, reason.to_owned());
        self.mark(|marks| marks.ending = Some(ending.clone()));
        self.tell(TaskNews::Phase(Phase::Stopping, reason.to_owned()));
        let now = (self.context.clock)();
        run.circumstances.stopping = Some(ending);
        run.stopping = Some(Stopping::new(Some(grace), now + KEPT_WITHIN));
    }

    /// After a restart of the worker: what had begun goes on, and its grace is over.
    pub fn resume_stop(&self, run: &mut Run) {
        if let Some(ending) = &self.marks.ending {
            let now = (self.context.clock)();
            run.circumstances.stopping = Some(ending.clone());
            run.stopping = Some(Stopping::new(None, now));
        }
    }

    /// Sends the signal that is due.
    pub fn press(&self, run: &mut Run, now: Duration) {
        let Some(stopping) = &mut run.stopping else { return };
        if now < stopping.next_signal && !(stopping.grace.is_some() && self.desired.latest().is_ending_kept) {
            return;
        }
        if let Some(grace) = stopping.grace.take() {
            stopping.kill_at = now + grace;
        }
        let is_kill = now >= stopping.kill_at;
        let signal = if is_kill { "SIGKILL" } else { "SIGTERM" };
        if is_kill {
            stopping.killed_at.get_or_insert(now);
        }
        match self.context.quick_docker.kill_container(&self.name, signal) {
            Err(error) if !(error.is_not_found() || error.is_conflict()) => {
                if !std::mem::replace(&mut stopping.has_told, true) {
                    self.tell(TaskNews::Alert(format!("{signal} failed, will be tried again: {error}")));
                }
                stopping.next_signal = now + RETRY;
            }
            result => {
                if result.is_ok() && !run.signals.iter().any(|sent| sent == signal) {
                    run.signals.push(signal.to_owned());
                }
                stopping.next_signal = if is_kill { now + KILL_AGAIN } else { stopping.kill_at };
                self.thaw(run);
            }
        }
    }

    /// Tells the owner of a container that does not end though it was killed, and gives it up after a while. An engine that
    /// is away is another trouble, which is told elsewhere: the time counts from when it answers.
    pub fn look_for_undying(&mut self, run: &mut Run, now: Duration) -> Option<Sight> {
        let stopping = run.stopping.as_mut()?;
        let passed = now.saturating_sub(stopping.killed_at?);
        if passed < UNDYING_AFTER || (stopping.is_undying && passed < GIVE_UP_AFTER) {
            return None;
        }
        if self.context.quick_docker.ping().is_err() {
            stopping.killed_at = Some(now);
            return None;
        }
        let what = format!("its container {} does not end, {} s after SIGKILL", self.name, passed.as_secs());
        if !std::mem::replace(&mut stopping.is_undying, true) {
            self.tell(TaskNews::Undying(Some(what)));
            return None;
        }
        self.is_undying = true;
        let reason = run.circumstances.stopping.as_ref().map_or("", |(_, reason)| reason);
        Some(Sight::Undying(format!("{reason}; {what}")))
    }

    /// The container has ended.
    pub fn end_undying(&self, run: &Run) {
        if run.stopping.as_ref().is_some_and(|stopping| stopping.is_undying) {
            self.tell(TaskNews::Undying(None));
        }
    }

    /// A frozen process sees no signal.
    fn thaw(&self, run: &mut Run) {
        if run.paused_at.is_none() {
            return;
        }
        match self.context.quick_docker.unpause_container(&self.name) {
            // Tried again with the next signal.
            Err(error) if !is_settled(&error) => {}
            _ => run.paused_at = None,
        }
    }

    /// Freezes it or lets it go on, as it is wanted.
    pub fn freeze(&mut self, run: &mut Run, is_wanted: bool, now: Duration) {
        let docker = &self.context.quick_docker;
        match (run.paused_at, is_wanted) {
            (None, true) if docker.pause_container(&self.name).is_ok() => {
                run.paused_at = Some(now);
                self.tell(TaskNews::Phase(Phase::Paused, "paused by the node".to_owned()));
            }
            (Some(since), false) if docker.unpause_container(&self.name).is_ok() => {
                run.paused_at = None;
                let frozen = u64::try_from(now.saturating_sub(since).as_millis()).unwrap_or(u64::MAX);
                self.mark(|marks| marks.paused_ms = marks.paused_ms.saturating_add(frozen));
                self.tell(TaskNews::Phase(Phase::Running, String::new()));
            }
            _ => {}
        }
    }

    /// A task that fills the disk is frozen before anything else, and gets no grace in which it could go on.
    pub fn look_at_disk(&mut self, run: &mut Run, now: Duration) {
        if now < run.next_disk_look {
            return;
        }
        let docker = self.context.quick_docker.clone();
        if run.disk.is_none() {
            run.disk = self.disk_watch();
        }
        let Some(watch) = &mut run.disk else {
            run.next_disk_look = now + disk::ASK_EVERY;
            return;
        };
        run.next_disk_look = now + watch.interval();
        let (outcome, reason) = match watch.look(&docker) {
            Finding::Fine => return,
            Finding::OverLimit(reason) => (Outcome::DiskLimit, reason),
            Finding::Reserve(reason) => (Outcome::NodeFault, reason),
        };
        if run.paused_at.is_none() && docker.pause_container(&self.name).is_ok() {
            run.paused_at = Some(now);
        }
        self.begin_stop(run, outcome, &reason, Duration::ZERO);
    }
}

/// The container does not run, or is not frozen: there is nothing to thaw.
fn is_settled(error: &Error) -> bool {
    error.is_not_found() || error.is_conflict()
}
