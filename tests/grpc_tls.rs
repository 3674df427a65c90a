//! TLS of both ends: our server against grpcio's client and our lane, and what breaks a handshake.
#![allow(clippy::unwrap_used)]

mod grpc_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use grpc_support::authority::Authority;
use grpc_support::{PATIENCE, Peer, call, disconnected, lane_with, request};
use hivemind_worker::grpc::ServerConfig;
use hivemind_worker::rpc::server::{Server, ServerEvent};
use hivemind_worker::rpc::tls::{self, Roots};
use hivemind_worker::sys::clock::boottime;
use serde_json::{Value, json};

/// What our server's TLS waits for before it gives a handshake up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs our server with TLS for `localhost` until `client` is done; requests are echoed.
fn serve_while(authority: &Authority, clients: Option<&Roots>, client: impl FnOnce(SocketAddr) + Send + 'static) {
    let config = tls::server_config(&authority.identity("localhost"), clients).unwrap();
    let mut server = Server::bind_tls("127.0.0.1:0".parse().unwrap(), ServerConfig::default(), config).unwrap();
    let (address, waker) = (server.local_addr().unwrap(), server.waker());
    let client = std::thread::spawn(move || {
        let _wakes = WakesWhenDropped(waker);
        client(address);
    });
    loop {
        match server.next(boottime() + PATIENCE) {
            ServerEvent::Request { call, body, .. } => server.respond(call, Ok(body)),
            ServerEvent::Cancelled(_) => {}
            ServerEvent::Woken => break,
            ServerEvent::TimedOut => panic!("client is stuck"),
        }
    }
    client.join().unwrap();
}

struct WakesWhenDropped(hivemind_worker::rpc::Waker);

impl Drop for WakesWhenDropped {
    fn drop(&mut self) {
        self.0.wake();
    }
}

fn url(address: SocketAddr) -> String {
    format!("https://localhost:{}", address.port())
}

/// Reads until the other end closes; what came.
fn read_to_end(socket: &mut TcpStream) -> Vec<u8> {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match socket.read(&mut chunk) {
            Ok(0) => return seen,
            Ok(n) => seen.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return seen,
            Err(error) => panic!("not closed: {error}"),
        }
    }
}

/// One echo by grpcio's client; its answer.
fn grpcio_echo(address: SocketAddr, arguments: &[&str], size: usize) -> Value {
    let target = format!("localhost:{}", address.port());
    let mut peer = Peer::start(&[&["client", target.as_str()], arguments].concat());
    let start = json!({"do": "start", "id": 1, "method": "/test.Peer/Echo", "size": size, "timeout": 10});
    peer.say(&start.to_string());
    peer.say(&json!({"do": "result", "id": 1}).to_string());
    serde_json::from_str(&peer.line()).unwrap()
}

#[test]
fn server_serves_grpcio_and_our_lane_over_tls() {
    let authority = Authority::new();
    let (ca, config) = (authority.ca.clone(), authority.client());
    serve_while(&authority, None, move |address| {
        for size in [0, 100, 70_000, 4 << 20] {
            let got = grpcio_echo(address, &["--tls", &ca], size);
            assert_eq!((&got["code"], &got["len"]), (&json!(0), &json!(size)), "{got}");
        }
        let mut lane = lane_with(&url(address), Some(config));
        let body: Vec<u8> = (0..4usize << 20).map(|i| (i % 251) as u8).collect();
        assert!(call(&mut lane, request("X", body.clone())).unwrap().body == body);
        let ids: Vec<_> = (0..20).map(|i| lane.call(request("X", vec![i; 1000 * usize::from(i)]))).collect();
        for _ in &ids {
            let (id, result) = grpc_support::next_answer(&mut lane);
            let i = ids.iter().position(|other| *other == id).unwrap();
            assert_eq!(result.unwrap().body, vec![i as u8; 1000 * i]);
        }
    });
}

#[test]
fn server_asks_each_client_for_a_certificate_when_told_to() {
    let [authority, clients, strangers] = [(); 3].map(|()| Authority::new());
    let roots = clients.roots.clone();
    let ca = authority.ca.clone();
    serve_while(&authority, Some(&roots), move |address| {
        let [cert, key] = clients.issue("node-1");
        let got = grpcio_echo(address, &["--tls", &ca, "--identity", &cert, &key], 5);
        assert_eq!(got["code"], 0, "{got}");
        let [cert, key] = strangers.issue("node-1");
        for arguments in [&["--tls", ca.as_str()][..], &["--tls", &ca, "--identity", &cert, &key]] {
            assert_eq!(grpcio_echo(address, arguments, 5)["code"], 14);
        }
    });
}

#[test]
fn handshake_that_never_ends_is_cut_and_holds_nobody_up() {
    let authority = Authority::new();
    let config = authority.client();
    serve_while(&authority, None, move |address| {
        let mut silent = TcpStream::connect(address).unwrap();
        let mut half = TcpStream::connect(address).unwrap();
        // The head of a handshake record and of a ClientHello in it, of which no more comes.
        half.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).unwrap();
        let started = Instant::now();
        let mut lane = lane_with(&url(address), Some(config));
        assert_eq!(call(&mut lane, request("X", "x")).unwrap().body, b"x");
        assert!(started.elapsed() < HANDSHAKE_TIMEOUT / 2, "held up");
        for socket in [&mut silent, &mut half] {
            read_to_end(socket);
            assert!(started.elapsed() + Duration::from_millis(500) > HANDSHAKE_TIMEOUT, "cut too early");
        }
        assert!(started.elapsed() < HANDSHAKE_TIMEOUT + PATIENCE / 3, "cut too late");
        assert_eq!(call(&mut lane, request("X", "y")).unwrap().body, b"y", "the lane is still there");
    });
}

#[test]
fn peers_that_speak_plain_or_another_protocol_are_cut_alone() {
    let authority = Authority::new();
    let config = authority.client();
    serve_while(&authority, None, move |address| {
        let mut lane = lane_with(&url(address), Some(Arc::clone(&config)));
        assert_eq!(call(&mut lane, request("X", "x")).unwrap().body, b"x");
        for garbage in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", &[0x16, 3, 1, 0, 2, 1, 0]]
        {
            let mut socket = TcpStream::connect(address).unwrap();
            let started = Instant::now();
            socket.write_all(garbage).unwrap();
            let _ = socket.shutdown(std::net::Shutdown::Write);
            read_to_end(&mut socket);
            assert!(started.elapsed() < HANDSHAKE_TIMEOUT / 2, "only cut by time: {garbage:?}");
        }
        for alpn in [vec![], vec![b"http/1.1".to_vec()]] {
            let mut other = (*config).clone();
            other.alpn_protocols = alpn;
            let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
            let mut session = rustls::ClientConnection::new(Arc::new(other), name).unwrap();
            let mut socket = TcpStream::connect(address).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut stream = rustls::Stream::new(&mut session, &mut socket);
            let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
            let mut seen = Vec::new();
            let _ = stream.read_to_end(&mut seen);
            assert!(seen.is_empty(), "served without ALPN: {seen:?}");
        }
        assert_eq!(call(&mut lane, request("X", "y")).unwrap().body, b"y");
    });
}

#[test]
fn lane_refuses_our_server_with_a_certificate_for_another_name() {
    let authority = Authority::new();
    let config = authority.client();
    serve_while(&authority, None, move |address| {
        let mut lane = lane_with(&format!("https://{address}"), Some(config));
        assert!(disconnected(&mut lane).contains("another name"));
    });
}
