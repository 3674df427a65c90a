//! Standalone mode over its own command line: what can't run ends with words and a code, and never hangs.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use node_util::{Scene, until_true};
use rustix::process::Signal;
use serde_json::{Value, json};

fn standalone(name: &str) -> Scene {
    let mut scene = Scene::new(name);
    scene.start_worker(&["standalone"]);
    scene.until_ready();
    scene
}

fn submit(scene: &Scene, task: &Value, more: &[&str]) -> Command {
    let name = task["name"].as_str().unwrap();
    let file = node_util::write(scene.dir.join(format!("{name}.json")), &task.to_string());
    let mut command = scene.command(&["submit", &file.display().to_string(), "--wait", "--json"]);
    command.args(more).stdin(Stdio::null());
    command
}

/// Exit code, and the line on standard output.
fn outcome(command: &mut Command) -> (Option<i32>, Value, String) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or(Value::Null), said)
}

#[test]
fn what_cannot_run_says_why_in_the_engines_words() {
    let scene = standalone("refused");
    let cases = [
        (json!({"name": "unknown", "image": "hivemind.invalid/none:1", "pull": "never"}), "Rejected", "No such image"),
        (json!({"name": "unreachable", "image": "127.0.0.1:1/none:1"}), "NodeFault", "connection refused"),
        (json!({"name": "cpus", "cpu": 512}), "Rejected", "CPU"),
        (json!({"name": "memory", "memory": "900GiB"}), "Rejected", "memory"),
    ];
    for (task, expected, words) in cases {
        let mut task = task;
        task["command"] = json!(["true"]);
        let begin = Instant::now();
        let (code, line, said) = outcome(&mut submit(&scene, &task, &[]));
        println!("{}: {:?}: {} {}", task["name"], begin.elapsed(), line["outcome"], line["reason"]);
        assert_eq!(code, Some(125), "{task}: {line} {said}");
        assert_eq!(line["outcome"], expected, "{task}: {line}");
        let reason = line["reason"].as_str().unwrap().to_lowercase();
        assert!(reason.contains(&words.to_lowercase()), "{task}: {reason}");
        assert!(begin.elapsed() < Duration::from_secs(60), "{task}: {:?}", begin.elapsed());
    }
    // What is no task at all never gets in.
    for (task, words) in [
        (json!({"name": "zero", "cpu": 0}), "cpu"),
        (json!({"name": "tiny", "memory": "1MiB"}), "memory"),
        (json!({"name": "badimage", "image": "--privileged"}), "image"),
    ] {
        let (code, _, said) = outcome(&mut submit(&scene, &task, &[]));
        assert!(matches!(code, Some(2 | 125)), "{task}: {code:?} {said}");
        assert!(said.contains(words), "{task}: {said}");
    }
    scene.until_clean();
}

#[test]
fn a_task_runs_and_can_be_cancelled_and_nothing_is_left_of_the_node() {
    let mut scene = standalone("alone");
    let program = "import os; os.makedirs('output', exist_ok=True); open('output/r', 'w').write('42'); print('hi')";
    let task = json!({"name": "runs", "command": ["python3", "-c", program], "cpu": 0.5, "pull": "never"});
    let saved = scene.dir.join("saved");
    let (code, line, said) = outcome(&mut submit(&scene, &task, &["--output", &saved.display().to_string()]));
    assert_eq!((code, &line["outcome"]), (Some(0), &json!("Succeeded")), "{line} {said}");
    assert_eq!(std::fs::read_to_string(saved.join("output/r")).unwrap(), "42");

    let task = json!({"name": "long", "command": ["sleep", "600"], "cpu": 0.5, "grace_s": 0.5, "pull": "never"});
    let mut command = submit(&scene, &task, &[]);
    let waits = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until_true("it runs", || {
        scene.status().is_some_and(|status| status.attempts.iter().any(|held| held.phase.as_str() == "running"))
    });
    assert_eq!(scene.run(&["cancel", "long"]).status.code(), Some(0));
    let output = waits.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["outcome"], "Cancelled");

    // The node is killed while somebody waits, and comes back.
    let program = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); print('up', flush=True); \
                   signal.sigwait([signal.SIGUSR1])";
    let task = json!({"name": "lives", "command": ["python3", "-c", program], "cpu": 0.5, "pull": "never"});
    let waits = submit(&scene, &task, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until_true("it says up", || {
        scene.status().is_some_and(|status| status.attempts.iter().any(|held| held.tail.contains("up")))
    });
    scene.kill_worker();
    scene.start_worker(&["standalone"]);
    scene.until_ready();
    scene.go("lives");
    let output = waits.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(scene.containers_ever("lives").len(), 1);
    scene.until_clean();

    scene.signal(Signal::TERM);
    assert_eq!(scene.until_exit().code(), Some(0), "{}", scene.log());
    assert!(scene.status().is_none() && !scene.dir.join("state/control.sock").exists());
}
