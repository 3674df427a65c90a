//! All attempts, and what may happen to them. Each change is in the folder before it is here.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::attempt::{Attempt, Place, Stop, Wants};
use super::core::NodeRow;
use super::fail::Fail;
use super::folder::{Folder, FoundAttempt, Mark, Meta, Verdict};
use super::why;
use crate::grpc::Code;
use crate::node::id::{AttemptKey, Id};
use crate::node::record::Outcome;
use crate::node::resources::Resources;

/// Complete tasks that are kept: the newest.
pub const MAX_COMPLETE: usize = 1_000;
/// How long an ended task is kept, complete or not.
pub const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Attempts that are not over, at a time. A person's queue is shorter; each costs about a kilobyte of memory.
pub const MAX_WAITING: usize = 10_000;
/// Bytes of their assignments on disk.
pub const MAX_WAITING_BYTES: u64 = 4 << 30;
/// One assignment, and all of an answer: its limit of 32 MiB, less what else is in it.
pub const MAX_ASSIGNMENT_BYTES: u64 = 31 << 20;
/// Pause of an attempt that a node refused for now, and of an offer or a cancellation that is repeated.
pub const PAUSE: Duration = Duration::from_secs(1);
/// An attempt that has waited so long for room lets no other one pass that came later.
pub const MAX_PASSED: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Book {
    pub(super) folder: Folder,
    pub(super) attempts: BTreeMap<AttemptKey, Attempt>,
    /// Unix time of `now == 0`.
    started_ms: u64,
    version: u64,
    next_offer: u64,
}

impl Book {
    /// A book with what was found. `first_offer` is random, so that a node's word about an offer of an earlier start
    /// is not taken for one of this start.
    pub fn new(folder: Folder, found: Vec<FoundAttempt>, started_ms: u64, first_offer: u64) -> Self {
        let mut book = Self {
            folder,
            attempts: BTreeMap::new(),
            started_ms,
            // In microseconds: no earlier start has come so far, unless it made a million changes a second.
            version: started_ms.saturating_mul(1_000),
            next_offer: first_offer,
        };
        for attempt in found {
            let offer = book.make_offer_id();
            let mut attempt = Attempt::from_found(attempt, offer);
            attempt.version = book.version;
            book.attempts.insert(attempt.key.clone(), attempt);
        }
        let keys: Vec<AttemptKey> = book.attempts.keys().cloned().collect();
        for pair in keys.windows(2) {
            if let [earlier, later] = pair
                && earlier.task == later.task
            {
                book.supersede(earlier, later.attempt);
            }
        }
        book
    }

    /// Milliseconds since 1970.
    pub fn unix_ms(&self, now: Duration) -> u64 {
        let since = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.started_ms.saturating_add(since)
    }

    /// A new attempt, in the queue.
    ///
    /// # Errors
    /// The key is taken by this or a later attempt, the queue is full, or the disk refuses.
    pub fn submit(&mut self, key: &AttemptKey, assignment: &[u8], now: Duration) -> Result<(), Fail> {
        if let Some(latest) = self.latest(&key.task)
            && latest.key.attempt >= key.attempt
        {
            let message = format!("task {} exists already, with attempt {}", key.task, latest.key.attempt);
            return Err(Fail::new(Code::InvalidArgument, message));
        }
        if assignment.len() as u64 > MAX_ASSIGNMENT_BYTES {
            let message = format!("the assignment has {} bytes, at most {MAX_ASSIGNMENT_BYTES}", assignment.len());
            return Err(Fail::new(Code::ResourceExhausted, message));
        }
        let waiting = || self.attempts.values().filter(|attempt| !attempt.is_over());
        let bytes: u64 = waiting().map(|attempt| attempt.meta.assignment_bytes).sum();
        if waiting().count() >= MAX_WAITING || bytes.saturating_add(assignment.len() as u64) > MAX_WAITING_BYTES {
            let message = format!("the queue is full: {MAX_WAITING} tasks or {MAX_WAITING_BYTES} bytes wait");
            return Err(Fail::new(Code::ResourceExhausted, message));
        }
        let meta = Meta {
            submitted_ms: self.unix_ms(now),
            assignment_bytes: assignment.len() as u64,
            wants: Wants::of_bytes(assignment),
        };
        self.folder.create(key, assignment, &meta)?;
        let earlier = self.latest(&key.task).map(|attempt| attempt.key.clone());
        self.attempts.insert(key.clone(), Attempt::new(key.clone(), meta));
        self.touch(key);
        if let Some(earlier) = earlier {
            self.supersede(&earlier, key.attempt);
        }
        Ok(())
    }

    /// The latest attempt at a task.
    pub fn latest(&self, task: &Id) -> Option<&Attempt> {
        let first = AttemptKey { task: task.clone(), attempt: 0 };
        let last = AttemptKey { task: task.clone(), attempt: u32::MAX };
        self.attempts.range(first..=last).next_back().map(|(_, attempt)| attempt)
    }

    /// Asks for the end of the latest attempt at a task.
    ///
    /// # Errors
    /// There is no such task, it is over, or the disk refuses.
    pub fn cancel(&mut self, task: &Id, reason: &str, now: Duration) -> Result<(), String> {
        let attempt = self.latest(task).ok_or_else(|| format!("there is no task {task}"))?;
        let key = attempt.key.clone();
        if let Some(outcome) = attempt.outcome() {
            return Err(format!("task {task} is over already: {outcome}"));
        }
        if attempt.stop.is_some() {
            return Ok(());
        }
        let told = |error: io::Error| format!("the cancellation of {task} can't be written: {error}");
        if matches!(attempt.place, Place::Queued(_)) {
            return self.end(&key, Outcome::Cancelled, reason, now).map_err(told);
        }
        self.folder.put_mark(&key, Mark::Cancel, Some(reason.as_bytes())).map_err(told)?;
        self.change(&key, |attempt| attempt.stop = Some(Stop::new(reason.to_owned(), false)));
        Ok(())
    }

    /// Ends an attempt by this master's own word.
    ///
    /// # Errors
    /// The disk refuses, and the attempt goes on.
    pub fn end(&mut self, key: &AttemptKey, outcome: Outcome, reason: &str, now: Duration) -> io::Result<()> {
        let verdict = Verdict { outcome, reason: reason.to_owned(), decided_ms: self.unix_ms(now) };
        let json = serde_json::to_vec(&verdict)?;
        self.folder.put_mark(key, Mark::Verdict, Some(&json))?;
        self.change(key, |attempt| attempt.decide(verdict));
        Ok(())
    }

    /// Stops an attempt that a later one replaces. Not written: the later one's folder says it.
    fn supersede(&mut self, earlier: &AttemptKey, by: u32) {
        let reason = format!("attempt {by} replaces it");
        let decided_ms = self.started_ms;
        self.change(earlier, |attempt| match attempt.place {
            _ if attempt.is_over() => {}
            Place::Queued(_) => attempt.decide(Verdict { outcome: Outcome::Superseded, reason, decided_ms }),
            Place::Offered { .. } | Place::Placed(_) => attempt.stop = Some(Stop::new(reason, true)),
        });
    }

    /// A node has an attempt on disk.
    ///
    /// # Errors
    /// The disk refuses, and the attempt is where it was.
    pub fn place(&mut self, key: &AttemptKey, node: &Id) -> io::Result<()> {
        let Some(attempt) = self.attempts.get(key) else { return Ok(()) };
        match &attempt.place {
            Place::Placed(_) => return Ok(()),
            Place::Offered { node: known, .. } if known == node => {}
            Place::Offered { .. } | Place::Queued(_) => {
                self.folder.put_mark(key, Mark::Node, Some(node.as_str().as_bytes()))?;
            }
        }
        self.change(key, |attempt| attempt.place = Place::Placed(node.clone()));
        Ok(())
    }

    /// A node refused an offer: back to the queue for a while, or the end.
    ///
    /// # Errors
    /// The disk refuses; the node will say it again.
    pub fn refuse(&mut self, key: &AttemptKey, code: &str, reason: &str, now: Duration) -> io::Result<()> {
        let stop = self.attempts.get(key).and_then(|attempt| attempt.stop.clone());
        match (code, stop) {
            (_, Some(stop)) if !stop.is_superseded => self.end(key, Outcome::Cancelled, &stop.reason, now),
            (_, Some(stop)) => self.end(key, Outcome::Superseded, &stop.reason, now),
            ("capacity" | "draining" | "storage", None) => {
                self.folder.put_mark(key, Mark::Node, None)?;
                let until = now.saturating_add(PAUSE);
                let put_off = format!("the node put it off: {}", bounded(reason));
                self.change(key, |attempt| {
                    attempt.place = Place::Queued(until);
                    attempt.put_off = Some(put_off);
                });
                Ok(())
            }
            // A code of a newer node too: offering the same thing again and again would help nobody.
            (_, None) => self.end(key, Outcome::Rejected, &format!("{code}: {}", bounded(reason)), now),
        }
    }

    /// Picks what this node may be offered now, within its room, and notes that it is.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn offer(&mut self, ask: &Ask<'_>, now: Duration) -> io::Result<Vec<(AttemptKey, u64)>> {
        let mut room = ask.free;
        let mut bytes = ask.max_bytes;
        let mut picked = Vec::new();
        for key in self.order(ask.node, now) {
            if picked.len() >= ask.max_offers {
                break;
            }
            let Some(attempt) = self.attempts.get(&key) else { continue };
            let needs = attempt.meta.wants.needs;
            if !needs.fits(&room) || attempt.meta.assignment_bytes > bytes {
                if self.lets_none_pass(attempt, now) {
                    break;
                }
                continue;
            }
            room = room.less(&needs);
            bytes -= attempt.meta.assignment_bytes;
            picked.push(key);
        }
        picked.into_iter().map(|key| self.note_offer(&key, ask.node, now).map(|offer| (key, offer))).collect()
    }

    /// Whether it has waited so long that what came later has to wait with it.
    fn lets_none_pass(&self, attempt: &Attempt, now: Duration) -> bool {
        let waited = self.unix_ms(now).saturating_sub(attempt.meta.submitted_ms);
        Duration::from_millis(waited) > MAX_PASSED
    }

    /// The first in the queue that has no room itself and lets none pass.
    pub fn blocker<'a>(
        &self,
        nodes: impl Iterator<Item = (&'a Id, &'a NodeRow)> + Clone,
        now: Duration,
    ) -> Option<&Attempt> {
        let queued = self.attempts.values().filter(|attempt| attempt.is_queued());
        let blockers = queued.filter(|attempt| {
            self.lets_none_pass(attempt, now) && why::waits(&attempt.meta.wants.needs, nodes.clone()).is_some()
        });
        blockers.min_by_key(|attempt| rank(attempt))
    }

    fn note_offer(&mut self, key: &AttemptKey, node: &Id, now: Duration) -> io::Result<u64> {
        let known = self.attempts.get(key).map(|attempt| &attempt.place);
        let (offer, sent) = match known {
            Some(Place::Offered { offer, sent, .. }) => (*offer, sent.saturating_add(1)),
            _ => {
                self.folder.put_mark(key, Mark::Node, Some(node.as_str().as_bytes()))?;
                (self.make_offer_id(), 1)
            }
        };
        // At once the first time, since an answer may have been lost; then with a pause, against a node that never
        // says what it does with it.
        let pause = if sent > 1 { PAUSE } else { Duration::ZERO };
        let place = Place::Offered { node: node.clone(), offer, sent, next: now.saturating_add(pause) };
        self.change(key, |attempt| attempt.place = place);
        Ok(offer)
    }

    /// What may be offered to this node now: what it has not confirmed first, then by priority, then by age.
    fn order(&self, node: &Id, now: Duration) -> Vec<AttemptKey> {
        let may_go = |attempt: &&Attempt| match &attempt.place {
            Place::Queued(not_before) => *not_before <= now,
            Place::Offered { node: known, next, .. } => known == node && *next <= now,
            Place::Placed(_) => false,
        };
        let waiting = self.attempts.values().filter(|attempt| !attempt.is_over() && attempt.stop.is_none());
        let mut order: Vec<&Attempt> = waiting.filter(may_go).collect();
        order.sort_by_key(|attempt| {
            let is_new = matches!(attempt.place, Place::Queued(_));
            (is_new, rank(attempt), attempt.key.clone())
        });
        order.into_iter().map(|attempt| attempt.key.clone()).collect()
    }

    /// Ends what no room of this node will ever hold, so that its author does not wait for ever.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn end_impossible(&mut self, capacity: &[Resources], now: Duration) -> io::Result<()> {
        // A node that names nothing, for instance without its engine, says nothing about what is possible.
        let is_known =
            |capacity: &Resources| capacity.cpu_millis > 0 && capacity.memory_bytes > 0 && capacity.disk_bytes > 0;
        if capacity.is_empty() || !capacity.iter().all(is_known) {
            return Ok(());
        }
        let impossible: Vec<(AttemptKey, String)> = self
            .attempts
            .values()
            .filter(|attempt| attempt.is_queued())
            .filter_map(|attempt| {
                let mut needs = attempt.meta.wants.needs;
                needs.slots = 0;
                let reasons: Vec<String> =
                    capacity.iter().map(|room| why::impossible(&needs, room)).collect::<Option<_>>()?;
                Some((attempt.key.clone(), reasons.into_iter().next()?))
            })
            .collect();
        for (key, reason) in impossible {
            self.end(&key, Outcome::Rejected, &reason, now)?;
        }
        Ok(())
    }

    /// Removes ended tasks beyond the newest [`MAX_COMPLETE`] and those older than [`MAX_AGE`].
    ///
    /// # Errors
    /// The disk refuses; the next time tries again.
    pub fn clean(&mut self, now: Duration) -> io::Result<()> {
        let age_ms = u64::try_from(MAX_AGE.as_millis()).unwrap_or(u64::MAX);
        let oldest = self.unix_ms(now).saturating_sub(age_ms);
        let mut over: Vec<&Attempt> = self.attempts.values().filter(|attempt| attempt.is_over()).collect();
        over.sort_by_key(|attempt| std::cmp::Reverse(attempt.finished_ms));
        let complete = over.iter().filter(|attempt| attempt.is_complete()).skip(MAX_COMPLETE);
        let old = over.iter().filter(|attempt| attempt.finished_ms < oldest);
        let mut gone: Vec<AttemptKey> = complete.chain(old).map(|attempt| attempt.key.clone()).collect();
        gone.sort_unstable();
        gone.dedup();
        for key in gone {
            self.folder.remove(&key)?;
            self.attempts.remove(&key);
        }
        Ok(())
    }

    /// Changes an attempt and its version.
    pub(super) fn change(&mut self, key: &AttemptKey, change: impl FnOnce(&mut Attempt)) {
        if let Some(attempt) = self.attempts.get_mut(key) {
            change(attempt);
            self.touch(key);
        }
    }

    fn touch(&mut self, key: &AttemptKey) {
        self.version += 1;
        if let Some(attempt) = self.attempts.get_mut(key) {
            attempt.version = self.version;
        }
    }

    fn make_offer_id(&mut self) -> u64 {
        self.next_offer = self.next_offer.wrapping_add(1);
        self.next_offer
    }
}

/// Less is sooner: by priority, then by age.
pub(super) fn rank(attempt: &Attempt) -> (u8, u64) {
    (u8::MAX - attempt.meta.wants.priority, attempt.meta.submitted_ms)
}

/// What a node said, as much of it as is kept.
fn bounded(text: &str) -> &str {
    text.get(..text.floor_char_boundary(super::convert::MAX_TEXT_BYTES)).unwrap_or(text)
}

/// What a poll asks for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Who asks.
    pub node: &'a Id,
    /// Its room.
    pub free: Resources,
    /// Offers that it would take.
    pub max_offers: usize,
    /// Bytes of assignments that an answer holds.
    pub max_bytes: u64,
}
