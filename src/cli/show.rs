//! `tasks show` and `tasks bundle`: one attempt whole, and what is kept of one that failed.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use crate::config::Format;
use crate::monitor::TaskView;
use crate::node::account::{AppliedLimits, Evidence, UsageFigures};
use crate::node::id::Id;
use crate::node::record::{FinalReport, Usage};

use super::client::{Client, ClientError};
use super::table::{self, bytes, cpus, duration, row};
use super::{Failure, actions, escape, print, tell};

/// Output files that are listed to people; the rest is counted.
const MAX_LISTED: usize = 20;

/// `tasks show`.
pub(super) fn show(client: &Client, task: &Id, attempt: Option<u32>, format: Format) -> Result<u8, Failure> {
    let view = find(client, task, attempt)?;
    match format {
        Format::Json => {
            let line = serde_json::to_string(&view);
            print(&format!("{}\n", line.map_err(|error| Failure::new(error.to_string()))?))
        }
        Format::Text => print(&text(&view)),
    }
}

/// `tasks bundle`.
pub(super) fn bundle(client: &Client, task: &Id, attempt: Option<u32>, output: Option<&Path>) -> Result<u8, Failure> {
    let view = find(client, task, attempt)?;
    if view.bundle_bytes.is_none() {
        return Err(Failure::new(format!("{} has no bundle: {}", view.key, why_no_bundle(&view))));
    }
    if output.is_none() && io::stdout().is_terminal() {
        return Err(Failure::new("a bundle is a tar archive: give --output FILE, or pipe it into `tar -t`"));
    }
    let (mut reader, size) = client.bundle(&view.key)?;
    let fault = |error: io::Error| Failure::new(format!("failed to copy the bundle: {error}"));
    let copied = match output {
        None => {
            let mut out = io::stdout().lock();
            io::copy(&mut reader, &mut out).and_then(|copied| out.flush().map(|()| copied)).map_err(fault)?
        }
        Some(path) => {
            let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            let refuse = |error| Failure::new(format!("can't make {}: {error}", path.display()));
            let mut file = made.map_err(refuse)?;
            io::copy(&mut reader, &mut file).and_then(|copied| file.sync_all().map(|()| copied)).map_err(fault)?
        }
    };
    if size.is_some_and(|size| size != copied) {
        return Err(Failure::new(format!("the bundle broke off after {copied} bytes")));
    }
    if let Some(path) = output {
        tell(&format!("saved {} ({})", path.display(), bytes(copied)));
    }
    Ok(0)
}

fn find(client: &Client, task: &Id, attempt: Option<u32>) -> Result<TaskView, Failure> {
    match client.task(task, attempt) {
        Err(error) if error.is_not_found() => {
            if let (Some(attempt), Ok(latest)) = (attempt, client.task(task, None)) {
                return Err(Failure::new(format!(
                    "this node knows no attempt {attempt} of {task}; the latest is {}",
                    latest.key
                )));
            }
            Err(at_master(client, task))
        }
        result => result.map_err(Failure::from),
    }
}

/// The node does not know it; the small master may.
fn at_master(client: &Client, task: &Id) -> Failure {
    match client.submission(task.as_str(), None, Duration::ZERO) {
        Ok(view) => {
            let why = view.waits.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
            match &view.final_report {
                Some(report) => {
                    Failure::new(format!("{} never ran: {}: {}", view.key(), report.outcome, report.reason))
                }
                None => Failure::new(format!("{} waits at the small master{why}", view.key())),
            }
        }
        Err(ClientError::Refused { .. }) => actions::not_held(task),
        Err(error) => error.into(),
    }
}

fn why_no_bundle(view: &TaskView) -> String {
    let outcome = view.report.as_ref().map(|report| report.outcome).or(view.ended.as_ref().map(|row| row.outcome));
    match outcome {
        None => "it has not ended".to_owned(),
        Some(outcome) => format!(
            "it ended {outcome}; one is kept of tasks that failed, unless HIVEMIND_BUNDLES or HIVEMIND_BUNDLE_AGE ended it"
        ),
    }
}

fn text(view: &TaskView) -> String {
    let mut rows = vec![row(["task", &view.key.to_string()])];
    if let Some(held) = &view.held {
        rows.push(row(["phase", &joined(held.phase.as_str(), &held.detail)]));
    }
    let (owner, image) = match (&view.held, &view.ended) {
        (Some(held), _) => (held.owner.as_str(), held.image.as_str()),
        (None, Some(ended)) => (ended.owner.as_str(), ended.image.as_str()),
        (None, None) => ("", ""),
    };
    rows.push(row(["owner", owner]));
    rows.push(row(["image", image]));
    match (&view.report, &view.ended, &view.held) {
        (Some(report), ..) => report_rows(report, &mut rows),
        // Older than the reports that are kept.
        (None, Some(ended), _) => {
            rows.push(row(["outcome", &joined(ended.outcome.as_str(), &ended.reason)]));
            rows.push(row(["ran for", &duration(ended.duration_ms)]));
            rows.push(row(["use", &use_text(&ended.usage, None)]));
        }
        (None, None, Some(held)) => {
            rows.push(row(["running for", &format!("{} of {}", duration(held.running_ms), duration(held.timeout_ms))]));
            rows.push(row(["use", &use_text(&held.usage, None)]));
        }
        (None, None, None) => {}
    }
    if let Some(size) = view.bundle_bytes {
        rows.push(row(["bundle", &format!("{}: hivemind-worker tasks bundle {}", bytes(size), view.key)]));
    }
    rows.retain(|row| row.last().is_some_and(|cell| !cell.is_empty()));
    let mut text = table::render(&rows);
    if !view.tail.is_empty() {
        text.push_str("\nlast output\n");
        text.push_str(&escape::line(&view.tail));
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    text
}

fn joined(word: &str, reason: &str) -> String {
    if reason.is_empty() { word.to_owned() } else { format!("{word}: {reason}") }
}

fn report_rows(report: &FinalReport, rows: &mut Vec<Vec<String>>) {
    rows.push(row(["outcome", &joined(report.outcome.as_str(), &report.reason)]));
    rows.push(row(["exit code", &report.exit_code.map_or(String::new(), |code| code.to_string())]));
    rows.push(row(["image digest", &report.image_digest]));
    if let Some(evidence) = &report.evidence {
        rows.push(row(["ended by", &evidence_text(evidence)]));
        rows.push(row(["engine's times", &format!("{} to {}", evidence.started_at, evidence.finished_at)]));
    }
    rows.push(row(["ran for", &duration(report.duration_ms)]));
    let phases = report.phases.iter().map(|time| format!("{} {}", time.phase, duration(time.duration_ms)));
    rows.push(row(["phases", &phases.collect::<Vec<_>>().join(", ")]));
    rows.push(row(["limits", &report.limits.as_ref().map_or(String::new(), limits_text)]));
    rows.push(row(["use", &use_text(&report.usage, report.figures.as_ref())]));
    let sum = report.outputs.iter().fold(0u64, |sum, file| sum.saturating_add(file.size));
    let count = report.outputs.len() as u64;
    rows.push(row(["outputs", &format!("{}, {}", table::count(count, "file"), bytes(sum))]));
    for file in report.outputs.iter().take(MAX_LISTED) {
        rows.push(row(["", &format!("{} ({})", file.path, bytes(file.size))]));
    }
    if report.outputs.len() > MAX_LISTED {
        rows.push(row(["", &format!("and {} more", report.outputs.len() - MAX_LISTED)]));
    }
    rows.extend(report.cut.iter().map(|line| row(["cut", line])));
}

fn evidence_text(evidence: &Evidence) -> String {
    let mut parts = vec![evidence.ended_by.as_str().to_owned()];
    parts.extend(evidence.signal.map(|signal| format!("signal {signal}")));
    if evidence.oom_killed == Some(true) {
        parts.push("the engine's out-of-memory flag".to_owned());
    }
    if !evidence.signals_sent.is_empty() {
        parts.push(format!("the node sent {}", evidence.signals_sent.join(" and ")));
    }
    if !evidence.engine_error.is_empty() {
        parts.push(format!("the engine says {}", evidence.engine_error));
    }
    parts.join("; ")
}

fn limits_text(limits: &AppliedLimits) -> String {
    let known = |value: Option<u64>, show: &dyn Fn(u64) -> String| value.map_or("none".to_owned(), show);
    format!(
        "CPUs {}, memory {}, pids {}, disk {}, time {}, grace {}, network {}, runtime {}",
        known(limits.cpu_millis, &cpus),
        known(limits.memory_bytes, &bytes),
        known(limits.pids, &|pids| pids.to_string()),
        bytes(limits.disk_bytes),
        duration(limits.timeout_ms),
        duration(limits.grace_ms),
        limits.network,
        if limits.runtime.is_empty() { "not known" } else { &limits.runtime }
    )
}

fn use_text(usage: &Usage, figures: Option<&UsageFigures>) -> String {
    let figures = figures.copied().unwrap_or_default();
    let mut parts = vec![
        format!("CPU {}", duration(usage.cpu_ms)),
        format!("memory peak {}", table::peak(usage.peak_memory_bytes)),
    ];
    let mut add = |what: &str, value: Option<u64>, show: &dyn Fn(u64) -> String| {
        parts.extend(value.map(|value| format!("{what} {}", show(value))));
    };
    add("CPUs on average", figures.average_cpu_millis, &cpus);
    add("CPUs at most", figures.peak_cpu_millis, &cpus);
    add("memory on average", figures.average_memory_bytes, &bytes);
    add("pids at most", figures.peak_pids, &|pids| pids.to_string());
    add("work folder at most", figures.peak_disk_bytes, &bytes);
    add("read", Some(usage.disk_read_bytes), &bytes);
    add("written", Some(usage.disk_written_bytes), &bytes);
    add("received", figures.network_received_bytes, &bytes);
    add("sent", figures.network_sent_bytes, &bytes);
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::account::{EndedBy, PhaseTime};
    use crate::node::id::AttemptKey;
    use crate::node::record::{Outcome, OutputFile, Phase};

    #[test]
    fn shows_an_attempt_whole_and_harmless() {
        let mut report = FinalReport::without_run(Outcome::TimedOut, "ran longer than 2 s\u{1b}[2J");
        report.exit_code = Some(137);
        report.phases = vec![PhaseTime { phase: Phase::Queued, duration_ms: 5 }];
        report.limits = Some(AppliedLimits {
            memory_bytes: Some(64 << 20),
            network: "none".to_owned(),
            ..AppliedLimits::default()
        });
        report.figures =
            Some(UsageFigures { peak_pids: Some(3), network_sent_bytes: Some(0), ..UsageFigures::default() });
        report.evidence = Some(Evidence {
            ended_by: EndedBy::Limit,
            signal: Some(9),
            signals_sent: vec!["SIGTERM".to_owned(), "SIGKILL".to_owned()],
            ..Evidence::default()
        });
        report.outputs.push(OutputFile {
            stream: 16,
            path: "output/a\u{202e}b".to_owned(),
            size: 3,
            mode: 0o644,
            sha256: String::new(),
        });
        let view = TaskView {
            key: AttemptKey { task: Id::parse("t").unwrap(), attempt: 2 },
            held: None,
            ended: None,
            report: Some(report),
            tail: "last\u{7} line".to_owned(),
            bundle_bytes: Some(2_048),
        };
        let text = text(&view);
        for wanted in [
            "task            t#2\n",
            "outcome         TimedOut: ran longer than 2 s\\x1b[2J\n",
            "ended by        the node, for a limit; signal 9; the node sent SIGTERM and SIGKILL\n",
            "phases          queued 5 ms\n",
            "memory 64.0 MiB, pids none",
            "pids at most 3",
            "sent 0 B",
            "output/a\\u{202e}b (3 B)\n",
            "bundle          2.0 KiB: hivemind-worker tasks bundle t#2\n",
            "\nlast output\nlast\\x07 line\n",
        ] {
            assert!(text.contains(wanted), "{wanted:?} in {text}");
        }
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}
