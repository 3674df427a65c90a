//! The process: events to the coordinator, its effects carried out as `daemon::driver` does it, the engine's watch as
//! in `sandbox::engine`. A crash may come between any two effects.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hivemind_worker::coordinator::{Coordinator, Effect, Event, Settings, ShutdownMode};
use hivemind_worker::node::alerts::Thresholds;
use hivemind_worker::node::id::AttemptKey;
use hivemind_worker::node::order::{CancelState, Marks, TaskNews};
use hivemind_worker::node::record::{FinalReport, Outcome, Phase};
use hivemind_worker::node::resources::Resources;
use hivemind_worker::node::snapshot::{EngineView, Snapshot};
use hivemind_worker::node::spec::{SpecDefaults, TaskSpec};

use super::lanes::Session;
use super::master::Intent;
use super::store::Store;
use super::task::{Around, Task};
use super::world::World;

const TICK: Duration = Duration::from_secs(1);
/// `daemon::STOP_WITHIN`.
const STOP_WITHIN: Duration = Duration::from_secs(29);

/// What dies with the process.
pub struct Process {
    pub coordinator: Coordinator,
    effects: VecDeque<Effect>,
    /// From everybody but the store.
    pub events: VecDeque<Event>,
    tasks: BTreeMap<AttemptKey, Task>,
    pub session: Session,
    /// As it was last published.
    held: BTreeSet<AttemptKey>,
    next_tick: Duration,
    pub ends_at: Option<Duration>,
    /// The engine's life in which its event stream was opened.
    stream: Option<u64>,
    has_exited: bool,
    /// Attempts of which it was told that they are delivered, now or at its start ...
    over: BTreeSet<AttemptKey>,
    /// ... and offers of them: to confirm one would promise a report that never comes.
    late_offers: BTreeSet<u64>,
}

pub fn lent() -> Resources {
    Resources { cpu_millis: 2_000, memory_bytes: 2 << 30, disk_bytes: 10 << 30, slots: 4 }
}

impl Process {
    /// As `daemon::Worker::start` does it.
    pub fn start(store: &Store, now: Duration, now_ms: u64) -> Self {
        let (held, over) = store.recover();
        let settings = Settings { lent: lent(), defaults: SpecDefaults::default(), alerts: Thresholds::default() };
        let mut coordinator = Coordinator::new(settings, Snapshot::default(), held, now, now_ms);
        coordinator.remember_over(over.iter().cloned());
        Self {
            over: over.into_iter().collect(),
            late_offers: BTreeSet::new(),
            held: coordinator.held(),
            effects: coordinator.take_effects().into(),
            coordinator,
            events: VecDeque::new(),
            tasks: BTreeMap::new(),
            session: Session::default(),
            next_tick: now + TICK,
            ends_at: None,
            stream: None,
            has_exited: false,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.effects.is_empty() && self.events.is_empty() && self.tasks.is_empty()
    }
}

fn told(event: &Event) -> String {
    let Event::Offers { poll, offers } = event else { return format!("{event:?}") };
    let offers = offers.iter().filter_map(|(id, offer)| {
        let offer = offer.as_ref().ok()?;
        Some(format!(" {id}: {}#{} [{}]", offer.task, offer.attempt, offer.digest[0]))
    });
    format!("Offers {poll}:{}", offers.collect::<String>())
}

impl World {
    /// A few events, then what was decided on them.
    pub fn drive(&mut self) {
        if self.process.effects.is_empty() {
            for _ in 0..=self.dice.below(3) {
                self.take_event();
            }
            self.process.effects.extend(self.process.coordinator.take_effects());
            self.process.held = self.process.coordinator.held();
        }
        while let Some(effect) = self.process.effects.pop_front() {
            self.log(|| format!("effect {effect:?}"));
            self.perform(effect);
            if self.is_chaotic && self.dice.one_in(16) {
                return;
            }
        }
        if self.process.has_exited {
            self.store.close(&mut self.dice, &self.ledger);
            self.restart("orderly end");
        }
    }

    fn take_event(&mut self) {
        if self.clock.boot >= self.process.next_tick {
            self.process.next_tick = self.clock.boot + TICK;
            return self.handle(Event::Tick);
        }
        let next = match self.dice.one_in(2) {
            true => self.store.told.pop_front().or_else(|| self.process.events.pop_front()),
            false => self.process.events.pop_front().or_else(|| self.store.told.pop_front()),
        };
        if let Some(event) = next {
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        if !matches!(event, Event::MasterHeard { .. } | Event::Tick | Event::Task(_, TaskNews::Usage(_))) {
            self.log(|| format!("event {}", told(&event)));
        }
        let ending = match &event {
            Event::Task(key, TaskNews::Cleaned(_) | TaskNews::Left) => Some(key.clone()),
            _ => None,
        };
        match &event {
            Event::Shutdown(mode) => {
                self.process.ends_at = (*mode != ShutdownMode::Finish).then(|| self.clock.boot + STOP_WITHIN);
            }
            Event::Delivered(key) => _ = self.process.over.insert(key.clone()),
            Event::Offers { offers, .. } => {
                let late = offers.iter().filter(|(id, _)| self.process.over.contains(&self.master.offered(*id).0));
                self.process.late_offers.extend(late.map(|(id, _)| *id));
            }
            _ => {}
        }
        self.process.coordinator.handle(event, self.clock.boot, self.clock.wall_ms);
        if let Some(key) = ending {
            self.process.tasks.remove(&key);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Commit { ticket, records } => self.store.commit(ticket, records),
            Effect::Start { spec, marks, is_adoption } => self.start_task(*spec, marks, is_adoption),
            Effect::SetDesired { key, desired } => {
                assert!(
                    !desired.may_clean || self.store.disk.is_ended(&key),
                    "I3: {key} may be cleaned before its end is recorded"
                );
                if let Some(task) = self.process.tasks.get_mut(&key) {
                    let before = std::mem::replace(&mut task.desired, desired);
                    let has_taken_back = (before.stop.is_some() && before.stop != task.desired.stop)
                        || before.must_leave && !task.desired.must_leave
                        || before.may_clean && !task.desired.may_clean;
                    assert!(!has_taken_back, "a wish for {key} is taken back: {before:?}, {:?}", task.desired);
                }
            }
            Effect::SettlePoll { poll, taken, refused } => {
                for id in &taken {
                    self.ledger.see("taken");
                    self.check_taken(*id);
                }
                refused.iter().for_each(|refusal| self.ledger.see(format!("refused: {}", refusal.code)));
                self.process.session.settle(poll, taken, refused);
            }
            Effect::AnswerCancel { key, state, .. } => {
                self.ledger.see(format!("cancel: {state:?}"));
                self.check_cancel_answer(&key, state);
                self.process.session.answer_cancel(key, state);
            }
            Effect::SetReportInterval(_) => {}
            Effect::Exit => {
                assert!(self.process.tasks.is_empty(), "it exits while tasks have threads");
                self.process.has_exited = true;
            }
        }
    }

    /// The start is recorded, the end is not, and nobody else works on it.
    fn start_task(&mut self, spec: TaskSpec, marks: Marks, is_adoption: bool) {
        let key = spec.key.clone();
        let phase = self.store.disk.duties.get(&key).map(|duty| duty.phase);
        assert!(phase > Some(Phase::Queued), "{key} is started before that is recorded: {phase:?}");
        assert!(!self.store.disk.is_ended(&key), "I2: {key} is started though its end is recorded");
        // Of an adoption that fails so the container stays until the engine's next life: a flaw that is known.
        if self.is_chaotic && !is_adoption && self.dice.one_in(60) {
            let report = Box::new(FinalReport::without_run(Outcome::NodeFault, "no thread"));
            self.handle(Event::Task(key.clone(), TaskNews::Finished(report)));
            return self.handle(Event::Task(key, TaskNews::Cleaned(None)));
        }
        if is_adoption {
            self.ledger.see("adopted");
        }
        let before = self.process.tasks.insert(key.clone(), Task::new(spec, marks, is_adoption));
        assert!(before.is_none(), "I2: {key} has two threads");
        let used = self.process.tasks.values().fold(Resources::default(), |sum, task| sum.plus(&task.spec.needs()));
        let promised = self.process.coordinator.snapshot().promised;
        assert!(
            used.fits(&lent()) && promised.fits(&lent()),
            "more than is lent: {used:?} used, {promised:?} promised"
        );
    }

    /// A confirmation promises that the attempt is on disk here, with the content that was offered.
    fn check_taken(&self, id: u64) {
        let (key, digest, intent) = self.master.offered(id);
        assert_eq!(*intent, Intent::Honest, "offer {id} of {key} must be refused and is taken");
        assert!(!self.process.late_offers.contains(&id), "I1: offer {id} of {key} is confirmed though that is over");
        assert_eq!(self.store.disk.digest(key), Some(*digest), "offer {id} of {key} is confirmed and not durable");
    }

    /// The master asks no more after these answers, so what they say must outlive the process.
    fn check_cancel_answer(&self, key: &AttemptKey, state: CancelState) {
        let is_ordered = self.store.disk.duties.get(key).is_some_and(|duty| duty.marks.stop.is_some());
        let is_kept = state == CancelState::Unknown || is_ordered || self.store.disk.is_ended(key);
        assert!(is_kept, "the cancellation of {key} is answered by {state:?}, which is not durable");
    }

    /// One step of one thread.
    pub fn step_task(&mut self) {
        let keys: Vec<AttemptKey> = self.process.tasks.keys().cloned().collect();
        if let Some(key) = self.dice.pick(&keys) {
            self.turn_task(&key);
        }
    }

    pub fn step_all_tasks(&mut self) {
        for key in self.process.tasks.keys().cloned().collect::<Vec<_>>() {
            self.turn_task(&key);
        }
    }

    fn turn_task(&mut self, key: &AttemptKey) {
        let Some(task) = self.process.tasks.get_mut(key).filter(|task| !task.is_ended()) else { return };
        let mut around = Around {
            dice: &mut self.dice,
            engine: &mut self.engine,
            ledger: &mut self.ledger,
            disk: &self.store.disk,
            now: self.clock.boot,
            boot_id: self.clock.boot_id.to_string(),
            news: Vec::new(),
        };
        task.turn(&mut around);
        let news = around.news;
        self.process.events.extend(news.into_iter().map(|news| Event::Task(key.clone(), news)));
    }

    /// The thread `engine-events`: at each life of the engine it sweeps what belongs to nobody, then tells.
    pub fn watch_engine(&mut self) {
        match self.process.stream {
            Some(life) if life != self.engine.lives || self.engine.is_away => {
                self.process.stream = None;
                self.process.events.push_back(Event::Engine(EngineView::default()));
            }
            Some(_) if !self.is_chaotic => {}
            Some(_) => {
                let keys: Vec<AttemptKey> = self.engine.containers.keys().cloned().collect();
                if let Some(key) = self.dice.pick(&keys) {
                    self.process.events.push_back(Event::EngineNews(key));
                }
            }
            None if self.engine.is_away => {}
            None => {
                self.process.stream = Some(self.engine.lives);
                for key in self.engine.containers.keys().cloned().collect::<Vec<_>>() {
                    if self.process.held.contains(&key) {
                        self.process.events.push_back(Event::EngineNews(key));
                    } else {
                        self.log(|| format!("sweeps {key}"));
                        self.ledger.see("swept");
                        self.engine.remove(&key, &self.store.disk).expect("it is there");
                    }
                }
                self.process.events.push_back(Event::Engine(EngineView { is_usable: true, ..EngineView::default() }));
            }
        }
    }

    /// The process ends, however, and the next one starts.
    pub fn restart(&mut self, why: &str) {
        self.log(|| format!("---- {why} ----"));
        self.ledger.see(why);
        self.store.crash(&mut self.dice);
        if self.is_chaotic {
            for _ in 0..self.dice.below(4) {
                self.engine.work(&mut self.dice);
            }
            self.clock.boot += Duration::from_millis(self.dice.below(5_000));
        }
        self.process = Process::start(&self.store, self.clock.boot, self.clock.wall_ms);
    }
}
