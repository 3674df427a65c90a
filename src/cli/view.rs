//! What the control socket's answers look like to a client: only what the client uses, and tolerant of more.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::node::account::{AppliedLimits, Evidence, PhaseTime, UsageFigures};
use crate::node::leftover::LeftOver;
use crate::node::record::{Outcome, OutputFile, Usage};
use crate::node::resources::Resources;
use crate::node::snapshot::HistoryRow;

/// A submitted task.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SubmissionView {
    /// The task.
    pub(super) task: String,
    /// The latest attempt.
    pub(super) attempt: u32,
    /// Another number after each change.
    pub(super) version: u64,
    /// Where it stands.
    pub(super) phase: String,
    /// The report, once it is there.
    #[serde(default)]
    pub(super) final_report: Option<ReportView>,
    /// Whether everything has arrived, the outputs too.
    #[serde(default)]
    pub(super) is_complete: bool,
    /// Bytes of standard output that arrived.
    #[serde(default)]
    pub(super) stdout_bytes: u64,
    /// Bytes of standard error that arrived.
    #[serde(default)]
    pub(super) stderr_bytes: u64,
    /// What a reader must know, oldest first.
    #[serde(default)]
    pub(super) notes: Vec<String>,
    /// Why it waits for a node.
    #[serde(default)]
    pub(super) waits: Option<String>,
    /// Whether the node knows nothing of it.
    #[serde(default)]
    pub(super) is_at_master: bool,
    /// What it asks for.
    #[serde(default)]
    pub(super) limits: Resources,
    /// When it came, milliseconds since 1970.
    #[serde(default)]
    pub(super) submitted_ms: u64,
    /// When it ended.
    #[serde(default)]
    pub(super) finished_ms: u64,
}

impl SubmissionView {
    /// As people name it.
    pub(super) fn key(&self) -> String {
        format!("{}#{}", self.task, self.attempt)
    }
}

/// A final report without the parts that only masters need.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ReportView {
    /// How it ended.
    pub(super) outcome: Outcome,
    /// Of the container's first process.
    #[serde(default)]
    pub(super) exit_code: Option<i64>,
    /// Why, in words.
    #[serde(default)]
    pub(super) reason: String,
    /// What it used.
    #[serde(default)]
    pub(super) usage: Usage,
    /// Running time.
    #[serde(default)]
    pub(super) duration_ms: u64,
    /// Collected files.
    #[serde(default)]
    pub(super) outputs: Vec<OutputFile>,
    /// What was not collected or not kept.
    #[serde(default)]
    pub(super) cut: Vec<String>,
    /// Of the image that ran.
    #[serde(default)]
    pub(super) image_digest: String,
    /// Time in each phase.
    #[serde(default)]
    pub(super) phases: Vec<PhaseTime>,
    /// As applied.
    #[serde(default)]
    pub(super) limits: Option<AppliedLimits>,
    /// Peaks and averages.
    #[serde(default)]
    pub(super) figures: Option<UsageFigures>,
    /// What the outcome was decided by.
    #[serde(default)]
    pub(super) evidence: Option<Evidence>,
}

/// The result of a task for scripts: one line of JSON.
#[derive(Serialize)]
pub(super) struct ResultLine<'a> {
    task: &'a str,
    attempt: u32,
    outcome: &'static str,
    exit_code: Option<i64>,
    reason: &'a str,
    duration_ms: u64,
    peak_memory_bytes: u64,
    cpu_ms: u64,
    outputs: Vec<OutputLine<'a>>,
    cut: &'a [String],
    image_digest: &'a str,
    usage: Usage,
    phases: &'a [PhaseTime],
    limits: Option<&'a AppliedLimits>,
    figures: Option<&'a UsageFigures>,
    evidence: Option<&'a Evidence>,
}

#[derive(Serialize)]
struct OutputLine<'a> {
    path: &'a str,
    size: u64,
    sha256: &'a str,
}

impl<'a> ResultLine<'a> {
    /// From a submission and its report.
    pub(super) fn new(view: &'a SubmissionView, report: &'a ReportView) -> Self {
        let outputs =
            report.outputs.iter().map(|file| OutputLine { path: &file.path, size: file.size, sha256: &file.sha256 });
        Self {
            task: &view.task,
            attempt: view.attempt,
            outcome: report.outcome.as_str(),
            exit_code: report.exit_code,
            reason: &report.reason,
            duration_ms: report.duration_ms,
            peak_memory_bytes: report.usage.peak_memory_bytes,
            cpu_ms: report.usage.cpu_ms,
            outputs: outputs.collect(),
            cut: &report.cut,
            image_digest: &report.image_digest,
            usage: report.usage,
            phases: &report.phases,
            limits: report.limits.as_ref(),
            figures: report.figures.as_ref(),
            evidence: report.evidence.as_ref(),
        }
    }
}

/// `{"history": [...]}`.
#[derive(Deserialize)]
pub(super) struct HistoryAnswer {
    history: Vec<HistoryRow>,
}

impl HistoryAnswer {
    /// Newest first.
    pub(super) fn rows(self) -> Vec<HistoryRow> {
        self.history
    }
}

/// `{"left_over": [...]}`.
#[derive(Deserialize)]
pub(super) struct CollectAnswer {
    left_over: Vec<LeftOver>,
}

impl CollectAnswer {
    /// In the order of removal.
    pub(super) fn rows(self) -> Vec<LeftOver> {
        self.left_over
    }
}

/// `{"submissions": [...]}`.
#[derive(Deserialize)]
pub(super) struct ListAnswer {
    submissions: Vec<serde_json::Value>,
}

impl ListAnswer {
    /// In the worker's order.
    pub(super) fn rows(self) -> Vec<serde_json::Value> {
        self.submissions
    }
}

/// A piece of a byte stream.
pub(super) struct LogPart {
    /// Of the first byte; above the one asked for where earlier bytes are gone.
    pub(super) offset: u64,
    /// The bytes.
    pub(super) bytes: Vec<u8>,
    /// Whether no more will come.
    pub(super) is_closed: bool,
}

impl LogPart {
    /// Of the next byte.
    pub(super) fn next(&self) -> u64 {
        self.offset.saturating_add(self.bytes.len() as u64)
    }
}

/// A stream of a task's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamName {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}
