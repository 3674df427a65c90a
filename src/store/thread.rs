//! The store thread: the one writer of the database. It groups what waits in its inbox into one transaction, and
//! answers only when that is on disk.
//!
//! ```text
//! Good ---- no space or another passing fault ----> Stalled ---- space for the reserve is there again ----> Good
//!   |                                                  |    new tasks are refused; the rest waits and is retried
//!   +----------- fault of the disk -----------------> Broken    everything is refused until a restart
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rusqlite::{Connection, TransactionBehavior};

use super::batch::{self, Draft};
use super::files;
use super::outbox::Outbox;
use super::queue::{Acks, Entry, Urgency};
use super::spool::stem;
use super::{StoreEvent, Write};
use crate::node::id::AttemptKey;
use crate::node::record::EventKind;
use crate::sys::failpoint::{self, FailPoint};

/// Messages that one transaction takes at the most: enough to share a sync, few enough to answer soon.
const MAX_BATCH: usize = 256;
/// Messages that wait for space. Those behind fail, as their senders must not wait for ever.
const MAX_WAITING: usize = 4_096;
/// Between tries while the disk is full.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Acknowledgements only free disk: they can wait for company.
const ACKS_AFTER: Duration = Duration::from_secs(1);
/// The longest wait at the inbox.
const IDLE: Duration = Duration::from_secs(60);

/// What comes into the inbox.
pub(super) enum Message {
    /// Durable together, then answered.
    Commit { ticket: u64, writes: Vec<Write> },
    /// A value of another part.
    Put { key: String, value: Vec<u8>, reply: Sender<Result<(), String>> },
    /// The outbox has acknowledgements or notes.
    Acks(Urgency),
    /// Write what is here, then end.
    Close,
}

/// What a transaction writes for one message.
pub(super) enum Work {
    /// Without a ticket: nobody waits for it.
    Writes {
        ticket: Option<u64>,
        writes: Vec<Write>,
    },
    Put {
        key: String,
        value: Vec<u8>,
        reply: Sender<Result<(), String>>,
    },
}

impl Work {
    fn forgets(&self) -> bool {
        let is_forget = |write: &Write| matches!(write, Write::Forget { .. });
        matches!(self, Self::Writes { writes, .. } if writes.iter().any(is_forget))
    }

    fn takes(&self) -> impl Iterator<Item = &Write> {
        let writes = match self {
            Self::Writes { writes, .. } => writes.as_slice(),
            Self::Put { .. } => &[],
        };
        writes.iter().filter(|write| matches!(write, Write::Take { .. }))
    }
}

/// Why a batch is not on disk.
#[derive(Debug)]
pub(super) enum Fault {
    /// It may work again by itself: no space, above all.
    Passing(String),
    /// The disk or the file is at fault: what a retry says can't be trusted.
    Lasting(String),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{CannotOpen, DatabaseBusy, DatabaseLocked, OutOfMemory};
        match error.sqlite_error_code() {
            _ if super::db::is_full(&error) => Self::Passing(error.to_string()),
            Some(DatabaseBusy | DatabaseLocked | OutOfMemory | CannotOpen) => Self::Passing(error.to_string()),
            _ => Self::Lasting(error.to_string()),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        use rustix::io::Errno;
        let passing = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
        let is_passing = passing.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
        if files::is_full(&error) || is_passing {
            Self::Passing(error.to_string())
        } else {
            Self::Lasting(error.to_string())
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Good,
    Stalled(String),
    Broken(String),
}

/// The thread's state.
pub(super) struct Thread {
    pub(super) connection: Connection,
    pub(super) outbox: Outbox,
    pub(super) inbox: Receiver<Message>,
    pub(super) notify: Box<dyn Fn(StoreEvent) + Send>,
    pub(super) duties: batch::Duties,
    pub(super) health: Health,
    /// Where the reserve is, and its size.
    pub(super) reserve: (PathBuf, u64),
    /// Work that waits for space, in order.
    pub(super) waiting: Vec<Work>,
    /// Folders that are removed, which the next transaction notes.
    pub(super) swept: Vec<String>,
}

impl Thread {
    /// Runs until [`Message::Close`].
    pub(super) fn run(mut self) {
        // At the start an attempt may be over already.
        let mut acks_due = Some(Instant::now());
        let mut retry_at = Instant::now();
        loop {
            let now = Instant::now();
            let deadline = match self.health {
                Health::Stalled(_) => retry_at,
                Health::Good | Health::Broken(_) => acks_due.unwrap_or(now + IDLE),
            };
            let mut work = std::mem::take(&mut self.waiting);
            let waited = work.len();
            let mut is_closing = false;
            let mut next = match self.inbox.recv_timeout(deadline.saturating_duration_since(now)) {
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Message::Close),
                Ok(message) => Some(message),
            };
            while let Some(message) = next.take() {
                match message {
                    Message::Commit { ticket, writes } => work.push(Work::Writes { ticket: Some(ticket), writes }),
                    Message::Put { key, value, reply } => work.push(Work::Put { key, value, reply }),
                    Message::Acks(Urgency::Now) => acks_due = Some(now),
                    Message::Acks(Urgency::Soon) => acks_due = acks_due.or(Some(now + ACKS_AFTER)),
                    Message::Close => is_closing = true,
                }
                // A task that comes after it was forgotten needs a folder of its own, so it comes with the next batch.
                let is_forgetting = work.last().is_some_and(Work::forgets);
                if work.len() - waited < MAX_BATCH && !is_closing && !is_forgetting {
                    next = self.inbox.try_recv().ok();
                }
            }
            let now = Instant::now();
            if matches!(self.health, Health::Stalled(_)) && now < retry_at && !is_closing {
                self.wait(work);
                continue;
            }
            let was_good = self.health == Health::Good;
            if !work.is_empty() || acks_due.is_some_and(|due| due <= now) || is_closing {
                self.handle(work);
                acks_due = None;
            }
            self.try_recover();
            if matches!(self.health, Health::Stalled(_)) {
                acks_due = Some(now + ACKS_AFTER);
            }
            // The first try after the reserve was released is made at once.
            retry_at = if was_good { now } else { now + RETRY_AFTER };
            if is_closing {
                let rest = std::mem::take(&mut self.waiting);
                self.fail(rest, "the store is closed");
                return;
            }
        }
    }

    /// Brings work, notes and acknowledgements onto the disk, or says why not.
    fn handle(&mut self, mut work: Vec<Work>) {
        if let Health::Broken(reason) = &self.health {
            let reason = reason.clone();
            return self.fail(work, &reason);
        }
        if let Health::Stalled(reason) = &self.health {
            let reason = reason.clone();
            work = self.refuse_tasks(work, &reason);
        }
        let (notes, acks) = {
            let mut queue = self.outbox.queue();
            (queue.take_notes(), queue.take_acks())
        };
        work.extend(notes.into_iter().map(|(key, text)| Work::Writes {
            ticket: None,
            writes: vec![Write::Event { key, time_ms: super::now_ms(), kind: EventKind::Note(text) }],
        }));
        match self.commit(&work, &acks) {
            Ok(draft) => self.publish(work, &acks, draft),
            Err(fault) => {
                self.outbox.queue().put_back(&acks);
                // After a fault of the disk nobody knows whether the rows are there: the next start sees, and needs
                // the folders then.
                if matches!(fault, Fault::Passing(_)) {
                    self.remove_uncommitted(&work);
                }
                self.handle_fault(fault, work);
            }
        }
    }

    fn commit(&mut self, work: &[Work], acks: &[Acks]) -> Result<Draft, Fault> {
        for write in work.iter().flat_map(Work::takes) {
            if let Write::Take { spec, inputs } = write
                && !self.duties.contains_key(&spec.key)
            {
                self.outbox.spool().take(spec, inputs)?;
            }
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let draft = batch::write(&transaction, &self.duties, work, acks, &self.swept)?;
        if !draft.taken.is_empty() {
            failpoint::pass(FailPoint::DecisionWritten);
        }
        transaction.commit()?;
        Ok(draft)
    }

    fn publish(&mut self, work: Vec<Work>, acks: &[Acks], draft: Draft) {
        if !draft.taken.is_empty() {
            failpoint::pass(FailPoint::DecisionSynced);
        }
        self.swept.clear();
        for key in &draft.taken {
            note_failure(key, self.outbox.spool().mark_committed(key));
        }
        for (key, events) in &draft.recorded {
            if draft.duties.get(key).is_none_or(Option::is_some) {
                note_failure(key, self.outbox.spool().append_events(key, events.iter()));
            }
        }
        let spent = self.publish_to_outbox(acks, &draft);
        for (key, duty) in draft.duties {
            match duty {
                Some(duty) => self.duties.insert(key, duty),
                None => self.duties.remove(&key),
            };
        }
        for job in work {
            match job {
                Work::Writes { ticket: Some(ticket), .. } => (self.notify)(StoreEvent::Durable(ticket)),
                Work::Writes { ticket: None, .. } => {}
                // Who asked may have stopped waiting.
                Work::Put { reply, .. } => reply.try_send(Ok(())).unwrap_or_default(),
            }
        }
        for (key, segment) in spent {
            let path = self.outbox.spool().segment(&key, segment);
            note_failure(&key, files::remove_if_there(&path));
        }
        for key in draft.forgotten.iter().chain(&draft.over) {
            match self.outbox.spool().remove(key) {
                Ok(()) => self.swept.push(stem(key)),
                Err(error) => log::warn!("cannot remove the folder of {key}, the next start will: {error}"),
            }
        }
        for key in draft.over {
            (self.notify)(StoreEvent::Delivered(key));
        }
    }

    fn publish_to_outbox(&self, acks: &[Acks], draft: &Draft) -> Vec<(AttemptKey, super::spool::Segment)> {
        let mut queue = self.outbox.queue();
        for key in &draft.taken {
            if let Some(Some(duty)) = draft.duties.get(key) {
                queue.insert(key.clone(), Entry::new(duty.id, 0, 0, BTreeMap::new()).with_priority(duty.priority));
            }
        }
        for (key, events) in &draft.recorded {
            for event in events {
                queue.recorded(key, event.number, matches!(event.kind, EventKind::Final(_)));
            }
        }
        let mut spent = queue.noted(acks);
        for key in draft.over.iter().chain(&draft.forgotten) {
            queue.remove(key);
            spent.retain(|(of, _)| of != key);
        }
        drop(queue);
        if !draft.recorded.is_empty() {
            self.outbox.wake();
        }
        spent
    }

    fn handle_fault(&mut self, fault: Fault, work: Vec<Work>) {
        match fault {
            Fault::Lasting(reason) => {
                let reason = format!("the store cannot write, nothing new is taken until a restart: {reason}");
                self.health = Health::Broken(reason.clone());
                (self.notify)(StoreEvent::Trouble(reason.clone()));
                self.fail(work, &reason);
            }
            Fault::Passing(reason) => {
                let reason = format!("the store cannot write now: {reason}");
                if self.health == Health::Good {
                    self.health = Health::Stalled(reason.clone());
                    note_trouble(files::remove_if_there(&self.reserve.0));
                    (self.notify)(StoreEvent::Trouble(reason.clone()));
                }
                let work = self.refuse_tasks(work, &reason);
                self.wait(work);
            }
        }
    }

    /// While stalled: makes the reserve again, which says that there is space.
    fn try_recover(&mut self) {
        if matches!(self.health, Health::Stalled(_))
            && self.waiting.is_empty()
            && files::make_reserve(&self.reserve.0, self.reserve.1).is_ok()
        {
            self.health = Health::Good;
            (self.notify)(StoreEvent::Recovered);
        }
    }

    fn wait(&mut self, work: Vec<Work>) {
        self.waiting = work;
        if self.waiting.len() > MAX_WAITING {
            let rest = self.waiting.split_off(MAX_WAITING);
            self.fail(rest, "too much waits for space on the disk");
        }
    }

    fn refuse_tasks(&self, work: Vec<Work>, reason: &str) -> Vec<Work> {
        let (tasks, rest) = work.into_iter().partition(|job| job.takes().next().is_some());
        self.fail(tasks, reason);
        rest
    }

    fn fail(&self, work: Vec<Work>, reason: &str) {
        for job in work {
            let reason = reason.to_owned();
            match job {
                Work::Writes { ticket: Some(ticket), .. } => (self.notify)(StoreEvent::Failed { ticket, reason }),
                Work::Writes { ticket: None, .. } => log::error!("a note is lost: {reason}"),
                Work::Put { reply, .. } => reply.try_send(Err(reason)).unwrap_or_default(),
            }
        }
    }

    fn remove_uncommitted(&self, work: &[Work]) {
        for write in work.iter().flat_map(Work::takes) {
            if let Write::Take { spec, .. } = write
                && !self.duties.contains_key(&spec.key)
            {
                note_failure(&spec.key, self.outbox.spool().remove(&spec.key));
            }
        }
    }
}

/// Copies and removals may fail: the database has the duty.
fn note_failure(key: &AttemptKey, result: io::Result<()>) {
    if let Err(error) = result {
        log::warn!("in the folder of {key}: {error}");
    }
}

fn note_trouble(result: io::Result<()>) {
    if let Err(error) = result {
        log::warn!("cannot release the reserve: {error}");
    }
}
