//! What the gRPC interoperability tests share: the peers' processes, ways to reach them, and lanes with deadlines.
#![allow(dead_code, unused_imports, unused_macros, clippy::unwrap_used)]

pub mod authority;
pub mod ledger;
pub mod nginx;
pub mod script;

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hivemind_worker::grpc::{CallError, CallId, Metadata, Request, Response};
use hivemind_worker::rpc::dial::Target;
use hivemind_worker::rpc::lane::{Lane, LaneConfig, LaneEvent};
use hivemind_worker::sys::clock::boottime;

use authority::Authority;
use nginx::Nginx;

/// Longer than anything takes here; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Which independent implementation. Both have the same modes and words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// tests/peers/grpcio_peer.py
    Grpcio,
    /// tests/peers/tonic
    Tonic,
}

/// A peer, and how it is reached.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    pub kind: Kind,
    pub is_tls: bool,
    /// Through nginx, which says GOAWAY after few calls.
    pub is_proxied: bool,
}

/// Makes tests of functions that take a [`Way`]: one for each peer, plain and over TLS.
macro_rules! for_each_way {
    ($($name:ident),* $(,)?) => {
        mod grpcio {
            $(#[test] fn $name() { super::$name(super::grpc_support::GRPCIO); })*
        }
        mod grpcio_tls {
            $(#[test] fn $name() { super::$name(super::grpc_support::GRPCIO_TLS); })*
        }
        mod tonic {
            $(#[test] fn $name() { super::$name(super::grpc_support::TONIC); })*
        }
        mod tonic_tls {
            $(#[test] fn $name() { super::$name(super::grpc_support::TONIC_TLS); })*
        }
    };
}
pub(crate) use for_each_way;

/// The same through nginx, whose upstream is plain in each case.
macro_rules! for_each_proxied_way {
    ($($name:ident),* $(,)?) => {
        mod nginx {
            $(#[test] fn $name() { super::$name(super::grpc_support::NGINX); })*
        }
        mod nginx_tls {
            $(#[test] fn $name() { super::$name(super::grpc_support::NGINX_TLS); })*
        }
    };
}
pub(crate) use for_each_proxied_way;

pub const NGINX: Way = Way { kind: Kind::Tonic, is_tls: false, is_proxied: true };
pub const NGINX_TLS: Way = Way { kind: Kind::Tonic, is_tls: true, is_proxied: true };
/// Calls on a connection after which nginx says GOAWAY: few, so that it happens in each test.
const CALLS_A_CONNECTION: u32 = 5;
pub const GRPCIO: Way = Way { kind: Kind::Grpcio, is_tls: false, is_proxied: false };
pub const GRPCIO_TLS: Way = Way { kind: Kind::Grpcio, is_tls: true, is_proxied: false };
pub const TONIC: Way = Way { kind: Kind::Tonic, is_tls: false, is_proxied: false };
pub const TONIC_TLS: Way = Way { kind: Kind::Tonic, is_tls: true, is_proxied: false };

/// A process of a peer. It ends with its standard input.
pub struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Kind {
    fn command(self) -> Command {
        match self {
            Kind::Grpcio => {
                let python = std::env::var_os("HIVEMIND_TEST_PYTHON").expect(
                    "HIVEMIND_TEST_PYTHON is not set. It must name a Python that has grpcio, for instance: \
                     python3 -m venv target/venv && target/venv/bin/pip install grpcio && \
                     HIVEMIND_TEST_PYTHON=$PWD/target/venv/bin/python cargo test (scripts/test.sh does it)",
                );
                let mut command = Command::new(python);
                command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/grpcio_peer.py"));
                command
            }
            Kind::Tonic => Command::new(std::env::var_os("HIVEMIND_TEST_TONIC").expect(
                "HIVEMIND_TEST_TONIC is not set. It must name the peer on tonic, for instance: \
                 cargo build --release --manifest-path tests/peers/Cargo.toml --target-dir target/peers && \
                 HIVEMIND_TEST_TONIC=$PWD/target/peers/release/tonic-peer cargo test (scripts/test.sh does it)",
            )),
        }
    }

    pub fn start(self, arguments: &[&str]) -> Peer {
        let command = self.command().args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = command.unwrap_or_else(|error| panic!("failed to start the peer {self:?}: {error}"));
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Peer { child, input, output }
    }

    /// A server; returns its port too.
    pub fn server(self, arguments: &[&str]) -> (Peer, u16) {
        let mut peer = self.start(&[&["server"], arguments].concat());
        let line = peer.line();
        let port = line.strip_prefix("PORT ").unwrap_or_else(|| panic!("no port: {line}")).parse().unwrap();
        (peer, port)
    }
}

impl Peer {
    /// grpcio, where one peer is enough.
    pub fn start(arguments: &[&str]) -> Peer {
        Kind::Grpcio.start(arguments)
    }

    /// grpcio's server, where one peer is enough; returns its port too.
    pub fn server(arguments: &[&str]) -> (Peer, u16) {
        Kind::Grpcio.server(arguments)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn line(&mut self) -> String {
        self.output.next().expect("the peer has ended; see what it wrote, and whether grpcio is installed").unwrap()
    }

    pub fn say(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
        input.flush().unwrap();
    }

    /// Ends it and waits until it is gone.
    pub fn stop(&mut self) {
        drop(self.input.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if self.input.is_some() {
            self.stop();
        }
    }
}

/// A peer's server, with what a lane needs to reach it.
pub struct Served {
    pub peer: Peer,
    /// The server's own.
    pub port: u16,
    way: Way,
    tls: Option<(Authority, [String; 2])>,
    pub nginx: Option<Nginx>,
}

impl Served {
    pub fn start(way: Way) -> Served {
        Served::start_with(way, CALLS_A_CONNECTION, &[])
    }

    /// With so many calls on a connection where nginx is between, and with more words for the server.
    pub fn start_with(way: Way, calls_a_connection: u32, more: &[&str]) -> Served {
        let tls = (way.is_tls && !way.is_proxied).then(|| {
            let authority = Authority::new();
            let files = authority.issue("localhost");
            (authority, files)
        });
        let (peer, port) = Served::peer(way, &tls, 0, more);
        let nginx = way.is_proxied.then(|| Nginx::start(port, calls_a_connection));
        Served { peer, port, way, tls, nginx }
    }

    fn peer(way: Way, tls: &Option<(Authority, [String; 2])>, port: u16, more: &[&str]) -> (Peer, u16) {
        let port = port.to_string();
        let mut arguments = vec!["--port", &port];
        if let Some((_, [cert, key])) = tls {
            arguments.extend(["--tls", cert, key]);
        }
        arguments.extend(more);
        way.kind.server(&arguments)
    }

    /// Starts it once more, on the same port.
    pub fn start_again(&mut self) {
        (self.peer, _) = Served::peer(self.way, &self.tls, self.port, &[]);
    }

    pub fn lane(&self) -> Lane {
        let (authority, port) = match (&self.nginx, &self.tls) {
            (Some(nginx), _) if self.way.is_tls => (Some(&nginx.authority), nginx.tls_port),
            (Some(nginx), _) => (None, nginx.port),
            (None, Some((authority, _))) => (Some(authority), self.port),
            (None, None) => (None, self.port),
        };
        match authority {
            Some(authority) => lane_with(&format!("https://localhost:{port}"), Some(authority.client())),
            None => lane_to(&format!("http://127.0.0.1:{port}")),
        }
    }
}

pub fn lane_to(url: &str) -> Lane {
    lane_with(url, None)
}

pub fn lane_with(url: &str, tls: Option<std::sync::Arc<rustls::ClientConfig>>) -> Lane {
    let target = Target::parse(url).unwrap();
    Lane::new(LaneConfig { target, tls, proxy: None, user_agent: "hivemind-test".into(), seed: 1 }).unwrap()
}

pub fn request(method: &str, body: impl Into<Vec<u8>>) -> Request {
    Request {
        path: format!("/test.Peer/{method}"),
        metadata: Metadata::default(),
        body: body.into(),
        timeout: PATIENCE,
        max_response: 8 * 1024 * 1024,
    }
}

/// The next answer; connection events in between are passed over.
pub fn next_answer(lane: &mut Lane) -> (CallId, Result<Response, CallError>) {
    let until = boottime() + PATIENCE + PATIENCE;
    loop {
        match lane.next(until) {
            LaneEvent::Answer { id, result } => return (id, result),
            LaneEvent::TimedOut => panic!("no answer in time"),
            _ => {}
        }
    }
}

pub fn call(lane: &mut Lane, request: Request) -> Result<Response, CallError> {
    let id = lane.call(request);
    let (answered, result) = next_answer(lane);
    assert_eq!(answered, id);
    result
}

/// Lets it read and write what it can without waiting; no call may end by that.
pub fn turn(lane: &mut Lane) {
    let event = lane.next(boottime());
    assert!(!matches!(event, LaneEvent::Answer { .. }), "{event:?}");
}

/// Waits until there is no connection; returns why.
pub fn disconnected(lane: &mut Lane) -> String {
    let until = boottime() + PATIENCE;
    loop {
        match lane.next(until) {
            LaneEvent::Disconnected { reason, .. } => return reason,
            LaneEvent::TimedOut => panic!("still connected"),
            _ => {}
        }
    }
}

/// A folder that is removed with the value.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hivemind-grpc-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
