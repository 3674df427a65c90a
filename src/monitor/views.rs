//! JSON from the snapshot and the submissions. Whatever a task, an engine or a master wrote is made harmless here once,
//! so that no reader of the API has to think of it.

use serde::Serialize;

use super::text::escape_controls;
use super::{SubmissionView, TaskView};
use crate::node::leftover::LeftOver;
use crate::node::record::FinalReport;
use crate::node::snapshot::{AttemptView, HistoryRow, Snapshot};

/// `/api/v1/status` and the events: the whole snapshot on one line.
pub fn status(snapshot: &Snapshot) -> String {
    serde_json::to_string(&clean(snapshot)).unwrap_or_else(|error| {
        log::error!("failed to write the snapshot as JSON: {error}");
        "{}".to_owned()
    })
}

/// `/api/v1/tasks`.
pub fn tasks(snapshot: &Snapshot) -> impl Serialize {
    let tasks: Vec<AttemptView> = snapshot.attempts.iter().map(clean_attempt).collect();
    serde_json::json!({ "tasks": tasks })
}

/// `/api/v1/tasks/TASK/ATTEMPT`. Paths of outputs stay as they are: they are names.
pub fn task(mut view: TaskView) -> TaskView {
    view.held = view.held.as_ref().map(clean_attempt);
    view.ended = view.ended.as_ref().map(clean_row);
    if let Some(report) = &mut view.report {
        let last = std::mem::take(&mut report.tail);
        view.tail = escaped(&String::from_utf8_lossy(&last));
        clean_report(report);
    } else if let Some(held) = &view.held {
        view.tail.clone_from(&held.tail);
    }
    view
}

/// `/api/v1/gc`.
pub fn left_overs(mut found: Vec<LeftOver>) -> impl Serialize {
    for thing in &mut found {
        thing.name = escaped(&thing.name);
        thing.trouble = thing.trouble.as_deref().map(escaped);
    }
    serde_json::json!({ "left_over": found })
}

fn clean_report(report: &mut FinalReport) {
    report.reason = escaped(&report.reason);
    report.image_digest = escaped(&report.image_digest);
    report.cut = report.cut.iter().map(|line| escaped(line)).collect();
    if let Some(limits) = &mut report.limits {
        limits.network = escaped(&limits.network);
    }
    if let Some(evidence) = &mut report.evidence {
        evidence.engine_error = escaped(&evidence.engine_error);
        evidence.started_at = escaped(&evidence.started_at);
        evidence.finished_at = escaped(&evidence.finished_at);
        evidence.signals_sent = evidence.signals_sent.iter().map(|signal| escaped(signal)).collect();
    }
}

/// `/api/v1/history`, newest first.
pub fn history(snapshot: &Snapshot, limit: usize) -> impl Serialize {
    let rows: Vec<HistoryRow> = snapshot.history.iter().take(limit).map(clean_row).collect();
    serde_json::json!({ "history": rows })
}

/// `/api/v1/submissions`.
pub fn submissions(views: Vec<SubmissionView>) -> impl Serialize {
    let views: Vec<SubmissionView> = views.into_iter().map(submission).collect();
    serde_json::json!({ "submissions": views })
}

/// One submission. Paths of outputs stay as they are: they are names to ask for.
pub fn submission(mut view: SubmissionView) -> SubmissionView {
    view.notes = view.notes.iter().map(|note| escaped(note)).collect();
    view.waits = view.waits.as_deref().map(escaped);
    if let Some(report) = &mut view.final_report {
        clean_report(report);
        report.tail = Vec::new();
    }
    view
}

fn clean(snapshot: &Snapshot) -> Snapshot {
    let mut clean = snapshot.clone();
    for text in [
        &mut clean.state_reason,
        &mut clean.master.url,
        &mut clean.master.detail,
        &mut clean.engine.detail,
        &mut clean.machine.hostname,
        &mut clean.machine.cpu_model,
    ] {
        *text = escaped(text);
    }
    clean.attempts = snapshot.attempts.iter().map(clean_attempt).collect();
    clean.history = snapshot.history.iter().map(clean_row).collect();
    clean.alerts = snapshot.alerts.iter().map(|alert| escaped(alert)).collect();
    clean
}

fn clean_attempt(attempt: &AttemptView) -> AttemptView {
    AttemptView {
        image: escaped(&attempt.image),
        detail: escaped(&attempt.detail),
        tail: escaped(&attempt.tail),
        ..attempt.clone()
    }
}

fn clean_row(row: &HistoryRow) -> HistoryRow {
    HistoryRow { image: escaped(&row.image), reason: escaped(&row.reason), ..row.clone() }
}

fn escaped(text: &str) -> String {
    escape_controls(text).into_owned()
}
