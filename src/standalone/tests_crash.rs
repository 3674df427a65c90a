//! The folder stopped at each of its steps: the next start finds the old state or the new one, and what was promised.

use prost::Message;

use super::core::*;
use super::testkit::*;
use crate::node::record::Outcome;
use crate::rpc::schema::task_result_response::Answer;
use crate::rpc::schema::*;

/// One life of a task with everything that is written, going on wherever an earlier one was stopped. Returns what was
/// promised before the folder failed.
#[derive(Debug, Default, PartialEq)]
struct Promised {
    submitted: bool,
    events: u64,
    bytes: u64,
    cancelled: bool,
}

fn life(rig: &mut Rig, promised: &mut Promised) -> Result<(), String> {
    let text = |fail: super::fail::Fail| fail.message;
    rig.register().map_err(text)?;
    if !promised.submitted {
        let known = rig.core.book.attempts.contains_key(&key("a", 1));
        if !known {
            let bytes = assignment("a", 1, 50).encode_to_vec();
            rig.core.submit(&key("a", 1), &bytes, rig.now).map_err(text)?;
        }
        promised.submitted = true;
    }
    let request = rig.poll_request(&[], 0);
    let answer: TaskAssignmentResponse = rig.call(ASSIGN_TASK, &request).map_err(text)?;
    if let [offer] = answer.offers.as_slice() {
        let mut request = rig.poll_request(&[], 0);
        if promised.events == 0 {
            let code = "capacity".to_owned();
            request.refused = vec![Refusal { offer_id: offer.offer_id, code, reason: String::new() }];
        }
        rig.call::<TaskAssignmentResponse>(ASSIGN_TASK, &request).map_err(text)?;
    }
    for number in 1..=3 {
        if let Answer::EventDurable(events) = rig.note("a", number).map_err(text)? {
            promised.events = promised.events.max(events);
        }
        let offset = (number - 1) * 4;
        if let Answer::ChunkDurable(bytes) = rig.chunk("a", 1, 1, offset, b"data").map_err(text)? {
            promised.bytes = promised.bytes.max(bytes);
        }
    }
    if rig.attempt("a", 1).outcome().is_none() {
        rig.core.cancel(&key("a", 1).task, "stop", rig.now)?;
        promised.cancelled = true;
    }
    rig.finish("a", 4, vec![StreamEnd { stream: 1, epoch: 1, bytes: 12 }]).map_err(text)?;
    Ok(())
}

#[test]
fn every_stop_of_the_folder_leaves_what_was_promised_and_can_be_gone_on_from() {
    let mut stops = 0;
    for steps in 0.. {
        let mut rig = Rig::bare(Terms::default());
        let mut promised = Promised::default();
        rig.core.book.folder.steps_left = Some(steps);
        if life(&mut rig, &mut promised).is_ok() {
            break;
        }
        stops += 1;
        rig.restart();
        let found = rig.core.book.attempts.get(&key("a", 1));
        assert!(found.is_some() || !promised.submitted, "{steps}: {promised:?}");
        if let Some(attempt) = found {
            assert!(attempt.last_event >= promised.events, "{steps}: {promised:?}");
            assert!(attempt.stream_bytes(1) >= promised.bytes, "{steps}: {promised:?}");
            assert!(attempt.is_over() || attempt.stop.is_some() || !promised.cancelled, "{steps}: {promised:?}");
        }
        life(&mut rig, &mut promised).unwrap();
        let attempt = rig.attempt("a", 1);
        assert_eq!(attempt.outcome(), Some(Outcome::Succeeded), "{steps}");
        assert!(attempt.is_complete(), "{steps}");
        assert_eq!(attempt.notes, ["note 1", "note 2", "note 3"], "{steps}");
        let bytes = std::fs::read(rig.path().join("tasks/a/1/streams/1-1")).unwrap();
        assert_eq!(bytes, b"datadatadata", "{steps}");
    }
    assert!(stops > 40, "only {stops} stops were tried");
}

#[test]
fn a_step_that_failed_once_is_done_by_the_next_try_in_the_same_life() {
    for steps in 0..200 {
        let mut rig = Rig::bare(Terms::default());
        let mut promised = Promised::default();
        rig.core.book.folder.steps_left = Some(steps);
        if life(&mut rig, &mut promised).is_ok() {
            return;
        }
        rig.core.book.folder.steps_left = None;
        // A new attempt's folder may be there though its making failed at the last step: another start finds it.
        if !promised.submitted && rig.path().join("tasks/a/1").exists() {
            rig.restart();
        }
        life(&mut rig, &mut promised).unwrap();
        assert!(rig.attempt("a", 1).is_complete(), "{steps}");
    }
    panic!("the life is longer than was tried");
}

#[test]
fn a_torn_record_and_a_longer_stream_are_taken_up_where_they_are_sound() {
    let mut rig = Rig::new();
    rig.placed("a");
    rig.note("a", 1).unwrap();
    rig.chunk("a", 1, 1, 0, b"data").unwrap();
    let record = rig.path().join("tasks/a/1/record.jsonl");
    let whole = std::fs::read(&record).unwrap();
    let next =
        String::from_utf8(whole.clone()).unwrap().replace("\"number\":1", "\"number\":2").replace("note 1", "note 2");
    for end in 0..next.len() {
        std::fs::write(&record, [whole.as_slice(), &next.as_bytes()[..end]].concat()).unwrap();
        rig.restart();
        assert_eq!(rig.attempt("a", 1).last_event, 1);
        assert_eq!(std::fs::read(&record).unwrap(), whole);
    }
    std::fs::write(rig.path().join("tasks/a/1/streams/1-1"), b"data and m").unwrap();
    rig.restart_and_register();
    assert_eq!(rig.note("a", 2), Ok(Answer::EventDurable(2)));
    assert_eq!(rig.chunk("a", 1, 1, 4, b" and more"), Ok(Answer::ChunkDurable(13)));
    assert_eq!(std::fs::read(rig.path().join("tasks/a/1/streams/1-1")).unwrap(), b"data and more");
}

#[test]
fn strange_things_in_the_folder_do_not_keep_the_master_from_starting() {
    let mut rig = Rig::new();
    rig.placed("a");
    let tasks = rig.path().join("tasks");
    for path in ["..x/1", "b/1", "c/x", "d/0", "e/.new-1/streams", "f/.old-1", "a/1/streams/x", "a/1/streams/1-x"] {
        std::fs::create_dir_all(tasks.join(path)).unwrap();
    }
    std::fs::write(rig.path().join("nodes.json"), b"{\"node-1\": \"xyz\"}").unwrap();
    std::fs::write(tasks.join("a/1/verdict.json"), b"{").unwrap();
    std::fs::write(tasks.join("a/1/node"), b"../..").unwrap();
    rig.restart_and_register();
    assert_eq!(rig.core.book.attempts.len(), 1);
    assert!(!tasks.join("e/.new-1").exists());
    assert!(tasks.join("b/1").exists());
}
