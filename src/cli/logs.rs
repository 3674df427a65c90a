//! `logs`: output of a task, from the small master when it has it, else from the node.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crate::config::Logs;
use crate::node::id::AttemptKey;

use super::client::{Client, ClientError};
use super::escape::Escaper;
use super::interrupt::{EXIT_INTERRUPTED, Stop, until_interrupted};
use super::view::{LogPart, StreamName, SubmissionView};
use super::{Failure, actions, tell};

/// Between two looks for more output.
const LOOK: Duration = Duration::from_millis(500);
/// Phases at the node in which there is no output.
const BEFORE_THE_START: [&str; 4] = ["received", "queued", "preparing", "starting"];

/// Passes a stream on: bytes as they are, or escaped for a terminal.
pub(super) struct Sink<W> {
    out: W,
    escaper: Option<Escaper>,
}

impl Sink<io::Stdout> {
    /// To standard output.
    pub(super) fn stdout() -> Self {
        Self::new(io::stdout(), io::stdout().is_terminal())
    }
}

impl Sink<io::Stderr> {
    /// To standard error.
    pub(super) fn stderr() -> Self {
        Self::new(io::stderr(), io::stderr().is_terminal())
    }
}

impl<W: Write> Sink<W> {
    fn new(out: W, is_terminal: bool) -> Self {
        Self { out, escaper: is_terminal.then(Escaper::default) }
    }

    /// Writes what arrived, at once.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.escaper {
            None => self.out.write_all(bytes)?,
            Some(escaper) => self.out.write_all(escaper.push(bytes).as_bytes())?,
        }
        self.out.flush()
    }

    /// Writes what was kept back for the sake of a whole character.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        match &mut self.escaper {
            None => Ok(()),
            Some(escaper) => {
                self.out.write_all(escaper.finish().as_bytes())?;
                self.out.flush()
            }
        }
    }
}

enum Source {
    Submission(Box<SubmissionView>),
    Attempt(AttemptKey),
}

/// `logs`.
pub(super) fn logs(client: &Client, logs: &Logs) -> Result<u8, Failure> {
    let (client, logs) = (client.clone(), logs.clone());
    let code = until_interrupted(move |stop| copy_stream(&client, &logs, stop))?;
    Ok(code.unwrap_or(EXIT_INTERRUPTED))
}

fn copy_stream(client: &Client, logs: &Logs, stop: &Stop) -> Result<u8, Failure> {
    let task = logs.task.as_str();
    let stream = if logs.is_stderr { StreamName::Stderr } else { StreamName::Stdout };
    match source(client, logs)? {
        Source::Submission(view) => {
            if let Some(text) = not_started(&view) {
                tell(&text);
            }
            let code = copy(
                |offset| client.submission_log(task, stream, offset),
                || client.submission(task, None, Duration::ZERO).map(|view| view.is_complete),
                logs.is_following.then_some(stop),
            )?;
            tell_notes(client, task);
            Ok(code)
        }
        Source::Attempt(key) => copy(
            |offset| client.attempt_log(&key, stream, offset),
            || client.status().map(|status| status.attempts.iter().all(|view| view.key != key)),
            logs.is_following.then_some(stop),
        ),
    }
}

fn source(client: &Client, logs: &Logs) -> Result<Source, Failure> {
    if logs.attempt.is_none() {
        match client.submission(logs.task.as_str(), None, Duration::ZERO) {
            Ok(view) => return Ok(Source::Submission(Box::new(view))),
            // Not submitted here, or no small master here.
            Err(ClientError::Refused { status: 404 | 409, .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let key = match logs.attempt {
        Some(attempt) => Some(AttemptKey { task: logs.task.clone(), attempt }),
        None => actions::held_attempt(client, &logs.task)?,
    };
    key.map(Source::Attempt).ok_or_else(|| actions::not_held(&logs.task))
}

/// Why a task has no output yet, or never will; `None` for one that has started.
fn not_started(view: &SubmissionView) -> Option<String> {
    let key = view.key();
    if let Some(report) = view.final_report.as_ref().filter(|_| view.is_at_master) {
        return Some(format!("{key} never ran: {}: {}", report.outcome, report.reason));
    }
    if !view.is_at_master && !BEFORE_THE_START.contains(&view.phase.as_str()) {
        return None;
    }
    let reason = view.waits.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
    Some(format!("{key} has not started yet: {}{reason}", view.phase))
}

/// What a reader of the output must know, such as a gap. The output is whole in itself: no more than a help.
fn tell_notes(client: &Client, task: &str) {
    let Ok(view) = client.submission(task, None, Duration::ZERO) else { return };
    for note in &view.notes {
        tell(&format!("{} note: {note}", view.key()));
    }
}

/// Copies what is there, and with `follow` what comes until the end.
fn copy(
    read: impl Fn(u64) -> Result<LogPart, ClientError>,
    is_done: impl Fn() -> Result<bool, ClientError>,
    follow: Option<&Stop>,
) -> Result<u8, Failure> {
    let mut sink = Sink::stdout();
    let mut offset = 0;
    let mut was_done = false;
    loop {
        let part = match read(offset) {
            Ok(part) => part,
            // The node forgets an attempt whose record the master has in full.
            Err(error) if offset > 0 && error.is_not_found() => break,
            Err(error) => return Err(error.into()),
        };
        if part.offset > offset {
            tell(&gap(part.offset - offset));
        }
        offset = part.next();
        if let Err(error) = sink.write(&part.bytes) {
            return written(&error);
        }
        if !part.bytes.is_empty() {
            continue;
        }
        let Some(stop) = follow.filter(|_| !part.is_closed && !was_done) else { break };
        // One more look after the end: the last bytes may have come in between.
        was_done = is_done()?;
        if !was_done && !stop.pause(LOOK) {
            return Ok(EXIT_INTERRUPTED);
        }
    }
    match sink.finish() {
        Ok(()) => Ok(0),
        Err(error) => written(&error),
    }
}

/// A reader that went away, such as `head`, wants no more; that is no failure.
fn written(error: &io::Error) -> Result<u8, Failure> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Ok(0)
    } else {
        Err(Failure::new(format!("failed to write to standard output: {error}")))
    }
}

/// What is said where output is missing.
pub(super) fn gap(bytes: u64) -> String {
    format!("[{bytes} bytes of output are missing here]")
}
