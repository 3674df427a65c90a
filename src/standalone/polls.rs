//! AssignTask and CancelTask: held polls, what they are answered with and when; and what nodes say about it.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;

use super::attempt::{Attempt, Place};
use super::book::{Ask, MAX_ASSIGNMENT_BYTES, PAUSE};
use super::convert;
use super::core::{Core, Handled, HeldId, answer};
use super::fail::Fail;
use crate::node::id::{AttemptKey, Id};
use crate::node::record::Outcome;
use crate::node::resources::Resources;
use crate::rpc::schema;

/// Longest time that a poll is held, whatever it asks for.
pub const MAX_WAIT: Duration = Duration::from_secs(60);
/// Offers in an answer.
pub const MAX_OFFERS: usize = 64;
/// Cancellations in an answer; the rest comes with the next.
pub const MAX_CANCELLATIONS: usize = 256;

/// Polls that wait, at most one a node.
#[derive(Debug, Default)]
pub struct Polls {
    held: BTreeMap<HeldId, Poll>,
    next: u64,
    /// The highest poll of each node since it registered.
    last: BTreeMap<Id, u64>,
    /// What was offered with the last answer that had offers.
    offered: BTreeMap<Id, Vec<AttemptKey>>,
    /// Answers of polls that a later one has replaced.
    replaced: Vec<HeldId>,
}

#[derive(Debug)]
struct Poll {
    node: Id,
    free: Resources,
    max_offers: usize,
    until: Duration,
}

impl Polls {
    /// A node has registered: it counts its polls anew, and one that is still held is nobody's.
    pub fn forget(&mut self, node: &Id) {
        self.last.remove(node);
        self.replace(node);
    }

    fn replace(&mut self, node: &Id) {
        let old: Vec<HeldId> = self.held.iter().filter(|(_, poll)| poll.node == *node).map(|(id, _)| *id).collect();
        for id in old {
            self.held.remove(&id);
            self.replaced.push(id);
        }
    }
}

impl Core {
    pub(super) fn assign(
        &mut self,
        request: &schema::TaskAssignmentRequest,
        node: &Id,
        now: Duration,
    ) -> Result<Handled, Fail> {
        self.confirm(request, node, now)?;
        let last = self.polls.last.get(node).copied().unwrap_or(0);
        if request.poll_id < last {
            return Ok(answer(schema::TaskAssignmentResponse::default()));
        }
        self.polls.last.insert(node.clone(), request.poll_id);
        self.nodes.entry(node.clone()).or_default().free = Some(convert::resources(request.free.as_ref()));
        self.polls.replace(node);
        let id = HeldId(self.polls.next);
        self.polls.next += 1;
        let wait = Duration::from_millis(request.wait_ms).min(MAX_WAIT);
        let max_offers = usize::try_from(request.max_assignments).map_or(MAX_OFFERS, |max| max.min(MAX_OFFERS));
        if request.last_answer_too_large {
            self.end_too_large(node, now)?;
        }
        let poll = Poll {
            node: node.clone(),
            free: convert::resources(request.free.as_ref()),
            max_offers: if request.last_answer_too_large { max_offers.min(1) } else { max_offers },
            until: now.saturating_add(wait),
        };
        match self.try_answer(&poll, now)? {
            Some(message) => Ok(answer(message)),
            None => {
                self.polls.held.insert(id, poll);
                Ok(Handled::Hold(id))
            }
        }
    }

    /// Takes what a node says about the offers of its last answer.
    fn confirm(&mut self, request: &schema::TaskAssignmentRequest, node: &Id, now: Duration) -> Result<(), Fail> {
        for offer in &request.taken {
            if let Some(key) = self.offered(node, *offer) {
                self.book.place(&key, node)?;
            }
        }
        for refusal in &request.refused {
            if let Some(key) = self.offered(node, refusal.offer_id) {
                self.book.refuse(&key, &refusal.code, &refusal.reason, now)?;
            }
        }
        Ok(())
    }

    /// A node could not read its last answer: an assignment that was alone in it would not be read the next time either.
    fn end_too_large(&mut self, node: &Id, now: Duration) -> Result<(), Fail> {
        if let Some([alone]) = self.polls.offered.remove(node).as_deref() {
            let is_offered =
                |attempt: &Attempt| matches!(&attempt.place, Place::Offered { node: by, .. } if by == node);
            if self.book.attempts.get(alone).is_some_and(is_offered) {
                let reason = format!("the assignment is larger than {node} takes in one answer");
                self.book.end(alone, Outcome::Rejected, &reason, now)?;
            }
        }
        Ok(())
    }

    fn offered(&self, by: &Id, number: u64) -> Option<AttemptKey> {
        let is_it = |attempt: &&Attempt| match &attempt.place {
            Place::Offered { node, offer, .. } => node == by && *offer == number,
            Place::Queued(_) | Place::Placed(_) => false,
        };
        self.book.attempts.values().find(is_it).map(|attempt| attempt.key.clone())
    }

    /// An answer, when there is something to say or the wait is over.
    fn try_answer(&mut self, poll: &Poll, now: Duration) -> Result<Option<schema::TaskAssignmentResponse>, Fail> {
        let capacity: Vec<Resources> = self.nodes.values().map(|row| row.capacity).collect();
        self.book.end_impossible(&capacity, now)?;
        let picked = self.book.offer(
            &Ask { node: &poll.node, free: poll.free, max_offers: poll.max_offers, max_bytes: MAX_ASSIGNMENT_BYTES },
            now,
        )?;
        if !picked.is_empty() {
            let keys = picked.iter().map(|(key, _)| key.clone()).collect();
            self.polls.offered.insert(poll.node.clone(), keys);
        }
        let mut offers = Vec::new();
        for (key, offer_id) in picked {
            match self.book.folder.assignment(&key) {
                Ok(assignment) => {
                    let signature = self.signer.sign(poll.node.as_str(), &assignment);
                    offers.push(schema::Offer { offer_id, assignment, signature });
                }
                Err(error) => {
                    let reason = format!("the master can't read the assignment any more: {error}");
                    self.book.end(&key, Outcome::Rejected, &reason, now)?;
                }
            }
        }
        let has_news = self.stopping(&poll.node).any(|(_, next)| next <= now);
        if offers.is_empty() && !has_news && now < poll.until {
            return Ok(None);
        }
        Ok(Some(schema::TaskAssignmentResponse {
            offers,
            cancellations: self.cancellations(&poll.node, now),
            directives: Vec::new(),
        }))
    }

    /// Attempts at a node that are to be stopped and unanswered, and when a poll may be answered for them again.
    fn stopping<'a>(&'a self, node: &'a Id) -> impl Iterator<Item = (&'a Attempt, Duration)> {
        let here = self.book.attempts.values().filter(move |attempt| attempt.node() == Some(node));
        // A node that did not know it may have taken it since, from an answer that was on its way.
        let runs = |attempt: &&Attempt| attempt.verdict.is_none() || matches!(attempt.place, Place::Placed(_));
        here.filter(|attempt| attempt.final_report.is_none()).filter(runs).filter_map(|attempt| {
            let stop = attempt.stop.as_ref().filter(|stop| !stop.is_answered)?;
            Some((attempt, stop.next))
        })
    }

    /// All cancellations for a node: each answer repeats them until the node answers.
    pub(super) fn cancellations(&mut self, node: &Id, now: Duration) -> Vec<schema::Cancellation> {
        let keys: Vec<AttemptKey> =
            self.stopping(node).take(MAX_CANCELLATIONS).map(|(attempt, _)| attempt.key.clone()).collect();
        let mut cancellations = Vec::new();
        for key in keys {
            let Some(attempt) = self.book.attempts.get_mut(&key) else { continue };
            let Some(stop) = attempt.stop.as_mut() else { continue };
            stop.next = now.saturating_add(PAUSE);
            cancellations.push(schema::Cancellation {
                key: Some(convert::key_message(&key)),
                reason: stop.reason.clone(),
                superseded: stop.is_superseded,
            });
        }
        cancellations
    }

    pub(super) fn cancel_answered(
        &mut self,
        request: &schema::TaskCancelRequest,
        node: &Id,
        now: Duration,
    ) -> Result<schema::TaskCancelResponse, Fail> {
        use schema::CancelState;
        let key = convert::key(request.key.as_ref())?;
        if request.state == 0 {
            return Err(Fail::missing("state"));
        }
        let attempt = self.book.attempts.get(&key).filter(|attempt| attempt.node() == Some(node));
        let Some(attempt) = attempt.filter(|attempt| attempt.final_report.is_none()) else {
            return Ok(schema::TaskCancelResponse {});
        };
        let (stop, is_on_its_way) = (attempt.stop.clone(), matches!(attempt.place, Place::Offered { .. }));
        let unknown = stop.filter(|_| request.state == i32::from(CancelState::Unknown));
        if let Some(stop) = unknown.as_ref().filter(|_| attempt.verdict.is_none()) {
            let outcome = if stop.is_superseded { Outcome::Superseded } else { Outcome::Cancelled };
            let reason = format!("{}; the node did not hold it", stop.reason);
            self.book.end(&key, outcome, &reason, now)?;
        }
        if unknown.is_none() || !is_on_its_way {
            self.book.change(&key, |attempt| {
                if let Some(stop) = &mut attempt.stop {
                    stop.is_answered = true;
                }
                if request.state == i32::from(CancelState::StoppedByOwner) {
                    attempt.note("the node's owner stopped it".to_owned());
                }
            });
        }
        Ok(schema::TaskCancelResponse {})
    }

    /// A held call that nobody waits for any more.
    pub fn drop_held(&mut self, id: HeldId) {
        self.polls.held.remove(&id);
    }

    /// Answers of held calls that are due.
    pub fn handle_timeout(&mut self, now: Duration) -> Vec<(HeldId, Result<Vec<u8>, Fail>)> {
        self.clean_when_due(now);
        let nothing = schema::TaskAssignmentResponse::default().encode_to_vec();
        let replaced = std::mem::take(&mut self.polls.replaced);
        let mut due: Vec<_> = replaced.into_iter().map(|id| (id, Ok(nothing.clone()))).collect();
        let ids: Vec<HeldId> = self.polls.held.keys().copied().collect();
        for id in ids {
            let Some(poll) = self.polls.held.remove(&id) else { continue };
            match self.try_answer(&poll, now) {
                Ok(None) => {
                    self.polls.held.insert(id, poll);
                }
                Ok(Some(message)) => due.push((id, Ok(message.encode_to_vec()))),
                Err(fail) => due.push((id, Err(fail))),
            }
        }
        due
    }

    /// When [`Core::handle_timeout`] is to be called at the latest.
    pub fn poll_timeout(&self, now: Duration) -> Duration {
        let polls = self.polls.held.values().map(|poll| poll.until);
        let attempts = self.book.attempts.values().filter(|attempt| !attempt.is_over());
        let times = attempts.flat_map(|attempt| {
            let place = match attempt.place {
                Place::Queued(next) | Place::Offered { next, .. } => Some(next),
                Place::Placed(_) => None,
            };
            let stop = attempt.stop.as_ref().map(|stop| stop.next);
            place.into_iter().chain(stop)
        });
        // A time that is past is no reason to wake: handle_timeout has looked at it.
        polls.chain(times.filter(|next| *next > now)).chain([self.next_clean()]).min().unwrap_or(now)
    }
}
