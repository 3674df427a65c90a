//! One attempt as this master knows it. Pure: what must be on disk is written by [`super::book`] before it gets here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use serde::{Deserialize, Serialize};

use super::folder::{FoundAttempt, Meta, StreamId, Verdict};
use super::record::RecordLine;
use crate::node::id::{AttemptKey, Id};
use crate::node::net::NetworkPolicy;
use crate::node::offer::Offer;
use crate::node::record::{EventKind, FIRST_OUTPUT, FinalReport, Outcome, Phase, STDERR, STDOUT, StreamEnd};
use crate::node::resources::Resources;
use crate::node::spec::{MAX_BYTES, SpecDefaults, TaskSpec};
use crate::rpc::schema::Assignment;

/// Notes of an attempt that are kept in memory for its reader; all of them are in its record.
pub const MAX_NOTES: usize = 100;
/// Bytes of standard output and error together.
pub const MAX_LOG_BYTES: u64 = 1 << 30;
/// Streams of an attempt, each epoch for itself: twice the node's own limit of 10,000 files, for a node that had to
/// collect again.
pub const MAX_STREAMS: usize = 20_480;
/// Beside twice `max_output_bytes` (collected again in another epoch): files grow a little while they are read.
pub const OUTPUT_SLACK_BYTES: u64 = 64 << 20;

/// Where an attempt is.
///
/// ```text
/// Queued <--refused for now-- Offered --taken, held, or a piece came--> Placed
///    \________________________/  both ways also: the node is written down before the first offer
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Waits for a node; not before this time.
    Queued(Duration),
    /// In an answer to this node, which has not confirmed it.
    Offered {
        /// The node.
        node: Id,
        /// Number of the offer.
        offer: u64,
        /// Answers that it was in.
        sent: u32,
        /// When it may be in the next one.
        next: Duration,
    },
    /// On disk at this node.
    Placed(Id),
}

/// Somebody wants the attempt stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Why, for people.
    pub reason: String,
    /// A later attempt replaced this one.
    pub is_superseded: bool,
    /// The node has answered.
    pub is_answered: bool,
    /// When a held poll may be answered for it again.
    pub next: Duration,
}

/// A byte stream of one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// Bytes that are durable.
    pub bytes: u64,
    /// A limit ended it.
    pub is_refused: bool,
}

/// What an assignment asks of a node, as far as the queue must know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wants {
    /// What it reserves.
    pub needs: Resources,
    /// More is sooner.
    pub priority: u8,
    /// Of all collected files.
    pub max_output_bytes: u64,
}

impl Wants {
    /// Of the bytes of an assignment.
    pub fn of_bytes(assignment: &[u8]) -> Self {
        let decoded = Assignment::decode(assignment).unwrap_or_default();
        Self::of(&super::convert::offer(decoded))
    }

    /// Of an assignment that passes the check; another one takes a slot and is left to the node to judge.
    pub fn of(offer: &Offer) -> Self {
        // Whatever running time and network the desk has let pass.
        let network = NetworkPolicy::everything();
        let defaults =
            SpecDefaults { max_timeout: Duration::MAX, max_fetch_bytes: MAX_BYTES, network, ..SpecDefaults::default() };
        match TaskSpec::check(offer, &defaults) {
            Ok(spec) => Self { needs: spec.needs(), priority: spec.priority, max_output_bytes: spec.max_output_bytes },
            Err(_) => Self { needs: Resources { slots: 1, ..Resources::default() }, priority: 50, max_output_bytes: 0 },
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Task and attempt.
    pub key: AttemptKey,
    /// When it came and what it asks for.
    pub meta: Meta,
    /// Where it is.
    pub place: Place,
    /// Why a node put it off the last time.
    pub put_off: Option<String>,
    /// Whether it is to be stopped.
    pub stop: Option<Stop>,
    /// This master's own end of it. A node's final report counts more.
    pub verdict: Option<Verdict>,
    /// Number of the last event.
    pub last_event: u64,
    /// Bytes of the record.
    pub record_bytes: u64,
    /// Last phase that the node told.
    pub phase: Option<Phase>,
    /// The node's last word, without the tail.
    pub final_report: Option<Arc<FinalReport>>,
    /// When the last word came, milliseconds since 1970.
    pub finished_ms: u64,
    /// The last notes and alerts.
    pub notes: VecDeque<String>,
    /// Byte streams.
    pub streams: BTreeMap<StreamId, Stream>,
    /// Grows with each change, over all attempts and starts.
    pub version: u64,
}

impl Attempt {
    /// An attempt that nobody has seen.
    pub fn new(key: AttemptKey, meta: Meta) -> Self {
        Self {
            key,
            meta,
            put_off: None,
            place: Place::Queued(Duration::ZERO),
            stop: None,
            verdict: None,
            last_event: 0,
            record_bytes: 0,
            phase: None,
            final_report: None,
            finished_ms: 0,
            notes: VecDeque::new(),
            streams: BTreeMap::new(),
            version: 0,
        }
    }

    /// An attempt as it was found. `offer` numbers it where it was offered and not confirmed.
    pub fn from_found(found: FoundAttempt, offer: u64) -> Self {
        let mut attempt = Self::new(found.key, found.meta);
        attempt.record_bytes = found.record.sound_bytes;
        for line in &found.record.lines {
            attempt.apply(line);
        }
        for (id, bytes) in found.streams {
            attempt.streams.entry(id).or_default().bytes = bytes;
        }
        for id in found.refused {
            attempt.streams.entry(id).or_default().is_refused = true;
        }
        if found.record.broken > 0 {
            attempt.note(format!("{} events can't be read any more", found.record.broken));
        }
        if let Some(verdict) = found.verdict {
            attempt.decide(verdict);
        }
        attempt.stop = found.cancel.map(|reason| Stop::new(reason, false));
        attempt.place = match found.node {
            Some(node) if attempt.last_event > 0 || !attempt.streams.is_empty() => Place::Placed(node),
            Some(node) => Place::Offered { node, offer, sent: 0, next: Duration::ZERO },
            None => Place::Queued(Duration::ZERO),
        };
        attempt
    }

    /// Takes a line that is in the record now.
    pub fn apply(&mut self, line: &RecordLine) {
        self.last_event = line.event.number;
        match &line.event.kind {
            EventKind::Phase(phase, _) => self.phase = Some(*phase),
            EventKind::Note(text) => self.note(text.clone()),
            EventKind::Alert(text) => self.note(format!("alert: {text}")),
            EventKind::Final(_) if self.final_report.is_some() => {
                self.note("a second final report came and was not taken".to_owned());
            }
            EventKind::Final(report) => {
                self.final_report = Some(Arc::new(report.as_ref().clone()));
                self.finished_ms = line.arrived_ms;
            }
        }
    }

    /// Takes a verdict that is on disk now.
    pub fn decide(&mut self, verdict: Verdict) {
        if self.final_report.is_none() {
            self.finished_ms = verdict.decided_ms;
        }
        self.verdict = Some(verdict);
    }

    /// Adds a note for the reader.
    pub fn note(&mut self, text: String) {
        if self.notes.len() >= MAX_NOTES {
            self.notes.pop_front();
        }
        self.notes.push_back(text);
    }

    /// Whether the end is known.
    pub fn is_over(&self) -> bool {
        self.final_report.is_some() || self.verdict.is_some()
    }

    /// Whether it waits for a node.
    pub fn is_queued(&self) -> bool {
        !self.is_over() && matches!(self.place, Place::Queued(_))
    }

    /// Whether no node has it, nor its end: it waits here, or was ended here.
    pub fn is_at_master(&self) -> bool {
        self.final_report.is_none() && (self.verdict.is_some() || !matches!(self.place, Place::Placed(_)))
    }

    /// Whether nothing more is to come: the end is known and each stream that it names has arrived.
    pub fn is_complete(&self) -> bool {
        match &self.final_report {
            Some(report) => report.streams.iter().all(|end| self.has_arrived(end)),
            None => self.verdict.is_some(),
        }
    }

    /// Whether nothing more of a stream is to come.
    pub fn is_closed(&self, stream: u32) -> bool {
        match &self.final_report {
            Some(report) => report.streams.iter().filter(|end| end.stream == stream).all(|end| self.has_arrived(end)),
            None => self.verdict.is_some(),
        }
    }

    fn has_arrived(&self, end: &StreamEnd) -> bool {
        let stream = self.streams.get(&(end.stream, end.epoch)).copied().unwrap_or_default();
        stream.is_refused || stream.bytes >= end.bytes
    }

    /// What a result file is made of, once all of it is here: its stream's highest epoch that the report names, since a
    /// node that was stopped while it collected did so again from the beginning.
    pub fn output_parts(&self, path: &str) -> Option<Vec<(StreamId, u64)>> {
        let report = self.final_report.as_ref()?;
        let file = report.outputs.iter().find(|file| file.path == path)?;
        let ends = report.streams.iter().filter(|end| end.stream == file.stream);
        let Some(end) = ends.max_by_key(|end| end.epoch) else {
            return (file.size == 0).then(Vec::new);
        };
        let id = (end.stream, end.epoch);
        let stream = self.streams.get(&id).copied().unwrap_or_default();
        (end.bytes == file.size && stream.bytes >= end.bytes).then(|| vec![(id, end.bytes)])
    }

    /// How it ended.
    pub fn outcome(&self) -> Option<Outcome> {
        let told = self.final_report.as_ref().map(|report| report.outcome);
        told.or_else(|| self.verdict.as_ref().map(|verdict| verdict.outcome))
    }

    /// The last word: the node's, else one made of this master's verdict.
    pub fn last_word(&self) -> Option<FinalReport> {
        match (&self.final_report, &self.verdict) {
            (Some(report), _) => Some(report.as_ref().clone()),
            (None, Some(verdict)) => Some(FinalReport::without_run(verdict.outcome, verdict.reason.clone())),
            (None, None) => None,
        }
    }

    /// The node that it is at, or may be at.
    pub fn node(&self) -> Option<&Id> {
        match &self.place {
            Place::Queued(_) => None,
            Place::Offered { node, .. } | Place::Placed(node) => Some(node),
        }
    }

    /// Bytes of a stream, all epochs together.
    pub fn stream_bytes(&self, stream: u32) -> u64 {
        self.epochs(stream).map(|(_, stream)| stream.bytes).sum()
    }

    /// The parts of a stream in the order of their epochs.
    pub fn epochs(&self, stream: u32) -> impl Iterator<Item = (u64, Stream)> {
        let parts = self.streams.range((stream, 0)..=(stream, u64::MAX));
        parts.map(|((_, epoch), stream)| (*epoch, *stream))
    }

    /// Why a stream may not grow by so many bytes, when it may not.
    pub fn over_limit(&self, id: StreamId, more: u64) -> Option<String> {
        if !self.streams.contains_key(&id) && self.streams.len() >= MAX_STREAMS {
            return Some(format!("the attempt has {MAX_STREAMS} streams, which is the most that is kept"));
        }
        let is_log = |stream: u32| stream == STDOUT || stream == STDERR;
        let (limit, what) = if is_log(id.0) {
            (MAX_LOG_BYTES, "of output")
        } else {
            let limit = self.meta.wants.max_output_bytes.saturating_mul(2);
            (limit.saturating_add(OUTPUT_SLACK_BYTES), "of files")
        };
        let same_kind = self.streams.iter().filter(|((stream, _), _)| is_log(*stream) == is_log(id.0));
        let now: u64 = same_kind.map(|(_, stream)| stream.bytes).sum();
        (now.saturating_add(more) > limit)
            .then(|| format!("the attempt has {now} bytes {what}, at most {limit} are kept"))
    }

    /// Whether this is a stream that the contract has.
    pub fn is_stream(stream: u32) -> bool {
        matches!(stream, STDOUT | STDERR) || stream >= FIRST_OUTPUT
    }
}

impl Stop {
    /// A stop that no node has heard of.
    pub fn new(reason: String, is_superseded: bool) -> Self {
        Self { reason, is_superseded, is_answered: false, next: Duration::ZERO }
    }
}
