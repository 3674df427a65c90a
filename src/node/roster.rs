//! The attempts that a node holds, what is promised to them, and who starts next.

use std::collections::BTreeMap;
use std::time::Duration;

use super::account::add_visit;
use super::alerts::Watch;
use super::id::AttemptKey;
use super::order::{Desired, Look, Marks};
use super::queue::{Holding, Line, Next, Waiting};
use super::record::Phase;
use super::resources::Resources;
use super::snapshot::HistoryRow;
use super::spec::TaskSpec;

/// Attempts that wait for resources here. The master has more patience than the node has memory.
pub const MAX_QUEUED: usize = 64;

/// An attempt and all that the coordinator knows of it.
#[derive(Debug)]
pub struct Attempt {
    /// The task.
    pub spec: TaskSpec,
    /// Order of arrival.
    pub arrival: u64,
    /// Where it stands.
    pub phase: Phase,
    /// Since when, milliseconds since 1970.
    pub phase_since_ms: u64,
    /// Since when, on the clock that counts suspend; of an attempt that is taken back, since then.
    pub phase_since: Duration,
    /// What it does, or why it waits.
    pub detail: String,
    /// What was last asked of its thread.
    pub desired: Desired,
    /// A thread works on it.
    pub has_thread: bool,
    /// Facts that outlive the process.
    pub marks: Marks,
    /// Last look.
    pub look: Look,
    /// Its memory beside its threshold.
    pub memory: Watch,
    /// Its container does not end though it was killed, in words.
    pub undying: Option<String>,
    /// What stays of it, once there is a final report.
    pub end: Option<HistoryRow>,
    /// The master has all of it.
    pub is_delivered: bool,
}

impl Attempt {
    /// Goes into a phase: the time in the one before is kept.
    pub fn enter(&mut self, phase: Phase, now: Duration, now_ms: u64) {
        add_visit(&mut self.marks.phases, self.phase, now.saturating_sub(self.phase_since));
        self.phase = phase;
        self.phase_since = now;
        self.phase_since_ms = now_ms;
    }

    /// Whether it still has a final report to come.
    pub fn is_open(&self) -> bool {
        self.end.is_none()
    }

    /// What it holds, and until when at the latest.
    fn holding(&self, now: Duration) -> Holding {
        let (timeout, grace) = (self.spec.timeout, self.spec.grace);
        let until = match self.phase {
            _ if self.undying.is_some() => None,
            Phase::Running => Some(self.phase_since + timeout + grace),
            Phase::Stopping => Some(now + grace),
            // Its result is taken, which takes a while and no program.
            phase if phase > Phase::Stopping => Some(now),
            // Its time has not begun, or stands still.
            _ => Some(now + timeout + grace),
        };
        Holding { needs: self.spec.needs(), until }
    }

    /// Whether the ledger reserves its limits: from its start until its container is gone.
    pub fn holds_resources(&self) -> bool {
        self.has_thread || self.phase.holds_resources()
    }
}

/// All attempts of the node, the ledger over them, and the queue.
#[derive(Debug, Default)]
pub struct Roster {
    attempts: BTreeMap<AttemptKey, Attempt>,
    arrivals: u64,
}

impl Roster {
    /// Adds an attempt in `phase`; an attempt of the same key must not be there.
    pub fn add(&mut self, spec: TaskSpec, phase: Phase, now: Duration, now_ms: u64) -> &mut Attempt {
        self.arrivals += 1;
        let attempt = Attempt {
            arrival: self.arrivals,
            phase,
            phase_since_ms: now_ms,
            phase_since: now,
            memory: Watch::default(),
            undying: None,
            detail: String::new(),
            desired: Desired::default(),
            has_thread: false,
            marks: Marks::default(),
            look: Look::default(),
            end: None,
            is_delivered: false,
            spec,
        };
        self.attempts.entry(attempt.spec.key.clone()).or_insert(attempt)
    }

    /// The attempt of this key.
    pub fn find(&self, key: &AttemptKey) -> Option<&Attempt> {
        self.attempts.get(key)
    }

    /// The attempt of this key, to change it.
    pub fn find_mut(&mut self, key: &AttemptKey) -> Option<&mut Attempt> {
        self.attempts.get_mut(key)
    }

    /// Takes the attempt out.
    pub fn remove(&mut self, key: &AttemptKey) -> Option<Attempt> {
        self.attempts.remove(key)
    }

    /// All attempts, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.values()
    }

    /// All attempts, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Attempt> {
        self.attempts.values_mut()
    }

    /// Highest attempt number that is held of `key`'s task.
    pub fn newest_of(&self, key: &AttemptKey) -> Option<u32> {
        self.attempts.keys().filter(|held| held.task == key.task).map(|held| held.attempt).max()
    }

    /// What is promised to attempts that run or are about to.
    pub fn promised(&self) -> Resources {
        self.sum(Attempt::holds_resources)
    }

    /// What running and waiting attempts want together.
    pub fn wanted(&self) -> Resources {
        self.sum(|attempt| attempt.holds_resources() || attempt.phase <= Phase::Queued)
    }

    fn sum(&self, counts: impl Fn(&Attempt) -> bool) -> Resources {
        let counted = self.attempts.values().filter(|attempt| counts(attempt));
        counted.fold(Resources::default(), |sum, attempt| sum.plus(&attempt.spec.needs()))
    }

    /// How many wait.
    pub fn queued(&self) -> usize {
        self.attempts.values().filter(|attempt| attempt.phase <= Phase::Queued && attempt.is_open()).count()
    }

    /// Who starts next within `lent`, or why the first in line can't yet.
    pub fn next_to_start(&self, lent: &Resources, line: &mut Line, now: Duration) -> Next<'_> {
        let waiting = self.attempts.values().filter(|attempt| attempt.phase == Phase::Queued && attempt.is_open());
        let waiting = waiting.map(|attempt| Waiting {
            key: &attempt.spec.key,
            owner: &attempt.spec.owner,
            priority: attempt.spec.priority,
            since: attempt.phase_since,
            arrival: attempt.arrival,
            needs: attempt.spec.needs(),
            timeout: attempt.spec.timeout,
        });
        let holding = self.attempts.values().filter(|attempt| attempt.holds_resources());
        let holding: Vec<Holding> = holding.map(|attempt| attempt.holding(now)).collect();
        line.next(waiting, &holding, lent, now)
    }
}
