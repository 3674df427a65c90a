//! What a task printed while no worker was attached, from the engine's log: exact where the log still has everything,
//! else the gap is only told.
//!
//! The spool knows how many bytes of each stream it has, and the log begins with these. To attach without a gap or a
//! double, the log is read before and after: when both readings are the same, no line came in between. What had begun of
//! a line is `settle`'s.

use std::time::Duration;

use crate::docker::{Docker, Error, LogOptions, OutputKind};
use crate::node::record::{STDERR, STDOUT, StreamEnd};

/// Between two pieces of the log.
const IDLE: Duration = Duration::from_secs(10);
/// The engine begins a new file at 1 MB, and drops the first at the third. Below this much of JSON it has dropped nothing.
const MAX_JSON_BYTES: u64 = 900_000;
/// What a line costs in the engine's file beside its text.
const JSON_LINE_BYTES: u64 = 100;

/// U+FFFD in UTF-8.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Both streams of a container's log, from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    json_bytes: u64,
    /// The engine has put U+FFFD for what is not UTF-8, so that lengths tell nothing.
    is_altered: bool,
}

/// What the spool has of each stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    stdout: u64,
    stderr: u64,
}

impl Recorded {
    /// Over all epochs.
    pub fn from_ends(ends: &[StreamEnd]) -> Self {
        let sum = |stream| ends.iter().filter(|end| end.stream == stream).map(|end| end.bytes).sum();
        Self { stdout: sum(STDOUT), stderr: sum(STDERR) }
    }
}

impl Log {
    /// Reads all of it; `None` where the engine may have dropped the beginning, or has altered something.
    ///
    /// # Errors
    /// The engine's.
    pub fn read(docker: &Docker, container: &str) -> Result<Option<Self>, Error> {
        let options = LogOptions { stdout: true, stderr: true, ..LogOptions::default() };
        let mut stream = docker.logs(container, &options, IDLE)?;
        let mut log = Self::default();
        while let Some((kind, bytes)) = stream.next_piece()? {
            log.push(kind, bytes);
            if log.json_bytes > MAX_JSON_BYTES {
                return Ok(None);
            }
        }
        Ok((!log.is_altered).then_some(log))
    }

    /// One stream.
    pub fn bytes(&self, kind: OutputKind) -> &[u8] {
        match kind {
            OutputKind::Stdout => &self.stdout,
            OutputKind::Stderr => &self.stderr,
        }
    }

    fn push(&mut self, kind: OutputKind, bytes: &[u8]) {
        // A task that prints U+FFFD itself is told to have a gap that it has not.
        self.is_altered |= bytes.windows(REPLACEMENT.len()).any(|window| window == REPLACEMENT);
        match kind {
            OutputKind::Stdout => self.stdout.extend_from_slice(bytes),
            OutputKind::Stderr => self.stderr.extend_from_slice(bytes),
        }
        // A byte can take six in JSON.
        let escaped =
            bytes.iter().map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { 1 } else { 6 }).sum::<u64>();
        self.json_bytes += escaped + JSON_LINE_BYTES;
    }

    /// What comes behind the recorded part of standard output and standard error; `None` where the log has less than that.
    pub fn rest(&self, recorded: Recorded) -> Option<(&[u8], &[u8])> {
        let behind = |log: &'_ [u8], recorded: u64| usize::try_from(recorded).ok().filter(|at| *at <= log.len());
        let stdout = behind(&self.stdout, recorded.stdout)?;
        let stderr = behind(&self.stderr, recorded.stderr)?;
        Some((&self.stdout[stdout..], &self.stderr[stderr..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_the_spool_does_not_have() {
        let mut log = Log::default();
        log.push(OutputKind::Stdout, b"one\n");
        log.push(OutputKind::Stderr, b"oops\n");
        log.push(OutputKind::Stdout, b"two\n");
        let end = |stream, epoch, bytes| StreamEnd { stream, epoch, bytes };
        let recorded = Recorded::from_ends(&[end(STDOUT, 1, 3), end(STDOUT, 2, 1), end(STDERR, 1, 0), end(16, 1, 9)]);
        assert_eq!(log.rest(recorded), Some((&b"two\n"[..], &b"oops\n"[..])));
        assert_eq!(log.rest(Recorded { stdout: 9, stderr: 0 }), None, "the log was cut");
    }
}
