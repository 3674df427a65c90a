//! The client commands against a scripted worker at the control socket: exit codes, live output, saved files, refusals.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// Answers by method and path; the query of a logs call is honoured, other queries are ignored.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    seen: Arc<Mutex<Vec<Request>>>,
}

/// Status and body.
type Answer = (u16, Vec<u8>);
/// Method and path, and body.
type Request = (String, Vec<u8>);

struct Scene {
    dir: PathBuf,
    script: Script,
}

impl Scene {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("hivemind-client-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("state")).unwrap();
        std::fs::create_dir_all(dir.join("task")).unwrap();
        std::fs::write(dir.join("task/main.py"), "print('hi')\n").unwrap();
        let listener = UnixListener::bind(dir.join("state/control.sock")).unwrap();
        let script = Script::default();
        let server = script.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                server.serve(stream.unwrap());
            }
        });
        script.answer("POST /api/v1/submissions", 201, &json!({"task": "t1", "attempt": 1}));
        script.answer("GET /api/v1/status", 200, &json!({"unused": true}));
        Self { dir, script }
    }

    /// A task that has ended.
    fn ended(&self, outcome: &str, exit_code: Value, outputs: Value) -> &Self {
        let report = json!({
            "outcome": outcome, "exit_code": exit_code, "reason": "because", "duration_ms": 1500,
            "usage": {"cpu_ms": 700, "peak_memory_bytes": 1048576, "memory_bytes": 0, "pids": 0,
                "disk_read_bytes": 0, "disk_written_bytes": 0},
            "image_digest": "", "outputs": outputs, "cut": [], "streams": [], "tail": []
        });
        self.view(json!({"outcome": outcome, "final_report": report, "is_complete": true, "phase": "delivered"}))
    }

    fn view(&self, mut changes: Value) -> &Self {
        let length = |stream: &str| {
            let answers = self.script.answers.lock().unwrap();
            answers.get(&format!("log {stream}")).map_or(0, |(_, bytes)| bytes.len())
        };
        let mut view = json!({
            "task": "t1", "attempt": 1, "version": 7, "phase": "running", "outcome": null, "final_report": null,
            "is_complete": false, "stdout_bytes": length("stdout"), "stderr_bytes": length("stderr"), "notes": ["a note"]
        });
        view.as_object_mut().unwrap().append(changes.as_object_mut().unwrap());
        self.script.answer("GET /api/v1/submissions/t1", 200, &view);
        self
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hivemind-worker"));
        command.args(args).arg("--state").arg(self.dir.join("state")).current_dir(&self.dir).env_clear();
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Script {
    fn answer(&self, what: &str, status: u16, body: &Value) {
        self.bytes(what, status, body.to_string().as_bytes());
    }

    fn bytes(&self, what: &str, status: u16, body: &[u8]) {
        self.answers.lock().unwrap().insert(what.to_owned(), (status, body.to_vec()));
    }

    fn saw(&self, what: &str) -> Option<Vec<u8>> {
        let seen = self.seen.lock().unwrap();
        seen.iter().find(|(line, _)| line == what).map(|(_, body)| body.clone())
    }

    fn serve(&self, stream: UnixStream) {
        let mut reader = BufReader::new(&stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                break;
            }
            lines.push(line.trim_end().to_owned());
        }
        let Some(first) = lines.first() else { return };
        let length =
            lines.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body).unwrap();
        let target = first.strip_suffix(" HTTP/1.1").unwrap();
        let (what, query) = target.split_once('?').unwrap_or((target, ""));
        self.seen.lock().unwrap().push((what.to_owned(), body));
        let (status, mut answer, fields) = self.find(what, query);
        let head =
            format!("HTTP/1.1 {status} X\r\n{fields}Connection: close\r\nContent-Length: {}\r\n\r\n", answer.len());
        let mut all = head.into_bytes();
        all.append(&mut answer);
        let _ = (&stream).write_all(&all);
    }

    fn find(&self, what: &str, query: &str) -> (u16, Vec<u8>, String) {
        let answers = self.answers.lock().unwrap();
        let value = |name: &str| {
            let pair = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            pair.unwrap_or_default().to_owned()
        };
        if what.ends_with("/logs") {
            assert_eq!(value("raw"), "1");
            let (_, log) = answers.get(&format!("log {}", value("stream"))).cloned().unwrap_or_default();
            let offset: usize = value("offset").parse().unwrap();
            // In small pieces, so that the client has to come back, and characters are cut.
            let part: Vec<u8> = log.iter().skip(offset).take(5).copied().collect();
            let is_closed = offset + part.len() >= log.len();
            return (200, part, format!("X-Offset: {offset}\r\nX-End: {}\r\nX-Closed: {is_closed}\r\n", log.len()));
        }
        match answers.get(what) {
            Some((status, body)) => (*status, body.clone(), String::new()),
            None => (404, json!({"error": format!("nothing at {what}")}).to_string().into_bytes(), String::new()),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn each_outcome_has_its_exit_code() {
    for (outcome, exit_code, expected) in [
        ("Succeeded", json!(0), 0),
        ("Failed", json!(3), 3),
        ("Failed", json!(null), 126),
        ("OutOfMemory", json!(0), 137),
        ("TimedOut", json!(143), 124),
        ("DiskLimit", json!(null), 126),
        ("Cancelled", json!(143), 130),
        ("Rejected", json!(null), 125),
        ("NodeFault", json!(null), 125),
        ("Preempted", json!(null), 126),
        ("Superseded", json!(null), 126),
    ] {
        let scene = Scene::new(&format!("outcome-{outcome}-{expected}"));
        scene.ended(outcome, exit_code.clone(), json!([]));
        let output = scene.run(&["submit", "task", "--wait", "--json"]);
        assert_eq!(output.status.code(), Some(expected), "{outcome} {}", text(&output.stderr));
        let stdout = text(&output.stdout);
        let result: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
        let wanted = json!({
            "task": "t1", "attempt": 1, "outcome": outcome, "exit_code": exit_code, "reason": "because",
            "duration_ms": 1500, "peak_memory_bytes": 1048576, "cpu_ms": 700, "outputs": [], "cut": [],
            "usage": result["usage"], "image_digest": result["image_digest"],
            // Of a worker from before these were told.
            "phases": [], "limits": null, "figures": null, "evidence": null
        });
        assert_eq!(result["usage"]["cpu_ms"], 700);
        assert_eq!(result, wanted);
    }
}

#[test]
fn live_output_passes_through_byte_by_byte() {
    let scene = Scene::new("live");
    let bytes = "grün 🐝\n\x1b[31mred\x1b[0m\r\n".bytes().chain([0xff, 0, b'\n']).collect::<Vec<u8>>();
    scene.script.bytes("log stdout", 200, &bytes);
    scene.script.bytes("log stderr", 200, b"to stderr\n");
    scene.ended("Failed", json!(3), json!([]));
    let output = scene.run(&["submit", "task", "--wait"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stdout, bytes, "no terminal: nothing is changed");
    let stderr = text(&output.stderr);
    for part in
        ["t1#1 submitted", "t1#1 delivered", "note: a note", "to stderr\n", "t1#1 Failed, exit code 3", ": because"]
    {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
}

#[test]
fn control_characters_are_escaped_on_a_terminal() {
    // `script` gives a command a terminal; it is part of util-linux, which each Debian has.
    let scene = Scene::new("terminal");
    scene.script.bytes("log stdout", 200, "a\x1b]0;title\x07b 🐝\r\n".as_bytes());
    scene.ended("Succeeded", json!(0), json!([]));
    let state = scene.path("state");
    let command = format!("{} submit task --wait --state {}", env!("CARGO_BIN_EXE_hivemind-worker"), state.display());
    let output = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .current_dir(&scene.dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("a\\x1b]0;title\\x07b 🐝\r\n"), "{shown:?}");
    assert!(!shown.contains('\x1b'), "{shown:?}");
}

#[test]
fn outputs_are_checked_and_saved() {
    let scene = Scene::new("outputs");
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let file = |path: &str, sha256: &str| json!({"stream": 16, "path": path, "size": 3, "mode": 420, "sha256": sha256});
    scene.ended("Succeeded", json!(0), json!([file("output/a b?#.txt", abc)]));
    scene.script.bytes("GET /api/v1/submissions/t1/outputs/output/a%20b%3F%23.txt", 200, b"abc");
    let output = scene.run(&["submit", "task", "--wait", "--output", "out/deep", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(std::fs::read(scene.path("out/deep/output/a b?#.txt")).unwrap(), b"abc");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["outputs"], json!([{"path": "output/a b?#.txt", "size": 3, "sha256": abc}]));

    scene.ended("Succeeded", json!(0), json!([file("output/bad", &abc.replace('b', "c")), file("output/good", abc)]));
    scene.script.bytes("GET /api/v1/submissions/t1/outputs/output/bad", 200, b"abc");
    scene.script.bytes("GET /api/v1/submissions/t1/outputs/output/good", 200, b"abc");
    let output = scene.run(&["submit", "task", "--wait", "--output", "out"]);
    assert_eq!(output.status.code(), Some(126));
    assert!(text(&output.stderr).contains("SHA-256 differs"), "{}", text(&output.stderr));
    assert!(!scene.path("out/output/bad").exists());
    assert!(scene.path("out/output/good").exists(), "one that fails doesn't keep the others");
}

#[test]
fn files_that_were_cut_are_named_and_count_when_files_were_wanted() {
    let scene = Scene::new("cut");
    let report = json!({"outcome": "Succeeded", "exit_code": 0, "cut": ["output/big: too large"]});
    scene.view(json!({"final_report": report, "is_complete": true}));
    for (args, code) in [(&["submit", "task", "--wait"][..], 0), (&["submit", "task", "--wait", "--output", "o"], 126)]
    {
        let output = scene.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert!(text(&output.stderr).contains("not complete: output/big: too large\n"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_path_that_leads_out_is_refused() {
    for path in ["../evil", "/tmp/evil", "output/../../evil", "output//x", "./x"] {
        let scene = Scene::new("traversal");
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        scene.ended(
            "Succeeded",
            json!(0),
            json!([{"stream": 16, "path": path, "size": 3, "mode": 420, "sha256": abc}]),
        );
        let output = scene.run(&["submit", "task", "--wait", "--output", "out"]);
        assert_eq!(output.status.code(), Some(126), "{path}");
        assert!(text(&output.stderr).contains("leads out of the folder"), "{}", text(&output.stderr));
        assert!(!scene.path("evil").exists());
        let seen = scene.script.seen.lock().unwrap();
        assert!(seen.iter().all(|(line, _)| !line.contains("outputs")), "it isn't even asked for");
    }
}

#[test]
fn the_archive_has_the_task_first_and_inputs_below_workspace() {
    let scene = Scene::new("archive");
    std::fs::write(scene.path("task/task.json"), r#"{"cpu": 0.5, "name": "n"}"#).unwrap();
    let output = scene.run(&["submit", "task", "--name", "other"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "t1\n"));
    let output = scene.run(&["submit", "task", "--json"]);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result, json!({"task": "t1", "attempt": 1}));
    let archive = scene.script.saw("POST /api/v1/submissions").unwrap();
    let mut archive = tar::Archive::new(archive.as_slice());
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        found.push((entry.path().unwrap().to_str().unwrap().to_owned(), content));
    }
    assert_eq!(found[0].0, "task.json");
    let task: Value = serde_json::from_str(&found[0].1).unwrap();
    assert_eq!(task, json!({"cpu": 0.5, "name": "other"}));
    assert_eq!(found[1..], [("workspace/main.py".to_owned(), "print('hi')\n".to_owned())]);
}

#[test]
fn mistakes_in_a_task_are_told_before_anything_is_sent() {
    let scene = Scene::new("mistakes");
    let file = |name: &str, text: &str| {
        std::fs::write(scene.path(name), text).unwrap();
        name.to_owned()
    };
    let unknown = file("a.json", "{\n  \"timeot_s\": 3}");
    std::os::unix::fs::symlink("/etc/passwd", scene.path("task/link")).unwrap();
    std::fs::create_dir(scene.path("empty")).unwrap();
    for (source, message) in [
        (unknown.as_str(), "a.json: line 2, column 12: unknown key \"timeot_s\": the nearest is \"timeout_s\""),
        ("task", "task/link is a symbolic link: only files and folders are taken"),
        ("empty", "empty has no main.py or other .py file to start"),
        ("missing", "missing can't be read: No such file or directory"),
    ] {
        let output = scene.run(&["submit", source]);
        assert_eq!(output.status.code(), Some(2), "{source}");
        assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
    }
    assert!(scene.script.seen.lock().unwrap().is_empty());
}

#[test]
fn refusals_are_shown_in_the_workers_own_words() {
    let scene = Scene::new("refusal");
    scene.script.answer(
        "POST /api/v1/submissions",
        409,
        &json!({"error": "this node is not standalone; give tasks to its master"}),
    );
    let output = scene.run(&["submit", "task", "--wait"]);
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(text(&output.stderr), "hivemind-worker: this node is not standalone; give tasks to its master\n");
    scene.script.answer("POST /api/v1/submissions", 422, &json!({"error": "memory is 1 MiB, must be more"}));
    std::fs::write(scene.path("task/task.json"), "{}").unwrap();
    let output = scene.run(&["submit", "task"]);
    assert_eq!(output.status.code(), Some(2), "a mistake in the task file");
    assert_eq!(text(&output.stderr), "hivemind-worker: task/task.json: memory is 1 MiB, must be more\n");
    scene.script.bytes("POST /api/v1/drain", 503, b"<html>");
    let output = scene.run(&["drain"]);
    assert_eq!((output.status.code(), text(&output.stderr).contains("the worker answered 503")), (Some(1), true));
    scene.script.answer("POST /api/v1/drain", 202, &json!({"accepted": "drain"}));
    assert_eq!(scene.run(&["drain"]).status.code(), Some(0));
}

#[test]
fn status_logs_and_cancel_find_what_the_node_holds() {
    let scene = Scene::new("held");
    let mut snapshot = serde_json::to_value(hivemind_worker::node::snapshot::Snapshot::default()).unwrap();
    snapshot["node_id"] = json!("n1");
    snapshot["attempts"] = json!([{
        "task": "held", "attempt": 2, "owner": "o", "image": "i", "phase": "running", "phase_since_ms": 0,
        "detail": "works\u{1b}[2J", "limits": {"cpu_millis": 1500, "memory_bytes": 1048576, "disk_bytes": 0, "slots": 1},
        "priority": 50, "usage": snapshot_usage(), "cpu_percent": null, "running_ms": 0, "timeout_ms": 0, "tail": ""
    }]);
    scene.script.answer("GET /api/v1/status", 200, &snapshot);
    scene.script.answer("GET /api/v1/history", 200, &json!({"history": []}));
    let status = text(&scene.run(&["status"]).stdout);
    assert!(status.contains("n1") && status.contains("held#2") && status.contains("works\\x1b[2J"), "{status}");
    let tasks = scene.run(&["tasks", "--json"]);
    let value: Value = serde_json::from_slice(&tasks.stdout).unwrap();
    assert_eq!(value["tasks"][0]["task"], "held");
    let raw: Value = serde_json::from_slice(&scene.run(&["status", "--json"]).stdout).unwrap();
    assert_eq!(raw, snapshot);

    scene.script.bytes("log stdout", 200, b"line 1\nline 2\n");
    let logs = scene.run(&["logs", "held"]);
    assert_eq!((logs.status.code(), logs.stdout.as_slice()), (Some(0), &b"line 1\nline 2\n"[..]));
    assert!(scene.script.saw("GET /api/v1/tasks/held/2/logs").is_some());

    scene.script.answer("POST /api/v1/tasks/held/2/stop", 202, &json!({"accepted": "stop"}));
    assert_eq!(scene.run(&["cancel", "held"]).status.code(), Some(0));
    let unknown = scene.run(&["cancel", "other"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("this node holds no task other"), "{}", text(&unknown.stderr));
}

#[test]
fn tasks_and_logs_show_what_waits_or_ended_at_the_small_master() {
    let scene = Scene::new("at-master");
    let mut snapshot = serde_json::to_value(hivemind_worker::node::snapshot::Snapshot::default()).unwrap();
    snapshot["is_standalone"] = json!(true);
    scene.script.answer("GET /api/v1/status", 200, &snapshot);
    scene.script.answer("GET /api/v1/history", 200, &json!({"history": []}));
    scene.view(json!({"phase": "waiting", "waits": "all slots of node n are in use", "is_at_master": true}));
    let report = json!({"outcome": "Cancelled", "reason": "cancelled by its author"});
    let ended = json!({"task": "gone", "attempt": 1, "version": 8, "phase": "delivered", "final_report": report,
        "is_complete": true, "is_at_master": true});
    let waiting: Value = {
        let answers = scene.script.answers.lock().unwrap();
        serde_json::from_slice(&answers["GET /api/v1/submissions/t1"].1).unwrap()
    };
    scene.script.answer("GET /api/v1/submissions", 200, &json!({"submissions": [waiting, ended]}));
    scene.script.answer("GET /api/v1/submissions/gone", 200, &ended);

    let tasks = text(&scene.run(&["tasks"]).stdout);
    let line = |start: &str| tasks.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{tasks}"));
    assert!(line("t1#1").contains("waiting") && line("t1#1").ends_with("all slots of node n are in use"), "{tasks}");
    assert!(line("gone#1").contains("Cancelled") && line("gone#1").ends_with("cancelled by its author"), "{tasks}");
    let value: Value = serde_json::from_slice(&scene.run(&["tasks", "--json"]).stdout).unwrap();
    assert_eq!(value["submissions"][1]["task"], "gone");

    let logs = scene.run(&["logs", "t1"]);
    let stderr = text(&logs.stderr);
    assert!(stderr.starts_with("t1#1 has not started yet: waiting: all slots of node n are in use\n"), "{stderr}");
    assert!(stderr.ends_with("t1#1 note: a note\n"), "{stderr}");
    let stderr = text(&scene.run(&["logs", "gone"]).stderr);
    assert_eq!(stderr, "gone#1 never ran: Cancelled: cancelled by its author\n");

    scene.script.answer("POST /api/v1/submissions/gone/cancel", 409, &json!({"error": "it is over"}));
    let cancel = scene.run(&["cancel", "gone"]);
    assert_eq!(cancel.status.code(), Some(1));
    assert_eq!(text(&cancel.stderr), "hivemind-worker: gone has ended: Cancelled\n");
}

fn snapshot_usage() -> Value {
    serde_json::to_value(hivemind_worker::node::record::Usage::default()).unwrap()
}

#[test]
fn ctrl_c_leaves_the_task_running_and_says_how_to_cancel() {
    let scene = Scene::new("interrupt");
    scene.view(json!({}));
    let mut child = scene.command(&["submit", "task", "--wait"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("running") {}
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(rest.iter().any(|line| line.contains("goes on without us: `hivemind-worker cancel t1`")), "{rest:?}");
    assert!(scene.script.saw("POST /api/v1/submissions/t1/cancel").is_none());
}

#[test]
fn ctrl_c_acts_at_once_though_the_worker_hangs() {
    let dir = std::env::temp_dir().join(format!("hivemind-client-hang-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let listener = UnixListener::bind(dir.join("control.sock")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_hivemind-worker"))
        .args(["logs", "t1", "--follow", "--state"])
        .arg(&dir)
        .spawn()
        .unwrap();
    let _held = listener.accept().unwrap();
    let start = std::time::Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < std::time::Duration::from_secs(10));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn the_reason_why_a_task_waits_is_told_when_it_changes() {
    let scene = Scene::new("waits");
    scene.view(json!({"phase": "waiting", "waits": "node n is paused by its owner"}));
    let mut child = scene.command(&["submit", "task", "--wait"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while lines.next().unwrap().unwrap() != "t1#1 waits: node n is paused by its owner" {}
    scene.view(json!({"phase": "waiting", "waits": "all slots of node n are in use"}));
    while lines.next().unwrap().unwrap() != "t1#1 waits: all slots of node n are in use" {}
    scene.ended("Succeeded", json!(0), json!([]));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_worker_that_restarts_is_waited_for() {
    let scene = Scene::new("restart");
    scene.view(json!({}));
    let mut child = scene.command(&["submit", "task", "--wait"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("running") {}
    let (socket, aside) = (scene.path("state/control.sock"), scene.path("state/aside.sock"));
    std::fs::rename(&socket, &aside).unwrap();
    while !lines.next().unwrap().unwrap().contains("lost the worker") {}
    scene.ended("Succeeded", json!(0), json!([]));
    std::fs::rename(&aside, &socket).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn monitor_prints_the_address_with_the_token() {
    let scene = Scene::new("monitor");
    let mut snapshot = serde_json::to_value(hivemind_worker::node::snapshot::Snapshot::default()).unwrap();
    snapshot["monitor"] = json!("http://127.0.0.1:5001/monitor.html");
    scene.script.answer("GET /api/v1/status", 200, &snapshot);
    write_token(&scene.path("state/monitor.token"), "0123456789abcdef0123456789abcdef\n");
    let output = scene.run(&["monitor"]);
    let expected = "http://127.0.0.1:5001/monitor.html#token=0123456789abcdef0123456789abcdef\n";
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
}

fn write_token(path: &Path, token: &str) {
    std::fs::write(path, token).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}
