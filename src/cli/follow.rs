//! `submit --wait`: watches a task to its end. A worker that restarts meanwhile is waited for: the task goes on.

use std::io;
use std::time::{Duration, Instant};

use crate::config::{Format, Submit};
use crate::node::id::AttemptKey;

use super::client::{Client, ClientError};
use super::interrupt::{EXIT_INTERRUPTED, Stop, until_interrupted};
use super::logs::{self, Sink};
use super::submit::{EXIT_OTHER, exit_code};
use super::view::{ReportView, ResultLine, StreamName, SubmissionView};
use super::{Failure, print, save, table, tell};

/// Longest poll.
const POLL: Duration = Duration::from_millis(500);
/// How long a worker may be away before we give up on it.
const AWAY: Duration = Duration::from_secs(60);
/// Phases in which a task may wait for something that the node can name.
const WAITING: [&str; 3] = ["received", "queued", "preparing"];

/// Watches until the task ended, then saves outputs and says how it went.
pub(super) fn follow(client: &Client, options: &Submit, key: &AttemptKey) -> Result<u8, Failure> {
    let (owned_client, owned_options, owned_key) = (client.clone(), options.clone(), key.clone());
    let code = until_interrupted(move |stop| to_the_end(&owned_client, &owned_options, &owned_key, stop))?;
    Ok(code.unwrap_or_else(|| {
        tell(&format!(
            "{key} goes on without us: `hivemind-worker cancel {0}` stops it, `hivemind-worker logs {0} --follow` shows its output",
            key.task
        ));
        EXIT_INTERRUPTED
    }))
}

fn to_the_end(client: &Client, options: &Submit, key: &AttemptKey, stop: &Stop) -> Result<u8, Failure> {
    let view = Follower::new(client, key, options.format).run(stop)?;
    let report = view.final_report.as_ref().ok_or_else(|| other(format!("{key} has ended without a report")))?;
    tell(&summary(key, report));
    for line in &report.cut {
        tell(&format!("not complete: {line}"));
    }
    let saved = match &options.output {
        Some(folder) => save::save(client, key.task.as_str(), &report.outputs, folder),
        None => Ok(()),
    };
    if options.format == Format::Json {
        let line = serde_json::to_string(&ResultLine::new(&view, report)).map_err(|error| other(error.to_string()))?;
        print(&format!("{line}\n"))?;
    }
    saved.map_err(other)?;
    Ok(match exit_code(report.outcome, report.exit_code) {
        // Whoever wanted the files has not got all of them.
        0 if options.output.is_some() && !report.cut.is_empty() => EXIT_OTHER,
        code => code,
    })
}

struct Follower<'a> {
    client: &'a Client,
    key: &'a AttemptKey,
    is_live: bool,
    stdout: (u64, Sink<io::Stdout>),
    stderr: (u64, Sink<io::Stderr>),
    phase: String,
    detail: String,
    waits: Option<String>,
    notes: usize,
    away_since: Option<Instant>,
}

fn other(message: impl Into<String>) -> Failure {
    Failure::with_code(EXIT_OTHER, message)
}

fn summary(key: &AttemptKey, report: &ReportView) -> String {
    let mut text = format!("{key} {}", report.outcome);
    if let Some(code) = report.exit_code {
        text.push_str(&format!(", exit code {code}"));
    }
    text.push_str(&format!(
        ", {}, peak memory {}, CPU time {}, {}",
        table::duration(report.duration_ms),
        table::peak(report.usage.peak_memory_bytes),
        table::duration(report.usage.cpu_ms),
        table::count(report.outputs.len() as u64, "output file")
    ));
    if !report.reason.is_empty() {
        text.push_str(": ");
        text.push_str(&report.reason);
    }
    text
}

impl<'a> Follower<'a> {
    fn new(client: &'a Client, key: &'a AttemptKey, format: Format) -> Self {
        Self {
            client,
            key,
            is_live: format == Format::Text,
            stdout: (0, Sink::stdout()),
            stderr: (0, Sink::stderr()),
            phase: String::new(),
            detail: String::new(),
            waits: None,
            notes: 0,
            away_since: None,
        }
    }

    fn run(&mut self, stop: &Stop) -> Result<SubmissionView, Failure> {
        let mut seen = None;
        loop {
            match self.step(seen) {
                Ok(view) if view.is_complete => return Ok(view),
                Ok(view) => {
                    self.away_since = None;
                    seen = Some(view.version);
                }
                Err(StepError::Output(error)) => {
                    return Err(other(format!("failed to write output of {}, which goes on: {error}", self.key)));
                }
                Err(StepError::Call(error)) if error.is_connection_lost() => {
                    self.check_patience(&error)?;
                    seen = None;
                    if !stop.pause(POLL) {
                        return Err(other("interrupted"));
                    }
                }
                Err(StepError::Call(error)) => return Err(other(error.to_string())),
            }
        }
    }

    fn check_patience(&mut self, error: &ClientError) -> Result<(), Failure> {
        match self.away_since {
            None => {
                tell(&format!("lost the worker ({error}); waiting up to {} s for it", AWAY.as_secs()));
                self.away_since = Some(Instant::now());
                Ok(())
            }
            Some(since) if since.elapsed() < AWAY => Ok(()),
            Some(_) => Err(other(error.to_string())),
        }
    }

    fn step(&mut self, seen: Option<u64>) -> Result<SubmissionView, StepError> {
        let view = self.client.submission(self.key.task.as_str(), seen, POLL)?;
        self.tell_changes(&view);
        if self.is_live {
            let task = self.key.task.as_str();
            pump(self.client, task, StreamName::Stdout, view.stdout_bytes, &mut self.stdout)?;
            pump(self.client, task, StreamName::Stderr, view.stderr_bytes, &mut self.stderr)?;
        }
        if view.is_complete {
            self.stdout.1.finish().map_err(StepError::Output)?;
            self.stderr.1.finish().map_err(StepError::Output)?;
        }
        Ok(view)
    }

    fn tell_changes(&mut self, view: &SubmissionView) {
        if view.phase != self.phase {
            self.phase.clone_from(&view.phase);
            tell(&format!("{} {}", self.key, view.phase));
        }
        if view.waits != self.waits {
            if let Some(reason) = &view.waits {
                tell(&format!("{} waits: {reason}", self.key));
            }
            self.waits.clone_from(&view.waits);
        }
        for note in view.notes.iter().skip(self.notes) {
            tell(&format!("{} note: {note}", self.key));
        }
        self.notes = view.notes.len().max(self.notes);
        if !WAITING.contains(&view.phase.as_str()) {
            return;
        }
        // Only a help for people: without it the task goes its way all the same.
        let Ok(status) = self.client.status() else { return };
        let held = status.attempts.into_iter().find(|attempt| attempt.key == *self.key);
        if let Some(attempt) = held.filter(|attempt| !attempt.detail.is_empty() && attempt.detail != self.detail) {
            tell(&format!("{} {}: {}", self.key, attempt.phase, attempt.detail));
            self.detail = attempt.detail;
        }
    }
}

enum StepError {
    Call(ClientError),
    Output(io::Error),
}

impl From<ClientError> for StepError {
    fn from(error: ClientError) -> Self {
        Self::Call(error)
    }
}

/// Passes on what is new of a stream, up to `end`.
fn pump<W: io::Write>(
    client: &Client,
    task: &str,
    stream: StreamName,
    end: u64,
    (offset, sink): &mut (u64, Sink<W>),
) -> Result<(), StepError> {
    while *offset < end {
        let part = client.submission_log(task, stream, *offset)?;
        if part.offset > *offset {
            tell(&logs::gap(part.offset - *offset));
        }
        let next = part.next();
        if part.bytes.is_empty() && next <= *offset {
            break;
        }
        *offset = next;
        sink.write(&part.bytes).map_err(StepError::Output)?;
    }
    Ok(())
}
