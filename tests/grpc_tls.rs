//! TLS of both ends: our server against grpcio's client and our lane, and what breaks a handshake.
#![allow(clippy::unwrap_used)]

mod grpc_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use grpc_support::authority::Authority;
use grpc_support::script::echo_while;
use grpc_support::{PATIENCE, Peer, call, disconnected, lane_with, request};
use hivemind_worker::grpc::ServerConfig;
use hivemind_worker::rpc::lane::LaneEvent;
use hivemind_worker::rpc::server::Server;
use hivemind_worker::rpc::tls::{self, Identity, Roots, TrustedTime};
use hivemind_worker::sys::clock::boottime;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::{Value, json};

/// What our server's TLS waits for before it gives a handshake up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs our server with TLS for `localhost` until `client` is done; requests are echoed.
fn serve_while(authority: &Authority, clients: Option<&Roots>, client: impl FnOnce(SocketAddr) + Send + 'static) {
    let config = tls::server_config(&authority.identity("localhost"), clients).unwrap();
    let server = Server::bind_tls("127.0.0.1:0".parse().unwrap(), ServerConfig::default(), config).unwrap();
    echo_while(server, client);
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
    let target = format!("https://localhost:{}", address.port());
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
            let got = grpcio_echo(address, &["--ca", &ca], size);
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
        let got = grpcio_echo(address, &["--ca", &ca, "--cert", &cert, &key], 5);
        assert_eq!(got["code"], 0, "{got}");
        let [cert, key] = strangers.issue("node-1");
        for arguments in [&["--ca", ca.as_str()][..], &["--ca", &ca, "--cert", &cert, &key]] {
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

fn client_as(authority: &Authority, identity: Option<&Identity>) -> Arc<rustls::ClientConfig> {
    tls::client_config(&authority.roots, identity, &Arc::new(TrustedTime::default())).unwrap()
}

/// The first reason for which the lane is without connection.
fn refusal(url: &str, config: Arc<rustls::ClientConfig>) -> String {
    let mut lane = lane_with(url, Some(config));
    let id = lane.call(request("Echo", "x"));
    let until = boottime() + PATIENCE;
    loop {
        match lane.next(until) {
            LaneEvent::Disconnected { reason, .. } => return reason,
            LaneEvent::Answer { id: answered, result } => {
                assert_eq!(answered, id);
                assert!(result.is_err(), "served");
            }
            LaneEvent::TimedOut => panic!("no end in time"),
            _ => {}
        }
    }
}

#[test]
fn lane_shows_its_certificate_to_a_server_that_asks() {
    let [authority, clients, strangers] = [(); 3].map(|()| Authority::new());
    let [cert, key] = authority.issue("localhost");
    let (_peer, port) = Peer::server(&["--tls", &cert, &key, "--client-ca", &clients.ca]);
    let url = format!("https://localhost:{port}");
    let mut lane = lane_with(&url, Some(client_as(&authority, Some(&clients.identity("node-1")))));
    assert_eq!(call(&mut lane, request("Echo", "x")).unwrap().body, b"x");
    let none = refusal(&url, client_as(&authority, None));
    assert!(none.contains("require") && none.contains("client certificate"), "{none}");
    let wrong = refusal(&url, client_as(&authority, Some(&strangers.identity("node-1"))));
    assert!(wrong.contains("refuse"), "{wrong}");
}

#[test]
fn our_server_says_why_it_refuses_a_client() {
    let [authority, clients, strangers] = [(); 3].map(|()| Authority::new());
    let roots = clients.roots.clone();
    let good = client_as(&authority, Some(&clients.identity("node-1")));
    let none = client_as(&authority, None);
    let wrong = client_as(&authority, Some(&strangers.identity("node-1")));
    serve_while(&authority, Some(&roots), move |address| {
        let mut lane = lane_with(&url(address), Some(good));
        assert_eq!(call(&mut lane, request("X", "x")).unwrap().body, b"x");
        assert_eq!(refusal(&url(address), none), "localhost requires a client certificate");
        let wrong = refusal(&url(address), wrong);
        assert_eq!(wrong, "localhost refuses our certificate: it does not trust who signed it");
        assert_eq!(call(&mut lane, request("X", "y")).unwrap().body, b"y", "others are not touched");
    });
}

#[test]
fn certificate_problems_are_told_with_times_and_names() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let url_of = |[cert, key]: [String; 2]| {
        let (peer, port) = Peer::server(&["--tls", &cert, &key]);
        (peer, format!("https://localhost:{port}"))
    };
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2020, 1, 31);
    params.not_after = date_time_ymd(2021, 3, 1);
    let (_peer, url) = url_of(authority.sign(params.clone()));
    let reason = refusal(&url, client_as(&authority, None));
    let words = "certificate of localhost has expired, or the clock here is ahead: it ended at 2021-03-01 00:00 UTC, and \
                 here it is 20";
    assert!(reason.starts_with(words), "{reason}");

    params.not_before = date_time_ymd(2090, 1, 31);
    params.not_after = date_time_ymd(2091, 3, 1);
    let (_peer, url) = url_of(authority.sign(params));
    let reason = refusal(&url, client_as(&authority, None));
    let words = "certificate of localhost is not valid yet, or the clock here is behind: it begins at 2090-01-31 00:00 \
                 UTC, and here it is 20";
    assert!(reason.starts_with(words), "{reason}");

    let names = vec!["one.example".to_owned(), "10.1.2.3".to_owned()];
    let (_peer, url) = url_of(authority.sign(CertificateParams::new(names).unwrap()));
    let words = "certificate of localhost is for another name: it has one.example, 10.1.2.3; wanted is localhost";
    assert_eq!(refusal(&url, client_as(&authority, None)), words);

    let (_peer, url) = url_of(stranger.issue("localhost"));
    let name = stranger.folder.0.file_name().unwrap().to_str().unwrap();
    let words = format!("certificate of localhost is signed by \"CN={name}\", an authority that is not trusted here");
    assert_eq!(refusal(&url, client_as(&authority, None)), words);
    let same_name = Authority::like(&stranger);
    assert_eq!(refusal(&url, client_as(&same_name, None)), words, "an authority of the same name with another key");

    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let files = [("own.pem", own.pem()), ("own.key", key.serialize_pem())];
    let (_peer, url) = url_of(files.map(|(name, pem)| authority.folder.write(name, &pem)));
    let reason = refusal(&url, client_as(&authority, None));
    assert!(reason.contains("is signed by itself"), "{reason}");
}

#[test]
fn time_that_the_master_told_unmasks_a_clock_that_is_ahead() {
    let authority = Authority::new();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2050, 1, 1));
    let [cert, key] = authority.sign(params);
    let (_peer, port) = Peer::server(&["--tls", &cert, &key]);
    let url = format!("https://localhost:{port}");
    // 2060-01-01, as `date -u -d DAY +%s` gives it.
    let time = Arc::new(TrustedTime::new(|| Duration::from_secs(2_840_140_800), boottime));
    let config = tls::client_config(&authority.roots, None, &time).unwrap();
    let reason = refusal(&url, Arc::clone(&config));
    assert!(reason.contains("expired, or the clock here is ahead: it ended at 2050-01-01"), "{reason}");
    // 2040-01-01.
    time.learn(Duration::from_secs(2_208_988_800));
    let words = "the clock here is ahead and must be set right: it says 2060-01-01 00:00 UTC, the master's says \
                 2040-01-01 00:00 UTC, and the certificate of localhost is good until 2050-01-01 00:00 UTC";
    assert_eq!(refusal(&url, config), words);
    // A clock that has stood still since 1970 does no harm.
    let time = Arc::new(TrustedTime::new(|| Duration::from_secs(60), boottime));
    let mut lane = lane_with(&url, Some(tls::client_config(&authority.roots, None, &time).unwrap()));
    assert_eq!(call(&mut lane, request("Echo", "x")).unwrap().body, b"x");
}

#[test]
fn server_that_never_answers_the_handshake_is_left() {
    let authority = Authority::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let started = Instant::now();
    let mut lane = lane_with(&format!("https://localhost:{port}"), Some(client_as(&authority, None)));
    assert_eq!(disconnected(&mut lane), "server did not finish the TLS handshake in time");
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn row_60_renewed_certificates_of_both_ends_count_from_the_next_connection_on() {
    let authority = Authority::new();
    let older = Authority::new();
    let [chain, key] = authority.issue("localhost");
    let folder = &authority.folder;
    // The client's own files, at first from an authority that the server takes.
    let copy = |from: &[String; 2]| {
        for (from, name) in from.iter().zip(["own.pem", "own.key"]) {
            folder.write(name, &std::fs::read_to_string(from).unwrap());
        }
        [folder.0.join("own.pem"), folder.0.join("own.key")]
    };
    let [own_chain, own_key] = copy(&authority.issue("node"));
    let identity = Identity::from_files(&own_chain, &own_key).unwrap();
    let (peer, port) = Peer::server(&["--tls", &chain, &key, "--client-ca", &authority.ca]);
    let mut lane = lane_with(&format!("https://localhost:{port}"), Some(client_as(&authority, Some(&identity))));
    assert!(call(&mut lane, request("Echo", "one")).is_ok());

    // Another server in its place, with a renewed certificate, that takes only the renewed one of the client.
    copy(&older.issue("node"));
    drop(peer);
    let [chain, key] = authority.issue("localhost");
    let again = ["--port", &port.to_string(), "--tls", &chain, &key, "--client-ca", &older.ca];
    let (_peer, _) = Peer::server(&again);
    assert_eq!(call(&mut lane, request("Echo", "two")).unwrap().body, b"two");

    // A half-written renewal changes nothing.
    folder.write("own.pem", "not yet");
    let mut lane = lane_with(&format!("https://localhost:{port}"), Some(client_as(&authority, Some(&identity))));
    assert!(call(&mut lane, request("Echo", "three")).is_ok());
}
