//! Offers, refusals, held polls and cancellations.

use std::time::Duration;

use prost::Message;

use super::attempt::Place;
use super::book::{MAX_PASSED, PAUSE};
use super::core::*;
use super::testkit::*;
use crate::grpc::Code;
use crate::node::record::Outcome;
use crate::rpc::schema::{
    Assignment, CancelState, HeartbeatRequest, HeartbeatResponse, HeldAttempt, NodeRegistrationRequest, Refusal,
    Resources, TaskAssignmentRequest, TaskAssignmentResponse, TaskCancelRequest, TaskCancelResponse,
};

const SECOND: Duration = Duration::from_secs(1);

fn refusal(offer_id: u64, code: &str) -> Vec<Refusal> {
    vec![Refusal { offer_id, code: code.to_owned(), reason: "because".to_owned() }]
}

#[test]
fn offers_by_priority_then_age() {
    let mut rig = Rig::new();
    for (task, priority) in [("low", 10), ("first", 50), ("second", 50), ("high", 90)] {
        rig.submit(task, priority);
        rig.now += SECOND;
    }
    assert_eq!(Rig::tasks(&rig.poll(&[], vec![])), ["high", "first", "second", "low"]);
}

#[test]
fn offers_no_more_than_the_node_takes_and_has_room_for() {
    let mut rig = Rig::new();
    for task in ["a", "b", "c", "d", "e", "f"] {
        rig.submit_assignment(&Assignment { cpu_millis: 1_500, ..assignment(task, 1, 50) });
    }
    let mut request = rig.poll_request(&[], 0);
    request.max_assignments = 1;
    let answer: TaskAssignmentResponse = rig.call(ASSIGN_TASK, &request).unwrap();
    assert_eq!(Rig::tasks(&answer), ["a"]);
    // 4,000 hold two of 1,500; the one that was taken is in the node's own count.
    let mut request = rig.poll_request(&[answer.offers[0].offer_id], 0);
    let answer: TaskAssignmentResponse = rig.call(ASSIGN_TASK, &request).unwrap();
    assert_eq!(Rig::tasks(&answer), ["b", "c"]);
    for free in [None, Some(Resources { slots: 0, ..free() })] {
        request = rig.poll_request(&[], 0);
        request.free = free;
        let answer: TaskAssignmentResponse = rig.call(ASSIGN_TASK, &request).unwrap();
        assert_eq!(Rig::tasks(&answer), [""; 0]);
    }
}

#[test]
fn after_an_answer_that_was_too_large_it_offers_one_at_a_time_and_ends_what_is_too_large_alone() {
    let mut rig = Rig::new();
    for task in ["a", "b", "c"] {
        rig.submit(task, 50);
    }
    assert_eq!(Rig::tasks(&rig.poll(&[], vec![])), ["a", "b", "c"]);
    let ask = |rig: &mut Rig, taken: &[u64]| {
        rig.now += PAUSE;
        let request = TaskAssignmentRequest { last_answer_too_large: true, ..rig.poll_request(taken, 0) };
        let answer: TaskAssignmentResponse = rig.call(ASSIGN_TASK, &request).unwrap();
        answer
    };
    let first = ask(&mut rig, &[]);
    assert_eq!(Rig::tasks(&first), ["a"]);
    // That was not read either: it would never be.
    let second = ask(&mut rig, &[]);
    assert_eq!(Rig::tasks(&second), ["b"]);
    let reason = rig.attempt("a", 1).last_word().unwrap();
    assert_eq!((reason.outcome, reason.reason.contains("larger than node-1 takes")), (Outcome::Rejected, true));
    assert!(rig.attempt("b", 1).last_word().is_none());
    // What was taken meanwhile is not given up.
    assert_eq!(Rig::tasks(&ask(&mut rig, &[second.offers[0].offer_id])), ["c"]);
    assert!(rig.attempt("b", 1).last_word().is_none());
}

#[test]
fn a_small_task_passes_a_large_one_but_not_for_ever() {
    let mut rig = Rig::new();
    rig.submit_assignment(&Assignment { cpu_millis: 4_000, ..assignment("large", 1, 50) });
    let ask = |rig: &mut Rig| {
        let mut request = rig.poll_request(&[], 0);
        request.free.as_mut().unwrap().cpu_millis = 3_000;
        Rig::tasks(&rig.call(ASSIGN_TASK, &request).unwrap())
    };
    rig.submit("small", 50);
    assert_eq!(ask(&mut rig), ["small"]);
    rig.now += MAX_PASSED + SECOND;
    rig.submit("late", 50);
    // The unconfirmed one is repeated; the late one has to wait behind the large one.
    assert_eq!(ask(&mut rig), ["small"]);
}

#[test]
fn an_offer_that_is_neither_taken_nor_refused_is_offered_again_with_the_same_bytes() {
    let mut rig = Rig::new();
    rig.submit("a", 50);
    let first = rig.poll(&[], vec![]);
    let second = rig.poll(&[], vec![]);
    assert_eq!(first, second);
    // A node that says nothing for long is not answered in a tight loop.
    assert_eq!(rig.poll(&[], vec![]).offers, []);
    rig.now += PAUSE;
    assert_eq!(rig.poll(&[], vec![]), first);
    assert_eq!(rig.poll(&[first.offers[0].offer_id], vec![]).offers, []);
    rig.now += PAUSE;
    assert_eq!(rig.poll(&[], vec![]).offers, []);
}

#[test]
fn a_refusal_for_now_is_offered_again_after_a_pause_under_another_number() {
    for code in ["capacity", "draining", "storage"] {
        let mut rig = Rig::new();
        rig.submit("a", 50);
        let offer = rig.poll(&[], vec![]).offers[0].offer_id;
        assert_eq!(rig.poll(&[], refusal(offer, code)).offers, []);
        rig.now += PAUSE;
        let again = rig.poll(&[], vec![]).offers[0].offer_id;
        assert_ne!(again, offer);
        // The same refusal once more is about an offer that is over.
        rig.poll(&[], refusal(offer, code));
        assert!(matches!(rig.attempt("a", 1).place, Place::Offered { .. }));
    }
}

#[test]
fn a_refusal_for_good_ends_the_attempt_with_its_reason() {
    for code in ["invalid", "policy", "conflict", "stale", "of-a-newer-node"] {
        let mut rig = Rig::new();
        rig.submit("a", 50);
        let offer = rig.poll(&[], vec![]).offers[0].offer_id;
        assert_eq!(rig.poll(&[], refusal(offer, code)).offers, []);
        for _ in 0..2 {
            assert_eq!(rig.attempt("a", 1).outcome(), Some(Outcome::Rejected));
            assert_eq!(rig.attempt("a", 1).last_word().unwrap().reason, format!("{code}: because"));
            assert!(rig.attempt("a", 1).is_complete());
            rig.restart_and_register();
        }
    }
}

#[test]
fn what_no_node_can_ever_hold_is_rejected_with_the_resource() {
    let mut rig = Rig::new();
    rig.submit_assignment(&Assignment { cpu_millis: 64_000, ..assignment("a", 1, 50) });
    rig.poll(&[], vec![]);
    assert_eq!(rig.attempt("a", 1).outcome(), Some(Outcome::Rejected));
    assert!(rig.attempt("a", 1).last_word().unwrap().reason.contains("it asks for 64 CPUs, 4 are lent"));
    // A node without its engine lends nothing for now: that says nothing about the task.
    let request = NodeRegistrationRequest { capacity: None, ..rig.registration() };
    rig.register_with(request).unwrap();
    rig.submit_assignment(&Assignment { cpu_millis: 64_000, ..assignment("b", 1, 50) });
    rig.poll(&[], vec![]);
    assert_eq!(rig.attempt("b", 1).outcome(), None);
}

#[test]
fn says_what_a_task_waits_for_before_and_while_a_node_is_there() {
    let mut rig = Rig::bare(Terms::default());
    rig.submit("a", 50);
    let waits = |rig: &Rig, task: &str| {
        let attempt = rig.core.attempt(&key(task, 1)).unwrap();
        rig.core.waits(attempt, rig.core.blocker(rig.now))
    };
    assert_eq!(waits(&rig, "a").unwrap(), "no node has registered yet");
    rig.register().unwrap();
    let mut request = rig.poll_request(&[], 0);
    request.free = Some(Resources { slots: 0, ..free() });
    rig.call::<TaskAssignmentResponse>(ASSIGN_TASK, &request).unwrap();
    assert_eq!(waits(&rig, "a").unwrap(), "all slots of node node-1 are in use");
    let offer = rig.poll(&[], vec![]).offers[0].offer_id;
    assert_eq!(waits(&rig, "a"), None);
    rig.poll(&[], refusal(offer, "storage"));
    assert_eq!(waits(&rig, "a").unwrap(), "the node put it off: because");
    // A large one that has waited for long holds up those that came later.
    rig.submit_assignment(&Assignment { cpu_millis: 4_000, ..assignment("large", 1, 90) });
    rig.now += MAX_PASSED + SECOND;
    let mut request = rig.poll_request(&[], 0);
    request.free = Some(Resources { cpu_millis: 3_000, ..free() });
    rig.call::<TaskAssignmentResponse>(ASSIGN_TASK, &request).unwrap();
    assert_eq!(waits(&rig, "large").unwrap(), "it needs 4 CPUs, node node-1 has 3 free");
    assert_eq!(waits(&rig, "a").unwrap(), "large comes first and has waited too long to be passed");
}

#[test]
fn a_held_poll_is_answered_when_work_arrives() {
    let mut rig = Rig::new();
    let held = rig.hold(25_000);
    assert_eq!(rig.core.handle_timeout(rig.now), []);
    rig.now += SECOND;
    rig.submit("a", 50);
    let due = rig.core.handle_timeout(rig.now);
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].0, held);
    let answer = TaskAssignmentResponse::decode(due[0].1.as_ref().unwrap().as_slice()).unwrap();
    assert_eq!(Rig::tasks(&answer), ["a"]);
    assert_eq!(rig.core.handle_timeout(rig.now), []);
}

#[test]
fn a_held_poll_ends_empty_with_its_wait() {
    let mut rig = Rig::new();
    let held = rig.hold(25_000);
    assert_eq!(rig.core.poll_timeout(rig.now), Duration::from_secs(25));
    rig.now = Duration::from_millis(24_999);
    assert_eq!(rig.core.handle_timeout(rig.now), []);
    rig.now = Duration::from_secs(25);
    assert_eq!(rig.core.handle_timeout(rig.now), [(held, Ok(vec![]))]);
    rig.hold(u64::MAX);
    assert_eq!(rig.core.poll_timeout(rig.now), rig.now + super::polls::MAX_WAIT);
}

#[test]
fn a_held_poll_is_answered_when_a_pause_ends() {
    let mut rig = Rig::new();
    rig.submit("a", 50);
    let offer = rig.poll(&[], vec![]).offers[0].offer_id;
    let mut request = rig.poll_request(&[], 25_000);
    request.refused = refusal(offer, "capacity");
    assert!(matches!(rig.handle(ASSIGN_TASK, &request), Handled::Hold(_)));
    assert_eq!(rig.core.poll_timeout(rig.now), rig.now + PAUSE);
    rig.now += PAUSE;
    assert_eq!(rig.core.handle_timeout(rig.now).len(), 1);
}

#[test]
fn of_two_polls_the_higher_one_is_alive() {
    let mut rig = Rig::new();
    let old = rig.hold(25_000);
    let new = rig.hold(25_000);
    assert_eq!(rig.core.handle_timeout(rig.now), [(old, Ok(vec![]))]);
    // A late copy of an older poll is answered at once and displaces nothing.
    rig.poll_id = 0;
    assert_eq!(rig.poll(&[], vec![]), TaskAssignmentResponse::default());
    rig.submit("a", 50);
    assert_eq!(rig.core.handle_timeout(rig.now)[0].0, new);
    // A dropped one is never answered, and costs no offer.
    rig.poll_id = 9;
    let offer = rig.attempt("a", 1).clone();
    rig.now += PAUSE;
    let Place::Offered { offer, .. } = offer.place else { panic!() };
    rig.poll(&[offer], vec![]);
    let gone = rig.hold(25_000);
    rig.core.drop_held(gone);
    rig.submit("b", 50);
    assert_eq!(rig.core.handle_timeout(rig.now), []);
    assert_eq!(rig.attempt("b", 1).place, Place::Queued(Duration::ZERO));
}

#[test]
fn a_held_attempt_counts_as_taken_though_its_confirmation_was_lost() {
    let mut rig = Rig::new();
    rig.submit("a", 50);
    rig.poll(&[], vec![]);
    let held = vec![HeldAttempt { key: key_message("a"), phase: 1 }];
    let beat = HeartbeatRequest { node_id: rig.node.clone(), held, ..HeartbeatRequest::default() };
    rig.call::<HeartbeatResponse>(HEARTBEAT, &beat).unwrap();
    assert!(matches!(rig.attempt("a", 1).place, Place::Placed(_)));
}

#[test]
fn an_offer_stays_with_its_node_over_a_restart() {
    let mut rig = Rig::new();
    rig.submit("a", 50);
    let offer = rig.poll(&[], vec![]).offers[0].clone();
    rig.restart();
    rig.node = "node-2".to_owned();
    rig.pair = key_pair(2);
    rig.register().unwrap();
    assert_eq!(rig.poll(&[], vec![]).offers, []);
    rig.node = "node-1".to_owned();
    rig.pair = key_pair(1);
    rig.register().unwrap();
    let again = rig.poll(&[], vec![]).offers[0].clone();
    assert_eq!(again.assignment, offer.assignment);
    assert_ne!(again.offer_id, offer.offer_id);
}

fn cancel(rig: &mut Rig, task: &str) -> Result<(), String> {
    rig.core.cancel(&key(task, 1).task, "by its author", rig.now)
}

fn answer_cancel(rig: &mut Rig, task: &str, state: CancelState) -> Result<TaskCancelResponse, super::fail::Fail> {
    let request = TaskCancelRequest {
        node_id: rig.node.clone(),
        key: key_message(task),
        state: state.into(),
        reason: String::new(),
    };
    rig.call(CANCEL_TASK, &request)
}

#[test]
fn cancels_a_waiting_task_at_once() {
    let mut rig = Rig::new();
    rig.submit("a", 50);
    cancel(&mut rig, "a").unwrap();
    assert_eq!(rig.attempt("a", 1).outcome(), Some(Outcome::Cancelled));
    assert_eq!(rig.poll(&[], vec![]), TaskAssignmentResponse::default());
    assert!(cancel(&mut rig, "a").unwrap_err().contains("over"));
    assert!(cancel(&mut rig, "b").is_err());
}

#[test]
fn repeats_a_cancellation_until_the_node_answers() {
    for state in [CancelState::Stopping, CancelState::AlreadyOver, CancelState::StoppedByOwner] {
        let mut rig = Rig::new();
        rig.placed("a");
        let held = rig.hold(25_000);
        cancel(&mut rig, "a").unwrap();
        cancel(&mut rig, "a").unwrap();
        let due = rig.core.handle_timeout(rig.now);
        assert_eq!(due[0].0, held);
        let answer = TaskAssignmentResponse::decode(due[0].1.as_ref().unwrap().as_slice()).unwrap();
        assert_eq!(answer.cancellations[0].key, key_message("a"));
        assert!(!answer.cancellations[0].superseded);
        // Each answer has it, but it does not end a held poll at once again.
        assert_eq!(rig.poll(&[], vec![]).cancellations.len(), 1);
        rig.hold(25_000);
        assert_eq!(rig.core.handle_timeout(rig.now), []);
        rig.now += PAUSE;
        assert_eq!(rig.core.handle_timeout(rig.now).len(), 1);
        let beat = HeartbeatRequest { node_id: rig.node.clone(), ..HeartbeatRequest::default() };
        assert_eq!(rig.call::<HeartbeatResponse>(HEARTBEAT, &beat).unwrap().cancellations.len(), 1);
        answer_cancel(&mut rig, "a", state).unwrap();
        assert_eq!(rig.poll(&[], vec![]).cancellations, []);
        assert_eq!(rig.attempt("a", 1).outcome(), None);
        // Another start knows of the wish, not of the answer.
        rig.restart_and_register();
        assert_eq!(rig.poll(&[], vec![]).cancellations.len(), 1);
        rig.finish("a", 1, vec![]).unwrap();
        assert_eq!(rig.poll(&[], vec![]).cancellations, []);
    }
}

#[test]
fn a_cancelled_attempt_that_the_node_does_not_hold_is_over() {
    let mut rig = Rig::new();
    rig.placed("a");
    // Without a wish an unknown attempt is no news to act on.
    answer_cancel(&mut rig, "a", CancelState::Unknown).unwrap();
    assert_eq!(rig.attempt("a", 1).outcome(), None);
    cancel(&mut rig, "a").unwrap();
    answer_cancel(&mut rig, "a", CancelState::Unknown).unwrap();
    assert_eq!(rig.attempt("a", 1).outcome(), Some(Outcome::Cancelled));
    assert!(answer_cancel(&mut rig, "none", CancelState::Stopping).is_ok());
    assert_eq!(answer_cancel(&mut rig, "a", CancelState::Unspecified).unwrap_err().code, Code::InvalidArgument);
}

#[test]
fn an_offered_task_that_is_cancelled_is_not_offered_again() {
    let mut rig = Rig::new();
    rig.submit("a", 50);
    let offer = rig.poll(&[], vec![]).offers[0].offer_id;
    cancel(&mut rig, "a").unwrap();
    let answer = rig.poll(&[], vec![]);
    assert_eq!((answer.offers.len(), answer.cancellations.len()), (0, 1));
    rig.poll(&[], refusal(offer, "capacity"));
    assert_eq!(rig.attempt("a", 1).outcome(), Some(Outcome::Cancelled));
}

#[test]
fn a_cancellation_that_overtakes_the_offer_still_stops_the_task() {
    let mut rig = Rig::new();
    rig.submit("a", 50);
    let offer = rig.poll(&[], vec![]).offers[0].offer_id;
    cancel(&mut rig, "a").unwrap();
    // A heartbeat's answer was faster than that of the poll, which is larger.
    answer_cancel(&mut rig, "a", CancelState::Unknown).unwrap();
    assert_eq!(rig.attempt("a", 1).outcome(), Some(Outcome::Cancelled));
    assert_eq!(rig.poll(&[], vec![]).cancellations, []);
    assert_eq!(rig.poll(&[offer], vec![]).cancellations.len(), 1);
    answer_cancel(&mut rig, "a", CancelState::Stopping).unwrap();
    assert_eq!(rig.poll(&[], vec![]).cancellations, []);
}

#[test]
fn a_later_attempt_supersedes_the_earlier_one() {
    let mut rig = Rig::new();
    rig.placed("a");
    rig.submit_assignment(&assignment("a", 2, 50));
    let answer = rig.poll(&[], vec![]);
    assert!(answer.cancellations[0].superseded);
    assert_eq!(Rig::tasks(&answer), ["a"]);
    let bytes = assignment("a", 2, 50).encode_to_vec();
    for attempt in [1, 2] {
        assert_eq!(rig.core.submit(&key("a", attempt), &bytes, rig.now).unwrap_err().code, Code::InvalidArgument);
    }
    // One that no node has seen is over at once.
    rig.submit("b", 50);
    rig.submit_assignment(&assignment("b", 2, 50));
    assert_eq!(rig.attempt("b", 1).outcome(), Some(Outcome::Superseded));
}
