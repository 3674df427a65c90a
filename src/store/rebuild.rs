//! Brings rows, manifests, event copies and segments together at a start, so that behind it they agree.
//!
//! | found | is |
//! | --- | --- |
//! | row and folder | a duty; what is damaged in one is taken from the other |
//! | row without manifest | a duty; the manifest is written again |
//! | folder of an attempt that is over | swept |
//! | folder without row, never committed | a task that was being taken: swept, the master offers it again |
//! | folder without row, committed, or the database is new | a duty that the database lost: rebuilt |

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;

use rusqlite::Connection;

use super::RecoveredAttempt;
use super::batch::Duties;
use super::db::{self, AttemptRow, StreamAck};
use super::duty::{self, Duty};
use super::files;
use super::queue::{Entry, Queue, Stream, StreamKey};
use super::spool::{Behind, Found, Segment, Spool, stem};
use super::stamp;
use crate::node::record::{Event, EventKind, FIRST_OUTPUT, FinalReport};
use crate::node::spec::TaskSpec;

/// What a start begins with.
#[derive(Default)]
pub(super) struct Rebuilt {
    pub(super) queue: Queue,
    pub(super) duties: Duties,
    pub(super) attempts: Vec<RecoveredAttempt>,
    /// Folders to remove, once the transaction is committed.
    pub(super) sweeps: Vec<String>,
    /// Segments to remove, likewise.
    pub(super) spent: Vec<PathBuf>,
    /// Segments to cut to this length, and to rid of their stamp, likewise.
    pub(super) settled: Vec<(PathBuf, u64)>,
    pub(super) warnings: Vec<String>,
}

/// Why a start can't go on with what it finds.
pub(super) enum RebuildError {
    Database(rusqlite::Error),
    /// A folder of the spool is out of reach at the moment: what it holds must not be taken for lost.
    Spool(PathBuf, io::Error),
}

impl From<rusqlite::Error> for RebuildError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Row,
    Manifest,
}

struct Rebuild<'a> {
    db: &'a Connection,
    spool: &'a Spool,
    result: Rebuilt,
}

/// Reads everything and mends rows within the caller's transaction. Of the spool it changes nothing that a start
/// without this transaction would miss.
pub(super) fn rebuild(
    db: &Connection,
    spool: &Spool,
    found: Vec<Found>,
    is_new: bool,
) -> Result<Rebuilt, RebuildError> {
    let mut folders: BTreeMap<String, Found> = found.into_iter().map(|found| (found.stem.clone(), found)).collect();
    let sweeps = db::sweeps(db)?;
    let mut rebuild = Rebuild { db, spool, result: Rebuilt::default() };
    for row in db::attempts(db)? {
        rebuild.row(row, &mut folders)?;
    }
    for found in folders.into_values() {
        let is_swept = sweeps.contains(&found.stem);
        rebuild.folder(found, is_new, is_swept)?;
    }
    let mut result = rebuild.result;
    result.sweeps.extend(sweeps);
    order_by_completion(&mut result);
    Ok(result)
}

/// Removes what is over, and settles what was being written. Gives the names of the folders that are gone.
pub(super) fn sweep(spool: &Spool, sweeps: &[String], spent: &[PathBuf], settled: &[(PathBuf, u64)]) -> Vec<String> {
    for path in spent {
        if let Err(error) = files::remove_if_there(path) {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
    for (path, sound) in settled.iter().filter(|(path, _)| !spent.contains(path)) {
        // With its stamp it is judged again by the next start.
        if let Err(error) = stamp::settle(path, *sound) {
            log::warn!("cannot settle {}: {error}", path.display());
        }
    }
    let is_removed = |stem: &&String| {
        let result = spool.remove_stem(stem);
        result.inspect_err(|error| log::warn!("cannot remove the folder {stem} of the spool: {error}")).is_ok()
    };
    sweeps.iter().filter(is_removed).cloned().collect()
}

fn order_by_completion(result: &mut Rebuilt) {
    let ends = result.duties.values().filter_map(|duty| {
        let end = duty.state.end.as_ref()?;
        Some((end.row.finished_ms, duty.id, &duty.key, duty.state.last_event))
    });
    let mut ends: Vec<_> = ends.collect();
    ends.sort();
    for (_, _, key, last) in ends {
        result.queue.recorded(key, last, true);
    }
}

impl Rebuild<'_> {
    fn warn(&mut self, text: String) {
        log::warn!("{text}");
        self.result.warnings.push(text);
    }

    fn row(&mut self, row: AttemptRow, folders: &mut BTreeMap<String, Found>) -> Result<(), RebuildError> {
        let stem = row.key.as_ref().map(stem);
        let found = stem.as_ref().and_then(|stem| folders.get(stem));
        let manifest = found.and_then(|found| found.manifest.as_ref().ok()?.clone());
        let has_manifest = manifest.is_some();
        let name = row.key.as_ref().map_or("an attempt".to_owned(), ToString::to_string);
        let spec = match (row.spec, manifest) {
            (Some(spec), _) => spec,
            (None, Some(spec)) => {
                self.warn(format!("the database row of {name} was damaged: rebuilt from its manifest"));
                db::put_spec(self.db, row.id, &spec)?;
                spec
            }
            (None, None) => {
                self.warn(format!("the database row of {name} was damaged and it has no manifest: the row is dropped"));
                return Ok(db::delete_attempt(self.db, row.id)?);
            }
        };
        if !has_manifest {
            self.warn(format!("the manifest of {} was missing or damaged: written again", spec.key));
            if let Err(error) = self.spool.write_manifest(&spec) {
                self.warn(format!("cannot write the manifest of {}: {error}", spec.key));
            }
        }
        if let Some(stem) = stem {
            folders.remove(&stem);
        }
        self.restore(row.id, spec, Origin::Row)
    }

    fn folder(&mut self, found: Found, is_new: bool, is_swept: bool) -> Result<(), RebuildError> {
        let is_lost = is_new || found.was_committed;
        match found.manifest {
            _ if is_swept => {}
            Ok(Some(spec)) if is_lost && db::tombstone(self.db, &spec.key)?.is_none() => {
                self.warn(format!("the database has lost {}: rebuilt from its manifest", spec.key));
                let id = db::insert_attempt(self.db, &spec)?;
                if let Err(error) = self.spool.mark_committed(&spec.key) {
                    self.warn(format!("in the folder of {}: {error}", spec.key));
                }
                return self.restore(id, spec, Origin::Manifest);
            }
            Err(error) if is_lost => {
                let aside = self.spool.set_aside(&found.stem);
                let place = aside.map_or_else(|error| error.to_string(), |path| path.display().to_string());
                self.warn(format!("a task is lost, its manifest is damaged ({error}); its folder: {place}"));
                return Ok(());
            }
            Ok(_) | Err(_) => {}
        }
        self.result.sweeps.push(found.stem);
        Ok(())
    }

    fn restore(&mut self, id: i64, spec: TaskSpec, origin: Origin) -> Result<(), RebuildError> {
        let mut duty = Duty::new(id, &spec);
        let saved = db::state(self.db, id)?;
        let copies = self.read(&spec, |spool| spool.read_events(&spec.key, Behind::Cut))?.unwrap_or_default();
        let (report, missing) = self.replay(&mut duty, saved.as_ref(), &copies)?;
        match saved {
            Some(saved) => {
                duty.state.marks = saved.marks;
                duty.state.acked_event = saved.acked_event.min(duty.state.last_event);
            }
            None if origin == Origin::Row => {
                self.warn(format!("the state of {} was damaged: rebuilt from its events", spec.key));
            }
            None => {}
        }
        let mut notes = Vec::new();
        if origin == Origin::Manifest {
            notes
                .push("the node's database was damaged: this record was rebuilt from what else was on disk".to_owned());
        }
        let streams = self.streams(id, &spec, &mut notes)?;
        let mut uncopied = missing;
        for note in notes {
            if let Some(event) = duty.record(super::now_ms(), EventKind::Note(note)) {
                db::put_event(self.db, id, &event)?;
                uncopied.push(event);
            }
        }
        db::put_state(self.db, id, &duty.state)?;
        if !uncopied.is_empty()
            && let Err(error) = self.spool.append_events(&spec.key, uncopied.iter())
        {
            log::warn!("in the folder of {}: {error}", spec.key);
        }
        let entry = Entry::new(id, duty.state.last_event, duty.state.acked_event, streams).with_priority(spec.priority);
        self.result.queue.insert(spec.key.clone(), entry);
        let mut logs = self.result.queue.stream_ends(&spec.key);
        logs.retain(|end| end.stream < FIRST_OUTPUT);
        self.result.attempts.push(RecoveredAttempt {
            phase: duty.state.phase,
            marks: duty.state.marks.clone(),
            final_report: report,
            logs,
            spec,
        });
        self.result.duties.insert(duty.key.clone(), duty);
        Ok(())
    }

    /// Replays the events, each from its row, else from its copy, else from what stands in for it. Gives the final
    /// report, and the events that have no copy.
    fn replay(
        &mut self,
        duty: &mut Duty,
        saved: Option<&duty::State>,
        copies: &[Event],
    ) -> rusqlite::Result<(Option<FinalReport>, Vec<Event>)> {
        // The largest number in the table counts only with a sound row, as a damaged one may be anything.
        let top = db::last_event(self.db, duty.id)?;
        let top = db::event(self.db, duty.id, top)?.map_or(0, |event| event.number);
        let copied = copies.last().map_or(0, |event| event.number);
        let last = top.max(copied).max(saved.map_or(0, |state| state.last_event));
        let mut report = None;
        let mut mended = 0u64;
        let mut uncopied = Vec::new();
        let mut copies = copies.iter();
        for number in 1..=last {
            let copy = copies.next();
            let event = match db::event(self.db, duty.id, number)? {
                Some(event) => event,
                None => {
                    mended += 1;
                    let end = saved.and_then(|state| state.end.as_ref());
                    let event = copy.cloned().unwrap_or_else(|| duty::substitute(number, end));
                    db::put_event(self.db, duty.id, &event)?;
                    event
                }
            };
            duty.replay(&event);
            if let EventKind::Final(is) = &event.kind {
                report.get_or_insert_with(|| is.as_ref().clone());
            }
            if copy.is_none() {
                uncopied.push(event);
            }
        }
        if mended > 0 {
            self.warn(format!("{mended} events of {} were damaged in the database or lost: mended", duty.key));
        }
        Ok((report, uncopied))
    }

    /// What an attempt's folder has. The inner error says that it is lost.
    fn read<T>(
        &mut self,
        spec: &TaskSpec,
        read: impl Fn(&Spool) -> io::Result<T>,
    ) -> Result<io::Result<T>, RebuildError> {
        match files::read_patiently(|| read(self.spool)) {
            Err(error) if !files::is_lost(&error) => Err(RebuildError::Spool(self.spool.folder(&spec.key), error)),
            Err(error) => {
                self.warn(format!("the folder of {} can't be read: {error}", spec.key));
                Ok(Err(error))
            }
            Ok(found) => Ok(Ok(found)),
        }
    }

    /// The lengths of segments are the truth about streams; the rows say how far the master has them.
    fn streams(
        &mut self,
        id: i64,
        spec: &TaskSpec,
        notes: &mut Vec<String>,
    ) -> Result<BTreeMap<StreamKey, Stream>, RebuildError> {
        let mut found: BTreeMap<StreamKey, (StreamAck, Vec<(u64, u64)>)> = BTreeMap::new();
        for (name, ack) in db::streams(self.db, id)? {
            found.entry(name).or_default().0 = ack;
        }
        let segments = self.read(spec, |spool| spool.segments(&spec.key))?.unwrap_or_else(|error| {
            notes
                .push(format!("the folder of its streams can't be read ({error}): they end where the master has them"));
            Vec::new()
        });
        for (segment, len) in segments {
            let name = (segment.stream, segment.epoch);
            found.entry(name).or_default().1.push((segment.offset, len));
        }
        let mut streams = BTreeMap::new();
        for (name, (ack, mut segments)) in found {
            let cut = self.settle(spec, name, &mut segments)?;
            let (mut stream, spent, rest) = assemble(ack, &segments);
            if let Some(end) = cut.filter(|end| rest.is_empty() && !ack.is_done && *end > stream.written) {
                let (start, (number, epoch)) = (stream.written, name);
                let text =
                    format!("bytes {start} to {end} of stream {number}, epoch {epoch}, were lost with the power");
                self.warn(format!("{}: {text}", spec.key));
                notes.push(text);
            }
            if !rest.is_empty() {
                let (stream_number, epoch) = name;
                let end = stream.written;
                let text = format!("stream {stream_number}, epoch {epoch}, has a gap at byte {end}: it ends there");
                self.warn(format!("{}: {text}", spec.key));
                notes.push(text);
            }
            for offset in stream.drain_spent().into_iter().chain(spent).chain(rest) {
                let segment = Segment { stream: name.0, epoch: name.1, offset };
                self.result.spent.push(self.spool.segment(&spec.key, segment));
            }
            streams.insert(name, stream);
        }
        Ok(streams)
    }

    /// Cuts from the last segment what was not synced before a power loss; where it ended, if there was such.
    fn settle(
        &mut self,
        spec: &TaskSpec,
        (stream, epoch): StreamKey,
        segments: &mut [(u64, u64)],
    ) -> Result<Option<u64>, RebuildError> {
        let Some((offset, len)) = segments.last_mut() else { return Ok(None) };
        let segment = Segment { stream, epoch, offset: *offset };
        let Ok(Some(sound)) = self.read(spec, |spool| spool.sound_len(&spec.key, segment, *len))? else {
            return Ok(None);
        };
        self.result.settled.push((self.spool.segment(&spec.key, segment), sound));
        let end = offset.saturating_add(*len);
        let is_cut = sound < *len;
        *len = sound;
        Ok(is_cut.then_some(end))
    }
}

/// A stream from its segments (offset and length, ascending), the segments that the master has, and those behind a gap.
fn assemble(mut ack: StreamAck, segments: &[(u64, u64)]) -> (Stream, Vec<u64>, Vec<u64>) {
    // A power loss may bring back some of the segments that were deleted: they must not look like a gap.
    let is_spent = |(offset, len): &(u64, u64)| ack.is_done || (ack.acked > 0 && offset + len <= ack.acked);
    let (spent, segments): (Vec<_>, Vec<_>) = segments.iter().copied().partition(is_spent);
    // What is missing before the first segment was deleted because the master had it.
    let first = segments.first().map_or(0, |(offset, _)| *offset);
    ack.acked = ack.acked.max(first);
    let mut starts = VecDeque::new();
    let mut end = first;
    let mut rest = Vec::new();
    for (offset, len) in segments {
        if offset == end && rest.is_empty() {
            starts.push_back(offset);
            end = offset.saturating_add(len);
        } else {
            rest.push(offset);
        }
    }
    // The master may have bytes that a power loss took from this disk.
    let written = if ack.is_done { ack.acked } else { end.max(ack.acked) };
    let spent = spent.into_iter().map(|(offset, _)| offset).collect();
    (Stream::found(starts, written, ack), spent, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acked(acked: u64) -> StreamAck {
        StreamAck { acked, is_done: false }
    }

    #[test]
    fn lengths_of_segments_are_the_truth() {
        let (stream, _, rest) = assemble(acked(3), &[(0, 10), (10, 5)]);
        assert_eq!((stream.written, stream.segments.len(), rest.len()), (15, 2, 0));
        assert_eq!(stream.segment_at(12), Some((10, 15)));

        let (stream, _, rest) = assemble(acked(0), &[(0, 10), (12, 5), (17, 1)]);
        assert_eq!((stream.written, rest), (10, vec![12, 17]));

        // Deleted before, and the row lost.
        let (stream, _, _) = assemble(acked(0), &[(10, 5)]);
        assert_eq!(stream.written, 15);
        assert_eq!(stream.segment_at(10), Some((10, 15)));

        // The tail was lost here, but not at the master.
        let (stream, spent, _) = assemble(acked(9), &[(0, 7)]);
        assert_eq!((stream.written, spent), (9, vec![0]));
    }

    #[test]
    fn deleted_segments_that_come_back_are_no_gap() {
        let (stream, spent, rest) = assemble(acked(22), &[(0, 10), (20, 10), (30, 1)]);
        assert_eq!((stream.written, spent, rest), (31, vec![0], vec![]));
        let done = StreamAck { acked: 30, is_done: true };
        let (stream, spent, rest) = assemble(done, &[(0, 10), (20, 10)]);
        assert_eq!((stream.written, spent, rest), (30, vec![0, 20], vec![]));
    }

    #[test]
    fn an_empty_stream_keeps_its_witness() {
        let (mut stream, spent, _) = assemble(acked(0), &[(0, 0)]);
        assert_eq!((spent.len(), stream.drain_spent().len(), stream.segments.len()), (0, 0, 1));
    }
}
