//! The typed calls against a scripted master over a real lane: what is read from answers, and what a broken one becomes.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hivemind_worker::node::order::Directive;
use hivemind_worker::node::snapshot::Snapshot;
use hivemind_worker::rpc::dial::Target;
use hivemind_worker::rpc::key::NodeKey;
use hivemind_worker::rpc::lane::{Lane, LaneConfig};
use hivemind_worker::rpc::master::{Introduction, Master, MasterEvent, Reply};
use hivemind_worker::rpc::schema;
use hivemind_worker::rpc::server::{Server, ServerEvent};
use hivemind_worker::sys::clock::boottime;
use prost::Message;

const PATIENCE: Duration = Duration::from_secs(30);

/// A master that answers each call with the next of these bytes.
fn scripted(answers: Vec<Vec<u8>>) -> (SocketAddr, thread::JoinHandle<Vec<(String, bool)>>) {
    let mut server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = server.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let mut seen = Vec::new();
        let mut answers = answers.into_iter();
        let end = boottime() + PATIENCE;
        // One call more than there are answers means that the test is over.
        while boottime() < end {
            let ServerEvent::Request { call, path, metadata, .. } = server.next(end) else { continue };
            let Some(answer) = answers.next() else { break };
            seen.push((path, metadata.find("authorization").is_some()));
            server.respond(call, Ok(answer));
        }
        seen
    });
    (address, thread)
}

fn master(address: SocketAddr) -> Master {
    let dir = std::env::temp_dir().join(format!("hivemind-master-calls-{}-{}", std::process::id(), address.port()));
    std::fs::create_dir_all(&dir).unwrap();
    let key = Arc::new(NodeKey::load_or_make(&dir).unwrap());
    std::fs::remove_dir_all(&dir).unwrap();
    let target = Target::parse(&format!("http://{address}")).unwrap();
    let config = LaneConfig { target, tls: None, proxy: None, user_agent: "test".to_owned(), seed: 1 };
    let introduction = Introduction { node_id: "n".to_owned(), key, join_token: None, labels: Vec::new() };
    Master::new(Lane::new(config).unwrap(), Arc::new(introduction))
}

/// The next answer, good or not.
fn answer(master: &mut Master) -> Result<Reply, String> {
    let end = boottime() + PATIENCE;
    loop {
        match master.next(end) {
            MasterEvent::Reply(_, reply) => return Ok(reply),
            MasterEvent::Failed(_, error, _) => return Err(error.status.message),
            MasterEvent::TimedOut => panic!("no answer"),
            _ => {}
        }
    }
}

fn one(bytes: impl Message, call: impl Fn(&mut Master)) -> Result<Reply, String> {
    let (address, _) = scripted(vec![bytes.encode_to_vec()]);
    let mut master = master(address);
    call(&mut master);
    answer(&mut master)
}

fn heartbeat(master: &mut Master) {
    master.heartbeat(1, &Snapshot::default());
}

#[test]
fn what_a_heartbeat_does_not_say_stays_as_it_was() {
    let reply = one(schema::HeartbeatResponse::default(), heartbeat);
    assert!(matches!(reply, Ok(Reply::Heartbeat { lease: None, trust_percent: None, .. })), "{reply:?}");
    let said = schema::HeartbeatResponse { lease_ms: 5_000, trust_level: 3, ..Default::default() };
    let Ok(Reply::Heartbeat { lease, trust_percent, .. }) = one(said, heartbeat) else { panic!() };
    assert_eq!((lease, trust_percent), (Some(Duration::from_secs(5)), Some(50)));
}

#[test]
fn words_of_a_newer_master_change_nothing_else() {
    let newer = schema::HeartbeatResponse {
        trust_level: 99,
        directives: vec![99, 1, -7, 3],
        cancellations: vec![schema::Cancellation::default()],
        ..Default::default()
    };
    let Ok(Reply::Heartbeat { trust_percent, orders, .. }) = one(newer, heartbeat) else { panic!() };
    assert_eq!(trust_percent, Some(30), "the least, since nobody knows what 99 means");
    assert_eq!(orders.directives, [Directive::Drain, Directive::RegisterAgain]);
    assert!(orders.cancellations.is_empty(), "one without a key names nothing");
}

#[test]
fn a_registration_has_two_steps_and_then_the_token_goes_along() {
    let nonce = schema::NodeRegistrationResponse { nonce: vec![7; 16], ..Default::default() };
    let session = schema::NodeRegistrationResponse {
        session_token: "secret".to_owned(),
        node_id: "n2".to_owned(),
        heartbeat_interval_ms: 1,
        ..Default::default()
    };
    let answers = [nonce.encode_to_vec(), session.encode_to_vec(), Vec::new(), Vec::new()];
    let (address, seen) = scripted(answers.to_vec());
    let mut master = master(address);
    master.register(&Snapshot::default(), None);
    let Ok(Reply::Nonce(nonce)) = answer(&mut master) else { panic!() };
    master.register(&Snapshot::default(), Some(&nonce));
    let Ok(Reply::Registered(registration)) = answer(&mut master) else { panic!() };
    assert_eq!(registration.heartbeat_interval, Duration::from_secs(1), "a master can't make the node spin");
    assert_eq!((registration.lease, registration.trust_percent), (Duration::from_secs(120), 100));
    master.set_session(&registration.node_id, Some(registration.session_token.clone()));
    heartbeat(&mut master);
    answer(&mut master).unwrap();
    master.set_session("n", None);
    heartbeat(&mut master);
    answer(&mut master).unwrap();
    // For this one there is no answer left.
    heartbeat(&mut master);
    while !seen.is_finished() {
        master.next(boottime() + Duration::from_millis(50));
    }
    let seen = seen.join().unwrap();
    assert_eq!(seen.iter().map(|(_, has_token)| *has_token).collect::<Vec<_>>(), [false, false, true, false]);
}

#[test]
fn answers_that_make_no_sense_fail_the_call_and_name_what_is_missing() {
    let register = |master: &mut Master| {
        master.register(&Snapshot::default(), None);
    };
    let reason =
        one(schema::NodeRegistrationResponse { nonce: vec![1; 3], ..Default::default() }, register).unwrap_err();
    assert!(reason.contains("session_token") && reason.contains("nonce of 3 bytes"), "{reason}");
    let (address, _) = scripted(vec![vec![0xff; 40]]);
    let mut broken = master(address);
    heartbeat(&mut broken);
    let reason = answer(&mut broken).unwrap_err();
    assert!(reason.starts_with("the master's answer can't be read"), "{reason}");
}

#[test]
fn calls_are_counted_by_method_with_their_bytes_and_failures() {
    let said = schema::HeartbeatResponse { lease_ms: 5_000, ..Default::default() }.encode_to_vec();
    let (address, _) = scripted(vec![said.clone(), vec![0xff; 40]]);
    let mut master = master(address);
    heartbeat(&mut master);
    assert!(answer(&mut master).is_ok());
    heartbeat(&mut master);
    assert!(answer(&mut master).is_err());
    let counts = master.tally().read().into_iter().find(|counts| counts.method == "Heartbeat").unwrap();
    assert_eq!((counts.calls, counts.failed), (2, 1));
    assert_eq!(counts.received_bytes, said.len() as u64 + 40);
    // Sequence 1 and state 1, two bytes each, are the least that a heartbeat says.
    assert!(counts.sent_bytes >= 2 * 2, "{counts:?}");
}
