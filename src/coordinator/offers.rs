//! Which offers are taken. An answer of AssignTask is settled when each of its offers is on disk or refused.

use log::info;

use super::view::explain_shortage;
use super::{Coordinator, Effect, Gated, Poll, Record};
use crate::node::offer::{Offer, SIGNATURE};
use crate::node::order::Refusal;
use crate::node::record::{EventKind, Phase};
use crate::node::resources::Resources;
use crate::node::roster::MAX_QUEUED;
use crate::node::runtime::check_known;
use crate::node::snapshot::NodeState;
use crate::node::spec::{FieldError, TaskSpec};
use crate::sys::text::printable;

impl Coordinator {
    pub(super) fn handle_offers(&mut self, poll: u64, offers: Vec<(u64, Result<Box<Offer>, FieldError>)>) {
        self.polls.insert(poll, Poll { undecided: offers.len(), ..Poll::default() });
        for (offer_id, offer) in offers {
            let checked =
                offer.and_then(|offer| TaskSpec::check(&offer, &self.settings.defaults).map(|spec| (spec, offer)));
            match checked {
                Err(error) if error.field == SIGNATURE => {
                    self.alert(format!("refused an assignment: its {error}"));
                    self.refuse(poll, offer_id, "signature", error.to_string());
                }
                Err(error) => self.refuse(poll, offer_id, "invalid", error.to_string()),
                Ok((spec, offer)) => self.handle_offer(poll, offer_id, spec, offer.inputs),
            }
        }
        self.settle(poll);
    }

    fn handle_offer(&mut self, poll: u64, offer_id: u64, spec: TaskSpec, inputs: Vec<u8>) {
        if let Some(held) = self.roster.find(&spec.key).filter(|held| !held.is_delivered) {
            if held.spec.digest != spec.digest {
                return self.refuse(
                    poll,
                    offer_id,
                    "conflict",
                    "this attempt is held here with other content".to_owned(),
                );
            }
            // The same again, for instance after an answer that was lost: it is on disk, or shares the fate of the first.
            let first = self.gated.iter().find_map(|(ticket, what)| {
                matches!(what, Gated::Taken { key, .. } if *key == spec.key).then_some(*ticket)
            });
            return match first {
                Some(ticket) => self.gate(ticket, Gated::Taken { poll, offer_id, key: spec.key }),
                None => self.confirm(poll, offer_id, &spec.key),
            };
        }
        if let Some((code, reason)) = self.reason_to_refuse(&spec) {
            return self.refuse(poll, offer_id, code, reason);
        }
        let key = spec.key.clone();
        self.roster.add(spec.clone(), Phase::Received, self.now, self.now_ms);
        self.records.push(Record::Take { spec: Box::new(spec), inputs });
        self.note_event(&key, EventKind::Phase(Phase::Received, String::new()));
        let ticket = self.commit();
        self.gate(ticket, Gated::Taken { poll, offer_id, key });
    }

    fn reason_to_refuse(&self, spec: &TaskSpec) -> Option<(&'static str, String)> {
        if self.over.contains(&spec.key) {
            return Some(("stale", "this attempt has ended here and was delivered".to_owned()));
        }
        let ended = self.over.iter().filter(|over| over.task == spec.key.task).map(|over| over.attempt).max();
        let newest = self.roster.newest_of(&spec.key).max(ended);
        if let Some(newest) = newest.filter(|newest| *newest > spec.key.attempt) {
            return Some(("stale", format!("attempt {newest} of this task is or was held here")));
        }
        let (state, reason) = self.state();
        if !matches!(state, NodeState::Ready | NodeState::Busy) {
            return Some(("draining", format!("the node is {}: {reason}", state.as_str())));
        }
        if let Err(reason) = check_known(spec.runtime.as_ref(), &self.view.engine.runtimes) {
            return Some(("policy", reason));
        }
        let usable = self.usable();
        if let Some(short) = spec.needs().shortage(&usable) {
            return Some(("capacity", format!("{short}: {}", explain_shortage(short, spec, &usable))));
        }
        (self.roster.queued() >= MAX_QUEUED).then(|| ("capacity", format!("{MAX_QUEUED} attempts wait here already")))
    }

    /// What the owner lends, as far as the trust level goes.
    pub(super) fn usable(&self) -> Resources {
        self.settings.lent.share(self.trust_percent)
    }

    pub(super) fn refuse(&mut self, poll: u64, offer_id: u64, code: &'static str, reason: String) {
        info!("refused offer {offer_id}: {code}: {}", printable(&reason));
        if let Some(state) = self.polls.get_mut(&poll) {
            state.undecided -= 1;
            state.refused.push(Refusal { offer_id, code, reason });
        }
    }

    pub(super) fn settle(&mut self, poll: u64) {
        if self.polls.get(&poll).is_some_and(|state| state.undecided == 0)
            && let Some(state) = self.polls.remove(&poll)
        {
            self.effects.push(Effect::SettlePoll { poll, taken: state.taken, refused: state.refused });
        }
    }
}
