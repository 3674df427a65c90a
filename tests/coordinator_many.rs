//! The coordinator with very many tasks, and with very many orders of the same few events.
#![allow(clippy::unwrap_used)]

mod coordinator_support;
#[path = "sim_support/dice.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod dice;

use std::collections::BTreeSet;

use coordinator_support::{GIB, Node, finals, key, offer, settled, started};
use dice::Dice;
use hivemind_worker::coordinator::{Effect, Event};
use hivemind_worker::node::action::Action;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::order::TaskNews;
use hivemind_worker::node::record::{FinalReport, Outcome};

#[test]
fn of_a_thousand_tasks_at_once_those_beyond_the_capacity_are_refused() {
    let mut node = Node::new(Vec::new());
    let many: Vec<Offer> = (0..1_000).map(|number| offer(&format!("t{number}"), GIB / 2)).collect();
    let begin = std::time::Instant::now();
    let effects = node.offer(many);
    println!("decided in {:?}", begin.elapsed());
    let (taken, refused) = settled(&effects);
    assert_eq!(started(&effects).len(), 4, "as many as there are CPUs and memory for");
    assert_eq!((taken.len() + refused.len(), taken.len()), (1_000, 64));
    assert!(refused.iter().all(|refusal| refusal.code == "capacity"), "{:?}", refused[0]);
    assert_eq!(node.coordinator.snapshot().attempts.len(), taken.len());
}

/// Whatever the order of a cancellation, the end, the commits and the delivery: one final report, which stands.
#[test]
fn of_ten_thousand_races_of_cancellation_and_end_each_has_one_report() {
    let mut outcomes = BTreeSet::new();
    for seed in 1..=10_000u64 {
        let mut dice = Dice::new(seed);
        let mut node = Node::new(Vec::new());
        node.send_offers(vec![offer("a", GIB)]);
        let (mut seen, mut tickets, mut is_delivered) = (Vec::new(), Vec::new(), false);
        let mut events: Vec<u64> = vec![0, 0, 1, 2];
        let mut steps = 0;
        loop {
            let effects = node.coordinator.take_effects();
            tickets.extend(effects.iter().filter_map(|effect| match effect {
                Effect::Commit { ticket, .. } => Some(*ticket),
                _ => None,
            }));
            seen.extend(effects);
            steps += 1;
            assert!(steps < 100, "seed {seed} does not end");
            let has_started = !started(&seen).is_empty();
            let has_report = !finals(&seen).is_empty();
            // The store answers in order, and now and then before the next event.
            if !tickets.is_empty() && (events.is_empty() || dice.below(2) == 0) {
                let ticket = tickets.remove(0);
                node.tell(Event::Durable(ticket));
                if has_report && tickets.is_empty() && !is_delivered && dice.below(2) == 0 {
                    is_delivered = true;
                    node.tell(Event::Delivered(key("a")));
                }
                continue;
            }
            if events.is_empty() {
                break;
            }
            let at = usize::try_from(dice.below(events.len() as u64)).unwrap();
            match events[at] {
                // The thread tells its end once it runs, whatever it was told meanwhile.
                1 if !has_started => {
                    if tickets.is_empty() {
                        // Cancelled before anything ran: no thread, no end of it.
                        events.remove(at);
                    }
                    continue;
                }
                1 => {
                    let stop = seen
                        .iter()
                        .any(|effect| matches!(effect, Effect::SetDesired { desired, .. } if desired.stop.is_some()));
                    let outcome = if stop && dice.below(2) == 0 { Outcome::Cancelled } else { Outcome::Succeeded };
                    let report = Box::new(FinalReport::without_run(outcome, ""));
                    node.tell(Event::Task(key("a"), TaskNews::Finished(report)));
                }
                2 => node.tell(Event::Owner(Action::StopTask(key("a")))),
                _ => node.tell(Event::Cancel { key: key("a"), reason: String::new(), is_superseded: false }),
            }
            events.remove(at);
        }
        let reports = finals(&seen);
        assert_eq!(reports.len(), 1, "seed {seed}: {seen:#?}");
        outcomes.insert(reports[0].to_string());
        assert!(is_delivered || node.coordinator.snapshot().attempts.len() == 1, "seed {seed}");
    }
    assert_eq!(outcomes.into_iter().collect::<Vec<_>>(), ["Cancelled", "Succeeded"], "both win now and then");
}
