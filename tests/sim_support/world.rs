//! Who moves next, how much time passes, and which fault strikes. First chaos, then calm: in it all must come right.

use std::collections::VecDeque;
use std::time::Duration;

use hivemind_worker::coordinator::{Event, ShutdownMode};
use hivemind_worker::node::action::Action;
use hivemind_worker::node::record::Phase;
use hivemind_worker::node::snapshot::NodeState;

use super::dice::Dice;
use super::driver::Process;
use super::engine::Engine;
use super::ledger::Ledger;
use super::master::Master;
use super::store::{Health, Store};

/// A line of the trace shows so much.
const MAX_LINE: usize = 240;
/// Simulated seconds within which everything is delivered and gone once the faults are over.
const CALM_SECONDS: u64 = 180;
const YEAR_MS: u64 = 365 * 86_400_000;

/// The clocks that the worker reads.
pub struct Clock {
    /// Counts suspend, begins anew with each boot.
    pub boot: Duration,
    pub boot_id: u64,
    /// May say anything.
    pub wall_ms: u64,
}

/// How often each fault strikes, drawn for each seed: some histories have none of a kind, and get far without it.
pub struct Faults {
    pub link_percent: u64,
    /// In a thousand moves, these three.
    crash: u64,
    store: u64,
    engine: u64,
    clock: u64,
    absence: u64,
    shutdown: u64,
    forgets: bool,
}

pub struct World {
    pub dice: Dice,
    pub clock: Clock,
    pub faults: Faults,
    pub store: Store,
    pub engine: Engine,
    pub master: Master,
    pub ledger: Ledger,
    pub process: Process,
    pub is_chaotic: bool,
    moves: u64,
    /// The last lines, at most so many.
    pub trace: VecDeque<String>,
    max_trace: usize,
}

impl Faults {
    fn draw(dice: &mut Dice) -> Self {
        Self {
            link_percent: dice.pick(&[0, 3, 10, 25]).unwrap(),
            crash: dice.pick(&[0, 5, 15, 40]).unwrap(),
            store: dice.pick(&[0, 0, 10, 30]).unwrap(),
            engine: dice.pick(&[0, 0, 10, 30]).unwrap(),
            clock: dice.pick(&[0, 5, 20]).unwrap(),
            absence: dice.pick(&[0, 5, 15]).unwrap(),
            shutdown: dice.pick(&[0, 5, 15]).unwrap(),
            forgets: dice.one_in(3),
        }
    }

    fn none() -> Self {
        Self { link_percent: 0, crash: 0, store: 0, engine: 0, clock: 0, absence: 0, shutdown: 0, forgets: false }
    }
}

impl World {
    pub fn new(seed: u64, max_trace: usize) -> Self {
        let mut dice = Dice::new(seed);
        let (store, boot, wall_ms) = (Store::new(), Duration::from_secs(100), 50 * YEAR_MS);
        Self {
            faults: Faults::draw(&mut dice),
            dice,
            clock: Clock { boot, boot_id: 1, wall_ms },
            process: Process::start(&store, boot, wall_ms),
            store,
            engine: Engine::default(),
            master: Master::new(),
            ledger: Ledger::default(),
            is_chaotic: true,
            moves: 0,
            trace: VecDeque::new(),
            max_trace,
        }
    }

    /// A whole history. A broken rule is a panic.
    pub fn run(&mut self) {
        for _ in 0..200 + self.dice.below(500) {
            self.moves += 1;
            self.pass_time();
            self.strike();
            self.make_move();
            self.ledger.check_confirmed(&self.store.disk);
        }
        self.calm_down();
        self.check_all_done();
    }

    pub fn log(&mut self, line: impl FnOnce() -> String) {
        if self.max_trace == 0 {
            return;
        }
        let line: String = line().chars().take(MAX_LINE).collect();
        self.trace.push_back(format!("{:4} {:9.3} s  {line}", self.moves, self.clock.boot.as_secs_f64()));
        if self.trace.len() > self.max_trace {
            self.trace.pop_front();
        }
    }

    // ---- chaos ------------------------------------------------------------------------------------------------

    fn make_move(&mut self) {
        match self.dice.below(100) {
            0..=34 => self.drive(),
            35..=49 => self.store.turn(&mut self.dice, &self.ledger),
            50..=66 => self.step_task(),
            67..=78 => self.talk(),
            79..=86 => self.submit(),
            87..=91 => self.watch_engine(),
            92 | 93 => self.engine.work(&mut self.dice),
            94 => self.owner_acts(),
            _ => self.master.whim(&mut self.dice, self.faults.forgets),
        }
    }

    fn pass_time(&mut self) {
        let passed = if self.dice.one_in(40) { self.dice.below(20_000) } else { self.dice.below(200) };
        self.clock.boot += Duration::from_millis(passed);
        self.clock.wall_ms += passed;
        if self.process.ends_at.is_some_and(|at| self.clock.boot >= at) {
            self.restart("it does not end: forced");
        }
    }

    fn strikes(&mut self, in_a_thousand: u64) -> bool {
        self.dice.below(1_000) < in_a_thousand
    }

    fn strike(&mut self) {
        if self.strikes(self.faults.crash) {
            self.restart("crash");
        }
        if self.strikes(self.faults.crash / 8) {
            self.engine.kill_all();
            self.clock = Clock { boot: Duration::from_secs(9), boot_id: self.clock.boot_id + 1, ..self.clock };
            self.restart("reboot");
        }
        if self.strikes(self.faults.store) {
            let health = self.dice.pick(&[Health::Stalled, Health::Failing, Health::Broken]).unwrap();
            self.log(|| format!("the store is {health:?}"));
            self.store.fall_ill(health);
        } else if self.dice.one_in(30) {
            self.store.heal();
        }
        if self.strikes(self.faults.engine) {
            self.log(|| "the engine goes away".to_owned());
            self.engine.is_away = true;
            match self.dice.one_in(3) {
                true => self.engine.kill_all(),
                false => self.engine.lives += 1,
            }
        } else if self.dice.one_in(30) {
            self.engine.is_away = false;
        }
        if self.strikes(self.faults.absence) {
            self.log(|| "the master goes away".to_owned());
            self.master.is_away = true;
        } else if self.dice.one_in(40) {
            self.master.is_away = false;
        }
        if self.strikes(self.faults.clock) {
            self.clock.wall_ms = self.dice.below(100 * YEAR_MS);
            if self.dice.one_in(2) {
                self.clock.boot += Duration::from_secs(self.dice.below(20_000));
            }
        }
        if self.strikes(self.faults.shutdown) {
            let mode = self.dice.pick(&[ShutdownMode::Stop, ShutdownMode::Finish, ShutdownMode::Leave]).unwrap();
            self.process.events.push_back(Event::Shutdown(mode));
        }
    }

    fn owner_acts(&mut self) {
        let held = self.process.coordinator.held().into_iter().collect::<Vec<_>>();
        let action = match (self.dice.below(8), self.dice.pick(&held)) {
            (0, _) => Action::Pause,
            (1, _) => Action::Drain,
            (2, Some(key)) => Action::StopTask(key),
            _ => Action::Resume,
        };
        self.process.events.push_back(Event::Owner(action));
    }

    // ---- calm -------------------------------------------------------------------------------------------------

    /// The faults stop. A broken disk is changed, and the worker started again, by its owner.
    fn calm_down(&mut self) {
        self.is_chaotic = false;
        self.faults = Faults::none();
        self.log(|| "==== calm ====".to_owned());
        if self.store.health == Health::Broken {
            self.restart("new disk");
        }
        self.store.heal();
        self.engine.is_away = false;
        self.master.calm_down();
    }

    /// Everybody gets a turn.
    fn pass_second(&mut self) {
        self.moves += 1;
        self.clock.boot += Duration::from_secs(1);
        if self.process.ends_at.is_some_and(|at| self.clock.boot >= at) {
            self.restart("it does not end: forced");
        }
        // A drain the master ends; a pause only the owner, also one that a shutdown waits for.
        let snapshot = self.process.coordinator.snapshot();
        if snapshot.state == NodeState::Paused || snapshot.attempts.iter().any(|held| held.phase == Phase::Paused) {
            self.process.events.push_back(Event::Owner(Action::Resume));
        }
        self.watch_engine();
        self.engine.work(&mut self.dice);
        for _ in 0..8 {
            self.step_all_tasks();
            self.talk();
            self.submit();
            self.drive();
            self.store.turn(&mut self.dice, &self.ledger);
        }
        self.ledger.check_confirmed(&self.store.disk);
    }

    fn is_done(&self) -> bool {
        self.master.waits_for(&self.ledger).is_empty()
            && self.store.disk.duties.is_empty()
            && self.store.is_idle()
            && self.engine.containers.is_empty()
            && self.process.is_idle()
    }

    fn wait_until_done(&mut self) {
        for _ in 0..CALM_SECONDS {
            if self.is_done() {
                return;
            }
            self.pass_second();
        }
        panic!(
            "liveness: {CALM_SECONDS} s after the faults the master waits for {:?}, the store has {:?}, the engine {:?}, \
             the node {:?}",
            self.master.waits_for(&self.ledger),
            self.store.disk.duties.keys().collect::<Vec<_>>(),
            self.engine.containers,
            self.process.coordinator.snapshot(),
        );
    }

    fn check_all_done(&mut self) {
        self.wait_until_done();
        for key in &self.ledger.confirmed {
            assert!(self.ledger.is_delivered(key), "I1: confirmed {key} has no delivered final report");
        }
        let last = self.master.want_one_more();
        // It may be refused once more while an old process ends.
        self.pass_second();
        self.wait_until_done();
        assert!(self.ledger.is_delivered(&last), "liveness: the node does no new work");
        let snapshot = self.process.coordinator.snapshot();
        assert_eq!((snapshot.state, snapshot.attempts.len()), (NodeState::Ready, 0), "{}", snapshot.state_reason);
    }
}
