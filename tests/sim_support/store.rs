//! The store: commits become durable in the order of their tickets, some time later, several at once or none of them.
//!
//! ```text
//! Good ------> Stalled   new tasks are refused, the rest waits                     heals by itself
//!   |--------> Failing   every commit fails, and is not on disk                    heals by itself
//!   +--------> Broken    every commit fails; of the first ones nobody knows        ends with the process
//! ```

use std::collections::{BTreeMap, VecDeque};

use hivemind_worker::coordinator::{Event, Held, Record};
use hivemind_worker::node::id::AttemptKey;
use hivemind_worker::node::order::Marks;
use hivemind_worker::node::record::{self, EventKind, FinalReport, Phase};
use hivemind_worker::node::spec::TaskSpec;

use super::dice::Dice;
use super::ledger::Ledger;

/// Tickets of one transaction at the most.
const MAX_BATCH: u64 = 8;

pub struct Duty {
    arrival: u64,
    pub spec: TaskSpec,
    pub phase: Phase,
    pub marks: Marks,
    events: Vec<record::Event>,
    acked: u64,
    report: Option<FinalReport>,
}

/// What a power cut leaves.
#[derive(Default)]
pub struct Disk {
    arrivals: u64,
    pub duties: BTreeMap<AttemptKey, Duty>,
    /// Ended and delivered: place in the history, and digest.
    pub over: BTreeMap<AttemptKey, (usize, [u8; 32])>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Good,
    Stalled,
    Failing,
    Broken,
}

type Batch = Vec<(u64, Vec<Record>)>;

pub struct Store {
    pub disk: Disk,
    pub health: Health,
    /// What it has to say to the coordinator.
    pub told: VecDeque<Event>,
    inbox: VecDeque<(u64, Vec<Record>)>,
    in_flight: Batch,
    /// The transaction at which the disk broke: the next start may show it.
    limbo: Batch,
    acks: BTreeMap<AttemptKey, u64>,
}

impl Disk {
    pub fn is_ended(&self, key: &AttemptKey) -> bool {
        self.over.contains_key(key) || self.duties.get(key).is_some_and(|duty| duty.report.is_some())
    }

    pub fn digest(&self, key: &AttemptKey) -> Option<[u8; 32]> {
        self.duties.get(key).map(|duty| duty.spec.digest).or_else(|| self.over.get(key).map(|(_, digest)| *digest))
    }

    fn write(&mut self, record: Record) {
        match record {
            Record::Take { spec, .. } => self.take(*spec),
            Record::Event { key, time_ms, kind } => {
                let Some(duty) = self.duties.get_mut(&key) else { return };
                match &kind {
                    EventKind::Phase(phase, _) if duty.report.is_none() => duty.phase = *phase,
                    EventKind::Final(report) => {
                        assert!(duty.report.is_none(), "I1: a second final report of {key} is recorded");
                        duty.phase = Phase::Reporting;
                        duty.report = Some((**report).clone());
                    }
                    _ => {}
                }
                let number = 1 + u64::try_from(duty.events.len()).unwrap();
                duty.events.push(record::Event { number, time_ms, kind });
            }
            Record::Marks { key, marks } => {
                if let Some(duty) = self.duties.get_mut(&key) {
                    duty.marks = marks;
                }
            }
        }
    }

    fn take(&mut self, spec: TaskSpec) {
        let key = spec.key.clone();
        assert!(!self.over.contains_key(&key), "I1: {key} is taken again though it was over and delivered");
        self.arrivals += 1;
        self.duties.entry(key).or_insert(Duty {
            arrival: self.arrivals,
            spec,
            phase: Phase::Received,
            marks: Marks::default(),
            events: Vec::new(),
            acked: 0,
            report: None,
        });
    }

    /// Notes how far the master is; the attempts that are over by that.
    fn acknowledge(&mut self, acks: &BTreeMap<AttemptKey, u64>, ledger: &Ledger) -> Vec<AttemptKey> {
        let mut over = Vec::new();
        for (key, number) in acks {
            let Some(duty) = self.duties.get_mut(key) else { continue };
            duty.acked = duty.acked.max(*number);
            if duty.report.is_some() && usize::try_from(duty.acked).unwrap() == duty.events.len() {
                ledger.check_removal(key, &duty.events);
                self.over.insert(key.clone(), (self.over.len(), duty.spec.digest));
                self.duties.remove(key);
                over.push(key.clone());
            }
        }
        over
    }
}

impl Store {
    pub fn new() -> Self {
        Self {
            disk: Disk::default(),
            health: Health::Good,
            told: VecDeque::new(),
            inbox: VecDeque::new(),
            in_flight: Vec::new(),
            limbo: Vec::new(),
            acks: BTreeMap::new(),
        }
    }

    pub fn commit(&mut self, ticket: u64, records: Vec<Record>) {
        self.inbox.push_back((ticket, records));
    }

    /// The thread takes what waits, or brings what it took to its end.
    pub fn turn(&mut self, dice: &mut Dice, ledger: &Ledger) {
        match self.health {
            Health::Good if self.in_flight.is_empty() => {
                let count = usize::try_from(1 + dice.below(MAX_BATCH)).unwrap().min(self.inbox.len());
                self.in_flight = self.inbox.drain(..count).collect();
                if count == 0 {
                    self.note_acks(ledger);
                }
            }
            Health::Good => {
                for (ticket, records) in std::mem::take(&mut self.in_flight) {
                    records.into_iter().for_each(|record| self.disk.write(record));
                    self.told.push_back(Event::Durable(ticket));
                }
                self.note_acks(ledger);
            }
            Health::Stalled => {
                let is_task = |(_, records): &(u64, Vec<Record>)| matches!(records[..], [Record::Take { .. }, ..]);
                let waiting = self.in_flight.drain(..).chain(self.inbox.drain(..));
                let (tasks, rest): (Batch, Batch) = waiting.partition(is_task);
                self.inbox = rest.into();
                self.fail(tasks);
            }
            Health::Failing | Health::Broken => {
                let all = self.in_flight.drain(..).chain(self.inbox.drain(..)).collect();
                self.fail(all);
            }
        }
    }

    fn note_acks(&mut self, ledger: &Ledger) {
        let over = self.disk.acknowledge(&std::mem::take(&mut self.acks), ledger);
        self.told.extend(over.into_iter().map(Event::Delivered));
    }

    fn fail(&mut self, batch: Batch) {
        let failures = batch.into_iter().map(|(ticket, _)| Event::CommitFailed { ticket, reason: "EIO".to_owned() });
        self.told.extend(failures);
    }

    pub fn fall_ill(&mut self, health: Health) {
        if self.health == Health::Good {
            self.health = health;
            self.told.push_back(Event::StoreTrouble(Some(format!("{health:?}"))));
            if health == Health::Broken {
                self.limbo = self.in_flight.iter().map(|(ticket, records)| (*ticket, records.clone())).collect();
            }
        }
    }

    pub fn heal(&mut self) {
        if matches!(self.health, Health::Stalled | Health::Failing) {
            self.health = Health::Good;
            self.told.push_back(Event::StoreTrouble(None));
        }
    }

    /// An orderly end: what was handed over is written.
    pub fn close(&mut self, dice: &mut Dice, ledger: &Ledger) {
        while self.health == Health::Good && !(self.inbox.is_empty() && self.in_flight.is_empty()) {
            self.turn(dice, ledger);
        }
    }

    /// The process has died: of what was on its way, all is there or nothing.
    pub fn crash(&mut self, dice: &mut Dice) {
        let on_its_way = match self.health {
            Health::Good | Health::Stalled => std::mem::take(&mut self.in_flight),
            Health::Broken => std::mem::take(&mut self.limbo),
            Health::Failing => Vec::new(),
        };
        let is_kept = dice.one_in(2);
        for (_, records) in on_its_way.into_iter().filter(|_| is_kept) {
            records.into_iter().for_each(|record| self.disk.write(record));
        }
        self.in_flight.clear();
        self.limbo.clear();
        self.inbox.clear();
        self.acks.clear();
        self.told.clear();
        self.health = Health::Good;
    }

    /// What the next start gets: held attempts in the order of arrival, and the keys of those that are over, oldest first.
    pub fn recover(&self) -> (Vec<Held>, Vec<AttemptKey>) {
        let mut duties: Vec<&Duty> = self.disk.duties.values().collect();
        duties.sort_by_key(|duty| duty.arrival);
        let held = duties.into_iter().map(|duty| Held {
            spec: duty.spec.clone(),
            phase: duty.phase,
            marks: duty.marks.clone(),
            report: duty.report.clone(),
            logs: Vec::new(),
        });
        let mut over: Vec<(usize, AttemptKey)> =
            self.disk.over.iter().map(|(key, (place, _))| (*place, key.clone())).collect();
        over.sort();
        (held.collect(), over.into_iter().map(|(_, key)| key).collect())
    }

    /// The outbox: of each attempt the next event that the master does not have.
    pub fn pieces(&self) -> Vec<(AttemptKey, record::Event)> {
        let next = self.disk.duties.iter().filter_map(|(key, duty)| {
            let acked = self.acks.get(key).map_or(duty.acked, |acked| duty.acked.max(*acked));
            Some((key.clone(), duty.events.get(usize::try_from(acked).unwrap())?.clone()))
        });
        next.collect()
    }

    /// The master has it; noted with the next transaction.
    pub fn acked(&mut self, key: &AttemptKey, number: u64) {
        self.acks.insert(key.clone(), number);
    }

    /// Whether all that was handed over is answered.
    pub fn is_idle(&self) -> bool {
        self.inbox.is_empty() && self.in_flight.is_empty() && self.told.is_empty() && self.acks.is_empty()
    }
}
