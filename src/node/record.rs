//! The record of an attempt: its phases, its outcome, the events that tell them, and the final report.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::account::{AppliedLimits, Evidence, PhaseTime, UsageFigures};
use super::id::AttemptKey;

/// Where an attempt stands (design section 4).
///
/// ```text
/// Received -> Queued -> Preparing -> Starting -> Running -> Stopping -> Collecting -> Reporting -> Delivered
///                                                 ^   |        ^
///                                                 |   v        |
///                                                 Paused ------+      each phase before Reporting may go there at once
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Taken and on disk.
    Received,
    /// Waits for resources.
    Queued,
    /// Image, volume, container and inputs are made.
    Preparing,
    /// Attached and being started.
    Starting,
    /// The container runs.
    Running,
    /// Frozen by the node.
    Paused,
    /// SIGTERM was sent, SIGKILL may follow.
    Stopping,
    /// Output files are read.
    Collecting,
    /// The final report is on disk and waits for the master.
    Reporting,
    /// The master has all of it.
    Delivered,
}

impl Phase {
    /// All phases, in the order of the contract's numbers, from 1.
    pub const ALL: [Self; 10] = [
        Self::Received,
        Self::Queued,
        Self::Preparing,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Collecting,
        Self::Reporting,
        Self::Delivered,
    ];

    /// The word that is shown and sent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Queued => "queued",
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Collecting => "collecting",
            Self::Reporting => "reporting",
            Self::Delivered => "delivered",
        }
    }

    /// Whether an attempt may go from this phase to `next`. Time never goes back, but for a pause.
    pub fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Paused, Self::Running) | (Self::Running, Self::Paused) => true,
            (Self::Delivered, _) => false,
            (from, to) => to > from,
        }
    }

    /// Whether the ledger holds this attempt's resources.
    pub fn holds_resources(self) -> bool {
        (Self::Preparing..=Self::Collecting).contains(&self)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How an attempt ended. The task's fault and the node's are never mixed up.
///
/// In JSON and in the records on disk it has the contract's name, as [`Outcome::as_str`]; the older spelling is read too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Exit code 0.
    #[serde(alias = "succeeded")]
    Succeeded,
    /// Another exit code, or a signal that nobody here sent.
    #[serde(alias = "failed")]
    Failed,
    /// The kernel killed a process of it for memory, whatever the exit code says.
    #[serde(alias = "out_of_memory")]
    OutOfMemory,
    /// It ran longer than its timeout.
    #[serde(alias = "timed_out")]
    TimedOut,
    /// It wrote more than its disk limit, or failed by itself with no room left in a work folder of that size.
    #[serde(alias = "disk_limit")]
    DiskLimit,
    /// The master, the task's owner or the node's owner stopped it.
    #[serde(alias = "cancelled")]
    Cancelled,
    /// It can't run here as it was asked for, for instance an unknown image.
    #[serde(alias = "rejected")]
    Rejected,
    /// The node's fault, for instance an engine that lost the container.
    #[serde(alias = "node_fault")]
    NodeFault,
    /// Stopped to give the machine back.
    #[serde(alias = "preempted")]
    Preempted,
    /// The master has replaced this attempt.
    #[serde(alias = "superseded")]
    Superseded,
}

impl Outcome {
    /// All outcomes, in the order of the contract's numbers, from 1.
    pub const ALL: [Self; 10] = [
        Self::Succeeded,
        Self::Failed,
        Self::OutOfMemory,
        Self::TimedOut,
        Self::DiskLimit,
        Self::Cancelled,
        Self::Rejected,
        Self::NodeFault,
        Self::Preempted,
        Self::Superseded,
    ];

    /// The word that is shown and sent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::OutOfMemory => "OutOfMemory",
            Self::TimedOut => "TimedOut",
            Self::DiskLimit => "DiskLimit",
            Self::Cancelled => "Cancelled",
            Self::Rejected => "Rejected",
            Self::NodeFault => "NodeFault",
            Self::Preempted => "Preempted",
            Self::Superseded => "Superseded",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a task used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in milliseconds.
    pub cpu_ms: u64,
    /// Largest memory seen, in bytes, without the page cache that the kernel could drop.
    pub peak_memory_bytes: u64,
    /// Memory at the last look.
    pub memory_bytes: u64,
    /// Processes and threads at the last look.
    pub pids: u64,
    /// Bytes read from block devices.
    pub disk_read_bytes: u64,
    /// Bytes written to block devices.
    pub disk_written_bytes: u64,
}

/// Standard output is byte stream 1.
pub const STDOUT: u32 = 1;
/// Standard error is byte stream 2.
pub const STDERR: u32 = 2;
/// Output files are byte streams from here on, in the order of the final report.
pub const FIRST_OUTPUT: u32 = 16;

/// A collected file: its content is byte stream `stream`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Byte stream that carries the content.
    pub stream: u32,
    /// Path below the work folder, with `/`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Permission bits, without setuid, setgid and sticky.
    pub mode: u32,
    /// SHA-256 of the content, in hex.
    pub sha256: String,
}

/// How long a byte stream is in one epoch: with all of them the master knows when it has everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEnd {
    /// Byte stream.
    pub stream: u32,
    /// Start of the worker that wrote it.
    pub epoch: u64,
    /// Bytes in all.
    pub bytes: u64,
}

/// The one last word on an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Of the container's first process, where it ended.
    pub exit_code: Option<i64>,
    /// Why, in words; the engine's own where it refused.
    pub reason: String,
    /// What it used.
    pub usage: Usage,
    /// Running time in milliseconds, without pauses.
    pub duration_ms: u64,
    /// Digest or id of the image that ran, when one did.
    pub image_digest: String,
    /// Collected files.
    pub outputs: Vec<OutputFile>,
    /// What was not collected or not kept, and why: one line each, bounded.
    pub cut: Vec<String>,
    /// Length of each byte stream.
    pub streams: Vec<StreamEnd>,
    /// The last 64 KiB of output at the most, both streams in order of arrival, for a reader who wants no streams.
    pub tail: Vec<u8>,
    /// How long it was in each phase, in the order of the first visits.
    #[serde(default)]
    pub phases: Vec<PhaseTime>,
    /// Where a container ran.
    #[serde(default)]
    pub limits: Option<AppliedLimits>,
    /// Where a container ran.
    #[serde(default)]
    pub figures: Option<UsageFigures>,
    /// Where a container ran.
    #[serde(default)]
    pub evidence: Option<Evidence>,
    /// Why it did not run, for a program, where the contract has a word for that.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
}

impl FinalReport {
    /// A report of an attempt that never ran.
    pub fn without_run(outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            outcome,
            exit_code: None,
            reason: reason.into(),
            usage: Usage::default(),
            duration_ms: 0,
            image_digest: String::new(),
            outputs: Vec::new(),
            cut: Vec::new(),
            streams: Vec::new(),
            tail: Vec::new(),
            phases: Vec::new(),
            limits: None,
            figures: None,
            evidence: None,
            code: String::new(),
        }
    }
}

/// What an event tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The attempt entered a phase; the text says why where that is not plain.
    Phase(Phase, String),
    /// Something that a reader of the record must know: a gap, a refused piece, a dropped part.
    Note(String),
    /// A threshold was crossed.
    Alert(String),
    /// The end.
    Final(Box<FinalReport>),
}

/// A numbered line of the record. Number and content never change once written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// From 1, without holes, per attempt.
    pub number: u64,
    /// Milliseconds since 1970 by the node's clock, which may be wrong: for people, not for order.
    pub time_ms: u64,
    /// What happened.
    pub kind: EventKind,
}

/// One piece of a record on its way to the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Whose record.
    pub key: AttemptKey,
    /// What of it.
    pub content: PieceContent,
}

/// See [`Piece`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PieceContent {
    /// An event.
    Event(Event),
    /// Bytes of a stream.
    Chunk {
        /// Byte stream.
        stream: u32,
        /// Start of the worker that wrote it.
        epoch: u64,
        /// Of the first byte.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
        /// Whether the stream ends behind them.
        is_last: bool,
        /// Whether what the master lacks before them is gone.
        is_after_gap: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_the_version_before_is_still_read() {
        // As version 0.1.0 wrote it.
        let text = r#"{"outcome":"Failed","exit_code":3,"reason":"exit code 3","usage":{"cpu_ms":1,"peak_memory_bytes":2,
            "memory_bytes":2,"pids":1,"disk_read_bytes":0,"disk_written_bytes":0},"duration_ms":9,"image_digest":"sha256:1",
            "outputs":[],"cut":[],"streams":[{"stream":1,"epoch":1,"bytes":2}],"tail":[104,105]}"#;
        let report: FinalReport = serde_json::from_str(text).unwrap();
        assert_eq!((report.exit_code, report.tail.as_slice()), (Some(3), b"hi".as_slice()));
        assert!(report.phases.is_empty() && report.limits.is_none() && report.evidence.is_none());
    }

    #[test]
    fn an_outcome_has_one_spelling_and_the_older_one_is_still_read() {
        for outcome in Outcome::ALL {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
        }
        for (old, outcome) in [("timed_out", Outcome::TimedOut), ("succeeded", Outcome::Succeeded)] {
            assert_eq!(serde_json::from_value::<Outcome>(old.into()).unwrap(), outcome);
        }
    }
}
