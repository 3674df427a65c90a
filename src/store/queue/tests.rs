//! What is sent next, what an answer moves, and what goes when there is too much.

use super::super::testing::key;
use super::*;

/// One attempt with a closed stream of `written` bytes in one segment.
fn queue(written: u64) -> Queue {
    let mut queue = Queue::default();
    queue.insert(key("sum", 1), Entry::new(1, 0, 0, BTreeMap::new()));
    let stream = queue.stream_or_new(&key("sum", 1), (1, 1)).unwrap();
    stream.segments.push_back(0);
    stream.written = written;
    stream.is_closed = true;
    queue
}

fn chunk(pick: Option<Pick>) -> Option<(u64, u64, bool)> {
    match pick? {
        Pick::Chunk { offset, len, is_last, .. } => Some((offset, len, is_last)),
        Pick::Event { .. } => None,
    }
}

#[test]
fn an_empty_end_waits_for_the_bytes_before_it() {
    let key = key("sum", 1);
    let mut queue = queue(10);
    queue.stream(&key, (1, 1)).unwrap().is_closed = false;
    assert_eq!(chunk(queue.select(100)), Some((0, 10, false)));
    queue.stream(&key, (1, 1)).unwrap().is_closed = true;
    assert_eq!(queue.select(100), None);
    assert!(queue.acked_stream(&key, (1, 1), 10));
    assert_eq!(chunk(queue.select(100)), Some((10, 0, true)));
    assert!(queue.acked_stream(&key, (1, 1), 10));
    assert_eq!(queue.select(100), None);
    assert!(queue.take_acks()[0].are_streams_done);
}

#[test]
fn an_acknowledgement_below_the_end_rewinds_and_one_beyond_it_is_cut() {
    let key = key("sum", 1);
    let mut queue = queue(10);
    assert_eq!(chunk(queue.select(6)), Some((0, 6, false)));
    assert!(queue.acked_stream(&key, (1, 1), 2));
    assert_eq!(chunk(queue.select(6)), Some((2, 6, false)));
    assert!(queue.acked_stream(&key, (1, 1), u64::MAX));
    assert_eq!(chunk(queue.select(6)), Some((8, 2, true)));
    // What was offered once may have arrived, though its call failed.
    queue.rewind_stream(&key, (1, 1));
    assert!(queue.acked_stream(&key, (1, 1), 10));
    assert_eq!(chunk(queue.select(6)), Some((10, 0, true)));
    assert_eq!(queue.pending(), (0, 0));
}

#[test]
fn what_the_master_lacks_and_is_gone_is_said_with_the_next_piece_and_noted_once() {
    let key = key("sum", 1);
    let is_after_gap = |pick| matches!(pick, Some(Pick::Chunk { is_after_gap: true, offset: 6, .. }));
    let mut queue = queue(10);
    assert_eq!(chunk(queue.select(6)), Some((0, 6, false)));
    assert!(queue.acked_stream(&key, (1, 1), 6));
    assert!(!is_after_gap(queue.select(1)));
    assert!(queue.acked_stream(&key, (1, 1), 2), "the master has lost four bytes");
    assert!(is_after_gap(queue.select(1)));
    assert!(!queue.acked_stream(&key, (1, 1), 2), "it does not understand: no progress");
    assert!(is_after_gap(queue.select(100)));
    assert!(queue.acked_stream(&key, (1, 1), 10));
    let notes = queue.take_notes();
    assert_eq!(notes.len(), 1);
    assert!(notes[0].1.starts_with("bytes 2 to 6 of stream 1, epoch 1, are gone at the node"), "{}", notes[0].1);

    // What the record says already is not said twice.
    let mut queue = self::queue(10);
    queue.select(6);
    queue.gave_up(&key, (1, 1), 6);
    queue.select(100);
    assert!(queue.acked_stream(&key, (1, 1), 0));
    assert!(is_after_gap(queue.select(100)));
    assert!(queue.acked_stream(&key, (1, 1), 10));
    assert!(queue.take_notes().is_empty());
}

/// A stream in segments of ten bytes; the last one is still written.
fn open_stream(queue: &mut Queue, key: &AttemptKey, name: StreamKey, segments: u64) {
    let stream = queue.stream_or_new(key, name).unwrap();
    stream.segments = (0..segments).map(|at| at * 10).collect();
    stream.written = segments * 10;
    stream.has_writer = true;
}

#[test]
fn logs_of_the_least_important_go_first_and_files_never() {
    let (low, high) = (key("low", 1), key("high", 1));
    let mut queue = Queue::default();
    queue.insert(low.clone(), Entry::new(1, 0, 0, BTreeMap::new()).with_priority(10));
    queue.insert(high.clone(), Entry::new(2, 0, 0, BTreeMap::new()).with_priority(90));
    open_stream(&mut queue, &low, (1, 1), 4);
    open_stream(&mut queue, &low, (FIRST_OUTPUT, 1), 100);
    open_stream(&mut queue, &high, (1, 1), 3);
    open_stream(&mut queue, &high, (2, 1), 5);
    assert!(!queue.drop_logs(120), "no more than there may be");
    assert!(queue.drop_logs(100));
    assert_eq!(queue.stream(&low, (1, 1)).unwrap().waiting(), 20);
    assert_eq!(queue.pending().1, 1_000 + 20 + 80);
    // Nothing of the less important can go any more but what is written.
    assert!(queue.drop_logs(75));
    assert_eq!(queue.stream(&low, (1, 1)).unwrap().waiting(), 10);
    assert_eq!(queue.stream(&high, (2, 1)).unwrap().waiting(), 30, "of the log of which most waits");
    assert_eq!(queue.stream(&high, (1, 1)).unwrap().waiting(), 30);
    assert!(queue.drop_logs(0) && !queue.drop_logs(0));
    assert_eq!(queue.pending().1, 1_000 + 10 + 10 + 10);
    // The segments go like all others: once it is noted.
    let acks = queue.take_acks();
    let spent = queue.noted(&acks);
    assert_eq!(spent.len(), 3 + 2 + 4);
    // The gap is told with the next piece, and counted in one note when that has arrived.
    let mut told = Vec::new();
    while let Some(Pick::Chunk { key, segment, offset, len, is_after_gap, .. }) = queue.select(100) {
        assert!(is_after_gap == (segment.stream != FIRST_OUTPUT), "{key} {segment:?}");
        queue.acked_stream(&key, (segment.stream, segment.epoch), offset + len);
        told.extend(queue.take_notes());
    }
    let mut told: Vec<_> = told.into_iter().map(|(key, text)| format!("{key}: {text}")).collect();
    told.sort_unstable();
    let expect = |who, to, stream| {
        format!(
            "{who}#1: bytes 0 to {to} of stream {stream}, epoch 1, were dropped, since too many logs waited for the master"
        )
    };
    assert_eq!(told, [expect("high", 20, 1), expect("high", 40, 2), expect("low", 30, 1)]);
}

#[test]
fn segments_go_only_when_their_acknowledgement_is_noted() {
    let key = key("sum", 1);
    let mut queue = queue(10);
    queue.select(100);
    queue.acked_stream(&key, (1, 1), 10);
    let acks = queue.take_acks();
    queue.put_back(&acks);
    assert_eq!(queue.stream(&key, (1, 1)).unwrap().segments.len(), 1);
    let acks = queue.take_acks();
    assert_eq!(queue.noted(&acks).len(), 1);
    assert!(queue.take_acks().is_empty());
}

#[test]
fn notes_of_refusals_are_bounded() {
    let mut queue = queue(0);
    for _ in 0..100 {
        queue.note(&key("sum", 1), "refused".to_owned());
    }
    let notes = queue.take_notes();
    assert_eq!(notes.len(), 16);
    assert!(notes[15].1.contains("more"));
}
