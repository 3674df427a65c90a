//! What really happened, and the rules that must hold of it at each moment. A broken rule is a panic.

use std::collections::{BTreeMap, BTreeSet};

use hivemind_worker::node::id::AttemptKey;
use hivemind_worker::node::record::{Event, EventKind};

use super::store::Disk;

#[derive(Default)]
pub struct Ledger {
    /// Attempts that a master was told are taken.
    pub confirmed: BTreeSet<AttemptKey>,
    /// Attempts whose program has run, or runs.
    started: BTreeSet<AttemptKey>,
    /// What masters have durably, from all attempts, since ever.
    delivered: BTreeMap<AttemptKey, BTreeMap<u64, Event>>,
    /// What happened, and how often: a history in which nothing happens proves nothing.
    pub sights: BTreeMap<String, u64>,
}

impl Ledger {
    pub fn see(&mut self, what: impl Into<String>) {
        *self.sights.entry(what.into()).or_default() += 1;
    }

    /// I2: the program of an attempt is started once in its life, and not after its end was recorded.
    pub fn note_start(&mut self, key: &AttemptKey, disk: &Disk) {
        self.see("started");
        assert!(self.started.insert(key.clone()), "I2: {key} is started a second time");
        assert!(!disk.is_ended(key), "I2: {key} is started though its end is recorded");
    }

    /// I1 and I4: what arrives under one number is always the same, and there is one last word.
    pub fn note_delivery(&mut self, key: &AttemptKey, event: &Event) {
        let record = self.delivered.entry(key.clone()).or_default();
        let sight = match &event.kind {
            _ if record.contains_key(&event.number) => "delivered again".to_owned(),
            EventKind::Final(report) => report.outcome.to_string(),
            _ => "delivered".to_owned(),
        };
        let known = record.entry(event.number).or_insert_with(|| event.clone());
        assert_eq!(known, event, "I4: event {} of {key} has changed", event.number);
        let finals = record.values().filter(|event| matches!(event.kind, EventKind::Final(_)));
        assert!(finals.count() <= 1, "I1: {key} has two final reports");
        self.see(sight);
    }

    /// I1: what was confirmed is in the store or delivered to its end, at each moment.
    pub fn check_confirmed(&self, disk: &Disk) {
        for key in &self.confirmed {
            assert!(disk.duties.contains_key(key) || disk.over.contains_key(key), "I1: confirmed {key} is lost");
        }
    }

    /// I3: the store lets go only of what a master has whole.
    pub fn check_removal(&self, key: &AttemptKey, record: &[Event]) {
        let delivered = self.delivered.get(key);
        let is_whole = record.iter().all(|event| delivered.is_some_and(|known| known.contains_key(&event.number)));
        assert!(is_whole, "I3: {key} is removed from the store before the master has it");
    }

    pub fn is_delivered(&self, key: &AttemptKey) -> bool {
        let record = self.delivered.get(key).into_iter().flat_map(BTreeMap::values);
        record.into_iter().any(|event| matches!(event.kind, EventKind::Final(_)))
    }
}
