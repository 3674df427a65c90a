//! What passes between the coordinator and others: the wished-for state of a task and its news, orders of a master and
//! what is answered.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::account::{EndedBy, PhaseTime};
use super::record::{FinalReport, Outcome, Phase, Usage};

/// What the coordinator wants of a running attempt. The latest wins; nothing in it is ever taken back but `is_paused`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// End it, with this outcome.
    pub stop: Option<StopOrder>,
    /// Freeze its processes.
    pub is_paused: bool,
    /// Let go of the container without touching it: the next start of the worker adopts it.
    pub must_leave: bool,
    /// The final report is durable: container, network and volume may go.
    pub may_clean: bool,
    /// The mark that says why it is ended is durable: the first signal may go out.
    pub is_ending_kept: bool,
    /// Counts news about this container in the engine's event stream: look at it now.
    pub engine_news: u64,
}

/// Why an attempt is ended from outside, and how fast.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopOrder {
    /// Cancelled, Superseded, Preempted or NodeFault.
    pub outcome: Outcome,
    /// In words, for the final report.
    pub reason: String,
    /// Cuts the task's own grace, when the node itself has little time.
    pub max_grace: Option<Duration>,
    /// Whose order it is.
    #[serde(default)]
    pub by: EndedBy,
}

/// Facts about an attempt that must outlive the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Marks {
    /// The engine's id of the task's container.
    pub container_id: Option<String>,
    /// Digest or id of the image that the container was made from.
    pub image_digest: Option<String>,
    /// The engine's id of that image. Set once: a tag that moves later means nothing to this attempt.
    pub image_id: Option<String>,
    /// Boot during which `started_boot_ms` counts.
    pub boot_id: Option<String>,
    /// When the container started, in milliseconds on the clock that counts suspend.
    pub started_boot_ms: Option<u64>,
    /// Time spent paused by the node, in milliseconds.
    pub paused_ms: u64,
    /// The worker's own reason to end it, such as its timeout: outcome and words. Set before the first signal.
    pub ending: Option<(Outcome, String)>,
    /// The order to stop it, once there is one. The coordinator's: a task's thread leaves it as it is.
    pub stop: Option<StopOrder>,
    /// Crashes of the worker while it was there.
    pub crashes: u32,
    /// Some of its output was lost and more came behind that, so that how much is recorded does not tell where to go on
    /// in the engine's log.
    #[serde(default)]
    pub has_output_gap: bool,
    /// Time in the phases that it has left. The coordinator's, as `stop`.
    pub phases: Vec<PhaseTime>,
}

/// What a task's thread tells.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskNews {
    /// The attempt entered a phase; the text says what it does there.
    Phase(Phase, String),
    /// Progress within a phase, for the owner's eyes only.
    Detail(String),
    /// Facts to keep.
    Marks(Marks),
    /// For the record.
    Note(String),
    /// A threshold was crossed, or something is not as it should be.
    Alert(String),
    /// A look at the running container.
    Usage(Look),
    /// The container does not end though it was killed; or, with nothing, that is over.
    Undying(Option<String>),
    /// The last word. Clean-up waits until it is durable.
    Finished(Box<FinalReport>),
    /// Everything that the attempt had at the engine is gone, or could not be removed for this reason; the thread ends.
    Cleaned(Option<String>),
    /// The thread let go of the container as it was told to, and ends.
    Left,
}

/// See [`TaskNews::Usage`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Look {
    /// Use so far.
    pub usage: Usage,
    /// Of one CPU, since the look before.
    pub cpu_percent: Option<f64>,
    /// Running time without pauses.
    pub running_ms: u64,
    /// Last output, at most 4 KiB.
    pub tail: String,
}

/// An order of the master to the node as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directive {
    /// Take nothing new.
    Drain,
    /// End a drain.
    Resume,
    /// Register again.
    RegisterAgain,
}

/// Why an offer was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which offer.
    pub offer_id: u64,
    /// As in the contract: invalid, capacity, stale, conflict, storage, draining.
    pub code: &'static str,
    /// For people.
    pub reason: String,
}

/// How a wish to cancel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelState {
    /// It is being stopped.
    Stopping,
    /// No such attempt here.
    Unknown,
    /// It was over before.
    AlreadyOver,
    /// The owner stopped it.
    StoppedByOwner,
}
