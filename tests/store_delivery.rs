//! From the store to a master, and back: order, rewinds, refusals, and what is deleted when.

#![allow(clippy::unwrap_used)]

mod store_util;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hivemind_worker::node::id::AttemptKey;
use hivemind_worker::node::record::{EventKind, FIRST_OUTPUT, Outcome, Phase, PieceContent, STDERR, STDOUT};
use hivemind_worker::node::spec::TaskSpec;
use hivemind_worker::store::{Ack, StoreConfig, StoreEvent, Write};
use store_util::*;

#[test]
fn delivers_a_whole_attempt_and_leaves_a_history_row() {
    let folder = Folder::new();
    let open = open(&folder.state());
    let key = key("sum", 1);
    open.take(&key);
    open.commit(vec![phase(&key, Phase::Queued), phase(&key, Phase::Running)]);
    let out = pattern(9 << 20);
    open.write_stream(&key, STDOUT, b"hello\n");
    open.write_stream(&key, STDERR, b"");
    open.write_stream(&key, FIRST_OUTPUT, &out);
    open.commit(vec![end(&key, Outcome::Succeeded)]);
    assert_eq!(open.outbox().pending(), (1, (9 << 20) + 6));
    assert_eq!(open.store.stream_ends(&key).len(), 3);

    let mut master = Master::default();
    let mut order = Vec::new();
    while let Some(piece) = open.outbox().next_piece(1 << 20) {
        order.push(match &piece.content {
            PieceContent::Event(_) => 0,
            PieceContent::Chunk { stream, .. } => *stream,
        });
        let ack = master.receive(&piece, usize::MAX);
        assert!(open.outbox().acked(&piece.key, ack));
    }
    assert!(order.is_sorted(), "events before logs before outputs: {order:?}");
    open.wait(|event| *event == StoreEvent::Delivered(key.clone()));
    assert_eq!(master.finals(&key), [Outcome::Succeeded]);
    assert_eq!(master.streams[&(key.clone(), FIRST_OUTPUT, 1)], out);
    assert_eq!(master.ended.len(), 3);
    assert_eq!(master.ended[&(key.clone(), STDERR, 1)], 0);

    assert_eq!(open.outbox().pending(), (0, 0));
    assert_eq!(std::fs::read_dir(folder.state().join("spool")).unwrap().count(), 0);
    assert_eq!(open.store.is_over(&key), Some(Outcome::Succeeded));
    assert_eq!(open.store.tombstone(&key).unwrap().1, [7; 32]);
    let history = open.store.history(10, None);
    assert_eq!((history.len(), history[0].key.clone()), (1, key.clone()));
    assert!(open.store.history(10, Some(&key)).is_empty());
    open.store.close();

    let again = store_util::open(&folder.state());
    assert!(again.recovered.attempts.is_empty());
    assert_eq!(again.recovered.history, history);
    assert_eq!(again.recovered.warnings, Vec::<String>::new());
    again.store.close();
}

#[test]
fn bytes_arrive_equal_through_failures_and_half_chunks() {
    let folder = Folder::new();
    let open = open(&folder.state());
    let keys: Vec<_> = (1..=3).map(|attempt| key("sum", attempt)).collect();
    let out = pattern(5 << 20);
    for key in &keys {
        open.take(key);
        open.write_stream(key, STDOUT, &out);
        open.write_stream(key, FIRST_OUTPUT, &out[..100_000]);
        open.commit(vec![note(key, "one"), note(key, "two"), end(key, Outcome::Failed)]);
    }
    let mut master = Master::default();
    let mut step = 0usize;
    let outbox = open.outbox();
    while let Some(piece) = outbox.next_piece(200_000) {
        step += 1;
        match step % 7 {
            1 => outbox.failed(&piece),
            // It arrived, but the answer is lost with the connection.
            2 => {
                master.receive(&piece, usize::MAX);
                outbox.failed(&piece);
            }
            3 => {
                let ack = master.receive(&piece, piece_len(&piece) / 2);
                outbox.acked(&piece.key, ack);
            }
            _ => {
                let ack = master.receive(&piece, usize::MAX);
                outbox.acked(&piece.key, ack);
            }
        }
        assert!(step < 10_000);
    }
    for _ in &keys {
        open.wait(|event| matches!(event, StoreEvent::Delivered(_)));
    }
    for key in &keys {
        assert_eq!(master.streams[&(key.clone(), STDOUT, 1)], out);
        assert_eq!(master.streams[&(key.clone(), FIRST_OUTPUT, 1)], out[..100_000]);
        assert_eq!(master.finals(key), [Outcome::Failed]);
    }
    open.store.close();
}

#[test]
fn finished_attempts_leave_in_the_order_of_completion() {
    let folder = Folder::new();
    let open = open(&folder.state());
    let keys = [key("c", 1), key("a", 1), key("b", 1)];
    for key in &keys {
        open.take(key);
    }
    for key in &keys {
        open.commit(vec![note(key, "x"), end(key, Outcome::Succeeded)]);
    }
    let mut master = Master::default();
    let mut order = Vec::new();
    while let Some(piece) = open.outbox().next_piece(1) {
        if matches!(&piece.content, PieceContent::Event(event) if matches!(event.kind, EventKind::Final(_))) {
            order.push(piece.key.clone());
        }
        let ack = master.receive(&piece, 1);
        open.outbox().acked(&piece.key, ack);
    }
    assert_eq!(order, keys);
    open.store.close();
}

#[test]
fn one_event_of_an_attempt_and_one_chunk_of_a_stream_are_under_way() {
    let folder = Folder::new();
    let open = open(&folder.state());
    let key = key("sum", 1);
    open.take(&key);
    open.commit(vec![note(&key, "one"), note(&key, "two")]);
    open.write_stream(&key, STDOUT, b"out");
    open.write_stream(&key, STDERR, b"err");
    let outbox = open.outbox();
    let pieces: Vec<_> = std::iter::from_fn(|| outbox.next_piece(2)).collect();
    assert_eq!(pieces.len(), 3);
    pieces.iter().for_each(|piece| outbox.failed(piece));
    let again: Vec<_> = std::iter::from_fn(|| outbox.next_piece(2)).collect();
    assert_eq!(again.len(), 3);
    // What the master can't have, it can't acknowledge.
    assert!(outbox.acked(&key, Ack::Event(99)));
    assert!(matches!(outbox.next_piece(1).unwrap().content, PieceContent::Event(event) if event.number == 2));
    open.store.close();
}

#[test]
fn a_refused_piece_becomes_a_note_and_the_rest_goes_on() {
    let folder = Folder::new();
    let open = open(&folder.state());
    let key = key("sum", 1);
    open.take(&key);
    open.write_stream(&key, STDOUT, &pattern(100));
    open.commit(vec![end(&key, Outcome::Succeeded)]);
    let outbox = open.outbox();
    let mut master = Master::default();
    let mut notes = Vec::new();
    let mut refused = 0;
    let deadline = std::time::Instant::now() + PATIENCE;
    while open.events.try_iter().all(|event| event != StoreEvent::Delivered(key.clone())) {
        assert!(std::time::Instant::now() < deadline);
        let Some(piece) = outbox.next_piece(60) else {
            std::thread::yield_now();
            continue;
        };
        match &piece.content {
            PieceContent::Chunk { offset: 0, .. } => {
                refused += 1;
                outbox.refused(&piece, "too large");
            }
            PieceContent::Event(event) if matches!(event.kind, EventKind::Note(_)) => {
                notes.push(event.clone());
                // A note that is refused in turn must not make another one.
                outbox.refused(&piece, "no notes, please");
            }
            PieceContent::Chunk { offset, bytes, is_last, .. } => {
                assert_eq!((*offset, bytes.len(), *is_last), (60, 40, true));
                let (stream, epoch) = (STDOUT, 1);
                outbox.acked(&key, Ack::Stream { stream, epoch, offset: 100 });
            }
            PieceContent::Event(_) => {
                let ack = master.receive(&piece, usize::MAX);
                outbox.acked(&piece.key, ack);
            }
        }
    }
    assert_eq!((refused, notes.len(), notes[0].number), (1, 1, 2));
    let EventKind::Note(text) = &notes[0].kind else { panic!() };
    assert!(text.contains("bytes 0 to 60") && text.contains("too large"), "{text}");
    assert_eq!(master.finals(&key), [Outcome::Succeeded]);
    open.store.close();
}

#[test]
fn nothing_is_deleted_before_the_acknowledgement_is_durable() {
    let folder = Folder::new();
    let open = open(&folder.state());
    let key = key("sum", 1);
    open.take(&key);
    let bytes = pattern((4 << 20) + 10);
    let mut writer = open.store.writer(&key, STDOUT).unwrap();
    writer.append(&bytes).unwrap();
    let spool = only_folder(&folder.state());
    assert_eq!(segments(&spool), ["1-1-0000000000000000.seg", "1-1-0000000000400000.seg"]);
    let outbox = open.outbox();
    let mut master = Master::default();
    let first = outbox.next_piece(1 << 20).unwrap();
    let ack = master.receive(&first, usize::MAX);
    outbox.acked(&key, ack);
    // A commit takes the acknowledgement with it: a part of a segment deletes nothing.
    open.commit(vec![note(&key, "x")]);
    assert_eq!(segments(&spool).len(), 2);
    master.drain(&outbox);
    open.commit(vec![note(&key, "y")]);
    // Deleting follows the answer; the next answer follows the deleting. The open segment stays.
    open.commit(vec![note(&key, "z")]);
    assert_eq!(segments(&spool), ["1-1-0000000000400000.seg"]);
    assert_eq!(open.store.read_stream(&key, STDOUT, 1, 4 << 20, 100).unwrap(), bytes[4 << 20..]);
    assert!(open.store.read_stream(&key, STDOUT, 1, 0, 100).is_err());
    assert!(open.store.read_stream(&key, STDOUT, 1, 5 << 20, 100).unwrap().is_empty());
    writer.close();
    master.drain(&outbox);
    assert_eq!(master.streams[&(key.clone(), STDOUT, 1)], bytes);
    // Without a final report the attempt stays.
    open.commit(vec![note(&key, "w")]);
    assert_eq!(open.outbox().stream_ends(&key)[0].bytes, bytes.len() as u64);
    open.store.close();
}

#[test]
fn drops_and_counts_logs_beyond_their_budget() {
    let folder = Folder::new();
    let config = StoreConfig { log_budget_bytes: 100, reserve_bytes: 1 << 20, ..StoreConfig::default() };
    let open = open_with(&folder.state(), config);
    let key = key("sum", 1);
    open.take(&key);
    let mut out = open.store.writer(&key, STDOUT).unwrap();
    let mut err = open.store.writer(&key, STDERR).unwrap();
    assert_eq!(out.append(&[1; 70]).unwrap(), 70);
    assert_eq!(err.append(&[2; 70]).unwrap(), 30);
    assert_eq!(out.append(&[3; 5]).unwrap(), 0);
    assert_eq!((out.dropped(), err.dropped()), (5, 40));
    let mut output = open.store.output_writer(&key, FIRST_OUTPUT).unwrap();
    assert_eq!(output.append(&[4; 500]).unwrap(), 500);
    assert_eq!((out.close().bytes, err.close().bytes, output.close().bytes), (70, 30, 500));
    open.store.close();
}

#[test]
fn what_is_dropped_before_and_after_a_restart_is_told_as_a_whole() {
    const MIB: usize = 1 << 20;
    let folder = Folder::new();
    let config =
        |mib: u64| StoreConfig { waiting_logs_bytes: mib << 20, reserve_bytes: 1 << 20, ..StoreConfig::default() };
    let write = |open: &Open, key: &AttemptKey, bytes: &[u8]| {
        open.take(key);
        let mut log = open.store.writer(key, STDOUT).unwrap();
        for part in bytes.chunks(MIB) {
            assert_eq!(log.append(part).unwrap(), MIB as u64);
        }
        log.close();
        open.commit(vec![end(key, Outcome::Succeeded)]);
    };
    let open = open_with(&folder.state(), config(16));
    let (first, second) = (key("first", 1), key("second", 1));
    let bytes = pattern(24 * MIB);
    write(&open, &first, &bytes);
    open.store.close();
    // The master has not been there, and the log of another needs room.
    let open = open_with(&folder.state(), config(12));
    write(&open, &second, &bytes[..5 * MIB]);
    let mut master = Master::default();
    let mut notes = Vec::new();
    for _ in 0..100 {
        master.drain(&open.outbox());
        notes = master
            .events
            .iter()
            .filter_map(|((key, _), event)| match &event.kind {
                EventKind::Note(text) if *key == first => Some(text.clone()),
                _ => None,
            })
            .collect();
        if !notes.is_empty() {
            break;
        }
        open.commit(Vec::new());
    }
    let cut = &master.streams[&(first.clone(), STDOUT, 1)];
    let kept = cut.iter().rev().zip(bytes.iter().rev()).take_while(|(cut, byte)| cut == byte).count();
    let missing = bytes.len() - kept;
    assert!(missing > 8 * MIB && cut[..missing].iter().all(|byte| *byte == 0), "{missing}");
    let words = format!(
        "bytes 0 to {} of stream 1, epoch 1, are gone at the node, and the master lacks them",
        missing.next_multiple_of(4 * MIB)
    );
    assert_eq!(notes, [words]);
    open.wait(|event| *event == StoreEvent::Delivered(first.clone()));
    open.store.close();
}

#[test]
fn of_too_many_logs_those_of_the_least_important_task_are_dropped_and_the_rest_arrives_where_it_belongs() {
    const MIB: usize = 1 << 20;
    let folder = Folder::new();
    let config = StoreConfig { waiting_logs_bytes: 16 << 20, reserve_bytes: 1 << 20, ..StoreConfig::default() };
    let open = open_with(&folder.state(), config.clone());
    let (low, high) = (key("low", 1), key("high", 1));
    for (key, priority) in [(&low, 20), (&high, 80)] {
        let spec = TaskSpec { priority, ..spec(key) };
        open.commit(vec![Write::Take { spec: Box::new(spec), inputs: Vec::new() }]);
    }
    let bytes = pattern(12 * MIB);
    let mut writers = [&low, &high].map(|key| open.store.writer(key, STDOUT).unwrap());
    // Side by side: both have 12 MiB in segments of 4, and the last one of each is written.
    for part in bytes.chunks(MIB) {
        for writer in &mut writers {
            assert_eq!(writer.append(part).unwrap(), MIB as u64);
        }
    }
    for writer in writers {
        writer.close();
    }
    open.write_stream(&low, FIRST_OUTPUT, &bytes);
    open.commit(vec![end(&low, Outcome::Succeeded), end(&high, Outcome::Succeeded)]);
    open.store.close();

    // The master is back only after a restart, and asks for what it lacks before it is told.
    let open = open_with(&folder.state(), config);
    let mut master = Master::default();
    master.drain(&open.outbox());
    let whole = |key: &AttemptKey, stream| &master.streams[&(key.clone(), stream, 1)];
    assert!(*whole(&high, STDOUT) == bytes && *whole(&low, FIRST_OUTPUT) == bytes);
    let cut = whole(&low, STDOUT);
    assert!(cut[..4 * MIB].iter().all(|byte| *byte == 0) && cut[4 * MIB..] == bytes[4 * MIB..]);
    assert_eq!(master.finals(&low), [Outcome::Succeeded]);
    open.wait(|event| *event == StoreEvent::Delivered(high.clone()));
    // The note on the gap comes behind all else.
    let text = loop {
        master.drain(&open.outbox());
        let notes = master.events.values().filter_map(|event| match &event.kind {
            EventKind::Note(text) => Some(text.clone()),
            _ => None,
        });
        if let Some(text) = notes.max() {
            break text;
        }
        open.commit(Vec::new());
    };
    assert!(text.starts_with("bytes 0 to 4194304 of stream 1, epoch 1, are gone at the node"), "{text}");
    open.wait(|event| *event == StoreEvent::Delivered(low.clone()));
    open.store.close();
}

#[test]
fn a_stream_has_one_writer_and_ends_before_the_final_report() {
    let folder = Folder::new();
    let open = open(&folder.state());
    let key = key("sum", 1);
    assert!(open.store.writer(&key, STDOUT).is_err());
    open.take(&key);
    let writer = open.store.writer(&key, STDOUT).unwrap();
    assert!(open.store.writer(&key, STDOUT).is_err());
    drop(writer);
    assert!(open.store.writer(&key, STDOUT).is_err());
    open.commit(vec![end(&key, Outcome::Succeeded)]);
    assert!(open.store.writer(&key, STDERR).is_err());
    open.store.close();
}

#[test]
fn wakes_the_sender_for_events_and_bytes() {
    let folder = Folder::new();
    let open = open(&folder.state());
    let key = key("sum", 1);
    open.take(&key);
    let wakes = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&wakes);
    open.outbox().set_waker(Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    open.commit(vec![note(&key, "x")]);
    assert_eq!(wakes.load(Ordering::Relaxed), 1);
    let mut writer = open.store.writer(&key, STDOUT).unwrap();
    writer.append(b"a").unwrap();
    writer.append(b"b").unwrap();
    assert_eq!(wakes.load(Ordering::Relaxed), 2, "who has work already needs no wake");
    writer.close();
    assert_eq!(wakes.load(Ordering::Relaxed), 3);
    open.store.close();
}

#[test]
fn forgotten_attempts_leave_no_trace() {
    let folder = Folder::new();
    let open = open(&folder.state());
    let key = key("sum", 1);
    open.take(&key);
    open.commit(vec![Write::Forget { key: key.clone() }]);
    open.commit(vec![]);
    assert_eq!(std::fs::read_dir(folder.state().join("spool")).unwrap().count(), 0);
    assert_eq!(open.store.is_over(&key), None);
    // It may come again.
    open.take(&key);
    open.store.close();
    let again = store_util::open(&folder.state());
    assert_eq!(again.recovered.attempts.len(), 1);
    again.store.close();
}
