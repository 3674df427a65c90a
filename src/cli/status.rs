//! `status` and `tasks`: the node as it stands, for people or for scripts.

use crate::config::Format;
use crate::node::snapshot::{AttemptView, HistoryRow, Snapshot};
use crate::sys::time::unix_ms;

use super::client::Client;
use super::table::{self, bytes, cpus, duration, row};
use super::view::SubmissionView;
use super::{Failure, print};

/// Alerts that are shown to people; all of them are on the monitor page.
const MAX_ALERTS: usize = 5;
/// Submissions at the small master that are asked for: below what a reader takes in, and few enough for one answer.
const MAX_AT_MASTER: u32 = 1_000;

/// `status`.
pub(super) fn status(client: &Client, format: Format) -> Result<u8, Failure> {
    match format {
        Format::Json => print(&(client.status_text()?.trim_end().to_owned() + "\n")),
        Format::Text => print(&status_text(&client.status()?)),
    }
}

/// `tasks`.
pub(super) fn tasks(client: &Client, format: Format, limit: u32) -> Result<u8, Failure> {
    let snapshot = client.status()?;
    let history = client.history(limit)?;
    let at_master = if snapshot.is_standalone { client.at_master(MAX_AT_MASTER)? } else { Vec::new() };
    match format {
        Format::Json => {
            let value = serde_json::json!({ "tasks": snapshot.attempts, "history": history, "submissions": at_master });
            print(&format!("{value}\n"))
        }
        Format::Text => {
            let views = at_master.into_iter().map(serde_json::from_value::<SubmissionView>);
            let views = views.collect::<Result<Vec<_>, _>>();
            let views = views.map_err(|error| Failure::new(format!("the worker's answer can't be read: {error}")))?;
            print(&tasks_text(&snapshot.attempts, &history, &views, limit))
        }
    }
}

fn status_text(snapshot: &Snapshot) -> String {
    let or_reason = |word: &str, reason: &str| {
        if reason.is_empty() { word.to_owned() } else { format!("{word}: {reason}") }
    };
    let machine = &snapshot.machine;
    let host = &snapshot.host;
    let percent = |value: Option<f64>| value.map_or("unknown".to_owned(), |value| format!("{value:.0} %"));
    let known = |value: Option<u64>| value.map_or("unknown".to_owned(), bytes);
    let master = match (snapshot.is_standalone, snapshot.master.is_connected) {
        (true, _) => "in this process (standalone)".to_owned(),
        (false, true) => or_reason(&format!("{} connected", snapshot.master.url), &snapshot.master.detail),
        (false, false) => or_reason(&format!("{} not connected", snapshot.master.url), &snapshot.master.detail),
    };
    let engine = if snapshot.engine.is_usable { "usable" } else { "not usable" };
    let (lent, promised) = (&snapshot.lent, &snapshot.promised);
    let mut rows = vec![
        row(["node", &format!("{} (version {})", snapshot.node_id, snapshot.version)]),
        row(["state", &or_reason(snapshot.state.as_str(), &snapshot.state_reason)]),
        row(["running for", &duration(unix_ms().saturating_sub(snapshot.started_ms))]),
        row(["monitor", &snapshot.monitor]),
        row(["master", &master]),
        row(["engine", &or_reason(engine, &snapshot.engine.detail)]),
        row([
            "machine",
            &format!(
                "{}, {} {}, {} CPUs, {}",
                machine.hostname,
                machine.os,
                machine.arch,
                machine.cpus,
                bytes(machine.memory_bytes)
            ),
        ]),
        row([
            "in use",
            &format!(
                "CPU {}, memory free {} of {}, disk free {}",
                percent(host.cpu_percent),
                known(host.memory_available_bytes),
                known(host.memory_total_bytes),
                known(host.disk_free_bytes)
            ),
        ]),
        row([
            "lent",
            &format!(
                "CPUs {} of {}, memory {} of {}, disk {} of {}, slots {} of {} promised",
                cpus(promised.cpu_millis),
                cpus(lent.cpu_millis),
                bytes(promised.memory_bytes),
                bytes(lent.memory_bytes),
                bytes(promised.disk_bytes),
                bytes(lent.disk_bytes),
                promised.slots,
                lent.slots
            ),
        ]),
    ];
    if !snapshot.over_threshold.is_empty() {
        rows.push(row(["over threshold", &snapshot.over_threshold.join(", ")]));
    }
    for alert in snapshot.alerts.iter().take(MAX_ALERTS) {
        rows.push(row(["alert", alert]));
    }
    let mut text = table::render(&rows);
    if !snapshot.attempts.is_empty() {
        text.push('\n');
        text.push_str(&attempts_text(&snapshot.attempts, &[]));
    }
    text
}

/// What the node holds and what waits at the small master; then what ended at either, the newest `limit`.
fn tasks_text(attempts: &[AttemptView], history: &[HistoryRow], at_master: &[SubmissionView], limit: u32) -> String {
    let waiting: Vec<&SubmissionView> = at_master.iter().filter(|view| view.final_report.is_none()).collect();
    let mut ended: Vec<(u64, Vec<String>)> =
        history.iter().map(|entry| (entry.finished_ms, ended_row(entry))).collect();
    ended.extend(at_master.iter().filter_map(|view| Some((view.finished_ms, never_ran_row(view)?))));
    ended.sort_by_key(|(finished_ms, _)| std::cmp::Reverse(*finished_ms));
    ended.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let mut parts = Vec::new();
    if !attempts.is_empty() || !waiting.is_empty() {
        parts.push(attempts_text(attempts, &waiting));
    }
    if !ended.is_empty() {
        let head = row(["ENDED TASK", "OUTCOME", "CODE", "DURATION", "PEAK MEMORY", "OUTPUT", "REASON"]);
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(ended.into_iter().map(|(_, row)| row)).collect();
        parts.push(table::render(&rows));
    }
    if parts.is_empty() { "no tasks yet\n".to_owned() } else { parts.join("\n") }
}

fn attempts_text(attempts: &[AttemptView], waiting: &[&SubmissionView]) -> String {
    let mut rows = vec![row(["TASK", "PHASE", "SINCE", "CPUS", "MEMORY", "DETAIL"])];
    let now = unix_ms();
    rows.extend(attempts.iter().map(|view| {
        let memory = format!("{} of {}", bytes(view.usage.memory_bytes), bytes(view.limits.memory_bytes));
        row([
            &view.key.to_string(),
            view.phase.as_str(),
            &duration(now.saturating_sub(view.phase_since_ms)),
            &cpus(view.limits.cpu_millis),
            &memory,
            &view.detail,
        ])
    }));
    rows.extend(waiting.iter().map(|view| {
        row([
            &view.key(),
            &view.phase,
            &duration(now.saturating_sub(view.submitted_ms)),
            &cpus(view.limits.cpu_millis),
            &format!("- of {}", bytes(view.limits.memory_bytes)),
            view.waits.as_deref().unwrap_or_default(),
        ])
    }));
    table::render(&rows)
}

fn ended_row(entry: &HistoryRow) -> Vec<String> {
    row([
        &entry.key.to_string(),
        entry.outcome.as_str(),
        &entry.exit_code.map_or("-".to_owned(), |code| code.to_string()),
        &duration(entry.duration_ms),
        &table::peak(entry.usage.peak_memory_bytes),
        &format!("{}, {}", table::count(entry.output_files, "file"), bytes(entry.output_bytes)),
        &entry.reason,
    ])
}

/// Of a task that the small master ended by its own word.
fn never_ran_row(view: &SubmissionView) -> Option<Vec<String>> {
    let report = view.final_report.as_ref()?;
    Some(row([&view.key(), report.outcome.as_str(), "-", "-", "-", "-", &report.reason]))
}
