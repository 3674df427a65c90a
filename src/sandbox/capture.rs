//! The output thread of a task: from the attached stream into the spool, and the last of it into memory.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, bounded};

use super::settle::{Gap, Settling};
use crate::docker::{OutputKind, OutputStream, Stop};
use crate::store::StreamWriter;

/// Kept in memory for the final report.
pub const TAIL_BYTES: usize = 64 << 10;
/// Changes from one stream to the other that are remembered with it: of a task that changes more often, the split of the
/// last output is shorter than the whole.
const MAX_RUNS: usize = 4_096;
/// Shown live to the owner.
const VIEW_BYTES: usize = 4 << 10;
/// The thread holds one buffer and calls little.
const STACK_BYTES: usize = 256 << 10;

/// Where a task's output goes. Both streams have their writer as long as the worker holds the task.
pub struct Writers {
    /// Standard output.
    pub stdout: StreamWriter,
    /// Standard error.
    pub stderr: StreamWriter,
}

/// The last output, in order of arrival.
#[derive(Clone, Default)]
pub struct Tail(Arc<Shared>);

#[derive(Default)]
struct Shared {
    kept: Mutex<Kept>,
    total: AtomicU64,
}

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    /// Which stream the bytes are of: lengths of runs, up to the end of `bytes`.
    runs: VecDeque<(OutputKind, usize)>,
}

impl Tail {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends what has come.
    pub fn push(&self, kind: OutputKind, piece: &[u8]) {
        let mut kept = self.lock();
        kept.bytes.extend_from_slice(piece);
        match kept.runs.back_mut() {
            Some((last, length)) if *last == kind => *length += piece.len(),
            _ => kept.runs.push_back((kind, piece.len())),
        }
        if kept.runs.len() > MAX_RUNS {
            kept.runs.pop_front();
        }
        // Trimmed at twice the length, so that each byte is moved at most once.
        if kept.bytes.len() > 2 * TAIL_BYTES {
            let cut = kept.bytes.len() - TAIL_BYTES;
            kept.bytes.drain(..cut);
        }
        self.0.total.fetch_add(piece.len() as u64, Ordering::Relaxed);
    }

    /// Bytes that have come.
    pub fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }

    /// The last 64 KiB at the most.
    pub fn bytes(&self) -> Vec<u8> {
        let bytes = &self.lock().bytes;
        bytes[bytes.len().saturating_sub(TAIL_BYTES)..].to_vec()
    }

    /// The part of [`Self::bytes`] that is of one stream.
    pub fn bytes_of(&self, kind: OutputKind) -> Vec<u8> {
        let kept = self.lock();
        let mut end = kept.bytes.len();
        let first = end.saturating_sub(TAIL_BYTES);
        let mut parts = Vec::new();
        for (of, length) in kept.runs.iter().rev() {
            let start = end.saturating_sub(*length).max(first);
            if *of == kind {
                parts.push(&kept.bytes[start..end]);
            }
            end = start;
        }
        parts.into_iter().rev().flatten().copied().collect()
    }

    /// The last 4 KiB as text.
    pub fn text(&self) -> String {
        let bytes = &self.lock().bytes;
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(VIEW_BYTES)..]).into_owned()
    }
}

/// How a capture ended; the writers come back, since the same streams may go on after the engine was away.
pub struct CaptureEnd {
    /// For the next capture, or to be closed.
    pub writers: Writers,
    /// What was still held back.
    pub settling: Option<Settling>,
    /// Absent at the proper end of the output.
    pub error: Option<String>,
}

/// A running output thread. It ends with the stream; [`Capture::release`] ends it at once.
pub struct Capture {
    stop: Stop,
    gap: Option<Gap>,
    /// Gives the one end.
    pub ended: Receiver<CaptureEnd>,
}

impl Capture {
    /// Starts the thread `name` on a stream that `stop` releases. Output that does not begin with the container's has
    /// something to settle.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(
        name: String,
        (stream, stop): (OutputStream, Stop),
        settling: Option<Settling>,
        writers: Writers,
        tail: Tail,
    ) -> io::Result<Self> {
        let (sender, ended) = bounded(1);
        let gap = settling.as_ref().map(Settling::gap);
        thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
            // The receiver lives as long as the task's thread; when that is gone nobody wants the end.
            let _ = sender.send(copy(stream, settling, writers, &tail));
        })?;
        Ok(Self { stop, gap, ended })
    }

    /// Whether bytes may be missing in what was appended since this was asked the last time.
    pub fn take_gap(&self) -> bool {
        self.gap.as_ref().is_some_and(Gap::take)
    }

    /// Shuts the socket: the thread gives out what had arrived and ends.
    pub fn release(&self) {
        self.stop.stop();
    }
}

/// Reads to the end also when nothing can be kept any more: a task that nobody reads would stand still.
fn copy(mut stream: OutputStream, mut settling: Option<Settling>, mut writers: Writers, tail: &Tail) -> CaptureEnd {
    let mut unwritten = None;
    let error = loop {
        match stream.next_piece() {
            Ok(Some((kind, bytes))) => {
                let bytes = match &mut settling {
                    Some(settling) => match settling.take(kind, bytes) {
                        Some(bytes) => bytes,
                        None => continue,
                    },
                    None => Cow::Borrowed(bytes),
                };
                let writer = match kind {
                    OutputKind::Stdout => &mut writers.stdout,
                    OutputKind::Stderr => &mut writers.stderr,
                };
                tail.push(kind, &bytes);
                if unwritten.is_none()
                    && let Err(error) = writer.append(&bytes)
                {
                    log::error!("can't write the output of a task: {error}");
                    unwritten = Some(format!("can't write the output: {error}"));
                }
            }
            Ok(None) => break unwritten,
            Err(error) => break Some(error.to_string()),
        }
    };
    CaptureEnd { writers, settling, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_output_can_be_told_apart_by_stream() {
        use OutputKind::{Stderr, Stdout};
        let tail = Tail::default();
        assert_eq!(tail.bytes_of(Stdout), b"");
        for (kind, piece) in [(Stdout, "a"), (Stdout, "b"), (Stderr, "1"), (Stdout, "c"), (Stderr, "2")] {
            tail.push(kind, piece.as_bytes());
        }
        assert_eq!((tail.bytes_of(Stdout), tail.bytes_of(Stderr)), (b"abc".to_vec(), b"12".to_vec()));
        assert_eq!(tail.bytes(), b"ab1c2");
        // The first of these runs is cut in the middle.
        tail.push(Stderr, &vec![b'e'; TAIL_BYTES - 10]);
        tail.push(Stdout, &[b'o'; 30]);
        assert_eq!(tail.bytes_of(Stderr), vec![b'e'; TAIL_BYTES - 30]);
        assert_eq!(tail.bytes_of(Stdout), vec![b'o'; 30]);
        for _ in 0..2 * TAIL_BYTES {
            tail.push(Stdout, b"x");
            tail.push(Stderr, b"y");
        }
        assert_eq!(tail.bytes().len(), TAIL_BYTES);
        assert_eq!(tail.bytes_of(Stderr), vec![b'y'; MAX_RUNS / 2]);
    }
}
