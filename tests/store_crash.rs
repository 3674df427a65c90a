//! The store under SIGKILL, and under calls that fail: a child process works until it is killed at a random moment, or at
//! a chosen call, or until a call fails; after each the invariants of `store_util::crash` must hold.

#![allow(clippy::unwrap_used)]

mod store_util;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hivemind_worker::node::record::{EventKind, FIRST_OUTPUT, FinalReport, Outcome, StreamEnd};
use hivemind_worker::store::{Store, StoreConfig};
use store_util::crash::{self, CHILD, Dice, check, deliver_all};
use store_util::*;

const ROUNDS: u64 = 20;
const START_CHILD: &str = "HM_STORE_START_CHILD";
/// Of the stream that a start must find.
const START_BYTES: usize = 5 << 20;
/// Attempts that a child takes when it is not killed from outside.
const ATTEMPTS: u64 = 8;
/// Which of a thread's calls are hit; by the environment all up to a number, for a long run.
const FAULTS: [u64; 3] = [3, 7, 12];
const MORE_FAULTS: &str = "HM_STORE_FAULTS";

/// Runs in the child only: a start either sees the whole attempt, or says why it can't.
#[test]
fn start_child() {
    let Ok(folder) = std::env::var(START_CHILD) else { return };
    match Store::open(Path::new(&folder), StoreConfig::default(), Box::new(|_| ())) {
        Ok((store, recovered)) => {
            let whole = StreamEnd { stream: FIRST_OUTPUT, epoch: 1, bytes: START_BYTES as u64 };
            let found: Vec<_> = recovered.attempts.iter().map(|attempt| store.stream_ends(&attempt.spec.key)).collect();
            println!("{}", if found == [[whole]] { "whole" } else { "lost" });
            store.close();
        }
        Err(error) => println!("refused: {error}"),
    }
}

/// Want of descriptors at a start is no loss: each call that reads fails once, at each of its first times.
#[test]
fn a_start_that_cannot_read_for_a_moment_loses_nothing() {
    let folder = Folder::new();
    let state = folder.state();
    let bytes = pattern(START_BYTES);
    let key = key("sum", 1);
    let mut master = Master::default();
    let first = open(&state);
    first.take(&key);
    first.write_stream(&key, FIRST_OUTPUT, &bytes);
    let mut report = FinalReport::without_run(Outcome::Succeeded, "");
    report.streams = first.store.stream_ends(&key);
    first.commit(vec![note(&key, "before"), event(&key, EventKind::Final(Box::new(report)))]);
    // The master has a part, which must not be taken for all.
    while !master.streams.contains_key(&(key.clone(), FIRST_OUTPUT, 1)) {
        let piece = first.outbox().next_piece(START_BYTES / 3).unwrap();
        let ack = master.receive(&piece, usize::MAX);
        first.outbox().acked(&piece.key, ack);
    }
    first.store.close();
    let mut said = BTreeMap::new();
    for call in ["openat", "getdents64", "newfstatat", "statx", "read", "pread64"] {
        for when in 1..=32 {
            let inject = format!("{call}:error=EMFILE:when={when}");
            let output = strace(call, &inject, "start_child").env(START_CHILD, &state).output().unwrap();
            let output = String::from_utf8_lossy(&output.stdout).into_owned();
            let word = ["whole", "refused", "lost"].into_iter().find(|word| output.contains(word));
            assert_ne!(word, Some("lost"), "{inject}");
            *said.entry((call, word)).or_insert(0) += 1;
        }
    }
    println!("{said:?}");
    assert!(
        said.contains_key(&("openat", Some("refused"))) && said.contains_key(&("openat", Some("whole"))),
        "{said:?}"
    );
    let last = open(&state);
    master.drain(&last.outbox());
    let name = (key, FIRST_OUTPUT, 1);
    assert!(master.streams[&name] == bytes && master.ended[&name] == bytes.len());
    last.store.close();
}

/// Runs in the child only.
#[test]
fn crash_child() {
    crash::child();
}

/// A child of this program's with a fault in one of its calls.
fn strace(call: &str, inject: &str, child: &str) -> Command {
    let mut command = Command::new("strace");
    command
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &format!("inject={inject}")])
        .args(["--", std::env::current_exe().unwrap().to_str().unwrap()])
        .args(["--exact", child, "--nocapture"]);
    command
}

fn spawn(folder: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash_child", "--nocapture"])
        .env(CHILD, format!("{seed} {} {}", u64::MAX, folder.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn keeps_its_promises_when_killed_at_any_moment() {
    let folder = Folder::new();
    let base = folder.state();
    std::fs::create_dir(&base).unwrap();
    let mut dice = Dice(0x5eed);
    let mut epoch = 0;
    for round in 0..ROUNDS {
        let mut child = spawn(&base, round);
        // Some die while they open the store, most while they work.
        std::thread::sleep(Duration::from_millis(5 + dice.roll(300)));
        assert!(child.try_wait().unwrap().is_none(), "the child failed by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        let open = open(&base.join("state"));
        assert!(open.recovered.epoch > epoch);
        epoch = open.recovered.epoch;
        assert_eq!(open.recovered.warnings, Vec::<String>::new());
        check(&base, &open);
        open.store.close();
    }
    let promises = deliver_all(&base);
    assert!(promises.taken.len() > 20 && promises.finals.len() > 10, "too little happened");
}

/// Each call that changes the disk, at each of its first times in a thread, is the last one or fails once. The loader's
/// and the harness's calls are among them, so the first few tell little.
#[test]
fn keeps_its_promises_when_a_call_kills_or_fails() {
    assert!(Command::new("strace").arg("-V").output().is_ok(), "this test needs strace: scripts/test.sh installs it");
    let long = std::env::var(MORE_FAULTS).map(|text| (1..=text.parse().unwrap()).collect());
    let places: Vec<u64> = long.unwrap_or(FAULTS.to_vec());
    let calls =
        ["fsync,fdatasync", "pwrite64", "write", "/rename.*", "/unlink.*,rmdir", "ftruncate", "openat", "/mkdir.*"];
    let folder = Folder::new();
    let base = folder.state();
    std::fs::create_dir(&base).unwrap();
    let mut seed = 100;
    for fault in ["signal=SIGKILL", "error=EIO", "error=ENOSPC"] {
        for call in calls {
            for when in &places {
                seed += 1;
                let inject = format!("{call}:{fault}:when={when}");
                let output = strace(call, &inject, "crash_child")
                    .env(CHILD, format!("{seed} {ATTEMPTS} {}", base.display()))
                    .output()
                    .unwrap();
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(!errors.contains("I3:") && !errors.contains("I4:"), "{inject}: {errors}");
                let open = open(&base.join("state"));
                assert_eq!(open.recovered.warnings, Vec::<String>::new(), "{inject}");
                check(&base, &open);
                open.store.close();
            }
            deliver_all(&base);
        }
    }
}
