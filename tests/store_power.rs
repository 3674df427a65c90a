//! The store under power loss (fault matrix, row 16). A child process works under strace, which sees each call that changes
//! the disk, with its bytes. From that a disk is made that knows what was synced; after each chosen call it loses power,
//! and what may be left of the folder must open, keep the promises that were made before, and deliver all of it.

#![allow(clippy::unwrap_used)]

mod store_util;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use hivemind_worker::store::StoreConfig;
use store_util::crash::{self, CHILD, Dice, check, deliver_all};
use store_util::disk::{Barrier, Disk, Fate};
use store_util::*;

/// Of the calls that change the disk, about so many are the last one; by the environment more, or 0 for all.
const POINTS: usize = 24;
const MORE_POINTS: &str = "HM_STORE_POWER_POINTS";
const CALLS: &str = "trace=openat,write,pwrite64,ftruncate,fallocate,/rename.*,/unlink.*,rmdir,/mkdir.*,fsync,fdatasync,\
     fsetxattr,fremovexattr";

/// Runs in the child only.
#[test]
fn crash_child() {
    crash::child();
}

/// A call that has ended well.
struct Call {
    name: String,
    args: Vec<String>,
    result: String,
}

/// What strace has to say of a line.
enum Seen {
    Begun { thread: u32, name: String, args: Vec<String> },
    Ended { thread: u32, call: Call },
}

/// The lines of a trace. A call that another thread's interrupts comes in two.
fn seen(trace: &Path) -> Vec<Seen> {
    let mut open: BTreeMap<u32, String> = BTreeMap::new();
    let mut seen = Vec::new();
    for line in BufReader::new(std::fs::File::open(trace).unwrap()).lines() {
        let line = line.unwrap();
        let (thread, text) = line.split_once(' ').unwrap();
        let (thread, text) = (thread.parse().unwrap(), text.trim_start());
        let (text, is_resumed) = match text.strip_prefix("<... ") {
            // One of before the trace has no beginning. What is missed so would show in the end.
            Some(rest) => match open.remove(&thread) {
                Some(begun) => (begun + rest.split_once("resumed>").unwrap().1, true),
                None => continue,
            },
            None => (text.to_owned(), false),
        };
        let Some((name, rest)) = text.split_once('(') else { continue };
        let split = |args: &str| args.split(", ").map(str::to_owned).collect::<Vec<_>>();
        if !is_resumed {
            let args = rest.split(" <unfinished").next().unwrap();
            seen.push(Seen::Begun { thread, name: name.to_owned(), args: split(args) });
        }
        if let Some((begun, _)) = text.split_once(" <unfinished") {
            open.insert(thread, begun.to_owned());
            continue;
        }
        let (args, result) = rest.rsplit_once(" = ").unwrap();
        let args = split(args.trim_end().strip_suffix(')').unwrap());
        // Neither one that failed nor one that the end of the process has cut off.
        if result.starts_with(|first: char| first.is_ascii_digit()) {
            let call = Call { name: name.to_owned(), args, result: result.to_owned() };
            seen.push(Seen::Ended { thread, call });
        }
    }
    seen
}

/// `\x2f\x74`, as strace writes with `-xx`.
fn unhex(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).map(|digits| u8::from_str_radix(&digits[..2], 16).unwrap()).collect()
}

fn path(text: &str) -> PathBuf {
    String::from_utf8(unhex(text)).unwrap().into()
}

/// `12<path>`, or `12<path>(deleted)`.
fn descriptor(text: &str) -> (u32, PathBuf) {
    let (number, rest) = text.split_once('<').unwrap();
    (number.parse().unwrap_or(u32::MAX), path(rest.split('>').next().unwrap()))
}

/// A path after the descriptor of the folder that it may be relative to.
fn path_at(folder: &str, text: &str) -> PathBuf {
    descriptor(folder).1.join(path(text))
}

/// Tells the disk of a call; true when it changed what is below `state`.
fn tell(disk: &mut Disk, call: &Call) -> bool {
    let Call { name, args, result } = call;
    let number = |text: &str| text.trim().parse::<usize>().unwrap();
    match name.as_str() {
        "openat" => disk.opened(descriptor(result).0, &descriptor(result).1, &args[2]),
        "mkdir" => disk.made_folder(&path(&args[0])),
        "mkdirat" => disk.made_folder(&path_at(&args[0], &args[1])),
        "rename" => disk.renamed(&path(&args[0]), &path(&args[1])),
        "renameat" | "renameat2" => disk.renamed(&path_at(&args[0], &args[1]), &path_at(&args[2], &args[3])),
        "unlink" | "rmdir" => disk.removed(&path(&args[0])),
        "unlinkat" => disk.removed(&path_at(&args[0], &args[1])),
        "ftruncate" => disk.set_len(&descriptor(&args[0]).1, number(&args[1])),
        "fallocate" => disk.allocated(&descriptor(&args[0]).1, number(&args[2]) + number(&args[3])),
        "write" | "pwrite64" => {
            let ((fd, path), at) = (descriptor(&args[0]), args.get(3).map(|at| number(at)));
            let mut bytes = unhex(&args[1]);
            bytes.truncate(number(result));
            disk.wrote(fd, &path, at, bytes);
        }
        "fsetxattr" | "fremovexattr" => {
            let value = args.get(2).map(|value| unhex(value));
            disk.set_attribute(&descriptor(&args[0]).1, String::from_utf8(unhex(&args[1])).unwrap(), value);
        }
        "fsync" | "fdatasync" => return false,
        other => panic!("{other} is not known to this test"),
    }
    true
}

/// Traces a child that works in `base` to its end.
fn trace(base: &Path, seed: u64) -> Vec<Seen> {
    let file = base.with_extension("trace");
    let status = Command::new("strace")
        .args(["-f", "-qq", "-y", "-xx", "-s", "8000000", "-e", "signal=none", "-e", CALLS, "-o"])
        .arg(&file)
        .args(["--", std::env::current_exe().unwrap().to_str().unwrap(), "--exact", "crash_child"])
        .env(CHILD, format!("{seed} 5 {}", base.display()))
        .output()
        .expect("this test needs strace: scripts/test.sh installs it");
    assert!(status.status.success(), "{status:?}");
    seen(&file)
}

fn segments_below(spool: &Path) -> Vec<PathBuf> {
    let entries = |path: &Path| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let files = entries(spool).into_iter().flat_map(|folder| entries(&folder));
    files.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).collect()
}

#[test]
fn keeps_its_promises_when_the_power_goes_at_any_moment() {
    let points = std::env::var(MORE_POINTS).map_or(POINTS, |text| text.parse().unwrap());
    let folder = Folder::new();
    let (base, after) = (folder.state(), folder.state().with_extension("after"));
    std::fs::create_dir(&base).unwrap();
    let seen = trace(&base, 3);
    let changes = seen.iter().filter(|seen| matches!(seen, Seen::Ended { .. })).count();
    let every = changes.checked_div(points).map_or(1, |every| every.max(1));
    let mut disk = Disk::new(&base);
    let mut syncs: BTreeMap<u32, Option<Barrier>> = BTreeMap::new();
    let mut dice = Dice(0x00c0_ffee);
    let (mut promised, mut losses, mut cuts, mut told) = (0, 0, 0, BTreeMap::new());
    // The loss of power begins another boot.
    let config = StoreConfig { reserve_bytes: 1 << 20, boot_id: Some("after".to_owned()), ..StoreConfig::default() };
    let mut count = 0;
    for seen in &seen {
        match seen {
            Seen::Begun { thread, name, args } if name.ends_with("sync") => {
                syncs.insert(*thread, disk.sync_begins(&descriptor(&args[0]).1));
                continue;
            }
            Seen::Begun { .. } => continue,
            Seen::Ended { thread, call } if call.name.ends_with("sync") => {
                if let Some(Some(barrier)) = syncs.remove(thread) {
                    disk.synced(&barrier);
                }
            }
            Seen::Ended { call, .. } => drop(tell(&mut disk, call)),
        }
        count += 1;
        if count % every != 0 && count != changes {
            continue;
        }
        for fate in [Fate::Lost, Fate::Kept, Fate::Mixed, Fate::Mixed, Fate::Holes, Fate::Holes] {
            let _ = std::fs::remove_dir_all(&after);
            // What the harness has written itself, promises and what the master has, is as it was.
            disk.crash(&after, fate, &mut dice);
            for name in ["promises", "master"] {
                std::fs::write(after.join(name), disk.now(&base.join(name))).unwrap();
            }
            let open = open_with(&after.join("state"), config.clone());
            let promises = check(&after, &open);
            assert!(promises.taken.is_empty() || open.recovered.epoch > 1, "I4: epoch 1 comes again");
            for warning in &open.recovered.warnings {
                cuts += usize::from(warning.contains("lost with the power"));
                *told.entry(warning.split(':').next().unwrap_or_default().to_owned()).or_insert(0) += 1;
            }
            open.store.close();
            for segment in segments_below(&after.join("state/spool")) {
                let is = std::fs::metadata(&segment).unwrap().len();
                let synced = disk.synced_len(&base.join(segment.strip_prefix(&after).unwrap()));
                assert!(is >= synced as u64, "{}: {synced} bytes were synced, {is} are left", segment.display());
            }
            promised = promised.max(deliver_all(&after).taken.len());
            losses += 1;
        }
    }
    for name in ["state/store.db", "state/store.db-wal", "state/epoch", "promises"] {
        let (is, seen) = (std::fs::read(base.join(name)).unwrap_or_default(), disk.now(&base.join(name)));
        assert!(is == seen, "{name}: {} bytes, seen were {}", is.len(), seen.len());
    }
    println!("{losses} losses of power; warnings of the starts after them: {told:?}");
    assert!(promised == 5 && losses >= 6 * points && cuts > 0, "too little happened: {promised} {losses} {cuts}");
}
