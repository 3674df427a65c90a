//! Task threads on the real engine, with the base image: `scripts/build-image.sh` makes it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use hivemind_worker::docker::{Docker, DockerHost, LogOptions, NodeTimeouts};
use hivemind_worker::fetch::Fetcher;
use hivemind_worker::node::account::EndedBy;
use hivemind_worker::node::guard::Guard;
use hivemind_worker::node::id::AttemptKey;
use hivemind_worker::node::leftover::Collecting;
use hivemind_worker::node::net::NetworkPolicy;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::order::{Desired, Marks, StopOrder, TaskNews};
use hivemind_worker::node::record::{EventKind, FinalReport, Outcome, Phase, PieceContent};
use hivemind_worker::node::resources::DiskWay;
use hivemind_worker::node::spec::{SpecDefaults, TaskSpec};
use hivemind_worker::sandbox::{
    self, Beginning, Context, EgressGuard, EgressSettings, Identity, Stock, StockSettings, TaskHandle, Volumes,
};
use hivemind_worker::store::{Ack, BundleLimits, Bundles, Store, StoreConfig, StoreEvent, Write};

/// Longest time that any of these tasks may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn boottime() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed() + Duration::from_secs(1_000)
}

/// A node without a coordinator: the test takes its part.
struct Node {
    dir: PathBuf,
    context: Arc<Context>,
    store: Store,
    durable: Receiver<StoreEvent>,
    tickets: AtomicU64,
}

impl Node {
    fn new(name: &str) -> Self {
        Self::with(name, DiskWay::Auto)
    }

    fn with(name: &str, disk: DiskWay) -> Self {
        let dir = std::env::temp_dir().join(format!("hivemind-sandbox-{name}-{}", std::process::id()));
        Self::open(dir, disk)
    }

    fn open(dir: PathBuf, disk: DiskWay) -> Self {
        let (sender, durable) = unbounded();
        let notify = Box::new(move |event| sender.send(event).unwrap_or_default());
        let (store, _) = Store::open(&dir, StoreConfig::default(), notify).unwrap();
        let host = std::env::var("DOCKER_HOST").map_or_else(|_| DockerHost::default(), |text| text.parse().unwrap());
        let docker = Docker::new(host, NodeTimeouts::default());
        docker.ping().expect("these tests need a Docker engine: scripts/test.sh starts one");
        let identity = Identity::new("sandbox-test", dir.as_os_str().as_encoded_bytes());
        let egress = EgressSettings::new(NetworkPolicy::default(), Vec::new());
        let guard = EgressGuard::start((&docker, &docker), identity.clone(), egress, &[]).unwrap();
        let volumes_of = identity.clone();
        let context = Context {
            egress: guard.egress(),
            quick_docker: docker.clone(),
            docker,
            fetcher: Fetcher::new(Guard::default(), None).unwrap(),
            store: store.clone(),
            identity,
            clock: boottime,
            boot_id: "boot".to_owned(),
            bundles: Arc::new(Bundles::open(&dir, BundleLimits::default())),
            stock: Arc::new(Stock::open(&dir, StockSettings::default())),
            pull_limit: Duration::from_secs(600),
            images: sandbox::Images::new(sandbox::Registries::default(), Arc::new(sandbox::Book::open(store.clone()))),
            volumes: Arc::new(Volumes::new(disk, &dir, volumes_of).unwrap()),
        };
        Self { dir, context: Arc::new(context), store, durable, tickets: AtomicU64::new(1) }
    }

    fn commit(&self, writes: Vec<Write>) {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.store.commit(ticket, writes);
        loop {
            match self.durable.recv_timeout(PATIENCE).unwrap() {
                StoreEvent::Durable(done) if done == ticket => return,
                StoreEvent::Durable(_) | StoreEvent::Delivered(_) => {}
                event => panic!("{event:?}"),
            }
        }
    }

    fn start(&self, offer: &Offer) -> Running<'_> {
        let spec = TaskSpec::check(offer, &SpecDefaults::default()).unwrap();
        self.commit(vec![Write::Take { spec: Box::new(spec.clone()), inputs: offer.inputs.clone() }]);
        self.resume(spec, Marks::default(), Beginning::Fresh)
    }

    fn resume(&self, spec: TaskSpec, marks: Marks, beginning: Beginning) -> Running<'_> {
        let (sender, news) = unbounded();
        let teller = Arc::new(move |told| sender.send(told).unwrap_or_default());
        let handle = sandbox::start(Arc::clone(&self.context), spec.clone(), marks, beginning, teller).unwrap();
        Running {
            node: self,
            key: spec.key.clone(),
            spec,
            handle: Some(handle),
            news,
            marks: Marks::default(),
            seen: Vec::new(),
        }
    }

    /// What is at the engine with this node's label.
    fn left_overs(&self) -> usize {
        let filter = self.context.identity.filter();
        let docker = &self.context.docker;
        docker.list_containers(&[&filter]).unwrap().len() + docker.list_volumes(&[&filter]).unwrap().len()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let filter = self.context.identity.filter();
        for container in self.context.docker.list_containers(&[&filter]).unwrap_or_default() {
            let _ = self.context.docker.remove_container(&container.id);
        }
        for volume in self.context.docker.list_volumes(&[&filter]).unwrap_or_default() {
            let _ = self.context.docker.remove_volume(&volume.name);
        }
        self.context.volumes.reap(&|_| false, Collecting::Removes);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Running<'a> {
    node: &'a Node,
    key: AttemptKey,
    spec: TaskSpec,
    handle: Option<TaskHandle>,
    news: Receiver<TaskNews>,
    marks: Marks,
    seen: Vec<TaskNews>,
}

impl Running<'_> {
    fn set(&self, desired: Desired) {
        self.handle.as_ref().unwrap().set_desired(desired);
    }

    fn next(&mut self) -> TaskNews {
        let news = self.news.recv_timeout(PATIENCE).unwrap();
        if let TaskNews::Marks(marks) = &news {
            self.marks = marks.clone();
        }
        self.seen.push(news.clone());
        news
    }

    fn wait_for(&mut self, wanted: impl Fn(&TaskNews) -> bool) {
        while !wanted(&self.next()) {}
    }

    /// With its end: unbuffered Python writes that by a call of its own.
    fn wait_for_line(&mut self, text: &str) {
        let line = format!("{text}\n");
        self.wait_for(|news| matches!(news, TaskNews::Usage(look) if look.tail.contains(&line)));
    }

    /// The coordinator's part until the thread has ended: record, then let it clean.
    fn finish(&mut self) -> FinalReport {
        let report = loop {
            if let TaskNews::Finished(report) = self.next() {
                break *report;
            }
        };
        let kind = EventKind::Final(Box::new(report.clone()));
        self.node.commit(vec![Write::Event { key: self.key.clone(), time_ms: 0, kind }]);
        self.set(Desired { may_clean: true, ..Desired::default() });
        self.wait_for(|news| matches!(news, TaskNews::Cleaned(None)));
        self.handle.take().unwrap().join();
        report
    }
}

/// What a master would have: each stream's bytes, in order.
fn deliver(node: &Node) -> BTreeMap<(u32, u64), Vec<u8>> {
    let outbox = node.store.outbox();
    let mut streams: BTreeMap<(u32, u64), Vec<u8>> = BTreeMap::new();
    while let Some(piece) = outbox.next_piece(256 << 10) {
        let ack = match piece.content {
            PieceContent::Event(event) => Ack::Event(event.number),
            PieceContent::Chunk { stream, epoch, offset, bytes, .. } => {
                let have = streams.entry((stream, epoch)).or_default();
                assert_eq!(offset, have.len() as u64);
                have.extend_from_slice(&bytes);
                Ack::Stream { stream, epoch, offset: have.len() as u64 }
            }
        };
        outbox.acked(&piece.key, ack);
    }
    streams
}

fn python(task: &str, program: &str) -> Offer {
    Offer { task: task.to_owned(), attempt: 1, inputs: tar(&[("main.py", program.as_bytes())]), ..Offer::default() }
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn stop(outcome: Outcome) -> Desired {
    let order = StopOrder { outcome, reason: "told to".to_owned(), max_grace: None, by: EndedBy::Master };
    Desired { stop: Some(order), ..Desired::default() }
}

#[test]
fn a_task_reads_its_input_and_its_files_come_back() {
    let node = Node::new("files");
    let program = "import os\n\
        os.makedirs(os.path.join(os.environ['HIVEMIND_OUTPUT'], 'deep'))\n\
        open('output/deep/result.txt', 'w').write(open('data/in.txt').read().upper())\n\
        open('/workspace/not-collected.txt', 'w').write('x')\n\
        print('id', os.environ['TASK_ID'], os.getuid(), os.getcwd())\n";
    let files: [(&str, &[u8]); 2] = [("main.py", program.as_bytes()), ("data/in.txt", b"hello")];
    let offer = Offer { inputs: tar(&files), ..python("files", "") };
    let report = node.start(&offer).finish();
    assert_eq!((report.outcome, report.exit_code), (Outcome::Succeeded, Some(0)), "{report:?}");
    assert_eq!(report.outputs.len(), 1, "{report:?}");
    let file = &report.outputs[0];
    assert_eq!((file.path.as_str(), file.size), ("output/deep/result.txt", 5));
    // printf HELLO | sha256sum
    assert_eq!(file.sha256, "3733cd977ff8eb18b987357e22ced99f46097f31ecb239e878ae63760e83e4d5");
    assert_eq!(String::from_utf8_lossy(&report.tail), "id files 1000 /workspace\n");
    assert!(report.image_digest.starts_with("sha256:"));
    assert_eq!(node.left_overs(), 0);
    let streams = deliver(&node);
    assert_eq!(streams[&(file.stream, 1)], b"HELLO");
    assert_eq!(streams[&(1, 1)], b"id files 1000 /workspace\n");
}

#[test]
fn every_numbered_line_arrives_in_order_under_log_rotation() {
    let node = Node::new("lines");
    let program = "import sys\nsys.stdout.writelines(f'{i}\\n' for i in range(300000))\n";
    let report = node.start(&python("lines", program)).finish();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    let streams = deliver(&node);
    let expected: String = (0..300_000).map(|i| format!("{i}\n")).collect();
    assert!(streams[&(1, 1)] == expected.as_bytes(), "{} of {} bytes", streams[&(1, 1)].len(), expected.len());
}

#[test]
fn plain_failures_are_told_apart() {
    let node = Node::new("failures");
    let child = "import subprocess, sys\n\
        subprocess.run([sys.executable, '-c', 'x = bytearray(300 << 20)'])\n";
    let cases = [
        (python("exit3", "import sys; sys.exit(3)"), Outcome::Failed, Some(3), "exit code 3"),
        (python("segv", "import os; os.kill(os.getpid(), 11)"), Outcome::Failed, Some(139), "ended by signal 11"),
        (
            Offer { memory_bytes: 64 << 20, ..python("oom", child) },
            Outcome::OutOfMemory,
            Some(0),
            "the kernel killed a process of it for memory; exit code 0",
        ),
        (Offer { inputs: Vec::new(), ..python("empty", "") }, Outcome::Failed, Some(127), "exit code 127"),
        (
            Offer { command: vec!["no-such-program".to_owned()], ..python("noprogram", "") },
            Outcome::Failed,
            Some(127),
            "exit code 127",
        ),
        (
            Offer { image: "hivemind.invalid/none:1".to_owned(), pull: "never".to_owned(), ..python("noimage", "") },
            Outcome::Rejected,
            None,
            "No such image: hivemind.invalid/none:1",
        ),
        (
            Offer { image: "127.0.0.1:1/none:1".to_owned(), ..python("noregistry", "") },
            Outcome::NodeFault,
            None,
            "connection refused",
        ),
        (Offer { cpu_millis: 1_000_000, ..python("cpus", "") }, Outcome::Rejected, None, "CPUs"),
        (Offer { inputs: vec![b'x'; 1_024], ..python("noarchive", "") }, Outcome::Rejected, None, "not a tar archive"),
    ];
    for (offer, outcome, exit_code, reason) in cases {
        let report = node.start(&offer).finish();
        assert_eq!((report.outcome, report.exit_code), (outcome, exit_code), "{}: {report:?}", offer.task);
        assert!(report.reason.contains(reason), "{}: {:?}", offer.task, report.reason);
        if outcome == Outcome::OutOfMemory {
            assert_eq!(report.usage.peak_memory_bytes, 64 << 20);
        }
    }
    assert_eq!(node.left_overs(), 0);
}

#[test]
fn a_task_that_ignores_sigterm_is_killed_after_its_grace() {
    let node = Node::new("stubborn");
    let program = "import signal, time\n\
        signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf')\ntime.sleep(600)\n";
    let offer = Offer { timeout_ms: 1_500, grace_ms: Some(500), ..python("stubborn", program) };
    let started = Instant::now();
    let report = node.start(&offer).finish();
    assert_eq!((report.outcome, report.exit_code), (Outcome::TimedOut, Some(137)), "{report:?}");
    assert!(started.elapsed() < Duration::from_secs(60));
    assert_eq!(report.reason, "ran longer than 1.5 s");
}

#[test]
fn cancelling_lets_a_task_save_its_work() {
    let node = Node::new("cancel");
    let program = "import signal, sys, time\n\
        def save(*_):\n    open('output/saved.txt', 'w').write('saved')\n    sys.exit(0)\n\
        signal.signal(signal.SIGTERM, save)\nprint('ready')\ntime.sleep(600)\n";
    let mut task = node.start(&python("cancel", program));
    task.wait_for_line("ready");
    task.set(stop(Outcome::Cancelled));
    let report = task.finish();
    assert_eq!((report.outcome, report.reason.as_str()), (Outcome::Cancelled, "told to"));
    assert_eq!(report.outputs[0].path, "output/saved.txt");
}

#[test]
fn a_stop_order_during_preparation_ends_it_without_a_run() {
    let node = Node::new("early");
    let task = node.start(&Offer { image: "127.0.0.1:1/none:1".to_owned(), ..python("early", "") });
    task.set(stop(Outcome::Superseded));
    let mut task = task;
    assert_eq!(task.finish().outcome, Outcome::Superseded);
    assert!(!task.seen.iter().any(|news| matches!(news, TaskNews::Phase(Phase::Running, _))));
    assert_eq!(node.left_overs(), 0);
}

#[test]
fn a_container_that_was_left_is_adopted_and_loses_no_output() {
    let node = Node::new("adopt");
    let program = "import os, sys, time\nprint('before')\ntime.sleep(2)\nprint('between')\n\
        print('trouble', file=sys.stderr)\ntime.sleep(4)\nprint('after')\nopen('output/done', 'w').write('x')\n";
    let mut task = node.start(&python("adopt", program));
    task.wait_for_line("before");
    task.set(Desired { must_leave: true, ..Desired::default() });
    task.wait_for(|news| *news == TaskNews::Left);
    let (spec, marks) = (task.spec.clone(), task.marks.clone());
    task.handle.take().unwrap().join();
    drop(task);
    assert_eq!(node.left_overs(), 2, "container and volume stay");
    node.store.clone().close();
    wait_for_log(&node.context.docker, marks.container_id.as_deref().unwrap(), "trouble");
    let next = Node::open(node.dir.clone(), DiskWay::Auto);
    let report = next.resume(spec, marks, Beginning::Adoption).finish();
    assert_eq!((report.outcome, report.exit_code), (Outcome::Succeeded, Some(0)), "{report:?}");
    assert_eq!(report.outputs.len(), 1);
    assert!(report.duration_ms >= 6_000, "{report:?}");
    let streams = deliver(&next);
    assert_eq!(String::from_utf8_lossy(&streams[&(1, 1)]), "before\n");
    assert_eq!(String::from_utf8_lossy(&streams[&(1, 2)]), "between\nafter\n");
    assert_eq!(String::from_utf8_lossy(&streams[&(2, 2)]), "trouble\n");
    assert_eq!(next.left_overs(), 0);
}

#[test]
fn a_container_that_ended_while_nobody_watched_gives_all_of_its_output() {
    let node = Node::new("ended");
    let mut task = node.start(&python("ended", "import time\nprint('before')\ntime.sleep(2)\nprint('last')\n"));
    task.wait_for_line("before");
    task.set(Desired { must_leave: true, ..Desired::default() });
    task.wait_for(|news| *news == TaskNews::Left);
    let (spec, marks) = (task.spec.clone(), task.marks.clone());
    drop(task);
    node.store.clone().close();
    let container = marks.container_id.clone().unwrap();
    let wait = hivemind_worker::docker::WaitCondition::NotRunning;
    node.context.docker.wait_container(&container, wait, Some(PATIENCE)).unwrap();
    let next = Node::open(node.dir.clone(), DiskWay::Auto);
    let report = next.resume(spec, marks, Beginning::Adoption).finish();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(String::from_utf8_lossy(&deliver(&next)[&(1, 2)]), "last\n");
    assert_eq!(report.tail, b"last\n");
}

/// Lets go of a running task, and takes it over as the next start of the worker would.
fn restart<T>(node: &Node, mut task: Running<'_>, then: impl FnOnce(Running<'_>) -> T) -> T {
    task.set(Desired { must_leave: true, ..Desired::default() });
    task.wait_for(|news| *news == TaskNews::Left);
    let (spec, marks) = (task.spec.clone(), task.marks.clone());
    drop(task);
    node.store.clone().close();
    let next = Node::open(node.dir.clone(), DiskWay::Auto);
    then(next.resume(spec, marks, Beginning::Adoption))
}

#[test]
fn a_timeout_that_had_struck_is_remembered_over_a_restart() {
    let node = Node::new("struck");
    let program =
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf')\ntime.sleep(600)\n";
    let offer = Offer { timeout_ms: 1_000, grace_ms: Some(60_000), ..python("struck", program) };
    let mut task = node.start(&offer);
    task.wait_for(|news| matches!(news, TaskNews::Phase(Phase::Stopping, _)));
    let report = restart(&node, task, |mut adopted| adopted.finish());
    assert_eq!((report.outcome, report.exit_code), (Outcome::TimedOut, Some(137)), "{report:?}");
}

#[test]
fn a_frozen_container_that_is_taken_over_goes_on() {
    let node = Node::new("frozen");
    let mut task = node.start(&python("frozen", "import time\nprint('up')\ntime.sleep(4)\n"));
    task.wait_for_line("up");
    task.set(Desired { is_paused: true, ..Desired::default() });
    task.wait_for(|news| matches!(news, TaskNews::Phase(Phase::Paused, _)));
    let report = restart(&node, task, |mut adopted| adopted.finish());
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
}

/// Until the engine's log of the container has the text.
fn wait_for_log(docker: &Docker, container: &str, text: &str) {
    let options = LogOptions { stdout: true, stderr: true, ..LogOptions::default() };
    let end = Instant::now() + PATIENCE;
    loop {
        let mut log = Vec::new();
        let mut stream = docker.logs(container, &options, PATIENCE).unwrap();
        while let Some((_, bytes)) = stream.next_piece().unwrap() {
            log.extend_from_slice(bytes);
        }
        if String::from_utf8_lossy(&log).contains(text) {
            return;
        }
        assert!(Instant::now() < end, "{text:?} never came");
        std::thread::yield_now();
    }
}

#[test]
fn a_container_removed_by_hand_is_said_to_be() {
    let node = Node::new("removed");
    let mut task = node.start(&python("removed", "import time\nprint('up')\ntime.sleep(600)\n"));
    task.wait_for_line("up");
    node.context.docker.remove_container(task.marks.container_id.as_deref().unwrap()).unwrap();
    let report = task.finish();
    assert_eq!(report.reason, "the container was removed from outside the worker");
}

#[test]
fn a_paused_task_does_not_run_out_of_time() {
    let node = Node::new("pause");
    let offer = Offer { timeout_ms: 8_000, ..python("pause", "import time\nprint('up')\ntime.sleep(1.5)\n") };
    let mut task = node.start(&offer);
    task.wait_for_line("up");
    task.set(Desired { is_paused: true, ..Desired::default() });
    task.wait_for(|news| matches!(news, TaskNews::Phase(Phase::Paused, _)));
    // Longer than the timeout: the wait is the behaviour under test.
    assert!(task.news.recv_timeout(Duration::from_secs(9)).map_or(true, |news| matches!(news, TaskNews::Usage(_))));
    task.set(Desired::default());
    assert_eq!(task.finish().outcome, Outcome::Succeeded);
}

#[test]
fn a_task_that_closes_its_output_goes_on_and_is_noted_once() {
    let node = Node::new("closed");
    let program = "import os, time\nprint('bye', flush=True)\nos.close(1)\nos.close(2)\ntime.sleep(2)\n\
        open('output/late', 'w').write('x')\nos._exit(0)\n";
    let mut task = node.start(&python("closed", program));
    let report = task.finish();
    assert_eq!((report.outcome, report.outputs.len()), (Outcome::Succeeded, 1), "{report:?}");
    assert_eq!(report.tail, b"bye\n");
    let notes = task.seen.iter().filter(|news| matches!(news, TaskNews::Note(_)));
    assert!(notes.count() <= 1, "{:?}", task.seen);
}

#[test]
fn a_task_that_fills_its_disk_is_stopped_within_the_overshoot() {
    let node = Node::with("disk", DiskWay::Watch);
    let program = "import time\n\
        for i in range(400):\n    open(f'output/{i}', 'wb').write(bytes(1 << 20))\n    time.sleep(0.02)\n";
    let offer = Offer { disk_bytes: 32 << 20, ..python("disk", program) };
    let report = node.start(&offer).finish();
    assert_eq!(report.outcome, Outcome::DiskLimit, "{report:?}");
    assert!(report.reason.contains("its disk limit is 33554432"), "{report:?}");
    let whole = report.outputs.iter().filter(|file| file.size == 1 << 20).count();
    assert_eq!(whole, 32, "what fits is kept: {report:?}");
    assert!(report.cut.iter().any(|line| line.contains("output limit")), "{:?}", report.cut);
}

#[test]
fn the_sandbox_holds_from_inside() {
    let node = Node::new("inside");
    let program = "import os\n\
        def tried(f):\n    try:\n        f(); return 'done'\n    except OSError as e:\n        return e.strerror\n\
        status = dict(l.split(':\\t') for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)\n\
        print('caps', int(status['CapEff'], 16), int(status['CapBnd'], 16), status['NoNewPrivs'], status['Seccomp'])\n\
        print('root', tried(lambda: open('/x', 'w')))\n\
        print('tmp', tried(lambda: open('/tmp/x', 'w')))\n\
        print('net', sorted(os.listdir('/sys/class/net')))\n\
        print('user', os.getuid(), os.getgid(), os.getgroups())\n\
        print('oom', open('/proc/self/oom_score_adj').read().strip())\n\
        print('pids', open('/proc/1/comm').read().strip())\n";
    let report = node.start(&python("inside", program)).finish();
    let expected = "caps 0 0 1 2\nroot Read-only file system\ntmp done\nnet ['lo']\nuser 1000 1000 [1000]\noom 500\n";
    let text = String::from_utf8_lossy(&report.tail).into_owned();
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn another_image_gets_a_work_folder_of_its_own() {
    let node = Node::new("other");
    let docker = &node.context.docker;
    // The base image's files under another name: nothing in it says that it is ours.
    let other = "hivemind-test-other:1";
    std::process::Command::new("docker")
        .args(["tag", "justin308/hivemind-worker:latest", other])
        .status()
        .expect("these tests need the docker command");
    let offer = Offer {
        image: other.to_owned(),
        pull: "never".to_owned(),
        command: vec!["python3".to_owned(), "-c".to_owned(), "open('output/x','w').write('1'); print(1)".to_owned()],
        ..python("other", "")
    };
    let report = node.start(&offer).finish();
    assert_eq!((report.outcome, report.outputs.len()), (Outcome::Succeeded, 1), "{report:?}");
    docker.remove_image(other).unwrap();
}
