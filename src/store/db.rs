//! The task database: schema, rows and their checksums. What the rows mean is in `duty`, when they are written in
//! `thread`.
//!
//! ```text
//! attempt  id (order of arrival), task, attempt, spec + sum     a duty; its row goes only when the master has all of it
//! state    id, content + sum                                    phase, marks, counters: small, as it changes often
//! event    id, number, content + sum
//! stream   id, stream, epoch, content + sum                     how far the master has it
//! history  id, task, attempt, digest, outcome, content          attempts that are over, bounded
//! sweep    stem                                                 folders of attempts that are over, until they are removed
//! kv       key, value                                           small things of other parts
//! ```

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::duty::State;
use super::files;
use crate::node::id::AttemptKey;
use crate::node::record::{Event, EventKind, FinalReport, Outcome};
use crate::node::snapshot::HistoryRow;
use crate::node::spec::TaskSpec;

/// Version of the schema, in `user_version`.
pub(super) const VERSION: i64 = 1;
/// Attempts that are over: enough for months, and a query stays fast.
pub(super) const MAX_HISTORY: i64 = 100_000;
/// The newest of them still have their final report, shortened: for a look back, at a few kilobytes each.
const MAX_REPORTS: i64 = 1_000;
/// Of a report that is kept: files, lines on what was cut, and bytes of the last output.
const MAX_REPORT_FILES: usize = 50;
const MAX_REPORT_CUTS: usize = 20;
const MAX_REPORT_TAIL: usize = 2 << 10;
/// Readers and the store thread never wait long for each other in WAL mode.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// SQLite's log is cut to this size after it had to be longer.
const MAX_LOG_BYTES: i64 = 4 << 20;

const SCHEMA: &str = "
CREATE TABLE attempt(id INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, attempt INTEGER NOT NULL,
    spec BLOB NOT NULL, sum BLOB NOT NULL, UNIQUE(task, attempt));
CREATE TABLE state(id INTEGER PRIMARY KEY, content BLOB NOT NULL, sum BLOB NOT NULL);
CREATE TABLE event(id INTEGER NOT NULL, number INTEGER NOT NULL, content BLOB NOT NULL, sum BLOB NOT NULL,
    PRIMARY KEY(id, number));
CREATE TABLE stream(id INTEGER NOT NULL, stream INTEGER NOT NULL, epoch INTEGER NOT NULL, content BLOB NOT NULL,
    sum BLOB NOT NULL, PRIMARY KEY(id, stream, epoch));
CREATE TABLE history(id INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, attempt INTEGER NOT NULL,
    digest BLOB NOT NULL, outcome TEXT NOT NULL, finished_ms INTEGER NOT NULL, content BLOB NOT NULL);
CREATE INDEX history_key ON history(task, attempt);
CREATE TABLE sweep(stem TEXT PRIMARY KEY);
CREATE TABLE kv(key TEXT PRIMARY KEY, value BLOB NOT NULL);
PRAGMA user_version = 1;
";

/// How far the master has a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StreamAck {
    /// Bytes from the start.
    pub(super) acked: u64,
    /// The stream is closed and its end has arrived too.
    pub(super) is_done: bool,
}

/// A duty's row as it was found.
pub(super) struct AttemptRow {
    pub(super) id: i64,
    /// Absent when the columns hold no key.
    pub(super) key: Option<AttemptKey>,
    /// Absent when the checksum fails.
    pub(super) spec: Option<TaskSpec>,
}

/// SQLite's codes for a file that is shorter than it should be.
const SHORT_READ: i32 = 522;

/// Whether the file itself is at fault, so that it must be set aside: all that can't be laid at the door of the disk,
/// the folder or another process. A damaged schema or column shows in many ways.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(error, _) if error.extended_code == SHORT_READ => true,
        _ => !matches!(
            error.sqlite_error_code(),
            Some(
                ErrorCode::PermissionDenied
                    | ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::OutOfMemory
                    | ErrorCode::ReadOnly
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::DiskFull
                    | ErrorCode::CannotOpen
                    | ErrorCode::FileLockingProtocolFailed
            )
        ),
    }
}

/// SQLite's code for a shared index that can't grow: its way to say that the disk is full.
const NO_SHARED_INDEX: i32 = 4_874;

/// Whether a write failed for lack of space.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(error, _) if error.extended_code == NO_SHARED_INDEX => true,
        _ => error.sqlite_error_code() == Some(ErrorCode::DiskFull),
    }
}

/// Opens the file for the store thread. Says nothing about its content.
pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "journal_size_limit", MAX_LOG_BYTES)?;
    Ok(connection)
}

/// Opens the file beside the store thread. It sees committed rows only.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// The schema's version; 0 for a new file.
pub(super) fn version(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// What SQLite finds wrong with the file, if it does.
pub(super) fn quick_check(db: &Connection) -> rusqlite::Result<Option<String>> {
    let text: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok((text != "ok").then_some(text))
}

/// Makes the tables. Within a transaction it comes with the first rows or not at all.
pub(super) fn create(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(SCHEMA)
}

fn sealed(domain: &str, content: &impl Serialize) -> rusqlite::Result<(Vec<u8>, Vec<u8>)> {
    let content = serde_json::to_vec(content).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let sum = files::checksum(domain, &content).as_ref().to_vec();
    Ok((content, sum))
}

fn unsealed<T: DeserializeOwned>(domain: &str, content: &[u8], sum: &[u8]) -> Option<T> {
    let is_good = files::checksum(domain, content).as_ref() == sum;
    is_good.then(|| serde_json::from_slice(content).ok()).flatten()
}

fn attempt_domain(task: &str, attempt: i64) -> String {
    format!("attempt {task}#{attempt}")
}

/// SQLite counts in signed numbers; ours stay far below their end.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A new duty; gives its id.
pub(super) fn insert_attempt(db: &Connection, spec: &TaskSpec) -> rusqlite::Result<i64> {
    let (task, attempt) = (spec.key.task.as_str(), i64::from(spec.key.attempt));
    let (content, sum) = sealed(&attempt_domain(task, attempt), spec)?;
    db.execute(
        "INSERT INTO attempt(task, attempt, spec, sum) VALUES(?1, ?2, ?3, ?4)",
        params![task, attempt, content, sum],
    )?;
    Ok(db.last_insert_rowid())
}

/// Writes the task of a duty again.
pub(super) fn put_spec(db: &Connection, id: i64, spec: &TaskSpec) -> rusqlite::Result<()> {
    let domain = attempt_domain(spec.key.task.as_str(), i64::from(spec.key.attempt));
    let (content, sum) = sealed(&domain, spec)?;
    db.execute("UPDATE attempt SET spec = ?2, sum = ?3 WHERE id = ?1", params![id, content, sum])?;
    Ok(())
}

/// All duties in the order of arrival.
pub(super) fn attempts(db: &Connection) -> rusqlite::Result<Vec<AttemptRow>> {
    let mut statement = db.prepare("SELECT id, task, attempt, spec, sum FROM attempt ORDER BY id")?;
    let rows = statement.query_map([], |row| {
        let (task, attempt): (String, i64) = (row.get(1)?, row.get(2)?);
        let (content, sum): (Vec<u8>, Vec<u8>) = (row.get(3)?, row.get(4)?);
        let key = key_of(&task, attempt);
        let spec: Option<TaskSpec> = unsealed(&attempt_domain(&task, attempt), &content, &sum);
        Ok(AttemptRow { id: row.get(0)?, spec: spec.filter(|spec| Some(&spec.key) == key.as_ref()), key })
    })?;
    rows.collect()
}

fn key_of(task: &str, attempt: i64) -> Option<AttemptKey> {
    Some(AttemptKey { task: crate::node::id::Id::parse(task).ok()?, attempt: u32::try_from(attempt).ok()? })
}

/// Writes a duty's state.
pub(super) fn put_state(db: &Connection, id: i64, state: &State) -> rusqlite::Result<()> {
    let (content, sum) = sealed(&format!("state {id}"), state)?;
    db.execute("INSERT OR REPLACE INTO state(id, content, sum) VALUES(?1, ?2, ?3)", params![id, content, sum])?;
    Ok(())
}

/// A duty's state, if there is a sound one.
pub(super) fn state(db: &Connection, id: i64) -> rusqlite::Result<Option<State>> {
    let row: Option<(Vec<u8>, Vec<u8>)> = db
        .query_row("SELECT content, sum FROM state WHERE id = ?1", [id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(row.and_then(|(content, sum)| unsealed(&format!("state {id}"), &content, &sum)))
}

/// Writes an event.
pub(super) fn put_event(db: &Connection, id: i64, event: &Event) -> rusqlite::Result<()> {
    let (content, sum) = sealed(&format!("event {id} {}", event.number), event)?;
    db.execute(
        "INSERT OR REPLACE INTO event(id, number, content, sum) VALUES(?1, ?2, ?3, ?4)",
        params![id, signed(event.number), content, sum],
    )?;
    Ok(())
}

/// An event, if there is a sound one.
pub(super) fn event(db: &Connection, id: i64, number: u64) -> rusqlite::Result<Option<Event>> {
    let row: Option<(Vec<u8>, Vec<u8>)> = db
        .query_row("SELECT content, sum FROM event WHERE id = ?1 AND number = ?2", params![id, signed(number)], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    Ok(row.and_then(|(content, sum)| unsealed(&format!("event {id} {number}"), &content, &sum)))
}

/// The largest number of a duty's events.
pub(super) fn last_event(db: &Connection, id: i64) -> rusqlite::Result<u64> {
    let last: Option<i64> = db.query_row("SELECT max(number) FROM event WHERE id = ?1", [id], |row| row.get(0))?;
    Ok(last.map_or(0, unsigned))
}

/// Writes how far the master has a stream.
pub(super) fn put_stream(db: &Connection, id: i64, stream: u32, epoch: u64, ack: StreamAck) -> rusqlite::Result<()> {
    let (content, sum) = sealed(&format!("stream {id} {stream} {epoch}"), &ack)?;
    db.execute(
        "INSERT OR REPLACE INTO stream(id, stream, epoch, content, sum) VALUES(?1, ?2, ?3, ?4, ?5)",
        params![id, i64::from(stream), signed(epoch), content, sum],
    )?;
    Ok(())
}

/// How far the master has each stream of a duty; rows with a wrong checksum are left out.
pub(super) fn streams(db: &Connection, id: i64) -> rusqlite::Result<Vec<((u32, u64), StreamAck)>> {
    let mut statement = db.prepare("SELECT stream, epoch, content, sum FROM stream WHERE id = ?1")?;
    let rows = statement.query_map([id], |row| {
        let (stream, epoch): (i64, i64) = (row.get(0)?, row.get(1)?);
        let (content, sum): (Vec<u8>, Vec<u8>) = (row.get(2)?, row.get(3)?);
        let ack: Option<StreamAck> = unsealed(&format!("stream {id} {stream} {epoch}"), &content, &sum);
        let stream = u32::try_from(stream).ok();
        Ok(stream.zip(ack).map(|(stream, ack)| ((stream, unsigned(epoch)), ack)))
    })?;
    rows.filter_map(Result::transpose).collect()
}

/// Removes all rows of a duty.
pub(super) fn delete_attempt(db: &Connection, id: i64) -> rusqlite::Result<()> {
    for table in ["attempt", "state", "event", "stream"] {
        db.execute(&format!("DELETE FROM {table} WHERE id = ?1"), [id])?;
    }
    Ok(())
}

/// Content of a row of the table: an older version of the worker reads the first part of it.
#[derive(Serialize, Deserialize)]
struct Ended {
    #[serde(flatten)]
    row: HistoryRow,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    report: Option<FinalReport>,
}

fn shortened(mut report: FinalReport) -> FinalReport {
    let shorten = |lines: &mut Vec<String>, max: usize, what: &str| {
        if lines.len() > max {
            let more = lines.len() - max;
            lines.truncate(max);
            lines.push(format!("and {more} more {what}"));
        }
    };
    shorten(&mut report.cut, MAX_REPORT_CUTS, "lines");
    if report.outputs.len() > MAX_REPORT_FILES {
        report.cut.push(format!("{} more files are not listed here", report.outputs.len() - MAX_REPORT_FILES));
        report.outputs.truncate(MAX_REPORT_FILES);
    }
    report.streams.clear();
    report.tail.drain(..report.tail.len().saturating_sub(MAX_REPORT_TAIL));
    report
}

/// Remembers an attempt that is over, and forgets the oldest ones.
pub(super) fn insert_history(
    db: &Connection,
    row: &HistoryRow,
    digest: &[u8],
    report: Option<FinalReport>,
) -> rusqlite::Result<()> {
    let (content, _) = sealed("", &Ended { row: row.clone(), report: report.map(shortened) })?;
    db.execute(
        "INSERT INTO history(task, attempt, digest, outcome, finished_ms, content) VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            row.key.task.as_str(),
            i64::from(row.key.attempt),
            digest,
            row.outcome.as_str(),
            signed(row.finished_ms),
            content
        ],
    )?;
    let newest = db.last_insert_rowid();
    db.execute("DELETE FROM history WHERE id <= ?1", [newest.saturating_sub(MAX_HISTORY)])?;
    drop_report(db, newest.saturating_sub(MAX_REPORTS))
}

fn drop_report(db: &Connection, id: i64) -> rusqlite::Result<()> {
    let content: Option<Vec<u8>> =
        db.query_row("SELECT content FROM history WHERE id = ?1", [id], |row| row.get(0)).optional()?;
    let Some(row) = content.and_then(|content| serde_json::from_slice::<HistoryRow>(&content).ok()) else {
        return Ok(());
    };
    let (content, _) = sealed("", &row)?;
    db.execute("UPDATE history SET content = ?2 WHERE id = ?1", params![id, content])?;
    Ok(())
}

/// What is known of an attempt that is over: its row, and its report if it still has one.
pub(super) fn ended(db: &Connection, key: &AttemptKey) -> rusqlite::Result<Option<(HistoryRow, Option<FinalReport>)>> {
    let Some(id) = history_id(db, key)? else { return Ok(None) };
    let content: Vec<u8> = db.query_row("SELECT content FROM history WHERE id = ?1", [id], |row| row.get(0))?;
    let ended = serde_json::from_slice::<Ended>(&content).ok();
    Ok(ended.map(|ended| (ended.row, ended.report)))
}

/// The final report of a duty that the master does not have in full yet.
pub(super) fn final_report(db: &Connection, key: &AttemptKey) -> rusqlite::Result<Option<FinalReport>> {
    let id: Option<i64> = db
        .query_row(
            "SELECT id FROM attempt WHERE task = ?1 AND attempt = ?2",
            params![key.task.as_str(), i64::from(key.attempt)],
            |row| row.get(0),
        )
        .optional()?;
    id.map_or(Ok(None), |id| report_of(db, id))
}

/// The final report among the events of a duty.
pub(super) fn report_of(db: &Connection, id: i64) -> rusqlite::Result<Option<FinalReport>> {
    let Some(end) = state(db, id)?.and_then(|state| state.end) else { return Ok(None) };
    Ok(event(db, id, end.number)?.and_then(|event| match event.kind {
        EventKind::Final(report) => Some(*report),
        _ => None,
    }))
}

/// The latest attempt of a task, held or over.
pub(super) fn latest_attempt(db: &Connection, task: &str) -> rusqlite::Result<Option<u32>> {
    let latest: Option<i64> = db.query_row(
        "SELECT max(attempt) FROM (SELECT attempt FROM attempt WHERE task = ?1 UNION ALL \
         SELECT attempt FROM history WHERE task = ?1)",
        [task],
        |row| row.get(0),
    )?;
    Ok(latest.and_then(|attempt| u32::try_from(attempt).ok()))
}

/// Attempts that are over, newest first: the first `limit`, or those before the first `skip`.
pub(super) fn history(db: &Connection, limit: u32, before: Option<&AttemptKey>) -> rusqlite::Result<Vec<HistoryRow>> {
    let end = match before {
        None => i64::MAX,
        Some(key) => history_id(db, key)?.unwrap_or(0),
    };
    let mut statement = db.prepare("SELECT content FROM history WHERE id < ?1 ORDER BY id DESC LIMIT ?2")?;
    let rows = statement.query_map([end, i64::from(limit)], |row| row.get::<_, Vec<u8>>(0))?;
    // A row that can't be read is no duty: the others are shown without it.
    let parsed = rows.map(|row| row.map(|content| serde_json::from_slice(&content).ok()));
    parsed.filter_map(Result::transpose).collect()
}

fn history_id(db: &Connection, key: &AttemptKey) -> rusqlite::Result<Option<i64>> {
    db.query_row(
        "SELECT max(id) FROM history WHERE task = ?1 AND attempt = ?2",
        params![key.task.as_str(), i64::from(key.attempt)],
        |row| row.get(0),
    )
}

/// How an attempt ended and the digest of its assignment, when it is over and not yet forgotten.
pub(super) fn tombstone(db: &Connection, key: &AttemptKey) -> rusqlite::Result<Option<(Outcome, Vec<u8>)>> {
    let row: Option<(String, Vec<u8>)> = db
        .query_row(
            "SELECT outcome, digest FROM history WHERE task = ?1 AND attempt = ?2 ORDER BY id DESC LIMIT 1",
            params![key.task.as_str(), i64::from(key.attempt)],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    Ok(row.map(|(word, digest)| {
        let known = Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == word);
        // A word of another version still says that the attempt is over.
        (known.unwrap_or(Outcome::NodeFault), digest)
    }))
}

/// A folder that is to be removed.
pub(super) fn add_sweep(db: &Connection, stem: &str) -> rusqlite::Result<()> {
    db.execute("INSERT OR IGNORE INTO sweep(stem) VALUES(?1)", [stem])?;
    Ok(())
}

/// The folder is removed.
pub(super) fn end_sweep(db: &Connection, stem: &str) -> rusqlite::Result<()> {
    db.execute("DELETE FROM sweep WHERE stem = ?1", [stem])?;
    Ok(())
}

/// Folders that are to be removed.
pub(super) fn sweeps(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = db.prepare("SELECT stem FROM sweep")?;
    let rows = statement.query_map([], |row| row.get(0))?;
    rows.collect()
}

/// Writes a value.
pub(super) fn put_value(db: &Connection, key: &str, value: &[u8]) -> rusqlite::Result<()> {
    db.execute("INSERT OR REPLACE INTO kv(key, value) VALUES(?1, ?2)", params![key, value])?;
    Ok(())
}

/// Reads a value.
pub(super) fn value(db: &Connection, key: &str) -> rusqlite::Result<Option<Vec<u8>>> {
    db.query_row("SELECT value FROM kv WHERE key = ?1", [key], |row| row.get(0)).optional()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::id::Id;
    use crate::node::record::Usage;

    fn row(task: &str) -> HistoryRow {
        HistoryRow {
            key: AttemptKey { task: Id::parse(task).unwrap(), attempt: 1 },
            owner: Id::parse("o").unwrap(),
            image: "i".to_owned(),
            outcome: Outcome::Failed,
            exit_code: Some(3),
            reason: "exit code 3".to_owned(),
            usage: Usage::default(),
            duration_ms: 5,
            finished_ms: 7,
            output_files: 0,
            output_bytes: 0,
        }
    }

    #[test]
    fn the_newest_keep_their_report_and_the_rows_of_before_are_read() {
        let db = Connection::open_in_memory().unwrap();
        create(&db).unwrap();
        // As the version before wrote it.
        let old = serde_json::to_vec(&row("old")).unwrap();
        db.execute(
            "INSERT INTO history(task, attempt, digest, outcome, finished_ms, content) VALUES('old', 1, x'', 'Failed', 7, ?1)",
            [old],
        )
        .unwrap();
        let mut report = FinalReport::without_run(Outcome::Failed, "exit code 3");
        report.tail = vec![b'x'; 9_000];
        report.cut = vec!["line".to_owned(); 100];
        for number in 0..=MAX_REPORTS {
            insert_history(&db, &row(&format!("t{number}")), b"d", Some(report.clone())).unwrap();
        }
        let ended = |task: &str| ended(&db, &row(task).key).unwrap();
        assert_eq!(ended("old"), Some((row("old"), None)));
        assert_eq!(ended("t0"), Some((row("t0"), None)), "too old for a report");
        let (found, report) = ended("t1").unwrap();
        let report = report.unwrap();
        assert_eq!(found, row("t1"));
        assert_eq!((report.tail.len(), report.cut.len()), (2_048, 21));
        assert_eq!(ended("none"), None);
        assert_eq!(history(&db, 2, None).unwrap(), [row("t1000"), row("t999")], "a list has rows alone");
        assert_eq!(latest_attempt(&db, "t5").unwrap(), Some(1));
        assert_eq!(latest_attempt(&db, "none").unwrap(), None);
    }
}
