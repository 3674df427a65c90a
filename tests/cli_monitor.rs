//! The client commands against the real control socket and monitor, with a small master that has one ended task.

#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use hivemind_worker::monitor::{
    Listed, LogPart, Logs, Monitor, MonitorConfig, OutputContent, SubmissionView, Submissions, SubmitError, read_token,
};
use hivemind_worker::node::action::Action;
use hivemind_worker::node::id::{AttemptKey, Id};
use hivemind_worker::node::record::{FinalReport, Outcome, OutputFile, STDOUT};
use hivemind_worker::node::snapshot::Snapshot;
use hivemind_worker::standalone::archive;
use hivemind_worker::sys::watch::Watch;

struct NoLogs;

impl Logs for NoLogs {
    fn read(&self, _: &AttemptKey, _: u32, _: u64, _: usize) -> Option<LogPart> {
        None
    }
}

/// Holds one task that printed `log` and left `output`.
struct Ended {
    log: Vec<u8>,
    output: Vec<u8>,
    taken: Mutex<Option<archive::Submission>>,
    is_cancelled: Mutex<bool>,
}

impl Ended {
    fn report(&self) -> FinalReport {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.output);
        let sha256 = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let size = self.output.len() as u64;
        let file = OutputFile { stream: 16, path: "output/ä b%.bin".to_owned(), size, mode: 0o644, sha256 };
        let mut report = FinalReport::without_run(Outcome::Failed, "exit code 3");
        report.exit_code = Some(3);
        report.outputs = vec![file];
        report
    }
}

impl Submissions for Ended {
    fn submit(&self, bytes: &mut dyn Read) -> Result<AttemptKey, SubmitError> {
        let read = archive::read(bytes).map_err(|error| SubmitError {
            field: String::new(),
            message: format!("{} {}", error.part, error.message),
        })?;
        *self.taken.lock().unwrap() = Some(read);
        Ok(AttemptKey { task: Id::parse("t1").unwrap(), attempt: 1 })
    }

    fn list(&self, _: Listed, _: usize) -> Vec<SubmissionView> {
        Vec::new()
    }

    fn view(&self, task: &str, _: u64, _: Duration) -> Option<SubmissionView> {
        let report = self.report();
        (task == "t1").then(|| SubmissionView {
            task: task.to_owned(),
            attempt: 1,
            version: 9,
            phase: "delivered".to_owned(),
            outcome: Some(report.outcome),
            final_report: Some(report),
            is_complete: true,
            stdout_bytes: self.log.len() as u64,
            stderr_bytes: 0,
            ..SubmissionView::default()
        })
    }

    fn read(&self, task: &str, stream: u32, offset: u64, max: usize) -> Option<LogPart> {
        let log: &[u8] = if stream == STDOUT { &self.log } else { &[] };
        let start = usize::try_from(offset).unwrap().min(log.len());
        let bytes = log[start..].iter().take(max).copied().collect();
        (task == "t1").then_some(LogPart { bytes, offset, end: log.len() as u64, is_closed: true })
    }

    fn output(&self, _: &str, path: &str) -> Option<OutputContent> {
        let size = self.output.len() as u64;
        let reader = Box::new(std::io::Cursor::new(self.output.clone()));
        (path == "output/ä b%.bin").then_some(OutputContent { reader, size })
    }

    fn cancel(&self, _: &str) -> Result<(), String> {
        *self.is_cancelled.lock().unwrap() = true;
        Ok(())
    }
}

struct Scene {
    dir: PathBuf,
    master: Arc<Ended>,
    monitor: Monitor,
    actions: Receiver<Action>,
}

impl Scene {
    fn new(name: &str, is_standalone: bool) -> Self {
        let dir = std::env::temp_dir().join(format!("hivemind-real-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("state")).unwrap();
        std::fs::create_dir_all(dir.join("task/data")).unwrap();
        std::fs::write(dir.join("task/main.py"), "print('hi')\n").unwrap();
        std::fs::write(dir.join("task/task.json"), r#"{"cpu": 0.5}"#).unwrap();
        std::fs::write(dir.join("task/data/in.bin"), vec![7; 3 << 20]).unwrap();
        let log = (0..50_000).map(|number| format!("line {number} \x1b[0m ü\n")).collect::<String>().into_bytes();
        let output = (0..3_000_000u32).map(|number| number.to_le_bytes()[1]).collect();
        let master = Arc::new(Ended { log, output, taken: Mutex::default(), is_cancelled: Mutex::default() });
        let mut config = MonitorConfig::new(dir.join("state"));
        config.addresses = vec![([127, 0, 0, 1], 0).into()];
        let (sender, actions) = bounded(4);
        let submissions = is_standalone.then(|| Arc::clone(&master) as Arc<dyn Submissions>);
        let snapshot = Watch::new(Snapshot { node_id: "n1".to_owned(), ..Snapshot::default() });
        let monitor = Monitor::start(config, snapshot, sender, submissions, Arc::new(NoLogs)).unwrap();
        Self { dir, master, monitor, actions }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_hivemind-worker"))
            .args(args)
            .arg("--state")
            .arg(self.dir.join("state"))
            .current_dir(&self.dir)
            .env_clear()
            .output()
            .unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn a_task_goes_in_and_all_of_its_output_comes_back() {
    let scene = Scene::new("submit", true);
    let output = scene.run(&["submit", "task", "--wait", "--output", "out", "--name", "t1"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(output.stdout == scene.master.log, "{} of {} bytes", output.stdout.len(), scene.master.log.len());
    assert!(std::fs::read(scene.dir.join("out/output/ä b%.bin")).unwrap() == scene.master.output);
    let taken = scene.master.taken.lock().unwrap().take().unwrap();
    let task: serde_json::Value = serde_json::from_str(&taken.task).unwrap();
    assert_eq!(task, serde_json::json!({"cpu": 0.5, "name": "t1"}));
    let mut inputs = tar::Archive::new(taken.inputs.as_slice());
    let paths = inputs.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned());
    let mut paths: Vec<String> = paths.map(|path| path.trim_end_matches('/').to_owned()).collect();
    paths.sort();
    assert_eq!(paths, ["data", "data/in.bin", "main.py"]);
}

#[test]
fn the_small_commands_reach_the_node() {
    let scene = Scene::new("small", true);
    let status = scene.run(&["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("n1"), "{status:?}");
    assert_eq!(scene.run(&["tasks"]).stdout, b"no tasks yet\n");
    assert!(scene.run(&["logs", "t1", "--follow"]).stdout == scene.master.log);
    assert_eq!(scene.run(&["cancel", "t1"]).status.code(), Some(0));
    assert!(*scene.master.is_cancelled.lock().unwrap());
    for (word, action) in [("pause", Action::Pause), ("resume", Action::Resume), ("drain", Action::Drain)] {
        assert_eq!(scene.run(&[word]).status.code(), Some(0));
        assert_eq!(scene.actions.recv_timeout(Duration::from_secs(5)).unwrap(), action);
    }
    let port = scene.monitor.local_addresses()[0].port().to_string();
    assert_eq!(scene.run(&["healthcheck", "--monitor-port", &port]).status.code(), Some(0));
    let page = scene.run(&["monitor", "--monitor-port", &port]);
    let token = read_token(&scene.dir.join("state")).unwrap();
    let expected = format!("http://127.0.0.1:{port}/monitor.html#token={token}\n");
    assert_eq!(String::from_utf8_lossy(&page.stdout), expected);
}

#[test]
fn a_node_that_is_not_standalone_says_so() {
    let scene = Scene::new("node", false);
    let output = scene.run(&["submit", "task", "--wait"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not standalone"), "{output:?}");
    for words in [["cancel", "t1"], ["logs", "t1"]] {
        let output = scene.run(&words);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains("holds no task t1"), "{stderr}");
    }
}
