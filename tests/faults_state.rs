//! Rows 23, 63 and 64 of the fault matrix: a state folder that can't be written, one with a long history, and one of a
//! newer worker.
#![allow(clippy::unwrap_used)]

mod node_util;
mod store_util;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use hivemind_worker::node::record::{Outcome, Phase};
use node_util::{Scene, gated, how};
use rusqlite::Connection;
use store_util::{Folder, Master, end, key, open, phase};

#[test]
fn row_23_state_folder_on_a_read_only_file_system_is_refused_in_one_line() {
    let folder = Folder::new();
    let mount = folder.state();
    fs::create_dir(&mount).unwrap();
    let script = "mount -t tmpfs -o mode=700 tmpfs \"$1\" && mount -o remount,ro \"$1\" && \
                  exec \"$2\" --state \"$1\" --master-url http://127.0.0.1:1 --monitor-port 0";
    // Root needs no user name space, which some machines forbid; others need one.
    let user = if rustix::process::geteuid().is_root() { &[][..] } else { &["--user", "--map-root-user"] };
    let mut command = Command::new("unshare");
    command.args(user).args(["--mount", "sh", "-c", script, "sh"]).arg(&mount);
    let output = command.arg(env!("CARGO_BIN_EXE_hivemind-worker")).output();
    let output = output.expect("this test needs unshare, of util-linux");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(78), 1), "{said}");
    assert!(said.to_lowercase().contains("read-only file system"), "{said}");
    assert!(said.contains(mount.to_str().unwrap()), "{said}");
}

#[test]
fn row_63_history_of_a_hundred_thousand_rows_is_read_in_fifty_milliseconds() {
    const ROWS: u32 = 100_000;
    const QUICK: Duration = Duration::from_millis(50);
    let folder = Folder::new();
    let first = open(&folder.state());
    let one = key("one", 1);
    first.take(&one);
    first.commit(vec![phase(&one, Phase::Collecting), end(&one, Outcome::Succeeded)]);
    Master::default().drain(&first.outbox());
    first.store.close();
    let database = Connection::open(folder.state().join("store.db")).unwrap();
    let made = database.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
         INSERT INTO history(task, attempt, digest, outcome, finished_ms, content)
         SELECT 'copy-' || i, attempt, digest, outcome, finished_ms, content FROM history, n WHERE task = 'one'",
        [ROWS],
    );
    assert_eq!(made.unwrap(), 100_000);
    drop(database);
    let begin = Instant::now();
    let again = open(&folder.state());
    println!("opened in {:?}", begin.elapsed());
    let slowest = [None, Some(key("copy-50000", 1)), Some(key("copy-10", 1)), Some(key("nobody", 1))].map(|before| {
        let begin = Instant::now();
        let rows = again.store.history(50, before.as_ref());
        let took = begin.elapsed();
        println!("{} rows before {before:?}: {took:?}", rows.len());
        took
    });
    assert_eq!(again.store.history(50, None).len(), 50);
    assert!(slowest.iter().all(|took| *took < QUICK), "{slowest:?}");
    // Taking and ending one more is no slower for it.
    let next = key("next", 1);
    let begin = Instant::now();
    again.take(&next);
    again.commit(vec![end(&next, Outcome::Succeeded)]);
    println!("an attempt taken and ended in {:?}", begin.elapsed());
    again.store.close();
}

#[test]
fn row_64_database_of_a_newer_worker_is_set_aside_while_its_task_runs() {
    let mut scene = Scene::with_master("newer");
    scene.start(&[]);
    scene.submit(gated("t", "print('over', flush=True)\n"));
    scene.until_up("t");
    scene.until_status("it runs", |status| status.attempts.iter().any(|held| held.phase == Phase::Running));
    scene.kill_worker();
    let state = scene.dir.join("state");
    let file = state.join("store.db");
    let database = Connection::open(&file).unwrap();
    database.pragma_update(None, "user_version", 99).unwrap();
    database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(database);
    let before = fs::read(&file).unwrap();
    scene.start(&[]);
    scene.until_status("the owner is told, and the task is followed", |status| {
        status.alerts.iter().any(|alert| alert.contains("newer"))
            && status.attempts.iter().any(|held| held.phase == Phase::Running)
    });
    assert_eq!(fs::read(state.join("store.db.newer-1")).unwrap(), before, "what the newer worker had is kept");
    scene.go("t");
    let report = scene.until_complete("t");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    assert_eq!(scene.containers_ever("t").len(), 1);
    assert!(scene.stdout("t").ends_with("over\n"), "{}", scene.stdout("t"));
    scene.until_clean();
}
