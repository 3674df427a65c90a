//! What a start finds: whole, damaged, of another version, or lost in part.

#![allow(clippy::unwrap_used)]

mod store_util;

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hivemind_worker::node::id::AttemptKey;
use hivemind_worker::node::order::Marks;
use hivemind_worker::node::record::{EventKind, FIRST_OUTPUT, Outcome, Phase, STDOUT};
use hivemind_worker::store::{OpenError, Store, StoreConfig, Write};
use store_util::*;

/// An attempt with two events and a stream, in a store that was closed.
fn with_attempt(state: &Path, key: &AttemptKey) {
    let open = open(state);
    open.take(key);
    open.commit(vec![phase(key, Phase::Queued), phase(key, Phase::Running)]);
    open.write_stream(key, STDOUT, b"hello\n");
    open.store.close();
}

fn checkpoint(state: &Path) {
    let db = rusqlite::Connection::open(state.join("store.db")).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
}

fn sql(state: &Path, text: &str) {
    let db = rusqlite::Connection::open(state.join("store.db")).unwrap();
    db.execute_batch(text).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// The attempt is here, its events keep their numbers and content, and the bytes are there.
fn is_whole(open: &Open, key: &AttemptKey) -> Master {
    let attempt = &open.recovered.attempts[0];
    assert_eq!((open.recovered.attempts.len(), &attempt.spec), (1, &spec(key)));
    assert_eq!(attempt.phase, Phase::Running);
    let mut master = Master::default();
    master.drain(&open.outbox());
    let kinds: Vec<_> = master.events.values().map(|event| event.kind.clone()).collect();
    let phases = [Phase::Queued, Phase::Running].map(|phase| EventKind::Phase(phase, String::new()));
    assert_eq!(kinds[..2], phases);
    let numbers: Vec<_> = master.events.keys().map(|(_, number)| *number).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(master.streams[&(key.clone(), STDOUT, 1)], b"hello\n");
    let mut inputs = Vec::new();
    open.store.read_inputs(key).unwrap().read_to_end(&mut inputs).unwrap();
    assert_eq!(inputs, b"inputs");
    master
}

#[test]
fn what_is_durable_is_here_after_a_restart() {
    let folder = Folder::new();
    let key = key("sum", 1);
    with_attempt(&folder.state(), &key);
    let marks = Marks { container_id: Some("c1".to_owned()), paused_ms: 7, ..Marks::default() };
    let open1 = open(&folder.state());
    assert_eq!(open1.recovered.epoch, 2);
    assert_eq!(open1.recovered.warnings, Vec::<String>::new());
    is_whole(&open1, &key);
    open1.commit(vec![Write::Marks { key: key.clone(), marks: marks.clone() }, note(&key, "three")]);
    open1.store.kv_put("token", b"value").unwrap();
    open1.write_stream(&key, STDOUT, b"again\n");
    open1.commit(vec![end(&key, Outcome::Cancelled)]);
    open1.commit(vec![end(&key, Outcome::Succeeded)]);
    open1.store.close();

    let open2 = open(&folder.state());
    let attempt = &open2.recovered.attempts[0];
    assert_eq!((attempt.phase, &attempt.marks), (Phase::Reporting, &marks));
    assert_eq!(attempt.final_report.as_ref().unwrap().outcome, Outcome::Cancelled);
    assert_eq!(open2.store.kv_get("token").unwrap(), b"value");
    assert_eq!(open2.store.kv_get("epoch"), None);
    let ends: Vec<_> = open2.store.stream_ends(&key).iter().map(|end| (end.epoch, end.bytes)).collect();
    assert_eq!(ends, [(1, 6), (2, 6)]);
    let mut master = Master::default();
    master.drain(&open2.outbox());
    assert_eq!(master.finals(&key), [Outcome::Cancelled]);
    // The first two and the stream of epoch 1 were acknowledged before.
    assert_eq!(master.events.keys().map(|(_, number)| *number).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(master.streams.keys().map(|(_, _, epoch)| *epoch).collect::<Vec<_>>(), [2]);
    open2.store.close();
}

#[test]
fn files_and_folders_are_private() {
    let folder = Folder::new();
    with_attempt(&folder.state(), &key("sum", 1));
    let open = open(&folder.state());
    let mut stack = vec![folder.state()];
    let mut count = 0;
    while let Some(path) = stack.pop() {
        let metadata = path.metadata().unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        count += 1;
        if metadata.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            stack.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
    assert!(count >= 11, "{count}");
    open.store.close();
}

#[test]
fn a_damaged_database_is_set_aside_and_its_duties_are_rebuilt() {
    let truncate = |path: &Path, len: u64| OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
    let zero = |path: &Path| std::fs::write(path, vec![0; path.metadata().unwrap().len() as usize]).unwrap();
    let scramble = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes.iter_mut().skip(4096).for_each(|byte| *byte ^= 0x5a);
        std::fs::write(path, bytes).unwrap();
    };
    type Harm<'a> = (&'a str, &'a dyn Fn(&Path));
    let harms: [Harm; 6] = [
        ("truncated", &|path| truncate(path, 5000)),
        ("cut to a page", &|path| truncate(path, 4096)),
        ("empty", &|path| truncate(path, 0)),
        ("gone", &|path| std::fs::remove_file(path).unwrap()),
        ("zero-filled", &zero),
        ("scrambled", &scramble),
    ];
    for (name, harm) in harms {
        let folder = Folder::new();
        let key = key("sum", 1);
        with_attempt(&folder.state(), &key);
        checkpoint(&folder.state());
        harm(&folder.state().join("store.db"));
        let open = open(&folder.state());
        assert!(!open.recovered.warnings.is_empty(), "{name}");
        assert_eq!(open.recovered.epoch, 2, "{name}");
        let master = is_whole(&open, &key);
        assert_eq!(master.events.len(), 3, "{name}: a note tells that the record was rebuilt");
        let aside = names(&folder.state()).iter().any(|file| file == "store.db.damaged-1");
        assert_eq!(aside, !matches!(name, "empty" | "gone"), "{name}");
        open.commit(vec![end(&key, Outcome::NodeFault)]);
        open.store.close();
        let again = store_util::open(&folder.state());
        assert_eq!(again.recovered.warnings, Vec::<String>::new(), "{name}");
        assert_eq!(again.recovered.attempts[0].phase, Phase::Reporting, "{name}");
        again.store.close();
    }
}

#[test]
fn a_final_report_survives_the_loss_of_the_database() {
    let folder = Folder::new();
    let key = key("sum", 1);
    with_attempt(&folder.state(), &key);
    let open1 = open(&folder.state());
    open1.commit(vec![end(&key, Outcome::Succeeded)]);
    open1.store.close();
    std::fs::remove_file(folder.state().join("store.db")).unwrap();
    let open2 = open(&folder.state());
    assert_eq!(open2.recovered.attempts[0].final_report.as_ref().unwrap().outcome, Outcome::Succeeded);
    let mut master = Master::default();
    master.drain(&open2.outbox());
    assert_eq!(master.finals(&key), [Outcome::Succeeded]);
    open2.store.close();
}

#[test]
fn a_newer_database_is_set_aside_not_destroyed() {
    let folder = Folder::new();
    let key = key("sum", 1);
    with_attempt(&folder.state(), &key);
    sql(&folder.state(), "PRAGMA user_version = 2");
    checkpoint(&folder.state());
    let before = std::fs::read(folder.state().join("store.db")).unwrap();
    let open = open(&folder.state());
    assert!(open.recovered.warnings[0].contains("newer"), "{:?}", open.recovered.warnings);
    is_whole(&open, &key);
    assert_eq!(std::fs::read(folder.state().join("store.db.newer-1")).unwrap(), before);
    open.store.close();
}

fn flip(column: &str) -> String {
    format!("CAST(x'00' || substr({column}, 2) AS BLOB)")
}

#[test]
fn damaged_rows_are_mended_from_what_else_is_there() {
    let harms = [
        format!("UPDATE attempt SET spec = {}", flip("spec")),
        "UPDATE attempt SET spec = 'text'".to_owned(),
        "UPDATE attempt SET sum = x'00'".to_owned(),
        "UPDATE attempt SET task = 'sun'".to_owned(),
        "DELETE FROM attempt".to_owned(),
        format!("UPDATE state SET content = {}", flip("content")),
        "DELETE FROM state".to_owned(),
        format!("UPDATE event SET content = {} WHERE number = 1", flip("content")),
        "UPDATE event SET number = 4611686018427387904 WHERE number = 2".to_owned(),
        "DELETE FROM event".to_owned(),
    ];
    for harm in harms {
        let folder = Folder::new();
        let key = key("sum", 1);
        with_attempt(&folder.state(), &key);
        sql(&folder.state(), &harm);
        let open = open(&folder.state());
        assert!(!open.recovered.warnings.is_empty(), "{harm}");
        is_whole(&open, &key);
        open.store.close();
        let again = store_util::open(&folder.state());
        assert_eq!(again.recovered.warnings, Vec::<String>::new(), "{harm}");
        assert_eq!(again.recovered.attempts.len(), 1, "{harm}");
        again.store.close();
    }
}

#[test]
fn a_flipped_byte_anywhere_in_the_file_never_loses_the_duty() {
    let folder = Folder::new();
    let key = key("sum", 1);
    with_attempt(&folder.state(), &key);
    checkpoint(&folder.state());
    let whole = std::fs::read(folder.state().join("store.db")).unwrap();
    // A prime step visits each page at many places.
    for at in (0..whole.len()).step_by(251) {
        let copy = Folder::new();
        copy_folder(&folder.state(), &copy.state());
        let mut file = OpenOptions::new().write(true).open(copy.state().join("store.db")).unwrap();
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(&[whole[at] ^ 0xff]).unwrap();
        drop(file);
        let open = open(&copy.state());
        is_whole(&open, &key);
        open.store.close();
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_lost_log_of_the_database_loses_no_duty() {
    let folder = Folder::new();
    let key = key("sum", 1);
    let open1 = open(&folder.state());
    open1.take(&key);
    open1.commit(vec![phase(&key, Phase::Queued), phase(&key, Phase::Running)]);
    open1.write_stream(&key, STDOUT, b"hello\n");
    // As it is on disk while the store is open: the rows are in the log, and the log rots.
    let copy = Folder::new();
    copy_folder(&folder.state(), &copy.state());
    open1.store.close();
    let wal = copy.state().join("store.db-wal");
    let mut bytes = std::fs::read(&wal).unwrap();
    let start = bytes.len() / 3;
    bytes[start..].fill(0);
    std::fs::write(&wal, bytes).unwrap();
    let open2 = open(&copy.state());
    is_whole(&open2, &key);
    open2.store.close();
}

#[test]
fn a_task_that_was_being_taken_is_offered_again() {
    let folder = Folder::new();
    let key = key("sum", 1);
    with_attempt(&folder.state(), &key);
    let spool = only_folder(&folder.state());
    // As a crash between the manifest and the first commit leaves it.
    sql(&folder.state(), "DELETE FROM attempt; DELETE FROM state; DELETE FROM event");
    std::fs::remove_file(spool.join("events.log")).unwrap();
    std::fs::create_dir(folder.state().join("spool/0123")).unwrap();
    let open = open(&folder.state());
    assert!(open.recovered.attempts.is_empty());
    assert_eq!(std::fs::read_dir(folder.state().join("spool")).unwrap().count(), 0);
    open.store.close();
}

#[test]
fn a_damaged_manifest_is_written_again_or_kept_for_the_owner() {
    let folder = Folder::new();
    let key = key("sum", 1);
    with_attempt(&folder.state(), &key);
    let manifest = only_folder(&folder.state()).join("manifest.json");
    std::fs::write(&manifest, "{}").unwrap();
    let open1 = open(&folder.state());
    assert_eq!(open1.recovered.warnings.len(), 1);
    is_whole(&open1, &key);
    open1.store.close();
    assert!(std::fs::read_to_string(&manifest).unwrap().contains("\"sum\""));
    // With the row gone too, nothing can be rebuilt, but nothing is destroyed.
    std::fs::write(&manifest, "{}").unwrap();
    std::fs::remove_file(folder.state().join("store.db")).unwrap();
    let open2 = open(&folder.state());
    assert!(open2.recovered.attempts.is_empty());
    assert!(only_folder(&folder.state()).join("inputs.tar").exists());
    open2.store.close();
}

#[test]
fn a_lost_segment_shows_as_a_gap() {
    let folder = Folder::new();
    let key = key("sum", 1);
    let open1 = open(&folder.state());
    open1.take(&key);
    let bytes = pattern(9 << 20);
    open1.write_stream(&key, FIRST_OUTPUT, &bytes);
    open1.store.close();
    let spool = only_folder(&folder.state());
    std::fs::remove_file(spool.join("16-1-0000000000400000.seg")).unwrap();
    let open2 = open(&folder.state());
    assert_eq!(open2.store.stream_ends(&key)[0].bytes, 4 << 20);
    let mut master = Master::default();
    master.drain(&open2.outbox());
    assert_eq!(master.streams[&(key.clone(), FIRST_OUTPUT, 1)], bytes[..4 << 20]);
    assert!(matches!(&master.events[&(key.clone(), 1)].kind, EventKind::Note(text) if text.contains("gap")));
    open2.store.close();
}

/// Of [`killed_while_writing`]: synced once, synced again, and written.
const ENDS: [usize; 3] = [1 << 20, 2 << 20, (2 << 20) + 300_000];

/// A stream whose writer is gone without a word; gives its segment.
fn killed_while_writing(state: &Path, key: &AttemptKey) -> PathBuf {
    let open = open(state);
    open.take(key);
    let bytes = pattern(ENDS[2]);
    let mut writer = open.store.output_writer(key, FIRST_OUTPUT).unwrap();
    for (start, end) in [(0, ENDS[0]), (ENDS[0], ENDS[1]), (ENDS[1], ENDS[2])] {
        writer.append(&bytes[start..end]).unwrap();
    }
    std::mem::forget(writer);
    open.store.close();
    only_folder(state).join("16-1-0000000000000000.seg")
}

fn zero(path: &Path, start: usize, end: usize) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(start as u64)).unwrap();
    file.write_all(&vec![0; end - start]).unwrap();
}

/// The stream ends here, and the record tells what was lost, at this start and never again.
fn ends_at(state: &Path, key: &AttemptKey, boot: &str, end: usize) {
    let config = StoreConfig { boot_id: Some(boot.to_owned()), ..StoreConfig::default() };
    let first = open_with(state, config.clone());
    let warnings = usize::from(end < ENDS[2]);
    assert_eq!(first.recovered.warnings.len(), warnings, "{:?}", first.recovered.warnings);
    let mut master = Master::default();
    master.drain(&first.outbox());
    assert!(master.streams[&(key.clone(), FIRST_OUTPUT, 1)] == pattern(end));
    let text = format!("bytes {end} to {} of stream 16, epoch 1, were lost with the power", ENDS[2]);
    let notes: Vec<_> = master.events.values().map(|event| event.kind.clone()).collect();
    assert_eq!(notes, vec![EventKind::Note(text); warnings]);
    first.store.close();
    let second = open_with(state, StoreConfig { boot_id: Some("yet another".to_owned()), ..config });
    assert_eq!(second.recovered.warnings, Vec::<String>::new());
    second.store.close();
}

#[test]
fn what_was_not_synced_is_never_taken_for_other_bytes() {
    type Harm<'a> = &'a dyn Fn(&Path);
    let this = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let this = this.trim();
    let key = key("sum", 1);
    let all: Harm = &|_| ();
    let size_before_data: Harm = &|path| zero(path, ENDS[1], ENDS[2]);
    let claim_before_data: Harm = &|path| zero(path, ENDS[1] - 4096, ENDS[2]);
    let of_before: Harm = &|path| rustix::fs::removexattr(path, "user.hm.tail").unwrap();
    let cases = [
        ("kill -9", all, this, ENDS[2]),
        ("data before size", all, "another", ENDS[1]),
        ("size before data", size_before_data, "another", ENDS[1]),
        ("stamp before data", claim_before_data, "another", ENDS[0]),
        ("a segment of the version before", of_before, "another", ENDS[2]),
    ];
    for (name, harm, boot, end) in cases {
        println!("{name}");
        let folder = Folder::new();
        let segment = killed_while_writing(&folder.state(), &key);
        harm(&segment);
        ends_at(&folder.state(), &key, boot, end);
    }
}

#[test]
fn a_settled_segment_is_cut_on_disk_too() {
    let folder = Folder::new();
    let segment = killed_while_writing(&folder.state(), &key("sum", 1));
    let open1 = open_with(&folder.state(), StoreConfig { boot_id: None, ..StoreConfig::default() });
    assert_eq!(segment.metadata().unwrap().len(), ENDS[1] as u64);
    let mut value = [0; 64];
    assert_eq!(rustix::fs::getxattr(&segment, "user.hm.tail", &mut value), Err(rustix::io::Errno::NODATA));
    open1.store.close();
}

#[test]
fn a_folder_that_cannot_be_used_is_told_in_words() {
    let folder = Folder::new();
    std::fs::write(folder.state(), "").unwrap();
    let path = folder.state().join("state");
    let error = Store::open(&path, StoreConfig::default(), Box::new(|_| {})).err().unwrap();
    assert!(matches!(error, OpenError::Folder { .. }));
    assert!(error.to_string().contains("another one"), "{error}");
    // Only a privileged test run can make a folder that belongs to someone else.
    std::fs::remove_file(folder.state()).unwrap();
    std::fs::create_dir_all(folder.state()).unwrap();
    if std::os::unix::fs::chown(folder.state(), Some(12_345), None).is_ok() {
        let error = Store::open(&folder.state(), StoreConfig::default(), Box::new(|_| {})).err().unwrap();
        assert!(matches!(error, OpenError::WrongOwner { .. }));
        assert!(error.to_string().contains("belongs to another user"), "{error}");
    }
}
