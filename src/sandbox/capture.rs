//! The output thread of a task: from the attached stream into the spool, and the last of it into memory.

use std::borrow::Cow;
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
    bytes: Mutex<Vec<u8>>,
    total: AtomicU64,
}

impl Tail {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends what has come.
    pub fn push(&self, piece: &[u8]) {
        let mut bytes = self.lock();
        bytes.extend_from_slice(piece);
        // Trimmed at twice the length, so that each byte is moved at most once.
        if bytes.len() > 2 * TAIL_BYTES {
            let cut = bytes.len() - TAIL_BYTES;
            bytes.drain(..cut);
        }
        self.0.total.fetch_add(piece.len() as u64, Ordering::Relaxed);
    }

    /// Bytes that have come.
    pub fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }

    /// The last 64 KiB at the most.
    pub fn bytes(&self) -> Vec<u8> {
        let bytes = self.lock();
        bytes[bytes.len().saturating_sub(TAIL_BYTES)..].to_vec()
    }

    /// The last 4 KiB as text.
    pub fn text(&self) -> String {
        let bytes = self.lock();
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
                tail.push(&bytes);
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
