//! Our lane against servers of others, plain and over TLS.
#![allow(clippy::unwrap_used)]

mod grpc_support;

use std::collections::BTreeMap;
use std::time::Duration;

use grpc_support::authority::Authority;
use grpc_support::{
    GRPCIO, Kind, PATIENCE, Peer, Served, Way, call, disconnected, for_each_proxied_way, for_each_way, lane_to,
    lane_with, next_answer, request, turn,
};
use hivemind_worker::grpc::{CallError, Code, Metadata, Processed, Request};
use hivemind_worker::rpc::lane::LaneEvent;
use hivemind_worker::sys::clock::boottime;
use serde_json::json;

for_each_way![
    messages_of_all_sizes_come_back,
    answer_above_the_limit_is_refused_and_the_lane_goes_on,
    all_status_codes_and_odd_messages_arrive,
    metadata_goes_both_ways,
    deadline_is_told_and_kept,
    calls_run_beside_each_other_and_can_be_cancelled,
    lane_comes_back_after_the_server,
    draining_server_finishes_what_runs,
];

for_each_proxied_way![
    messages_of_all_sizes_come_back,
    answer_above_the_limit_is_refused_and_the_lane_goes_on,
    all_status_codes_and_odd_messages_arrive,
    metadata_goes_both_ways,
    deadline_is_told_and_kept,
    calls_run_beside_each_other_and_can_be_cancelled,
];

/// The largest message that the contract allows.
const LARGEST: usize = 64 * 1024 * 1024;

fn messages_of_all_sizes_come_back(way: Way) {
    let served = Served::start(way);
    let mut lane = served.lane();
    for size in [0, 1, 5, 16_379, 16_384, 65_535, 65_536, 4 * 1024 * 1024, LARGEST] {
        let body: Vec<u8> = (0..size).map(|i: usize| (i % 253) as u8).collect();
        let echo = Request { max_response: LARGEST, ..request("Echo", body.clone()) };
        let answer = call(&mut lane, echo).unwrap();
        assert!(answer.body == body, "{size}");
    }
}

fn answer_above_the_limit_is_refused_and_the_lane_goes_on(way: Way) {
    let served = Served::start(way);
    let mut lane = served.lane();
    let small = Request { max_response: 1000, ..request("Size", "1001") };
    assert_eq!(call(&mut lane, small.clone()).unwrap_err().status.code, Code::ResourceExhausted);
    let fits = Request { body: b"1000".to_vec(), ..small };
    assert_eq!(call(&mut lane, fits).unwrap().body.len(), 1000);
}

fn all_status_codes_and_odd_messages_arrive(way: Way) {
    let served = Served::start(way);
    let mut lane = served.lane();
    let long = "A long message: 100 % ünïcode. ".repeat(90);
    assert!(long.len() > 3 * 1024 - 300);
    let messages = ["", "plain", "nö 🚀 50%\n", "%41 %zz %", " spaces ", "\r\n\t\u{1}", &long];
    for code in Code::ALL {
        for (head, message) in [false, true].into_iter().flat_map(|head| messages.map(|message| (head, message))) {
            let body = json!({"code": code.number(), "message": message, "head": head}).to_string();
            match call(&mut lane, request("Status", body)) {
                Ok(answer) => assert_eq!((code, answer.body.as_slice()), (Code::Ok, b"fine".as_slice())),
                Err(error) => {
                    assert_eq!((error.status.code, error.status.message.as_str()), (code, message));
                    assert_eq!(error.trailers.find("t-why"), Some(b"asked".as_slice()));
                }
            }
        }
    }
    assert_eq!(call(&mut lane, request("Nothing", "")).unwrap_err().status.code, Code::Unimplemented);
}

fn metadata_goes_both_ways(way: Way) {
    let served = Served::start(way);
    let mut lane = served.lane();
    let mut metadata = Metadata::default();
    metadata.add("x-text", "a, b; c").unwrap();
    metadata.add("x-twice", "1").unwrap();
    metadata.add("x-twice", "2").unwrap();
    metadata.add_secret("x-secret", "s").unwrap();
    metadata.add("x-raw-bin", (0..=255).collect::<Vec<u8>>()).unwrap();
    metadata.add("t-raw-bin", vec![0]).unwrap();
    // Again, since then the fields come out of the compression tables.
    for _ in 0..3 {
        let answer = call(&mut lane, Request { metadata: metadata.clone(), ..request("Echo", "") }).unwrap();
        assert_eq!(answer.metadata.find("x-text"), Some(b"a, b; c".as_slice()));
        assert_eq!(answer.metadata.find("x-secret"), Some(b"s".as_slice()));
        assert_eq!(answer.metadata.find("x-raw-bin"), Some((0..=255).collect::<Vec<u8>>().as_slice()));
        let twice: Vec<_> = answer.metadata.iter().filter(|(n, _)| *n == "x-twice").map(|(_, v)| v).collect();
        assert_eq!(twice, [b"1", b"2"]);
        assert_eq!(answer.trailers.find("t-raw-bin"), Some([0].as_slice()));
    }
}

fn deadline_is_told_and_kept(way: Way) {
    let mut served = Served::start(way);
    let mut lane = served.lane();
    let answer = call(&mut lane, Request { timeout: Duration::from_secs(20), ..request("Remaining", "") }).unwrap();
    let left: f64 = String::from_utf8(answer.body).unwrap().parse().unwrap();
    assert!(left > 0.0 && left <= 20.0, "{left}");
    let error = call(&mut lane, Request { timeout: Duration::from_millis(300), ..request("Hang", "a") }).unwrap_err();
    // tonic's server keeps to the deadline too, may be first, and calls it CANCELLED.
    let is_theirs = way.kind == Kind::Tonic && error.status.code == Code::Cancelled;
    assert!(is_theirs || error.status.code == Code::DeadlineExceeded, "{error:?}");
    assert_eq!(error.processed, Processed::Maybe);
    assert_eq!((served.peer.line(), served.peer.line()), ("HANGING a".into(), "ENDED a".into()));
    assert!(call(&mut lane, request("Echo", "x")).is_ok());
}

fn calls_run_beside_each_other_and_can_be_cancelled(way: Way) {
    let mut served = Served::start(way);
    let mut lane = served.lane();
    let hanging = lane.call(request("Hang", "h"));
    let mut open = BTreeMap::new();
    let requests = (0..20).map(|i| (request("Echo", vec![i; 1000 * usize::from(i)]), 1000 * usize::from(i)));
    for (request, length) in requests.chain([(request("Size", "3000000"), 3_000_000)]) {
        open.insert(lane.call(request.clone()), (request, length));
    }
    while !open.is_empty() {
        let (id, result) = next_answer(&mut lane);
        let (request, length) = open.remove(&id).unwrap();
        match result {
            Ok(answer) => assert_eq!(answer.body.len(), length),
            Err(CallError { processed: Processed::No, .. }) if way.is_proxied => {
                open.insert(lane.call(request.clone()), (request, length));
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(served.peer.line(), "HANGING h");
    lane.cancel(hanging);
    turn(&mut lane);
    assert_eq!(served.peer.line(), "ENDED h");
}

fn lane_comes_back_after_the_server(way: Way) {
    let mut served = Served::start(way);
    let mut lane = served.lane();
    assert!(call(&mut lane, request("Echo", "x")).is_ok());
    served.peer.stop();
    disconnected(&mut lane);
    assert!(!lane.is_connected());
    let early = Request { timeout: Duration::from_millis(50), ..request("Echo", "early") };
    let error = call(&mut lane, early).unwrap_err();
    assert_eq!((error.status.code, error.processed), (Code::DeadlineExceeded, Processed::No));
    served.start_again();
    assert_eq!(call(&mut lane, request("Echo", "again")).unwrap().body, b"again");
}

fn draining_server_finishes_what_runs(way: Way) {
    let mut served = Served::start(way);
    let mut lane = served.lane();
    let hanging = lane.call(Request { timeout: Duration::from_secs(2), ..request("Hang", "d") });
    while !lane.is_connected() {
        lane.next(boottime() + PATIENCE);
    }
    turn(&mut lane);
    assert_eq!(served.peer.line(), "HANGING d");
    served.peer.say("drain");
    assert!(disconnected(&mut lane).contains("server"), "GOAWAY ends the connection for new calls");
    let (id, result) = next_answer(&mut lane);
    assert_eq!((id, result.unwrap_err().status.code), (hanging, Code::DeadlineExceeded));
}

#[test]
fn waker_wakes_from_another_thread() {
    let served = Served::start(GRPCIO);
    let mut lane = served.lane();
    assert!(call(&mut lane, request("Echo", "x")).is_ok());
    let waker = lane.waker();
    let other = std::thread::spawn(move || waker.wake());
    assert!(matches!(lane.next(boottime() + PATIENCE), LaneEvent::Woken));
    other.join().unwrap();
}

#[test]
fn certificates_that_are_not_good_are_refused_with_words() {
    let authority = Authority::new();
    let [cert, key] = authority.issue("localhost");
    let (_peer, port) = Peer::server(&["--tls", &cert, &key]);
    let url = format!("https://localhost:{port}");
    let mut stranger = lane_with(&url, Some(Authority::new().client()));
    assert!(disconnected(&mut stranger).contains("not trusted"));
    let mut late = lane_with(&url, Some(authority.client_that_is_ahead()));
    let reason = disconnected(&mut late);
    assert!(reason.contains("expired") && reason.contains("clock"), "{reason}");
    let mut other_name = lane_with(&format!("https://127.0.0.1:{port}"), Some(authority.client()));
    assert!(disconnected(&mut other_name).contains("another name"));
    for lane in [&mut stranger, &mut late, &mut other_name] {
        let error = call(lane, Request { timeout: Duration::from_millis(100), ..request("Echo", "x") }).unwrap_err();
        assert_eq!((error.status.code, error.processed), (Code::DeadlineExceeded, Processed::No), "no fall-back");
    }
}

#[test]
fn plain_and_tls_do_not_mix() {
    let authority = Authority::new();
    let [cert, key] = authority.issue("localhost");
    let (_tls_peer, tls_port) = Peer::server(&["--tls", &cert, &key]);
    let (_plain_peer, plain_port) = Peer::server(&[]);
    let mut plain_to_tls = lane_to(&format!("http://localhost:{tls_port}"));
    assert!(!disconnected(&mut plain_to_tls).is_empty());
    let mut tls_to_plain = lane_with(&format!("https://localhost:{plain_port}"), Some(authority.client()));
    let reason = disconnected(&mut tls_to_plain);
    assert!(reason.contains("TLS"), "{reason}");
}
