//! The two lanes, as `session` and `submit` have them. Each call may be lost on its way, or its answer.

use std::collections::VecDeque;

use hivemind_worker::coordinator::Event;
use hivemind_worker::node::id::AttemptKey;
use hivemind_worker::node::order::{CancelState, Refusal};

use super::master::Answer;
use super::world::World;

#[derive(Default)]
pub struct Session {
    is_registered: bool,
    was_lost: bool,
    /// The poll whose offers the coordinator decides on: no other is opened before.
    deciding: Option<u64>,
    last_poll: u64,
    /// For the next poll, until an answer says that they have arrived.
    taken: Vec<u64>,
    refused: Vec<Refusal>,
    answers: VecDeque<(AttemptKey, CancelState)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The master never sees it.
    RequestLost,
    /// The master acts on it, and the node does not know.
    AnswerLost,
    Fine,
}

impl Session {
    pub fn settle(&mut self, poll: u64, taken: Vec<u64>, refused: Vec<Refusal>) {
        self.taken.extend(taken);
        self.refused.extend(refused);
        if self.deciding == Some(poll) {
            self.deciding = None;
        }
    }

    pub fn answer_cancel(&mut self, key: AttemptKey, state: CancelState) {
        if self.is_registered {
            self.answers.push_back((key, state));
        }
    }

    fn unregister(&mut self) {
        self.is_registered = false;
        self.deciding = None;
    }
}

impl World {
    fn fate(&mut self) -> Fate {
        match self.dice.below(100) {
            _ if self.master.is_away => Fate::RequestLost,
            roll if roll < self.faults.link_percent => Fate::RequestLost,
            roll if roll < 2 * self.faults.link_percent => Fate::AnswerLost,
            _ => Fate::Fine,
        }
    }

    /// One call of lane one.
    pub fn talk(&mut self) {
        let fate = self.fate();
        let session = &mut self.process.session;
        if fate == Fate::RequestLost {
            if !std::mem::replace(&mut session.was_lost, true) {
                self.process.events.push_back(Event::MasterLost { detail: "cut".to_owned() });
            }
            return;
        }
        // After a long absence it asks which attempts still count; a master that knows no session wants that too.
        let was_away = std::mem::take(&mut session.was_lost) && self.dice.one_in(2);
        if session.is_registered && (was_away || !self.master.knows_node) {
            session.unregister();
        }
        if !session.is_registered {
            return self.register(fate);
        }
        if let Some((key, state)) = session.answers.pop_front() {
            return self.master.note_cancel(&key, state);
        }
        if self.dice.one_in(3) || session.deciding.is_some() {
            let answer = self.master.heartbeat(&self.held(), &mut self.dice);
            if fate == Fate::Fine {
                let (lease, trust) = (Some(self.master.lease), Some(self.master.trust_percent));
                self.process.events.push_back(Event::MasterHeard { lease, trust_percent: trust });
                self.hear_orders(answer);
            }
            return;
        }
        self.poll(fate);
    }

    /// What the node says that it holds.
    fn held(&self) -> Vec<AttemptKey> {
        self.process.coordinator.snapshot().attempts.into_iter().map(|attempt| attempt.key).collect()
    }

    fn register(&mut self, fate: Fate) {
        let held = self.held();
        let superseded = self.master.replaced(&held, &mut self.dice);
        self.log(|| format!("registers with {held:?}, replaced {superseded:?}"));
        if fate == Fate::Fine {
            self.process.session.is_registered = true;
            let (lease, trust_percent) = (self.master.lease, self.master.trust_percent);
            let node_id = "node".to_owned();
            self.process.events.push_back(Event::Registered { node_id, lease, trust_percent, superseded });
        }
    }

    fn poll(&mut self, fate: Fate) {
        let session = &mut self.process.session;
        let answer = self.master.poll(&session.taken, &session.refused, &mut self.dice, &mut self.ledger);
        if fate == Fate::AnswerLost {
            return;
        }
        session.taken.clear();
        session.refused.clear();
        session.last_poll += 1;
        self.process.events.push_back(Event::MasterHeard { lease: None, trust_percent: None });
        if !answer.offers.is_empty() {
            let poll = session.last_poll;
            session.deciding = Some(poll);
            let offers = answer.offers.iter().map(|offered| (offered.id, Ok(Box::new(offered.offer.clone()))));
            self.process.events.push_back(Event::Offers { poll, offers: offers.collect() });
        }
        self.hear_orders(answer);
    }

    fn hear_orders(&mut self, answer: Answer) {
        let cancellations = answer.cancellations.into_iter().map(|(key, is_superseded)| Event::Cancel {
            key,
            reason: String::new(),
            is_superseded,
        });
        self.process.events.extend(cancellations);
        self.process.events.extend(answer.directives.into_iter().map(Event::Directed));
    }

    /// One call of lane two.
    pub fn submit(&mut self) {
        let fate = self.fate();
        if fate == Fate::RequestLost || !self.process.session.is_registered || !self.master.knows_node {
            return;
        }
        let pieces = self.store.pieces();
        let Some((key, event)) = self.dice.pick(&pieces) else { return };
        self.ledger.note_delivery(&key, &event);
        self.master.submit(&key, &event);
        self.log(|| format!("delivers {key} {event:?}"));
        if fate == Fate::Fine {
            self.store.acked(&key, event.number);
        }
    }
}
