//! The routes as values, without a socket.

use std::io;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use super::*;
use crate::monitor::{Listed, SubmissionView, SubmitError};
use crate::node::id::{AttemptKey, Id};
use crate::node::record::{Phase, Usage};
use crate::node::resources::Resources;
use crate::node::snapshot::AttemptView;

struct Fixed(Vec<u8>, bool);

impl Logs for Fixed {
    fn read(&self, key: &AttemptKey, stream: u32, offset: u64, max: usize) -> Option<LogPart> {
        let from = usize::try_from(offset).ok()?.min(self.0.len());
        let to = (from + max).min(self.0.len());
        let is_here = key.task.as_str() == "word-count" && stream == STDOUT;
        let bytes = self.0[from..to].to_vec();
        is_here.then_some(LogPart { bytes, offset: from as u64, end: self.0.len() as u64, is_closed: self.1 })
    }
}

struct Small;

impl Submissions for Small {
    fn submit(&self, archive: &mut dyn Read) -> Result<AttemptKey, SubmitError> {
        let mut text = String::new();
        let read = archive.read_to_string(&mut text);
        let wrong = |field: &str, message: &str| SubmitError { field: field.to_owned(), message: message.to_owned() };
        read.map_err(|error| wrong("", &error.to_string()))?;
        let task = Id::parse(&text).map_err(|error| wrong("task", &error.to_string()))?;
        Ok(AttemptKey { task, attempt: 1 })
    }
    fn list(&self, _: Listed, _: usize) -> Vec<SubmissionView> {
        self.view("a", 0, Duration::ZERO).into_iter().collect()
    }
    fn view(&self, task: &str, _: u64, _: Duration) -> Option<SubmissionView> {
        (task == "a").then(|| SubmissionView {
            task: "a".to_owned(),
            attempt: 1,
            version: 7,
            phase: "running".to_owned(),
            outcome: None,
            final_report: None,
            is_complete: false,
            stdout_bytes: 0,
            stderr_bytes: 0,
            notes: vec!["\x1b".to_owned()],
            waits: Some("\x1b".to_owned()),
            ..SubmissionView::default()
        })
    }
    fn read(&self, task: &str, _: u32, offset: u64, _: usize) -> Option<LogPart> {
        (task == "a").then(|| LogPart { bytes: b"\x1b".to_vec(), offset, end: 9, is_closed: false })
    }
    fn output(&self, task: &str, path: &str) -> Option<OutputContent> {
        let is_there = task == "a" && path == "output/b c.txt";
        is_there.then(|| OutputContent { reader: Box::new(io::Cursor::new("result")), size: 6 })
    }
    fn cancel(&self, _: &str) -> Result<(), String> {
        Err("it is over".to_owned())
    }
}

struct Bench {
    context: Context,
    actions: Receiver<Action>,
}

fn bench() -> Bench {
    let (sender, actions) = bounded(1);
    let key = AttemptKey { task: Id::parse("word-count").unwrap(), attempt: 2 };
    let attempt = AttemptView {
        key,
        owner: Id::parse("o").unwrap(),
        image: "<img src=x>".to_owned(),
        phase: Phase::Running,
        phase_since_ms: 0,
        detail: "a\u{202e}b".to_owned(),
        limits: Resources::default(),
        priority: 50,
        usage: Usage::default(),
        cpu_percent: None,
        running_ms: 0,
        timeout_ms: 0,
        tail: "\x1b[2J".to_owned(),
    };
    let snapshot = Snapshot { attempts: vec![attempt], ..Snapshot::default() };
    let context = Context {
        snapshot: Watch::new(snapshot),
        actions: sender,
        submissions: Some(Arc::new(Small)),
        logs: Arc::new(Fixed("zwölf\x07".as_bytes().to_vec(), false)),
        stop: Watch::new(false),
    };
    Bench { context, actions }
}

impl Bench {
    fn ask_with(&self, method: Method, target: &str, is_control: bool, mut body: &[u8]) -> (u16, Reply, String) {
        let Some(ask) = Ask::new(method, target, is_control) else {
            return (404, Reply::error(404, ""), String::new());
        };
        let mut reply = answer(&self.context, &ask, &mut body);
        let mut text = String::new();
        match &mut reply.body {
            Body::Bytes(bytes) => text = String::from_utf8_lossy(bytes).into_owned(),
            Body::Stream(content) => drop(content.reader.read_to_string(&mut text).unwrap()),
        }
        (reply.status, reply, text)
    }

    fn ask(&self, method: Method, target: &str) -> (u16, String) {
        let (status, _, text) = self.ask_with(method, target, false, &[]);
        (status, text)
    }
}

fn field<'a>(reply: &'a Reply, name: &str) -> &'a str {
    reply.fields.iter().find(|(key, _)| *key == name).unwrap().1.as_str()
}

#[test]
fn each_path_has_its_methods() {
    let bench = bench();
    for path in
        ["/api/v1/status", "/api/v1/tasks", "/api/v1/history", "/healthz", "/readyz", "/metrics", "/monitor.html"]
    {
        assert_eq!(bench.ask(Method::Get, path).0, 200, "{path}");
        assert_eq!(bench.ask(Method::Head, path).0, 200, "{path}");
        assert_eq!(bench.ask(Method::Post, path).0, 405, "{path}");
    }
    for path in ["/api/v1/pause", "/api/v1/tasks/word-count/2/stop", "/api/v1/submissions/a/cancel"] {
        let (status, reply, _) = bench.ask_with(Method::Get, path, false, &[]);
        assert_eq!((status, field(&reply, "Allow")), (405, "POST"), "{path}");
    }
    for path in ["/api", "/monitor.html/", "//", "/api/v1/status/x", "/api/v1/..", "/monitor.htm"] {
        assert_eq!(bench.ask(Method::Get, path).0, 404, "{path}");
    }
    for path in ["/", "/monitor"] {
        let (status, reply, _) = bench.ask_with(Method::Get, path, false, &[]);
        assert_eq!((status, field(&reply, "Location")), (302, "/monitor.html"));
    }
}

#[test]
fn an_action_is_handed_on_or_refused_when_nobody_takes_it() {
    let bench = bench();
    assert_eq!(bench.ask(Method::Post, "/api/v1/tasks/word-count/1/stop").0, 404);
    assert_eq!(bench.ask(Method::Post, "/api/v1/tasks/word-count/2/stop").0, 202);
    assert_eq!(bench.ask(Method::Post, "/api/v1/drain").0, 503);
    assert!(matches!(bench.actions.try_recv(), Ok(Action::StopTask(key)) if key.attempt == 2));
    assert_eq!(bench.ask(Method::Post, "/api/v1/drain").0, 202);
    assert_eq!(bench.actions.try_recv(), Ok(Action::Drain));
}

#[test]
fn what_tasks_wrote_is_shown_as_text() {
    let (_, text) = bench().ask(Method::Get, "/api/v1/tasks");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["tasks"][0]["tail"], "\\x1b[2J");
    assert_eq!(value["tasks"][0]["detail"], "a\\u{202e}b");
    assert_eq!(value["tasks"][0]["image"], "<img src=x>");
}

#[test]
fn logs_go_on_where_the_last_part_ended() {
    let bench = bench();
    let (status, reply, text) =
        bench.ask_with(Method::Get, "/api/v1/tasks/word-count/2/logs?stream=stdout&max=4", false, &[]);
    assert_eq!((status, text.as_str(), field(&reply, "X-Next-Offset"), field(&reply, "X-End")), (200, "zwö", "4", "7"));
    let (_, reply, text) = bench.ask_with(Method::Get, "/api/v1/tasks/word-count/2/logs?offset=3", true, &[]);
    assert_eq!((text.as_str(), field(&reply, "X-Offset")), ("\u{fffd}lf\\x07", "3"));
    let (_, _, text) = bench.ask_with(Method::Get, "/api/v1/tasks/word-count/2/logs?offset=4&raw=1", true, &[]);
    assert_eq!(text, "lf\x07");
    for (status, target) in [
        (403, "/api/v1/tasks/word-count/2/logs?raw=1"),
        (400, "/api/v1/tasks/word-count/2/logs?offset=-1"),
        (400, "/api/v1/tasks/word-count/2/logs?stream=3"),
        (404, "/api/v1/tasks/word-count/x/logs"),
        (404, "/api/v1/tasks/other/2/logs"),
    ] {
        assert_eq!(bench.ask(Method::Get, target).0, status, "{target}");
    }
}

#[test]
fn readiness_says_why_not() {
    let bench = bench();
    bench.context.snapshot.set(Snapshot {
        state: NodeState::Degraded,
        state_reason: "no engine".to_owned(),
        ..Snapshot::default()
    });
    assert_eq!(bench.ask(Method::Get, "/readyz"), (503, "{\"error\":\"degraded: no engine\"}".to_owned()));
    assert_eq!(bench.ask(Method::Get, "/healthz").0, 200);
}

#[test]
fn submissions_come_over_the_control_socket_only() {
    let bench = bench();
    let submit = |is_control, body: &[u8]| {
        let (status, _, text) = bench.ask_with(Method::Post, "/api/v1/submissions", is_control, body);
        (status, text)
    };
    assert_eq!(submit(false, b"a").0, 403);
    assert_eq!(submit(true, b"a"), (201, "{\"task\":\"a\",\"attempt\":1}".to_owned()));
    let (status, text) = submit(true, b"-");
    assert!(status == 422 && text.contains("\"field\":\"task\""), "{status} {text}");
    let mut master = bench;
    master.context.submissions = None;
    let (status, text) = master.ask(Method::Get, "/api/v1/submissions");
    assert_eq!((status, text.as_str()), (409, "{\"error\":\"this node is not standalone; give tasks to its master\"}"));
}

#[test]
fn a_submission_is_watched_read_and_fetched() {
    let bench = bench();
    let (status, text) = bench.ask(Method::Get, "/api/v1/submissions/a?seen=6&wait_ms=99999999");
    assert!(status == 200 && text.contains("\"notes\":[\"\\\\x1b\"],\"waits\":\"\\\\x1b\""), "{text}");
    assert_eq!(bench.ask(Method::Get, "/api/v1/submissions/a?seen=7&wait_ms=1").0, 200);
    assert_eq!(bench.ask(Method::Get, "/api/v1/submissions/b").0, 404);
    assert_eq!(bench.ask(Method::Get, "/api/v1/submissions/a/logs?stream=stderr"), (200, "\\x1b".to_owned()));
    assert_eq!(bench.ask(Method::Get, "/api/v1/submissions/a/outputs/output/b%20c.txt"), (200, "result".to_owned()));
    assert_eq!(bench.ask(Method::Post, "/api/v1/submissions/a/cancel").0, 409);
    assert_eq!(bench.ask(Method::Post, "/api/v1/submissions/b/cancel").0, 404);
    for path in ["", "/", "/..%2f..%2fetc/passwd", "/../x", "/%2e%2e/x", "/output//b c.txt", "/output%2fb%20c.txt"] {
        let target = format!("/api/v1/submissions/a/outputs{path}");
        assert_eq!(bench.ask(Method::Get, &target).0, 404, "{target}");
    }
}
