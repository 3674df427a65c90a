//! A child process that works until something ends it, what it was promised, and what its master was told: in two files
//! beside the state folder, so that they outlive it. [`check`] says whether the invariants hold:
//!
//! - I1: a confirmed attempt is here or over, and has at most one final report, the confirmed one.
//! - I3: what is over has arrived whole at the master.
//! - I4: the content of an event number, and of a place in a stream, never changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use hivemind_worker::node::id::AttemptKey;
use hivemind_worker::node::record::{
    Event, EventKind, FIRST_OUTPUT, FinalReport, Outcome, Phase, Piece, PieceContent, STDOUT,
};
use hivemind_worker::store::{Ack, StoreEvent, Write};

use super::{Open, event, key, note, open, phase, spec};

/// Of the child's environment: seed, how many attempts it takes, and its folder.
pub const CHILD: &str = "HM_STORE_CRASH_CHILD";

/// Numbers that look random: xorshift.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// The byte at a place of a stream, so that whoever reads it knows what it must be.
fn bytes_of(stream: u32, epoch: u64, offset: u64, len: usize) -> Vec<u8> {
    let at = |place: u64| (place.wrapping_mul(31) ^ (place >> 8) ^ u64::from(stream) ^ epoch.wrapping_mul(7)) as u8;
    (offset..).take(len).map(at).collect()
}

fn append(file: &mut File, line: &str) {
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Whole lines; a torn one at the end is cut off.
fn lines(path: &Path) -> Vec<String> {
    let text = match std::fs::read_to_string(path) {
        // A master that cannot read what it has must not go on as if it had nothing.
        Err(error) if error.kind() != ErrorKind::NotFound => {
            panic!("the harness can't read {}: {error}", path.display())
        }
        text => text.unwrap_or_default(),
    };
    let whole = text.rfind('\n').map_or(0, |at| at + 1);
    if whole < text.len() {
        OpenOptions::new().write(true).open(path).unwrap().set_len(whole as u64).unwrap();
    }
    text[..whole].lines().map(str::to_owned).collect()
}

fn parse_key(text: &str) -> AttemptKey {
    let (task, attempt) = text.split_once('#').unwrap();
    key(task, attempt.parse().unwrap())
}

/// The master, whose memory is a file.
pub struct FileMaster {
    file: File,
    events: BTreeMap<(AttemptKey, u64), String>,
    /// Length and whether the end is known.
    streams: BTreeMap<(AttemptKey, u32, u64), (u64, bool)>,
}

impl FileMaster {
    pub fn load(path: &Path) -> Self {
        let mut master = Self {
            file: OpenOptions::new().append(true).create(true).open(path).unwrap(),
            events: BTreeMap::new(),
            streams: BTreeMap::new(),
        };
        for line in lines(path) {
            let parts: Vec<&str> = line.splitn(4, ' ').collect();
            let key = parse_key(parts[1]);
            match parts[0] {
                "E" => drop(master.events.insert((key, parts[2].parse().unwrap()), parts[3].to_owned())),
                _ => {
                    let name: Vec<u64> = parts[2].split('-').map(|part| part.parse().unwrap()).collect();
                    let (len, is_ended) = parts[3].split_once(' ').unwrap();
                    let state = (len.parse().unwrap(), is_ended == "true");
                    master.streams.insert((key, u32::try_from(name[0]).unwrap(), name[1]), state);
                }
            }
        }
        master
    }

    fn receive(&mut self, piece: &Piece) -> Ack {
        let key = piece.key.clone();
        match &piece.content {
            PieceContent::Event(event) => {
                let text = serde_json::to_string(event).unwrap();
                let line = format!("E {key} {} {text}", event.number);
                match self.events.insert((key, event.number), text.clone()) {
                    Some(known) => assert_eq!(known, text, "I4: an event changed"),
                    None => append(&mut self.file, &line),
                }
                Ack::Event(event.number)
            }
            PieceContent::Chunk { stream, epoch, offset, bytes, is_last, .. } => {
                assert!(*bytes == bytes_of(*stream, *epoch, *offset, bytes.len()), "I4: bytes changed");
                let state = self.streams.entry((key.clone(), *stream, *epoch)).or_default();
                assert!(*offset <= state.0, "I3: a hole before {offset}, known are {}", state.0);
                state.0 = state.0.max(offset + bytes.len() as u64);
                state.1 |= *is_last;
                append(&mut self.file, &format!("B {key} {stream}-{epoch} {} {}", state.0, state.1));
                Ack::Stream { stream: *stream, epoch: *epoch, offset: state.0 }
            }
        }
    }

    fn finals(&self, key: &AttemptKey) -> Vec<FinalReport> {
        let of_key = self.events.range((key.clone(), 0)..=(key.clone(), u64::MAX));
        let finals = of_key.filter_map(|(_, text)| {
            let event: Event = serde_json::from_str(text).unwrap();
            match event.kind {
                EventKind::Final(report) => Some(*report),
                _ => None,
            }
        });
        finals.collect()
    }
}

/// What the child was promised.
#[derive(Default)]
pub struct Promises {
    pub taken: BTreeSet<AttemptKey>,
    pub finals: BTreeMap<AttemptKey, String>,
    pub delivered: BTreeSet<AttemptKey>,
}

impl Promises {
    pub fn load(path: &Path) -> Self {
        let mut promises = Self::default();
        for line in lines(path) {
            let parts: Vec<&str> = line.split(' ').collect();
            let key = parse_key(parts[1]);
            match parts[0] {
                "T" => drop(promises.taken.insert(key)),
                "F" => drop(promises.finals.insert(key, parts[2].to_owned())),
                _ => drop(promises.delivered.insert(key)),
            }
        }
        promises
    }
}

pub fn promises_path(folder: &Path) -> PathBuf {
    folder.join("promises")
}

pub fn master_path(folder: &Path) -> PathBuf {
    folder.join("master")
}

/// Works until it is killed, in a child process only.
pub fn child() {
    let Ok(value) = std::env::var(CHILD) else { return };
    let mut words = value.splitn(3, ' ');
    let (seed, attempts, folder) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let attempts: u64 = attempts.parse().unwrap();
    let folder = PathBuf::from(folder);
    let mut dice = Dice(seed.parse::<u64>().unwrap() * 0x9e37_79b9 + 1);
    let mut master = FileMaster::load(&master_path(&folder));
    let mut promises = OpenOptions::new().append(true).create(true).open(promises_path(&folder)).unwrap();
    let open = open(&folder.join("state"));
    let epoch = open.recovered.epoch;
    for attempt in &open.recovered.attempts {
        if attempt.final_report.is_none() && dice.roll(2) == 0 {
            finish(&open, &attempt.spec.key, epoch, &mut dice, &mut promises);
        }
    }
    for count in 0..attempts {
        let key = key(&format!("t{epoch}-{count}"), 1);
        let taking =
            vec![Write::Take { spec: Box::new(spec(&key)), inputs: vec![1; 5_000] }, phase(&key, Phase::Received)];
        commit(&open, taking, &mut promises);
        append(&mut promises, &format!("T {key}"));
        deliver(&open, &mut master, &mut dice);
        commit(&open, vec![phase(&key, Phase::Running), note(&key, "a note")], &mut promises);
        if dice.roll(5) > 0 {
            finish(&open, &key, epoch, &mut dice, &mut promises);
        }
        deliver(&open, &mut master, &mut dice);
    }
    // So that whoever traces it sees the end of each call.
    open.store.close();
}

fn finish(open: &Open, key: &AttemptKey, epoch: u64, dice: &mut Dice, promises: &mut File) {
    for stream in [STDOUT, FIRST_OUTPUT] {
        let mut writer = open.store.output_writer(key, stream).unwrap();
        let len = if dice.roll(10) == 0 { 5 << 20 } else { dice.roll(100_000) };
        let mut offset = 0;
        while offset < len {
            let part = (len - offset).min(30_000);
            // What a full disk drops is written again, as a place must have its own byte.
            offset += writer.append(&bytes_of(stream, epoch, offset, usize::try_from(part).unwrap())).unwrap();
        }
        writer.close();
    }
    let outcome = Outcome::ALL[usize::try_from(dice.roll(10)).unwrap()];
    let mut report = FinalReport::without_run(outcome, "");
    report.streams = open.store.stream_ends(key);
    commit(open, vec![event(key, EventKind::Final(Box::new(report)))], promises);
    append(promises, &format!("F {key} {outcome}"));
}

/// As [`Open::commit`], noting what is delivered meanwhile.
fn commit(open: &Open, writes: Vec<Write>, promises: &mut File) {
    open.store.commit(u64::MAX, writes);
    open.wait(|event| {
        if let StoreEvent::Delivered(key) = event {
            append(promises, &format!("D {key}"));
        }
        // With a fault of the disk there is nothing to go on with.
        assert!(!matches!(event, StoreEvent::Failed { .. }), "{event:?}");
        *event == StoreEvent::Durable(u64::MAX)
    });
}

fn deliver(open: &Open, master: &mut FileMaster, dice: &mut Dice) {
    let outbox = open.outbox();
    for _ in 0..dice.roll(40) {
        let size = usize::try_from(1 + dice.roll(200_000)).unwrap();
        let Some(piece) = outbox.next_piece(size) else { return };
        let ack = master.receive(&piece);
        match dice.roll(10) {
            0 => outbox.failed(&piece),
            _ => drop(outbox.acked(&piece.key, ack)),
        }
    }
}

pub fn check(folder: &Path, open: &Open) -> Promises {
    let promises = Promises::load(&promises_path(folder));
    let master = FileMaster::load(&master_path(folder));
    let held: BTreeMap<_, _> = open.recovered.attempts.iter().map(|attempt| (&attempt.spec.key, attempt)).collect();
    for key in &promises.taken {
        let over = open.store.is_over(key);
        assert!(
            held.contains_key(key) != over.is_some(),
            "I1: {key} is lost or here twice: over {over:?}, warnings {:?}",
            open.recovered.warnings
        );
        let finals = master.finals(key);
        assert!(finals.len() <= 1, "I1: {key} has two final reports");
        let outcomes = finals.iter().map(|report| report.outcome);
        let of_row = held.get(key).and_then(|attempt| attempt.final_report.as_ref()).map(|report| report.outcome);
        let known: BTreeSet<_> = outcomes.chain(over).chain(of_row).map(|outcome| outcome.to_string()).collect();
        let promised = promises.finals.get(key);
        assert!(known.len() <= 1 && promised.is_none_or(|promised| known.contains(promised)), "I1: {key} {known:?}");
        assert!(over.is_some() || !promises.delivered.contains(key), "I1: {key} came back");
        if over.is_some() {
            assert_eq!(finals.len(), 1, "I3: the final report of {key} is lost");
            for end in &finals[0].streams {
                let state = master.streams.get(&(key.clone(), end.stream, end.epoch));
                assert_eq!(state, Some(&(end.bytes, true)), "I3: {key} {end:?}");
            }
        }
    }
    promises
}

/// In the end all of it arrives.
pub fn deliver_all(base: &Path) -> Promises {
    let open = open(&base.join("state"));
    let mut master = FileMaster::load(&master_path(base));
    for attempt in &open.recovered.attempts {
        if attempt.final_report.is_none() {
            let key = &attempt.spec.key;
            let mut report = FinalReport::without_run(Outcome::NodeFault, "");
            report.streams = open.store.stream_ends(key);
            open.commit(vec![event(key, EventKind::Final(Box::new(report)))]);
        }
    }
    while let Some(piece) = open.outbox().next_piece(300_000) {
        let ack = master.receive(&piece);
        open.outbox().acked(&piece.key, ack);
    }
    open.store.close();
    let open = super::open(&base.join("state"));
    assert!(open.recovered.attempts.is_empty());
    let promises = check(base, &open);
    assert_eq!(std::fs::read_dir(base.join("state/spool")).unwrap().count(), 0);
    open.store.close();
    promises
}
