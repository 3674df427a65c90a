//! The coordinator's driver: brings events and the time in, carries effects out. It runs on the thread `coordinator`,
//! which is released by the coordinator's own `Exit`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, after, select};
use log::error;

use crate::coordinator::{Coordinator, Effect, Event, Record};
use crate::node::action::Action;
use crate::node::id::AttemptKey;
use crate::node::order::{Marks, TaskNews};
use crate::node::record::{FinalReport, Outcome};
use crate::node::snapshot::Snapshot;
use crate::node::spec::TaskSpec;
use crate::rpc::Waker;
use crate::sandbox::{self, Beginning, Context, TaskHandle};
use crate::session;
use crate::store::{Store, StoreEvent, Write};
use crate::sys::clock::boottime;
use crate::sys::time::unix_ms;
use crate::sys::watch::Watch;

/// Leases and retries are looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// Events that are decided on before the next snapshot is made.
const MAX_BATCH: usize = 256;

/// Attempts of which something may be at the engine: the sweep leaves them alone.
pub type HeldCell = Watch<BTreeSet<AttemptKey>>;

/// What the driver is made from.
pub struct Parts {
    /// Decides.
    pub coordinator: Coordinator,
    /// Makes durable.
    pub store: Store,
    /// For task threads.
    pub context: Arc<Context>,
    /// From everybody; also handed to task threads.
    pub events: (Sender<Event>, Receiver<Event>),
    /// From the store alone, so that it never waits for a coordinator that waits for it.
    pub store_events: Receiver<StoreEvent>,
    /// From the monitor.
    pub actions: Receiver<Action>,
    /// For whoever looks.
    pub snapshot: Watch<Snapshot>,
    /// For the sweep.
    pub held: HeldCell,
    /// To the session, with its waker.
    pub session: (Sender<session::Order>, Waker),
}

/// See the module's text.
pub struct Driver {
    parts: Parts,
    tasks: BTreeMap<AttemptKey, TaskHandle>,
    has_exited: bool,
}

impl Driver {
    /// A driver that has not carried anything out yet.
    pub fn new(parts: Parts) -> Self {
        Self { parts, tasks: BTreeMap::new(), has_exited: false }
    }

    /// Runs until the coordinator says `Exit`; gives the store's channel back for who waits for the last deliveries.
    pub fn run(mut self) -> Receiver<StoreEvent> {
        self.settle();
        let mut next_tick = boottime() + TICK;
        while !self.has_exited {
            let pause = next_tick.saturating_sub(boottime());
            select! {
                recv(self.parts.store_events) -> event => self.take(event.ok().map(from_store)),
                recv(self.parts.events.1) -> event => self.take(event.ok()),
                recv(self.parts.actions) -> action => self.take(action.ok().map(Event::Owner)),
                recv(after(pause)) -> _ => {}
            }
            self.take_waiting();
            if boottime() >= next_tick {
                next_tick = boottime() + TICK;
                self.take(Some(Event::Tick));
            }
            self.settle();
        }
        self.parts.store_events
    }

    fn take_waiting(&mut self) {
        for _ in 0..MAX_BATCH {
            let waiting = self.parts.store_events.try_recv().map(from_store);
            let Ok(event) = waiting.or_else(|_| self.parts.events.1.try_recv()) else { return };
            self.take(Some(event));
        }
    }

    /// Decides on one event. Of a thread that says that it ends, the end is waited for.
    fn take(&mut self, event: Option<Event>) {
        let Some(event) = event else { return };
        let ending = match &event {
            Event::Task(key, TaskNews::Cleaned(_) | TaskNews::Left) => Some(key.clone()),
            _ => None,
        };
        self.parts.coordinator.handle(event, boottime(), unix_ms());
        if let Some(handle) = ending.and_then(|key| self.tasks.remove(&key)) {
            handle.join();
        }
    }

    /// Publishes, then carries out what was decided: the sweep must know of a task before its container can exist.
    fn settle(&mut self) {
        loop {
            let effects = self.parts.coordinator.take_effects();
            self.publish();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.perform(effect);
            }
        }
    }

    fn publish(&self) {
        let snapshot = self.parts.coordinator.snapshot();
        let before = self.parts.snapshot.latest();
        let held = self.parts.coordinator.held();
        if *self.parts.held.latest() != held {
            self.parts.held.set(held);
        }
        if *before == snapshot {
            return;
        }
        let has_new_figures = before.free != snapshot.free;
        self.parts.snapshot.set(snapshot);
        if has_new_figures {
            self.parts.session.1.wake();
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Commit { ticket, records } => {
                self.parts.store.commit(ticket, records.into_iter().map(write).collect());
            }
            Effect::Start { spec, marks, is_adoption } => {
                self.start(*spec, marks, if is_adoption { Beginning::Adoption } else { Beginning::Fresh });
            }
            Effect::SetDesired { key, desired } => {
                if let Some(task) = self.tasks.get(&key) {
                    task.set_desired(desired);
                }
            }
            Effect::SettlePoll { poll, taken, refused } => {
                self.order(session::Order::SettlePoll { poll, taken, refused });
            }
            Effect::AnswerCancel { key, state, reason } => {
                self.order(session::Order::AnswerCancel { key, state, reason });
            }
            Effect::SetReportInterval(interval) => self.order(session::Order::ReportInterval(interval)),
            Effect::Exit => self.has_exited = true,
        }
    }

    /// The session takes orders also while it waits for this thread to take its events.
    fn order(&self, order: session::Order) {
        if self.parts.session.0.send(order).is_ok() {
            self.parts.session.1.wake();
        }
    }

    fn start(&mut self, spec: TaskSpec, marks: Marks, beginning: Beginning) {
        let (key, events) = (spec.key.clone(), self.parts.events.0.clone());
        let teller = {
            let key = key.clone();
            // A send fails only when this driver is gone, and it waits for its tasks.
            Arc::new(move |news| events.send(Event::Task(key.clone(), news)).unwrap_or_default())
        };
        match sandbox::start(Arc::clone(&self.parts.context), spec, marks, beginning, teller) {
            Ok(handle) => {
                self.tasks.insert(key, handle);
            }
            Err(fault) => {
                error!("can't start a thread for {key}: {fault}");
                let reason = format!("can't start a thread: {fault}");
                let report = Box::new(FinalReport::without_run(Outcome::NodeFault, reason));
                self.take(Some(Event::Task(key.clone(), TaskNews::Finished(report))));
                self.take(Some(Event::Task(key, TaskNews::Cleaned(None))));
            }
        }
    }
}

fn from_store(event: StoreEvent) -> Event {
    match event {
        StoreEvent::Durable(ticket) => Event::Durable(ticket),
        StoreEvent::Failed { ticket, reason } => Event::CommitFailed { ticket, reason },
        StoreEvent::Delivered(key) => Event::Delivered(key),
        StoreEvent::Trouble(what) => Event::StoreTrouble(Some(what)),
        StoreEvent::Recovered => Event::StoreTrouble(None),
    }
}

fn write(record: Record) -> Write {
    match record {
        Record::Take { spec, inputs } => Write::Take { spec, inputs },
        Record::Event { key, time_ms, kind } => Write::Event { key, time_ms, kind },
        Record::Marks { key, marks } => Write::Marks { key, marks },
    }
}
