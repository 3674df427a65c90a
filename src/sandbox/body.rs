//! The create body of a task's container: the sandbox of design section 5. Built from a fixed structure; what a task
//! chooses is its image, its argument vector, its environment and its amounts.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ring::digest::{SHA256, digest};

use super::image::TaskImage;
use super::naming::{Identity, LABEL_SPEC};
use super::network::prepare_name;
use super::probe::PROGRAM;
use crate::docker::{
    CreateBody, Healthcheck, HostConfig, HostConfigReadBack, LogConfig, Mount, MountType, RestartPolicy, Ulimit,
    VolumeOptions,
};
use crate::node::account::AppliedLimits;
use crate::node::record::FinalReport;
use crate::node::spec::{Network, TaskSpec, base_image_name};
use crate::sys::text::hex;

/// The user of every task. Numeric, so that no image's `/etc/passwd` decides who it is.
pub const TASK_USER: u32 = 1000;
/// Where a task works.
pub const WORK_FOLDER: &str = "/workspace";
/// Where it puts what it wants to keep.
pub const OUTPUT_FOLDER: &str = "/workspace/output";
/// Where it finds the files of earlier tasks, each below its task's id.
pub const DEPENDENCIES_FOLDER: &str = "/hivemind/dependencies";
/// Where its installed packages are.
pub const PACKAGES_FOLDER: &str = "/hivemind/packages";
/// What installs them.
const INSTALLER: &str = include_str!("install.py");
/// The starter of tasks without a command, in the work folder.
pub const STARTER: &str = "run_task.sh";

/// Processes and threads: enough for a parallel Python program, far below what a fork bomb needs.
const PIDS_LIMIT: i64 = 256;
/// Open files of one process.
const MAX_OPEN_FILES: i64 = 4_096;
/// `/tmp` is memory and counts against the task's limit; more than this is disk's business.
const MAX_TMP_BYTES: u64 = 256 << 20;
/// `/dev/shm` is memory too; this is the usual size.
const MAX_SHM_BYTES: u64 = 64 << 20;
/// The engine's own copy of the output, two files of this size, only there to bridge a restart of the worker.
const ENGINE_LOG_SIZE: &str = "1m";
/// Above the engine's own processes, so that the kernel kills a task first.
const OOM_SCORE_ADJ: i32 = 500;
/// cgroup weight of a task with priority 50; the host's own groups have 1,024.
const SHARES_PER_PRIORITY: i64 = 10;

/// The probe is a short Python program.
const PROBE_MEMORY: i64 = 64 << 20;
/// See [`PROBE_MEMORY`].
const PROBE_PIDS: i64 = 16;

/// Where a container's volume gets its owner from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeOwner {
    /// The image's own work folder, copied up at the first mount: our base image.
    CopyUp,
    /// A helper container sets it: any other image.
    Helper,
}

/// How the volume of this task's image gets its owner.
pub fn volume_owner(spec: &TaskSpec) -> VolumeOwner {
    if spec.image.name() == base_image_name() { VolumeOwner::CopyUp } else { VolumeOwner::Helper }
}

/// The body, with its own digest among the labels.
pub fn task_body(spec: &TaskSpec, identity: &Identity, image: &TaskImage, dns: &[Ipv4Addr]) -> CreateBody {
    let (entrypoint, cmd) = match spec.command.split_first() {
        Some((program, words)) => (vec![program.clone()], words.to_vec()),
        None => (vec!["/bin/sh".to_owned()], vec![format!("{WORK_FOLDER}/{STARTER}")]),
    };
    let name = identity.name(&spec.key);
    let mut body = CreateBody {
        image: image.id.clone(),
        entrypoint: Some(entrypoint),
        cmd: Some(cmd),
        env: environment(spec),
        user: format!("{TASK_USER}:{TASK_USER}"),
        working_dir: WORK_FOLDER.to_owned(),
        labels: identity.labels(&spec.key, "task"),
        hostname: "task".to_owned(),
        network_disabled: spec.network == Network::None,
        attach_stdout: true,
        attach_stderr: true,
        tty: false,
        healthcheck: Some(Healthcheck::none()),
        stop_signal: Some("SIGTERM".to_owned()),
        host_config: host_config(spec, &name, &image.scratch),
    };
    if spec.network == Network::Egress {
        connect(&mut body.host_config, &name, dns);
    }
    seal(&mut body);
    body
}

/// The same for a work folder that has its owner already: nothing is copied into it, so the engine need not mount it for
/// that.
pub fn without_copy(mut body: CreateBody) -> CreateBody {
    for mount in &mut body.host_config.mounts {
        mount.volume_options = Some(VolumeOptions { no_copy: true });
    }
    seal(&mut body);
    body
}

/// Adds the digest of all the rest.
fn seal(body: &mut CreateBody) {
    body.labels.remove(LABEL_SPEC);
    let bytes = serde_json::to_vec(&body).unwrap_or_default();
    body.labels.insert(LABEL_SPEC.to_owned(), hex(digest(&SHA256, &bytes).as_ref()));
}

/// Gives a task its installed packages, read-only and behind what the task itself puts on Python's path.
pub fn add_packages(body: &mut CreateBody, volume: &str) {
    body.host_config.mounts.push(mount(volume, PACKAGES_FOLDER, Access::ReadOnly));
    const NAME: &str = "PYTHONPATH=";
    match body.env.iter_mut().find(|pair| pair.starts_with(NAME)) {
        Some(pair) if pair.len() > NAME.len() => pair.push_str(&format!(":{PACKAGES_FOLDER}")),
        Some(pair) => pair.push_str(PACKAGES_FOLDER),
        None => body.env.push(format!("{NAME}{PACKAGES_FOLDER}")),
    }
    seal(body);
}

/// The volume that a task's packages are installed into, for the container of this name.
pub fn packages_volume(container: &str) -> String {
    format!("{container}-packages")
}

/// A container that installs a task's packages: the task's own sandbox and limits, our program, a network, and nothing to
/// write to but the packages' volume. Of the task's own words it has none.
pub fn prepare_body(
    spec: &TaskSpec,
    identity: &Identity,
    image: &TaskImage,
    dns: &[Ipv4Addr],
    index: &str,
) -> CreateBody {
    let command = ["python3", "-I", "-c", INSTALLER, PACKAGES_FOLDER, index].map(str::to_owned).to_vec();
    let none = Network::None;
    let spec = TaskSpec { command, env: Vec::new(), dependencies: Vec::new(), network: none, ..spec.clone() };
    let mut body = task_body(&spec, identity, image, &[]);
    let name = identity.name(&spec.key);
    body.labels = identity.labels(&spec.key, "prepare");
    body.working_dir = "/".to_owned();
    body.network_disabled = false;
    body.host_config.mounts = vec![mount(&packages_volume(&name), PACKAGES_FOLDER, Access::Write)];
    connect(&mut body.host_config, &prepare_name(&name), dns);
    body
}

fn environment(spec: &TaskSpec) -> Vec<String> {
    let mut env: BTreeMap<&str, &str> =
        BTreeMap::from([("HOME", WORK_FOLDER), ("PYTHONUNBUFFERED", "1"), ("PYTHONDONTWRITEBYTECODE", "1")]);
    env.extend(spec.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    env.insert("TASK_ID", spec.key.task.as_str());
    env.insert("HIVEMIND_OUTPUT", OUTPUT_FOLDER);
    if !spec.dependencies.is_empty() {
        env.insert("HIVEMIND_DEPENDENCIES", DEPENDENCIES_FOLDER);
    }
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn host_config(spec: &TaskSpec, volume: &str, scratch: &[String]) -> HostConfig {
    let tmp_bytes = (spec.memory_bytes / 2).min(MAX_TMP_BYTES);
    let memory = format!("rw,nosuid,nodev,exec,mode=1777,size={tmp_bytes}");
    let mount = Mount {
        kind: MountType::Volume,
        source: volume.to_owned(),
        target: WORK_FOLDER.to_owned(),
        read_only: false,
        volume_options: Some(VolumeOptions { no_copy: volume_owner(spec) == VolumeOwner::Helper }),
    };
    let log_sizes =
        BTreeMap::from([("max-size".to_owned(), ENGINE_LOG_SIZE.to_owned()), ("max-file".to_owned(), "2".to_owned())]);
    HostConfig {
        network_mode: "none".to_owned(),
        memory: signed(spec.memory_bytes),
        // The same as memory: no swap on top.
        memory_swap: signed(spec.memory_bytes),
        nano_cpus: signed(spec.cpu_millis.saturating_mul(1_000_000)),
        cpu_shares: (i64::from(spec.priority) * SHARES_PER_PRIORITY).max(2),
        pids_limit: Some(PIDS_LIMIT),
        cap_drop: vec!["ALL".to_owned()],
        security_opt: vec!["no-new-privileges".to_owned()],
        readonly_rootfs: true,
        tmpfs: scratch
            .iter()
            // A runtime may keep the mode of the image's folder, so its owner counts.
            .map(|path| (path.clone(), format!("{memory},uid={TASK_USER},gid={TASK_USER}")))
            .chain([("/tmp".to_owned(), memory.clone())])
            .collect(),
        mounts: [mount].into_iter().chain(dependencies_mount(spec, volume)).collect(),
        ulimits: vec![ulimit("nofile", MAX_OPEN_FILES), ulimit("core", 0), ulimit("fsize", signed(spec.disk_bytes))],
        log_config: Some(LogConfig { driver: "json-file".to_owned(), config: log_sizes }),
        restart_policy: RestartPolicy::default(),
        ipc_mode: "private".to_owned(),
        // Must be set: on cgroup v1 the engine's default is the host's.
        cgroupns_mode: "private".to_owned(),
        oom_score_adj: OOM_SCORE_ADJ,
        shm_size: Some(signed((spec.memory_bytes / 2).min(MAX_SHM_BYTES))),
        // A first process that passes signals on and reaps: without it a Python program would ignore SIGTERM as PID 1.
        init: Some(true),
        runtime: spec.runtime.as_ref().map(ToString::to_string).unwrap_or_default(),
        ..HostConfig::default()
    }
}

fn dependencies_mount(spec: &TaskSpec, container: &str) -> Option<Mount> {
    let volume = dependencies_volume(container);
    (!spec.dependencies.is_empty()).then(|| mount(&volume, DEPENDENCIES_FOLDER, Access::ReadOnly))
}

/// The volume of the files of earlier tasks, for the container of this name.
pub fn dependencies_volume(container: &str) -> String {
    format!("{container}-deps")
}

/// What a container may do with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    ReadOnly,
    Write,
}

/// As it is: nothing of the image's is copied into it.
fn mount(volume: &str, target: &str, access: Access) -> Mount {
    Mount {
        kind: MountType::Volume,
        source: volume.to_owned(),
        target: target.to_owned(),
        read_only: access == Access::ReadOnly,
        volume_options: Some(VolumeOptions { no_copy: true }),
    }
}

/// Onto a network of its own. Without servers and domains of ours the engine would take the machine's, and ask those of the
/// local network in the machine's name.
fn connect(host: &mut HostConfig, network: &str, dns: &[Ipv4Addr]) {
    host.network_mode = network.to_owned();
    host.dns = dns.iter().map(Ipv4Addr::to_string).collect();
    host.dns_search = vec![".".to_owned()];
}

fn ulimit(name: &str, value: i64) -> Ulimit {
    Ulimit { name: name.to_owned(), soft: value, hard: value }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A container that is never started: it only carries the volume while the work folder's owner is written into it.
pub fn owner_body(spec: &TaskSpec, identity: &Identity, image_id: &str) -> CreateBody {
    filler_body(image_id, identity.labels(&spec.key, "owner"), &identity.name(&spec.key), WORK_FOLDER)
}

/// A container that is never started, through which something is put into a volume.
pub fn filler_body(image_id: &str, labels: BTreeMap<String, String>, volume: &str, target: &str) -> CreateBody {
    let mounts = vec![mount(volume, target, Access::Write)];
    CreateBody {
        image: image_id.to_owned(),
        entrypoint: Some(vec!["none".to_owned()]),
        cmd: Some(Vec::new()),
        user: format!("{TASK_USER}:{TASK_USER}"),
        labels,
        network_disabled: true,
        healthcheck: Some(Healthcheck::none()),
        host_config: HostConfig { network_mode: "none".to_owned(), mounts, ..HostConfig::default() },
        ..CreateBody::default()
    }
}

/// A container that tries the network of this name: our own program and nothing to write to.
pub fn probe_body(image_id: &str, network: &str, labels: BTreeMap<String, String>, targets: Vec<String>) -> CreateBody {
    let mut host_config = HostConfig {
        memory: PROBE_MEMORY,
        memory_swap: PROBE_MEMORY,
        pids_limit: Some(PROBE_PIDS),
        cap_drop: vec!["ALL".to_owned()],
        security_opt: vec!["no-new-privileges".to_owned()],
        readonly_rootfs: true,
        ipc_mode: "private".to_owned(),
        cgroupns_mode: "private".to_owned(),
        ..HostConfig::default()
    };
    // It asks for no name.
    connect(&mut host_config, network, &[Ipv4Addr::UNSPECIFIED]);
    let command = ["python3", "-I", "-c", PROGRAM].map(str::to_owned).into_iter().chain(targets);
    CreateBody {
        image: image_id.to_owned(),
        entrypoint: Some(Vec::new()),
        cmd: Some(command.collect()),
        user: format!("{TASK_USER}:{TASK_USER}"),
        labels,
        healthcheck: Some(Healthcheck::none()),
        host_config,
        ..CreateBody::default()
    }
}

/// What holds for the container: what the engine said back, and what the node itself watches over.
pub fn applied_limits(spec: &TaskSpec, got: &HostConfigReadBack) -> AppliedLimits {
    let known = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    AppliedLimits {
        memory_bytes: known(got.memory),
        cpu_millis: known(got.nano_cpus / 1_000_000),
        pids: known(got.pids_limit),
        network: got.network_mode.clone(),
        disk_bytes: spec.disk_bytes,
        disk_held_by: String::new(),
        timeout_ms: millis(spec.timeout),
        grace_ms: millis(spec.grace),
        runtime: got.runtime.clone(),
    }
}

/// The kernel's word "out of memory" means that the limit was reached, whatever the last look before it had seen.
pub fn note_limit_reached(report: &mut FinalReport, spec: &TaskSpec) {
    report.usage.peak_memory_bytes = report.usage.peak_memory_bytes.max(spec.memory_bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::net::NetworkPolicy;
    use crate::node::offer::Offer;
    use crate::node::spec::SpecDefaults;

    const DNS: [Ipv4Addr; 1] = [Ipv4Addr::new(203, 0, 113, 53)];

    fn spec(offer: Offer) -> TaskSpec {
        let offer = Offer { task: "t".to_owned(), attempt: 1, ..offer };
        let network = NetworkPolicy { is_egress_allowed: true, ..NetworkPolicy::default() };
        TaskSpec::check(&offer, &SpecDefaults { network, ..SpecDefaults::default() }).unwrap()
    }

    fn body(offer: Offer) -> CreateBody {
        task_body(&spec(offer), &Identity::new("n", b"k"), &TaskImage::default(), &DNS)
    }

    #[test]
    fn the_sandbox_does_not_depend_on_the_task() {
        let env = vec![("LD_PRELOAD".to_owned(), "x".to_owned()), ("HOME".to_owned(), "/tmp".to_owned())];
        let tasks = [
            Offer::default(),
            Offer {
                command: vec!["--privileged".to_owned(), "-v".to_owned(), "/:/host".to_owned()],
                ..Offer::default()
            },
            Offer { env, image: "x/y:z".to_owned(), priority: Some(100), ..Offer::default() },
        ];
        for offer in tasks {
            let body = body(offer);
            let host = &body.host_config;
            assert_eq!(body.user, "1000:1000");
            assert!(body.network_disabled && host.network_mode == "none");
            assert!(!host.privileged && host.readonly_rootfs && host.cap_add.is_empty());
            assert_eq!((host.cap_drop.as_slice(), host.memory), (&["ALL".to_owned()][..], host.memory_swap));
            assert_eq!(host.mounts.len(), 1);
            assert_eq!((host.pids_limit, host.oom_score_adj), (Some(256), 500));
            assert!(host.pid_mode.is_empty() && host.uts_mode.is_empty() && host.cgroup_parent.is_empty());
            assert_eq!((host.ipc_mode.as_str(), host.cgroupns_mode.as_str()), ("private", "private"));
        }
    }

    #[test]
    fn the_command_replaces_the_images_entrypoint() {
        let with_command = body(Offer { command: vec!["python3".to_owned(), "-c".to_owned()], ..Offer::default() });
        assert_eq!(with_command.entrypoint, Some(vec!["python3".to_owned()]));
        assert_eq!(with_command.cmd, Some(vec!["-c".to_owned()]));
        assert_eq!(body(Offer::default()).cmd, Some(vec!["/workspace/run_task.sh".to_owned()]));
    }

    #[test]
    fn only_our_own_image_gives_the_volume_its_owner_by_copying() {
        let no_copy = |image: &str| {
            let body = body(Offer { image: image.to_owned(), ..Offer::default() });
            body.host_config.mounts[0].volume_options.as_ref().is_some_and(|options| options.no_copy)
        };
        assert!(!no_copy(""));
        assert!(no_copy("python:3.12"));
        assert!(no_copy("evil.example/justin308/hivemind-worker"));
    }

    #[test]
    fn bodies_with_other_content_have_other_digests() {
        let digest = |offer: Offer| body(offer).labels.remove(LABEL_SPEC).unwrap();
        let one = digest(Offer::default());
        assert_eq!(one, digest(Offer::default()));
        let bounded = without_copy(body(Offer::default()));
        assert_ne!(bounded.labels[LABEL_SPEC], one);
        assert_eq!(without_copy(bounded.clone()), bounded);
        assert_ne!(one, digest(Offer { cpu_millis: 999, ..Offer::default() }));
    }
}
