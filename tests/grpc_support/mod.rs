//! What the gRPC interoperability tests share: the grpcio peer's process, and lanes with deadlines.
#![allow(dead_code)]

pub mod authority;

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hivemind_worker::grpc::{CallError, CallId, Metadata, Request, Response};
use hivemind_worker::rpc::dial::Target;
use hivemind_worker::rpc::lane::{Lane, LaneConfig, LaneEvent};
use hivemind_worker::sys::clock::boottime;

/// Longer than anything takes here; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A process of tests/peers/grpcio_peer.py. It ends with its standard input.
pub struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    pub fn start(arguments: &[&str]) -> Peer {
        let python = std::env::var_os("HIVEMIND_TEST_PYTHON").expect(
            "HIVEMIND_TEST_PYTHON is not set. It must name a Python that has grpcio, for instance: \
             python3 -m venv target/venv && target/venv/bin/pip install grpcio && \
             HIVEMIND_TEST_PYTHON=$PWD/target/venv/bin/python cargo test (scripts/test.sh does it)",
        );
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/grpcio_peer.py");
        let mut child = Command::new(python)
            .arg(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("failed to start the Python of HIVEMIND_TEST_PYTHON");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Peer { child, input, output }
    }

    /// A server; returns its port too.
    pub fn server(arguments: &[&str]) -> (Peer, u16) {
        let mut peer = Peer::start(&[&["server"], arguments].concat());
        let line = peer.line();
        let port = line.strip_prefix("PORT ").unwrap_or_else(|| panic!("no port: {line}")).parse().unwrap();
        (peer, port)
    }

    pub fn line(&mut self) -> String {
        self.output.next().expect("the peer has ended; is grpcio installed?").unwrap()
    }

    pub fn say(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
        input.flush().unwrap();
    }

    /// Ends it and waits until it is gone.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.input.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if self.input.is_some() {
            self.end();
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
