//! The lane through an HTTP proxy: one that connects, and those that refuse, break off, send garbage or too much.
#![allow(clippy::unwrap_used)]

mod grpc_support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};

use grpc_support::authority::Authority;
use grpc_support::{PATIENCE, Peer, call, disconnected, request};
use hivemind_worker::rpc::dial::Target;
use hivemind_worker::rpc::lane::{Lane, LaneConfig, LaneEvent};
use hivemind_worker::rpc::proxy::Proxy;
use hivemind_worker::sys::clock::boottime;

/// A proxy that answers one connection with `answer`, or with a tunnel to a port of loopback.
struct OneProxy {
    address: SocketAddr,
    /// The heads of the requests.
    heads: Receiver<String>,
    thread: Option<JoinHandle<()>>,
}

enum Answer {
    Tunnel(u16),
    Bytes(Vec<u8>),
    Endless(Vec<u8>),
}

impl OneProxy {
    fn start(answer: Answer) -> OneProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, heads) = channel();
        let thread = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut head = String::new();
            let mut reader = BufReader::new(client.try_clone().unwrap());
            while !head.ends_with("\r\n\r\n") {
                assert!(reader.read_line(&mut head).unwrap() > 0, "head is cut: {head:?}");
            }
            assert!(reader.buffer().is_empty(), "something is sent before the answer");
            sender.send(head).unwrap();
            match answer {
                Answer::Tunnel(port) => tunnel(client, port),
                Answer::Bytes(bytes) => {
                    client.write_all(&bytes).unwrap();
                    client.shutdown(Shutdown::Write).unwrap();
                    while client.read(&mut [0; 1024]).is_ok_and(|n| n > 0) {}
                }
                Answer::Endless(bytes) => while client.write_all(&bytes).is_ok() {},
            }
        });
        OneProxy { address, heads, thread: Some(thread) }
    }

    fn head(&self) -> String {
        self.heads.recv_timeout(PATIENCE).unwrap()
    }
}

impl Drop for OneProxy {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.thread.take().unwrap().join().unwrap();
        }
    }
}

/// Carries bytes both ways until one side ends.
fn tunnel(mut client: TcpStream, port: u16) {
    let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
    // Answer and first bytes of the target in one segment: a plain gRPC server speaks at once.
    let mut first = [0; 9];
    server.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    let n = server.peek(&mut first).unwrap_or(0);
    server.read_exact(&mut first[..n]).unwrap();
    server.set_read_timeout(None).unwrap();
    let answer = [b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n", &first[..n]].concat();
    client.write_all(&answer).unwrap();
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    from.set_read_timeout(None).unwrap();
    let up = thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    up.join().unwrap();
}

fn lane(url: &str, proxy: &str, tls: Option<std::sync::Arc<rustls::ClientConfig>>) -> Lane {
    let proxy = Some(Proxy::parse(proxy).unwrap());
    let target = Target::parse(url).unwrap();
    Lane::new(LaneConfig { target, tls, proxy, user_agent: "hivemind-test".into(), seed: 1 }).unwrap()
}

#[test]
fn calls_go_through_over_tls_and_the_proxy_resolves_the_name() {
    let authority = Authority::new();
    let [cert, key] = authority.issue("master.invalid");
    let (_peer, port) = Peer::server(&["--tls", &cert, &key]);
    let proxy = OneProxy::start(Answer::Tunnel(port));
    let mut lane = lane(
        "https://master.invalid:8443",
        &format!("http://node:pass%3Aword@{}", proxy.address),
        Some(authority.client()),
    );
    let body: Vec<u8> = (0..1usize << 20).map(|i| (i % 249) as u8).collect();
    assert!(call(&mut lane, request("Echo", body.clone())).unwrap().body == body);
    // base64 of "node:pass:word".
    let words = "CONNECT master.invalid:8443 HTTP/1.1\r\nHost: master.invalid:8443\r\n\
                 Proxy-Authorization: Basic bm9kZTpwYXNzOndvcmQ=\r\n\r\n";
    assert_eq!(proxy.head(), words);
    drop(lane);
}

#[test]
fn plain_calls_go_through_and_no_byte_behind_the_head_is_lost() {
    let (_peer, port) = Peer::server(&[]);
    let proxy = OneProxy::start(Answer::Tunnel(port));
    let mut lane = lane("http://master.invalid:50051", &proxy.address.to_string(), None);
    let until = boottime() + PATIENCE;
    match lane.next(until) {
        LaneEvent::Connected { peer } => assert_eq!(peer, proxy.address),
        other => panic!("{other:?}"),
    }
    assert_eq!(call(&mut lane, request("Echo", "x")).unwrap().body, b"x");
    assert_eq!(proxy.head(), "CONNECT master.invalid:50051 HTTP/1.1\r\nHost: master.invalid:50051\r\n\r\n");
    drop(lane);
}

#[test]
fn proxies_that_do_not_connect_are_told_in_words_without_the_password() {
    for (answer, words) in [
        (
            Answer::Bytes(b"HTTP/1.1 403 Forbidden\r\n\r\n<h1>no</h1>".to_vec()),
            "does not connect to master.invalid:443: 403 Forbidden",
        ),
        (
            Answer::Bytes(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n".to_vec()),
            "refuses the user and password",
        ),
        (Answer::Bytes(b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()), "does not answer like an HTTP proxy"),
        (Answer::Bytes(vec![0x15, 3, 1, 0, 2, 2, 70]), "does not answer like an HTTP proxy"),
        (Answer::Bytes(Vec::new()), "closed the connection before it answered"),
        (Answer::Bytes(b"HTTP/1.1 200 OK\r\nVia: ".to_vec()), "closed the connection before it answered"),
        (Answer::Endless(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()), "a head of more than 8 KiB"),
    ] {
        let proxy = OneProxy::start(answer);
        let authority = Authority::new();
        let url = format!("http://user:hunter2@{}", proxy.address);
        let mut lane = lane("https://master.invalid", &url, Some(authority.client()));
        let reason = disconnected(&mut lane);
        assert!(reason.starts_with(&format!("proxy {}: ", proxy.address)) && reason.contains(words), "{reason}");
        assert!(!format!("{reason}{lane:?}").contains("hunter2"), "{reason}");
        // base64 of "user:hunter2".
        assert!(proxy.head().contains("Basic dXNlcjpodW50ZXIy"));
        assert!(!format!("{reason}{lane:?}").contains("dXNlcjpodW50ZXIy"));
    }
}

#[test]
fn proxy_that_is_not_there_is_named() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let reason = disconnected(&mut lane("http://master.invalid", &gone.to_string(), None));
    assert!(reason.starts_with(&format!("proxy {gone}: failed to connect to {gone}: ")), "{reason}");
}
