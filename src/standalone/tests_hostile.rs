//! Bodies that no sound node sends: a status each, and no panic.

use prost::Message;

use super::core::*;
use super::testkit::*;
use crate::grpc::Code;
use crate::rpc::schema::task_result_request::Piece;
use crate::rpc::schema::*;

const PATHS: [&str; 6] = [REGISTER_NODE, HEARTBEAT, REPORT_NODE_STATUS, ASSIGN_TASK, SUBMIT_TASK_RESULT, CANCEL_TASK];

fn sound(rig: &mut Rig) -> Vec<(&'static str, Vec<u8>)> {
    let node_id = rig.node.clone();
    let mut registration = rig.registration();
    registration.held = vec![HeldAttempt { key: key_message("a"), phase: 1 }];
    rig.prove(&mut registration, &[1; 32]);
    let held = registration.held.clone();
    let host = Some(HostUsage { cpu_percent: Some(f64::NAN), ..HostUsage::default() });
    let report = FinalReport {
        outcome: 1,
        outputs: vec![OutputFile { stream: 16, path: "../x".to_owned(), ..OutputFile::default() }],
        streams: vec![StreamEnd { stream: 1, epoch: u64::MAX, bytes: u64::MAX }],
        ..FinalReport::default()
    };
    let event = Event { number: 1, time_ms: u64::MAX, kind: Some(event::Kind::FinalReport(report)) };
    let chunk = Chunk { stream: 1, epoch: u64::MAX, offset: 0, data: vec![7; 9], last: true, after_gap: false };
    let piece = |piece| TaskResultRequest { node_id: node_id.clone(), key: key_message("a"), piece: Some(piece) };
    let mut poll = rig.poll_request(&[1, u64::MAX], 0);
    poll.refused = vec![Refusal { offer_id: 1, code: "x".to_owned(), reason: "y".to_owned() }];
    vec![
        (REGISTER_NODE, registration.encode_to_vec()),
        (HEARTBEAT, HeartbeatRequest { node_id: node_id.clone(), held, ..Default::default() }.encode_to_vec()),
        (
            REPORT_NODE_STATUS,
            NodeStatusRequest { node_id: node_id.clone(), host, ..Default::default() }.encode_to_vec(),
        ),
        (ASSIGN_TASK, poll.encode_to_vec()),
        (SUBMIT_TASK_RESULT, piece(Piece::Event(event)).encode_to_vec()),
        (SUBMIT_TASK_RESULT, piece(Piece::Chunk(chunk)).encode_to_vec()),
        (
            CANCEL_TASK,
            TaskCancelRequest { node_id: node_id.clone(), key: key_message("a"), state: 1, ..Default::default() }
                .encode_to_vec(),
        ),
    ]
}

/// Only these say that the caller is wrong; a fault of the master itself would be Internal or Unavailable.
fn is_callers_fault(code: Code) -> bool {
    matches!(code, Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated)
}

#[test]
fn bodies_that_are_no_message_are_invalid_arguments() {
    let mut rig = Rig::new();
    let garbage: [&[u8]; 8] = [
        b"\xff",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a\x02\xff\xfe",
        b"\x0a\x7f",
        b"\x07",
        b"\x0b\x0b\x0b\x0b",
        &[0xff; 300],
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80",
    ];
    for path in PATHS {
        for body in garbage {
            match rig.core.handle(path, rig.token.as_deref(), body, rig.now) {
                Handled::Fail(fail) => assert_eq!(fail.code, Code::InvalidArgument, "{path} {body:?}"),
                other => panic!("{path} {body:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn truncated_and_changed_bodies_get_the_callers_fault_or_an_answer() {
    let mut rig = Rig::new();
    rig.placed("a");
    let token = rig.token.clone();
    let mut tried = 0;
    let bodies = sound(&mut rig);
    let mut seed = 1u64;
    for (path, body) in &bodies {
        let mut cases: Vec<Vec<u8>> = (0..body.len()).map(|end| body[..end].to_vec()).collect();
        for at in 0..body.len() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut changed = body.clone();
            changed[at] = (seed >> 33) as u8;
            cases.push(changed);
        }
        for case in cases {
            tried += 1;
            if let Handled::Fail(fail) = rig.core.handle(path, token.as_deref(), &case, rig.now) {
                assert!(is_callers_fault(fail.code), "{path} {case:?}: {fail}");
            }
            // Whatever it was, the master still answers.
            rig.core.handle_timeout(rig.now);
        }
    }
    assert!(tried > 500, "only {tried}");
}

#[test]
fn odd_texts_and_numbers_are_refused_with_the_field() {
    let mut rig = Rig::new();
    let long = "x".repeat(1 << 20);
    let names = ["..", "a/b", "a\0b", "-a", "", ".", "a b", "ä", long.as_str(), "a\n", "%2e%2e", "a?b", "a#1"];
    for name in names {
        let key = Some(AttemptKey { task_id: name.to_owned(), attempt: 1 });
        let node_id = rig.node.clone();
        let event = Piece::Event(Event { number: 1, time_ms: 0, kind: None });
        let piece = TaskResultRequest { node_id: node_id.clone(), key: key.clone(), piece: Some(event) };
        let fail = rig.call::<TaskResultResponse>(SUBMIT_TASK_RESULT, &piece).unwrap_err();
        assert!(fail.code == Code::InvalidArgument && fail.message.starts_with("key.task_id"), "{fail}");
        let cancel = TaskCancelRequest { node_id, key, state: 1, reason: String::new() };
        let fail = rig.call::<TaskCancelResponse>(CANCEL_TASK, &cancel).unwrap_err();
        assert!(fail.code == Code::InvalidArgument && fail.message.len() < 300, "{fail}");
        let register = NodeRegistrationRequest { node_id: name.to_owned(), ..rig.registration() };
        let fail = rig.call::<NodeRegistrationResponse>(REGISTER_NODE, &register).unwrap_err();
        assert!(fail.code == Code::InvalidArgument && fail.message.starts_with("node_id"), "{fail}");
    }
    let mut poll = rig.poll_request(&[], u64::MAX);
    poll.max_assignments = u32::MAX;
    poll.free = Some(Resources { cpu_millis: u64::MAX, memory_bytes: u64::MAX, disk_bytes: u64::MAX, slots: u32::MAX });
    poll.taken = (0..10_000).collect();
    assert!(matches!(rig.handle(ASSIGN_TASK, &poll), Handled::Hold(_)));
}

#[test]
fn assignments_of_any_bytes_are_offered_as_they_are() {
    let mut rig = Rig::new();
    rig.core.submit(&key("raw", 1), b"\xff\xff no message", rig.now).unwrap();
    assert_eq!(rig.poll(&[], vec![]).offers[0].assignment, b"\xff\xff no message");
}
