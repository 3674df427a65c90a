//! SubmitTaskResult: the record of an attempt, piece by piece, each answered when it is durable.
//!
//! Each answered chunk is synced for itself: chunks are sized to about 250 ms by the node, so that a sync a chunk
//! costs little, and what the answer promises is then always true.

use std::time::Duration;

use super::attempt::Attempt;
use super::book::Book;
use super::convert;
use super::fail::Fail;
use super::folder::StreamId;
use super::record::{self, RecordLine};
use crate::node::id::{AttemptKey, Id};
use crate::node::record::{Event, EventKind};
use crate::rpc::schema::task_result_request::Piece;
use crate::rpc::schema::task_result_response::Answer;
use crate::rpc::schema::{Chunk, TaskResultRequest};

/// Bytes of a record: beyond them only the final report is kept with its content, since a hole in the numbers would
/// hold up everything behind it.
pub const MAX_RECORD_BYTES: u64 = 64 << 20;

impl Book {
    /// Takes a piece from a node.
    ///
    /// # Errors
    /// Names what is missing, or the disk refuses and the node tries again.
    pub fn piece(&mut self, request: TaskResultRequest, node: &Id, now: Duration) -> Result<Answer, Fail> {
        let key = convert::key(request.key.as_ref())?;
        let piece = request.piece.ok_or_else(|| Fail::missing("piece"))?;
        let Some(attempt) = self.attempts.get(&key) else {
            return Ok(Answer::Refused(format!("this master has no attempt {key}")));
        };
        if attempt.node().is_some_and(|known| known != node) {
            return Ok(Answer::Refused(format!("attempt {key} is placed on another node")));
        }
        // Checked before the attempt is taken as placed: a wrong piece changes nothing.
        let piece = match piece {
            Piece::Event(event) => Checked::Event(convert::event(event)?),
            Piece::Chunk(chunk) if chunk.stream == 0 => return Err(Fail::missing("chunk.stream")),
            Piece::Chunk(chunk) => Checked::Chunk(chunk),
        };
        self.place(&key, node)?;
        match piece {
            Checked::Event(event) => self.event(&key, event, now),
            Checked::Chunk(chunk) => self.chunk(&key, &chunk),
        }
    }

    fn event(&mut self, key: &AttemptKey, event: Event, now: Duration) -> Result<Answer, Fail> {
        let arrived_ms = self.unix_ms(now);
        let Some(attempt) = self.attempts.get(key) else {
            return Ok(Answer::EventDurable(0));
        };
        // A double, or one behind a hole: the answer says where to go on.
        if attempt.last_event.checked_add(1) != Some(event.number) {
            return Ok(Answer::EventDurable(attempt.last_event));
        }
        let mut line = RecordLine { arrived_ms, event };
        let is_final = matches!(line.event.kind, EventKind::Final(_));
        let is_second = is_final && attempt.final_report.is_some();
        if is_second || (!is_final && attempt.record_bytes > MAX_RECORD_BYTES) {
            let text = if is_second { "a second final report" } else { "an event; the record is full" };
            line.event.kind = EventKind::Note(format!("not kept: {text}"));
        }
        let bytes = record::encode(&line);
        self.folder.append_line(key, attempt.record_bytes, &bytes)?;
        let number = line.event.number;
        self.change(key, |attempt| {
            attempt.record_bytes = attempt.record_bytes.saturating_add(bytes.len() as u64);
            attempt.apply(&line);
        });
        Ok(Answer::EventDurable(number))
    }

    fn chunk(&mut self, key: &AttemptKey, chunk: &Chunk) -> Result<Answer, Fail> {
        let id: StreamId = (chunk.stream, chunk.epoch);
        let Some(attempt) = self.attempts.get(key) else {
            return Ok(Answer::ChunkDurable(0));
        };
        if !Attempt::is_stream(chunk.stream) {
            return Ok(Answer::Refused(format!("the contract has no stream {}", chunk.stream)));
        }
        let stream = attempt.streams.get(&id).copied().unwrap_or_default();
        // What is lost for good is zeros here: so every other byte stays where the node says that it is.
        let gap = chunk.offset.saturating_sub(stream.bytes);
        if gap > 0 && !chunk.after_gap {
            // A hole: the answer says where to go on.
            return Ok(Answer::ChunkDurable(stream.bytes));
        }
        let known = usize::try_from(stream.bytes.saturating_sub(chunk.offset));
        let more = known.ok().and_then(|known| chunk.data.get(known..)).unwrap_or_default();
        // Nothing new; but the first piece of a stream makes it, also where the stream is empty.
        if more.is_empty() && gap == 0 && attempt.streams.contains_key(&id) {
            return Ok(Answer::ChunkDurable(stream.bytes));
        }
        let at = stream.bytes.saturating_add(gap);
        let over = attempt.over_limit(id, gap.saturating_add(more.len() as u64));
        if stream.is_refused || over.is_some() {
            let reason = over.unwrap_or_else(|| "the stream was ended by a limit".to_owned());
            return self.refuse_stream(key, id, stream.is_refused, reason);
        }
        self.folder.append_stream(key, id, at, more)?;
        let bytes = at.saturating_add(more.len() as u64);
        self.change(key, |attempt| attempt.streams.entry(id).or_default().bytes = bytes);
        Ok(Answer::ChunkDurable(bytes))
    }

    fn refuse_stream(
        &mut self,
        key: &AttemptKey,
        id: StreamId,
        was_refused: bool,
        reason: String,
    ) -> Result<Answer, Fail> {
        let is_counted = self.attempts.get(key).is_some_and(|attempt| attempt.streams.contains_key(&id));
        let has_room =
            self.attempts.get(key).is_some_and(|attempt| attempt.streams.len() < super::attempt::MAX_STREAMS);
        if !was_refused && (is_counted || has_room) {
            self.folder.refuse_stream(key, id)?;
            let note = format!("stream {} of start {}: {reason}", id.0, id.1);
            self.change(key, |attempt| {
                attempt.streams.entry(id).or_default().is_refused = true;
                attempt.note(note);
            });
        }
        Ok(Answer::Refused(reason))
    }
}

enum Checked {
    Event(Event),
    Chunk(Chunk),
}
