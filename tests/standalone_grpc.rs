//! The small master over real sockets: our own lane and grpcio play the node, the desk plays the task's author.
#![allow(clippy::unwrap_used)]

mod grpc_support;

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use grpc_support::{Folder, PATIENCE, lane_to};
use hivemind_worker::grpc::{CallError, Metadata, Request};
use hivemind_worker::monitor::{Listed, SubmissionView, Submissions};
use hivemind_worker::node::id::{self, Id};
use hivemind_worker::node::record::Outcome;
use hivemind_worker::rpc::lane::Lane;
use hivemind_worker::rpc::schema::task_result_request::Piece;
use hivemind_worker::rpc::schema::task_result_response::Answer;
use hivemind_worker::rpc::schema::*;
use hivemind_worker::standalone::core::*;
use hivemind_worker::standalone::gate::proof_text;
use hivemind_worker::standalone::{Desk, Master, MasterConfig};
use prost::Message;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

/// A way to make calls: the number of the status and its message where it is not good.
trait Calls {
    fn call(&mut self, path: &str, token: &str, body: Vec<u8>) -> Result<Vec<u8>, (u8, String)>;
}

/// Our lane, and how long it may take for a call, the way back to a lost master included.
struct OurLane(Lane, Duration);

impl Calls for OurLane {
    fn call(&mut self, path: &str, token: &str, body: Vec<u8>) -> Result<Vec<u8>, (u8, String)> {
        let mut metadata = Metadata::default();
        metadata.add_secret("authorization", format!("Bearer {token}")).unwrap();
        let request = Request { path: path.to_owned(), metadata, body, timeout: self.1, max_response: 32 << 20 };
        match grpc_support::call(&mut self.0, request) {
            Ok(response) => Ok(response.body),
            Err(CallError { status, .. }) => Err((status.code.number(), status.message)),
        }
    }
}

/// grpcio in a process of its own, a call a line.
struct Grpcio {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

const GRPCIO: &str = r#"
import json, sys, grpc
channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)])
for line in sys.stdin:
    ask = json.loads(line)
    try:
        metadata = [("authorization", "Bearer " + ask["token"])]
        body = channel.unary_unary(ask["path"])(bytes.fromhex(ask["body"]), timeout=30, metadata=metadata)
        answer = {"body": body.hex()}
    except grpc.RpcError as error:
        answer = {"code": error.code().value[0], "message": error.details()}
    print(json.dumps(answer), flush=True)
"#;

impl Grpcio {
    fn to(master: &Master) -> Self {
        Self::start(&["-c", GRPCIO], master)
    }

    /// As a node of a later minor version: each message has more in it than this master can know.
    fn newer(master: &Master) -> Self {
        Self::start(&["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/newer_node.py")], master)
    }

    fn start(words: &[&str], master: &Master) -> Self {
        let python = std::env::var_os("HIVEMIND_TEST_PYTHON")
            .expect("HIVEMIND_TEST_PYTHON is not set: it must name a Python that has grpcio (scripts/test.sh does it)");
        let mut child = Command::new(python)
            .args(words)
            .arg(master.address().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, output }
    }
}

impl Drop for Grpcio {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

impl Calls for Grpcio {
    fn call(&mut self, path: &str, token: &str, body: Vec<u8>) -> Result<Vec<u8>, (u8, String)> {
        let ask = json!({"path": path, "token": token, "body": hex(&body)});
        writeln!(self.input.as_mut().unwrap(), "{ask}").unwrap();
        let answer: Value = serde_json::from_str(&self.output.next().unwrap().unwrap()).unwrap();
        match answer["body"].as_str() {
            Some(text) => Ok(unhex(text)),
            None => {
                let code = u8::try_from(answer["code"].as_u64().unwrap()).unwrap();
                Err((code, answer["message"].as_str().unwrap().to_owned()))
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// A node of the contract, as small as can be.
struct Node<'a> {
    calls: &'a mut dyn Calls,
    token: String,
    poll_id: u64,
}

impl<'a> Node<'a> {
    fn register(calls: &'a mut dyn Calls) -> Self {
        let mut node = Self { calls, token: "none".to_owned(), poll_id: 0 };
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let mut request = NodeRegistrationRequest {
            node_id: "node-1".to_owned(),
            public_key: pair.public_key().as_ref().to_vec(),
            ..NodeRegistrationRequest::default()
        };
        let first: NodeRegistrationResponse = node.call(REGISTER_NODE, &request).unwrap();
        let text = proof_text(&first.nonce, &request.node_id, &request.public_key);
        let signature = pair.sign(&text).as_ref().to_vec();
        request.proof = Some(RegistrationProof { nonce: first.nonce, signature });
        let second: NodeRegistrationResponse = node.call(REGISTER_NODE, &request).unwrap();
        node.token = second.session_token;
        node
    }

    fn call<R: Message + Default>(&mut self, path: &str, request: &impl Message) -> Result<R, (u8, String)> {
        let body = self.calls.call(path, &self.token, request.encode_to_vec())?;
        Ok(R::decode(body.as_slice()).unwrap())
    }

    fn poll(&mut self, taken: &[u64], wait_ms: u64) -> TaskAssignmentResponse {
        self.poll_id += 1;
        let request = TaskAssignmentRequest {
            node_id: "node-1".to_owned(),
            poll_id: self.poll_id,
            free: Some(Resources { cpu_millis: 4_000, memory_bytes: 4 << 30, disk_bytes: 9 << 30, slots: 4 }),
            max_assignments: 4,
            wait_ms,
            taken: taken.to_vec(),
            refused: Vec::new(),
            last_answer_too_large: false,
        };
        self.call(ASSIGN_TASK, &request).unwrap()
    }

    fn piece(&mut self, task: &str, piece: Piece) -> Result<Answer, (u8, String)> {
        let key = Some(AttemptKey { task_id: task.to_owned(), attempt: 1 });
        let request = TaskResultRequest { node_id: "node-1".to_owned(), key, piece: Some(piece) };
        self.call::<TaskResultResponse>(SUBMIT_TASK_RESULT, &request).map(|answer| answer.answer.unwrap())
    }

    fn event(&mut self, task: &str, number: u64, kind: event::Kind) -> Result<Answer, (u8, String)> {
        self.piece(task, Piece::Event(Event { number, time_ms: 1, kind: Some(kind) }))
    }

    fn chunk(&mut self, task: &str, id: (u32, u64), offset: u64, data: &[u8]) -> Result<Answer, (u8, String)> {
        let (stream, epoch) = id;
        self.piece(
            task,
            Piece::Chunk(Chunk { stream, epoch, offset, data: data.to_vec(), last: false, after_gap: false }),
        )
    }
}

fn archive(task: &Value, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    };
    add("task.json", task.to_string().as_bytes());
    for (name, content) in files {
        add(&format!("workspace/{name}"), content);
    }
    builder.into_inner().unwrap()
}

fn submit(desk: &Desk, task: Value, files: &[(&str, &[u8])]) -> Result<String, (String, String)> {
    match desk.submit(&mut archive(&task, files).as_slice()) {
        Ok(key) => Ok(key.task.to_string()),
        Err(error) => Err((error.field, error.message)),
    }
}

fn wait_for(desk: &Desk, task: &str, is_it: impl Fn(&SubmissionView) -> bool) -> SubmissionView {
    let until = Instant::now() + PATIENCE;
    let mut seen = 0;
    loop {
        let view = desk.view(task, seen, PATIENCE).unwrap();
        if is_it(&view) {
            return view;
        }
        assert!(Instant::now() < until, "{view:?}");
        seen = view.version;
    }
}

fn life(master: &Master, calls: &mut dyn Calls) {
    let desk = master.desk();
    let mut node = Node::register(calls);
    let beat = HeartbeatRequest { node_id: "node-1".to_owned(), sequence: 1, ..HeartbeatRequest::default() };
    let token = std::mem::replace(&mut node.token, "0".repeat(32));
    assert_eq!(node.call::<HeartbeatResponse>(HEARTBEAT, &beat).unwrap_err().0, 16);
    node.token = token;
    node.call::<HeartbeatResponse>(HEARTBEAT, &beat).unwrap();
    let report = NodeStatusRequest { node_id: "node-1".to_owned(), sequence: 1, ..NodeStatusRequest::default() };
    node.call::<NodeStatusResponse>(REPORT_NODE_STATUS, &report).unwrap();
    assert_eq!(node.call::<HeartbeatResponse>("/hivemind.v1.NodeService/None", &beat).unwrap_err().0, 12);
    assert_eq!(node.call::<HeartbeatResponse>(HEARTBEAT, &HeartbeatRequest::default()).unwrap_err().0, 3);

    // A held poll is answered when somebody submits: inputs of several MB go the whole way.
    let large = vec![0x5a; 8 << 20];
    let before = Instant::now();
    let submitter = {
        let (desk, large) = (desk.clone(), large.clone());
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            submit(&desk, json!({"name": "count", "cpu": 1.5}), &[("sub/text.txt", &large), ("main.py", b"x")])
        })
    };
    let answer = node.poll(&[], 25_000);
    assert!(before.elapsed() < Duration::from_secs(20));
    assert_eq!(submitter.join().unwrap().unwrap(), "count");
    let assignment = Assignment::decode(answer.offers[0].assignment.as_slice()).unwrap();
    assert_eq!(assignment.cpu_millis, 1_500);
    let digest = ring::digest::digest(&ring::digest::SHA256, &assignment.inputs);
    assert_eq!(assignment.inputs_sha256, digest.as_ref());
    let mut inputs = tar::Archive::new(assignment.inputs.as_slice());
    let names: Vec<(String, u64)> = inputs
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.path().unwrap().to_str().unwrap().to_owned(), entry.size()))
        .collect();
    assert_eq!(names, [("sub/".to_owned(), 0), ("sub/text.txt".to_owned(), 8 << 20), ("main.py".to_owned(), 1)]);
    assert_eq!(desk.view("count", 0, Duration::ZERO).unwrap().phase, "offered");
    assert_eq!(node.poll(&[answer.offers[0].offer_id], 0).offers, []);

    // The record, with two epochs of output and a file.
    let running = event::Kind::Phase(PhaseChange { phase: Phase::Running.into(), detail: String::new() });
    assert_eq!(node.event("count", 1, running).unwrap(), Answer::EventDurable(1));
    assert_eq!(node.chunk("count", (1, 1), 0, b"hello ").unwrap(), Answer::ChunkDurable(6));
    assert_eq!(node.chunk("count", (1, 2), 0, b"again\n").unwrap(), Answer::ChunkDurable(6));
    let view = wait_for(&desk, "count", |view| view.stdout_bytes == 12);
    assert_eq!(view.phase, "running");
    let part = desk.read("count", 1, 3, 100).unwrap();
    assert_eq!(
        (part.bytes.as_slice(), part.offset, part.end, part.is_closed),
        (b"lo again\n".as_slice(), 3, 12, false)
    );
    let end = |stream, epoch, bytes| StreamEnd { stream, epoch, bytes };
    let file = OutputFile { stream: 16, path: "output/r".to_owned(), size: 4, mode: 0o644, sha256: String::new() };
    let report = FinalReport {
        outcome: 1,
        exit_code: Some(0),
        outputs: vec![file],
        streams: vec![end(1, 1, 6), end(1, 2, 6), end(16, 2, 4)],
        tail: vec![1; 64 << 10],
        ..FinalReport::default()
    };
    // A part of the file came in an epoch that the report does not name.
    node.chunk("count", (16, 1), 0, b"resu").unwrap();
    node.chunk("count", (16, 2), 0, b"re").unwrap();
    node.event("count", 2, event::Kind::FinalReport(report)).unwrap();
    let view = wait_for(&desk, "count", |view| view.outcome == Some(Outcome::Succeeded));
    assert!(!view.is_complete && desk.output("count", "output/r").is_none());
    assert!(desk.read("count", 1, 12, 100).unwrap().is_closed);
    node.chunk("count", (16, 2), 2, b"ad").unwrap();
    let view = wait_for(&desk, "count", |view| view.is_complete);
    assert_eq!((view.phase.as_str(), view.final_report.unwrap().exit_code), ("delivered", Some(0)));
    let mut output = desk.output("count", "output/r").unwrap();
    let mut text = String::new();
    output.reader.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), output.size), ("read", 4));
    assert!(desk.output("count", "output/none").is_none());

    // A cancellation ends a held poll.
    submit(&desk, json!({"name": "stopped"}), &[]).unwrap();
    let offer = node.poll(&[], 0).offers[0].offer_id;
    node.poll(&[offer], 0);
    let canceller = {
        let desk = desk.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            desk.cancel("stopped")
        })
    };
    assert_eq!(node.poll(&[], 25_000).cancellations[0].key.as_ref().unwrap().task_id, "stopped");
    canceller.join().unwrap().unwrap();
    let key = |task: &str, attempt| id::AttemptKey { task: Id::parse(task).unwrap(), attempt };
    assert!(desk.read_attempt(&key(&desk.list(Listed::All, 1)[0].task, 1), 1, 0, 9).is_some());
    assert_eq!(
        desk.read_attempt(&key(&desk.list(Listed::All, 1)[0].task, 2), 1, 0, 9),
        None,
        "another attempt's output"
    );
    let names: Vec<String> = desk.list(Listed::All, 1_000).into_iter().map(|view| view.task).collect();
    assert_eq!(names, ["stopped", "count"]);
}

#[test]
fn a_task_goes_its_whole_way_over_our_own_lane() {
    let dir = Folder::new();
    let master = Master::start(MasterConfig::new(&dir.0)).unwrap();
    life(&master, &mut OurLane(lane_to(&master.url()), PATIENCE));
    master.stop();
}

#[test]
fn a_task_goes_its_whole_way_over_grpcio() {
    let dir = Folder::new();
    let master = Master::start(MasterConfig::new(&dir.0)).unwrap();
    life(&master, &mut Grpcio::to(&master));
}

#[test]
fn a_task_goes_its_whole_way_from_a_newer_node() {
    let dir = Folder::new();
    let master = Master::start(MasterConfig::new(&dir.0)).unwrap();
    life(&master, &mut Grpcio::newer(&master));
}

#[test]
fn what_only_a_newer_node_can_say_is_read_as_far_as_it_is_known() {
    const NEWER: i32 = 77;
    let dir = Folder::new();
    let master = Master::start(MasterConfig::new(&dir.0)).unwrap();
    let (desk, mut calls) = (master.desk(), Grpcio::newer(&master));
    let mut node = Node::register(&mut calls);
    submit(&desk, json!({"name": "odd"}), &[]).unwrap();
    let offer = node.poll(&[], 0).offers[0].offer_id;
    node.poll(&[offer], 0);
    let key = Some(AttemptKey { task_id: "odd".to_owned(), attempt: 1 });
    let held = vec![HeldAttempt { key: key.clone(), phase: NEWER }];
    let beat = HeartbeatRequest { node_id: "node-1".to_owned(), sequence: 1, state: NEWER, held, ..Default::default() };
    node.call::<HeartbeatResponse>(HEARTBEAT, &beat).unwrap();
    let row = desk.node(&Id::parse("node-1").unwrap()).unwrap();
    assert_eq!(row.heartbeat.unwrap().held[0].key, key);

    let phase = |phase: i32, detail: &str| event::Kind::Phase(PhaseChange { phase, detail: detail.to_owned() });
    assert_eq!(node.event("odd", 1, phase(Phase::Running.into(), "")).unwrap(), Answer::EventDurable(1));
    assert_eq!(node.event("odd", 2, phase(NEWER, "thawing")).unwrap(), Answer::EventDurable(2));
    // With an alternative of `kind` that is not known here: it must not hold up the events behind it.
    let unknown = Event { number: 3, time_ms: 1, kind: None };
    assert_eq!(node.piece("odd", Piece::Event(unknown)).unwrap(), Answer::EventDurable(3));
    assert_eq!(node.event("odd", 2, phase(NEWER, "thawing")).unwrap(), Answer::EventDurable(3));
    let view = wait_for(&desk, "odd", |view| view.notes.len() == 2);
    assert_eq!((view.phase.as_str(), view.notes[0].as_str()), ("running", "phase 77: thawing"));
    assert!(view.notes[1].contains("a kind that this master does not know"), "{view:?}");
    assert_eq!(node.chunk("odd", (1, 1), 0, b"text").unwrap(), Answer::ChunkDurable(4));
    // An end that is not known here is no good end.
    let streams = vec![StreamEnd { stream: 1, epoch: 1, bytes: 4 }];
    let report = FinalReport { outcome: NEWER, reason: "melted".to_owned(), streams, ..FinalReport::default() };
    assert_eq!(node.event("odd", 4, event::Kind::FinalReport(report)).unwrap(), Answer::EventDurable(4));
    let view = wait_for(&desk, "odd", |view| view.is_complete);
    assert_eq!(
        (view.outcome, view.final_report.unwrap().reason.as_str()),
        (Some(Outcome::Failed), "outcome 77: melted")
    );

    // A reason to refuse and a state of a cancellation that are not known here: neither is asked for without end.
    submit(&desk, json!({"name": "refused"}), &[]).unwrap();
    let offer_id = node.poll(&[], 0).offers[0].offer_id;
    let refusal = Refusal { offer_id, code: "moon-phase".to_owned(), reason: "it is full".to_owned() };
    let poll = TaskAssignmentRequest { node_id: "node-1".to_owned(), poll_id: 90, ..Default::default() };
    node.call::<TaskAssignmentResponse>(ASSIGN_TASK, &TaskAssignmentRequest { refused: vec![refusal], ..poll.clone() })
        .unwrap();
    let view = wait_for(&desk, "refused", |view| view.is_complete);
    assert_eq!(view.outcome, Some(Outcome::Rejected), "{view:?}");
    submit(&desk, json!({"name": "stopped"}), &[]).unwrap();
    node.poll_id = 90;
    let offer = node.poll(&[], 0).offers[0].offer_id;
    node.poll(&[offer], 0);
    desk.cancel("stopped").unwrap();
    let cancellation = node.poll(&[], 0).cancellations.remove(0);
    let answer =
        TaskCancelRequest { node_id: "node-1".to_owned(), key: cancellation.key, state: NEWER, reason: String::new() };
    node.call::<TaskCancelResponse>(CANCEL_TASK, &answer).unwrap();
    assert_eq!(node.poll(&[], 0).cancellations, []);
    assert!(desk.view("stopped", 0, Duration::ZERO).unwrap().outcome.is_none(), "its end is still to come");
}

#[test]
fn an_author_sees_a_wrong_field_at_once() {
    let dir = Folder::new();
    let master = Master::start(MasterConfig::new(&dir.0)).unwrap();
    let desk = master.desk();
    let table = [
        (json!({"name": "../x"}), "name", "letter or digit"),
        (json!({"name": ""}), "name", "empty"),
        (json!({"memory": 1}), "memory", "is 1 bytes, must be from 16 MiB to 1 PiB"),
        (json!({"timeout_s": 90_000}), "timeout_s", "is 90000, must be from 0.1 to 86400"),
        (json!({"grace_s": 61}), "grace_s", "is 61, must be from 0 to 60"),
        (json!({"priority": 101}), "priority", "0 to 100"),
        (json!({"image": "--privileged"}), "image", ""),
        (json!({"owner": "a b"}), "owner", ""),
        (json!({"outputs": ["/etc"]}), "outputs[0]", "below the work folder"),
        (json!({"env": {"TASK_ID": "x"}}), "env", "TASK_ID: "),
        (json!({"nmae": "x"}), "task.json", "name"),
        (json!([]), "task.json", "object"),
    ];
    for (task, field, words) in table {
        let (at, message) = submit(&desk, task.clone(), &[]).unwrap_err();
        assert_eq!(at, field, "{task}: {message}");
        assert!(message.contains(words), "{task}: {message}");
    }
    assert_eq!(desk.list(Listed::All, 1_000), []);
    let made = submit(&desk, json!({}), &[]).unwrap();
    assert!(made.starts_with("task-20") && made.len() == "task-20260101-01234567".len(), "{made}");
    submit(&desk, json!({"name": "twice"}), &[]).unwrap();
    let (field, message) = submit(&desk, json!({"name": "twice"}), &[]).unwrap_err();
    assert!(field == "name" && message.contains("exists"), "{field} {message}");
    desk.cancel("twice").unwrap();
    assert_eq!(desk.view("twice", 0, Duration::ZERO).unwrap().outcome, Some(Outcome::Cancelled));
    assert!(desk.cancel("none").is_err() && desk.view("none", 0, PATIENCE).is_none());
    let before = Instant::now();
    let seen = desk.view("twice", 0, Duration::ZERO).unwrap().version;
    assert_eq!(desk.view("twice", seen, Duration::from_millis(50)).unwrap().version, seen);
    assert!(before.elapsed() >= Duration::from_millis(50));
}

/// A master in a process of its own, which can be killed. The process is this test program again.
struct Killable {
    child: Child,
    url: String,
}

const CHILD_DIR: &str = "HIVEMIND_TEST_MASTER_DIR";

impl Killable {
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "master_of_its_own_process", "--nocapture"])
            .env(CHILD_DIR, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.map(Result::unwrap).find(|line| line.contains("URL "));
        let url = line.unwrap().split("URL ").nth(1).unwrap().to_owned();
        Self { child, url }
    }

    fn kill(mut self) {
        // SIGKILL.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Does nothing as a test of its own; see [`Killable`].
#[test]
fn master_of_its_own_process() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let master = Master::start(MasterConfig::new(dir)).unwrap();
    let task = Assignment { key: Some(AttemptKey { task_id: "a".to_owned(), attempt: 1 }), ..Assignment::default() };
    // Every start after the first finds it there.
    let _ = master.submit(task);
    println!("URL {}", master.url());
    std::thread::sleep(PATIENCE * 4);
}

/// What a node knows to be at the master.
#[derive(Default)]
struct Acknowledged {
    events: u64,
    bytes: u64,
}

fn line(number: u64) -> String {
    format!("line {number:06}\n")
}

/// Sends pieces until the master is gone. As a node does that does not know what arrived, it begins with the last one
/// that was acknowledged.
fn send_until_killed(node: &mut Node<'_>, known: &mut Acknowledged) -> Result<(), (u8, String)> {
    loop {
        let next = known.events.max(1);
        match node.event("a", next, event::Kind::Note(line(next)))? {
            Answer::EventDurable(events) if events >= next => known.events = events,
            other => panic!("{next}: {other:?}"),
        }
        let next = known.events + 1;
        assert_eq!(node.event("a", next, event::Kind::Note(line(next)))?, Answer::EventDurable(next));
        known.events = next;
        // Each line is 12 bytes; the piece begins before what is known, to be cut by the master.
        let from = known.bytes / 12;
        let back = from.saturating_sub(1);
        let data: String = (back..from + 3).map(line).collect();
        match node.chunk("a", (1, 1), back * 12, data.as_bytes())? {
            Answer::ChunkDurable(bytes) if bytes >= known.bytes => known.bytes = bytes - bytes % 12,
            other => panic!("{}: {other:?}", known.bytes),
        }
    }
}

#[test]
fn a_master_killed_at_any_moment_has_all_that_it_acknowledged_and_goes_on() {
    let dir = Folder::new();
    let mut known = Acknowledged::default();
    for round in 0..15u64 {
        let master = Killable::start(&dir.0);
        let mut lane = OurLane(lane_to(&master.url), Duration::from_secs(3));
        let mut node = Node::register(&mut lane);
        for offer in node.poll(&[], 0).offers {
            node.poll(&[offer.offer_id], 0);
        }
        // Odd steps, so that the kill meets other moments each time.
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(2_000 + round * 3_701));
            master.kill();
        });
        let (code, _) = send_until_killed(&mut node, &mut known).unwrap_err();
        // Under way when the master went, or waiting for it to come back.
        assert!(matches!(code, 14 | 4), "{code}");
        killer.join().unwrap();
    }
    let master = Master::start(MasterConfig::new(&dir.0)).unwrap();
    let desk = master.desk();
    let mut lane = OurLane(lane_to(&master.url()), PATIENCE);
    let mut node = Node::register(&mut lane);
    let Answer::EventDurable(last) = node.event("a", known.events, event::Kind::Note(line(known.events))).unwrap()
    else {
        panic!("no answer for an event");
    };
    assert!(last == known.events || last == known.events + 1, "{last} after {}", known.events);
    let Answer::ChunkDurable(bytes) = node.chunk("a", (1, 1), 0, b"").unwrap() else {
        panic!("no answer for a chunk");
    };
    assert!(bytes >= known.bytes && known.events > 2, "{bytes} {} {}", known.bytes, known.events);
    let streams = vec![StreamEnd { stream: 1, epoch: 1, bytes }];
    let report = FinalReport { outcome: 1, streams, ..FinalReport::default() };
    for _ in 0..2 {
        let answer = node.event("a", last + 1, event::Kind::FinalReport(report.clone())).unwrap();
        assert_eq!(answer, Answer::EventDurable(last + 1));
    }
    let view = desk.view("a", 0, Duration::ZERO).unwrap();
    assert!(view.is_complete && view.outcome == Some(Outcome::Succeeded));
    let content: String = (0..bytes / 12 + 1).map(line).collect();
    let stored = desk.read("a", 1, 0, 4 << 20).unwrap().bytes;
    assert_eq!(stored, content.as_bytes()[..stored.len()]);
    assert_eq!(stored.len() as u64, bytes);
    let record = std::fs::read_to_string(dir.0.join("tasks/a/1/record.jsonl")).unwrap();
    assert_eq!(record.lines().count() as u64, last + 1);
    for (number, text) in record.lines().enumerate().take(last as usize) {
        let entry: Value = serde_json::from_str(text).unwrap();
        let number = number as u64 + 1;
        assert_eq!(entry["event"]["number"], number);
        assert_eq!(entry["event"]["kind"]["note"], line(number));
    }
}
