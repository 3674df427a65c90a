//! What holds a task's disk limit, on the real engine, as root: the bounded volume and the watch; what each lets through at
//! the worst; and what is left after a crash at each point where a volume is half made or half removed.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use hivemind_worker::node::account::{EndedBy, Evidence};
use hivemind_worker::node::id::{AttemptKey, Id};
use hivemind_worker::node::leftover::Collecting;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{Event, EventKind, FinalReport, Outcome};
use hivemind_worker::node::resources::DiskWay;
use hivemind_worker::sandbox::{Identity, Volumes};
use node_util::{GATED, Scene, gated, how, python, until_true};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 48 * MIB;

/// A node whose limits are held so.
fn scene(name: &str, way: &str) -> Scene {
    let mut scene = Scene::with_master(name);
    scene.set_env("HIVEMIND_TASK_DISK", way);
    scene.set_env("HIVEMIND_CRASH_LIMIT", "1000000");
    scene
}

fn key(task: &str) -> AttemptKey {
    AttemptKey { task: Id::parse(task).unwrap(), attempt: 1 }
}

fn folder(scene: &Scene) -> PathBuf {
    scene.dir.join("state/volumes")
}

fn file(scene: &Scene, task: &str) -> PathBuf {
    folder(scene).join(format!("{task}.1.img"))
}

fn link(scene: &Scene, task: &str) -> PathBuf {
    Path::new("/dev").join(scene.identity.name(&key(task)))
}

/// Devices of files below this folder.
fn devices(folder: &Path) -> Vec<String> {
    let of = |entry: fs::DirEntry| {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        backing.starts_with(folder.to_str()?).then(|| format!("/dev/{}", entry.file_name().to_str().unwrap()))
    };
    fs::read_dir("/sys/block").unwrap().filter_map(|entry| of(entry.unwrap())).collect()
}

fn losetup(words: &[&str]) -> String {
    let output = Command::new("losetup").args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Nothing at the engine, no file, no device, no link.
fn until_nothing_is_left(scene: &Scene, tasks: &[&str]) {
    scene.until_clean();
    until_true("no file is left", || fs::read_dir(folder(scene)).map_or(0, Iterator::count) == 0);
    until_true("no device is left", || devices(&folder(scene)).is_empty());
    for task in tasks {
        assert!(fs::symlink_metadata(link(scene, task)).is_err(), "{task}: a link is left");
    }
}

fn evidence(report: &FinalReport) -> Evidence {
    report.evidence.clone().unwrap()
}

fn held_by(report: &FinalReport) -> String {
    report.limits.clone().unwrap().disk_held_by
}

/// Fills the work folder in each way, says what stopped it and how much there was, and goes on when it is let.
const FILLS: &str = "import errno\n\
def size():\n    return sum(os.lstat(os.path.join(d, n)).st_blocks * 512 for d, ds, ns in os.walk('.') for n in ds + ns)\n\
def room():\n    s = os.statvfs('.')\n    return s.f_bavail * s.f_frsize\n\
def tried(name, do):\n    before = room() + size()\n    try:\n        do()\n        word = 'done'\n    except OSError as e:\n        \
word = errno.errorcode[e.errno]\n    print(name, word, before, size(), room(), flush=True)\n\
def write():\n    with open('x', 'wb', buffering=0) as f:\n        while True: f.write(bytes(1 << 20))\n\
def sparse():\n    for n in range(1 << 20):\n        with open(f'y{n}', 'wb', buffering=0) as f:\n            \
for i in range(700):\n                f.seek(i << 16)\n                f.write(b'x')\n\
def many():\n    for i in range(100_000): open(f'm{i}', 'w').close()\n\
def grow(n):\n    with open('z', 'wb') as f: os.posix_fallocate(f.fileno(), 0, n)\n\
def clear():\n    for n in os.listdir('.'):\n        if os.path.isfile(n): os.remove(n)\n";

#[test]
fn a_bounded_volume_lets_not_a_byte_through() {
    let mut scene = scene("bounded", "volume");
    scene.start(&[]);
    // A hundred thousand files of nothing at the end: of them the volume has 12,288, one for each block.
    let program = format!(
        "{GATED}{FILLS}tried('dd', write)\nclear()\ntried('fallocate', lambda: grow({LIMIT} + 1))\nclear()\n\
         tried('fallocate-half', lambda: grow({LIMIT} // 2))\nclear()\ntried('sparse', sparse)\nclear()\n\
         tried('many', many)\nprint('full', flush=True)\nsignal.sigwait([signal.SIGUSR1])\n"
    );
    scene.submit(Offer { disk_bytes: i64::try_from(LIMIT).unwrap(), cpu_millis: 1_000, ..python("t", &program) });
    scene.until_up("t");
    let image = file(&scene, "t");
    let before = fs::metadata(&image).unwrap();
    assert_eq!(devices(&folder(&scene)).len(), 1);
    scene.go("t");
    until_true("it is full", || scene.stdout("t").contains("full\n"));
    let after = fs::metadata(&image).unwrap();
    scene.go("t");
    let report = scene.until_complete("t");
    let said = scene.stdout("t");
    println!("{said}");
    let mut rows: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in said.lines().filter(|line| line.split(' ').count() == 5) {
        let (name, rest) = line.split_once(' ').unwrap();
        rows.insert(name, rest.split(' ').collect());
    }
    let words: BTreeMap<&str, &str> = rows.iter().map(|(name, row)| (*name, row[0])).collect();
    let expected = [("dd", "ENOSPC"), ("fallocate", "EFBIG"), ("fallocate-half", "done"), ("sparse", "ENOSPC")];
    assert_eq!(words, expected.into_iter().chain([("many", "ENOSPC")]).collect::<BTreeMap<_, _>>());
    let mut most = 0;
    for (name, row) in &rows {
        let number = |at: usize| row[at].parse::<u64>().unwrap();
        assert_eq!(number(1), LIMIT, "{name}: the room at first is the limit");
        most = most.max(number(2));
    }
    // All of the room can be used, and no more; what the machine gave is what it had given before the task began.
    assert!((LIMIT / 100 * 97..=LIMIT).contains(&most), "{most}");
    assert_eq!(before.blocks(), after.blocks(), "the file has not grown");
    println!(
        "bounded volume: worst overshoot {} bytes; file {} bytes",
        most.saturating_sub(LIMIT),
        after.blocks() * 512
    );
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    assert_eq!(held_by(&report), "volume");
    assert_eq!(evidence(&report).disk_full, Some(true), "of files");
    assert!((1..=LIMIT).contains(&report.figures.unwrap().peak_disk_bytes.unwrap()));
    until_nothing_is_left(&scene, &["t"]);
}

#[test]
fn an_end_for_lack_of_room_is_told_apart() {
    let mut scene = scene("ends", "auto");
    scene.start(&[]);
    let run = |task: &str, program: &str| {
        scene.submit(Offer { disk_bytes: i64::try_from(LIMIT).unwrap(), ..python(task, program) });
        scene.until_complete(task)
    };
    let report = run("fills", "f = open('x', 'wb', buffering=0)\nwhile True: f.write(bytes(1 << 20))\n");
    assert_eq!(how(&report), (Outcome::DiskLimit, Some(1)), "{report:?}");
    assert_eq!(report.reason, "exit code 1, with no room left in its work folder");
    let said = evidence(&report);
    assert_eq!((said.ended_by, said.disk_full), (EndedBy::Task, Some(true)));
    let said = scene.master().read("fills", 2, 0, 4 << 20).unwrap().bytes;
    assert!(String::from_utf8_lossy(&said).contains("No space left on device"), "{said:?}");
    assert!(report.figures.unwrap().peak_disk_bytes.unwrap() > LIMIT / 100 * 97);
    // Its own failure, with room.
    let report = run("fails", "open('x', 'wb').write(bytes(1 << 20)); raise SystemExit(3)\n");
    assert_eq!((how(&report), evidence(&report).disk_full), ((Outcome::Failed, Some(3)), Some(false)));
    let peak = report.figures.unwrap().peak_disk_bytes.unwrap();
    assert!((MIB..2 * MIB).contains(&peak), "{peak}");
    // Outputs of a full folder are read as ever.
    let program = "f = open('output/x', 'wb', buffering=0)\ntry:\n    while True: f.write(bytes(1 << 20))\n\
        except OSError: pass\n";
    let report = run("copes", &format!("import os\nos.makedirs('output', exist_ok=True)\n{program}"));
    assert_eq!((how(&report), evidence(&report).disk_full), ((Outcome::Succeeded, Some(0)), Some(true)));
    assert!(report.outputs.iter().map(|file| file.size).sum::<u64>() > LIMIT / 100 * 97, "{report:?}");
    let shown = scene.run(&["tasks", "show", "fills"]).stdout;
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains("disk 48.0 MiB (by a volume)") && shown.contains("no room left in its work"), "{shown}");
    until_nothing_is_left(&scene, &["fills", "fails", "copes"]);
}

#[test]
fn what_the_watch_lets_through_is_what_is_written_between_two_looks() {
    let mut scene = scene("watched", "watch");
    scene.start(&[]);
    // As fast as the machine takes it, each block once.
    let program = "import time\nbegin = time.monotonic()\ntotal = 0\n\
        for i in range(1 << 20):\n    with open(f'f{i}', 'wb', buffering=0) as f:\n        total += f.write(bytes(8 << 20))\n    \
        print(total, time.monotonic() - begin, flush=True)\n";
    let limit = 256 * MIB;
    scene.submit(Offer { disk_bytes: i64::try_from(limit).unwrap(), cpu_millis: 2_000, ..python("t", program) });
    let report = scene.until_complete("t");
    assert_eq!(report.outcome, Outcome::DiskLimit, "{report:?}");
    assert_eq!((held_by(&report).as_str(), evidence(&report).disk_full), ("watch", None));
    let said = scene.stdout("t");
    // It may have been stopped in the middle of a line.
    let whole = said.rsplit_once('\n').unwrap().0;
    let (total, seconds) = whole.lines().last().unwrap().split_once(' ').unwrap();
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    let rate = total.parse::<u64>().unwrap() as f64 / seconds.parse::<f64>().unwrap();
    let peak = report.figures.unwrap().peak_disk_bytes.unwrap();
    let over = peak.saturating_sub(limit);
    println!("watch: overshoot {} MiB at {:.0} MB/s, limit {} MiB", over / MIB, rate / 1e6, limit / MIB);
    assert!(over > 0, "it was stopped for what it wrote");
    // A second, the trigger, and what a busy machine adds to the look and the freeze.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of some seconds")]
    let most = (rate * 3.0) as u64 + limit / 8;
    assert!(over <= most, "{over} of at most {most}");
    assert!(!folder(&scene).exists() && devices(&scene.dir).is_empty());
    scene.until_clean();
}

/// What each task of the crash tests leaves. A second run would append.
const LEAVES: &str = "os.makedirs('output', exist_ok=True)\nopen('output/runs', 'a').write('run\\n')\n";

fn ends_once(scene: &Scene) {
    let report = scene.until_complete("t");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    assert_eq!(report.outputs.len(), 1, "{report:?}");
    assert_eq!(report.outputs[0].size, 4, "it ran once: {report:?}");
    until_nothing_is_left(scene, &["t"]);
}

/// A scene whose worker has died at `point`.
fn dead_at(name: &str, point: &str) -> Scene {
    let mut scene = scene(name, "volume");
    scene.set_env("HIVEMIND_FAIL_AT", point);
    scene.start(&[]);
    scene.submit(python("t", &format!("import os\n{LEAVES}")));
    let status = scene.until_exit();
    assert_eq!(status.signal(), Some(9), "{status:?}\n{}", scene.log());
    scene.env.retain(|(name, _)| name != "HIVEMIND_FAIL_AT");
    scene
}

#[test]
fn a_worker_killed_over_a_half_made_volume_makes_it_anew() {
    let mut scene = dead_at("made", "K15");
    assert!(file(&scene, "t").exists() && devices(&folder(&scene)).is_empty());
    scene.start(&[]);
    ends_once(&scene);
    let mut scene = dead_at("attached", "K16");
    assert_eq!(devices(&folder(&scene)).len(), 1);
    assert!(fs::symlink_metadata(link(&scene, "t")).is_err());
    scene.start(&[]);
    ends_once(&scene);
}

#[test]
fn a_worker_killed_over_a_half_removed_volume_removes_it() {
    let mut scene = dead_at("removed", "K17");
    assert!(file(&scene, "t").exists() && devices(&folder(&scene)).is_empty());
    scene.start(&[]);
    ends_once(&scene);
}

#[test]
fn a_running_task_keeps_its_volume_over_a_restart_of_the_worker() {
    let mut scene = scene("kept", "auto");
    scene.start(&[]);
    scene.submit(gated("t", LEAVES));
    scene.until_up("t");
    scene.kill_worker();
    // The watch is for what begins from now on.
    scene.set_env("HIVEMIND_TASK_DISK", "watch");
    scene.start(&[]);
    scene.until_adopted("t", 1);
    scene.go("t");
    assert_eq!(held_by(&scene.until_complete("t")), "volume");
    ends_once(&scene);
}

#[test]
fn what_a_task_left_is_read_after_a_restart_of_the_machine() {
    let mut scene = scene("machine", "auto");
    scene.start(&[]);
    scene.submit(gated("t", LEAVES));
    scene.until_up("t");
    scene.kill_worker();
    scene.go("t");
    let is_running = || scene.docker.inspect_container(&scene.container("t").unwrap()).unwrap().state.running;
    until_true("it has ended", || !is_running());
    // What a restart takes away: devices and their links. Another program is quicker with the number.
    fs::remove_file(link(&scene, "t")).unwrap();
    let device = devices(&folder(&scene)).pop().unwrap();
    losetup(&["--detach", &device]);
    let others = scene.dir.join("others.img");
    fs::write(&others, vec![0; 1 << 20]).unwrap();
    losetup(&[&device, others.to_str().unwrap()]);
    scene.start(&[]);
    ends_once(&scene);
    assert_eq!(devices(&others), std::slice::from_ref(&device), "what is another's stays");
    losetup(&["--detach", &device]);
}

#[test]
fn what_belongs_to_no_attempt_is_collected_and_another_nodes_is_not() {
    let mut scene = scene("collected", "auto");
    scene.start(&[]);
    scene.until_ready();
    let other_dir = scene.dir.join("other");
    fs::create_dir(&other_dir).unwrap();
    let other = Volumes::new(DiskWay::Volume, &other_dir, Identity::new("other", b"other")).unwrap();
    let state = scene.dir.join("state");
    let ours = Volumes::new(DiskWay::Volume, &state, scene.identity.clone()).unwrap();
    other.make(&key("gone"), MIB).unwrap();
    ours.make(&key("gone"), MIB).unwrap();
    ours.make(&key("unlinked"), MIB).unwrap();
    fs::remove_file(link(&scene, "unlinked")).unwrap();
    fs::remove_file(file(&scene, "unlinked")).unwrap();
    fs::write(folder(&scene).join("draft"), "x").unwrap();
    let would = String::from_utf8(scene.run(&["gc", "--dry-run"]).stdout).unwrap();
    assert!(would.contains("disk  gone.1.img ") && would.contains("gone#1 is not held any more"), "{would}");
    assert_eq!((would.lines().count(), devices(&folder(&scene)).len()), (3, 2), "{would}");
    let did = String::from_utf8(scene.run(&["gc"]).stdout).unwrap();
    assert_eq!(did.lines().filter(|line| line.contains("removed")).count(), 3, "{did}");
    until_nothing_is_left(&scene, &["gone", "unlinked"]);
    // At the start, too.
    scene.kill_worker();
    ours.make(&key("gone"), MIB).unwrap();
    scene.start(&[]);
    until_nothing_is_left(&scene, &["gone"]);
    assert_eq!(devices(&other_dir).len(), 1);
    assert!(other.link(&key("gone")).exists());
    assert!(other.reap(&|_| true, Collecting::Removes).is_empty());
    assert_eq!(other.reap(&|_| false, Collecting::Removes).len(), 1);
    assert!(devices(&other_dir).is_empty() && fs::symlink_metadata(other.link(&key("gone"))).is_err());
}

#[test]
fn a_volume_has_room_for_the_limit_to_the_block() {
    let dir = std::env::temp_dir().join(format!("hivemind-rooms-{}", std::process::id()));
    fs::create_dir_all(dir.join("mount")).unwrap();
    let volumes = Volumes::new(DiskWay::Volume, &dir, Identity::new("rooms", b"rooms")).unwrap();
    let mount = dir.join("mount");
    for room in [1, 2, 3, 16, 100, 127, 128, 129, 500, 1_000, 1_024, 1_100, 2_048, 3_000].map(|mib| mib * MIB) {
        volumes.make(&key("t"), room).unwrap();
        let link = volumes.link(&key("t"));
        let (device, place) = (link.to_str().unwrap(), mount.to_str().unwrap());
        let mounted =
            Command::new("mount").args(["-t", "ext4", "-o", "noinit_itable", device, place]).status().unwrap();
        assert!(mounted.success());
        let stat = rustix::fs::statvfs(&mount).unwrap();
        let names = fs::read_dir(&mount).unwrap().count();
        let owner = fs::metadata(&mount).unwrap().uid();
        assert!(Command::new("umount").arg(place).status().unwrap().success());
        let file = fs::metadata(dir.join("volumes/t.1.img")).unwrap().len();
        println!("room {} MiB, file {} KiB more, {} files", room / MIB, (file - room) / 1024, stat.f_ffree);
        assert_eq!(stat.f_bavail * stat.f_frsize, room, "{room}");
        assert_eq!((names, owner), (0, 1_000));
        volumes.remove(&key("t")).unwrap();
    }
    fs::remove_dir_all(&dir).unwrap();
}

/// Runs a task whose device's name is taken away before the engine mounts it, as if the engine had another `/dev`.
fn without_name(scene: &Scene, task: &str) -> FinalReport {
    let link = link(scene, task);
    thread::scope(|threads| {
        // The engine makes a volume and a container before it looks for it.
        threads.spawn(|| until_true("the device has its name", || fs::remove_file(&link).is_ok()));
        scene.submit(python(task, "print('fine')"));
        scene.until_complete(task)
    })
}

#[test]
fn an_engine_that_can_not_mount_them_leaves_limits_to_the_watch_unless_the_owner_wants_no_other() {
    let mut free = scene("unmounted", "auto");
    free.start(&[]);
    let report = without_name(&free, "t");
    assert_eq!((how(&report), held_by(&report)), ((Outcome::Succeeded, Some(0)), "watch".to_owned()), "{report:?}");
    let is_it = |event: &Event| matches!(&event.kind, EventKind::Note(text) if text.contains("can't mount a volume"));
    assert!(free.record("t").iter().any(is_it), "{:?}", free.record("t"));
    free.submit(python("next", "print('fine')"));
    assert_eq!(held_by(&free.until_complete("next")), "watch");
    until_nothing_is_left(&free, &["t", "next"]);

    let mut strict = scene("unmounted-strict", "volume");
    strict.start(&[]);
    let report = without_name(&strict, "t");
    assert_eq!(report.outcome, Outcome::NodeFault, "{report:?}");
    assert!(report.reason.contains("failed to mount local volume"), "{}", report.reason);
    until_nothing_is_left(&strict, &["t"]);
}

#[test]
fn one_that_was_not_unmounted_is_mended_before_it_is_attached_again() {
    let dir = std::env::temp_dir().join(format!("hivemind-mended-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let volumes = Volumes::new(DiskWay::Auto, &dir, Identity::new("mended", b"mended")).unwrap();
    volumes.make(&key("t"), MIB).unwrap();
    let (image, link) = (dir.join("volumes/t.1.img"), volumes.link(&key("t")));
    let device = fs::read_link(&link).unwrap();
    losetup(&["--detach", device.to_str().unwrap()]);
    let damaged = || {
        let file = fs::OpenOptions::new().read(true).write(true).open(&image).unwrap();
        // Not clean, and a wrong count of free blocks.
        file.write_all_at(&[0, 0], 1024 + 58).unwrap();
        file.write_all_at(&[7, 0, 0, 0], 1024 + 12).unwrap();
    };
    let state = || {
        let mut bytes = [0; 48];
        fs::File::open(&image).unwrap().read_exact_at(&mut bytes, 1024 + 12).unwrap();
        (bytes[46], u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let (_, free) = state();
    damaged();
    assert_eq!(state(), (0, 7));
    volumes.attach_again(&key("t")).unwrap();
    // The program gives it its folder for found pieces, of one block.
    assert_eq!(state(), (1, free - 1));
    let again = fs::read_link(&link).unwrap();
    assert_eq!(losetup(&["--associated", image.to_str().unwrap()]).split(':').next(), again.to_str());
    // One that is right stays.
    volumes.attach_again(&key("t")).unwrap();
    assert_eq!(devices(&dir).len(), 1);
    volumes.remove(&key("t")).unwrap();
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn doctor_says_what_holds_disk_limits() {
    let mut scene = Scene::new("doctor-disk");
    let said = |scene: &Scene| String::from_utf8(scene.run(&["doctor"]).stdout).unwrap();
    let text = said(&scene);
    assert!(text.contains("held by a volume of that size for each task"), "{text}");
    scene.set_env("HIVEMIND_TASK_DISK", "watch");
    let text = said(&scene);
    assert!(text.contains("held by a watch that looks each second, as HIVEMIND_TASK_DISK says"), "{text}");
}
