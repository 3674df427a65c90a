//! Row 15 of the fault matrix for the whole worker: each call that changes something in the state folder is once the last
//! one, fails with EIO, or with ENOSPC. The calls are those of a node that starts on an empty folder, joins and runs one
//! task, and those of the next one, where the first was killed while its task ran. The worker after that brings the task to
//! its one end.
//!
//! The calls are listed with strace first. A call is named by its file, its kind and how many of that kind came before on
//! that file, so that a fault hits it and nothing else, whichever thread makes it.
//!
//! `HM_SCRIPTED_CALLS` says how many of these faults are tried, by the choice of `HM_SCRIPTED_SEED`; 0: all of them.
#![allow(clippy::unwrap_used)]

#[path = "sim_support/dice.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod dice;
mod engine_support;
mod kill_support;
mod node_util;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use dice::Dice;
use engine_support::script::{OTHER_IMAGES, Script};
use kill_support::{PATIENCE, Treatment, World};

/// Of the scene, and so of the state folder: each run has the same, or a file would have another name.
const NAME: &str = "scripted-calls";
const SEED: u64 = 7;
/// What changes a file or a folder.
const CALLS: [&str; 13] = [
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fallocate",
    "openat",
    "mkdir",
    "rename",
    "renameat",
    "unlink",
    "unlinkat",
    "rmdir",
];
const FAULTS: [&str; 3] = ["signal=SIGKILL", "error=EIO", "error=ENOSPC"];
/// A worker that a fault has stopped without ending it is ended after this.
const MAX_LIFE: Duration = Duration::from_secs(3);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Which worker on a folder meets the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// It begins on an empty folder.
    First,
    /// The one before was killed, and the task has come to its end meanwhile.
    Second,
}

/// A place for a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    life: Life,
    path: String,
    call: String,
    when: u64,
}

/// A task with all that a task can have: a pull, a helper for its volume, inputs, output of both kinds, and files.
fn task() -> String {
    let has_all = |task: &String| {
        let script = Script::of(SEED, task);
        let is_plain = !script.is_endless && script.exit_code == 0 && script.image.starts_with(OTHER_IMAGES);
        is_plain && script.files.len() > 1 && [1, 2].iter().all(|stream| !script.printed(*stream).is_empty())
    };
    (0..).map(|number| format!("task-{number}")).find(has_all).unwrap()
}

/// A node that began on an empty folder, where not even its key was; its worker is below strace, with these words for a
/// shell.
fn traced(life: Life, words: &str) -> World {
    let mut world = World::new(NAME, SEED);
    for entry in fs::read_dir(world.scene.dir.join("state")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    world.submit(&task());
    if life == Life::Second {
        world.start();
        assert!(world.sights.wait("exit", 1, Instant::now() + PATIENCE), "the task runs\n{}", world.scene.log());
        world.scene.kill_worker();
    }
    // The tracer is a grandchild (-D), so that the scene's child, whose number the shell knows, is the worker itself.
    let trace = world.scene.dir.join("trace");
    let program = format!("exec strace -D -f --seccomp-bpf -qq -s 0 -o {} {words} \"$@\"", trace.display());
    world.scene.prefix = ["sh", "-c", &program, "sh"].map(str::to_owned).to_vec();
    world.start();
    world.scene.prefix.clear();
    world
}

fn is_at_rest(world: &World) -> bool {
    let spool = world.scene.dir.join("state/spool");
    let is_empty = fs::read_dir(spool).is_ok_and(|mut entries| entries.all(|entry| !entry.unwrap().path().is_dir()));
    is_empty && world.master.book().open() == 0 && world.engine.left_overs().is_empty()
}

/// Lets the traced worker live until it ends, has nothing more to do, or is stuck.
fn live(world: &mut World) {
    let end = Instant::now() + MAX_LIFE;
    while Instant::now() < end {
        if world.scene.worker.as_mut().unwrap().try_wait().unwrap().is_some() {
            world.scene.worker = None;
            return;
        }
        if is_at_rest(world) {
            break;
        }
        world.sights.wait("nothing", 1, Instant::now() + Duration::from_millis(10));
    }
    world.scene.kill_worker();
}

fn trace(world: &World) -> String {
    fs::read_to_string(world.scene.dir.join("trace")).unwrap_or_default()
}

/// The call of a line of strace, and the file that it changes.
fn changed(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once(' ')?;
    let (call, arguments) = rest.trim_start().split_once('(')?;
    if call == "openat" && !arguments.contains("O_CREAT") {
        return None;
    }
    let by_descriptor = ["write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate"].contains(&call);
    let marks = if by_descriptor { ('<', '>') } else { ('"', '"') };
    let path = arguments.split_once(marks.0)?.1.split_once(marks.1)?.0;
    Some((call, path))
}

/// Each place of one undisturbed life.
fn places(life: Life) -> Vec<Place> {
    let mut world = traced(life, &format!("-y -e trace={}", CALLS.join(",")));
    // Some files are named after the worker's process.
    let own = format!(".{}.", world.scene.worker.as_ref().unwrap().id());
    let end = Instant::now() + PATIENCE;
    while !is_at_rest(&world) && Instant::now() < end {
        world.sights.wait("nothing", 1, Instant::now() + Duration::from_millis(10));
    }
    assert!(is_at_rest(&world), "a life without a fault comes to its end\n{}", world.scene.log());
    world.scene.kill_worker();
    let folder = world.scene.dir.join("state").display().to_string();
    let mut seen = BTreeMap::<(String, String), u64>::new();
    for (call, path) in trace(&world).lines().filter_map(changed).filter(|(_, path)| path.starts_with(&folder)) {
        *seen.entry((path.replace(&own, ".$$."), call.to_owned())).or_default() += 1;
    }
    let places = seen.into_iter().flat_map(|((path, call), count)| {
        (1..=count).map(move |when| Place { life, path: path.clone(), call: call.clone(), when })
    });
    places.collect()
}

#[test]
fn one_task_comes_to_its_end_when_any_call_of_the_state_folder_kills_or_fails() {
    assert!(Command::new("strace").arg("-V").output().is_ok(), "this test needs strace: scripts/test.sh installs it");
    let (count, seed) = (number("HM_SCRIPTED_CALLS", 12), number("HM_SCRIPTED_SEED", 1));
    let all = [places(Life::First), places(Life::Second)].concat();
    let mut points: Vec<(Place, &str)> =
        all.iter().flat_map(|place| FAULTS.map(|fault| (place.clone(), fault))).collect();
    println!("{} calls in the state folder, {} faults", all.len(), points.len());
    assert!(all.len() > 100, "{all:#?}");
    if count > 0 {
        let mut dice = Dice::new(seed);
        let chosen = (0..count).map(|_| dice.pick(&points).unwrap());
        points = chosen.collect();
    }
    let (begin, mut hits, mut failures) = (Instant::now(), 0, Vec::new());
    for (Place { life, path, call, when }, fault) in &points {
        let inject = format!("inject={call}:{fault}:when={when}");
        let mut world = traced(*life, &format!("-P \"{path}\" -e trace={call} -e {inject}"));
        live(&mut world);
        let trace = trace(&world);
        hits += usize::from(trace.contains("INJECTED") || trace.contains("killed by SIGKILL"));
        world.start();
        let faults = world.come_to_rest(Treatment::BadDisk);
        if !faults.is_empty() {
            failures
                .push(format!("{inject} on {path} in the {life:?} life: {faults:#?}\n{trace}\n{}", world.scene.log()));
        }
    }
    println!("{hits} of {} faults struck, in {:?}", points.len(), begin.elapsed());
    assert!(
        failures.is_empty(),
        "{} of {} faults did harm:\n{}",
        failures.len(),
        points.len(),
        failures.join("\n----\n")
    );
    // A log of the database has some writes more or less, as its batches fall.
    assert!(hits * 10 >= points.len() * 8, "only {hits} of {} faults struck", points.len());
}
