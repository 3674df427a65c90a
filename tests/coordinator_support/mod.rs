//! A coordinator with a store that the test answers for, and a clock that it moves.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use hivemind_worker::coordinator::{Coordinator, Effect, Event, Held, Record, Settings};
use hivemind_worker::node::alerts::Thresholds;
use hivemind_worker::node::id::{AttemptKey, Id};
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::order::{Refusal, TaskNews};
use hivemind_worker::node::record::{EventKind, FinalReport, Outcome};
use hivemind_worker::node::resources::Resources;
use hivemind_worker::node::snapshot::{EngineView, Snapshot};
use hivemind_worker::node::spec::SpecDefaults;

pub const GIB: i64 = 1 << 30;

/// A coordinator with a store that the test answers for, and a clock that it moves.
pub struct Node {
    pub coordinator: Coordinator,
    pub now: Duration,
    pub polls: u64,
}

impl Node {
    pub fn new(held: Vec<Held>) -> Self {
        let lent = Resources { cpu_millis: 2_000, memory_bytes: 2 << 30, disk_bytes: 10 << 30, slots: 4 };
        let settings = Settings { lent, defaults: SpecDefaults::default(), alerts: Thresholds::default() };
        let coordinator = Coordinator::new(settings, Snapshot::default(), held, Duration::ZERO, 0);
        let mut node = Self { coordinator, now: Duration::ZERO, polls: 0 };
        node.tell(Event::Engine(EngineView { is_usable: true, ..EngineView::default() }));
        node
    }

    pub fn tell(&mut self, event: Event) {
        self.coordinator.handle(event, self.now, 1_000 + u64::try_from(self.now.as_millis()).unwrap());
    }

    /// Effects so far, with each commit answered as durable until nothing more comes.
    pub fn settle(&mut self) -> Vec<Effect> {
        let mut seen = Vec::new();
        loop {
            let effects = self.coordinator.take_effects();
            if effects.is_empty() {
                return seen;
            }
            for effect in effects {
                if let Effect::Commit { ticket, .. } = &effect {
                    self.tell(Event::Durable(*ticket));
                }
                seen.push(effect);
            }
        }
    }

    pub fn offer(&mut self, offers: Vec<Offer>) -> Vec<Effect> {
        self.send_offers(offers);
        self.settle()
    }

    pub fn send_offers(&mut self, offers: Vec<Offer>) {
        self.polls += 1;
        let offers = offers.into_iter().zip(1..).map(|(offer, id)| (id, Ok(Box::new(offer)))).collect();
        self.tell(Event::Offers { poll: self.polls, offers });
    }

    pub fn finish(&mut self, task: &str, outcome: Outcome) -> Vec<Effect> {
        let report = FinalReport::without_run(outcome, "");
        self.tell(Event::Task(key(task), TaskNews::Finished(Box::new(report))));
        self.settle()
    }
}

pub fn key(task: &str) -> AttemptKey {
    AttemptKey { task: Id::parse(task).unwrap(), attempt: 1 }
}

pub fn offer(task: &str, memory: i64) -> Offer {
    Offer {
        task: task.to_owned(),
        attempt: 1,
        cpu_millis: 500,
        memory_bytes: memory,
        digest: [7; 32],
        ..Offer::default()
    }
}

pub fn started(effects: &[Effect]) -> Vec<String> {
    let starts = effects.iter().filter_map(|effect| match effect {
        Effect::Start { spec, .. } => Some(spec.key.task.to_string()),
        _ => None,
    });
    starts.collect()
}

pub fn settled(effects: &[Effect]) -> (Vec<u64>, Vec<Refusal>) {
    let polls = effects.iter().find_map(|effect| match effect {
        Effect::SettlePoll { taken, refused, .. } => Some((taken.clone(), refused.clone())),
        _ => None,
    });
    polls.expect("no poll was settled")
}

pub fn reports(effects: &[Effect]) -> impl Iterator<Item = &FinalReport> {
    let records = effects.iter().filter_map(|effect| match effect {
        Effect::Commit { records, .. } => Some(records),
        _ => None,
    });
    records.flatten().filter_map(|record| match record {
        Record::Event { kind: EventKind::Final(report), .. } => Some(&**report),
        _ => None,
    })
}

pub fn finals(effects: &[Effect]) -> Vec<Outcome> {
    reports(effects).map(|report| report.outcome).collect()
}
