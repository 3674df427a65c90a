//! What the coordinator hears, what it has done, and what it is made from.

// Fields of the variants are explained with the variant.
#![allow(missing_docs)]

use std::time::Duration;

use crate::node::action::Action;
use crate::node::alerts::Thresholds;
use crate::node::id::AttemptKey;
use crate::node::offer::Offer;
use crate::node::order::{CancelState, Desired, Directive, Marks, Refusal, TaskNews};
use crate::node::record::{EventKind, FinalReport, Phase, StreamEnd};
use crate::node::resources::Resources;
use crate::node::roster::Attempt;
use crate::node::snapshot::CallCounts;
use crate::node::snapshot::{EngineView, HostSample};
use crate::node::spec::{FieldError, SpecDefaults, TaskSpec};

/// What the owner wants of running tasks when the worker is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownMode {
    /// SIGTERM, grace cut to 20 s.
    Stop,
    /// Wait until they are done.
    Finish,
    /// Containers run on; the next start adopts them.
    Leave,
}

/// What the coordinator hears.
#[derive(Debug)]
pub enum Event {
    /// The master knows the node now; these held attempts were replaced.
    Registered { node_id: String, lease: Duration, trust_percent: u32, superseded: Vec<AttemptKey> },
    /// The master answered a heartbeat or poll; absent: as it was.
    MasterHeard { lease: Option<Duration>, trust_percent: Option<u32> },
    /// The connection is down.
    MasterLost { detail: String },
    /// What the calls of both lanes have cost so far.
    MasterCalls(Vec<CallCounts>),
    /// Answer of an AssignTask poll, to be settled by [`Effect::SettlePoll`].
    Offers { poll: u64, offers: Vec<(u64, Result<Box<Offer>, FieldError>)> },
    /// The master wants an attempt stopped.
    Cancel { key: AttemptKey, reason: String, is_superseded: bool },
    /// What the owner should know.
    Alert(String),
    /// The master wants something of the node.
    Directed(Directive),
    /// From a task's thread.
    Task(AttemptKey, TaskNews),
    /// The store has made this ticket's records durable.
    Durable(u64),
    /// The store could not; nothing of this ticket is promised.
    CommitFailed { ticket: u64, reason: String },
    /// The store can't write, or can again (`None`).
    StoreTrouble(Option<String>),
    /// The master has all of an attempt's record.
    Delivered(AttemptKey),
    /// The engine answers or does not.
    Engine(EngineView),
    /// The engine's event stream has something on an attempt's container.
    EngineNews(AttemptKey),
    /// A look at the machine.
    Host(HostSample),
    /// The owner's wish.
    Owner(Action),
    /// The owner's configuration was read again.
    Reconfigured { settings: Settings, report_interval: Duration },
    /// End the worker.
    Shutdown(ShutdownMode),
    /// Time has passed.
    Tick,
}

/// One line for the store.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A new duty, with the input archive.
    Take { spec: Box<TaskSpec>, inputs: Vec<u8> },
    /// A line of an attempt's record.
    Event { key: AttemptKey, time_ms: u64, kind: EventKind },
    /// Facts to keep.
    Marks { key: AttemptKey, marks: Marks },
}

impl Record {
    /// Whose record.
    pub fn key(&self) -> &AttemptKey {
        match self {
            Self::Take { spec, .. } => &spec.key,
            Self::Event { key, .. } | Self::Marks { key, .. } => key,
        }
    }

    /// Whether it has the end of this attempt, or the order to stop it.
    pub(super) fn ends(&self, key: &AttemptKey) -> bool {
        let is_end = match self {
            Self::Take { .. } => false,
            Self::Event { kind, .. } => matches!(kind, EventKind::Final(_)),
            Self::Marks { marks, .. } => marks.stop.is_some(),
        };
        is_end && self.key() == key
    }

    /// A copy, but not of a new duty: that is the master's to offer again.
    pub(super) fn without_take(&self) -> Option<Self> {
        (!matches!(self, Self::Take { .. })).then(|| self.clone())
    }
}

/// What the driver does.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Give these to the store; it answers with the ticket.
    Commit { ticket: u64, records: Vec<Record> },
    /// Start a thread for the attempt. With `is_adoption` something of it may be at the engine.
    Start { spec: Box<TaskSpec>, marks: Marks, is_adoption: bool },
    /// Replace what is wanted of the attempt's thread.
    SetDesired { key: AttemptKey, desired: Desired },
    /// Every offer of this poll is decided.
    SettlePoll { poll: u64, taken: Vec<u64>, refused: Vec<Refusal> },
    /// Tell the master how its cancellation stands.
    AnswerCancel { key: AttemptKey, state: CancelState, reason: String },
    /// Report in this interval from now on.
    SetReportInterval(Duration),
    /// All is done: end the process.
    Exit,
}

/// What does not change while the worker runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the owner lends.
    pub lent: Resources,
    /// Running times.
    pub defaults: SpecDefaults,
    /// When an alert is raised.
    pub alerts: Thresholds,
}

/// What the lives of the worker before this one mean for it.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// The last one crashed.
    pub has_crashed: bool,
    /// An attempt that was there at so many crashes is given up; 0: none ever is.
    pub crash_limit: u32,
    /// Nothing is tried in this life, for this reason: what is held is delivered, containers are left alone.
    pub safe_because: Option<String>,
}

impl Past {
    /// Whether an attempt with these marks was there at too many crashes.
    pub(super) fn gives_up(&self, marks: &Marks) -> bool {
        self.crash_limit > 0 && marks.crashes >= self.crash_limit
    }

    /// Whether an attempt may have a container that nobody looks after in this life.
    pub(super) fn leaves_alone(&self, attempt: &Attempt) -> bool {
        self.safe_because.is_some() && attempt.phase > Phase::Queued && !attempt.has_thread
    }
}

/// An attempt as the store knew it at start.
#[derive(Clone, Debug)]
pub struct Held {
    /// The task.
    pub spec: TaskSpec,
    /// Where it stood.
    pub phase: Phase,
    /// Facts about it.
    pub marks: Marks,
    /// Its final report, if it has ended.
    pub report: Option<FinalReport>,
    /// What of its output is on disk.
    pub logs: Vec<StreamEnd>,
}
