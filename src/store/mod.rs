//! Task database, spool and manifests: what must survive a crash.
//!
//! A [`Store`] is a handle to the one thread that owns the database. A decision is sent to it with a ticket; the event
//! [`StoreEvent::Durable`] says that it is on disk, and only then may it have an effect. Bytes of streams don't pass
//! through the thread: a [`StreamWriter`] puts them into segment files itself. What waits for the master is in the
//! [`Outbox`]; nothing of it is deleted before the master's acknowledgement is on disk here.
//!
//! Left out on purpose: which writes to make and when, the connection to the master, and the lock on the state folder.

mod batch;
mod bundles;
mod db;
mod duty;
mod files;
mod kept;
mod open;
mod outbox;
mod packages;
mod queue;
mod rebuild;
mod spool;
mod stamp;
mod stream;
#[cfg(test)]
mod testing;
mod thread;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Sender, bounded};
use rusqlite::Connection;

pub use bundles::{BUNDLES, BundleFile, BundleLimits, Bundles};
pub use kept::{HalfFile, Kept};
pub use open::OpenError;
pub use outbox::{Ack, Outbox};
pub use packages::{Claim, Look, OldSet, PackageLimits, Packages, SetKey};
pub use stream::StreamWriter;

use crate::node::id::{AttemptKey, Id};
use crate::node::order::Marks;
use crate::node::record::{EventKind, FinalReport, Outcome, Phase, StreamEnd};
use crate::node::snapshot::HistoryRow;
use crate::node::spec::TaskSpec;
use crate::sys::time::boot_id;
use spool::Segment;
use thread::{Message, Thread};

/// Name of the store thread.
pub const THREAD_NAME: &str = "store";
/// SQLite needs little, JSON of deep values some more.
pub const THREAD_STACK_BYTES: usize = 1 << 20;
/// Messages to the store thread: senders wait when it is full.
const INBOX: usize = 256;
/// A commit takes milliseconds; a disk that needs longer is as good as gone.
const PUT_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts that are over in [`Recovered`].
const RECOVERED_HISTORY: u32 = 50;

/// The owner's choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Bytes of standard output and standard error that are kept of an attempt, sent or not. What comes beyond is
    /// dropped and counted.
    pub log_budget_bytes: u64,
    /// Bytes of these that wait for the master, of all attempts together. Beyond, the oldest of the least important
    /// attempts are dropped, and the gap is told.
    pub waiting_logs_bytes: u64,
    /// Disk that is set aside, so that what is running can be finished when the disk is full.
    pub reserve_bytes: u64,
    /// Told by the kernel; a new one with each boot.
    pub boot_id: Option<String>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { log_budget_bytes: 64 << 20, waiting_logs_bytes: 1 << 30, reserve_bytes: 16 << 20, boot_id: boot_id() }
    }
}

/// A change that must survive.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// The node takes an attempt. One that is here already stays as it is.
    Take {
        /// The task.
        spec: Box<TaskSpec>,
        /// Its input archive.
        inputs: Vec<u8>,
    },
    /// A line of the record; the store gives it its number.
    Event {
        /// Whose record.
        key: AttemptKey,
        /// Milliseconds since 1970.
        time_ms: u64,
        /// What happened.
        kind: EventKind,
    },
    /// Replaces the marks.
    Marks {
        /// Whose.
        key: AttemptKey,
        /// All of them.
        marks: Marks,
    },
    /// The attempt never started and owes no record: no trace stays.
    Forget {
        /// Which.
        key: AttemptKey,
    },
}

/// What the store has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// All writes of this ticket are on disk.
    Durable(u64),
    /// The writes of this ticket must not have an effect. They are not on disk; but after a fault of the disk nobody
    /// knows, and the next start may show them.
    Failed {
        /// Of the commit.
        ticket: u64,
        /// Why.
        reason: String,
    },
    /// The master has the whole record; only the history row is left.
    Delivered(AttemptKey),
    /// Writes fail, from now on. With a full disk, commits without [`Write::Take`] wait and become durable later.
    Trouble(String),
    /// Writes work again.
    Recovered,
}

/// An attempt that was here when the store was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveredAttempt {
    /// Its task.
    pub spec: TaskSpec,
    /// Its phase.
    pub phase: Phase,
    /// Its marks.
    pub marks: Marks,
    /// Its final report, if there is one: then only the delivery is left.
    pub final_report: Option<FinalReport>,
    /// What of its output is on disk, by stream and start of the worker.
    pub logs: Vec<StreamEnd>,
}

/// What was here when the store was opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// Number of this start, larger with each.
    pub epoch: u64,
    /// Attempts in the order of their arrival.
    pub attempts: Vec<RecoveredAttempt>,
    /// The last attempts that are over, newest first.
    pub history: Vec<HistoryRow>,
    /// What the owner should know.
    pub warnings: Vec<String>,
}

/// A handle to the store. Each clone is a handle to the same one.
#[derive(Clone)]
pub struct Store(Arc<Handle>);

struct Handle {
    epoch: u64,
    log_budget_bytes: u64,
    outbox: Outbox,
    inbox: Sender<Message>,
    reader: Mutex<Connection>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the state folder and starts the store thread, which calls `notify`. Damage is mended or set aside, and
    /// told in the warnings.
    ///
    /// # Errors
    /// The folder can't be used at all; the error says what to do.
    pub fn open(
        dir: &Path,
        config: StoreConfig,
        notify: Box<dyn Fn(StoreEvent) + Send>,
    ) -> Result<(Self, Recovered), OpenError> {
        let opened = open::open(dir, &config)?;
        let (sender, receiver) = bounded(INBOX);
        let [for_outbox, for_queries] = opened.readers;
        let outbox = Outbox::new(opened.queue, for_outbox, opened.spool, sender.clone(), config.waiting_logs_bytes);
        let thread = Thread {
            connection: opened.connection,
            outbox: outbox.clone(),
            inbox: receiver,
            notify,
            duties: opened.duties,
            health: opened.health,
            reserve: (opened.reserve, config.reserve_bytes),
            waiting: Vec::new(),
            swept: opened.swept,
        };
        let thread = std::thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || thread.run())
            .map_err(OpenError::Thread)?;
        let handle = Handle {
            epoch: opened.recovered.epoch,
            log_budget_bytes: config.log_budget_bytes,
            outbox,
            inbox: sender,
            reader: Mutex::new(for_queries),
            thread: Mutex::new(Some(thread)),
        };
        Ok((Self(Arc::new(handle)), opened.recovered))
    }

    /// Sends writes that are to become durable together; waits while the inbox is full. [`StoreEvent::Durable`] or
    /// [`StoreEvent::Failed`] answers each ticket, in the order of the tickets.
    pub fn commit(&self, ticket: u64, writes: Vec<Write>) {
        if self.0.inbox.send(Message::Commit { ticket, writes }).is_err() {
            log::error!("the store is closed: ticket {ticket} is not written");
        }
    }

    /// Writes what was sent, then ends the thread. Handles that are left can only read.
    pub fn close(self) {
        let thread = lock(&self.0.thread).take();
        if let Some(thread) = thread {
            self.0.inbox.send(Message::Close).unwrap_or_default();
            if thread.join().is_err() {
                log::error!("the store thread has panicked");
            }
        }
    }

    /// What waits for the master.
    pub fn outbox(&self) -> Outbox {
        self.0.outbox.clone()
    }

    /// The one writer of a log stream in this epoch, within the log budget.
    ///
    /// # Errors
    /// The attempt is not here or has its final report, the stream has or had a writer, or the disk is at fault.
    pub fn writer(&self, key: &AttemptKey, stream: u32) -> io::Result<StreamWriter> {
        let budget = Some(self.0.log_budget_bytes);
        StreamWriter::open(self.outbox(), key.clone(), (stream, self.0.epoch), budget)
    }

    /// The one writer of an output file's stream in this epoch; its caller bounds it.
    ///
    /// # Errors
    /// As for [`Self::writer`].
    pub fn output_writer(&self, key: &AttemptKey, stream: u32) -> io::Result<StreamWriter> {
        StreamWriter::open(self.outbox(), key.clone(), (stream, self.0.epoch), None)
    }

    /// The length of each stream of an attempt, of earlier epochs too.
    pub fn stream_ends(&self, key: &AttemptKey) -> Vec<StreamEnd> {
        self.0.outbox.stream_ends(key)
    }

    /// Reads at most `max` bytes of a stream; none at its end.
    ///
    /// # Errors
    /// There is no such stream, or the bytes are delivered and no longer kept.
    pub fn read_stream(
        &self,
        key: &AttemptKey,
        stream: u32,
        epoch: u64,
        offset: u64,
        max: usize,
    ) -> io::Result<Vec<u8>> {
        let gone = |what: &str| io::Error::new(io::ErrorKind::NotFound, format!("stream {stream} of {key} {what}"));
        let max = u64::try_from(max).unwrap_or(u64::MAX);
        let place = {
            let mut queue = self.0.outbox.queue();
            let state = queue.stream(key, (stream, epoch)).ok_or_else(|| gone("is not here"))?;
            if offset >= state.written {
                return Ok(Vec::new());
            }
            state.segment_at(offset)
        };
        let (start, end) = place.ok_or_else(|| gone("is delivered up to a later offset"))?;
        let len = usize::try_from(max.min(end.saturating_sub(offset))).unwrap_or(usize::MAX);
        let segment = Segment { stream, epoch, offset: start };
        self.0.outbox.spool().read_segment(key, segment, offset - start, len)
    }

    /// The input archive of an attempt.
    ///
    /// # Errors
    /// The attempt is not here, or the disk is at fault.
    pub fn read_inputs(&self, key: &AttemptKey) -> io::Result<File> {
        self.0.outbox.spool().read_inputs(key)
    }

    /// The file that an attempt's input archive is fetched into. It goes with the attempt, or by
    /// [`Self::remove_fetched`]; what it has after a crash is not to be trusted unchecked.
    ///
    /// # Errors
    /// The attempt is not here, or the disk is at fault.
    pub fn open_fetched(&self, key: &AttemptKey) -> io::Result<File> {
        self.0.outbox.spool().open_fetched(key)
    }

    /// Gives back the room of what was fetched.
    ///
    /// # Errors
    /// The disk is at fault.
    pub fn remove_fetched(&self, key: &AttemptKey) -> io::Result<()> {
        self.0.outbox.spool().remove_fetched(key)
    }

    /// How the attempt ended, if it is over and delivered.
    pub fn is_over(&self, key: &AttemptKey) -> Option<Outcome> {
        self.tombstone(key).map(|(outcome, _)| outcome)
    }

    /// How the attempt ended, and the digest of its assignment.
    pub fn tombstone(&self, key: &AttemptKey) -> Option<(Outcome, Vec<u8>)> {
        self.read(|db| db::tombstone(db, key)).flatten()
    }

    /// The final report of an attempt that is here, or of one of the last that are over; there it is shortened.
    pub fn final_report(&self, key: &AttemptKey) -> Option<FinalReport> {
        let held = self.read(|db| db::final_report(db, key)).flatten();
        held.or_else(|| self.read(|db| db::ended(db, key)).flatten()?.1)
    }

    /// The row of an attempt that is over.
    pub fn history_row(&self, key: &AttemptKey) -> Option<HistoryRow> {
        self.read(|db| db::ended(db, key)).flatten().map(|(row, _)| row)
    }

    /// The latest attempt of a task, held or over.
    pub fn latest_attempt(&self, task: &Id) -> Option<u32> {
        self.read(|db| db::latest_attempt(db, task.as_str())).flatten()
    }

    /// At most `limit` attempts that are over, newest first: all, or those that ended before the one of `before`.
    pub fn history(&self, limit: u32, before: Option<&AttemptKey>) -> Vec<HistoryRow> {
        self.read(|db| db::history(db, limit, before)).unwrap_or_default()
    }

    /// Saves a small value of another part. It is on disk when this returns.
    ///
    /// # Errors
    /// It is not on disk; or nobody knows, when the disk takes too long.
    pub fn kv_put(&self, key: &str, value: &[u8]) -> io::Result<()> {
        let (reply, answer) = bounded(1);
        let message = Message::Put { key: kv_name(key), value: value.to_vec(), reply };
        let sent = self.0.inbox.send_timeout(message, PUT_TIMEOUT);
        sent.map_err(|error| io::Error::new(io::ErrorKind::TimedOut, format!("cannot reach the store: {error}")))?;
        match answer.recv_timeout(PUT_TIMEOUT) {
            Ok(result) => result.map_err(io::Error::other),
            Err(error) => Err(io::Error::new(io::ErrorKind::TimedOut, error)),
        }
    }

    /// Reads a value that [`Self::kv_put`] saved.
    pub fn kv_get(&self, key: &str) -> Option<Vec<u8>> {
        self.read(|db| db::value(db, &kv_name(key))).flatten()
    }

    /// Reads beside the store thread, from committed rows. What can't be read counts as absent, and is told in the log.
    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Option<T> {
        let result = query(&lock(&self.0.reader));
        result.inspect_err(|error| log::error!("cannot read the task database: {error}")).ok()
    }
}

/// Values of other parts have names of their own, apart from the store's.
fn kv_name(key: &str) -> String {
    format!("user.{key}")
}

/// Milliseconds since 1970 by the node's clock.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// See `outbox::lock`: poison means nothing here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
