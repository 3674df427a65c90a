//! The coordinator's decisions in simulated time, without threads, sockets or a store.
#![allow(clippy::unwrap_used)]

mod coordinator_support;

use std::time::Duration;

use coordinator_support::{GIB, Node, finals, key, offer, settled, started};
use hivemind_worker::coordinator::{Effect, Event, Held, Record, ShutdownMode};
use hivemind_worker::node::action::Action;
use hivemind_worker::node::id::AttemptKey;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::order::{CancelState, Look, Marks, TaskNews};
use hivemind_worker::node::record::{EventKind, FinalReport, Outcome, Phase, Usage};
use hivemind_worker::node::snapshot::{EngineView, HostSample, NodeState};
use hivemind_worker::node::spec::{FieldError, SpecDefaults, TaskSpec};

#[test]
fn confirms_and_starts_nothing_before_it_is_durable() {
    let mut node = Node::new(Vec::new());
    node.send_offers(vec![offer("a", GIB)]);
    let effects = node.coordinator.take_effects();
    assert!(matches!(effects.as_slice(), [Effect::Commit { .. }]), "{effects:?}");
    let Effect::Commit { ticket, .. } = effects[0] else { unreachable!() };
    node.tell(Event::Durable(ticket));
    let effects = node.coordinator.take_effects();
    assert_eq!(settled(&effects).0, [1]);
    assert!(started(&effects).is_empty(), "the decision to start is not durable yet");
    let Some(Effect::Commit { ticket, .. }) = effects.last() else { panic!("{effects:?}") };
    let ticket = *ticket;
    node.tell(Event::Durable(ticket));
    assert_eq!(started(&node.coordinator.take_effects()), ["a"]);
}

#[test]
fn second_task_waits_when_memory_is_promised_and_starts_when_it_is_free() {
    let mut node = Node::new(Vec::new());
    assert_eq!(started(&node.offer(vec![offer("a", 3 * GIB / 2), offer("b", GIB)])), ["a"]);
    let waiting = node.coordinator.snapshot().attempts[1].clone();
    assert_eq!((waiting.phase, waiting.detail.as_str()), (Phase::Queued, "waits for memory"));
    assert!(started(&node.finish("a", Outcome::Succeeded)).is_empty(), "its container is still there");
    node.tell(Event::Task(key("a"), TaskNews::Cleaned(None)));
    assert_eq!(started(&node.settle()), ["b"]);
}

#[test]
fn starts_by_priority_then_by_arrival() {
    let mut node = Node::new(Vec::new());
    let urgent = Offer { priority: Some(90), ..offer("urgent", 2 * GIB) };
    let effects = node.offer(vec![offer("all", 2 * GIB), offer("first", 2 * GIB), offer("second", 2 * GIB), urgent]);
    let mut order = started(&effects);
    for _ in 0..3 {
        let running = order.last().unwrap().clone();
        node.finish(&running, Outcome::Succeeded);
        node.tell(Event::Task(key(&running), TaskNews::Cleaned(None)));
        order.extend(started(&node.settle()));
    }
    assert_eq!(order, ["all", "urgent", "first", "second"]);
}

#[test]
fn refuses_what_can_never_fit_what_is_invalid_and_what_conflicts() {
    let mut node = Node::new(Vec::new());
    let bad = Offer { memory_bytes: -1, ..offer("bad", 0) };
    let (taken, refused) = settled(&node.offer(vec![offer("huge", 100 * GIB), bad, offer("good", GIB)]));
    assert_eq!(taken, [3]);
    assert_eq!(
        refused.iter().map(|refusal| (refusal.offer_id, refusal.code)).collect::<Vec<_>>(),
        [(1, "capacity"), (2, "invalid")]
    );
    assert!(refused[1].reason.starts_with("memory_bytes is -1"), "{refused:?}");
    let other = Offer { digest: [8; 32], ..offer("good", GIB) };
    assert_eq!(settled(&node.offer(vec![other])).1[0].code, "conflict");
}

#[test]
fn what_the_master_has_not_signed_is_refused_and_told_once() {
    let mut node = Node::new(Vec::new());
    let alerts = node.coordinator.snapshot().alerts.len();
    for poll in 1..=3 {
        let unsigned = FieldError { field: "signature".to_owned(), reason: "is missing".to_owned() };
        node.tell(Event::Offers { poll, offers: vec![(9, Err(unsigned))] });
        let (taken, refused) = settled(&node.settle());
        assert!(taken.is_empty());
        assert_eq!(
            (refused[0].offer_id, refused[0].code, refused[0].reason.as_str()),
            (9, "signature", "signature is missing")
        );
    }
    let told = &node.coordinator.snapshot().alerts;
    assert_eq!((told.len(), told[0].as_str()), (alerts + 1, "refused an assignment: its signature is missing"));
}

#[test]
fn the_same_offer_again_is_confirmed_and_starts_nothing() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    let effects = node.offer(vec![offer("a", GIB)]);
    assert_eq!(settled(&effects).0, [1]);
    assert!(started(&effects).is_empty());
}

#[test]
fn an_attempt_that_is_over_is_not_run_again() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    node.finish("a", Outcome::Succeeded);
    node.tell(Event::Task(key("a"), TaskNews::Cleaned(None)));
    node.tell(Event::Delivered(key("a")));
    node.settle();
    assert_eq!(settled(&node.offer(vec![offer("a", GIB)])).1[0].code, "stale");
    assert_eq!(node.coordinator.snapshot().history.len(), 1);
}

#[test]
fn what_was_over_before_a_restart_is_not_run_again() {
    let mut node = Node::new(Vec::new());
    node.coordinator.remember_over([key("a"), key("newer")]);
    assert_eq!(settled(&node.offer(vec![offer("a", GIB)])).1[0].code, "stale");
}

#[test]
fn an_older_attempt_is_refused() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![Offer { attempt: 2, ..offer("a", GIB) }]);
    assert_eq!(settled(&node.offer(vec![offer("a", GIB)])).1[0].code, "stale");
    node.coordinator.remember_over([AttemptKey { attempt: 2, ..key("b") }]);
    assert_eq!(settled(&node.offer(vec![offer("b", GIB)])).1[0].code, "stale", "the newer one is over");
}

#[test]
fn each_attempt_ends_in_one_final_report_whoever_wins() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    let mut all = node.finish("a", Outcome::Succeeded);
    node.tell(Event::Cancel { key: key("a"), reason: String::new(), is_superseded: false });
    all.extend(node.settle());
    all.extend(node.finish("a", Outcome::Cancelled));
    assert_eq!(finals(&all), [Outcome::Succeeded]);
    let answers =
        all.iter().filter(|effect| matches!(effect, Effect::AnswerCancel { state: CancelState::AlreadyOver, .. }));
    assert_eq!(answers.count(), 1);
}

#[test]
fn a_waiting_attempt_is_cancelled_without_a_container() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", 2 * GIB), offer("b", GIB)]);
    node.tell(Event::Cancel { key: key("b"), reason: "no longer needed".to_owned(), is_superseded: false });
    assert_eq!(finals(&node.settle()), [Outcome::Cancelled]);
}

#[test]
fn a_stop_order_follows_a_start_that_is_still_gated() {
    let mut node = Node::new(Vec::new());
    node.send_offers(vec![offer("a", GIB)]);
    node.tell(Event::Durable(1));
    node.tell(Event::Cancel { key: key("a"), reason: String::new(), is_superseded: false });
    let effects = node.settle();
    let position = |wanted: fn(&Effect) -> bool| effects.iter().position(wanted).unwrap();
    let start = position(|effect| matches!(effect, Effect::Start { .. }));
    let stop = position(|effect| matches!(effect, Effect::SetDesired { desired, .. } if desired.stop.is_some()));
    assert!(start < stop, "{effects:?}");
}

#[test]
fn a_failed_commit_refuses_the_offer_and_degrades_the_node_until_it_heals() {
    let mut node = Node::new(Vec::new());
    node.send_offers(vec![offer("a", GIB)]);
    node.coordinator.take_effects();
    node.tell(Event::CommitFailed { ticket: 1, reason: "no space".to_owned() });
    let effects = node.coordinator.take_effects();
    assert_eq!(settled(&effects).1[0].code, "storage");
    assert_eq!(node.coordinator.snapshot().state, NodeState::Degraded);
    assert!(node.coordinator.snapshot().attempts.is_empty());
    node.tell(Event::StoreTrouble(None));
    assert_eq!(settled(&node.offer(vec![offer("a", GIB)])).0, [1]);
}

#[test]
fn a_final_report_that_could_not_be_written_is_tried_again_before_anything_is_cleaned() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    node.tell(Event::Task(key("a"), TaskNews::Finished(Box::new(FinalReport::without_run(Outcome::Succeeded, "")))));
    let effects = node.coordinator.take_effects();
    let Some(Effect::Commit { ticket, .. }) = effects.last() else { panic!("{effects:?}") };
    node.tell(Event::CommitFailed { ticket: *ticket, reason: "no space".to_owned() });
    assert!(node.coordinator.take_effects().is_empty(), "nothing may be cleaned");
    node.tell(Event::Tick);
    let effects = node.settle();
    assert_eq!(finals(&effects), [Outcome::Succeeded]);
    assert!(effects.iter().any(|e| matches!(e, Effect::SetDesired { desired, .. } if desired.may_clean)));
}

#[test]
fn without_an_engine_it_is_degraded_takes_nothing_and_recovers() {
    let mut node = Node::new(Vec::new());
    node.tell(Event::Engine(EngineView { detail: "no socket".to_owned(), ..EngineView::default() }));
    let snapshot = node.coordinator.snapshot();
    assert_eq!(
        (snapshot.state, snapshot.state_reason.as_str(), snapshot.free.slots),
        (NodeState::Degraded, "no socket", 0)
    );
    assert_eq!(settled(&node.offer(vec![offer("a", GIB)])).1[0].code, "draining");
    node.tell(Event::Engine(EngineView { is_usable: true, ..EngineView::default() }));
    assert_eq!(started(&node.offer(vec![offer("a", GIB)])), ["a"]);
}

#[test]
fn exclusive_tasks_stop_at_the_end_of_the_lease_and_others_go_on() {
    let mut node = Node::new(Vec::new());
    let exclusive = Offer { at_lease_end: "stop".to_owned(), ..offer("exclusive", GIB / 2) };
    node.offer(vec![exclusive, offer("patient", GIB / 2)]);
    node.now = Duration::from_secs(119);
    node.tell(Event::Tick);
    assert!(node.settle().is_empty());
    node.now = Duration::from_secs(121);
    node.tell(Event::Tick);
    let stopped = node.settle().into_iter().filter_map(|effect| match effect {
        Effect::SetDesired { key, desired } => Some((key.task.to_string(), desired.stop.unwrap().outcome)),
        _ => None,
    });
    assert_eq!(stopped.collect::<Vec<_>>(), [("exclusive".to_owned(), Outcome::NodeFault)]);
}

#[test]
fn what_was_held_at_a_restart_is_adopted_queued_or_only_delivered() {
    let spec = |task: &str| TaskSpec::check(&offer(task, GIB / 4), &SpecDefaults::default()).unwrap();
    let held =
        |task: &str, phase, report| Held { spec: spec(task), phase, marks: Marks::default(), report, logs: Vec::new() };
    let ended = Some(FinalReport::without_run(Outcome::Failed, "x"));
    let mut node = Node::new(vec![
        held("running", Phase::Running, None),
        held("waiting", Phase::Received, None),
        held("ended", Phase::Reporting, ended),
    ]);
    let adopted = node.settle().into_iter().filter_map(|effect| match effect {
        Effect::Start { spec, is_adoption, .. } => Some((spec.key.task.to_string(), is_adoption)),
        _ => None,
    });
    assert_eq!(adopted.collect::<Vec<_>>(), [("running".to_owned(), true), ("waiting".to_owned(), false)]);
    node.tell(Event::Delivered(key("ended")));
    assert_eq!(node.coordinator.snapshot().attempts.len(), 2);
}

#[test]
fn shutdown_stops_leaves_or_waits_as_the_owner_chose_and_exits_once() {
    for mode in [ShutdownMode::Stop, ShutdownMode::Finish, ShutdownMode::Leave] {
        let mut node = Node::new(Vec::new());
        node.offer(vec![offer("a", GIB)]);
        node.tell(Event::Shutdown(mode));
        let effects = node.settle();
        let desired = effects.iter().find_map(|effect| match effect {
            Effect::SetDesired { desired, .. } => Some(desired.clone()),
            _ => None,
        });
        let desired = desired.unwrap();
        assert_eq!(desired.stop.is_some(), mode == ShutdownMode::Stop);
        assert_eq!(desired.must_leave, mode == ShutdownMode::Leave);
        assert!(!effects.contains(&Effect::Exit));
        assert_eq!(settled(&node.offer(vec![offer("late", GIB)])).1[0].code, "draining");
        node.finish("a", Outcome::Preempted);
        node.tell(Event::Task(key("a"), TaskNews::Cleaned(None)));
        assert_eq!(node.settle().iter().filter(|effect| **effect == Effect::Exit).count(), 1, "{mode:?}");
    }
}

#[test]
fn the_owner_pauses_drains_and_stops() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    node.tell(Event::Owner(Action::Pause));
    let effects = node.settle();
    assert!(matches!(&effects[..], [Effect::SetDesired { desired, .. }] if desired.is_paused), "{effects:?}");
    assert_eq!(node.coordinator.snapshot().state, NodeState::Paused);
    node.tell(Event::Owner(Action::Resume));
    node.tell(Event::Owner(Action::Drain));
    assert_eq!(node.coordinator.snapshot().state, NodeState::Draining);
    node.tell(Event::Owner(Action::StopTask(key("a"))));
    let effects = node.settle();
    let is_told = |e: &Effect| matches!(e, Effect::AnswerCancel { state: CancelState::StoppedByOwner, .. });
    assert!(effects.iter().any(is_told), "{effects:?}");
}

#[test]
fn trust_scales_what_is_offered() {
    let mut node = Node::new(Vec::new());
    node.tell(Event::MasterHeard { lease: None, trust_percent: Some(50) });
    let free = node.coordinator.snapshot().free;
    assert_eq!((free.cpu_millis, free.memory_bytes, free.slots), (1_000, 1 << 30, 2));
}

/// Makes the commit that was last asked for fail.
fn fail_last(node: &mut Node) {
    let effects = node.coordinator.take_effects();
    let mut tickets = effects.iter().filter_map(|effect| match effect {
        Effect::Commit { ticket, .. } => Some(*ticket),
        _ => None,
    });
    let ticket = tickets.next_back().expect("nothing was to be written");
    node.tell(Event::CommitFailed { ticket, reason: "no space".to_owned() });
}

fn desired_of(effects: &[Effect]) -> Vec<&hivemind_worker::node::order::Desired> {
    let desired = effects.iter().filter_map(|effect| match effect {
        Effect::SetDesired { desired, .. } => Some(desired),
        _ => None,
    });
    desired.collect()
}

fn kept_marks(effects: &[Effect]) -> Vec<&Marks> {
    let records = effects.iter().filter_map(|effect| match effect {
        Effect::Commit { records, .. } => Some(records),
        _ => None,
    });
    let marks = records.flatten().filter_map(|record| match record {
        Record::Marks { marks, .. } => Some(marks),
        _ => None,
    });
    marks.collect()
}

#[test]
fn nothing_is_cleaned_before_the_report_is_kept_whatever_else_is_wished() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    node.tell(Event::Task(key("a"), TaskNews::Finished(Box::new(FinalReport::without_run(Outcome::Succeeded, "")))));
    node.tell(Event::EngineNews(key("a")));
    fail_last(&mut node);
    node.tell(Event::EngineNews(key("a")));
    let effects = node.coordinator.take_effects();
    assert!(desired_of(&effects).iter().all(|desired| !desired.may_clean), "{effects:?}");
    node.tell(Event::Tick);
    assert!(desired_of(&node.settle()).iter().any(|desired| desired.may_clean));
}

#[test]
fn a_cancellation_acts_while_another_commit_waits_for_the_disk() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB / 2), offer("b", GIB / 2)]);
    node.tell(Event::Task(key("a"), TaskNews::Finished(Box::new(FinalReport::without_run(Outcome::Succeeded, "")))));
    node.coordinator.take_effects();
    let cancel = || Event::Cancel { key: key("b"), reason: String::new(), is_superseded: false };
    node.tell(cancel());
    node.tell(cancel());
    let effects = node.coordinator.take_effects();
    assert!(desired_of(&effects).iter().any(|desired| desired.stop.is_some()), "{effects:?}");
    let is_answer = |effect: &&Effect| matches!(effect, Effect::AnswerCancel { .. });
    assert_eq!(effects.iter().filter(is_answer).count(), 0, "the order is not kept yet");
    node.tell(Event::Durable(99));
    assert_eq!(node.settle().iter().filter(is_answer).count(), 1);
}

#[test]
fn an_order_to_stop_outlives_the_process() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    node.tell(Event::Cancel { key: key("a"), reason: "c".to_owned(), is_superseded: false });
    // What the thread tells of its own facts does not undo it.
    node.tell(Event::Task(key("a"), TaskNews::Marks(Marks { paused_ms: 1, ..Marks::default() })));
    let marks = kept_marks(&node.settle()).pop().unwrap().clone();
    assert_eq!(marks.paused_ms, 1);

    let spec = TaskSpec::check(&offer("a", GIB), &SpecDefaults::default()).unwrap();
    let mut node = Node::new(vec![Held { spec, phase: Phase::Running, marks, report: None, logs: Vec::new() }]);
    let effects = node.settle();
    assert_eq!(started(&effects), ["a"]);
    assert_eq!(desired_of(&effects)[0].stop.as_ref().unwrap().outcome, Outcome::Cancelled);
}

#[test]
fn a_task_is_ended_only_when_the_reason_is_kept() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    let ending = Some((Outcome::TimedOut, "ran too long".to_owned()));
    node.tell(Event::Task(key("a"), TaskNews::Marks(Marks { ending: ending.clone(), ..Marks::default() })));
    let effects = node.coordinator.take_effects();
    assert_eq!(kept_marks(&effects)[0].ending, ending);
    assert!(desired_of(&effects).iter().all(|desired| !desired.is_ending_kept), "{effects:?}");
    let Some(Effect::Commit { ticket, .. }) = effects.last() else { panic!("{effects:?}") };
    node.tell(Event::Durable(*ticket));
    assert!(desired_of(&node.coordinator.take_effects())[0].is_ending_kept);
}

#[test]
fn an_attempt_held_twice_is_not_confirmed_by_the_commit_of_something_else() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("other", GIB / 2)]);
    node.send_offers(vec![offer("a", GIB / 2)]);
    let effects = node.coordinator.take_effects();
    let [Effect::Commit { ticket: take, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    node.tell(Event::Task(key("other"), TaskNews::Note("n".to_owned())));
    node.send_offers(vec![offer("a", GIB / 2)]);
    node.tell(Event::CommitFailed { ticket: *take, reason: "no space".to_owned() });
    node.tell(Event::Durable(take + 1));
    let effects = node.settle();
    let polls = effects.iter().filter_map(|effect| match effect {
        Effect::SettlePoll { taken, refused, .. } => Some((taken.len(), refused.len())),
        _ => None,
    });
    assert_eq!(polls.collect::<Vec<_>>(), [(0, 1), (0, 1)]);
}

#[test]
fn a_running_attempt_survives_a_failed_commit_while_it_is_offered_again() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB / 2)]);
    node.tell(Event::Task(key("a"), TaskNews::Note("n".to_owned())));
    node.send_offers(vec![offer("a", GIB / 2)]);
    fail_last(&mut node);
    assert_eq!(node.coordinator.snapshot().attempts.len(), 1);
}

#[test]
fn a_stop_ends_in_time_whatever_hangs() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    node.tell(Event::Shutdown(ShutdownMode::Stop));
    node.now = Duration::from_secs(24);
    node.tell(Event::Tick);
    assert!(desired_of(&node.settle()).iter().all(|desired| !desired.must_leave));
    node.now = Duration::from_secs(25);
    node.tell(Event::Tick);
    assert!(desired_of(&node.settle()).iter().any(|desired| desired.must_leave));
    node.tell(Event::Task(key("a"), TaskNews::Left));
    assert!(node.settle().contains(&Effect::Exit));
}

#[test]
fn a_broken_disk_does_not_hold_up_the_exit() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    node.tell(Event::Task(key("a"), TaskNews::Note("n".to_owned())));
    fail_last(&mut node);
    node.tell(Event::Shutdown(ShutdownMode::Leave));
    node.tell(Event::Task(key("a"), TaskNews::Left));
    assert!(node.coordinator.take_effects().contains(&Effect::Exit));
}

#[test]
fn a_start_that_is_not_kept_at_shutdown_is_the_next_starts() {
    let mut node = Node::new(Vec::new());
    node.send_offers(vec![offer("a", GIB)]);
    node.tell(Event::Durable(1));
    node.tell(Event::Shutdown(ShutdownMode::Leave));
    let effects = node.settle();
    assert!(started(&effects).is_empty() && effects.contains(&Effect::Exit), "{effects:?}");
}

#[test]
fn what_no_longer_fits_at_all_holds_up_nobody() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", 2 * GIB), offer("large", 2 * GIB), offer("small", GIB / 2)]);
    node.tell(Event::MasterHeard { lease: None, trust_percent: Some(50) });
    node.finish("a", Outcome::Succeeded);
    node.tell(Event::Task(key("a"), TaskNews::Cleaned(None)));
    assert_eq!(started(&node.settle()), ["small"]);
}

#[test]
fn an_attempt_that_is_delivered_is_refused_also_while_its_thread_still_cleans_up() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    node.finish("a", Outcome::Succeeded);
    assert_eq!(settled(&node.offer(vec![offer("a", GIB)])).0, [1], "its report is still to come");
    node.tell(Event::Delivered(key("a")));
    assert_eq!(settled(&node.offer(vec![offer("a", GIB)])).1[0].code, "stale");
}

#[test]
fn marks_that_are_tried_again_do_not_undo_newer_ones() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    let mark = |paused_ms| Event::Task(key("a"), TaskNews::Marks(Marks { paused_ms, ..Marks::default() }));
    node.tell(mark(1));
    fail_last(&mut node);
    node.tell(mark(2));
    node.settle();
    node.tell(Event::Tick);
    assert_eq!(kept_marks(&node.settle()).iter().map(|marks| marks.paused_ms).collect::<Vec<_>>(), [2]);
}

#[test]
fn of_an_attempt_that_could_not_be_taken_nothing_is_written_when_it_is_taken_anew() {
    let mut node = Node::new(Vec::new());
    node.send_offers(vec![offer("a", GIB)]);
    node.tell(Event::Cancel { key: key("a"), reason: String::new(), is_superseded: false });
    node.coordinator.take_effects();
    for ticket in [1, 2] {
        node.tell(Event::CommitFailed { ticket, reason: "no space".to_owned() });
    }
    node.tell(Event::StoreTrouble(None));
    let effects = node.settle();
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::AnswerCancel { .. })), "{effects:?}");
    assert_eq!(settled(&node.offer(vec![offer("a", GIB)])).0, [1]);
    node.tell(Event::Tick);
    assert!(finals(&node.settle()).is_empty());
}

#[test]
fn a_container_is_not_left_over_before_the_end_of_its_attempt_is_kept() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    node.tell(Event::Task(key("a"), TaskNews::Finished(Box::new(FinalReport::without_run(Outcome::Succeeded, "")))));
    node.tell(Event::Task(key("a"), TaskNews::Left));
    assert!(node.coordinator.held().contains(&key("a")));
    fail_last(&mut node);
    assert!(node.coordinator.held().contains(&key("a")));
    node.tell(Event::Tick);
    node.settle();
    assert!(node.coordinator.held().is_empty());
}

#[test]
fn no_answer_to_a_cancellation_tells_of_an_order_or_an_end_that_could_be_lost() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("running", GIB), offer("waiting", 2 * GIB)]);
    let cancel = || Event::Cancel { key: key("waiting"), reason: String::new(), is_superseded: false };
    node.tell(cancel());
    node.tell(cancel());
    node.tell(Event::Owner(Action::StopTask(key("running"))));
    let answers =
        |effects: Vec<Effect>| effects.iter().filter(|effect| matches!(effect, Effect::AnswerCancel { .. })).count();
    fail_last(&mut node);
    node.tell(Event::Task(key("running"), TaskNews::Note("n".to_owned())));
    node.tell(Event::Cancel { key: key("running"), reason: String::new(), is_superseded: false });
    assert_eq!(answers(node.settle()), 1, "of the one that waited the end is kept now");
    node.tell(Event::Tick);
    assert_eq!(answers(node.settle()), 1, "and the order to stop the other one");
}

#[test]
fn a_full_disk_and_a_full_memory_are_alerts_with_beginning_and_end() {
    let mut node = Node::new(Vec::new());
    node.offer(vec![offer("a", GIB)]);
    let sample =
        |free: u64| HostSample { disk_total_bytes: Some(1_000), disk_free_bytes: Some(free), ..HostSample::default() };
    let look = |node: &mut Node, second: u64, free: u64| {
        node.now = Duration::from_secs(second);
        node.tell(Event::Host(sample(free)));
        let snapshot = node.coordinator.snapshot();
        (snapshot.over_threshold.clone(), snapshot.alerts.first().cloned().unwrap_or_default())
    };
    assert!(look(&mut node, 100, 50).0.is_empty(), "not for a moment's sake");
    let (over, told) = look(&mut node, 160, 50);
    assert_eq!(
        (over, told.as_str()),
        (vec!["disk 95 %".to_owned()], "disk of this machine is at 95 %: the threshold is 90 %")
    );
    look(&mut node, 170, 500);
    let (over, told) = look(&mut node, 230, 500);
    assert_eq!((over, told.as_str()), (Vec::new(), "disk of this machine is at 50 % again, well below 90 %"));

    let usage = Usage { memory_bytes: 1 << 30, ..Usage::default() };
    for _ in 0..2 {
        node.tell(Event::Task(key("a"), TaskNews::Usage(Look { usage, ..Look::default() })));
    }
    let told = "uses 100 % of its memory limit: the threshold is 90 %";
    assert_eq!(node.coordinator.snapshot().alerts[0], format!("a#1: {told}"));
    let told_to_master = node.settle().into_iter().filter(|effect| matches!(effect, Effect::Commit { records, .. }
        if records.iter().any(|record| matches!(record, Record::Event { kind: EventKind::Alert(text), .. } if text == told))));
    assert_eq!(told_to_master.count(), 1);
}
