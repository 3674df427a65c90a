//! Our server against clients of others, and against our own lane where they cannot be made to do something.
#![allow(clippy::unwrap_used)]

mod grpc_support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use grpc_support::authority::Authority;
use grpc_support::nginx::Nginx;
use grpc_support::{Kind, PATIENCE, Peer, TONIC, Way, call, for_each_way, lane_to, request};
use hivemind_worker::grpc::{Code, Metadata, Reply, ServerConfig, Status};
use hivemind_worker::rpc::Waker;
use hivemind_worker::rpc::server::{Server, ServerEvent};
use hivemind_worker::rpc::tls;
use hivemind_worker::sys::clock::boottime;
use serde_json::{Value, json};

for_each_way![
    messages_of_all_sizes_come_back,
    nginx_brings_calls_and_answers,
    message_above_the_limit_is_refused,
    all_status_codes_and_odd_messages_arrive,
    metadata_goes_both_ways,
    calls_run_beside_each_other,
    cancelled_and_late_calls_are_told,
    client_comes_back_after_our_server,
    closing_server_finishes_what_runs,
];

/// What the server's thread saw.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Request { path: String, length: usize, metadata: Metadata },
    Cancelled,
}

/// Our server on a thread, answering by the method's name.
struct Running {
    address: SocketAddr,
    /// With TLS.
    authority: Option<Authority>,
    seen: Receiver<Seen>,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(way: Way) -> Running {
        Running::with(way, ServerConfig::default())
    }

    fn with(way: Way, config: ServerConfig) -> Running {
        Running::at("127.0.0.1:0".parse().unwrap(), config, way.is_tls.then(Authority::new))
    }

    fn at(address: SocketAddr, config: ServerConfig, authority: Option<Authority>) -> Running {
        let mut server = match &authority {
            Some(authority) => {
                let tls = tls::server_config(&authority.identity("localhost"), None).unwrap();
                Server::bind_tls(address, config, tls).unwrap()
            }
            None => Server::bind_with(address, config).unwrap(),
        };
        let (address, waker) = (server.local_addr().unwrap(), server.waker());
        let (sender, seen) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match server.next(boottime() + PATIENCE) {
                    ServerEvent::Request { call, path, metadata, body, .. } => {
                        let length = body.len();
                        match path.as_str() {
                            "/test.Peer/Hold" => held.push(call),
                            "/test.Peer/Release" => {
                                held.drain(..).for_each(|c| server.respond(c, Ok(b"held".to_vec())))
                            }
                            "/test.Peer/Close" => server.close(),
                            _ => {}
                        }
                        if let Some(reply) = reply(&path, &metadata, body) {
                            server.respond(call, reply);
                        }
                        let _ = sender.send(Seen::Request { path, length, metadata });
                    }
                    ServerEvent::Cancelled(_) => drop(sender.send(Seen::Cancelled)),
                    ServerEvent::Woken | ServerEvent::TimedOut => {}
                }
            }
        });
        Running { address, authority, seen, stop, waker, thread: Some(thread) }
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

fn reply(path: &str, metadata: &Metadata, body: Vec<u8>) -> Option<Reply> {
    let result = match path {
        "/test.Peer/Echo" => {
            let picked = |prefix| {
                let mut picked = Metadata::default();
                for (name, value) in metadata.iter().filter(|(name, _)| name.starts_with(prefix)) {
                    picked.add(name, value).unwrap();
                }
                picked
            };
            return Some(Reply { metadata: picked("x-"), result: Ok(body), trailers: picked("t-") });
        }
        "/test.Peer/Size" => Ok(vec![0x5a; std::str::from_utf8(&body).unwrap().parse().unwrap()]),
        "/test.Peer/Status" => {
            let code = Code::ALL[usize::from(body[0])];
            let message = String::from_utf8(body[1..].to_vec()).unwrap();
            if code == Code::Ok { Ok(vec![]) } else { Err(Status::new(code, message)) }
        }
        "/test.Peer/Length" => Ok(body.len().to_string().into()),
        "/test.Peer/Release" | "/test.Peer/Close" => Ok(body),
        "/test.Peer/Hang" | "/test.Peer/Hold" => return None,
        _ => Err(Status::new(Code::Unimplemented, "no such method")),
    };
    Some(result.into())
}

struct Client(Peer);

impl Client {
    fn to(server: &Running, way: Way) -> Client {
        Client::at(way, server.address.port(), server.authority.as_ref())
    }

    fn at(way: Way, port: u16, authority: Option<&Authority>) -> Client {
        Client(match authority {
            Some(authority) => way.kind.start(&["client", &format!("https://localhost:{port}"), "--ca", &authority.ca]),
            None => way.kind.start(&["client", &format!("http://127.0.0.1:{port}")]),
        })
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

    /// Calls until it is answered. Until a client has dealt with the end of its connection it may lose calls to it (tonic
    /// then says CANCELLED or UNKNOWN), and it has a back-off of its own.
    fn insist(&mut self, method: &str) -> Value {
        let until = boottime() + PATIENCE;
        loop {
            let got = self.call(method, json!({ "size": 2 }));
            if got["code"] == 0 {
                return got;
            }
            eprintln!("{got}");
            assert!(boottime() < until, "{got}");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

fn messages_of_all_sizes_come_back(way: Way) {
    const LARGEST: usize = 64 * 1024 * 1024;
    let server = Running::with(way, ServerConfig { max_request: LARGEST, ..ServerConfig::default() });
    let mut client = Client::to(&server, way);
    for size in [0, 1, 16_379, 16_384, 65_535, 65_536, 4 * 1024 * 1024, LARGEST] {
        let got = client.call("Echo", json!({ "size": size }));
        assert_eq!(got, json!({"code": 0, "len": size, "sha256": sha256(&vec![0x5a; size])}));
    }
    assert_eq!(client.call("Size", json!({"hex": hex(b"67108865")}))["len"], LARGEST + 1);
}

fn nginx_brings_calls_and_answers(way: Way) {
    let server = Running::start(Way { is_tls: false, ..way });
    let nginx = Nginx::start(server.address.port(), 1_000);
    let (port, authority) = match way.is_tls {
        true => (nginx.tls_port, Some(&nginx.authority)),
        false => (nginx.port, None),
    };
    let mut client = Client::at(way, port, authority);
    for size in [0, 1, 65_536, 4 * 1024 * 1024] {
        let got = client.call("Echo", json!({ "size": size }));
        assert_eq!(got, json!({"code": 0, "len": size, "sha256": sha256(&vec![0x5a; size])}));
    }
    let status = [&[9][..], "nö: 100 %".as_bytes()].concat();
    let got = client.call("Status", json!({"hex": hex(&status)}));
    assert_eq!((&got["code"], &got["message"]), (&json!(9), &json!("nö: 100 %")));
    for id in 0..100 {
        client.start(id, "Size", json!({"hex": hex(id.to_string().as_bytes())}));
    }
    for id in 0..100 {
        assert_eq!(client.result(id)["len"], id);
    }
}

fn message_above_the_limit_is_refused(way: Way) {
    let server = Running::start(way);
    let mut client = Client::to(&server, way);
    for (size, code) in [(4 * 1024 * 1024, 0), (4 * 1024 * 1024 + 1, 8), (9 * 1024 * 1024, 8), (7, 0)] {
        assert_eq!(client.call("Length", json!({ "size": size }))["code"], code, "{size}");
    }
}

fn all_status_codes_and_odd_messages_arrive(way: Way) {
    let server = Running::start(way);
    let mut client = Client::to(&server, way);
    let long = "A long message: 100 % of it. ".repeat(106);
    assert!(long.len() > 3 * 1024);
    for code in 0..=16u8 {
        for message in ["", "plain", "nö 🚀 50%\n", " spaces ", "%41 %zz %", "\r\n\t\u{1}", &long] {
            let got = client.call("Status", json!({"hex": hex(&[&[code], message.as_bytes()].concat())}));
            assert_eq!(got["code"], code);
            if code > 0 {
                assert_eq!(got["message"], message);
            }
        }
    }
    assert_eq!(client.call("Nothing", json!({}))["code"], 12);
    let longer = client.call("Status", json!({"hex": hex(&[&[13], "é".repeat(9000).as_bytes()].concat())}));
    assert_eq!(longer["code"], 13, "a long message is cut, not the status");
}

fn metadata_goes_both_ways(way: Way) {
    let server = Running::start(way);
    let mut client = Client::to(&server, way);
    let (raw, all) = (hex(&[0, 255]), hex(&(0..=255).collect::<Vec<u8>>()));
    let sent = [
        ["x-text", "a b"],
        ["x-twice", "1"],
        ["x-twice", "2"],
        ["x-raw-bin", &raw],
        ["x-raw-bin", &all],
        ["authorization", "Bearer t"],
        ["t-end", "e"],
        ["t-end-bin", &all],
    ];
    // Again, since then the fields come out of the compression tables.
    for _ in 0..3 {
        client.start(0, "Echo", json!({ "metadata": sent }));
        let Seen::Request { path, length, metadata } = server.next() else { panic!("no request") };
        assert_eq!((path.as_str(), length), ("/test.Peer/Echo", 0));
        let values = |key| metadata.iter().filter(|(name, _)| *name == key).map(|(_, v)| hex(v)).collect::<Vec<_>>();
        assert_eq!(values("x-twice"), [hex(b"1"), hex(b"2")]);
        assert_eq!(values("x-raw-bin"), [raw.as_str(), &all]);
        assert_eq!(metadata.find("x-text"), Some(b"a b".as_slice()));
        assert_eq!(metadata.find("authorization"), Some(b"Bearer t".as_slice()));
        client.0.say(&json!({"do": "result", "id": 0, "metadata": true}).to_string());
        let got: Value = serde_json::from_str(&client.0.line()).unwrap();
        let seen = |part: &str, prefix: &str| {
            let pairs = got[part].as_array().unwrap().iter().cloned().map(|p| serde_json::from_value(p).unwrap());
            let mut pairs: Vec<[String; 2]> = pairs.filter(|p: &[String; 2]| p[0].starts_with(prefix)).collect();
            // Only values of one key have an order.
            pairs.sort_by(|a, b| a[0].cmp(&b[0]));
            pairs
        };
        let mut head = sent[..5].to_vec();
        head.sort_by(|a, b| a[0].cmp(b[0]));
        assert_eq!(seen("head", "x-"), head);
        assert_eq!(seen("trailers", "t-"), sent[6..]);
    }
}

fn calls_run_beside_each_other(way: Way) {
    let server = Running::start(way);
    let mut client = Client::to(&server, way);
    if way.kind == Kind::Tonic {
        // Calls beyond a limit that has not arrived yet are refused, and unlike grpcio it does not repeat them.
        client.call("Echo", json!({}));
    }
    client.start(100, "Hang", json!({}));
    // More than the server's limit of streams.
    for i in 0..50 {
        client.start(i, "Echo", json!({ "size": i * 1000 }));
    }
    for i in (0..50).rev() {
        let got = client.result(i);
        assert_eq!(got["len"], i * 1000, "{got}");
    }
}

fn cancelled_and_late_calls_are_told(way: Way) {
    let server = Running::start(way);
    let mut client = Client::to(&server, way);
    client.start(1, "Hang", json!({}));
    assert!(matches!(server.next(), Seen::Request { .. }));
    client.0.say(&json!({"do": "cancel", "id": 1}).to_string());
    assert_eq!(server.next(), Seen::Cancelled);
    let got = client.call("Hang", json!({"timeout": 0.3}));
    // Either end may be first to see the deadline; tonic calls its own CANCELLED.
    assert!(got["code"] == 4 || (way.kind == Kind::Tonic && got["code"] == 1), "{got}");
    assert!(matches!(server.next(), Seen::Request { .. }));
    assert_eq!(server.next(), Seen::Cancelled);
    client.start(2, "Hang", json!({}));
    assert!(matches!(server.next(), Seen::Request { .. }));
    client.0.stop();
    assert_eq!(server.next(), Seen::Cancelled, "the client has gone");
}

fn client_comes_back_after_our_server(way: Way) {
    let mut server = Running::start(way);
    let address = server.address;
    let mut client = Client::to(&server, way);
    assert_eq!(client.call("Echo", json!({ "size": 1 }))["code"], 0);
    let authority = server.authority.take();
    drop(server);
    let _server = Running::at(address, ServerConfig::default(), authority);
    assert_eq!(client.insist("Echo")["len"], 2);
}

fn closing_server_finishes_what_runs(way: Way) {
    let server = Running::start(way);
    let mut client = Client::to(&server, way);
    client.start(1, "Hold", json!({}));
    assert!(matches!(server.next(), Seen::Request { .. }));
    // Its answer comes after GOAWAY; the call after it is made on another connection.
    assert_eq!(client.call("Close", json!({}))["code"], 0);
    client.insist("Release");
    assert_eq!(client.result(1)["sha256"], sha256(b"held"));
    assert_eq!(client.call("Echo", json!({ "size": 3 }))["len"], 3);
}

#[test]
fn our_lane_and_our_server_agree() {
    let server = Running::start(TONIC);
    let mut lane = lane_to(&format!("http://{}", server.address));
    let body = vec![3; 4 * 1024 * 1024];
    assert!(call(&mut lane, request("Echo", body.clone())).unwrap().body == body);
    let mut late = request("Hang", "");
    late.timeout = Duration::from_millis(100);
    assert_eq!(call(&mut lane, late).unwrap_err().status.code, Code::DeadlineExceeded);
}
