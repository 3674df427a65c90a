//! Rows 1 to 14 of the fault matrix: the worker is killed at each of the points K0 to K13 (`sys::failpoint`), and the next
//! one on the same folder keeps what was promised.
//!
//! After each of them: one final report behind events without a hole, one container of the attempt, started once, its
//! output as it was written, and nothing left at the engine.
#![allow(clippy::unwrap_used)]

#[path = "sim_support/dice.rs"]
#[allow(dead_code, reason = "each test file uses a part")]
mod dice;
mod node_util;
mod registry_util;

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use dice::Dice;
use hivemind_worker::monitor::Submissions;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::{FinalReport, Outcome, Phase};
use node_util::{GATED, Scene, how, python, until, until_true};
use registry_util::{Content, Registry, whole};

/// The one task of a scene.
const TASK: &str = "t";
/// Longest time from the start of a worker to a task that is followed again (row 7 and 8).
const REATTACHED: Duration = Duration::from_secs(2);

/// What each task leaves. A second run would append.
const LEAVES: &str = "open('output/runs', 'a').write('run\\n')\nopen('output/z', 'w').write('z' * 100_000)\n";

fn short() -> Offer {
    python(TASK, &format!("print('up', flush=True)\n{LEAVES}"))
}

fn gated() -> Offer {
    python(TASK, &format!("{GATED}{LEAVES}"))
}

/// A node whose worker dies at `point`, with its master.
fn armed(name: &str, point: &str) -> Scene {
    let mut scene = Scene::with_master(name);
    scene.env = patient();
    scene.env.push(("HIVEMIND_FAIL_AT".to_owned(), point.to_owned()));
    scene.start(&[]);
    scene
}

/// More deaths than an attempt is given, since here it is not to blame for them.
fn patient() -> Vec<(String, String)> {
    vec![("HIVEMIND_CRASH_LIMIT".to_owned(), "1000000".to_owned())]
}

/// Waits for the death; the next worker is a plain one.
fn until_dead(scene: &mut Scene) {
    let status = scene.until_exit();
    assert_eq!(status.signal(), Some(9), "it was to be killed: {status:?}\n{}", scene.log());
    scene.env = patient();
}

/// A scene whose worker has died at `point` with this task.
fn dead_at(name: &str, point: &str, offer: Offer) -> Scene {
    let mut scene = armed(name, point);
    scene.submit(offer);
    until_dead(&mut scene);
    scene
}

fn output(scene: &Scene, path: &str) -> String {
    let content = scene.desk().output(TASK, path).unwrap_or_else(|| panic!("{path} is not at the master"));
    let mut text = String::new();
    { content.reader }.read_to_string(&mut text).unwrap();
    text
}

/// The promise of all rows.
fn ends_once(scene: &Scene) -> FinalReport {
    let report = scene.until_complete(TASK);
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    assert_eq!(report.outputs.len(), 2, "{report:?}");
    assert!(report.cut.is_empty(), "{report:?}");
    assert_eq!(output(scene, "output/runs"), "run\n");
    assert_eq!(output(scene, "output/z"), "z".repeat(100_000));
    assert_eq!(scene.stdout(TASK), "up\n");
    assert_eq!(scene.containers_ever(TASK).len(), 1, "{:?}", scene.engine_events());
    assert_eq!(scene.starts().0.len(), 1, "{:?}", scene.engine_events());
    scene.until_status("nothing is held any more", |status| status.attempts.is_empty());
    scene.until_clean();
    assert_eq!(spooled(scene), 0, "the spool keeps something of what is delivered");
    scene.checked_report(TASK)
}

/// Folders of attempts in the spool.
fn spooled(scene: &Scene) -> usize {
    fs::read_dir(scene.dir.join("state/spool")).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
}

fn state(scene: &Scene) -> String {
    let found = scene.docker.inspect_container(&scene.container(TASK).expect("there is a container")).unwrap();
    found.state.status
}

/// Starts the worker on a folder with a running task; how long it takes until the task is followed again.
fn reattach(scene: &mut Scene, times: usize) -> Duration {
    let begin = Instant::now();
    scene.start(&[]);
    scene.until_status("it is followed again", |status| {
        status.attempts.iter().any(|held| held.phase == Phase::Running && held.detail.starts_with("adopted"))
    });
    let took = begin.elapsed();
    scene.until_adopted(TASK, times);
    took
}

#[test]
fn row_01_k0_answer_read_is_offered_again_without_a_trace() {
    let mut scene = dead_at("k0", "K0", short());
    assert_eq!(spooled(&scene), 0);
    assert!(scene.containers_ever(TASK).is_empty());
    assert_eq!(scene.view(TASK).phase, "offered");
    scene.start(&[]);
    ends_once(&scene);
}

#[test]
fn row_02_k1_decision_not_synced_is_offered_again_without_a_trace() {
    let mut scene = dead_at("k1", "K1", short());
    assert_eq!(spooled(&scene), 1, "the attempt's folder was written");
    assert_eq!(scene.view(TASK).phase, "offered");
    // The next start has nothing of it, and runs nothing without a master.
    scene.stop_master();
    scene.start(&[]);
    let status = scene.until_ready();
    assert!(status.attempts.is_empty() && status.history.is_empty(), "{status:?}");
    assert_eq!(spooled(&scene), 0);
    assert!(scene.containers_ever(TASK).is_empty());
    scene.start_master();
    ends_once(&scene);
}

#[test]
fn row_03_k2_synced_decision_runs_though_the_master_does_not_know() {
    let mut scene = dead_at("k2", "K2", short());
    assert_eq!(scene.view(TASK).phase, "offered");
    assert!(scene.containers_ever(TASK).is_empty());
    scene.stop_master();
    scene.start(&[]);
    scene.until_status("it has run without a master", |status| {
        status.attempts.iter().any(|held| held.phase == Phase::Reporting)
    });
    // The master still wants to offer it.
    scene.start_master();
    ends_once(&scene);
}

#[test]
fn row_04_k3_confirmed_resumes() {
    let mut scene = armed("k3", "K3");
    scene.submit(gated());
    until_dead(&mut scene);
    assert_ne!(scene.view(TASK).phase, "offered", "the master has the confirmation");
    scene.start(&[]);
    scene.until_up(TASK);
    scene.go(TASK);
    ends_once(&scene);
}

#[test]
fn row_05_k4_during_a_pull_resumes() {
    let busybox = fs::read("/bin/busybox").expect("this test needs a static busybox at /bin/busybox");
    let registry = Registry::serve(Content::with_file("busybox", 0o755, &busybox), None, whole);
    let image = format!("{}:1", registry.name());
    let program = "echo up; echo run >>output/runs; /busybox head -c 100000 /dev/zero | /busybox tr '\\0' z >output/z";
    let command = ["/busybox", "sh", "-c", program].map(str::to_owned).to_vec();
    let offer = Offer { image: image.clone(), pull: "if-missing".to_owned(), command, ..short() };
    let mut scene = dead_at("k4", "K4", offer);
    assert!(scene.containers_ever(TASK).is_empty());
    let asked = registry.seen.lock().unwrap().len();
    assert!(asked > 0, "the pull had begun");
    scene.start(&[]);
    ends_once(&scene);
    scene.docker.remove_image(&image).unwrap();
}

#[test]
fn row_06_k5_container_of_unknown_id_is_found_and_adopted() {
    let mut scene = dead_at("k5", "K5", short());
    assert_eq!(state(&scene), "created");
    scene.start(&[]);
    ends_once(&scene);
}

#[test]
fn row_07_k6_created_container_is_started() {
    let mut scene = dead_at("k6", "K6", short());
    assert_eq!(state(&scene), "created");
    scene.start(&[]);
    ends_once(&scene);
}

#[test]
fn row_08_k7_started_container_is_reattached_and_its_time_runs_from_its_start() {
    const TIMEOUT: Duration = Duration::from_secs(6);
    let offer = Offer { timeout_ms: 6_000, grace_ms: Some(100), ..gated() };
    let mut scene = dead_at("k7", "K7", offer);
    assert_eq!(state(&scene), "running");
    // Most of its time passes without a worker.
    let started = Instant::now();
    until_true("four seconds of its time have passed", || started.elapsed() > Duration::from_secs(4));
    scene.start(&[]);
    let report = scene.until_complete(TASK);
    assert_eq!(report.outcome, Outcome::TimedOut, "{report:?}");
    let ran = Duration::from_millis(report.duration_ms);
    // The kernel's start of the process is a little before the engine's of the container.
    let early = TIMEOUT - Duration::from_millis(500);
    assert!(ran >= early && ran < TIMEOUT + Duration::from_secs(3), "counted from the start: {ran:?}");
    assert_eq!(scene.starts().0.len(), 1);
    scene.until_clean();

    let mut scene = dead_at("k7b", "K7", gated());
    reattach(&mut scene, 1);
    scene.go(TASK);
    ends_once(&scene);
}

#[test]
fn row_09_k8_running_container_is_reattached_within_two_seconds() {
    let mut scene = dead_at("k8", "K8", gated());
    assert_eq!(state(&scene), "running");
    let container = scene.container(TASK);
    // A busy machine gets three tries at the time, not at anything else.
    let mut quickest = reattach(&mut scene, 1);
    for times in 2..=3 {
        scene.kill_worker();
        quickest = quickest.min(reattach(&mut scene, times));
    }
    println!("from the start of the worker to the task that is followed again: {quickest:?}");
    assert!(quickest <= REATTACHED, "{quickest:?}");
    assert_eq!(scene.container(TASK), container);
    scene.go(TASK);
    ends_once(&scene);
}

#[test]
fn row_10_k9_exit_that_nobody_saw_is_read() {
    let mut scene = dead_at("k9", "K9", short());
    assert_eq!(state(&scene), "exited");
    assert!(scene.view(TASK).final_report.is_none());
    scene.start(&[]);
    ends_once(&scene);
}

#[test]
fn row_11_k10_outputs_that_were_half_collected_are_collected_again() {
    let mut scene = dead_at("k10", "K10", short());
    assert_eq!(state(&scene), "exited");
    assert!(scene.view(TASK).final_report.is_none());
    scene.start(&[]);
    ends_once(&scene);
}

#[test]
fn row_12_k11_durable_report_is_submitted_though_the_container_is_gone() {
    let mut scene = dead_at("k11", "K11", short());
    assert!(scene.view(TASK).final_report.is_none());
    // The result needs the engine no more.
    if let Some(container) = scene.container(TASK) {
        scene.docker.remove_container(&container).unwrap();
    }
    scene.start(&[]);
    ends_once(&scene);
}

#[test]
fn row_13_k12_report_without_a_stored_acknowledgement_is_submitted_again() {
    let mut scene = dead_at("k12", "K12", short());
    assert!(scene.view(TASK).final_report.is_some());
    assert_eq!(spooled(&scene), 1);
    let told = scene.record(TASK);
    scene.start(&[]);
    ends_once(&scene);
    assert_eq!(scene.record(TASK)[..told.len()], told[..], "the same content at the same numbers");
}

#[test]
fn row_14_k13_cleanup_is_finished() {
    let mut scene = dead_at("k13", "K13", short());
    assert!(scene.container(TASK).is_none());
    assert_eq!(scene.left_overs(), 1, "the volume is there");
    scene.start(&[]);
    ends_once(&scene);
}

/// As many as `HM_KILLS` says, at points and passings that a seed chooses.
#[test]
fn kills_at_points_of_a_seeds_choice_lose_and_double_nothing() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (kills, seed) = (number("HM_KILLS", 3), number("HM_KILLS_SEED", 1));
    let mut dice = Dice::new(seed);
    let mut died = 0;
    let mut round = 0;
    while died < kills {
        round += 1;
        assert!(round <= kills * 5, "the points are hardly passed: {died} of {kills}");
        let mut scene = Scene::with_master(&format!("kills{round}"));
        scene.submit(short());
        let mut said = Vec::new();
        // Up to three lives that end early.
        for _ in 0..=dice.below(3) {
            let point = match dice.below(13) {
                // Nothing is pulled here.
                4 => 13,
                point => point,
            };
            let point = format!("K{point}:{}", 1 + dice.below(2));
            said.push(point.clone());
            scene.env = patient();
            scene.env.push(("HIVEMIND_FAIL_AT".to_owned(), point));
            scene.start(&[]);
            let ended = until("the worker dies, or is done", || {
                let worker = scene.worker.as_mut().unwrap();
                match worker.try_wait().unwrap() {
                    Some(status) => Some(Some(status)),
                    None => scene.view(TASK).is_complete.then_some(None),
                }
            });
            match ended {
                Some(status) => {
                    assert_eq!(status.signal(), Some(9), "HM_KILLS_SEED={seed} {said:?}");
                    scene.worker = None;
                    died += 1;
                }
                None => scene.kill_worker(),
            }
        }
        println!("round {round}, seed {seed}: {said:?}");
        scene.env = patient();
        scene.start(&[]);
        ends_once(&scene);
    }
}
