//! What needs time, TLS or whole messages: rows 27, 36 and 37 of the table of attacks, over real sockets on loopback
//! where time or TLS is the matter. More of row 27 against both ends is in `grpc_hostile.rs`.
#![allow(clippy::unwrap_used)]

mod grpc_support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use grpc_support::script::{server, tls_server};
use grpc_support::{PATIENCE, call, disconnected, lane_to, lane_with, request};
use hivemind_worker::grpc::{CallId, Client, ClientConfig, ClientEvent, Code, Metadata, Processed, Request};
use hivemind_worker::h2::{ConnectionError, KeepAlive};
use hivemind_worker::node::snapshot::Snapshot;
use hivemind_worker::rpc::dial::Target;
use hivemind_worker::rpc::key::NodeKey;
use hivemind_worker::rpc::lane::{Lane, LaneConfig};
use hivemind_worker::rpc::master::{Introduction, Master, MasterEvent};
use hivemind_worker::rpc::schema;
use hivemind_worker::rpc::server::{Server, ServerEvent};
use hivemind_worker::sys::clock::boottime;
use prost::Message;

/// Empty SETTINGS.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// RST_STREAM on stream 1 with CANCEL.
const CANCELLED: [u8; 13] = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];
/// The deadline of calls that are meant to meet it.
const SOON: Duration = Duration::from_millis(300);

/// HEADERS with `:status: 200` and the content type, then DATA with the prefix of a message of 1,000 bytes.
fn answer_begins() -> Vec<u8> {
    let block = [&[0x88, 0x0f, 0x10, 16][..], b"application/grpc"].concat();
    let head = [&[0, 0, 20, 1, 4, 0, 0, 0, 1], block.as_slice()].concat();
    [head.as_slice(), &[0, 0, 5, 0, 0, 0, 0, 0, 1], &[0, 0, 0, 3, 0xe8]].concat()
}

/// Reads until these bytes have come; false when the other end has closed before.
fn read_until(socket: &mut TcpStream, wanted: &[u8]) -> bool {
    let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
    while !seen.windows(wanted.len()).any(|w| w == wanted) {
        let Ok(n @ 1..) = socket.read(&mut chunk) else { return false };
        seen.extend_from_slice(&chunk[..n]);
    }
    true
}

/// Sends one of these again and again, slowly, until the client cancels.
fn dribble(mut socket: TcpStream, start: &[u8], unit: &[u8]) {
    socket.set_nodelay(true).unwrap();
    socket.write_all(&SETTINGS).unwrap();
    assert!(read_until(&mut socket, b"\0\0\0\0\x01x"));
    socket.write_all(start).unwrap();
    // What the client says ends the wait at once.
    socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
    let end = Instant::now() + PATIENCE;
    while !seen.windows(CANCELLED.len()).any(|w| w == CANCELLED) {
        assert!(Instant::now() < end, "the call was never cancelled");
        socket.write_all(unit).unwrap();
        if let Ok(n) = socket.read(&mut chunk) {
            assert!(n > 0, "the client closed the connection");
            seen.extend_from_slice(&chunk[..n]);
        }
    }
}

fn meets_deadline(url: &str, body: &[u8]) {
    let mut lane = lane_to(url);
    let started = Instant::now();
    let error = call(&mut lane, Request { timeout: SOON, ..request("X", body) }).unwrap_err();
    assert_eq!((error.status.code, error.processed), (Code::DeadlineExceeded, Processed::Maybe));
    // Whatever else runs beside: late by far less than a peer could wish.
    assert!(started.elapsed() >= SOON && started.elapsed() < SOON * 10, "{:?}", started.elapsed());
    // The reset is written.
    lane.next(boottime() + Duration::from_millis(100));
}

#[test]
fn row_27_data_that_dribbles_meets_the_deadline() {
    let byte = [0, 0, 1, 0, 0, 0, 0, 0, 1, 7];
    let (url, thread) = server(move |socket| dribble(socket, &answer_begins(), &byte));
    meets_deadline(&url, b"x");
    thread.join().unwrap();
}

#[test]
fn row_27_unknown_frames_and_pings_do_not_keep_a_call_alive() {
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let unknown = [0, 0, 1, 0x42, 0, 0, 0, 0, 1, 7];
    let (url, thread) = server(move |socket| dribble(socket, &[], &[&ping[..], &unknown].concat()));
    meets_deadline(&url, b"x");
    thread.join().unwrap();
}

#[test]
fn row_27_a_head_that_dribbles_meets_the_deadline() {
    // HEADERS of a hundred bytes that come one by one, and never all.
    let (url, thread) = server(|mut socket| {
        socket.set_nodelay(true).unwrap();
        socket.write_all(&SETTINGS).unwrap();
        assert!(read_until(&mut socket, b"\0\0\0\0\x01x"));
        socket.write_all(&[0, 0, 100, 1, 4, 0, 0, 0, 1]).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        for _ in 0..99 {
            socket.write_all(&[0]).unwrap();
            if read_until(&mut socket, &CANCELLED) {
                return;
            }
        }
        panic!("the call was never cancelled");
    });
    meets_deadline(&url, b"x");
    thread.join().unwrap();
}

#[test]
fn row_27_silence_after_the_request_meets_the_deadline() {
    let (url, thread) = server(|mut socket| {
        socket.write_all(&SETTINGS).unwrap();
        assert!(read_until(&mut socket, &CANCELLED));
    });
    meets_deadline(&url, b"x");
    thread.join().unwrap();
}

#[test]
fn row_27_a_window_of_zero_meets_the_deadline() {
    let (url, thread) = server(|mut socket| {
        // INITIAL_WINDOW_SIZE 0.
        socket.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]).unwrap();
        assert!(read_until(&mut socket, &CANCELLED));
    });
    meets_deadline(&url, &[7; 100_000]);
    thread.join().unwrap();
}

#[test]
fn row_27_a_server_that_never_reads_meets_the_deadline() {
    // The windows are wide open and nothing is read, so that the request fills the socket; the deadline holds all the
    // same, and what the server says is still read.
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let (url, thread) = server(move |mut socket| {
        let wide = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff];
        socket.write_all(&[&wide[..], &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0x0f, 0, 0, 0]].concat()).unwrap();
        let _ = wait.recv_timeout(PATIENCE);
    });
    let mut lane = lane_to(&url);
    let body = vec![7; 32 * 1024 * 1024];
    let error = call(&mut lane, Request { timeout: SOON, ..request("X", body) }).unwrap_err();
    assert_eq!((error.status.code, error.processed), (Code::DeadlineExceeded, Processed::Maybe));
    assert!(lane.is_connected(), "the connection has not failed");
    drop(done);
    thread.join().unwrap();
}

#[test]
fn row_27_a_half_open_connection_is_found_by_a_ping() {
    // Sans-I/O, since it is about half a minute.
    let seconds = Duration::from_secs;
    let keepalive = Some(KeepAlive { idle: seconds(20), timeout: seconds(10) });
    let config = ClientConfig { scheme: "http", authority: "h".into(), user_agent: "test".into(), keepalive };
    let mut client = Client::new(config, seconds(1_000));
    client.handle_bytes(&SETTINGS, seconds(1_000));
    let call = Request {
        path: "/a/B".into(),
        metadata: Metadata::default(),
        body: b"x".to_vec(),
        timeout: seconds(3_600),
        max_response: 10,
    };
    client.call(CallId(1), call, seconds(1_000));
    let mut out = Vec::new();
    client.poll_transmit(&mut out);
    assert_eq!(client.poll_timeout(), Some(seconds(1_020)));
    client.handle_timeout(seconds(1_020));
    out.clear();
    client.poll_transmit(&mut out);
    assert_eq!(out[..9], [0, 0, 8, 6, 0, 0, 0, 0, 0], "a PING");
    client.handle_timeout(seconds(1_030));
    let ended: Vec<ClientEvent> = std::iter::from_fn(|| client.poll_event()).collect();
    let Some(ClientEvent::Answer { result: Err(error), .. }) = ended.iter().rev().nth(1) else { panic!("{ended:?}") };
    assert_eq!((error.status.code, error.processed), (Code::Unavailable, Processed::Maybe));
    assert!(matches!(ended.last(), Some(ClientEvent::Closed { error: ConnectionError::TimedOut { .. } })));
    // Without a call there is no PING, so that no server counts them.
    assert_eq!(client.poll_timeout(), None);
}

/// A record with an alert of the level warning: close_notify.
const CLOSE_NOTIFY: [u8; 7] = [21, 3, 3, 0, 2, 1, 0];

#[test]
fn row_36_close_notify_in_the_handshake_does_not_make_us_spin() {
    // rustls takes no such alert for an end before keys are agreed on, since anybody can send it: what follows counts.
    for (what, count, closes) in [("silence", 1, false), ("an end", 1, true), ("more of them", 100_000, false)] {
        let (url, config, thread) = tls_server(&[b"h2"], rustls::ALL_VERSIONS, move |mut stream| {
            // More than the client takes are refused by the socket.
            let _ = stream.sock.write_all(&CLOSE_NOTIFY.repeat(count));
            if closes {
                stream.sock.shutdown(Shutdown::Write).unwrap();
            }
            let mut chunk = [0; 4096];
            while stream.sock.read(&mut chunk).is_ok_and(|n| n > 0) {}
        });
        let (started, cpu) = (Instant::now(), cpu_time());
        let mut lane = lane_with(&url, Some(config));
        if what == "silence" {
            let error = call(&mut lane, Request { timeout: SOON, ..request("X", "x") }).unwrap_err();
            assert_eq!((error.status.code, error.processed), (Code::DeadlineExceeded, Processed::No));
        } else {
            let reason = disconnected(&mut lane);
            assert!(reason.contains("localhost"), "{what}: {reason}");
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{what}: {:?}", started.elapsed());
        assert!(cpu_time() - cpu < Duration::from_millis(200), "{what}: it spins");
        drop(lane);
        thread.join().unwrap();
    }
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
    let version = lock.split("name = \"rustls\"\nversion = \"").nth(1).unwrap().split('"').next().unwrap();
    let parts: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
    assert!(parts >= vec![0, 23, 5], "{version}");
}

/// Processor time of this thread.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn row_36_both_versions_of_tls_need_alpn() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for alpn in [&[][..], &[&b"h2"[..]]] {
            let (url, config, thread) = tls_server(alpn, &[version], |mut stream| {
                let _ = stream.write_all(&SETTINGS).and_then(|()| stream.flush());
                let mut chunk = [0; 4096];
                while stream.read(&mut chunk).is_ok_and(|n| n > 0) {}
            });
            let mut lane = lane_with(&url, Some(config));
            if alpn.is_empty() {
                let reason = disconnected(&mut lane);
                assert!(reason.contains("ALPN"), "{reason}");
            } else {
                let error = call(&mut lane, Request { timeout: SOON * 3, ..request("X", "x") }).unwrap_err();
                assert_eq!(error.status.code, Code::DeadlineExceeded);
                assert!(lane.is_connected(), "HTTP/2 is agreed on");
            }
            drop(lane);
            thread.join().unwrap();
        }
    }
}

#[test]
fn row_36_an_answer_that_tls_cuts_is_no_answer() {
    // An end without close_notify, inside an answer and after a body without trailers.
    for last in [Vec::new(), [&[0, 0, 0xe8, 0, 0, 0, 0, 0, 1][..], &[7; 232]].concat()] {
        let (url, config, thread) = tls_server(&[b"h2"], rustls::ALL_VERSIONS, move |mut stream| {
            stream.write_all(&SETTINGS).unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"\0\0\0\0\x01x") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                seen.push(byte[0]);
            }
            stream.write_all(&[answer_begins(), last].concat()).unwrap();
            stream.flush().unwrap();
            stream.sock.shutdown(Shutdown::Write).unwrap();
            let mut chunk = [0; 4096];
            while stream.sock.read(&mut chunk).is_ok_and(|n| n > 0) {}
        });
        let mut lane = lane_with(&url, Some(config));
        let error = call(&mut lane, request("X", "x")).unwrap_err();
        assert_eq!((error.status.code, error.processed), (Code::Unavailable, Processed::Maybe));
        let reason = disconnected(&mut lane);
        assert!(reason.contains("cut"), "{reason}");
        thread.join().unwrap();
    }
}

/// A master that answers one call with these bytes.
fn answering(bytes: Vec<u8>) -> (SocketAddr, JoinHandle<()>) {
    let mut server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = server.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let end = boottime() + PATIENCE;
        while boottime() < end {
            if let ServerEvent::Request { call, .. } = server.next(end) {
                server.respond(call, Ok(bytes));
                break;
            }
        }
        // The answer leaves.
        while server.open_calls() > 0 && boottime() < end {
            server.next(boottime());
        }
    });
    (address, thread)
}

/// What a heartbeat comes to when these bytes are its answer.
fn heartbeat_answered(bytes: &[u8]) -> Result<(), Code> {
    let (address, thread) = answering(bytes.to_vec());
    let folder = grpc_support::Folder::new();
    let key = Arc::new(NodeKey::load_or_make(&folder.0).unwrap());
    let target = Target::parse(&format!("http://{address}")).unwrap();
    let lane =
        Lane::new(LaneConfig { target, tls: None, proxy: None, user_agent: "test".to_owned(), seed: 1 }).unwrap();
    let introduction = Introduction { node_id: "n".to_owned(), key, join_token: None, labels: Vec::new() };
    let mut master = Master::new(lane, Arc::new(introduction));
    master.heartbeat(1, &Snapshot::default());
    let end = boottime() + PATIENCE;
    let result = loop {
        match master.next(end) {
            MasterEvent::Reply(..) => break Ok(()),
            MasterEvent::Failed(_, error, _) => break Err(error.status.code),
            MasterEvent::TimedOut => panic!("no answer"),
            _ => {}
        }
    };
    thread.join().unwrap();
    result
}

/// The key of field 1,000, which no message has, with this wire type.
fn unknown_field(wire_type: u64) -> Vec<u8> {
    let mut key = Vec::new();
    prost::encoding::encode_varint(1_000 << 3 | wire_type, &mut key);
    key
}

#[test]
fn row_37_protobuf_that_is_broken_fails_the_call() {
    let (open, close) = (unknown_field(3), unknown_field(4));
    let refused: Vec<(&str, Vec<u8>)> = vec![
        ("deep groups", [open.repeat(100_000), close.repeat(100_000)].concat()),
        ("a group without end", open.clone()),
        ("an end without group", close.clone()),
        ("a length beyond the answer", [&unknown_field(2)[..], &[0xff, 0xff, 0xff, 0xff, 0x0f, 1]].concat()),
        ("a length of 2^64 - 1", [&unknown_field(2)[..], &[0xff; 9], &[0x01]].concat()),
        ("a number of eleven bytes", [&unknown_field(0)[..], &[0x80; 10], &[0x01]].concat()),
        ("a number above 2^64", [&unknown_field(0)[..], &[0xff; 9], &[0x7f]].concat()),
        ("a truncated number", [&unknown_field(0)[..], &[0x80]].concat()),
        ("wire type 6", unknown_field(6)),
        ("field 0", vec![0x00, 0x00]),
        ("nothing that can be read", vec![0xff; 1_000]),
    ];
    for (what, bytes) in refused {
        assert_eq!(heartbeat_answered(&bytes), Err(Code::Internal), "{what}");
    }
    let unknown = [
        [unknown_field(0), vec![0xff; 9], vec![0x01]].concat(),
        [unknown_field(1), vec![7; 8]].concat(),
        [unknown_field(2), vec![3, 1, 2, 3]].concat(),
        [unknown_field(5), vec![7; 4]].concat(),
        [open.repeat(20), close.repeat(20)].concat(),
    ];
    assert_eq!(heartbeat_answered(&unknown.concat()), Ok(()), "unknown fields are passed over");
}

#[test]
fn row_37_text_that_is_no_utf_8_is_refused() {
    let good = schema::NodeStatusResponse::default().encode_to_vec();
    assert!(schema::NodeStatusResponse::decode(good.as_slice()).is_ok());
    // Field 2 of an assignment is text.
    let text = |bytes: &[u8]| [&[0x12, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    assert!(schema::Assignment::decode(text("ü".as_bytes()).as_slice()).is_ok());
    for broken in [&[0xff][..], &[0xc3], &[0xed, 0xa0, 0x80], &[0xc0, 0x80]] {
        assert!(schema::Assignment::decode(text(broken).as_slice()).is_err(), "{broken:x?}");
    }
}
