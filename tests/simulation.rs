//! The core in a simulated world, in the manner of TigerBeetle: many seeds, each a history of its own in which the process
//! dies, calls get lost, disk and engine fail and clocks jump; after each move what must hold is checked, and when the
//! faults are over, that all comes right. What is a model and what is not says `sim_support`.
//!
//! `HM_SIM_SEEDS` sets how many seeds (5,000 else), `HM_SIM_FIRST` the first one,
//! `HM_SIM_LINES` how many lines of a broken one are shown.
#![allow(clippy::unwrap_used)]

mod sim_support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use sim_support::World;

/// Less than a minute on two cores, without optimisation.
const SEEDS: u64 = 5_000;
/// Of the history of a seed that fails, the last ones are shown.
const LINES: u64 = 60;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Whether the history of this seed breaks no rule.
fn is_fine(seed: u64) -> bool {
    catch_unwind(|| World::new(seed, 0).run()).is_ok()
}

/// The same history again, told.
fn show(seed: u64) {
    let lines = setting("HM_SIM_LINES").unwrap_or(LINES);
    let mut world = World::new(seed, usize::try_from(lines).unwrap());
    let is_same = catch_unwind(AssertUnwindSafe(|| world.run())).is_err();
    for line in world.trace {
        println!("{line}");
    }
    assert!(is_same, "the history of seed {seed} is not the same a second time");
    println!("replay: HM_SIM_FIRST={seed} HM_SIM_SEEDS=1 cargo test --test simulation");
}

#[test]
fn histories_have_in_them_what_they_are_about() {
    let mut seen = BTreeMap::<String, u64>::new();
    for seed in 1..=500 {
        let mut world = World::new(seed, 0);
        world.run();
        for (what, count) in world.ledger.sights {
            *seen.entry(what).or_default() += count;
        }
    }
    println!("{seen:#?}");
    let wanted = [
        "adopted",
        "cancel: AlreadyOver",
        "cancel: Stopping",
        "cancel: StoppedByOwner",
        "cancel: Unknown",
        "Cancelled",
        "crash",
        "delivered again",
        "Failed",
        "it does not end: forced",
        "new disk",
        "NodeFault",
        "orderly end",
        "Preempted",
        "reboot",
        "refused: capacity",
        "refused: conflict",
        "refused: draining",
        "refused: invalid",
        "refused: stale",
        "refused: storage",
        "Rejected",
        "Succeeded",
        "Superseded",
        "swept",
        "TimedOut",
    ];
    for what in wanted {
        assert!(seen.get(what).is_some_and(|count| *count >= 10), "{what}: {:?}", seen.get(what));
    }
}

#[test]
fn no_history_breaks_a_rule() {
    let first = setting("HM_SIM_FIRST").unwrap_or(1);
    let end = first + setting("HM_SIM_SEEDS").unwrap_or(SEEDS);
    let has_failed = AtomicBool::new(false);
    let threads = u64::try_from(thread::available_parallelism().map_or(1, usize::from)).unwrap();
    let search = |offset: u64| {
        let mut seeds = (first + offset..end).step_by(usize::try_from(threads).unwrap());
        let broken = seeds.find(|seed| has_failed.load(Ordering::Relaxed) || !is_fine(*seed))?;
        (!has_failed.swap(true, Ordering::Relaxed)).then_some(broken)
    };
    let broken = thread::scope(|scope| {
        let searches: Vec<_> = (0..threads).map(|offset| scope.spawn(move || search(offset))).collect();
        searches.into_iter().find_map(|search| search.join().unwrap())
    });
    if let Some(seed) = broken {
        show(seed);
        panic!("seed {seed} breaks a rule");
    }
}
