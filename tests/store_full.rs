//! A full disk and a broken one: what is refused, what waits, what still works. The full disk is a small file system
//! in memory, mounted in a child process with name spaces of its own; where that is not allowed, the test says so.

#![allow(clippy::unwrap_used)]

mod store_util;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hivemind_worker::node::record::{Outcome, Phase, STDOUT};
use hivemind_worker::store::{StoreEvent, Write};
use store_util::*;

const CHILD: &str = "HM_STORE_FULL_CHILD";

fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [64 << 10, 4096, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

/// Runs in the child only, with a file system of 12 MiB at the folder.
#[test]
fn full_child() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let folder = PathBuf::from(folder);
    let open1 = open(&folder.join("state"));
    let (first, second) = (key("sum", 1), key("sum", 2));
    open1.take(&first);
    let mut writer = open1.store.writer(&first, STDOUT).unwrap();
    writer.append(b"before").unwrap();
    fill(&folder.join("filler"));

    // New tasks are refused with the reason.
    open1.store.commit(1_000, vec![Write::Take { spec: Box::new(spec(&second)), inputs: vec![1; 1 << 20] }]);
    assert!(matches!(open1.wait(|_| true), StoreEvent::Trouble(_)));
    let StoreEvent::Failed { ticket: 1_000, reason } = open1.wait(|_| true) else { panic!() };
    assert!(reason.contains("space") || reason.contains("full"), "{reason}");

    // What runs can be finished, thanks to the reserve.
    open1.commit(vec![phase(&first, Phase::Collecting)]);
    open1.commit(vec![end(&first, Outcome::Succeeded)]);
    open1.store.commit(1_001, vec![Write::Take { spec: Box::new(spec(&second)), inputs: Vec::new() }]);
    assert!(matches!(open1.wait(|_| true), StoreEvent::Failed { ticket: 1_001, .. }));

    // With the reserve used up too, output is dropped and counted, and a duty waits.
    // The store's own tries to make the reserve again hold space for a moment, so one filling may fall short.
    let bytes = vec![7; 100_000];
    let mut kept_bytes = b"before".to_vec();
    for filler in 2.. {
        fill(&folder.join(format!("filler{filler}")));
        let appended = writer.append(&bytes).unwrap();
        kept_bytes.extend_from_slice(&bytes[..usize::try_from(appended).unwrap()]);
        if writer.dropped() > 0 {
            assert_eq!(appended + writer.dropped(), 100_000);
            break;
        }
    }
    // Larger than what a try at the reserve may have held just now, and gives back.
    let text = "long ".repeat(400_000);
    open1.store.commit(1_002, vec![note(&first, &text)]);
    assert!(open1.events.recv_timeout(Duration::from_secs(3)).is_err(), "it must wait");

    // When there is space again, all of it goes on by itself.
    for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
        if entry.file_name().to_string_lossy().starts_with("filler") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    assert_eq!(open1.wait(|_| true), StoreEvent::Durable(1_002));
    assert_eq!(open1.wait(|_| true), StoreEvent::Recovered);
    open1.take(&second);
    assert_eq!(writer.append(b"after").unwrap(), 5);
    let end = writer.close();
    let kept = open1.store.read_stream(&first, STDOUT, end.epoch, 0, 1 << 20).unwrap();
    assert!(kept == [kept_bytes.as_slice(), b"after"].concat());

    // A start on a full disk uses the reserve too.
    fill(&folder.join("filler"));
    open1.store.close();
    let open2 = open(&folder.join("state"));
    assert_eq!(open2.recovered.attempts.len(), 2);
    assert!(open2.recovered.attempts[0].final_report.is_some());
    open2.store.close();
    std::fs::write(folder.join("done"), "").unwrap_or_default();
    println!("the child is done");
}

#[test]
fn a_full_disk_refuses_tasks_and_loses_no_duty() {
    let folder = Folder::new();
    let mount = folder.state();
    std::fs::create_dir(&mount).unwrap();
    let script = r#"mount -t tmpfs -o size=12m tmpfs "$1" && echo mounted && exec "$2" --exact full_child --nocapture"#;
    // Root needs no user name space, which some machines forbid; others need one.
    let user = if rustix::process::geteuid().is_root() { &[][..] } else { &["--user", "--map-root-user"] };
    let output = Command::new("unshare")
        .args(user)
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(&mount)
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, &mount)
        .output()
        .expect("this test needs unshare, of util-linux");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("the child is done"), "{text}{errors}");
}

#[test]
fn a_lasting_fault_refuses_everything_until_a_restart() {
    let folder = Folder::new();
    let open = open(&folder.state());
    let (first, second) = (key("sum", 1), key("sum", 2));
    open.take(&first);
    open.commit(vec![note(&first, "one")]);
    let (spool, away) = (folder.state().join("spool"), folder.state().join("away"));
    std::fs::rename(&spool, &away).unwrap();
    open.store.commit(1_000, vec![Write::Take { spec: Box::new(spec(&second)), inputs: Vec::new() }]);
    assert!(matches!(open.wait(|_| true), StoreEvent::Trouble(_)));
    assert!(matches!(open.wait(|_| true), StoreEvent::Failed { ticket: 1_000, .. }));
    std::fs::rename(&away, &spool).unwrap();
    open.store.commit(1_001, vec![note(&first, "two")]);
    assert!(matches!(open.wait(|_| true), StoreEvent::Failed { ticket: 1_001, .. }));
    assert!(open.store.kv_put("a", b"b").is_err());
    // What is on disk can be sent; its acknowledgement is not noted, so it is sent again.
    let mut master = Master::default();
    master.drain(&open.outbox());
    assert_eq!(master.events.len(), 1);
    open.store.close();
    let again = store_util::open(&folder.state());
    assert_eq!(again.recovered.attempts.len(), 1);
    master.drain(&again.outbox());
    again.commit(vec![note(&first, "three")]);
    again.store.close();
}
