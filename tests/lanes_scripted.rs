//! The threads `session` and `submit` against masters that behave oddly: no stall, no busy loop.
#![allow(clippy::unwrap_used)]

mod grpc_support;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use hivemind_worker::coordinator::Event;
use hivemind_worker::grpc::{Code, Status};
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{EventKind, Phase};
use hivemind_worker::node::snapshot::Snapshot;
use hivemind_worker::node::spec::{SpecDefaults, TaskSpec};
use hivemind_worker::rpc::key::NodeKey;
use hivemind_worker::rpc::master::{Introduction, Master};
use hivemind_worker::rpc::schema::task_result_response::Answer;
use hivemind_worker::rpc::schema::{
    HeartbeatResponse, NodeRegistrationRequest, NodeRegistrationResponse, NodeStatusResponse, TaskAssignmentRequest,
    TaskResultResponse,
};
use hivemind_worker::rpc::server::{Server, ServerCallId, ServerEvent};
use hivemind_worker::session::{self, Session, SessionThread, SessionToken};
use hivemind_worker::store::{Store, StoreConfig, StoreEvent, Write};
use hivemind_worker::submit::{self, SubmitThread};
use hivemind_worker::sys::clock::boottime;
use hivemind_worker::sys::watch::Watch;
use prost::Message;

use grpc_support::{Folder, PATIENCE, lane_to};

fn server() -> (Server, String) {
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    (server, url)
}

/// The next request until then: its call, the last word of its path, and its message.
fn request(server: &mut Server, until: Duration) -> Option<(ServerCallId, String, Vec<u8>)> {
    loop {
        match server.next(until) {
            ServerEvent::Request { call, path, body, .. } => {
                return Some((call, path.rsplit('/').next().unwrap().to_owned(), body));
            }
            ServerEvent::TimedOut => return None,
            _ => {}
        }
    }
}

fn unavailable() -> Result<Vec<u8>, Status> {
    Err(Status::new(Code::Unavailable, "no master behind this proxy"))
}

/// What a plain master says; `None` for a poll.
fn plain_answer(method: &str, body: &[u8], token_life_ms: u64) -> Option<Vec<u8>> {
    Some(match method {
        "RegisterNode" => {
            let request = NodeRegistrationRequest::decode(body).unwrap();
            let mut answer = NodeRegistrationResponse { nonce: vec![1; 16], ..Default::default() };
            if request.proof.is_some() {
                answer.node_id = request.node_id;
                answer.session_token = "token".to_owned();
                answer.session_token_life_ms = token_life_ms;
            }
            answer.encode_to_vec()
        }
        "Heartbeat" => HeartbeatResponse::default().encode_to_vec(),
        "ReportNodeStatus" => NodeStatusResponse::default().encode_to_vec(),
        _ => return None,
    })
}

fn introduction(folder: &Folder) -> Arc<Introduction> {
    let key = Arc::new(NodeKey::load_or_make(&folder.0).unwrap());
    Arc::new(Introduction { node_id: "n".to_owned(), key, join_token: None, labels: Vec::new() })
}

struct Running {
    orders: Sender<session::Order>,
    wake: Box<dyn Fn()>,
    thread: std::thread::JoinHandle<()>,
    events: Receiver<Event>,
    _folder: Folder,
}

fn start_session(url: &str) -> Running {
    let folder = Folder::new();
    let lane = lane_to(url);
    let waker = lane.waker();
    let (orders, inbox) = bounded(16);
    let (events, heard) = unbounded();
    let session = SessionThread::new(session::Parts {
        master: Master::new(lane, introduction(&folder)),
        snapshot: Watch::new(Snapshot::default()),
        events,
        orders: inbox,
        session: Watch::new(Session::default()),
        session_changed: Box::new(|| {}),
        report_interval: Duration::from_secs(30),
    });
    let thread = std::thread::spawn(|| session.run());
    Running { orders, wake: Box::new(move || waker.wake()), thread, events: heard, _folder: folder }
}

impl Running {
    fn stop(self) {
        self.orders.send(session::Order::Close).unwrap();
        (self.wake)();
        self.thread.join().unwrap();
    }
}

#[test]
fn after_an_answer_that_was_too_large_the_next_poll_says_so() {
    let (mut server, url) = server();
    let session = start_session(&url);
    let until = boottime() + PATIENCE;
    let mut said = Vec::new();
    while said.len() < 3 {
        let (call, method, body) = request(&mut server, until).expect("no poll came");
        match plain_answer(&method, &body, 3_600_000) {
            Some(answer) => server.respond(call, Ok(answer)),
            None => {
                said.push(TaskAssignmentRequest::decode(body.as_slice()).unwrap().last_answer_too_large);
                // One byte over the limit of the contract, then an answer without work.
                server.respond(call, Ok(vec![0; if said.len() == 1 { (32 << 20) + 1 } else { 0 }]));
            }
        }
    }
    assert_eq!(said, [false, true, false]);
    session.stop();
}

#[test]
fn a_poll_that_fails_during_a_registration_is_made_again() {
    let (mut server, url) = server();
    let session = start_session(&url);
    let until = boottime() + PATIENCE;
    let mut open_poll = None;
    // The token is renewed after two seconds. The poll fails before the first step of that is answered.
    loop {
        let (call, method, body) = request(&mut server, until).expect("no renewal came");
        if let (Some(poll), "RegisterNode") = (open_poll, method.as_str()) {
            server.respond(poll, unavailable());
            server.respond(call, Ok(plain_answer(&method, &body, 3_600_000).unwrap()));
            break;
        }
        match plain_answer(&method, &body, 1_000) {
            Some(answer) => server.respond(call, Ok(answer)),
            None => open_poll = Some(call),
        }
    }
    let first = 1;
    loop {
        let (call, method, body) = request(&mut server, until).expect("no second poll came");
        match plain_answer(&method, &body, 3_600_000) {
            Some(answer) => server.respond(call, Ok(answer)),
            None => {
                assert!(TaskAssignmentRequest::decode(body.as_slice()).unwrap().poll_id > first);
                break;
            }
        }
    }
    session.stop();
}

#[test]
fn a_node_whose_clock_is_years_off_registers_works_and_says_so() {
    let (mut server, url) = server();
    let session = start_session(&url);
    let until = boottime() + PATIENCE;
    // The master lives in 2001: to it the clock here is far ahead.
    loop {
        let (call, method, body) = request(&mut server, until).expect("no poll came");
        let Some(answer) = plain_answer(&method, &body, 3_600_000) else { break };
        let answer = match method.as_str() {
            "RegisterNode" => {
                let answer = NodeRegistrationResponse::decode(answer.as_slice()).unwrap();
                NodeRegistrationResponse { server_time_ms: 1_000_000_000_000, ..answer }.encode_to_vec()
            }
            _ => answer,
        };
        server.respond(call, Ok(answer));
    }
    let told = session.events.try_iter().any(|event| match event {
        Event::Alert(words) => words.contains("days ahead of the master's"),
        _ => false,
    });
    assert!(told);
    session.stop();
}

#[test]
fn polls_that_a_proxy_refuses_are_paced() {
    let (mut server, url) = server();
    let session = start_session(&url);
    let mut polls = 0;
    let until = boottime() + Duration::from_secs(3);
    while let Some((call, method, body)) = request(&mut server, until) {
        let answer = plain_answer(&method, &body, 3_600_000).map_or_else(unavailable, Ok);
        polls += u32::from(answer.is_err());
        server.respond(call, answer);
    }
    assert!((1..=3).contains(&polls), "{polls} polls in three seconds");
    session.stop();
}

#[test]
fn registrations_with_a_master_that_forgets_are_paced() {
    let (mut server, url) = server();
    let session = start_session(&url);
    let mut registrations = 0;
    let until = boottime() + Duration::from_secs(3);
    while let Some((call, method, body)) = request(&mut server, until) {
        if method == "RegisterNode" {
            registrations += 1;
            server.respond(call, Ok(plain_answer(&method, &body, 3_600_000).unwrap()));
        } else {
            server.respond(call, Err(Status::new(Code::Unauthenticated, "register first")));
        }
    }
    // Each has two steps.
    assert!((2..=4).contains(&registrations), "{registrations} steps in three seconds");
    session.stop();
}

#[test]
fn an_answer_that_brings_the_record_no_further_is_not_asked_for_again_at_once() {
    let folder = Folder::new();
    let (sender, durable) = unbounded();
    let notify = Box::new(move |event| sender.send(event).unwrap_or_default());
    let (store, _) = Store::open(&folder.0, StoreConfig::default(), notify).unwrap();
    let offer = Offer { task: "t".to_owned(), attempt: 1, ..Offer::default() };
    let spec = TaskSpec::check(&offer, &SpecDefaults::default()).unwrap();
    let kind = EventKind::Phase(Phase::Received, String::new());
    let event = Write::Event { key: spec.key.clone(), time_ms: 1, kind };
    store.commit(1, vec![Write::Take { spec: Box::new(spec), inputs: Vec::new() }, event]);
    assert_eq!(durable.recv_timeout(PATIENCE).unwrap(), StoreEvent::Durable(1));

    let (mut server, url) = server();
    let lane = lane_to(&url);
    let waker = lane.waker();
    let (orders, inbox) = bounded(1);
    let (session_orders, _session_inbox) = bounded(16);
    let token = Some(SessionToken("token".to_owned()));
    let submit = SubmitThread::new(submit::Parts {
        master: Master::new(lane, introduction(&folder)),
        outbox: store.outbox(),
        session: Watch::new(Session { node_id: "n".to_owned(), token }),
        orders: inbox,
        session_orders,
        wake_session: Box::new(|| {}),
    });
    let thread = std::thread::spawn(|| submit.run());
    let mut pieces = 0;
    let until = boottime() + Duration::from_millis(2_500);
    while let Some((call, _, _)) = request(&mut server, until) {
        pieces += 1;
        let answer = TaskResultResponse { answer: Some(Answer::EventDurable(0)) };
        server.respond(call, Ok(answer.encode_to_vec()));
    }
    assert!((1..=3).contains(&pieces), "{pieces} pieces in two and a half seconds");
    orders.send(submit::Order::Close).unwrap();
    waker.wake();
    thread.join().unwrap();
    store.close();
}
