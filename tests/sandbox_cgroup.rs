//! What the kernel makes of a task's limits, with either version of cgroups: how it ends a task that is out of memory,
//! freezes it, takes new limits while it runs, and weighs it; and that the worker's figures are the engine's.
//!
//! The tests read the kernel's files themselves: `/proc/PID/cgroup` of a container's first process leads to them.
#![allow(clippy::unwrap_used)]

mod node_util;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hivemind_worker::docker::{CreateBody, Docker, HostConfig, NodeTimeouts, UpdateBody};
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::Outcome;
use node_util::{Scene, engine_host, gated, how, python, until, until_true};

const BASE_IMAGE: &str = "justin308/hivemind-worker:latest";
const MIB: u64 = 1 << 20;

/// The kernel's files of one container.
enum Cgroup {
    V1(String),
    V2(PathBuf),
}

impl Cgroup {
    fn of(docker: &Docker, container: &str) -> Self {
        let pid = docker.inspect_container(container).unwrap().state.pid;
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        match text.strip_prefix("0::") {
            Some(path) if text.lines().count() == 1 => {
                Self::V2(PathBuf::from(format!("/sys/fs/cgroup{}", path.trim_end())))
            }
            _ => Self::V1(text),
        }
    }

    fn is_v2(&self) -> bool {
        matches!(self, Self::V2(_))
    }

    /// The content of the file that is called so in version 1, in the hierarchy of this controller, or in version 2.
    fn read(&self, (controller, v1): (&str, &str), v2: &str) -> String {
        let path = match self {
            Self::V2(folder) => folder.join(v2),
            Self::V1(text) => {
                let is_it = |line: &&str| line.split(':').nth(1).unwrap().split(',').any(|name| name == controller);
                let line = text.lines().find(is_it).unwrap();
                let mut parts = line.splitn(3, ':').skip(1);
                let (controllers, folder) = (parts.next().unwrap(), parts.next().unwrap());
                PathBuf::from(format!("/sys/fs/cgroup/{controllers}{folder}")).join(v1)
            }
        };
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
    }

    /// CPU time in microseconds.
    fn cpu_us(&self) -> u64 {
        if self.is_v2() {
            let text = self.read(("", ""), "cpu.stat");
            text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap().parse().unwrap()
        } else {
            self.read(("cpuacct", "cpuacct.usage"), "").parse::<u64>().unwrap() / 1_000
        }
    }

    /// Quota and period in microseconds.
    fn quota(&self) -> String {
        if self.is_v2() {
            return self.read(("", ""), "cpu.max");
        }
        let one = |name| self.read(("cpu", name), "");
        format!("{} {}", one("cpu.cfs_quota_us"), one("cpu.cfs_period_us"))
    }

    fn is_frozen(&self) -> bool {
        match self {
            Self::V2(_) => self.read(("", ""), "cgroup.events").lines().any(|line| line == "frozen 1"),
            Self::V1(_) => self.read(("freezer", "freezer.state"), "") == "FROZEN",
        }
    }
}

/// A container of the test's own, removed at its end.
struct Container {
    docker: Docker,
    id: String,
}

impl Container {
    fn start(name: &str, program: &str) -> Self {
        let docker = engine();
        let name = format!("hivemind-cgroup-{name}-{}", std::process::id());
        let body = CreateBody {
            image: BASE_IMAGE.to_owned(),
            cmd: Some(["python3", "-c", program].map(str::to_owned).to_vec()),
            network_disabled: true,
            host_config: HostConfig {
                network_mode: "none".to_owned(),
                memory: i64::try_from(64 * MIB).unwrap(),
                memory_swap: i64::try_from(64 * MIB).unwrap(),
                nano_cpus: 500_000_000,
                pids_limit: Some(64),
                cgroupns_mode: "private".to_owned(),
                ..HostConfig::default()
            },
            ..CreateBody::default()
        };
        let id = docker.create_container(&name, &body).unwrap().id;
        let container = Self { docker, id };
        container.docker.start_container(&container.id).unwrap();
        container
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.docker.remove_container(&self.id);
    }
}

fn engine() -> Docker {
    let docker = Docker::new(engine_host(), NodeTimeouts::default());
    docker.ping().expect("these tests need a Docker engine: scripts/test.sh starts one");
    docker
}

/// What is wanted is a failure of the first allocation over the limit, not a long struggle just below it.
const GREEDY: &str = "x = bytearray(300 << 20)";

#[test]
fn the_engine_tells_which_cgroups_the_kernel_has() {
    let facts = engine().facts().unwrap();
    let has_v2 = fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap();
    assert_eq!(facts.cgroup_version, if has_v2 { 2 } else { 1 }, "{facts:?}");
    assert!(matches!(facts.cgroup_driver.as_str(), "cgroupfs" | "systemd"), "{facts:?}");
    println!("cgroup v{}, driver {}, engine {}", facts.cgroup_version, facts.cgroup_driver, facts.version);
}

#[test]
fn a_child_killed_for_memory_does_not_take_the_task_along_and_is_told() {
    let mut scene = Scene::with_master("cg-child");
    scene.start(&[]);
    let program = format!(
        "import subprocess\n\
         code = subprocess.run([sys.executable, '-c', {GREEDY:?}]).returncode\n\
         print('the child ended with', code, flush=True)\n"
    );
    scene.submit(gated("child", &program));
    scene.until_up("child");
    let cgroup = Cgroup::of(&scene.docker, &scene.container("child").unwrap());
    if cgroup.is_v2() {
        // Set, the kernel would kill all processes of the task for one.
        assert_eq!(cgroup.read(("", ""), "memory.oom.group"), "0");
    }
    scene.go("child");
    let report = scene.until_complete("child");
    assert_eq!(how(&report), (Outcome::OutOfMemory, Some(0)), "{report:?}");
    assert_eq!(scene.stdout("child"), "up\nthe child ended with -9\n");
    assert_eq!(report.usage.peak_memory_bytes, 64 * MIB, "{report:?}");
}

#[test]
fn a_task_killed_for_memory_itself_is_told_each_time() {
    let mut scene = Scene::with_master("cg-main");
    scene.start(&[]);
    // The kernel's word may come after the end of the process: what happens once in a while must not be luck.
    for round in 0..8 {
        let task = format!("main-{round}");
        scene.submit(python(&task, GREEDY));
        let report = scene.until_complete(&task);
        assert_eq!(how(&report), (Outcome::OutOfMemory, Some(137)), "{task}: {report:?}");
        assert_eq!(report.usage.peak_memory_bytes, 64 * MIB, "{task}: {report:?}");
    }
}

#[test]
fn a_container_whose_first_process_is_killed_for_memory_has_the_flag() {
    // Without an init: the one that is killed is process 1. With v2 the engine misses some.
    let is_flagged = || {
        let container = Container::start("first", GREEDY);
        let state = until("it has ended", || {
            let state = container.docker.inspect_container(&container.id).unwrap().state;
            (!state.running).then_some(state)
        });
        assert_eq!(state.exit_code, 137, "{state:?}");
        state.oom_killed
    };
    assert!((0..8).any(|_| is_flagged()));
}

#[test]
fn a_frozen_task_stands_still_and_takes_new_limits() {
    let container = Container::start("frozen", "while True: pass");
    let (docker, id) = (&container.docker, &container.id);
    let cgroup = Cgroup::of(docker, id);
    assert_eq!(cgroup.quota(), "50000 100000");
    let before = cgroup.cpu_us();
    until_true("it computes", || cgroup.cpu_us() > before);
    docker.pause_container(id).unwrap();
    assert!(cgroup.is_frozen());
    let frozen_at = cgroup.cpu_us();

    let update = UpdateBody { nano_cpus: Some(250_000_000), cpu_shares: Some(1_024), ..UpdateBody::default() };
    assert_eq!(docker.update_container(id, &update).unwrap(), Vec::<String>::new());
    assert_eq!(cgroup.quota(), "25000 100000", "while it is frozen");
    assert!(cgroup.is_frozen());
    assert_eq!(cgroup.read(("cpu", "cpu.shares"), "cpu.weight"), if cgroup.is_v2() { "39" } else { "1024" });
    let memory = i64::try_from(96 * MIB).unwrap();
    let update = UpdateBody { memory: Some(memory), memory_swap: Some(memory), ..UpdateBody::default() };
    assert_eq!(docker.update_container(id, &update).unwrap(), Vec::<String>::new());
    assert_eq!(cgroup.read(("memory", "memory.limit_in_bytes"), "memory.max"), memory.to_string());
    if cgroup.is_v2() {
        assert_eq!(cgroup.read(("", ""), "memory.swap.max"), "0", "memory and swap together are no more than memory");
    }
    assert_eq!(cgroup.cpu_us(), frozen_at, "a frozen task has computed");

    docker.unpause_container(id).unwrap();
    assert!(!cgroup.is_frozen());
    until_true("it computes again", || cgroup.cpu_us() > frozen_at);
    let found = docker.inspect_container(id).unwrap();
    assert_eq!((found.host_config.nano_cpus, found.host_config.memory), (250_000_000, memory));
    assert!(found.state.running && !found.state.paused);

    // The new quota holds for what it computes from here on: a quarter of a CPU, and the one period that was begun.
    let (begin, begin_us) = (Instant::now(), cgroup.cpu_us());
    until_true("it has computed for half a second", || cgroup.cpu_us() - begin_us >= 500_000);
    let share = (cgroup.cpu_us() - begin_us) as f64 / begin.elapsed().as_micros() as f64;
    assert!(share < 0.35, "{share} of a CPU where a quarter is allowed");
}

#[test]
fn priorities_are_weights_in_their_order() {
    let mut scene = Scene::with_master("cg-weight");
    scene.start(&["--slots", "3"]);
    for priority in [0, 50, 100] {
        let task = format!("p{priority}");
        scene.submit(Offer { priority: Some(priority), cpu_millis: 100, ..gated(&task, "") });
    }
    let weights: Vec<String> = [0, 50, 100]
        .map(|priority| {
            let task = format!("p{priority}");
            scene.until_up(&task);
            let cgroup = Cgroup::of(&scene.docker, &scene.container(&task).unwrap());
            let weight = cgroup.read(("cpu", "cpu.shares"), "cpu.weight");
            scene.go(&task);
            if cgroup.is_v2() { format!("v2 {weight}") } else { format!("v1 {weight}") }
        })
        .to_vec();
    // 2, 500 and 1,000 shares; runc's 1 + (shares - 2) * 9999 / 262142 of them.
    let expected =
        if weights[0].starts_with("v2") { ["v2 1", "v2 19", "v2 39"] } else { ["v1 2", "v1 500", "v1 1000"] };
    assert_eq!(weights, expected);
    for priority in [0, 50, 100] {
        assert_eq!(scene.until_complete(&format!("p{priority}")).outcome, Outcome::Succeeded);
    }
}

#[test]
fn the_use_told_is_without_the_file_cache_as_the_engine_shows_it() {
    let mut scene = Scene::with_master("cg-use");
    scene.start(&[]);
    // 24 MiB that it needs, and 64 MiB of files that it has written and read: more than its limit together.
    let program = "keep = os.urandom(24 << 20)\n\
        block = os.urandom(1 << 20)\n\
        with open('big', 'wb') as file:\n    \
            for _ in range(64): file.write(block)\n    \
            os.fsync(file.fileno())\n\
        print('written', flush=True)\n\
        signal.sigwait([signal.SIGUSR1])\n";
    scene.submit(gated("use", program));
    scene.until_up("use");
    scene.go("use");
    scene.until_view("use", "it has written", |view| view.stdout_bytes > 3 || view.is_complete);
    let container = scene.container("use").unwrap();
    // Both are read while the task stands still; what it did before takes the kernel a moment to count.
    let close = |a: u64, b: u64| a.abs_diff(b) < 4 * MIB;
    let (told, engine) = until("the worker's figures are the engine's", || {
        let told = scene.status()?.attempts.first()?.usage;
        let engine = scene.docker.stats(&container).unwrap();
        let is_it = close(told.memory_bytes, engine.memory?) && told.disk_written_bytes == engine.block_write;
        is_it.then_some((told, engine))
    });
    println!("told {told:?}, engine {engine:?}");
    assert!(told.memory_bytes >= 24 * MIB && told.memory_bytes < 60 * MIB, "{told:?}");
    assert!(engine.memory_with_cache.unwrap() > told.memory_bytes + 8 * MIB, "there was to be a cache: {engine:?}");
    assert!(told.pids >= 2, "init and Python: {told:?}");
    assert!(told.cpu_ms > 0, "{told:?}");
    // Version 1 counts what goes through the cache to nobody.
    if Cgroup::of(&scene.docker, &container).is_v2() {
        assert!(told.disk_written_bytes >= 64 * MIB, "{told:?}");
    }
    scene.go("use");
    let report = scene.until_complete("use");
    assert_eq!(how(&report), (Outcome::Succeeded, Some(0)), "{report:?}");
    let cpu = Duration::from_millis(report.usage.cpu_ms);
    assert!(!cpu.is_zero() && cpu < Duration::from_secs(60), "{report:?}");
}
