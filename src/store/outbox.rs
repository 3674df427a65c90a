//! The shared outbox: the store and the output threads fill it, the submit thread empties it. It holds only what is on
//! disk already. Its lock covers bookkeeping; files and rows are read outside.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::Sender;
use rusqlite::Connection;

use super::db;
use super::duty;
use super::files;
use super::queue::{Pick, Queue, StreamKey, Urgency};
use super::spool::{Behind, Spool};
use super::thread::Message;
use crate::node::id::AttemptKey;
use crate::node::record::{Event, EventKind, Piece, PieceContent, StreamEnd};

/// Longest text of a refusal that goes into a note.
const MAX_REASON_BYTES: usize = 1_024;

/// Called when there is something to send. It must only wake: it runs on threads that have other work.
type Waker = Arc<dyn Fn() + Send + Sync>;

/// How far a record has arrived at the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// All events up to this number.
    Event(u64),
    /// A stream's bytes up to this offset.
    Stream {
        /// Byte stream.
        stream: u32,
        /// Start of the worker that wrote it.
        epoch: u64,
        /// Behind the last byte.
        offset: u64,
    },
}

/// A handle to what waits for the master. Each piece that it gives must come back by [`Outbox::acked`],
/// [`Outbox::failed`] or [`Outbox::refused`]: until then nothing more of that stream, or no further event of that
/// attempt, is given.
#[derive(Clone)]
pub struct Outbox(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    waker: Mutex<Option<Waker>>,
    /// Used by who takes pieces only, so that waiting for it disturbs nobody.
    reader: Mutex<Connection>,
    spool: Spool,
    store: Sender<Message>,
    /// Bytes of logs that wait for the master, of all attempts together.
    waiting_logs_bytes: u64,
}

impl Outbox {
    pub(super) fn new(
        queue: Queue,
        reader: Connection,
        spool: Spool,
        store: Sender<Message>,
        waiting_logs_bytes: u64,
    ) -> Self {
        Self(Arc::new(Shared {
            queue: Mutex::new(queue),
            waker: Mutex::new(None),
            reader: Mutex::new(reader),
            spool,
            store,
            waiting_logs_bytes,
        }))
    }

    /// Sets what is called when there is something to send.
    pub fn set_waker(&self, waker: Box<dyn Fn() + Send + Sync>) {
        *lock(&self.0.waker) = Some(Arc::from(waker));
    }

    /// The next piece to send, with at most `max_chunk` bytes of a stream. Takes turns between attempts; events go
    /// before logs, logs before output files; attempts that are finished leave in the order of their completion.
    pub fn next_piece(&self, max_chunk: usize) -> Option<Piece> {
        let max_chunk = u64::try_from(max_chunk).unwrap_or(u64::MAX);
        loop {
            let pick = self.queue().select(max_chunk)?;
            match pick {
                Pick::Event { key, id, number } => match self.read_event(&key, id, number) {
                    Ok(event) => {
                        let content = PieceContent::Event(event);
                        return Some(Piece { key, content });
                    }
                    Err(error) => {
                        log::error!("cannot read event {number} of {key}: {error}");
                        self.queue().rewind_event(&key);
                        return None;
                    }
                },
                Pick::Chunk { key, segment, offset, len, is_last, is_after_gap } => {
                    let name = (segment.stream, segment.epoch);
                    let count = usize::try_from(len).unwrap_or(usize::MAX);
                    let read = match count {
                        0 => Ok(Vec::new()),
                        _ => {
                            let at = offset - segment.offset;
                            files::read_patiently(|| self.0.spool.read_segment(&key, segment, at, count))
                        }
                    };
                    match read {
                        Ok(bytes) => {
                            let content = PieceContent::Chunk {
                                stream: segment.stream,
                                epoch: segment.epoch,
                                offset,
                                bytes,
                                is_last,
                                is_after_gap,
                            };
                            return Some(Piece { key, content });
                        }
                        // Want of descriptors or memory passes: the part is given again.
                        Err(error) if !files::is_lost(&error) => {
                            log::error!("cannot read stream {} of {key} now: {error}", segment.stream);
                            self.queue().rewind_stream(&key, name);
                            return None;
                        }
                        // A part that is gone must not hold up the rest for ever: it becomes a gap that is told.
                        Err(error) => self.give_up(&key, name, offset, len, &format!("could not be read: {error}")),
                    }
                }
            }
        }
    }

    /// The master says how far it has a record durably. Below the end of what was sent, the rest is given again.
    /// False when this is no news: then wait before the next call, as the master makes no progress.
    pub fn acked(&self, key: &AttemptKey, ack: Ack) -> bool {
        let mut queue = self.queue();
        let is_news = match ack {
            Ack::Event(number) => queue.acked_event(key, number),
            Ack::Stream { stream, epoch, offset } => queue.acked_stream(key, (stream, epoch), offset),
        };
        let urgency = queue.urgency(key);
        drop(queue);
        if is_news {
            self.tell_store(urgency);
        }
        is_news
    }

    /// The piece may not have arrived: it is given again.
    pub fn failed(&self, piece: &Piece) {
        match &piece.content {
            PieceContent::Event(_) => self.queue().rewind_event(&piece.key),
            PieceContent::Chunk { stream, epoch, .. } => self.queue().rewind_stream(&piece.key, (*stream, *epoch)),
        }
    }

    /// The master will never take the piece: a note in the record replaces it, and the rest goes on.
    pub fn refused(&self, piece: &Piece, reason: &str) {
        let key = &piece.key;
        let reason = shorten(reason);
        match &piece.content {
            PieceContent::Event(event) => {
                log::error!("the master refused event {} of {key}: {reason}", event.number);
                let mut queue = self.queue();
                queue.acked_event(key, event.number);
                // A refused note is not noted: its note would be refused in turn, without end.
                if !matches!(event.kind, EventKind::Note(_)) {
                    let what = match event.kind {
                        EventKind::Final(_) => "the final report, ",
                        _ => "",
                    };
                    let number = event.number;
                    queue.note(key, format!("{what}event {number} was refused by the master: {reason}"));
                }
            }
            PieceContent::Chunk { stream, epoch, offset, bytes, .. } => {
                let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                let why = format!("was refused by the master: {reason}");
                self.give_up(key, (*stream, *epoch), *offset, len, &why);
            }
        }
        self.tell_store(Urgency::Now);
    }

    /// Attempts with something that the master does not have, and bytes of their streams.
    pub fn pending(&self) -> (usize, u64) {
        self.queue().pending()
    }

    /// The length of each stream of an attempt, of earlier starts too: for the final report.
    pub fn stream_ends(&self, key: &AttemptKey) -> Vec<StreamEnd> {
        self.queue().stream_ends(key)
    }

    fn give_up(&self, key: &AttemptKey, name: StreamKey, offset: u64, len: u64, why: &str) {
        let end = offset.saturating_add(len);
        let (stream, epoch) = name;
        let text = format!("bytes {offset} to {end} of stream {stream}, epoch {epoch}: the piece {why}");
        log::error!("{key}: {text}");
        let mut queue = self.queue();
        queue.gave_up(key, name, end);
        queue.note(key, text);
        drop(queue);
        self.tell_store(Urgency::Now);
    }

    fn read_event(&self, key: &AttemptKey, id: i64, number: u64) -> io::Result<Event> {
        let reader = lock(&self.0.reader);
        match db::event(&reader, id, number) {
            Ok(Some(event)) => return Ok(event),
            Err(error) if !db::is_damage(&error) => return Err(io::Error::other(error)),
            Ok(None) | Err(_) => {}
        }
        log::error!("event {number} of {key} is damaged in the database: taking its copy");
        let copies = match files::read_patiently(|| self.0.spool.read_events(key, Behind::Keep)) {
            Err(error) if !files::is_lost(&error) => return Err(error),
            copies => copies.unwrap_or_default(),
        };
        if let Some(event) = copies.into_iter().find(|event| event.number == number) {
            return Ok(event);
        }
        let end = db::state(&reader, id).unwrap_or_default().and_then(|state| state.end);
        Ok(duty::substitute(number, end.as_ref()))
    }

    // For the store and its writers.

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.0.queue)
    }

    pub(super) fn spool(&self) -> &Spool {
        &self.0.spool
    }

    /// Wakes the submit thread.
    pub(super) fn wake(&self) {
        let waker = lock(&self.0.waker).clone();
        if let Some(waker) = waker {
            waker();
        }
    }

    /// A full inbox needs no message: the store takes acknowledgements with each batch.
    fn tell_store(&self, urgency: Urgency) {
        self.0.store.try_send(Message::Acks(urgency)).unwrap_or_default();
    }

    /// Lets a writer into a stream; gives the offset at which it goes on.
    pub(super) fn begin_stream(&self, key: &AttemptKey, name: StreamKey) -> io::Result<u64> {
        let mut queue = self.queue();
        if queue.has_ended(key) {
            return Err(refusal(key, "has its final report: nothing can be added to it"));
        }
        let stream = queue
            .stream_or_new(key, name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{key} is not here")))?;
        if stream.has_writer || stream.is_closed {
            return Err(refusal(key, "has a writer of this stream, or had one"));
        }
        stream.has_writer = true;
        Ok(stream.written)
    }

    /// Drops the oldest logs of the least important attempts where too many wait for the master.
    pub(super) fn make_room_for_logs(&self) {
        if self.queue().drop_logs(self.0.waiting_logs_bytes) {
            self.tell_store(Urgency::Now);
        }
    }

    pub(super) fn begin_segment(&self, key: &AttemptKey, name: StreamKey, offset: u64) {
        if let Some(stream) = self.queue().stream(key, name) {
            stream.segments.push_back(offset);
        }
    }

    /// More bytes are on disk.
    pub(super) fn progress(&self, key: &AttemptKey, name: StreamKey, written: u64) -> io::Result<()> {
        let mut queue = self.queue();
        let stream =
            queue.stream(key, name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{key} is over")))?;
        let had_work = stream.has_work();
        stream.written = written;
        let is_news = !had_work && stream.has_work();
        drop(queue);
        if is_news {
            self.wake();
        }
        Ok(())
    }

    /// No more bytes will come.
    pub(super) fn end_stream(&self, key: &AttemptKey, name: StreamKey) {
        let mut queue = self.queue();
        let Some(stream) = queue.stream(key, name).filter(|stream| stream.has_writer) else { return };
        stream.has_writer = false;
        stream.is_closed = true;
        drop(queue);
        self.wake();
    }

    pub(super) fn log_bytes(&self, key: &AttemptKey) -> u64 {
        self.queue().log_bytes(key)
    }
}

fn refusal(key: &AttemptKey, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{key} {why}"))
}

fn shorten(text: &str) -> &str {
    let end = (0..=MAX_REASON_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// A panic elsewhere ends the process in the shipped profile, and each change under the lock is whole: poison means
/// nothing here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
