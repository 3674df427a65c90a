//! Rows 1 to 14 of the fault matrix by chance: a real worker on a scripted engine is killed at moments that nobody chose,
//! some of them right after something that the engine or the master has seen, thousands of times.
//!
//! `HM_SCRIPTED_KILLS` says how often, `HM_SCRIPTED_SEED` with which seed. A seed gives the same tasks and the same choice
//! of moments; threads of three processes are no clockwork, so a failure may need some tries to be seen again.
#![allow(clippy::unwrap_used)]

#[path = "sim_support/dice.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod dice;
mod engine_support;
mod kill_support;
mod node_util;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use dice::Dice;
use kill_support::{Treatment, World};

/// Tasks that are not over, at any time.
const OPEN: usize = 6;
/// A life that is to end some time after its start ends within this.
const SHORT_LIFE_US: u64 = 60_000;
/// One that is to end at a sight ends without it after this.
const MAX_LIFE: Duration = Duration::from_millis(120);
/// After a sight, at the most.
const MAX_DELAY_US: u64 = 3_000;
/// What the engine and the master see, beside the passing of time.
const SIGHTS: [&str; 22] = [
    "pull",
    "volume",
    "create",
    "put",
    "attach",
    "start",
    "inspect",
    "logs",
    "get",
    "kill",
    "removal",
    "removed",
    "volume removed",
    "RegisterNode",
    "offer",
    "confirmation",
    "told running",
    "told collecting",
    "chunk",
    "event",
    "final report",
    "CancelTask",
];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Waits for the moment; what it was.
fn await_moment(world: &World, dice: &mut Dice) -> String {
    let begin = Instant::now();
    if dice.one_in(3) {
        let life = Duration::from_micros(dice.below(SHORT_LIFE_US));
        thread::sleep(life);
        return format!("{life:?} after the start");
    }
    let sight = dice.pick(&SIGHTS).unwrap();
    let (more, delay) = (1 + dice.below(2), Duration::from_micros(dice.below(MAX_DELAY_US)));
    let is_seen = world.sights.wait(sight, world.sights.count(sight) + more, begin + MAX_LIFE);
    thread::sleep(delay);
    if is_seen { sight.to_owned() } else { "nothing seen".to_owned() }
}

#[test]
fn kills_on_a_scripted_engine_lose_and_double_nothing() {
    let (kills, seed) = (number("HM_SCRIPTED_KILLS", 50), number("HM_SCRIPTED_SEED", 1));
    let mut world = World::new("scripted-kills", seed);
    let mut dice = Dice::new(seed);
    let mut moments = BTreeMap::<String, u64>::new();
    let (begin, mut tasks) = (Instant::now(), 0);
    for kill in 1..=kills {
        while world.master.book().open() < OPEN {
            tasks += 1;
            world.submit(&format!("t{tasks}"));
        }
        world.start();
        let moment = await_moment(&world, &mut dice);
        let ended = world.scene.worker.as_mut().unwrap().try_wait().unwrap();
        assert!(ended.is_none(), "HM_SCRIPTED_SEED={seed}, kill {kill}: the worker ended by itself: {ended:?}");
        world.scene.kill_worker();
        let faults = world.faults(Treatment::Killed);
        assert!(faults.is_empty(), "HM_SCRIPTED_SEED={seed}, kill {kill} ({moment}): {faults:#?}");
        *moments.entry(if moment.contains("after") { "a time".to_owned() } else { moment }).or_default() += 1;
    }
    let took = begin.elapsed();
    world.start();
    let faults = world.come_to_rest(Treatment::Killed);
    assert!(faults.is_empty(), "HM_SCRIPTED_SEED={seed}, after {kills} kills: {faults:#?}");
    let book = world.master.book();
    let gaps = book.tasks.values().filter(|record| record.notes().iter().any(|note| note.contains("missing"))).count();
    let doubles: u64 = book.tasks.values().map(|record| record.doubles).sum();
    println!(
        "seed {seed}: {kills} kills in {took:?}, {tasks} tasks, each with one final report; {doubles} pieces came again"
    );
    println!("records that tell of output that is missing: {gaps}; refusals: {:?}", book.refusals);
    println!("killed after: {moments:?}\nseen: {:?}", world.sights.all());
    assert!(book.tasks.values().all(|record| record.report.is_some()) && tasks > OPEN as u64, "too little happened");
}
