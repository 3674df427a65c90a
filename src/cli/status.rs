//! `status` and `tasks`: the node as it stands, for people or for scripts.

use crate::config::Format;
use crate::node::snapshot::{AttemptView, HistoryRow, Snapshot};
use crate::sys::time::unix_ms;

use super::client::Client;
use super::table::{self, bytes, cpus, duration, row};
use super::{Failure, print};

/// Alerts that are shown to people; all of them are on the monitor page.
const MAX_ALERTS: usize = 5;

/// `status`.
pub(super) fn status(client: &Client, format: Format) -> Result<u8, Failure> {
    match format {
        Format::Json => print(&(client.status_text()?.trim_end().to_owned() + "\n")),
        Format::Text => print(&status_text(&client.status()?)),
    }
}

/// `tasks`.
pub(super) fn tasks(client: &Client, format: Format, limit: u32) -> Result<u8, Failure> {
    let attempts = client.status()?.attempts;
    let history = client.history(limit)?;
    match format {
        Format::Json => {
            let value = serde_json::json!({ "tasks": attempts, "history": history });
            print(&format!("{value}\n"))
        }
        Format::Text => print(&tasks_text(&attempts, &history)),
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
    for alert in snapshot.alerts.iter().take(MAX_ALERTS) {
        rows.push(row(["alert", alert]));
    }
    let mut text = table::render(&rows);
    if !snapshot.attempts.is_empty() {
        text.push('\n');
        text.push_str(&attempts_text(&snapshot.attempts));
    }
    text
}

fn tasks_text(attempts: &[AttemptView], history: &[HistoryRow]) -> String {
    if attempts.is_empty() && history.is_empty() {
        return "no tasks yet\n".to_owned();
    }
    let mut text = String::new();
    if !attempts.is_empty() {
        text.push_str(&attempts_text(attempts));
    }
    if !history.is_empty() {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&history_text(history));
    }
    text
}

fn attempts_text(attempts: &[AttemptView]) -> String {
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
    table::render(&rows)
}

fn history_text(history: &[HistoryRow]) -> String {
    let mut rows = vec![row(["ENDED TASK", "OUTCOME", "CODE", "DURATION", "PEAK MEMORY", "OUTPUT", "REASON"])];
    rows.extend(history.iter().map(|entry| {
        row([
            &entry.key.to_string(),
            entry.outcome.as_str(),
            &entry.exit_code.map_or("-".to_owned(), |code| code.to_string()),
            &duration(entry.duration_ms),
            &bytes(entry.usage.peak_memory_bytes),
            &format!("{} files, {}", entry.output_files, bytes(entry.output_bytes)),
            &entry.reason,
        ])
    }));
    table::render(&rows)
}
