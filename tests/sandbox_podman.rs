//! Podman's Docker-compatible API: what holds, and what is missing for which the worker refuses it as its engine.
//!
//! The socket is named by `HIVEMIND_TEST_PODMAN`, as in unix:///run/podman.sock; `scripts/test.sh --full podman` starts one
//! in a virtual machine. The ordinary run has no Podman and leaves the file out (Cargo.toml).
#![allow(clippy::unwrap_used)]

mod node_util;

use std::collections::BTreeMap;
use std::time::Duration;

use hivemind_worker::docker::{
    Change, CreateBody, Docker, DockerHost, EventAction, EventFilter, HostConfig, LogOptions, NodeTimeouts,
    RestartPolicy, UpdateBody, WaitCondition,
};
use hivemind_worker::sandbox::can_hold;
use node_util::Scene;

const BASE_IMAGE: &str = "justin308/hivemind-worker:latest";

fn host() -> DockerHost {
    let text = std::env::var("HIVEMIND_TEST_PODMAN").expect("HIVEMIND_TEST_PODMAN names no socket");
    DockerHost::parse(&text).unwrap()
}

fn podman() -> Docker {
    let docker = Docker::new(host(), NodeTimeouts::default());
    docker.ping().unwrap();
    docker
}

struct Container(Docker, String);

impl Container {
    fn create(name: &str, program: &str) -> Self {
        let docker = podman();
        let body = CreateBody {
            image: BASE_IMAGE.to_owned(),
            cmd: Some(["python3", "-c", program].map(str::to_owned).to_vec()),
            user: "1000:1000".to_owned(),
            labels: BTreeMap::from([("hivemind.podman".to_owned(), name.to_owned())]),
            network_disabled: true,
            attach_stdout: true,
            attach_stderr: true,
            host_config: HostConfig {
                network_mode: "none".to_owned(),
                memory: 64 << 20,
                memory_swap: 64 << 20,
                nano_cpus: 500_000_000,
                pids_limit: Some(64),
                cap_drop: vec!["ALL".to_owned()],
                security_opt: vec!["no-new-privileges".to_owned()],
                readonly_rootfs: true,
                cgroupns_mode: "private".to_owned(),
                ipc_mode: "private".to_owned(),
                restart_policy: RestartPolicy::default(),
                ..HostConfig::default()
            },
            ..CreateBody::default()
        };
        let id = docker.create_container(&format!("hivemind-podman-{name}"), &body).unwrap().id;
        Self(docker, id)
    }

    fn run(&self) -> (i64, String) {
        let Self(docker, id) = self;
        docker.start_container(id).unwrap();
        let limit = Some(Duration::from_secs(90));
        let code = docker.wait_container(id, WaitCondition::NotRunning, limit).unwrap().code;
        let options = LogOptions { stdout: true, stderr: true, ..LogOptions::default() };
        let mut log = Vec::new();
        let mut stream = docker.logs(id, &options, Duration::from_secs(60)).unwrap();
        while let Some((_, bytes)) = stream.next_piece().unwrap() {
            log.extend_from_slice(bytes);
        }
        (code, String::from_utf8_lossy(&log).into_owned())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.remove_container(&self.1);
    }
}

#[test]
fn a_worker_refuses_it_and_says_why() {
    let facts = podman().facts().unwrap();
    assert!(facts.podman, "{facts:?}");
    let reason = can_hold(&facts).unwrap_err();
    println!("{reason}");
    let mut scene = Scene::with_engine("podman", host());
    scene.start_master();
    scene.env.push(("DOCKER_HOST".to_owned(), host().to_string()));
    scene.start(&[]);
    let status = scene.until_status("the engine was looked at", |status| status.engine.detail.contains("Podman"));
    assert!(!status.engine.is_usable, "{:?}", status.engine);
    assert_eq!(status.engine.detail, reason);
}

#[test]
fn the_isolation_rows_that_hold() {
    let program = "import os\n\
        def tried(f):\n    try:\n        f(); return 'done'\n    except OSError as e:\n        return e.strerror\n\
        status = dict(l.split(':\\t') for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)\n\
        print('caps', int(status['CapEff'], 16), int(status['CapBnd'], 16), status['NoNewPrivs'], status['Seccomp'])\n\
        print('root', tried(lambda: open('/x', 'w')))\n\
        print('net', sorted(os.listdir('/sys/class/net')))\n\
        print('user', os.getuid(), os.getgid())\n\
        print('shadow', tried(lambda: open('/etc/shadow')))\n";
    let container = Container::create("rows", program);
    let (code, log) = container.run();
    let expected = "caps 0 0 1 2\nroot Read-only file system\nnet ['lo']\nuser 1000 1000\n";
    assert!(code == 0 && log.starts_with(expected), "{code} {log}");
    let got = container.0.inspect_container(&container.1).unwrap().host_config;
    assert_eq!((got.memory, got.memory_swap, got.nano_cpus, got.pids_limit), (64 << 20, 64 << 20, 500_000_000, 64));
    assert_eq!((got.cap_drop, got.readonly_rootfs, got.privileged), (vec!["ALL".to_owned()], true, false));
    assert_eq!((got.security_opt, got.network_mode.as_str()), (vec!["no-new-privileges".to_owned()], "none"));
}

#[test]
fn what_the_refusal_names_is_still_missing() {
    let program = "print([l.split()[1] for l in open('/proc/self/mounts') if ' tmpfs rw' in l and 'size=' not in l])\n\
        import time; time.sleep(600)\n";
    let container = Container::create("lacks", program);
    let Container(docker, id) = &container;
    let mut output = docker.attach(id).unwrap();
    docker.start_container(id).unwrap();
    let (_, bytes) = output.next_piece().unwrap().unwrap();
    let mounts = String::from_utf8_lossy(bytes).into_owned();
    let got = docker.inspect_container(id).unwrap();
    assert_eq!(got.host_config.cgroupns_mode, "", "it tells the namespace: {got:?}");
    assert!(mounts.contains("'/run'") && mounts.contains("'/var/tmp'"), "{mounts}");
    let update = UpdateBody { nano_cpus: Some(250_000_000), ..UpdateBody::default() };
    assert!(docker.update_container(id, &update).is_err());
}

#[test]
fn names_events_and_states_are_told_as_by_docker() {
    let container = Container::create("life", "print(1)");
    let Container(docker, id) = &container;
    let body = CreateBody { image: BASE_IMAGE.to_owned(), ..CreateBody::default() };
    assert!(docker.create_container("hivemind-podman-life", &body).unwrap_err().is_conflict());
    let labels = vec!["hivemind.podman=life".to_owned()];
    let mut events = docker.events(&EventFilter { labels, since_ns: None }).unwrap();
    assert_eq!(container.run(), (0, "1\n".to_owned()));
    assert!(docker.kill_container(id, "SIGKILL").unwrap_err().is_conflict());
    assert_eq!(docker.remove_container(id).unwrap(), Change::Done);
    assert_eq!(docker.remove_container(id).unwrap(), Change::Already);
    for action in [EventAction::Start, EventAction::Die(Some(0)), EventAction::Destroy] {
        let event = events.next().unwrap().unwrap();
        assert_eq!((event.action, &event.id), (action, id));
    }
}
