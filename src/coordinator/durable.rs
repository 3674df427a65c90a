//! What is decided becomes durable first: records go out under a ticket, and what depends on them waits behind it.

use log::{info, warn};

use super::{Coordinator, Effect, Record};
use crate::node::id::AttemptKey;
use crate::node::order::{Desired, Marks};
use crate::node::record::{EventKind, Phase};

/// A decision that waits for its commit.
#[derive(Debug)]
pub(super) enum Gated {
    /// An answer to a cancellation.
    Answer {
        key: AttemptKey,
        answer: Box<Effect>,
    },
    /// The attempt's thread may start.
    Start(AttemptKey),
    /// The reason for which the attempt's thread ends it is kept: it may send the first signal.
    Ending(AttemptKey),
    /// The attempt's final report is kept: what it has at the engine may go.
    Recorded(AttemptKey),
    Taken {
        poll: u64,
        offer_id: u64,
        key: AttemptKey,
    },
}

impl Gated {
    fn key(&self) -> &AttemptKey {
        match self {
            Self::Answer { key, .. }
            | Self::Start(key)
            | Self::Ending(key)
            | Self::Recorded(key)
            | Self::Taken { key, .. } => key,
        }
    }

    /// Whether it waits for the final report of `key` to be kept.
    pub(super) fn is_record_of(&self, key: &AttemptKey) -> bool {
        matches!(self, Self::Recorded(waiting) if waiting == key)
    }
}

/// What a failed commit leaves to be tried again.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) records: Vec<Record>,
    pub(super) gated: Vec<Gated>,
}

impl Coordinator {
    pub(super) fn note_event(&mut self, key: &AttemptKey, kind: EventKind) {
        self.records.push(Record::Event { key: key.clone(), time_ms: self.now_ms, kind });
    }

    /// Hands what was recorded to the store; the ticket under which all that was ever recorded will be durable.
    pub(super) fn commit(&mut self) -> u64 {
        if !self.records.is_empty() {
            self.last_ticket += 1;
            let records = std::mem::take(&mut self.records);
            self.undecided.insert(self.last_ticket, records.iter().filter_map(Record::without_take).collect());
            self.effects.push(Effect::Commit { ticket: self.last_ticket, records });
        }
        self.last_ticket
    }

    /// Holds `what` until `ticket` is durable and all that was gated before has gone.
    pub(super) fn gate(&mut self, ticket: u64, what: Gated) {
        self.gated.push_back((ticket, what));
        self.release(0);
    }

    /// All decisions that wait, for a commit or for another try at one.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Gated> {
        let failed = self.retries.iter().flat_map(|retry| &retry.gated);
        self.gated.iter().map(|(_, what)| what).chain(failed)
    }

    /// The master stops asking when it has this, so the order or the end that it tells of must outlive the process. Until
    /// that is kept, the master asks again; one answer is enough then.
    pub(super) fn answer_when_kept(&mut self, key: &AttemptKey, answer: Effect) {
        if self.waiting().any(|what| matches!(what, Gated::Answer { key: waiting, .. } if waiting == key)) {
            return;
        }
        self.commit();
        let what = Gated::Answer { key: key.clone(), answer: Box::new(answer) };
        let is_in = |records: &[Record]| records.iter().any(|record| record.ends(key));
        let ticket = self.undecided.iter().rev().find(|(_, records)| is_in(records)).map(|(ticket, _)| *ticket);
        match self.retries.iter_mut().rev().find(|retry| is_in(&retry.records)) {
            Some(retry) if ticket.is_none() => retry.gated.push(what),
            _ => self.gate(ticket.unwrap_or(0), what),
        }
    }

    pub(super) fn release(&mut self, ticket: u64) {
        self.durable = self.durable.max(ticket);
        self.undecided.retain(|undecided, _| *undecided > self.durable);
        while let Some((_, what)) = self.gated.pop_front_if(|(ticket, _)| *ticket <= self.durable) {
            match what {
                Gated::Answer { answer, .. } => self.effects.push(*answer),
                Gated::Start(key) => self.begin(&key),
                Gated::Ending(key) => self.change_desired(&key, |desired| desired.is_ending_kept = true),
                Gated::Recorded(key) => self.change_desired(&key, |desired| desired.may_clean = true),
                Gated::Taken { poll, offer_id, key } => self.confirm(poll, offer_id, &key),
            }
        }
    }

    fn begin(&mut self, key: &AttemptKey) {
        let Some(attempt) = self.roster.find_mut(key) else {
            return;
        };
        if self.shutdown.is_some() {
            // Nothing of it has begun: it is the next start's.
            attempt.has_thread = false;
            return;
        }
        let start = Effect::Start { spec: Box::new(attempt.spec.clone()), marks: Marks::default(), is_adoption: false };
        self.effects.push(start);
        if attempt.desired != Desired::default() {
            self.effects.push(Effect::SetDesired { key: key.clone(), desired: attempt.desired.clone() });
        }
    }

    pub(super) fn confirm(&mut self, poll: u64, offer_id: u64, key: &AttemptKey) {
        let (now, now_ms) = (self.now, self.now_ms);
        if let Some(attempt) = self.roster.find_mut(key).filter(|attempt| attempt.phase == Phase::Received) {
            attempt.enter(Phase::Queued, now, now_ms);
            info!("took attempt {key}");
        }
        if let Some(state) = self.polls.get_mut(&poll) {
            state.undecided -= 1;
            state.taken.push(offer_id);
        }
        self.settle(poll);
    }

    /// Nothing of a failed ticket may be acted on. A new attempt is refused; what concerns one that was taken before is
    /// tried again with each tick, so that no final report is lost.
    pub(super) fn fail_ticket(&mut self, failed: u64, reason: &str) {
        warn!("the store could not write: {reason}");
        self.store_trouble = Some(reason.to_owned());
        let mut again = Retry { records: self.undecided.remove(&failed).unwrap_or_default(), gated: Vec::new() };
        let mut lost = Vec::new();
        for (ticket, what) in std::mem::take(&mut self.gated) {
            match what {
                what if ticket != failed => self.gated.push_back((ticket, what)),
                Gated::Taken { poll, offer_id, key } => {
                    lost.push(key);
                    self.refuse(poll, offer_id, "storage", format!("the node can't write to its disk: {reason}"));
                    self.settle(poll);
                }
                what => again.gated.push(what),
            }
        }
        self.retries.push(again);
        for key in lost {
            self.forget(&key);
        }
        self.release(0);
    }

    /// Of an attempt that could not be taken nothing is written or done any more, such as its cancellation: it may be taken
    /// anew.
    fn forget(&mut self, key: &AttemptKey) {
        self.roster.remove(key);
        self.gated.retain(|(_, what)| what.key() != key);
        for records in self.undecided.values_mut() {
            records.retain(|record| record.key() != key);
        }
        for retry in &mut self.retries {
            retry.records.retain(|record| record.key() != key);
            retry.gated.retain(|what| what.key() != key);
        }
    }

    pub(super) fn retry_commits(&mut self) {
        for mut retry in std::mem::take(&mut self.retries) {
            for record in &mut retry.records {
                // What became durable since may be newer than what failed.
                if let Record::Marks { key, marks } = record
                    && let Some(attempt) = self.roster.find(key)
                {
                    marks.clone_from(&attempt.marks);
                }
            }
            self.records.extend(retry.records);
            let ticket = self.commit();
            for what in retry.gated {
                self.gate(ticket, what);
            }
        }
    }
}
