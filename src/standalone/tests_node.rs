//! Registration, sessions, heartbeats and reports.

use std::time::Duration;

use super::core::*;
use super::gate::{MAX_NONCES, NONCE_LIFE, SESSION_LIFE, SESSIONS_PER_NODE};
use super::testkit::*;
use crate::grpc::Code;
use crate::rpc::schema::*;

#[test]
fn registers_in_two_steps_with_the_proof_of_the_contract() {
    let mut rig = Rig::bare(Terms::default());
    let mut request = rig.registration();
    let first: NodeRegistrationResponse = rig.call(REGISTER_NODE, &request).unwrap();
    assert!((16..=64).contains(&first.nonce.len()));
    assert_eq!(first.session_token, "");
    // The text as the contract spells it, not by our own function.
    let mut text = b"hivemind-register-v1\0".to_vec();
    text.extend_from_slice(&first.nonce);
    text.extend_from_slice(b"\0node-1\0");
    text.extend_from_slice(&request.public_key);
    let signature = rig.pair.sign(&text).as_ref().to_vec();
    request.proof = Some(RegistrationProof { nonce: first.nonce, signature });
    let second: NodeRegistrationResponse = rig.call(REGISTER_NODE, &request).unwrap();
    assert_eq!(second.session_token.len(), 32);
    assert_eq!(second.session_token_life_ms, 86_400_000);
    assert_eq!(second.node_id, "node-1");
    assert_eq!(second.heartbeat_interval_ms, 10_000);
    assert_eq!(second.lease_ms, 120_000);
    assert_eq!(second.server_time_ms, START_MS);
}

#[test]
fn refuses_a_proof_that_is_wrong_used_late_or_for_something_else() {
    let mut rig = Rig::bare(Terms::default());
    let first = |rig: &mut Rig| {
        let request = rig.registration();
        rig.call::<NodeRegistrationResponse>(REGISTER_NODE, &request).unwrap().nonce
    };
    let try_with = |rig: &mut Rig, request: &NodeRegistrationRequest| {
        rig.call::<NodeRegistrationResponse>(REGISTER_NODE, request).map_err(|fail| fail.code)
    };
    // A changed signature, and the nonce is gone with it.
    let nonce = first(&mut rig);
    let mut good = rig.registration();
    rig.prove(&mut good, &nonce);
    let mut bad = good.clone();
    bad.proof.as_mut().unwrap().signature[0] ^= 1;
    assert_eq!(try_with(&mut rig, &bad), Err(Code::Unauthenticated));
    assert_eq!(try_with(&mut rig, &good), Err(Code::Unauthenticated));
    // Another node's id under the same signature.
    let nonce = first(&mut rig);
    rig.prove(&mut good, &nonce);
    let other = NodeRegistrationRequest { node_id: "node-2".to_owned(), ..good.clone() };
    assert_eq!(try_with(&mut rig, &other), Err(Code::Unauthenticated));
    // A nonce of nobody, and one that has grown old.
    rig.prove(&mut good, &[7; 32]);
    assert_eq!(try_with(&mut rig, &good), Err(Code::Unauthenticated));
    let nonce = first(&mut rig);
    rig.prove(&mut good, &nonce);
    rig.now += NONCE_LIFE;
    assert_eq!(try_with(&mut rig, &good), Err(Code::Unauthenticated));
    // One that gave way to many others.
    let nonce = first(&mut rig);
    rig.prove(&mut good, &nonce);
    for _ in 0..MAX_NONCES {
        first(&mut rig);
    }
    assert_eq!(try_with(&mut rig, &good), Err(Code::Unauthenticated));
    assert!(rig.register().is_ok());
}

#[test]
fn binds_a_node_id_to_its_first_key_over_restarts() {
    let mut rig = Rig::new();
    rig.pair = key_pair(2);
    assert_eq!(rig.register().unwrap_err().code, Code::PermissionDenied);
    rig.restart();
    assert_eq!(rig.register().unwrap_err().code, Code::PermissionDenied);
    rig.pair = key_pair(1);
    assert!(rig.register().is_ok());
}

#[test]
fn wants_the_join_token_where_it_has_one() {
    let mut rig =
        Rig::with(Terms { join_token: Some(crate::config::Secret::new("right".to_owned())), ..Terms::default() });
    for token in ["", "wrong", "righ", "right "] {
        let request = NodeRegistrationRequest { join_token: token.to_owned(), ..rig.registration() };
        assert_eq!(rig.register_with(request).unwrap_err().code, Code::PermissionDenied, "{token:?}");
    }
}

#[test]
fn names_the_field_that_is_missing_or_wrong() {
    let mut rig = Rig::bare(Terms::default());
    let good = rig.registration();
    let table = [
        (NodeRegistrationRequest { node_id: String::new(), ..good.clone() }, "node_id"),
        (NodeRegistrationRequest { node_id: "../x".to_owned(), ..good.clone() }, "node_id"),
        (NodeRegistrationRequest { public_key: Vec::new(), ..good.clone() }, "public_key"),
        (NodeRegistrationRequest { public_key: vec![1; 31], ..good.clone() }, "public_key"),
        (NodeRegistrationRequest { proof: Some(RegistrationProof::default()), ..good.clone() }, "proof.nonce"),
    ];
    for (request, field) in table {
        let fail = rig.call::<NodeRegistrationResponse>(REGISTER_NODE, &request).unwrap_err();
        assert_eq!(fail.code, Code::InvalidArgument);
        assert!(fail.message.starts_with(field), "{fail}");
    }
}

#[test]
fn sessions_end_with_their_life_a_restart_or_too_many_others() {
    let mut rig = Rig::new();
    let beat = |rig: &mut Rig| {
        let request = HeartbeatRequest { node_id: rig.node.clone(), ..HeartbeatRequest::default() };
        rig.call::<HeartbeatResponse>(HEARTBEAT, &request).map(|_| ()).map_err(|fail| fail.code)
    };
    assert_eq!(beat(&mut rig), Ok(()));
    let first = rig.token.clone();
    for count in 1..=SESSIONS_PER_NODE {
        rig.now += Duration::from_millis(1);
        rig.register().unwrap();
        let last = std::mem::replace(&mut rig.token, first.clone());
        let is_in = count < SESSIONS_PER_NODE;
        assert_eq!(beat(&mut rig).is_ok(), is_in, "{count}");
        rig.token = last;
    }
    assert_eq!(beat(&mut rig), Ok(()));
    rig.now += SESSION_LIFE;
    assert_eq!(beat(&mut rig), Err(Code::Unauthenticated));
    rig.register().unwrap();
    let token = rig.token.clone();
    rig.restart();
    rig.token = token;
    assert_eq!(beat(&mut rig), Err(Code::Unauthenticated));
    for token in [None, Some(String::new()), Some("x".repeat(10_000))] {
        rig.token = token;
        assert_eq!(beat(&mut rig), Err(Code::Unauthenticated));
    }
}

#[test]
fn a_session_speaks_for_its_own_node_only() {
    let mut rig = Rig::new();
    let request = HeartbeatRequest { node_id: "node-2".to_owned(), ..HeartbeatRequest::default() };
    assert_eq!(rig.call::<HeartbeatResponse>(HEARTBEAT, &request).unwrap_err().code, Code::PermissionDenied);
    let fail = rig.call::<HeartbeatResponse>(HEARTBEAT, &HeartbeatRequest::default()).unwrap_err();
    assert_eq!((fail.code, fail.message.as_str()), (Code::InvalidArgument, "node_id is missing"));
}

#[test]
fn the_highest_sequence_of_heartbeats_and_reports_wins() {
    let mut rig = Rig::new();
    let node_id = rig.node.clone();
    for sequence in [1, 3, 2] {
        let beat = HeartbeatRequest { node_id: node_id.clone(), sequence, ..HeartbeatRequest::default() };
        rig.call::<HeartbeatResponse>(HEARTBEAT, &beat).unwrap();
        let report = NodeStatusRequest { node_id: node_id.clone(), sequence, ..NodeStatusRequest::default() };
        rig.call::<NodeStatusResponse>(REPORT_NODE_STATUS, &report).unwrap();
    }
    let row = rig.core.node(&crate::node::id::Id::parse("node-1").unwrap()).unwrap();
    assert_eq!(row.heartbeat.as_ref().unwrap().sequence, 3);
    assert_eq!(row.status.as_ref().unwrap().sequence, 3);
}

#[test]
fn says_which_held_attempts_were_replaced() {
    let mut rig = Rig::new();
    rig.placed("a");
    rig.placed("b");
    rig.submit_assignment(&assignment("a", 2, 50));
    let held = ["a", "b", "unknown"].map(|task| HeldAttempt { key: key_message(task), phase: 5 }).to_vec();
    let request = NodeRegistrationRequest { held: [held, vec![HeldAttempt::default()]].concat(), ..rig.registration() };
    assert_eq!(rig.register_with(request.clone()).unwrap().superseded, [key_message("a").unwrap()]);
    rig.restart();
    assert_eq!(rig.register_with(request).unwrap().superseded, [key_message("a").unwrap()]);
}

#[test]
fn unknown_calls_are_unimplemented() {
    let mut rig = Rig::new();
    for path in ["", "/", "/hivemind.v1.NodeService/Nothing", "/hivemind.v2.NodeService/Heartbeat", "\0"] {
        match rig.core.handle(path, None, &[], rig.now) {
            Handled::Fail(fail) => assert_eq!(fail.code, Code::Unimplemented),
            other => panic!("{path:?}: {other:?}"),
        }
    }
}
