//! An engine whose runtime does not do what the engine says, one that maps users, and one without root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hivemind_worker::docker::DockerHost;
use hivemind_worker::node::offer::Offer;
use hivemind_worker::node::record::Outcome;
use hivemind_worker::node::snapshot::NodeState;

use crate::node_util::own_engine::{Containers, IMAGE as BUSYBOX, OwnEngine};
use crate::node_util::{Scene, how, python, until};

fn scene_on(engine: &OwnEngine, name: &str) -> Scene {
    let mut scene = Scene::with_engine(name, DockerHost::parse(&engine.host()).unwrap());
    scene.start_master();
    scene.env.push(("DOCKER_HOST".to_owned(), engine.host()));
    scene.env.push(("LOG_LEVEL".to_owned(), "debug".to_owned()));
    scene.start(&[]);
    scene.until_ready();
    scene
}

fn task(name: &str, script: &str) -> Offer {
    let command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
    Offer { image: BUSYBOX.to_owned(), command, ..python(name, "") }
}

/// runc behind a script that changes what it is told, by a filter of jq's in a file.
fn liar(dir: &Path) -> (Vec<String>, Vec<String>) {
    let script = dir.join("lie.sh");
    let filter = dir.join("filter").display().to_string();
    fs::write(&filter, ".").unwrap();
    let text = format!(
        "#!/bin/sh\nbefore=\nfor word; do [ \"$before\" != --bundle ] || bundle=$word; before=$word; done\n\
         [ -z \"$bundle\" ] || {{ jq -f {filter} $bundle/config.json >$bundle/new && mv $bundle/new $bundle/config.json; }}\n\
         exec runc \"$@\"\n"
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let more = vec![format!("--add-runtime=liar={}", script.display()), "--default-runtime=liar".to_owned()];
    (Vec::new(), more)
}

#[test]
fn a_limit_that_the_machine_does_not_keep_ends_the_attempt_with_its_name() {
    let engine = OwnEngine::start_with("liar", Containers::EndWithIt, liar);
    let scene = scene_on(&engine, "escape-liar");
    let lies = [
        ("memory", "del(.linux.resources.memory)", "memory limit"),
        ("pids", "del(.linux.resources.pids)", "pids limit"),
        ("cpu", "del(.linux.resources.cpu)", "CPU limit"),
        ("nnp", ".process.noNewPrivileges = false", "NoNewPrivs"),
        ("seccomp", "del(.linux.seccomp)", "Seccomp"),
        ("caps", ".process.capabilities.bounding = [\"CAP_CHOWN\"]", "CapBnd"),
        ("user", ".process.user.uid = 0", "Uid"),
        ("groups", ".process.user.additionalGids = [0]", "Groups"),
        ("limits", "del(.process.rlimits)", "nofile"),
        ("score", ".process.oomScoreAdj = 0", "oom_score_adj"),
        ("root", ".root.readonly = false", "/ mounted without ro"),
        (
            "tmp",
            "(.mounts[] | select(.destination == \"/tmp\")).options |= map(select(. != \"nodev\"))",
            "/tmp mounted",
        ),
        (
            "bind",
            ".mounts += [{destination: \"/proof\", type: \"bind\", source: \"/usr/share\", options: [\"bind\", \"ro\"]}]",
            "nobody asked for",
        ),
        ("net", "del(.linux.sysctl) | .linux.namespaces |= map(select(.type != \"network\"))", "name space: net"),
        ("ipc", ".linux.namespaces |= map(select(.type != \"ipc\"))", "name space: ipc"),
    ];
    for (name, filter, word) in lies {
        fs::write(engine.dir.join("filter"), filter).unwrap();
        scene.submit(task(name, "/bin/busybox sleep 30; echo ran on"));
        let report = scene.until_complete(name);
        println!("{name}: {} {}", report.outcome, report.reason);
        assert_eq!(report.outcome, Outcome::NodeFault, "{name}: {report:?}");
        assert!(report.reason.contains(word), "{name}: {report:?}");
        assert_eq!(scene.stdout(name), "", "{name}");
    }
    fs::write(engine.dir.join("filter"), ".").unwrap();
    scene.submit(task("honest", "echo well"));
    let report = scene.until_complete("honest");
    assert_eq!(
        (how(&report), scene.stdout("honest").as_str()),
        ((Outcome::Succeeded, Some(0)), "well\n"),
        "{report:?}"
    );
    scene.until_clean();
}

/// dockerd with `--userns-remap`, for which the ids of an existing user come from files of the test's own: the machine's are
/// covered in a mount name space.
fn mapper(dir: &Path) -> (Vec<String>, Vec<String>) {
    let ids = dir.join("ids").display().to_string();
    fs::write(&ids, "nobody:100000:65536\nnogroup:100000:65536\n").unwrap();
    let cover = format!("mount --bind {ids} /etc/subuid && mount --bind {ids} /etc/subgid && exec \"$@\"");
    let before = ["--mount", "sh", "-c", &cover, "sh"].map(str::to_owned).to_vec();
    (before, vec!["--userns-remap=nobody:nogroup".to_owned()])
}

#[test]
fn a_task_runs_on_an_engine_that_maps_users() {
    let engine = OwnEngine::start_with("mapper", Containers::EndWithIt, mapper);
    let scene = scene_on(&engine, "escape-mapper");
    let script = "/bin/busybox id -u; /bin/busybox cat probe.py >output/copy && echo up; /bin/busybox sleep 600";
    let offer = Offer { inputs: crate::yard::archive(), grace_ms: Some(100), ..task("mapped", script) };
    scene.submit(offer);
    scene.until_view("mapped", "it is up", |view| view.stdout_bytes >= 8 || view.is_complete);
    let container = scene.container("mapped").expect("it runs");
    let process = scene.docker.inspect_container(&container).unwrap().state.pid;
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    assert!(status.contains("Uid:\t101000\t101000\t101000\t101000"), "{status}");
    until("the sandbox was read back from inside", || scene.log().contains("looked into").then_some(()));
    assert!(!scene.log().contains("known by the engine's word alone"), "{}", scene.log());
    // Ends the sleep, and so the script.
    scene.docker.kill_container(&container, "SIGTERM").unwrap();
    let report = scene.until_complete("mapped");
    assert_eq!(scene.stdout("mapped"), "1000\nup\n");
    let names: Vec<&str> = report.outputs.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names, ["output/copy"], "{report:?}");
    scene.until_clean();
}

/// dockerd without root, as Debian ships it: in a user name space of nobody's, with ids from a file of the test's own.
fn rootless(dir: &Path) -> (Vec<String>, Vec<String>) {
    let at = |name: &str| dir.join(name).display().to_string();
    fs::write(at("ids"), "nobody:100000:65536\n").unwrap();
    let (ids, folder) = (at("ids"), dir.display());
    // The first word is dockerd, which the script starts itself. There is no network to lead out of.
    let start = format!(
        "mount --bind {ids} /etc/subuid && mount --bind {ids} /etc/subgid && chown nobody {folder} && shift && \
         exec setpriv --reuid=nobody --regid=nogroup --clear-groups env HOME={folder} XDG_RUNTIME_DIR={folder} \
         DOCKERD_ROOTLESS_ROOTLESSKIT_NET=host DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER=none \
         /usr/share/docker.io/contrib/dockerd-rootless.sh \"$@\""
    );
    (["--mount", "sh", "-c", &start, "sh"].map(str::to_owned).to_vec(), Vec::new())
}

#[test]
fn an_engine_without_root_that_can_limit_nothing_is_refused_in_words() {
    if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap() {
        // With version 2 and systemd it can: that is another test's.
        return println!("this machine has cgroup v2");
    }
    let engine = OwnEngine::start_with("rootless", Containers::EndWithIt, rootless);
    let mut scene = Scene::with_engine("escape-rootless", DockerHost::parse(&engine.host()).unwrap());
    scene.start_master();
    scene.env.push(("DOCKER_HOST".to_owned(), engine.host()));
    scene.start(&[]);
    let reason = "can't limit anything: without root it needs cgroup v2";
    scene.until_status("it says what is missing", |status| {
        status.state == NodeState::Degraded && status.state_reason.contains(reason)
    });
    let doctor = scene.run(&["doctor"]);
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(text.contains(reason) && !doctor.status.success(), "{text}");
}
