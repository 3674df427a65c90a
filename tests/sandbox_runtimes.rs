//! Runtimes beside the engine's default, by the owner's list: on a real engine with real ones, which of them a task gets, what
//! is read back, and the words of each refusal.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hivemind_worker::docker::DockerHost;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{EventKind, FinalReport, Outcome};
use node_util::own_engine::{Containers, IMAGE, OwnEngine};
use node_util::{Scene, how, python, until_true};

/// Beside `runc`: one that is runc under another name and keeps a list of its calls, and gVisor's, which needs neither KVM nor
/// a network here.
fn runtimes(dir: &Path) -> (Vec<String>, Vec<String>) {
    let script = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    };
    let calls = dir.join("calls").display().to_string();
    let other = script("other.sh", format!("echo \"$@\" >>{calls}; exec runc \"$@\""));
    let gvisor = script("gvisor.sh", "exec runsc --platform=ptrace --network=none \"$@\"".to_owned());
    (Vec::new(), vec![format!("--add-runtime=other={other}"), format!("--add-runtime=runsc={gvisor}")])
}

fn task(name: &str, runtime: &str, script: &str) -> Offer {
    let command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
    Offer { image: IMAGE.to_owned(), command, runtime: runtime.to_owned(), memory_bytes: 64 << 20, ..python(name, "") }
}

fn runtime_of(report: &FinalReport) -> &str {
    &report.limits.as_ref().unwrap().runtime
}

#[test]
fn a_task_has_the_runtime_that_it_names_where_owner_and_engine_know_it() {
    let version = std::process::Command::new("runsc").arg("--version").output();
    version.expect("this test needs runsc: scripts/test.sh installs it");
    let engine = OwnEngine::start_with("runtimes", Containers::EndWithIt, runtimes);
    let mut scene = Scene::with_engine("runtimes", DockerHost::parse(&engine.host()).unwrap());
    scene.start_master();
    scene.env.push(("DOCKER_HOST".to_owned(), engine.host()));
    scene.env.push(("HIVEMIND_RUNTIMES".to_owned(), "other, runsc,absent".to_owned()));
    scene.start(&[]);
    scene.until_ready();
    let kernel = "/bin/busybox uname -r";
    let run = |name: &str, runtime: &str| {
        scene.submit(task(name, runtime, &format!("{kernel}; {kernel} >output/kernel")));
        let report = scene.until_complete(name);
        assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
        let files: Vec<&str> = report.outputs.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(files, ["output/kernel"], "{report:?}");
        report
    };
    let calls = || fs::read_to_string(engine.dir.join("calls")).unwrap_or_default();
    let note = |name: &str| {
        let has = |kind: &EventKind| matches!(kind, EventKind::Note(text) if text.contains("a kernel of its own"));
        scene.record(name).iter().any(|event| has(&event.kind))
    };
    let own = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();

    assert_eq!(runtime_of(&run("plain", "")), "runc");
    assert_eq!((scene.stdout("plain"), calls()), (own.clone(), String::new()));
    assert_eq!(runtime_of(&run("other", "other")), "other");
    assert_eq!(scene.stdout("other"), own);
    assert!(calls().contains("create"), "{}", calls());
    assert!(!note("plain") && !note("other"));

    // It stays until it was looked into.
    let stays =
        format!("{kernel}; {kernel} >output/kernel; trap 'exit 0' TERM; while :; do /bin/busybox sleep 0.1; done");
    scene.submit(task("gvisor", "runsc", &stays));
    until_true("the record says what was not read back", || note("gvisor"));
    scene.docker.kill_container(&scene.container("gvisor").unwrap(), "SIGTERM").unwrap();
    let report = scene.until_complete("gvisor");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    assert_eq!(runtime_of(&report), "runsc");
    // The one that gVisor says to be.
    assert_eq!(scene.stdout("gvisor"), "4.4.0\n");
    assert_ne!(own, "4.4.0\n");
    let limits = report.limits.unwrap();
    assert_eq!((limits.memory_bytes, limits.pids), (Some(64 << 20), Some(256)), "{limits:?}");

    // What ends it, ends it there, too.
    scene.submit(Offer { timeout_ms: 2_000, ..task("slow", "runsc", "/bin/busybox sleep 600") });
    assert_eq!(scene.until_complete("slow").outcome, Outcome::TimedOut);

    let refused = |name: &str, runtime: &str, words: &str| {
        scene.submit(task(name, runtime, "echo ran"));
        let view = scene.until_view(name, "it is refused", |view| view.is_complete);
        assert_eq!((view.outcome, view.stdout_bytes), (Some(Outcome::Rejected), 0), "{view:?}");
        until_true("the owner can read why", || scene.log().contains(words));
    };
    let words = "runtime is runc, which the owner of this node does not allow: HIVEMIND_RUNTIMES=runc would";
    refused("unlisted", "runc", words);
    refused("unknown", "absent", "runtime is absent, which the engine of this node does not know; it knows ");
    scene.until_clean();
}
