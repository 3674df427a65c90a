//! `logs`: output of a task, from the small master when it has it, else from the node.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::config::Logs;
use crate::node::id::AttemptKey;
use crate::sys::signal::{Signal, SignalSource};

use super::client::{Client, ClientError};
use super::escape::Escaper;
use super::view::{LogPart, StreamName};
use super::{Failure, actions, tell};

/// Between two looks for more output.
const LOOK: Duration = Duration::from_millis(500);
/// What shells say for a command that Ctrl-C ended.
const EXIT_INTERRUPTED: u8 = 130;

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
    Submission,
    Attempt(AttemptKey),
}

/// `logs`.
pub(super) fn logs(client: &Client, logs: &Logs) -> Result<u8, Failure> {
    let signals = SignalSource::start().map_err(|error| Failure::new(format!("failed to catch signals: {error}")))?;
    let stream = if logs.is_stderr { StreamName::Stderr } else { StreamName::Stdout };
    let source = source(client, logs)?;
    let read = |offset| match &source {
        Source::Submission => client.submission_log(logs.task.as_str(), stream, offset),
        Source::Attempt(key) => client.attempt_log(key, stream, offset),
    };
    let done = || match &source {
        Source::Submission => client.submission(logs.task.as_str(), None, Duration::ZERO).map(|view| view.is_complete),
        Source::Attempt(key) => client.status().map(|status| status.attempts.iter().all(|view| view.key != *key)),
    };
    copy(read, done, logs.is_following, signals.receiver())
}

fn source(client: &Client, logs: &Logs) -> Result<Source, Failure> {
    if logs.attempt.is_none() {
        match client.submission(logs.task.as_str(), None, Duration::ZERO) {
            Ok(_) => return Ok(Source::Submission),
            // Not submitted here, or no small master here.
            Err(ClientError::Refused { status: 404 | 409, .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let key = match logs.attempt {
        Some(attempt) => Some(AttemptKey { task: logs.task.clone(), attempt }),
        None => actions::held_attempt(client, &logs.task)?,
    };
    key.map(Source::Attempt).ok_or_else(|| {
        Failure::new(format!("this node holds no task {}: `hivemind-worker tasks` lists them", logs.task))
    })
}

fn copy(
    read: impl Fn(u64) -> Result<LogPart, ClientError>,
    is_done: impl Fn() -> Result<bool, ClientError>,
    is_following: bool,
    signals: &Receiver<Signal>,
) -> Result<u8, Failure> {
    let mut sink = Sink::stdout();
    let mut offset = 0;
    let mut was_done = false;
    loop {
        if signals.try_recv().is_ok() {
            return Ok(EXIT_INTERRUPTED);
        }
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
        if part.bytes.is_empty() {
            if !is_following || part.is_closed || was_done {
                break;
            }
            // One more look after the end: the last bytes may have come in between.
            was_done = is_done()?;
            if !was_done && signals.recv_timeout(LOOK).is_ok() {
                return Ok(EXIT_INTERRUPTED);
            }
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
