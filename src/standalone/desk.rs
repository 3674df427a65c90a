//! The master's desk: submit, watch, read, fetch and cancel, for the control socket. Any thread may use it.
//!
//! The lock is held for decisions and for the write of a submission, never while a stream is read.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prost::Message;
use ring::digest::{SHA256, digest};

use super::archive;
use super::attempt::{Attempt, Place};
use super::book::rank;
use super::convert;
use super::core::Core;
use super::date::date;
use super::earlier;
use super::fail::Fail;
use super::parts::{Part, Parts};
use crate::config::amount;
use crate::config::taskfile::TaskFile;
use crate::grpc::Code;
use crate::monitor::{Listed, LogPart, OutputContent, SubmissionView, Submissions, SubmitError};
use crate::node::id::{AttemptKey, Id};
use crate::node::offer::Offer;
use crate::node::record::{STDERR, STDOUT};
use crate::node::spec::{
    FieldError, MAX_BYTES, MAX_CPU_MILLIS, MAX_GRACE, MIN_CPU_MILLIS, MIN_MEMORY_BYTES, SpecDefaults, TaskSpec,
};
use crate::rpc::Waker;
use crate::sys::clock::boottime;
use crate::sys::text::hex;

/// Most that one look at a stream returns.
pub const MAX_READ_BYTES: usize = 4 << 20;
/// Tries to make a name that is not taken; each has four random bytes.
const NAME_TRIES: usize = 4;
/// Bytes of a variable's name that a message repeats.
const MAX_SHOWN_NAME: usize = 60;

/// What the desk and the master's thread share.
pub(super) struct Shared {
    core: Mutex<Core>,
    changed: Condvar,
    /// The clock's time of the core's zero.
    pub(super) started: Duration,
}

impl Shared {
    pub(super) fn new(core: Core, started: Duration) -> Self {
        Self { core: Mutex::new(core), changed: Condvar::new(), started }
    }

    /// The core's time.
    pub(super) fn now(&self) -> Duration {
        boottime().saturating_sub(self.started)
    }

    /// A thread that panicked has left each attempt whole: changes come after their write, one assignment each.
    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes those who wait for a change.
    pub(super) fn tell(&self) {
        self.changed.notify_all();
    }
}

/// See the module.
#[derive(Clone)]
pub struct Desk {
    pub(super) shared: Arc<Shared>,
    pub(super) waker: Waker,
    pub(super) defaults: SpecDefaults,
}

impl Desk {
    /// Queues a task after the checks that a node makes.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn submit_offer(&self, mut offer: Offer) -> Result<AttemptKey, SubmitError> {
        offer.dependencies = earlier::complete(&self.shared.lock(), &offer)
            .map_err(|message| SubmitError { field: "dependencies".to_owned(), message })?;
        let spec = TaskSpec::check(&offer, &self.defaults)
            .map_err(|error| field_error(error, &offer, self.defaults.max_timeout))?;
        let assignment = convert::assignment(offer).encode_to_vec();
        self.submit_raw(&spec.key, &assignment).map_err(|fail| SubmitError {
            field: if fail.code == Code::InvalidArgument { "name".to_owned() } else { String::new() },
            message: if fail.code == Code::InvalidArgument {
                format!("is taken: {}", fail.message)
            } else {
                fail.message
            },
        })?;
        Ok(spec.key)
    }

    /// Queues bytes as they are under this key, for instance to see what a node says to wrong ones.
    ///
    /// # Errors
    /// The key is taken by this or a later attempt, the queue is full, or the disk refuses.
    pub fn submit_raw(&self, key: &AttemptKey, assignment: &[u8]) -> Result<(), Fail> {
        self.shared.lock().submit(key, assignment, self.shared.now())?;
        self.changed();
        Ok(())
    }

    /// The node's last report and heartbeat, as it sent them.
    pub fn node(&self, node: &Id) -> Option<super::core::NodeRow> {
        self.shared.lock().node(node).cloned()
    }

    /// At most `max` bytes of what arrived of an attempt's stream from `offset`; `None` when it was not submitted here.
    pub fn read_attempt(&self, key: &AttemptKey, stream: u32, offset: u64, max: usize) -> Option<LogPart> {
        let (parts, is_closed) = {
            let core = self.shared.lock();
            stream_parts(&core, core.attempt(key)?, stream)
        };
        read_parts(parts, is_closed, offset, max)
    }

    fn changed(&self) {
        self.shared.tell();
        self.waker.wake();
    }

    fn make_name(&self) -> Result<String, SubmitError> {
        let core = self.shared.lock();
        let random = core.random_name().map_err(|fail| plain(fail.message))?;
        Ok(format!("task-{}-{}", date(core.unix_ms(self.shared.now())), hex(&random)))
    }

    /// What is read of an attempt without the lock.
    fn find<T>(&self, task: &str, find: impl FnOnce(&Core, &Attempt) -> Option<T>) -> Option<T> {
        let task = Id::parse(task).ok()?;
        let core = self.shared.lock();
        core.latest(&task).and_then(|attempt| find(&core, attempt))
    }
}

impl Submissions for Desk {
    fn submit(&self, archive: &mut dyn Read) -> Result<AttemptKey, SubmitError> {
        let submission =
            archive::read(archive).map_err(|error| SubmitError { field: error.part, message: error.message })?;
        let task = TaskFile::parse(&submission.task)
            .map_err(|error| SubmitError { field: "task.json".to_owned(), message: error.to_string() })?;
        let mut offer = task.to_offer();
        if !submission.inputs.is_empty() {
            offer.inputs_sha256 = digest(&SHA256, &submission.inputs).as_ref().to_vec();
            offer.inputs = submission.inputs;
        }
        if task.name.is_some() {
            return self.submit_offer(offer);
        }
        for _ in 0..NAME_TRIES {
            let name = self.make_name()?;
            if self.find(&name, |_, _| Some(())).is_none() {
                offer.task = name;
                break;
            }
        }
        self.submit_offer(offer)
    }

    fn list(&self, which: Listed, limit: usize) -> Vec<SubmissionView> {
        let core = self.shared.lock();
        let mut latest: Vec<&Attempt> = core.latest_of_each();
        let newest = |attempt: &Attempt| std::cmp::Reverse((attempt.meta.submitted_ms, attempt.version));
        match which {
            Listed::All => latest.sort_by_key(|attempt| newest(attempt)),
            Listed::AtMaster => {
                latest.retain(|attempt| attempt.is_at_master());
                latest.sort_by_key(|attempt| {
                    let in_line = (!attempt.is_over()).then(|| rank(attempt));
                    (attempt.is_over(), in_line, newest(attempt))
                });
            }
        }
        let blocker = core.blocker(self.shared.now());
        latest.into_iter().take(limit).map(|attempt| view(&core, attempt, blocker)).collect()
    }

    fn view(&self, task: &str, seen_version: u64, wait: Duration) -> Option<SubmissionView> {
        let task = Id::parse(task).ok()?;
        let until = Instant::now() + wait;
        let mut core = self.shared.lock();
        loop {
            let attempt = core.latest(&task)?;
            let left = until.saturating_duration_since(Instant::now());
            if attempt.version != seen_version || left.is_zero() {
                return Some(view(&core, attempt, core.blocker(self.shared.now())));
            }
            let woken = self.shared.changed.wait_timeout(core, left);
            core = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn read(&self, task: &str, stream: u32, offset: u64, max: usize) -> Option<LogPart> {
        let (parts, is_closed) = self.find(task, |core, attempt| Some(stream_parts(core, attempt, stream)))?;
        read_parts(parts, is_closed, offset, max)
    }

    fn output(&self, task: &str, path: &str) -> Option<OutputContent> {
        let parts: Vec<Part> = self.find(task, |core, attempt| {
            let parts = attempt.output_parts(path)?;
            Some(parts.into_iter().map(|(id, bytes)| (core.stream_path(&attempt.key, id), bytes)).collect())
        })?;
        let size = parts.iter().map(|(_, bytes)| bytes).sum();
        let reader = Box::new(Parts::open(parts, 0).ok()?);
        Some(OutputContent { reader, size })
    }

    fn cancel(&self, task: &str) -> Result<(), String> {
        let task = Id::parse(task).map_err(|error| format!("the task's name {error}"))?;
        self.shared.lock().cancel(&task, "cancelled by its author", self.shared.now())?;
        self.changed();
        Ok(())
    }
}

/// Where a stream's bytes are, and whether no more will come.
fn stream_parts(core: &Core, attempt: &Attempt, stream: u32) -> (Vec<Part>, bool) {
    let parts =
        attempt.epochs(stream).map(|(epoch, part)| (core.stream_path(&attempt.key, (stream, epoch)), part.bytes));
    (parts.collect(), attempt.is_closed(stream))
}

fn read_parts(parts: Vec<Part>, is_closed: bool, offset: u64, max: usize) -> Option<LogPart> {
    let end = parts.iter().map(|(_, bytes)| bytes).sum();
    let mut bytes = Vec::new();
    let most = max.min(MAX_READ_BYTES) as u64;
    // Only a task that is removed just now can't be read.
    Parts::open(parts, offset).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Some(LogPart { bytes, offset, end, is_closed })
}

/// An attempt as its author sees it.
fn view(core: &Core, attempt: &Attempt, blocker: Option<&Attempt>) -> SubmissionView {
    let phase = match (&attempt.place, attempt.phase) {
        _ if attempt.is_complete() => "delivered",
        _ if attempt.is_over() => "reporting",
        (_, Some(phase)) => phase.as_str(),
        (Place::Queued(_), None) => "waiting",
        (Place::Offered { .. }, None) => "offered",
        (Place::Placed(_), None) => "received",
    };
    SubmissionView {
        task: attempt.key.task.to_string(),
        attempt: attempt.key.attempt,
        version: attempt.version,
        phase: phase.to_owned(),
        outcome: attempt.outcome(),
        final_report: attempt.last_word(),
        is_complete: attempt.is_complete(),
        stdout_bytes: attempt.stream_bytes(STDOUT),
        stderr_bytes: attempt.stream_bytes(STDERR),
        notes: attempt.notes.iter().cloned().collect(),
        waits: core.waits(attempt, blocker),
        is_at_master: attempt.is_at_master(),
        limits: attempt.meta.wants.needs,
        submitted_ms: attempt.meta.submitted_ms,
        finished_ms: attempt.finished_ms,
    }
}

fn plain(message: String) -> SubmitError {
    SubmitError { field: String::new(), message }
}

/// The contract's field in the words and units of the task file.
fn field_error(error: FieldError, offer: &Offer, max_timeout: Duration) -> SubmitError {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let bytes: fn(u64) -> String = amount::bytes;
    let plain: fn(u64) -> String = amount::thousandths;
    let name = |field: &str, message: String| SubmitError { field: field.to_owned(), message };
    let range = |field: &str, value: i64, shown: fn(u64) -> String, range: (u64, u64)| {
        let value = u64::try_from(value).map_or_else(|_| value.to_string(), shown);
        name(field, format!("is {value}, must be from {} to {}", shown(range.0), shown(range.1)))
    };
    match error.field.as_str() {
        "task_id" => name("name", error.reason),
        "owner_id" => name("owner", error.reason),
        "inputs" => name("files", error.reason),
        "cpu_millis" => range("cpu", offer.cpu_millis, plain, (MIN_CPU_MILLIS, MAX_CPU_MILLIS)),
        "memory_bytes" => range("memory", offer.memory_bytes, bytes, (MIN_MEMORY_BYTES, MAX_BYTES)),
        "disk_bytes" => range("disk", offer.disk_bytes, bytes, (1 << 20, MAX_BYTES)),
        "max_output_bytes" => range("max_output", offer.max_output_bytes, bytes, (1, MAX_BYTES)),
        "timeout_ms" => range("timeout_s", offer.timeout_ms, plain, (100, millis(max_timeout))),
        "grace_ms" => range("grace_s", offer.grace_ms.unwrap_or(0), plain, (0, millis(MAX_GRACE))),
        field => match env_name(field, offer) {
            Some(variable) => name("env", format!("{variable}: {}", error.reason)),
            None => SubmitError { field: error.field, message: error.reason },
        },
    }
}

/// The variable that `env[3]` means, as much of it as a message may repeat.
fn env_name<'a>(field: &str, offer: &'a Offer) -> Option<&'a str> {
    let index: usize = field.strip_prefix("env[")?.strip_suffix(']')?.parse().ok()?;
    let (name, _) = offer.env.get(index)?;
    name.get(..name.floor_char_boundary(MAX_SHOWN_NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_told_in_the_words_and_units_of_the_task_file() {
        for (file, expected) in [
            (r#"{"memory": "1MiB"}"#, "memory is 1 MiB, must be from 16 MiB to 1 PiB"),
            (r#"{"disk": 5}"#, "disk is 5 bytes, must be from 1 MiB to 1 PiB"),
            (r#"{"timeout_s": 99999999}"#, "timeout_s is 99999999, must be from 0.1 to 86400"),
            (r#"{"grace_s": 61.5}"#, "grace_s is 61.5, must be from 0 to 60"),
            (r#"{"priority": 101}"#, "priority is 101, must be from 0 to 100"),
            (r#"{"env": {"A": "1", "TASK_ID": "x"}}"#, "env TASK_ID: sets TASK_ID, which the worker sets"),
            (
                r#"{"env": {"1": "x"}}"#,
                r#"env 1: has the name "1" of 1 bytes, which is not [A-Za-z_][A-Za-z0-9_]{0,254}"#,
            ),
            (r#"{"pull": "now"}"#, "pull must be always, if-missing or never"),
        ] {
            let mut offer = TaskFile::parse(file).unwrap().to_offer();
            offer.task = "t".to_owned();
            let defaults = SpecDefaults::default();
            let error = TaskSpec::check(&offer, &defaults).unwrap_err();
            let error = field_error(error, &offer, defaults.max_timeout);
            assert_eq!(format!("{} {}", error.field, error.message), expected);
        }
    }
}
