//! What is to be sent, what is on its way, and how far the master has it: bookkeeping only, without a file or a lock.
//!
//! ```text
//! of a stream:   0 ........ durable ........ acked ........ flight's end ........ written
//!                segments     the store       the master     on its way            on disk, not yet sent
//!                deleted      has noted it    said so        (one chunk at a time)
//! ```
//!
//! One chunk of a stream is under way at a time, and one event of an attempt: so an acknowledgement below a chunk's end
//! always means that the master has only a part of it. Several calls at a time come from several streams and attempts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::db::StreamAck;
use super::spool::Segment;
use super::stream::SEGMENT_BYTES;
use crate::node::id::AttemptKey;
use crate::node::record::{FIRST_OUTPUT, StreamEnd};

/// Of an attempt whose pieces the master refuses one by one; the last says that more are not noted.
const MAX_REFUSAL_NOTES: u32 = 16;

/// A stream's name: number and epoch.
pub(super) type StreamKey = (u32, u64);

/// Everything that waits for the master.
#[derive(Default)]
pub(super) struct Queue {
    attempts: BTreeMap<AttemptKey, Entry>,
    /// Counts selections: who was served longest ago comes next.
    clock: u64,
    /// Counts final reports, so that they leave in the order of completion.
    finished: u64,
    /// Attempts with acknowledgements that the store has not noted.
    dirty: BTreeSet<AttemptKey>,
    /// Notes that the store is to add to a record.
    notes: Vec<(AttemptKey, String)>,
}

/// An attempt's part of the queue.
#[derive(Default)]
pub(super) struct Entry {
    id: i64,
    last_event: u64,
    acked_event: u64,
    streams: BTreeMap<StreamKey, Stream>,
    is_event_in_flight: bool,
    /// Order of completion, from 1; 0 while there is no final report.
    finished: u64,
    served: u64,
    refusals: u32,
    /// Of the task: logs of the least important go first.
    priority: u8,
}

/// A stream's part of the queue.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Offsets of the segments on disk, ascending.
    pub(super) segments: VecDeque<u64>,
    pub(super) written: u64,
    pub(super) is_closed: bool,
    pub(super) has_writer: bool,
    /// What the master said.
    ack: StreamAck,
    /// What of that is noted.
    durable: StreamAck,
    flight: Option<Flight>,
    /// The largest end that was ever on its way: the master can't have more.
    offered: u64,
    /// The bytes from here to `ack` are not at the master, and gone here.
    gap: Option<Gap>,
    /// Up to here the record says already what is missing.
    told: u64,
    /// Of an earlier start, and the master has said nothing yet: what is noted as acknowledged may have been dropped then,
    /// so that only the master knows where a gap begins.
    is_unheard: bool,
}

#[derive(Clone, Copy, Debug)]
struct Gap {
    from: u64,
    why: &'static str,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    end: u64,
    is_last: bool,
}

/// What to send next; its bytes are still on disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pick {
    Event { key: AttemptKey, id: i64, number: u64 },
    Chunk { key: AttemptKey, segment: Segment, offset: u64, len: u64, is_last: bool, is_after_gap: bool },
}

/// Acknowledgements that the store is to note.
#[derive(Debug)]
pub(super) struct Acks {
    pub(super) key: AttemptKey,
    pub(super) event: u64,
    pub(super) streams: Vec<(StreamKey, StreamAck)>,
    /// All streams are closed and the master has each.
    pub(super) are_streams_done: bool,
}

/// How soon the store should note acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// With the next commit, or in a while.
    Soon,
    /// At once: an attempt may be over, or much disk can be freed.
    Now,
}

impl Stream {
    /// A stream of an earlier start, which nobody writes any more.
    pub(super) fn found(segments: VecDeque<u64>, written: u64, ack: StreamAck) -> Self {
        Self {
            segments,
            written,
            is_closed: true,
            ack,
            durable: ack,
            offered: ack.acked,
            is_unheard: true,
            ..Self::default()
        }
    }

    /// Whether there are bytes to send, or the end of the stream. An end without bytes waits until the master has all
    /// bytes before it, so that its acknowledgement can't be taken for theirs.
    pub(super) fn has_work(&self) -> bool {
        self.flight.is_none() && (self.ack.acked < self.written || (self.is_closed && !self.ack.is_done))
    }

    fn is_done(&self) -> bool {
        self.is_closed && self.ack.is_done
    }

    fn waiting(&self) -> u64 {
        self.written.saturating_sub(self.ack.acked)
    }

    /// Where the oldest segment ends that the master lacks and that nobody writes or sends.
    fn droppable(&self) -> Option<u64> {
        let (start, end) = self.segment_at(self.ack.acked)?;
        let is_written = !self.is_closed && self.segments.back() == Some(&start);
        (self.flight.is_none() && !is_written && end > self.ack.acked).then_some(end)
    }

    /// The bytes up to `end` are gone.
    fn lose(&mut self, end: u64, why: &'static str) {
        if !self.is_unheard {
            self.gap.get_or_insert(Gap { from: self.ack.acked, why });
        }
        self.ack.acked = self.ack.acked.max(end);
        self.offered = self.offered.max(end);
    }

    /// The segment that holds `offset`, and where its bytes end.
    pub(super) fn segment_at(&self, offset: u64) -> Option<(u64, u64)> {
        let index = self.segments.partition_point(|start| *start <= offset).checked_sub(1)?;
        let start = *self.segments.get(index)?;
        let end = self.segments.get(index + 1).copied().unwrap_or(self.written);
        Some((start, end))
    }

    fn advance(&mut self, to: u64) -> bool {
        let to = to.min(self.offered);
        let flight = self.flight.take();
        let moved = to > self.ack.acked;
        self.ack.acked = self.ack.acked.max(to);
        let ends = flight.is_some_and(|flight| flight.is_last) && self.is_closed && self.ack.acked == self.written;
        let is_news = moved || (ends && to == self.written && !self.ack.is_done);
        self.ack.is_done |= is_news && ends;
        is_news
    }

    /// Segments of which nothing is needed any more, now that it is noted.
    pub(super) fn drain_spent(&mut self) -> Vec<u64> {
        let mut spent = Vec::new();
        while let Some(start) = self.segments.front().copied() {
            let end = self.segments.get(1).copied();
            let is_spent = match end {
                Some(end) => end <= self.durable.acked,
                // The last one is the witness of the stream until its end has arrived.
                None => self.is_closed && self.durable.is_done,
            };
            if !is_spent {
                break;
            }
            self.segments.pop_front();
            spent.push(start);
        }
        spent
    }
}

impl Entry {
    pub(super) fn new(id: i64, last_event: u64, acked_event: u64, streams: BTreeMap<StreamKey, Stream>) -> Self {
        Self { id, last_event, acked_event, streams, ..Self::default() }
    }

    pub(super) fn with_priority(self, priority: u8) -> Self {
        Self { priority, ..self }
    }

    /// Class, order within it, and when it was served last: the smallest goes first.
    fn rank(&self) -> Option<(u8, u64, u64)> {
        if !self.is_event_in_flight && self.acked_event < self.last_event {
            return Some((0, self.finished, self.served));
        }
        let mut working = self.streams.iter().filter(|(_, stream)| stream.has_work());
        // Logs have the smaller numbers, so the first one decides.
        let ((number, _), _) = working.next()?;
        Some((if *number < FIRST_OUTPUT { 1 } else { 2 }, 0, self.served))
    }

    fn are_streams_done(&self) -> bool {
        self.streams.values().all(Stream::is_done)
    }

    fn is_over(&self) -> bool {
        self.finished != 0 && self.acked_event >= self.last_event && self.are_streams_done()
    }

    /// Bytes of logs that the master does not have.
    fn waiting_logs(&self) -> u64 {
        let logs = self.streams.range(..(FIRST_OUTPUT, 0));
        logs.fold(0, |sum, (_, stream)| sum.saturating_add(stream.waiting()))
    }

    /// Drops a segment of the log of which most waits; how many bytes that were.
    fn drop_log(&mut self) -> Option<u64> {
        let logs = self.streams.range_mut(..(FIRST_OUTPUT, 0)).filter(|(_, stream)| stream.droppable().is_some());
        let (_, stream) = logs.max_by_key(|(_, stream)| stream.waiting())?;
        let (from, end) = (stream.ack.acked, stream.droppable()?);
        stream.lose(end, "were dropped, since too many logs waited for the master");
        Some(end - from)
    }

    /// Bytes of logs so far, sent or not.
    fn log_bytes(&self) -> u64 {
        let logs = self.streams.range(..(FIRST_OUTPUT, 0));
        logs.fold(0, |sum, (_, stream)| sum.saturating_add(stream.written))
    }
}

impl Queue {
    /// A new attempt.
    pub(super) fn insert(&mut self, key: AttemptKey, entry: Entry) {
        if entry.acked_event > 0 || !entry.streams.is_empty() {
            // One that was there before may be over already.
            self.dirty.insert(key.clone());
        }
        self.attempts.insert(key, entry);
    }

    /// The attempt has no record any more.
    pub(super) fn remove(&mut self, key: &AttemptKey) {
        self.attempts.remove(key);
        self.dirty.remove(key);
    }

    /// An event is on disk.
    pub(super) fn recorded(&mut self, key: &AttemptKey, number: u64, is_final: bool) {
        let Some(entry) = self.attempts.get_mut(key) else { return };
        entry.last_event = entry.last_event.max(number);
        if is_final {
            self.finished += 1;
            entry.finished = self.finished;
        }
    }

    pub(super) fn has_ended(&self, key: &AttemptKey) -> bool {
        self.attempts.get(key).is_some_and(|entry| entry.finished != 0)
    }

    pub(super) fn log_bytes(&self, key: &AttemptKey) -> u64 {
        self.attempts.get(key).map_or(0, Entry::log_bytes)
    }

    pub(super) fn stream(&mut self, key: &AttemptKey, stream: StreamKey) -> Option<&mut Stream> {
        self.attempts.get_mut(key)?.streams.get_mut(&stream)
    }

    /// The stream of this name, made if it is absent.
    pub(super) fn stream_or_new(&mut self, key: &AttemptKey, stream: StreamKey) -> Option<&mut Stream> {
        Some(self.attempts.get_mut(key)?.streams.entry(stream).or_default())
    }

    /// What to send next, marked as being on its way.
    pub(super) fn select(&mut self, max_chunk: u64) -> Option<Pick> {
        let ranked = self.attempts.iter_mut().filter_map(|(key, entry)| Some((entry.rank()?, key, entry)));
        let (rank, key, entry) = ranked.min_by_key(|(rank, _, _)| *rank)?;
        self.clock += 1;
        entry.served = self.clock;
        if rank.0 == 0 {
            entry.is_event_in_flight = true;
            return Some(Pick::Event { key: key.clone(), id: entry.id, number: entry.acked_event + 1 });
        }
        let (name, stream) = entry.streams.iter_mut().find(|(_, stream)| stream.has_work())?;
        let offset = stream.ack.acked;
        let (start, end) = stream.segment_at(offset).unwrap_or((offset, offset));
        let len = end.saturating_sub(offset).min(max_chunk.max(1));
        let flight = Flight { end: offset + len, is_last: stream.is_closed && offset + len == stream.written };
        stream.flight = Some(flight);
        stream.offered = stream.offered.max(flight.end);
        Some(Pick::Chunk {
            key: key.clone(),
            segment: Segment { stream: name.0, epoch: name.1, offset: start },
            offset,
            len,
            is_last: flight.is_last,
            is_after_gap: stream.gap.is_some(),
        })
    }

    /// The master has all events up to `number`. Tells whether that is news.
    pub(super) fn acked_event(&mut self, key: &AttemptKey, number: u64) -> bool {
        let Some(entry) = self.attempts.get_mut(key) else { return false };
        // It can't have more than the one that is on its way.
        let most = entry.acked_event + u64::from(entry.is_event_in_flight);
        entry.is_event_in_flight = false;
        let moved = number.min(most) > entry.acked_event;
        if moved {
            entry.acked_event = most;
            self.dirty.insert(key.clone());
        }
        moved
    }

    /// The master has the stream's bytes up to `offset`. Tells whether that is news.
    pub(super) fn acked_stream(&mut self, key: &AttemptKey, name: StreamKey, offset: u64) -> bool {
        let Some(stream) = self.stream(key, name) else { return false };
        let before = stream.ack.acked;
        stream.is_unheard = false;
        if offset < before {
            // What it lacks is gone: it must be told so, or it would ask for it for ever.
            stream.flight = None;
            let is_news = stream.gap.is_none();
            stream.gap.get_or_insert(Gap { from: offset, why: "are gone at the node, and the master lacks them" });
            return is_news;
        }
        let moved = stream.advance(offset);
        if moved {
            let gap = stream.gap.take().filter(|_| before > stream.told);
            self.dirty.insert(key.clone());
            if let Some(Gap { from, why }) = gap {
                let (number, epoch) = name;
                self.note(key, format!("bytes {from} to {before} of stream {number}, epoch {epoch}, {why}"));
            }
        }
        moved
    }

    /// The piece that is on its way will never arrive, which the record says already.
    pub(super) fn gave_up(&mut self, key: &AttemptKey, name: StreamKey, end: u64) {
        let Some(stream) = self.stream(key, name) else { return };
        stream.told = stream.told.max(end);
        stream.advance(end);
        self.dirty.insert(key.clone());
    }

    /// Drops the oldest logs of the least important attempts until at most so many bytes of them wait. Tells whether
    /// there were any. What is being written or sent stays, so it may be a few segments more.
    pub(super) fn drop_logs(&mut self, budget: u64) -> bool {
        let mut waiting = self.attempts.values().fold(0u64, |sum, entry| sum.saturating_add(entry.waiting_logs()));
        let mut has_dropped = false;
        while waiting > budget {
            let mut by_rank: Vec<_> = self.attempts.iter_mut().collect();
            by_rank.sort_by_key(|(_, entry)| (entry.priority, u64::MAX - entry.waiting_logs()));
            let dropped = by_rank.into_iter().find_map(|(key, entry)| Some((key.clone(), entry.drop_log()?)));
            let Some((key, bytes)) = dropped else { break };
            waiting = waiting.saturating_sub(bytes);
            has_dropped = true;
            self.dirty.insert(key);
        }
        has_dropped
    }

    /// The event is to be offered again.
    pub(super) fn rewind_event(&mut self, key: &AttemptKey) {
        if let Some(entry) = self.attempts.get_mut(key) {
            entry.is_event_in_flight = false;
        }
    }

    /// The chunk is to be offered again.
    pub(super) fn rewind_stream(&mut self, key: &AttemptKey, name: StreamKey) {
        if let Some(stream) = self.stream(key, name) {
            stream.flight = None;
        }
    }

    /// Adds a note to a record, unless it has too many of the kind.
    pub(super) fn note(&mut self, key: &AttemptKey, text: String) {
        let Some(entry) = self.attempts.get_mut(key) else { return };
        entry.refusals += 1;
        let text = match entry.refusals {
            ..MAX_REFUSAL_NOTES => text,
            MAX_REFUSAL_NOTES => format!("{text}; more of this kind are not noted"),
            _ => return,
        };
        self.notes.push((key.clone(), text));
    }

    /// Notes that the store is to write.
    pub(super) fn take_notes(&mut self) -> Vec<(AttemptKey, String)> {
        std::mem::take(&mut self.notes)
    }

    /// How soon the acknowledgements of an attempt should be noted.
    pub(super) fn urgency(&self, key: &AttemptKey) -> Urgency {
        let Some(entry) = self.attempts.get(key) else { return Urgency::Soon };
        let much = |stream: &Stream| stream.ack.acked - stream.durable.acked >= SEGMENT_BYTES;
        if entry.is_over() || !self.notes.is_empty() || entry.streams.values().any(much) {
            Urgency::Now
        } else {
            Urgency::Soon
        }
    }

    /// Acknowledgements that the store has not noted. What it fails to note comes back by [`Self::put_back`].
    pub(super) fn take_acks(&mut self) -> Vec<Acks> {
        let dirty = std::mem::take(&mut self.dirty);
        let acks = dirty.into_iter().filter_map(|key| {
            let entry = self.attempts.get(&key)?;
            let news = entry.streams.iter().filter(|(_, stream)| stream.ack != stream.durable);
            Some(Acks {
                event: entry.acked_event,
                streams: news.map(|(name, stream)| (*name, stream.ack)).collect(),
                are_streams_done: entry.are_streams_done(),
                key,
            })
        });
        acks.collect()
    }

    /// See [`Self::take_acks`].
    pub(super) fn put_back(&mut self, acks: &[Acks]) {
        self.dirty.extend(acks.iter().map(|ack| ack.key.clone()));
    }

    /// The store has noted these. Gives the segments that can go.
    pub(super) fn noted(&mut self, acks: &[Acks]) -> Vec<(AttemptKey, Segment)> {
        let mut spent = Vec::new();
        for ack in acks {
            for (name, noted) in &ack.streams {
                let Some(stream) = self.stream(&ack.key, *name) else { continue };
                stream.durable = *noted;
                let segments =
                    stream.drain_spent().into_iter().map(|offset| Segment { stream: name.0, epoch: name.1, offset });
                spent.extend(segments.map(|segment| (ack.key.clone(), segment)));
            }
        }
        spent
    }

    /// Attempts with something that the master does not have, and bytes of it.
    pub(super) fn pending(&self) -> (usize, u64) {
        let mut attempts = 0;
        let mut bytes = 0u64;
        for entry in self.attempts.values() {
            let unsent = entry.streams.values().map(|stream| stream.written.saturating_sub(stream.ack.acked));
            let unsent = unsent.fold(0, u64::saturating_add);
            let is_open = entry.acked_event < entry.last_event || unsent > 0;
            let is_ending = entry.finished != 0 && !entry.is_over();
            attempts += usize::from(is_open || is_ending);
            bytes = bytes.saturating_add(unsent);
        }
        (attempts, bytes)
    }

    /// The length of each stream of an attempt.
    pub(super) fn stream_ends(&self, key: &AttemptKey) -> Vec<StreamEnd> {
        let streams = self.attempts.get(key).map(|entry| entry.streams.iter());
        let ends = streams.into_iter().flatten().map(|((stream, epoch), state)| StreamEnd {
            stream: *stream,
            epoch: *epoch,
            bytes: state.written,
        });
        ends.collect()
    }
}

#[cfg(test)]
mod tests;
