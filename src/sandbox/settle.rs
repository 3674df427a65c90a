//! The first line of each stream after an attachment to a container that runs already.
//!
//! The engine's log takes whole lines: what a task had printed of a line before the attachment is in no reading of the
//! log by then, and the attached stream begins behind it. Once the line has ended, the log has it. So the first line is
//! held back until then, and its beginning is put in front of it. Where that can't be told, the bytes go on as they are,
//! and it is noted that some may be missing.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::gap::Log;
use crate::docker::{Docker, OutputKind};

/// Longest first line that is held back, and for how long while more of it comes.
const MAX_HELD_BYTES: usize = 64 << 10;
const MAX_HELD_FOR: Duration = Duration::from_secs(10);
/// The engine writes a line into its log right after it has sent it; this long it is waited for ...
const LOG_PATIENCE: Duration = Duration::from_secs(2);
/// ... with this pause between two looks.
const LOG_PAUSE: Duration = Duration::from_millis(20);

/// See the module. Both streams of one attachment.
pub struct Settling {
    docker: Docker,
    container: String,
    stdout: Held,
    stderr: Held,
    gap: Gap,
}

/// Whether bytes went on of which the beginning may be missing.
#[derive(Clone, Default)]
pub struct Gap(Arc<AtomicBool>);

impl Gap {
    /// Whether it happened since this was asked the last time.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// What is held back of a stream; nothing any more once that is settled.
struct Held {
    /// Bytes of the log before the attachment.
    logged: usize,
    line: Option<Vec<u8>>,
    since: Option<Instant>,
}

impl Held {
    fn new(logged: usize) -> Self {
        Self { logged, line: Some(Vec::new()), since: None }
    }
}

impl Settling {
    /// After an attachment, with what the log had right behind it.
    pub fn new(docker: Docker, container: String, log: &Log) -> Self {
        let held = |kind| Held::new(log.bytes(kind).len());
        let (stdout, stderr) = (held(OutputKind::Stdout), held(OutputKind::Stderr));
        Self { docker, container, stdout, stderr, gap: Gap::default() }
    }

    /// For the thread that tells of it.
    pub fn gap(&self) -> Gap {
        self.gap.clone()
    }

    fn held(&mut self, kind: OutputKind) -> &mut Held {
        match kind {
            OutputKind::Stdout => &mut self.stdout,
            OutputKind::Stderr => &mut self.stderr,
        }
    }

    /// What goes on of this piece, with what was held back before it; `None` while it is held back itself.
    pub fn take<'a>(&mut self, kind: OutputKind, piece: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let held = self.held(kind);
        let Some(line) = &mut held.line else { return Some(Cow::Borrowed(piece)) };
        line.extend_from_slice(piece);
        let since = *held.since.get_or_insert_with(Instant::now);
        let is_whole = line.contains(&b'\n');
        if !is_whole && line.len() < MAX_HELD_BYTES && since.elapsed() < MAX_HELD_FOR {
            return None;
        }
        let line = held.line.take().unwrap_or_default();
        let logged = held.logged;
        let beginning = is_whole.then(|| self.find(kind, logged, |rest| beginning_of_line(rest, &line))).flatten();
        Some(Cow::Owned(self.joined(beginning, line)))
    }

    /// What is still held back, when the container has ended and its log is complete.
    pub fn end(&mut self, kind: OutputKind) -> Vec<u8> {
        let held = self.held(kind);
        let (logged, Some(line)) = (held.logged, held.line.take()) else { return Vec::new() };
        let beginning = self.find(kind, logged, |rest| rest.strip_suffix(line.as_slice()));
        self.joined(beginning, line)
    }

    /// What is still held back, as it is: the beginning will never be known.
    pub fn give_up(&mut self, kind: OutputKind) -> Vec<u8> {
        let line = self.held(kind).line.take();
        line.map_or_else(Vec::new, |line| self.joined(None, line))
    }

    fn joined(&self, beginning: Option<Vec<u8>>, line: Vec<u8>) -> Vec<u8> {
        match beginning {
            Some(mut beginning) => {
                beginning.extend_from_slice(&line);
                beginning
            }
            None => {
                self.gap.0.store(true, Ordering::Relaxed);
                line
            }
        }
    }

    /// What the log has behind the attachment, as soon as `find` finds something in it.
    fn find(&self, kind: OutputKind, logged: usize, find: impl Fn(&[u8]) -> Option<&[u8]>) -> Option<Vec<u8>> {
        let end = Instant::now() + LOG_PATIENCE;
        loop {
            let log = Log::read(&self.docker, &self.container).ok()??;
            if let Some(found) = log.bytes(kind).get(logged..).and_then(&find) {
                return Some(found.to_vec());
            }
            if Instant::now() >= end {
                return None;
            }
            thread::sleep(LOG_PAUSE);
        }
    }
}

/// What comes before `attached`, of which the first line is whole, in the first line of `rest`.
fn beginning_of_line<'a>(rest: &'a [u8], attached: &[u8]) -> Option<&'a [u8]> {
    let line = |bytes: &[u8]| bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
    rest.get(..line(rest)?)?.strip_suffix(attached.get(..line(attached)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_beginning_of_a_line_in_the_log() {
        for (rest, attached, beginning) in [
            ("two\n", "o\nth", Some("tw")),
            ("two\nthree\n", "o\n", Some("tw")),
            ("two\n", "two\n", Some("")),
            ("\n", "\n", Some("")),
            // Not yet there, or another line.
            ("", "o\n", None),
            ("two", "o\n", None),
            ("one\ntwo\n", "two\n", None),
            ("o\n", "two\n", None),
        ] {
            let found = beginning_of_line(rest.as_bytes(), attached.as_bytes());
            assert_eq!(found, beginning.map(str::as_bytes), "{rest:?} {attached:?}");
        }
    }
}
