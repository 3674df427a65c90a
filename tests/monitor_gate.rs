//! The monitor over real sockets: what strangers try, and what clients get.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use hivemind_worker::monitor::{
    Limits, Listed, LogPart, Logs, Monitor, MonitorConfig, OutputContent, SubmissionView, Submissions, SubmitError,
    read_token,
};
use hivemind_worker::node::action::Action;
use hivemind_worker::node::id::{AttemptKey, Id};
use hivemind_worker::node::snapshot::{NodeState, Snapshot};
use hivemind_worker::sys::watch::Watch;

/// Far above what any step takes, so that only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(20);

struct NoLogs;

impl Logs for NoLogs {
    fn read(&self, _: &AttemptKey, _: u32, _: u64, _: usize) -> Option<LogPart> {
        None
    }
}

/// A small master that keeps what it was given.
struct Small {
    taken: Mutex<Vec<u8>>,
    failed: Watch<Option<ErrorKind>>,
    asked: Mutex<Vec<String>>,
}

impl Submissions for Small {
    fn submit(&self, archive: &mut dyn Read) -> Result<AttemptKey, SubmitError> {
        let mut bytes = Vec::new();
        if let Err(error) = archive.read_to_end(&mut bytes) {
            self.failed.set(Some(error.kind()));
            return Err(SubmitError { field: String::new(), message: error.to_string() });
        }
        if bytes.starts_with(b"refuse") {
            return Err(SubmitError { field: "image".to_owned(), message: "is empty".to_owned() });
        }
        *self.taken.lock().unwrap() = bytes;
        Ok(AttemptKey { task: Id::parse("t1").unwrap(), attempt: 1 })
    }
    fn list(&self, _: Listed, _: usize) -> Vec<SubmissionView> {
        Vec::new()
    }
    fn view(&self, _: &str, _: u64, _: Duration) -> Option<SubmissionView> {
        None
    }
    fn read(&self, _: &str, _: u32, _: u64, _: usize) -> Option<LogPart> {
        None
    }
    fn output(&self, _: &str, path: &str) -> Option<OutputContent> {
        self.asked.lock().unwrap().push(path.to_owned());
        let size = 3 * 1024 * 1024;
        (path == "output/large").then(|| OutputContent { reader: Box::new(io::repeat(b'x').take(size)), size })
    }
    fn cancel(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

struct Node {
    monitor: Option<Monitor>,
    folder: PathBuf,
    address: SocketAddr,
    snapshot: Watch<Snapshot>,
    actions: Receiver<Action>,
    master: Arc<Small>,
}

fn folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("hm-monitor-{}-{number}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    folder
}

impl Node {
    fn start(limits: Limits) -> Self {
        Self::start_with(limits, Snapshot { node_id: "node-1".to_owned(), ..Snapshot::default() })
    }

    fn start_with(limits: Limits, snapshot: Snapshot) -> Self {
        let folder = folder();
        let mut config = MonitorConfig::new(&folder);
        config.addresses = vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
        config.limits = limits;
        let snapshot = Watch::new(snapshot);
        let (sender, actions) = bounded(1);
        let master = Arc::new(Small { taken: Mutex::default(), failed: Watch::new(None), asked: Mutex::default() });
        let submissions: Arc<dyn Submissions> = Arc::clone(&master) as _;
        let monitor = Monitor::start(config, snapshot.clone(), sender, Some(submissions), Arc::new(NoLogs)).unwrap();
        let address = monitor.local_addresses()[0];
        Self { monitor: Some(monitor), folder, address, snapshot, actions, master }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn connect_control(&self) -> UnixStream {
        let stream = UnixStream::connect(self.folder.join("control.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A request over TCP with the right `Host`.
    fn ask(&self, line: &str, fields: &str) -> Answer {
        let head = format!("{line} HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", self.address);
        exchange(&mut self.connect(), head.as_bytes())
    }

    fn ask_control(&self, line: &str, body: &[u8]) -> Answer {
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        exchange(&mut self.connect_control(), &[head.as_bytes(), body].concat())
    }

    fn token_field(&self) -> String {
        format!("X-HiveMind-Token: {}\r\n", read_token(&self.folder).unwrap())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(monitor) = self.monitor.take() {
            monitor.stop();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn error(&self) -> String {
        let value: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        value["error"].as_str().unwrap().to_owned()
    }
}

fn exchange(stream: &mut (impl Read + Write), bytes: &[u8]) -> Answer {
    // A refusal may come before all was sent; the answer tells.
    let _ = stream.write_all(bytes);
    read_answer(stream)
}

fn read_answer(stream: &mut impl Read) -> Answer {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let end = all.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer");
    let head = String::from_utf8(all[..end + 2].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: all[end + 4..].to_vec() }
}

/// Reads up to and with `wanted`.
fn read_until(stream: &mut impl Read, wanted: &str) -> String {
    let mut text = String::new();
    let mut byte = [0];
    while !text.contains(wanted) {
        stream.read_exact(&mut byte).unwrap();
        text.push(char::from(byte[0]));
    }
    text
}

#[test]
fn serves_the_page_with_its_policy() {
    let node = Node::start(Limits::default());
    for (path, kind) in
        [("/monitor.html", "text/html"), ("/monitor.js", "text/javascript"), ("/monitor.css", "text/css")]
    {
        let answer = node.ask(&format!("GET {path}"), "");
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.head.contains(&format!("Content-Type: {kind}")), "{}", answer.head);
        assert!(answer.head.contains("Content-Security-Policy: default-src 'none';"), "{}", answer.head);
        assert!(answer.head.contains("X-Content-Type-Options: nosniff"));
        assert!(answer.head.contains("Referrer-Policy: no-referrer"));
        assert!(!answer.head.contains("Access-Control"));
        assert!(answer.head.contains(&format!("Content-Length: {}\r\n", answer.body.len())));
    }
    assert_eq!(node.ask("GET /", "").status, 302);
    let head = node.ask("HEAD /monitor.html", "");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert!(!head.head.contains("Content-Length: 0\r\n"));
}

#[test]
fn both_loopback_families_are_served() {
    let node = Node::start(Limits::default());
    for &address in node.monitor.as_ref().unwrap().local_addresses() {
        let mut stream = TcpStream::connect(address).unwrap();
        let head = format!("GET /healthz HTTP/1.0\r\nHost: localhost:{}\r\n\r\n", address.port());
        assert_eq!(exchange(&mut stream, head.as_bytes()).text(), "ok\n", "{address}");
    }
}

#[test]
fn a_rebound_name_is_misdirected() {
    let node = Node::start(Limits::default());
    let port = node.address.port();
    for host in ["evil.example", &format!("evil.example:{port}"), "127.0.0.1:1", "127.0.0.1.evil.example"] {
        let head = format!("GET /api/v1/status HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let answer = exchange(&mut node.connect(), head.as_bytes());
        assert_eq!(answer.status, 421, "{host}");
        assert!(!answer.error().is_empty());
    }
}

#[test]
fn another_origin_is_refused_for_reads_streams_and_actions() {
    let node = Node::start(Limits::default());
    for line in ["GET /api/v1/status", "GET /api/v1/events", "POST /api/v1/pause"] {
        let fields = format!("Origin: http://evil.example\r\n{}", node.token_field());
        let answer = node.ask(line, &fields);
        assert_eq!(answer.status, 403, "{line}");
        assert!(!answer.error().is_empty());
    }
    let own = format!("Origin: http://localhost:{}\r\n", node.address.port());
    assert_eq!(node.ask("GET /api/v1/status", &own).status, 200);
    assert!(node.actions.is_empty());
}

#[test]
fn an_action_needs_the_token_on_tcp_and_none_on_the_control_socket() {
    let node = Node::start(Limits::default());
    assert_eq!(node.ask("POST /api/v1/pause", "").status, 401);
    let wrong = format!("X-HiveMind-Token: {}\r\n", "0".repeat(32));
    assert_eq!(node.ask("POST /api/v1/pause", &wrong).status, 403);
    assert!(node.actions.is_empty());
    let answer = node.ask("POST /api/v1/pause", &node.token_field());
    assert_eq!((answer.status, answer.text()), (202, "{\"accepted\":\"pause\"}"));
    assert_eq!(node.ask_control("POST /api/v1/drain", b"").status, 503);
    assert_eq!(node.actions.recv_timeout(PATIENCE), Ok(Action::Pause));
    assert_eq!(node.ask_control("POST /api/v1/drain", b"").status, 202);
    assert_eq!(node.actions.recv_timeout(PATIENCE), Ok(Action::Drain));
    let mode = fs::metadata(node.folder.join("monitor.token")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn more_commands_than_places_are_served_in_their_turn() {
    let node = Node::start(Limits { control_connections: 2, ..Limits::default() });
    // All are connected before the first says anything.
    let mut commands: Vec<_> = (0..20).map(|_| node.connect_control()).collect();
    for command in commands.iter_mut().rev() {
        command.write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    }
    for (number, mut command) in commands.into_iter().enumerate() {
        assert_eq!(exchange(&mut command, b"").status, 200, "command {number}");
    }
}

#[test]
fn a_client_cannot_claim_to_be_the_control_socket() {
    let node = Node::start(Limits::default());
    let fields = "X-HiveMind-Door: control\r\n";
    assert_eq!(node.ask("GET /api/v1/submissions/a/logs?raw=1", fields).status, 403);
    assert_eq!(node.ask("POST /api/v1/submissions", &node.token_field()).status, 403);
}

#[test]
fn a_huge_length_is_refused_before_a_byte_of_it() {
    let node = Node::start(Limits::default());
    for length in ["99999999999999", "999999999999999999999999999999", "4097"] {
        let answer = node.ask("POST /api/v1/pause", &format!("{}Content-Length: {length}\r\n", node.token_field()));
        assert_eq!(answer.status, 413, "{length}");
    }
    let head = format!("POST /api/v1/submissions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 34 << 20);
    assert_eq!(exchange(&mut node.connect_control(), head.as_bytes()).status, 413);
    assert!(node.actions.is_empty());
}

#[test]
fn a_megabyte_of_headers_is_refused() {
    let node = Node::start(Limits::default());
    let fields = format!("X-Padding: {}\r\n", "a".repeat(1 << 20));
    assert_eq!(node.ask("GET /", &fields).status, 431);
    let fields = "X-Padding: a\r\n".repeat((1 << 20) / 14);
    assert_eq!(node.ask("GET /", &fields).status, 431);
}

#[test]
fn garbage_and_foreign_methods_get_an_error_in_json() {
    let node = Node::start(Limits::default());
    for (status, bytes) in [
        (400, "\x16\x03\x01\x02\x00\x01\r\n\r\n".to_owned()),
        (400, "GET http://127.0.0.1/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        (405, format!("DELETE / HTTP/1.1\r\nHost: {}\r\n\r\n", node.address)),
        (405, format!("OPTIONS /api/v1/pause HTTP/1.1\r\nHost: {}\r\n\r\n", node.address)),
        (411, format!("POST / HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n", node.address)),
        (404, format!("GET /nothing HTTP/1.1\r\nHost: {}\r\n\r\n", node.address)),
        (405, format!("GET /api/v1/pause HTTP/1.1\r\nHost: {}\r\n\r\n", node.address)),
    ] {
        let answer = exchange(&mut node.connect(), bytes.as_bytes());
        assert_eq!(answer.status, status, "{bytes}");
        assert!(!answer.error().is_empty());
    }
}

#[test]
fn what_follows_the_first_request_is_never_served() {
    let node = Node::start(Limits::default());
    let smuggled = format!("POST /api/v1/pause HTTP/1.1\r\nHost: {}\r\n{}\r\n", node.address, node.token_field());
    let bytes = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n{smuggled}\0\x7fgarbage", node.address);
    let answer = exchange(&mut node.connect(), bytes.as_bytes());
    assert_eq!((answer.status, answer.text()), (200, "ok\n"));
    assert!(answer.head.contains("Connection: close"));
    assert!(node.actions.is_empty());
}

#[test]
fn silent_connections_do_not_lock_others_out() {
    let node = Node::start(Limits { head: PATIENCE * 10, ..Limits::default() });
    let mut silent: Vec<TcpStream> = (0..64)
        .map(|_| {
            let mut stream = node.connect();
            stream.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
            stream
        })
        .collect();
    let start = Instant::now();
    for _ in 0..3 {
        assert_eq!(node.ask("GET /healthz", "").status, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // The first that kept us waiting had to go.
    assert!(matches!(silent[0].read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn a_slow_sender_gets_no_more_time_than_a_silent_one() {
    let node = Node::start(Limits { head: Duration::from_millis(300), ..Limits::default() });
    let mut stream = node.connect();
    let start = Instant::now();
    let mut byte = [0];
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    // A byte each 20 ms: the read's time-out is the client's pace.
    let first = loop {
        assert!(start.elapsed() < PATIENCE);
        if stream.write_all(b"a").is_err() {
            break 0;
        }
        match stream.read(&mut byte) {
            Ok(len) => break len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break 0,
        }
    };
    assert_eq!(first, 1, "an answer begins");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = [0; 32];
    stream.read_exact(&mut rest).unwrap();
    assert!(rest.starts_with(b"TTP/1.1 408 "));
}

#[test]
fn event_streams_leave_places_for_others() {
    let limits = Limits { connections: 4, event_streams: 2, ..Limits::default() };
    let node = Node::start(limits);
    let head = format!("GET /api/v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", node.address);
    let mut streams: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = node.connect();
            stream.write_all(head.as_bytes()).unwrap();
            read_until(&mut stream, "event: snapshot\n");
            stream
        })
        .collect();
    assert_eq!(node.ask("GET /api/v1/events", "").status, 503);
    assert_eq!(node.ask("GET /healthz", "").status, 200);
    drop(streams.pop());
    // The place is free once the gate has seen that the client is gone.
    let start = Instant::now();
    loop {
        let mut stream = node.connect();
        stream.write_all(head.as_bytes()).unwrap();
        if read_until(&mut stream, "\r\n").contains(" 200 ") {
            break;
        }
        assert!(start.elapsed() < PATIENCE);
    }
}

#[test]
fn a_change_arrives_on_the_event_stream() {
    let interval = Duration::from_millis(50);
    let limits = Limits { event_interval: interval, heartbeat: interval, ..Limits::default() };
    let node = Node::start(limits);
    let mut stream = node.connect();
    write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", node.address).unwrap();
    let head = read_until(&mut stream, "\r\n\r\n");
    assert!(head.contains("Content-Type: text/event-stream"), "{head}");
    assert!(head.contains("Content-Security-Policy"));
    read_until(&mut stream, "\"node_id\":\"node-1\"");
    read_until(&mut stream, ": still here\n\n");
    node.snapshot.set(Snapshot { state: NodeState::Paused, ..Snapshot::default() });
    let event = read_until(&mut stream, "\"state\":\"paused\"");
    assert!(event.contains("id: 1\n"), "{event}");
}

#[test]
fn stopping_ends_open_streams_and_frees_the_sockets() {
    let mut node = Node::start(Limits::default());
    let mut stream = node.connect();
    write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", node.address).unwrap();
    read_until(&mut stream, "event: snapshot\n");
    let idle = node.connect();
    let start = Instant::now();
    node.monitor.take().unwrap().stop();
    assert!(start.elapsed() < Duration::from_secs(5));
    let _ = stream.read_to_end(&mut Vec::new());
    drop(idle);
    assert!(!node.folder.join("control.sock").exists());
    assert!(!node.folder.join("monitor.sock").exists());
    assert!(TcpStream::connect(node.address).is_err());
}

#[test]
fn the_control_socket_is_for_owner_and_group_and_replaces_only_a_dead_one() {
    let node = Node::start(Limits::default());
    let path = node.folder.join("control.sock");
    let about = fs::symlink_metadata(&path).unwrap();
    assert!(about.file_type().is_socket());
    assert_eq!(about.permissions().mode() & 0o777, 0o660);
    let private = fs::metadata(node.folder.join("monitor.sock")).unwrap();
    assert_eq!(private.permissions().mode() & 0o777, 0o600);

    let other = folder();
    let mut config = MonitorConfig::new(&other);
    config.addresses = vec!["127.0.0.1:0".parse().unwrap()];
    config.control_socket = path.clone();
    let start = |config: &MonitorConfig| {
        let (sender, _) = bounded(1);
        Monitor::start(config.clone(), Watch::new(Snapshot::default()), sender, None, Arc::new(NoLogs))
    };
    let error = start(&config).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains("control.sock"), "{error}");
    assert_eq!(node.ask_control("GET /healthz", b"").status, 200);

    config.control_socket = other.join("stale.sock");
    drop(UnixListener::bind(&config.control_socket).unwrap());
    start(&config).unwrap().stop();
    fs::write(&config.control_socket, "a file").unwrap();
    assert_eq!(start(&config).err().unwrap().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&config.control_socket).unwrap(), "a file");
    fs::remove_dir_all(other).unwrap();
}

#[test]
fn a_large_archive_goes_through_whole() {
    let node = Node::start(Limits::default());
    let archive: Vec<u8> = (0..32u32 << 20).map(|at| (at % 251) as u8).collect();
    let answer = node.ask_control("POST /api/v1/submissions", &archive);
    assert_eq!((answer.status, answer.text()), (201, "{\"task\":\"t1\",\"attempt\":1}"));
    assert!(*node.master.taken.lock().unwrap() == archive);
    let mut refused = archive;
    refused[..6].copy_from_slice(b"refuse");
    let answer = node.ask_control("POST /api/v1/submissions", &refused);
    assert_eq!((answer.status, answer.error().as_str()), (422, "image is empty"));
}

#[test]
fn an_archive_that_ends_early_is_an_error_on_both_sides() {
    let node = Node::start(Limits::default());
    let mut stream = node.connect_control();
    let head = "POST /api/v1/submissions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(read_until(&mut stream, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"too short").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_answer(&mut stream).status, 400);
    let (_, failed) = node.master.failed.wait_newer(0, PATIENCE);
    assert_eq!(*failed, Some(ErrorKind::UnexpectedEof));
    assert!(node.master.taken.lock().unwrap().is_empty());
}

#[test]
fn a_stalled_archive_times_out() {
    let node = Node::start(Limits { body_pause: Duration::from_millis(50), ..Limits::default() });
    let head = "POST /api/v1/submissions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nstart";
    assert_eq!(exchange(&mut node.connect_control(), head.as_bytes()).status, 408);
}

#[test]
fn outputs_are_named_by_their_own_path_only() {
    let node = Node::start(Limits::default());
    for path in [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/x",
        "output/%2e%2e/%2e%2e/x",
        "/etc/passwd",
        "a%00b",
        "a//b",
    ] {
        {
            let line = format!("GET /api/v1/submissions/t1/outputs/{path}");
            assert_eq!(node.ask(&line, "").status, 404, "{line}");
            assert_eq!(node.ask_control(&line, b"").status, 404, "{line}");
        }
    }
    assert!(node.master.asked.lock().unwrap().is_empty());
    let answer = node.ask_control("GET /api/v1/submissions/t1/outputs/output/large", b"");
    assert_eq!((answer.status, answer.body.len()), (200, 3 << 20));
    assert!(answer.head.contains("Content-Disposition: attachment"));
}

#[test]
fn hostile_words_are_only_ever_json() {
    let words = "</script><script>alert(1)</script>\x1b[2J\u{202e}";
    let snapshot = Snapshot { alerts: vec![words.to_owned()], ..Snapshot::default() };
    let node = Node::start_with(Limits::default(), snapshot);
    let answer = node.ask("GET /api/v1/status", "");
    assert!(answer.head.contains("Content-Type: application/json"), "{}", answer.head);
    let value: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(value["alerts"][0], "</script><script>alert(1)</script>\\x1b[2J\\u{202e}");
    assert!(!node.ask("GET /monitor.html", "").text().contains("alert(1)"));
}

#[test]
fn beyond_loopback_everything_but_the_page_needs_the_token() {
    let folder = folder();
    let mut config = MonitorConfig::new(&folder);
    config.addresses = vec!["0.0.0.0:0".parse().unwrap()];
    let (sender, _) = bounded(1);
    let monitor = Monitor::start(config, Watch::new(Snapshot::default()), sender, None, Arc::new(NoLogs)).unwrap();
    let port = monitor.local_addresses()[0].port();
    let ask = |path: &str, fields: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{fields}\r\n");
        exchange(&mut stream, head.as_bytes()).status
    };
    assert_eq!(ask("/monitor.html", ""), 200);
    for path in ["/api/v1/status", "/api/v1/events", "/metrics", "/healthz"] {
        assert_eq!(ask(path, ""), 401, "{path}");
    }
    let token = format!("X-HiveMind-Token: {}\r\n", read_token(&folder).unwrap());
    assert_eq!(ask("/api/v1/status", &token), 200);
    drop(monitor);
    fs::remove_dir_all(folder).unwrap();
}
