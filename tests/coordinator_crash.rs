//! What the coordinator does after lives of the worker that ended badly.
#![allow(clippy::unwrap_used)]

mod coordinator_support;

use std::collections::BTreeSet;
use std::time::Duration;

use coordinator_support::{GIB, Node, finals, key, offer, reports, settled, started};
use hivemind_worker::coordinator::{Coordinator, Effect, Event, Held, Past, Record, Settings, ShutdownMode};
use hivemind_worker::node::alerts::Thresholds;
use hivemind_worker::node::id::AttemptKey;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::order::Marks;
use hivemind_worker::node::record::{FinalReport, Outcome, Phase, StreamEnd};
use hivemind_worker::node::resources::Resources;
use hivemind_worker::node::snapshot::{EngineView, NodeState, Snapshot};
use hivemind_worker::node::spec::{SpecDefaults, TaskSpec};

/// What a task has printed before.
const OUTPUT: StreamEnd = StreamEnd { stream: 1, epoch: 2, bytes: 30 };

fn held(task: &str, phase: Phase, crashes: u32) -> Held {
    let spec = TaskSpec::check(&offer(task, GIB), &SpecDefaults::default()).unwrap();
    Held { spec, phase, marks: Marks { crashes, ..Marks::default() }, report: None, logs: vec![OUTPUT] }
}

fn node_after(past: Past, held: Vec<Held>) -> (Node, Vec<Effect>) {
    let lent = Resources { cpu_millis: 4_000, memory_bytes: 8 << 30, disk_bytes: 10 << 30, slots: 8 };
    let settings = Settings { lent, defaults: SpecDefaults::default(), alerts: Thresholds::default() };
    let coordinator = Coordinator::after(past, settings, Snapshot::default(), held, Duration::ZERO, 0);
    let mut node = Node { coordinator, now: Duration::ZERO, polls: 0 };
    let effects = node.settle();
    (node, effects)
}

fn marks_of<'a>(effects: &'a [Effect], task: &str) -> Option<&'a Marks> {
    let records = effects.iter().filter_map(|effect| match effect {
        Effect::Commit { records, .. } => Some(records),
        _ => None,
    });
    records.flatten().rev().find_map(|record| match record {
        Record::Marks { key, marks } if key.task.as_str() == task => Some(marks),
        _ => None,
    })
}

#[test]
fn an_attempt_that_was_there_at_three_crashes_is_given_up_and_others_go_on() {
    let past = Past { has_crashed: true, crash_limit: 3, safe_because: None };
    let all = || {
        vec![
            held("third", Phase::Running, 2),
            held("second", Phase::Running, 1),
            held("waits", Phase::Queued, 0),
            held("fetches", Phase::Preparing, 2),
        ]
    };
    let lent = Resources { cpu_millis: 4_000, memory_bytes: 8 << 30, disk_bytes: 10 << 30, slots: 8 };
    let settings = Settings { lent, defaults: SpecDefaults::default(), alerts: Thresholds::default() };
    let unsettled = Coordinator::after(past.clone(), settings, Snapshot::default(), all(), Duration::ZERO, 0);
    let keys = |held: BTreeSet<AttemptKey>| held.iter().map(|key| key.task.to_string()).collect::<Vec<_>>();
    assert_eq!(keys(unsettled.held()), ["second", "waits"], "what the others have at the engine is nobody's at once");
    let (node, effects) = node_after(past, all());
    assert_eq!(finals(&effects), [Outcome::NodeFault, Outcome::NodeFault]);
    assert!(reports(&effects).all(|report| report.streams == [OUTPUT]), "its output is on its way as it is");
    assert_eq!(started(&effects), ["second"], "nothing touches the others");
    assert_eq!(marks_of(&effects, "second").unwrap().crashes, 2);
    assert_eq!(marks_of(&effects, "waits"), None, "what has not begun can't be the reason");
    assert!(node.coordinator.snapshot().alerts.iter().any(|alert| alert.contains("third#1: given up")));

    let (_, effects) = node_after(Past { crash_limit: 3, ..Past::default() }, all());
    assert!(finals(&effects).is_empty(), "an orderly end counts for nothing");
    assert_eq!(started(&effects).len(), 3);
}

#[test]
fn in_the_safe_state_it_delivers_and_touches_nothing() {
    let past = Past { has_crashed: true, crash_limit: 3, safe_because: Some("five crashes".to_owned()) };
    let exclusive = {
        let offer = Offer { at_lease_end: "stop".to_owned(), ..offer("exclusive", GIB) };
        let spec = TaskSpec::check(&offer, &SpecDefaults::default()).unwrap();
        Held { spec, ..held("exclusive", Phase::Running, 0) }
    };
    let over =
        Held { report: Some(FinalReport::without_run(Outcome::Succeeded, "")), ..held("over", Phase::Reporting, 0) };
    let (mut node, effects) =
        node_after(past, vec![held("runs", Phase::Running, 0), exclusive, held("waits", Phase::Queued, 0), over]);
    assert!(started(&effects).is_empty() && finals(&effects).is_empty());
    node.tell(Event::Engine(EngineView { is_usable: true, ..EngineView::default() }));
    let (state, reason) = (node.coordinator.snapshot().state, node.coordinator.snapshot().state_reason);
    assert_eq!((state, reason.as_str()), (NodeState::Degraded, "safe state: five crashes"));
    let effects = node.offer(vec![offer("new", GIB)]);
    assert!(started(&effects).is_empty(), "not what waited either");
    assert_eq!(settled(&effects).1[0].reason, "the node is degraded: safe state: five crashes");
    // What may have a container is only marked: the next start stops it.
    node.tell(Event::Cancel { key: key("runs"), reason: "enough".to_owned(), is_superseded: false });
    node.now = Duration::from_secs(3_600);
    node.tell(Event::Tick);
    let effects = node.settle();
    assert_eq!(marks_of(&effects, "runs").unwrap().stop.as_ref().unwrap().outcome, Outcome::Cancelled);
    assert_eq!(marks_of(&effects, "exclusive").unwrap().stop.as_ref().unwrap().outcome, Outcome::NodeFault);
    assert!(finals(&effects).is_empty(), "{effects:?}");
    node.tell(Event::Tick);
    assert!(node.settle().is_empty(), "once is enough");
    node.tell(Event::Delivered(key("over")));
    node.tell(Event::Shutdown(ShutdownMode::Stop));
    assert_eq!(node.settle(), [Effect::Exit], "nothing holds it up, and nobody is told to stop");
}
