//! The only place that changes the node's state: events in, effects out. It does no I/O and has no clock; the driver in
//! `daemon` brings the time along and carries the effects out.
//!
//! What needs durability waits behind its commit: an effect is released when the store has answered `Durable` for the
//! ticket of its decision. Effects leave in the order of the decisions.

mod durable;
mod offers;
mod view;
mod words;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use log::{info, warn};

use self::durable::{Gated, Retry};
pub use self::words::{Effect, Event, Held, Past, Record, Settings, ShutdownMode};
use crate::node::account::EndedBy;
use crate::node::action::Action;
use crate::node::alerts::{self, HostWatch};
use crate::node::id::AttemptKey;
use crate::node::order::{CancelState, Desired, Directive, Marks, Refusal, StopOrder, TaskNews};
use crate::node::queue::{Line, Next};
use crate::node::record::{EventKind, FinalReport, Outcome, Phase, StreamEnd};
use crate::node::roster::{Attempt, Roster};
use crate::node::snapshot::{EngineView, HostSample, Snapshot};
use crate::node::spec::AtLeaseEnd;
use crate::sys::text::printable;

/// Lines that the owner is shown; older ones are in the log.
const MAX_ALERTS: usize = 50;
/// Ended attempts in the snapshot; the store has more.
const MAX_HISTORY: usize = 50;
/// Ended attempts that are remembered, so that a second offer of one is refused.
const MAX_OVER: usize = 10_000;
/// Of the 30 s within which the node exits, what running tasks get between SIGTERM and SIGKILL ...
const SHUTDOWN_GRACE: Duration = Duration::from_secs(20);
/// ... and after which the next start gets what has still not ended, for instance since the engine is away.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(25);
/// Lease until a master names another.
const DEFAULT_LEASE: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
struct Poll {
    undecided: usize,
    taken: Vec<u64>,
    refused: Vec<Refusal>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Coordinator {
    settings: Settings,
    roster: Roster,
    line: Line,
    host: HostWatch,
    over: VecDeque<AttemptKey>,
    polls: BTreeMap<u64, Poll>,
    gated: VecDeque<(u64, Gated)>,
    records: Vec<Record>,
    undecided: BTreeMap<u64, Vec<Record>>,
    retries: Vec<Retry>,
    effects: Vec<Effect>,
    last_ticket: u64,
    durable: u64,
    view: Snapshot,
    trust_percent: u32,
    lease: Duration,
    heard_at: Duration,
    is_paused: bool,
    is_draining: bool,
    store_trouble: Option<String>,
    shutdown: Option<ShutdownMode>,
    shutdown_at: Duration,
    has_exited: bool,
    has_seen_engine: bool,
    past: Past,
    now: Duration,
    now_ms: u64,
}

impl Coordinator {
    /// A node with what the store gave back. `view` has what the snapshot can't know from events.
    pub fn new(settings: Settings, view: Snapshot, held: Vec<Held>, now: Duration, now_ms: u64) -> Self {
        Self::after(Past::default(), settings, view, held, now, now_ms)
    }

    /// As [`Coordinator::new`], after lives of the worker that did not all end well.
    pub fn after(past: Past, settings: Settings, view: Snapshot, held: Vec<Held>, now: Duration, now_ms: u64) -> Self {
        let mut coordinator = Self {
            roster: Roster::default(),
            line: Line::default(),
            host: HostWatch::default(),
            over: VecDeque::new(),
            polls: BTreeMap::new(),
            gated: VecDeque::new(),
            records: Vec::new(),
            undecided: BTreeMap::new(),
            retries: Vec::new(),
            effects: Vec::new(),
            last_ticket: 0,
            durable: 0,
            view,
            trust_percent: 100,
            lease: DEFAULT_LEASE,
            heard_at: now,
            is_paused: false,
            is_draining: false,
            store_trouble: None,
            shutdown: None,
            shutdown_at: now,
            has_exited: false,
            has_seen_engine: false,
            past,
            now,
            now_ms,
            settings,
        };
        if let Some(reason) = coordinator.past.safe_because.clone() {
            warn!("safe state: {reason}");
            coordinator.alert(reason);
        }
        for attempt in held {
            coordinator.take_back(attempt);
        }
        coordinator.commit();
        coordinator
    }

    /// Attempts that ended here before, oldest first: a second offer of one is refused.
    pub fn remember_over(&mut self, keys: impl IntoIterator<Item = AttemptKey>) {
        self.over.extend(keys);
        let surplus = self.over.len().saturating_sub(MAX_OVER);
        self.over.drain(..surplus);
    }

    /// Effects that the last calls decided, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Lets the coordinator decide on `event`.
    pub fn handle(&mut self, event: Event, now: Duration, now_ms: u64) {
        self.now = now;
        self.now_ms = now_ms;
        match event {
            Event::Registered { node_id, lease, trust_percent, superseded } => {
                self.view.node_id = node_id;
                self.hear(Some(lease), Some(trust_percent));
                for key in superseded {
                    let reason = "the master has replaced this attempt".to_owned();
                    self.cancel(
                        &key,
                        StopOrder { outcome: Outcome::Superseded, reason, max_grace: None, by: EndedBy::Master },
                    );
                }
            }
            Event::MasterHeard { lease, trust_percent } => self.hear(lease, trust_percent),
            Event::MasterCalls(calls) => {
                self.view.master.failed_calls = calls.iter().map(|counts| counts.failed).sum();
                self.view.master.calls = calls;
            }
            Event::MasterLost { detail } => {
                self.view.master.is_connected = false;
                self.view.master.detail = detail;
            }
            Event::Offers { poll, offers } => self.handle_offers(poll, offers),
            Event::Cancel { key, reason, is_superseded } => self.handle_cancel(&key, reason, is_superseded),
            Event::Alert(text) => self.alert(text),
            Event::Directed(Directive::Drain) => self.is_draining = true,
            Event::Directed(Directive::Resume) => self.is_draining = false,
            // The session's own business.
            Event::Directed(Directive::RegisterAgain) => {}
            Event::Task(key, news) => self.handle_news(&key, news),
            Event::Durable(ticket) => self.release(ticket),
            Event::CommitFailed { ticket, reason } => self.fail_ticket(ticket, &reason),
            Event::StoreTrouble(trouble) => {
                if let Some(trouble) = &trouble {
                    self.alert(trouble.clone());
                }
                self.store_trouble = trouble;
            }
            Event::Delivered(key) => self.handle_delivered(&key),
            Event::Engine(view) => self.handle_engine(view),
            Event::EngineNews(key) => self.change_desired(&key, |desired| desired.engine_news += 1),
            Event::Host(sample) => self.handle_sample(sample),
            Event::Owner(action) => self.handle_action(action),
            Event::Reconfigured { settings, report_interval } => {
                self.settings = settings;
                self.effects.push(Effect::SetReportInterval(report_interval));
            }
            Event::Shutdown(mode) => self.handle_shutdown(mode),
            Event::Tick => {
                self.retry_commits();
                self.check_leases();
                self.check_shutdown();
            }
        }
        self.schedule();
        self.commit();
        self.try_exit();
    }

    fn take_back(&mut self, held: Held) {
        let is_over = held.report.is_some();
        let has_begun = held.phase > Phase::Queued;
        let phase = match held.phase {
            Phase::Received => Phase::Queued,
            phase => phase,
        };
        let attempt = self.roster.add(held.spec, phase, self.now, self.now_ms);
        attempt.marks = held.marks;
        attempt.end = held.report.map(|report| view::history_row(&attempt.spec, &report, self.now_ms));
        if has_begun && !is_over && self.past.has_crashed {
            attempt.marks.crashes += 1;
            self.records.push(Record::Marks { key: attempt.spec.key.clone(), marks: attempt.marks.clone() });
        }
        let key = attempt.spec.key.clone();
        let stop = attempt.marks.stop.clone().filter(|_| !is_over);
        let crashes = attempt.marks.crashes;
        if self.past.gives_up(&attempt.marks) && has_begun && !is_over {
            self.quarantine(&key, crashes, held.logs);
        } else if has_begun && !is_over && self.past.safe_because.is_some() {
            attempt.detail = "left alone in the safe state: the next start takes it over".to_owned();
        } else if has_begun && !is_over {
            attempt.has_thread = true;
            let start =
                Effect::Start { spec: Box::new(attempt.spec.clone()), marks: attempt.marks.clone(), is_adoption: true };
            self.effects.push(start);
            if stop.is_some() {
                self.change_desired(&key, |desired| desired.stop = stop);
            }
        } else if let Some(order) = stop {
            self.finish(&key, FinalReport::without_run(order.outcome, order.reason));
        }
    }

    /// Ends an attempt that may be what kills the worker, without touching anything of it: no thread, and what it has at
    /// the engine goes as nobody's.
    fn quarantine(&mut self, key: &AttemptKey, crashes: u32, streams: Vec<StreamEnd>) {
        let reason = format!("given up: the worker crashed {crashes} times while this attempt was there");
        warn!("{key}: {reason}");
        self.alert(format!("{key}: {reason}"));
        self.finish(key, FinalReport { streams, ..FinalReport::without_run(Outcome::NodeFault, reason) });
    }

    fn hear(&mut self, lease: Option<Duration>, trust_percent: Option<u32>) {
        self.heard_at = self.now;
        self.lease = lease.unwrap_or(self.lease);
        self.trust_percent = trust_percent.unwrap_or(self.trust_percent);
        self.view.master.is_connected = true;
        self.view.master.detail = "registered".to_owned();
    }

    // ---- cancellation -----------------------------------------------------------------------------------------

    fn handle_cancel(&mut self, key: &AttemptKey, reason: String, is_superseded: bool) {
        let outcome = if is_superseded { Outcome::Superseded } else { Outcome::Cancelled };
        let reason = if reason.is_empty() { "cancelled by the master".to_owned() } else { reason };
        let state = match self.roster.find(key) {
            None if self.over.contains(key) => CancelState::AlreadyOver,
            None => CancelState::Unknown,
            Some(attempt) if !attempt.is_open() => CancelState::AlreadyOver,
            Some(_) => CancelState::Stopping,
        };
        let answer = Effect::AnswerCancel { key: key.clone(), state, reason: reason.clone() };
        self.cancel(key, StopOrder { outcome, reason, max_grace: None, by: EndedBy::Master });
        if self.roster.find(key).is_none() {
            return self.effects.push(answer);
        }
        self.answer_when_kept(key, answer);
    }

    /// Ends an open attempt: through its thread, or at once where nothing of it has begun.
    fn cancel(&mut self, key: &AttemptKey, order: StopOrder) {
        let Some(attempt) = self.roster.find(key).filter(|attempt| attempt.is_open()) else {
            return;
        };
        if attempt.has_thread || self.past.leaves_alone(attempt) {
            self.order_stop(key, order);
        } else {
            self.finish(key, FinalReport::without_run(order.outcome, order.reason));
        }
    }

    /// The first order stands: who wins was decided then. It is kept, so that a restart carries it out, and acts at once,
    /// whatever the disk does.
    fn order_stop(&mut self, key: &AttemptKey, order: StopOrder) {
        let can_be = |attempt: &Attempt| attempt.is_open() && (attempt.has_thread || self.past.leaves_alone(attempt));
        let Some(attempt) = self.roster.find_mut(key).filter(|attempt| can_be(attempt)) else { return };
        if attempt.marks.stop.is_none() {
            attempt.marks.stop = Some(order.clone());
            self.records.push(Record::Marks { key: key.clone(), marks: attempt.marks.clone() });
            self.change_desired(key, |desired| desired.stop = Some(order));
        }
    }

    fn change_desired(&mut self, key: &AttemptKey, change: impl FnOnce(&mut Desired)) {
        let awaits_start = self.awaits_start(key);
        let Some(attempt) = self.roster.find_mut(key).filter(|attempt| attempt.has_thread) else {
            return;
        };
        change(&mut attempt.desired);
        // A thread that is yet to start gets it then.
        if !awaits_start {
            self.effects.push(Effect::SetDesired { key: key.clone(), desired: attempt.desired.clone() });
        }
    }

    fn awaits_start(&self, key: &AttemptKey) -> bool {
        self.waiting().any(|what| matches!(what, Gated::Start(waiting) if waiting == key))
    }

    // ---- news from task threads -------------------------------------------------------------------------------

    fn handle_news(&mut self, key: &AttemptKey, news: TaskNews) {
        let (now, now_ms) = (self.now, self.now_ms);
        let Some(attempt) = self.roster.find_mut(key) else {
            return;
        };
        match news {
            TaskNews::Phase(phase, detail) if attempt.is_open() && attempt.phase.may_become(phase) => {
                attempt.enter(phase, now, now_ms);
                attempt.detail.clone_from(&detail);
                self.note_event(key, EventKind::Phase(phase, detail));
            }
            // An adopted task is where it was: nothing for the record, but it no longer waits for the engine.
            TaskNews::Phase(phase, detail) if attempt.phase == phase => attempt.detail = detail,
            TaskNews::Phase(..) => {}
            TaskNews::Detail(detail) => attempt.detail = detail,
            TaskNews::Marks(marks) => {
                let is_ending = marks.ending.is_some() && attempt.marks.ending.is_none();
                // These are the coordinator's own.
                let (stop, phases) = (attempt.marks.stop.take(), std::mem::take(&mut attempt.marks.phases));
                attempt.marks = Marks { stop, phases, ..marks };
                self.records.push(Record::Marks { key: key.clone(), marks: attempt.marks.clone() });
                if is_ending {
                    let ticket = self.commit();
                    self.gate(ticket, Gated::Ending(key.clone()));
                }
            }
            TaskNews::Note(note) => self.note_event(key, EventKind::Note(note)),
            TaskNews::Alert(alert) => {
                self.alert(format!("{key}: {alert}"));
                self.note_event(key, EventKind::Alert(alert));
            }
            TaskNews::Usage(look) => {
                let (limit, thresholds) = (attempt.spec.memory_bytes, &self.settings.alerts);
                let told = alerts::look_at_task(&mut attempt.memory, &look.usage, limit, thresholds, now);
                attempt.look = look;
                if let Some(told) = told {
                    self.alert(format!("{key}: {told}"));
                    self.note_event(key, EventKind::Alert(told));
                }
            }
            TaskNews::Undying(what) => self.handle_undying(key, what),
            TaskNews::Finished(report) => self.finish(key, *report),
            TaskNews::Cleaned(trouble) => {
                attempt.has_thread = false;
                self.handle_undying(key, None);
                if let Some(trouble) = trouble {
                    self.alert(format!("{key}: not everything could be removed: {trouble}"));
                }
                self.drop_if_done(key);
            }
            TaskNews::Left => attempt.has_thread = false,
        }
    }

    /// A container that can't be killed is the node's trouble: what it was promised is not free, and nobody knows what else
    /// does not work.
    fn handle_undying(&mut self, key: &AttemptKey, what: Option<String>) {
        let Some(attempt) = self.roster.find_mut(key) else { return };
        let before = std::mem::replace(&mut attempt.undying, what.clone());
        let is_open = attempt.is_open();
        let told = match (&what, before) {
            (Some(what), _) => what.clone(),
            (None, Some(_)) => "its container has ended after all".to_owned(),
            (None, None) => return,
        };
        warn!("{key}: {told}");
        self.alert(format!("{key}: {told}"));
        // Behind the final report there is nothing to tell the master.
        if is_open {
            self.note_event(key, EventKind::Alert(told));
        }
    }

    /// Records the one final report; the thread may clean up once it is durable.
    fn finish(&mut self, key: &AttemptKey, mut report: FinalReport) {
        let (now, now_ms) = (self.now, self.now_ms);
        let Some(attempt) = self.roster.find_mut(key).filter(|attempt| attempt.is_open()) else {
            return;
        };
        let why = if report.reason.is_empty() { "" } else { ": " };
        info!("attempt {key} ended: {}{why}{}", report.outcome, printable(&report.reason));
        attempt.enter(Phase::Reporting, now, now_ms);
        report.phases.clone_from(&attempt.marks.phases);
        attempt.detail = "waits for the master to take the result".to_owned();
        attempt.end = Some(view::history_row(&attempt.spec, &report, self.now_ms));
        self.note_event(key, EventKind::Final(Box::new(report)));
        let ticket = self.commit();
        self.gate(ticket, Gated::Recorded(key.clone()));
    }

    fn handle_delivered(&mut self, key: &AttemptKey) {
        let Some(attempt) = self.roster.find_mut(key) else {
            return;
        };
        attempt.is_delivered = true;
        attempt.phase = Phase::Delivered;
        if let Some(row) = attempt.end.clone() {
            self.view.history.insert(0, row);
            self.view.history.truncate(MAX_HISTORY);
        }
        self.remember_over([key.clone()]);
        self.drop_if_done(key);
    }

    fn drop_if_done(&mut self, key: &AttemptKey) {
        if self.roster.find(key).is_some_and(|attempt| attempt.is_delivered && !attempt.has_thread) {
            self.roster.remove(key);
        }
    }

    // ---- the node as a whole ----------------------------------------------------------------------------------

    fn handle_sample(&mut self, sample: HostSample) {
        for told in self.host.look(&sample, &self.settings.alerts, self.now) {
            warn!("{told}");
            self.alert(told);
        }
        self.view.over_threshold = self.host.raised(&sample, &self.settings.alerts);
        self.view.host = sample;
    }

    fn handle_engine(&mut self, view: EngineView) {
        // The first look is always said: a node without an engine must say what is missing.
        let is_first = !std::mem::replace(&mut self.has_seen_engine, true);
        if is_first || view.is_usable != self.view.engine.is_usable {
            if view.is_usable {
                info!("engine: {}", view.detail);
            } else {
                warn!("no engine that can be used: {}", view.detail);
                self.alert(format!("engine: {}", view.detail));
            }
        }
        self.view.engine = view;
    }

    fn handle_action(&mut self, action: Action) {
        info!("the owner said: {action:?}");
        match action {
            Action::Pause => self.set_paused(true),
            Action::Resume => {
                self.is_draining = false;
                self.set_paused(false);
            }
            Action::Drain => self.is_draining = true,
            Action::StopTask(key) => {
                let reason = "stopped by the node's owner".to_owned();
                let is_open = self.roster.find(&key).is_some_and(Attempt::is_open);
                let (outcome, by) = (Outcome::Cancelled, EndedBy::Owner);
                self.cancel(&key, StopOrder { outcome, reason: reason.clone(), max_grace: None, by });
                if is_open {
                    let state = CancelState::StoppedByOwner;
                    self.answer_when_kept(&key, Effect::AnswerCancel { key: key.clone(), state, reason });
                }
            }
        }
    }

    fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
        let keys: Vec<AttemptKey> = self.roster.iter().map(|attempt| attempt.spec.key.clone()).collect();
        for key in keys {
            self.change_desired(&key, |desired| desired.is_paused = is_paused);
        }
    }

    fn handle_shutdown(&mut self, mode: ShutdownMode) {
        // What is left alone is left to the next start, which the owner is about to make.
        let mode = if self.past.safe_because.is_some() { ShutdownMode::Leave } else { mode };
        self.shutdown = Some(mode);
        self.shutdown_at = self.now;
        let keys: Vec<AttemptKey> = self.roster.iter().map(|attempt| attempt.spec.key.clone()).collect();
        for key in keys {
            let order = StopOrder {
                outcome: Outcome::Preempted,
                reason: "the node is shutting down".to_owned(),
                max_grace: Some(SHUTDOWN_GRACE),
                by: EndedBy::Node,
            };
            match mode {
                ShutdownMode::Stop => self.order_stop(&key, order),
                ShutdownMode::Finish => self.change_desired(&key, |_| {}),
                ShutdownMode::Leave => self.change_desired(&key, |desired| desired.must_leave = true),
            }
        }
    }

    /// Nothing may hold up a stop: threads that wait for the engine, or for a disk, let go.
    fn check_shutdown(&mut self) {
        let passed = self.now.saturating_sub(self.shutdown_at);
        if self.shutdown != Some(ShutdownMode::Stop) || passed < SHUTDOWN_PATIENCE {
            return;
        }
        let holding = self.roster.iter().filter(|attempt| attempt.has_thread && !attempt.desired.must_leave);
        let keys: Vec<AttemptKey> = holding.map(|attempt| attempt.spec.key.clone()).collect();
        for key in keys {
            warn!("{key} does not end: it is left to the next start");
            self.change_desired(&key, |desired| desired.must_leave = true);
        }
    }

    /// Exits when no thread works and the store has answered to all that was decided. What it could not write is not
    /// waited for: it may never be able to.
    fn try_exit(&mut self) {
        let is_idle = self.roster.iter().all(|attempt| !attempt.has_thread || self.awaits_start(&attempt.spec.key));
        if self.shutdown.is_some() && is_idle && self.undecided.is_empty() && !self.has_exited {
            self.has_exited = true;
            self.effects.push(Effect::Exit);
        }
    }

    fn check_leases(&mut self) {
        if self.now.saturating_sub(self.heard_at) <= self.lease {
            return;
        }
        let exclusive = self.roster.iter().filter(|attempt| {
            attempt.spec.at_lease_end == AtLeaseEnd::Stop && attempt.is_open() && attempt.marks.stop.is_none()
        });
        let keys: Vec<AttemptKey> = exclusive.map(|attempt| attempt.spec.key.clone()).collect();
        for key in keys {
            let reason = "the lease ended without a word from the master".to_owned();
            self.cancel(&key, StopOrder { outcome: Outcome::NodeFault, reason, max_grace: None, by: EndedBy::Node });
        }
    }

    fn schedule(&mut self) {
        while self.can_start() {
            let usable = self.usable();
            let (key, short) = match self.roster.next_to_start(&usable, &mut self.line, self.now) {
                Next::Nobody => return,
                Next::Start(key) => (key.clone(), None),
                Next::Waits(key, short) => (key.clone(), Some(short)),
            };
            let Some(short) = short else {
                self.start(&key);
                continue;
            };
            if let Some(attempt) = self.roster.find_mut(&key) {
                attempt.detail = format!("waits for {short}");
            }
            return;
        }
    }

    fn can_start(&self) -> bool {
        let is_good = self.store_trouble.is_none() && self.view.engine.is_usable && self.past.safe_because.is_none();
        is_good && self.shutdown.is_none() && !self.is_paused
    }

    fn start(&mut self, key: &AttemptKey) {
        let (now, now_ms) = (self.now, self.now_ms);
        let Some(attempt) = self.roster.find_mut(key) else {
            return;
        };
        attempt.enter(Phase::Preparing, now, now_ms);
        attempt.detail.clear();
        attempt.has_thread = true;
        self.note_event(key, EventKind::Phase(Phase::Preparing, String::new()));
        let ticket = self.commit();
        self.gate(ticket, Gated::Start(key.clone()));
    }

    fn alert(&mut self, text: String) {
        // A master that repeats itself must not push out what else there is to know.
        if self.view.alerts.first() == Some(&text) {
            return;
        }
        self.view.alerts.insert(0, text);
        self.view.alerts.truncate(MAX_ALERTS);
    }
}
