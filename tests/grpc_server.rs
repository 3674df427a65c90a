//! Our server against a grpcio client, and against our own lane where grpcio cannot be made to do something.
#![allow(clippy::unwrap_used)]

mod grpc_support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use grpc_support::{PATIENCE, Peer, call, lane_to, request};
use hivemind_worker::grpc::{Code, Metadata, Status};
use hivemind_worker::rpc::Waker;
use hivemind_worker::rpc::server::{Server, ServerEvent};
use hivemind_worker::sys::clock::boottime;
use serde_json::{Value, json};

/// What the server's thread saw.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Request { path: String, length: usize, metadata: Metadata },
    Cancelled,
}

/// Our server on a thread, answering by the method's name.
struct Running {
    address: SocketAddr,
    seen: Receiver<Seen>,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start() -> Running {
        let mut server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, waker) = (server.local_addr().unwrap(), server.waker());
        let (sender, seen) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match server.next(boottime() + PATIENCE) {
                    ServerEvent::Request { call, path, metadata, body, .. } => {
                        let _ = sender.send(Seen::Request { path: path.clone(), length: body.len(), metadata });
                        if let Some(answer) = answer(&path, body) {
                            server.respond(call, answer);
                        }
                    }
                    ServerEvent::Cancelled(_) => drop(sender.send(Seen::Cancelled)),
                    ServerEvent::Woken | ServerEvent::TimedOut => {}
                }
            }
        });
        Running { address, seen, stop, waker, thread: Some(thread) }
    }

    fn next(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn answer(path: &str, body: Vec<u8>) -> Option<Result<Vec<u8>, Status>> {
    match path {
        "/test.Peer/Echo" => Some(Ok(body)),
        "/test.Peer/Size" => Some(Ok(vec![0x5a; std::str::from_utf8(&body).unwrap().parse().unwrap()])),
        "/test.Peer/Status" => {
            let code = Code::ALL[usize::from(body[0])];
            let message = String::from_utf8(body[1..].to_vec()).unwrap();
            Some(if code == Code::Ok { Ok(vec![]) } else { Err(Status::new(code, message)) })
        }
        "/test.Peer/Hang" => None,
        _ => Some(Err(Status::new(Code::Unimplemented, "no such method"))),
    }
}

struct Client(Peer);

impl Client {
    fn to(server: &Running) -> Client {
        Client(Peer::start(&["client", &server.address.to_string()]))
    }

    fn start(&mut self, id: usize, method: &str, mut more: Value) {
        more["do"] = "start".into();
        more["id"] = id.into();
        more["method"] = format!("/test.Peer/{method}").into();
        self.0.say(&more.to_string());
    }

    fn result(&mut self, id: usize) -> Value {
        self.0.say(&json!({"do": "result", "id": id}).to_string());
        serde_json::from_str(&self.0.line()).unwrap()
    }

    fn call(&mut self, method: &str, more: Value) -> Value {
        self.start(0, method, more);
        self.result(0)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

#[test]
fn messages_of_all_sizes_come_back() {
    let server = Running::start();
    let mut client = Client::to(&server);
    for size in [0, 1, 16_379, 65_536, 4 * 1024 * 1024 - 1, 4 * 1024 * 1024] {
        let got = client.call("Echo", json!({ "size": size }));
        assert_eq!(got, json!({"code": 0, "len": size, "sha256": sha256(&vec![0x5a; size])}));
    }
    assert_eq!(client.call("Echo", json!({"size": 4 * 1024 * 1024 + 1}))["code"], 8);
    assert_eq!(client.call("Size", json!({"hex": hex(b"9000000")}))["len"], 9_000_000);
}

#[test]
fn all_status_codes_and_odd_messages_arrive() {
    let server = Running::start();
    let mut client = Client::to(&server);
    for code in 0..=16u8 {
        for message in ["", "plain", "nö 🚀 50%\n", " spaces "] {
            let got = client.call("Status", json!({"hex": hex(&[&[code], message.as_bytes()].concat())}));
            assert_eq!(got["code"], code);
            if code > 0 {
                assert_eq!(got["message"], message);
            }
        }
    }
    assert_eq!(client.call("Nothing", json!({}))["code"], 12);
    let long = client.call("Status", json!({"hex": hex(&[&[13], "é".repeat(9000).as_bytes()].concat())}));
    assert_eq!(long["code"], 13, "a long message is cut, not the status");
}

#[test]
fn metadata_arrives() {
    let server = Running::start();
    let mut client = Client::to(&server);
    let metadata = json!([["x-text", "a b"], ["x-raw-bin", "00ff"], ["authorization", "Bearer t"]]);
    client.call("Echo", json!({ "metadata": metadata }));
    let Seen::Request { path, length, metadata } = server.next() else { panic!("no request") };
    assert_eq!((path.as_str(), length), ("/test.Peer/Echo", 0));
    assert_eq!(metadata.find("x-text"), Some(b"a b".as_slice()));
    assert_eq!(metadata.find("x-raw-bin"), Some([0, 255].as_slice()));
    assert_eq!(metadata.find("authorization"), Some(b"Bearer t".as_slice()));
}

#[test]
fn calls_run_beside_each_other() {
    let server = Running::start();
    let mut client = Client::to(&server);
    client.start(100, "Hang", json!({}));
    // More than the server's limit of streams.
    for i in 0..50 {
        client.start(i, "Echo", json!({ "size": i * 1000 }));
    }
    for i in (0..50).rev() {
        assert_eq!(client.result(i)["len"], i * 1000);
    }
}

#[test]
fn cancelled_and_late_calls_are_told() {
    let server = Running::start();
    let mut client = Client::to(&server);
    client.start(1, "Hang", json!({}));
    assert!(matches!(server.next(), Seen::Request { .. }));
    client.0.say(&json!({"do": "cancel", "id": 1}).to_string());
    assert_eq!(server.next(), Seen::Cancelled);
    assert_eq!(client.call("Hang", json!({"timeout": 0.3}))["code"], 4);
    assert!(matches!(server.next(), Seen::Request { .. }));
    assert_eq!(server.next(), Seen::Cancelled);
    client.start(2, "Hang", json!({}));
    assert!(matches!(server.next(), Seen::Request { .. }));
    client.0.stop();
    assert_eq!(server.next(), Seen::Cancelled, "the client has gone");
}

#[test]
fn our_lane_and_our_server_agree() {
    let server = Running::start();
    let mut lane = lane_to(&format!("http://{}", server.address));
    let body = vec![3; 4 * 1024 * 1024];
    assert!(call(&mut lane, request("Echo", body.clone())).unwrap().body == body);
    let mut late = request("Hang", "");
    late.timeout = Duration::from_millis(100);
    assert_eq!(call(&mut lane, late).unwrap_err().status.code, Code::DeadlineExceeded);
}
