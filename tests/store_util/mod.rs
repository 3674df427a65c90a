//! Helpers of the store's tests: a folder, tasks, a store with its events, and a master that remembers what it was told.

#![allow(dead_code)]

pub mod crash;
pub mod disk;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use hivemind_worker::node::id::{AttemptKey, Id};
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{Event, EventKind, FinalReport, Outcome, Phase, Piece, PieceContent};
use hivemind_worker::node::spec::{SpecDefaults, TaskSpec};
use hivemind_worker::store::{Ack, Outbox, Recovered, Store, StoreConfig, StoreEvent, Write};

/// Long enough for a slow disk.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A folder that goes with the value.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hm-store-it-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// The state folder within.
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

/// A store and what it says.
pub struct Open {
    pub store: Store,
    pub recovered: Recovered,
    pub events: Receiver<StoreEvent>,
    ticket: AtomicU64,
}

pub fn open(dir: &Path) -> Open {
    open_with(dir, StoreConfig { reserve_bytes: 1 << 20, ..StoreConfig::default() })
}

pub fn open_with(dir: &Path, config: StoreConfig) -> Open {
    let (sender, events) = unbounded();
    let notify = Box::new(move |event| sender.send(event).unwrap_or_default());
    let (store, recovered) = Store::open(dir, config, notify).unwrap();
    Open { store, recovered, events, ticket: AtomicU64::new(1) }
}

impl Open {
    /// Commits and waits until it is durable. Other events are passed over.
    pub fn commit(&self, writes: Vec<Write>) {
        let ticket = self.ticket.fetch_add(1, Ordering::Relaxed);
        self.store.commit(ticket, writes);
        self.wait(|event| *event == StoreEvent::Durable(ticket));
    }

    pub fn wait(&self, mut is: impl FnMut(&StoreEvent) -> bool) -> StoreEvent {
        loop {
            let event = self.events.recv_timeout(PATIENCE).unwrap();
            if is(&event) {
                return event;
            }
        }
    }

    pub fn take(&self, key: &AttemptKey) {
        self.commit(vec![Write::Take { spec: Box::new(spec(key)), inputs: b"inputs".to_vec() }]);
    }

    pub fn outbox(&self) -> Outbox {
        self.store.outbox()
    }

    pub fn write_stream(&self, key: &AttemptKey, stream: u32, bytes: &[u8]) {
        let mut writer = self.store.output_writer(key, stream).unwrap();
        assert_eq!(writer.append(bytes).unwrap(), bytes.len() as u64);
        writer.close();
    }
}

pub fn key(task: &str, attempt: u32) -> AttemptKey {
    AttemptKey { task: Id::parse(task).unwrap(), attempt }
}

pub fn spec(key: &AttemptKey) -> TaskSpec {
    let offer = Offer {
        task: key.task.to_string(),
        attempt: i64::from(key.attempt),
        inputs: b"inputs".to_vec(),
        digest: [7; 32],
        ..Offer::default()
    };
    TaskSpec::check(&offer, &SpecDefaults::default()).unwrap()
}

pub fn event(key: &AttemptKey, kind: EventKind) -> Write {
    Write::Event { key: key.clone(), time_ms: 1, kind }
}

pub fn phase(key: &AttemptKey, phase: Phase) -> Write {
    event(key, EventKind::Phase(phase, String::new()))
}

pub fn note(key: &AttemptKey, text: &str) -> Write {
    event(key, EventKind::Note(text.to_owned()))
}

pub fn end(key: &AttemptKey, outcome: Outcome) -> Write {
    event(key, EventKind::Final(Box::new(FinalReport::without_run(outcome, "because"))))
}

/// Bytes that differ at each place.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 8)) as u8).collect()
}

/// What a master has been told. Checks invariant I4: a number or a place never changes its content. What is gone at the
/// node is zeros here; a hole that is not told is asked for.
#[derive(Default)]
pub struct Master {
    pub events: BTreeMap<(AttemptKey, u64), Event>,
    pub streams: BTreeMap<(AttemptKey, u32, u64), Vec<u8>>,
    pub ended: BTreeMap<(AttemptKey, u32, u64), usize>,
}

impl Master {
    /// Takes a piece, at most `most` bytes of a chunk, and says how far it is.
    pub fn receive(&mut self, piece: &Piece, most: usize) -> Ack {
        let key = piece.key.clone();
        match &piece.content {
            PieceContent::Event(event) => {
                let known = self.events.entry((key, event.number)).or_insert_with(|| event.clone());
                assert_eq!(known, event, "an event changed");
                Ack::Event(event.number)
            }
            PieceContent::Chunk { stream, epoch, offset, bytes, is_last, is_after_gap } => {
                let name = (key, *stream, *epoch);
                let known = self.streams.entry(name.clone()).or_default();
                let at = usize::try_from(*offset).unwrap();
                if at > known.len() && *is_after_gap {
                    known.resize(at, 0);
                }
                if at > known.len() {
                    return Ack::Stream { stream: *stream, epoch: *epoch, offset: known.len() as u64 };
                }
                let bytes = &bytes[..bytes.len().min(most.max(1))];
                let both = bytes.len().min(known.len() - at);
                assert_eq!(&known[at..at + both], &bytes[..both], "bytes changed");
                known.extend_from_slice(&bytes[both..]);
                if *is_last && at + piece_len(piece) == known.len() {
                    self.ended.insert(name, known.len());
                }
                Ack::Stream { stream: *stream, epoch: *epoch, offset: known.len() as u64 }
            }
        }
    }

    /// Takes all that there is.
    pub fn drain(&mut self, outbox: &Outbox) {
        while let Some(piece) = outbox.next_piece(64 << 10) {
            let ack = self.receive(&piece, usize::MAX);
            outbox.acked(&piece.key, ack);
        }
    }

    pub fn finals(&self, key: &AttemptKey) -> Vec<Outcome> {
        let of_key = self.events.range((key.clone(), 0)..=(key.clone(), u64::MAX));
        let finals = of_key.filter_map(|(_, event)| match &event.kind {
            EventKind::Final(report) => Some(report.outcome),
            _ => None,
        });
        finals.collect()
    }
}

pub fn piece_len(piece: &Piece) -> usize {
    match &piece.content {
        PieceContent::Event(_) => 0,
        PieceContent::Chunk { bytes, .. } => bytes.len(),
    }
}

/// The attempt's folder; there is one attempt.
pub fn only_folder(state: &Path) -> PathBuf {
    let folders: Vec<_> = std::fs::read_dir(state.join("spool")).unwrap().collect();
    assert_eq!(folders.len(), 1);
    folders.into_iter().next().unwrap().unwrap().path()
}

pub fn segments(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut segments: Vec<_> = names.filter(|name| name.ends_with(".seg")).collect();
    segments.sort();
    segments
}
