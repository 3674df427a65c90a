//! Events and chunks as they come, in every odd order.

use super::attempt::{MAX_LOG_BYTES, Stream};
use super::book::{MAX_AGE, MAX_COMPLETE};
use super::testkit::*;
use crate::grpc::Code;
use crate::node::record::{Outcome, Phase};
use crate::rpc::schema::task_result_request::Piece;
use crate::rpc::schema::task_result_response::Answer;
use crate::rpc::schema::*;

fn durable(number: u64) -> Result<Answer, super::fail::Fail> {
    Ok(Answer::EventDurable(number))
}

fn stored(offset: u64) -> Result<Answer, super::fail::Fail> {
    Ok(Answer::ChunkDurable(offset))
}

fn content(rig: &Rig, task: &str, stream: u32, epoch: u64) -> Vec<u8> {
    std::fs::read(rig.path().join(format!("tasks/{task}/1/streams/{stream}-{epoch}"))).unwrap()
}

#[test]
fn takes_events_in_order_once_and_answers_a_hole_with_the_last() {
    let mut rig = Rig::new();
    rig.placed("a");
    assert_eq!(rig.note("a", 2), durable(0));
    assert_eq!(rig.note("a", 1), durable(1));
    assert_eq!(rig.note("a", 3), durable(1));
    assert_eq!(rig.note("a", 2), durable(2));
    assert_eq!(rig.note("a", 1), durable(2));
    assert_eq!(rig.note("a", u64::MAX), durable(2));
    for _ in 0..2 {
        assert_eq!(rig.attempt("a", 1).notes, ["note 1", "note 2"]);
        assert_eq!(rig.attempt("a", 1).last_event, 2);
        rig.restart_and_register();
    }
}

#[test]
fn follows_the_phases_and_takes_one_final_report() {
    let mut rig = Rig::new();
    rig.placed("a");
    let phase = |phase: i32| event::Kind::Phase(PhaseChange { phase, detail: String::new() });
    rig.event("a", 1, phase(5)).unwrap();
    assert_eq!(rig.attempt("a", 1).phase, Some(Phase::Running));
    // A phase of a newer node is a note.
    rig.event("a", 2, phase(77)).unwrap();
    assert_eq!(rig.attempt("a", 1).phase, Some(Phase::Running));
    rig.finish("a", 3, vec![]).unwrap();
    let report = FinalReport { outcome: 2, tail: vec![1; 65_536], ..FinalReport::default() };
    assert_eq!(rig.event("a", 4, event::Kind::FinalReport(report)), durable(4));
    assert_eq!(rig.note("a", 5), durable(5));
    for _ in 0..2 {
        assert_eq!(rig.attempt("a", 1).outcome(), Some(Outcome::Succeeded));
        assert_eq!(rig.attempt("a", 1).last_event, 5);
        rig.restart_and_register();
    }
}

#[test]
fn a_kind_or_outcome_of_a_newer_node_stops_nothing() {
    let mut rig = Rig::new();
    rig.placed("a");
    let event = Event { number: 1, time_ms: 0, kind: None };
    assert_eq!(rig.piece("a", Piece::Event(event)), durable(1));
    let report = FinalReport { outcome: 99, ..FinalReport::default() };
    assert_eq!(rig.event("a", 2, event::Kind::FinalReport(report)), durable(2));
    assert_eq!(rig.attempt("a", 1).outcome(), Some(Outcome::Failed));
    assert!(rig.attempt("a", 1).last_word().unwrap().reason.starts_with("outcome 99"));
}

#[test]
fn appends_chunks_where_they_belong() {
    let mut rig = Rig::new();
    rig.placed("a");
    assert_eq!(rig.chunk("a", 1, 1, 3, b"later"), stored(0));
    assert_eq!(rig.chunk("a", 1, 1, 0, b"012"), stored(3));
    assert_eq!(rig.chunk("a", 1, 1, 0, b"012"), stored(3));
    assert_eq!(rig.chunk("a", 1, 1, 1, b"12345"), stored(6));
    assert_eq!(rig.chunk("a", 1, 1, 9, b"hole"), stored(6));
    assert_eq!(rig.chunk("a", 1, 1, u64::MAX, b"hole"), stored(6));
    assert_eq!(rig.chunk("a", 1, 1, 6, b""), stored(6));
    assert_eq!(rig.chunk("a", 1, 2, 0, b"second epoch"), stored(12));
    assert_eq!(rig.chunk("a", 2, 1, 0, b"error"), stored(5));
    for _ in 0..2 {
        assert_eq!(content(&rig, "a", 1, 1), b"012345");
        assert_eq!(content(&rig, "a", 1, 2), b"second epoch");
        assert_eq!(rig.attempt("a", 1).stream_bytes(1), 18);
        assert_eq!(rig.attempt("a", 1).stream_bytes(2), 5);
        rig.restart_and_register();
    }
}

#[test]
fn a_gap_that_is_told_is_zeros_within_the_limit_and_a_hole_is_asked_for() {
    let mut rig = Rig::new();
    rig.placed("a");
    let after_gap =
        |offset, data: &[u8]| Chunk { stream: 1, epoch: 1, offset, data: data.to_vec(), last: false, after_gap: true };
    assert_eq!(rig.chunk("a", 1, 1, 0, b"one"), stored(3));
    assert_eq!(rig.chunk("a", 1, 1, 6, b"two"), stored(3));
    assert_eq!(rig.piece("a", Piece::Chunk(after_gap(6, b"two"))), stored(9));
    // Again, and where there is no gap.
    assert_eq!(rig.piece("a", Piece::Chunk(after_gap(6, b"two!"))), stored(10));
    // An end behind a gap.
    assert_eq!(rig.piece("a", Piece::Chunk(Chunk { last: true, ..after_gap(12, b"") })), stored(12));
    for _ in 0..2 {
        assert_eq!(content(&rig, "a", 1, 1), b"one\0\0\0two!\0\0");
        assert_eq!(rig.attempt("a", 1).stream_bytes(1), 12);
        rig.restart_and_register();
    }
    let far = rig.piece("a", Piece::Chunk(after_gap(u64::MAX - 1, b"x")));
    assert!(matches!(far, Ok(Answer::Refused(_))), "{far:?}");
    assert_eq!(content(&rig, "a", 1, 1).len(), 12);
}

#[test]
fn an_empty_stream_exists_once_its_end_came() {
    let mut rig = Rig::new();
    rig.placed("a");
    let chunk = Chunk { stream: 16, epoch: 1, offset: 0, data: vec![], last: true, after_gap: false };
    assert_eq!(rig.piece("a", Piece::Chunk(chunk)), stored(0));
    assert_eq!(content(&rig, "a", 16, 1), b"");
}

#[test]
fn is_complete_when_each_named_stream_has_arrived() {
    let mut rig = Rig::new();
    rig.placed("a");
    let end = |stream, epoch, bytes| StreamEnd { stream, epoch, bytes };
    rig.chunk("a", 1, 1, 0, b"one").unwrap();
    rig.finish("a", 1, vec![end(1, 1, 3), end(1, 2, 4), end(2, 1, 0)]).unwrap();
    assert!(!rig.attempt("a", 1).is_complete());
    rig.chunk("a", 1, 2, 0, b"tw").unwrap();
    assert!(!rig.attempt("a", 1).is_complete());
    rig.chunk("a", 1, 2, 2, b"o!").unwrap();
    assert!(rig.attempt("a", 1).is_complete());
}

#[test]
fn an_output_file_is_what_the_highest_epoch_of_its_stream_holds() {
    let mut rig = Rig::new();
    rig.placed("a");
    let end = |epoch, bytes| StreamEnd { stream: 16, epoch, bytes };
    let file = |stream, path: &str, size| OutputFile { stream, path: path.to_owned(), size, ..OutputFile::default() };
    // The node was killed while it collected, and began again.
    rig.chunk("a", 16, 1, 0, b"resu").unwrap();
    let report = FinalReport {
        outcome: 1,
        outputs: vec![file(16, "output/r", 6), file(17, "output/empty", 0)],
        streams: vec![end(2, 6), end(1, 4)],
        ..FinalReport::default()
    };
    rig.event("a", 1, event::Kind::FinalReport(report)).unwrap();
    rig.chunk("a", 16, 2, 0, b"resul").unwrap();
    assert_eq!(rig.attempt("a", 1).output_parts("output/r"), None);
    rig.chunk("a", 16, 2, 5, b"t").unwrap();
    assert_eq!(rig.attempt("a", 1).output_parts("output/r"), Some(vec![((16, 2), 6)]));
    assert_eq!(rig.attempt("a", 1).output_parts("output/empty"), Some(vec![]));
    assert!(rig.attempt("a", 1).is_complete());
}

#[test]
fn refuses_what_is_unknown_elsewhere_or_over_a_limit() {
    let mut rig = Rig::new();
    rig.placed("a");
    let is_refused = |answer: Result<Answer, _>| matches!(answer, Ok(Answer::Refused(_)));
    assert!(is_refused(rig.note("unknown", 1)));
    assert!(is_refused(rig.chunk("a", 3, 1, 0, b"x")));
    rig.core
        .book
        .attempts
        .get_mut(&key("a", 1))
        .unwrap()
        .streams
        .insert((2, 1), Stream { bytes: MAX_LOG_BYTES - 1, is_refused: false });
    assert!(is_refused(rig.chunk("a", 1, 1, 0, b"xy")));
    // The rest of the stream too, and completeness does not wait for it, over a restart.
    assert!(is_refused(rig.chunk("a", 1, 1, 0, b"x")));
    rig.finish("a", 1, vec![StreamEnd { stream: 1, epoch: 1, bytes: 2 }]).unwrap();
    for _ in 0..2 {
        assert!(rig.attempt("a", 1).is_complete());
        rig.restart_and_register();
    }
    rig.node = "node-2".to_owned();
    rig.pair = key_pair(2);
    rig.register().unwrap();
    assert!(is_refused(rig.note("a", 2)));
}

#[test]
fn names_the_field_of_a_piece_that_is_missing() {
    let mut rig = Rig::new();
    rig.placed("a");
    let event = |number, kind| Some(Piece::Event(Event { number, time_ms: 0, kind }));
    let no_outcome = event::Kind::FinalReport(FinalReport::default());
    let no_phase = event::Kind::Phase(PhaseChange::default());
    let table = [
        (None, event(1, None), "key"),
        (Some(AttemptKey { task_id: String::new(), attempt: 1 }), event(1, None), "key.task_id"),
        (Some(AttemptKey { task_id: "a/b".to_owned(), attempt: 1 }), event(1, None), "key.task_id"),
        (Some(AttemptKey { task_id: "a".to_owned(), attempt: 0 }), event(1, None), "key.attempt"),
        (key_message("a"), None, "piece"),
        (key_message("a"), event(0, None), "event.number"),
        (key_message("a"), event(1, Some(no_outcome)), "event.final_report.outcome"),
        (key_message("a"), event(1, Some(no_phase)), "event.phase.phase"),
        (key_message("a"), Some(Piece::Chunk(Chunk::default())), "chunk.stream"),
    ];
    for (key, piece, field) in table {
        let request = TaskResultRequest { node_id: rig.node.clone(), key, piece };
        let fail = rig.call::<TaskResultResponse>(super::core::SUBMIT_TASK_RESULT, &request).unwrap_err();
        assert_eq!(fail.code, Code::InvalidArgument);
        assert!(fail.message.starts_with(&format!("{field} ")), "{fail}");
    }
}

#[test]
fn a_final_report_counts_more_than_the_masters_verdict() {
    let mut rig = Rig::new();
    rig.submit("a", 50);
    rig.core.cancel(&key("a", 1).task, "early", rig.now).unwrap();
    rig.finish("a", 1, vec![]).unwrap();
    for _ in 0..2 {
        assert_eq!(rig.attempt("a", 1).outcome(), Some(Outcome::Succeeded));
        rig.restart_and_register();
    }
}

#[test]
fn removes_old_tasks_and_the_oldest_of_too_many() {
    let mut rig = Rig::new();
    rig.placed("old");
    rig.finish("old", 1, vec![]).unwrap();
    rig.placed("waits");
    rig.now = MAX_AGE;
    rig.register().unwrap();
    rig.placed("new");
    rig.finish("new", 1, vec![]).unwrap();
    rig.core.handle_timeout(rig.now);
    let names = |rig: &Rig| rig.core.book.attempts.keys().map(|key| key.task.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&rig), ["new", "old", "waits"]);
    rig.now += super::core::CLEAN_EVERY;
    rig.core.handle_timeout(rig.now);
    assert_eq!(names(&rig), ["new", "waits"]);
    assert!(!rig.path().join("tasks/old").exists());
    let row = rig.attempt("new", 1).clone();
    for number in 0..MAX_COMPLETE {
        let name = format!("t{number}");
        std::fs::create_dir_all(rig.path().join("tasks").join(&name).join("1")).unwrap();
        let key = key(&name, 1);
        let finished_ms = row.finished_ms + 1 + number as u64;
        rig.core.book.attempts.insert(key.clone(), super::attempt::Attempt { key, finished_ms, ..row.clone() });
    }
    rig.core.book.clean(rig.now).unwrap();
    assert!(!names(&rig).contains(&"new".to_owned()));
    assert_eq!(names(&rig).len(), MAX_COMPLETE + 1);
}
