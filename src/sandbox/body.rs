//! The create body of a task's container: the sandbox of design section 5. Built from a fixed structure; what a task
//! chooses is its image, its argument vector, its environment and its amounts.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ring::digest::{SHA256, digest};

use super::naming::{Identity, LABEL_SPEC};
use super::probe::PROGRAM;
use crate::docker::{
    ContainerInspect, CreateBody, Healthcheck, HostConfig, LogConfig, Mount, MountType, RestartPolicy, Ulimit,
    VolumeOptions,
};
use crate::node::record::FinalReport;
use crate::node::spec::{Network, TaskSpec, base_image_name};
use crate::sys::text::hex;

/// The user of every task. Numeric, so that no image's `/etc/passwd` decides who it is.
pub const TASK_USER: u32 = 1000;
/// Where a task works.
pub const WORK_FOLDER: &str = "/workspace";
/// Where it puts what it wants to keep.
pub const OUTPUT_FOLDER: &str = "/workspace/output";
/// The starter of tasks without a command, in the work folder.
pub const STARTER: &str = "run_task.sh";

/// Processes and threads: enough for a parallel Python program, far below what a fork bomb needs.
const PIDS_LIMIT: i64 = 256;
/// Open files of one process.
const MAX_OPEN_FILES: i64 = 4_096;
/// `/tmp` is memory and counts against the task's limit; more than this is disk's business.
const MAX_TMP_BYTES: u64 = 256 << 20;
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
pub fn task_body(spec: &TaskSpec, identity: &Identity, image_id: &str, dns: &[Ipv4Addr]) -> CreateBody {
    let (entrypoint, cmd) = match spec.command.split_first() {
        Some((program, words)) => (vec![program.clone()], words.to_vec()),
        None => (vec!["/bin/sh".to_owned()], vec![format!("{WORK_FOLDER}/{STARTER}")]),
    };
    let name = identity.name(&spec.key);
    let mut body = CreateBody {
        image: image_id.to_owned(),
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
        host_config: host_config(spec, &name),
    };
    if spec.network == Network::Egress {
        connect(&mut body.host_config, &name, dns);
    }
    let bytes = serde_json::to_vec(&body).unwrap_or_default();
    body.labels.insert(LABEL_SPEC.to_owned(), hex(digest(&SHA256, &bytes).as_ref()));
    body
}

fn environment(spec: &TaskSpec) -> Vec<String> {
    let mut env: BTreeMap<&str, &str> =
        BTreeMap::from([("HOME", WORK_FOLDER), ("PYTHONUNBUFFERED", "1"), ("PYTHONDONTWRITEBYTECODE", "1")]);
    env.extend(spec.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    env.insert("TASK_ID", spec.key.task.as_str());
    env.insert("HIVEMIND_OUTPUT", OUTPUT_FOLDER);
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn host_config(spec: &TaskSpec, volume: &str) -> HostConfig {
    let tmp_bytes = (spec.memory_bytes / 2).min(MAX_TMP_BYTES);
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
        tmpfs: BTreeMap::from([("/tmp".to_owned(), format!("rw,nosuid,nodev,exec,mode=1777,size={tmp_bytes}"))]),
        mounts: vec![mount],
        ulimits: vec![ulimit("nofile", MAX_OPEN_FILES), ulimit("core", 0), ulimit("fsize", signed(spec.disk_bytes))],
        log_config: Some(LogConfig { driver: "json-file".to_owned(), config: log_sizes }),
        restart_policy: RestartPolicy::default(),
        ipc_mode: "private".to_owned(),
        // Must be set: on cgroup v1 the engine's default is the host's.
        cgroupns_mode: "private".to_owned(),
        oom_score_adj: OOM_SCORE_ADJ,
        // A first process that passes signals on and reaps: without it a Python program would ignore SIGTERM as PID 1.
        init: Some(true),
        ..HostConfig::default()
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
    let volume = identity.name(&spec.key);
    let mount = Mount {
        kind: MountType::Volume,
        source: volume,
        target: WORK_FOLDER.to_owned(),
        read_only: false,
        volume_options: Some(VolumeOptions { no_copy: true }),
    };
    CreateBody {
        image: image_id.to_owned(),
        entrypoint: Some(vec!["none".to_owned()]),
        cmd: Some(Vec::new()),
        user: format!("{TASK_USER}:{TASK_USER}"),
        labels: identity.labels(&spec.key, "owner"),
        network_disabled: true,
        healthcheck: Some(Healthcheck::none()),
        host_config: HostConfig { network_mode: "none".to_owned(), mounts: vec![mount], ..HostConfig::default() },
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

/// What the engine made of the sandbox, field by field; the first that is not as asked for, in words.
pub fn check_read_back(asked: &HostConfig, found: &ContainerInspect) -> Result<(), String> {
    let got = &found.host_config;
    let network = format!("network {}", asked.network_mode);
    // Podman names no network where there is none.
    let is_alone = asked.network_mode == "none" && found.networks.is_empty();
    let no_new_privileges = got.security_opt.iter().any(|option| option.starts_with("no-new-privileges"));
    let checks = [
        ("memory limit", got.memory == asked.memory),
        ("CPU limit", got.nano_cpus == asked.nano_cpus),
        ("pids limit", Some(got.pids_limit) == asked.pids_limit),
        ("read-only root file system", got.readonly_rootfs),
        ("dropped capabilities", got.cap_drop.iter().any(|dropped| dropped.eq_ignore_ascii_case("all"))),
        ("empty list of added capabilities", got.cap_add.is_empty()),
        ("no-new-privileges", no_new_privileges),
        (network.as_str(), got.network_mode == asked.network_mode),
        ("network as the only one", is_alone || found.networks == [asked.network_mode.as_str()]),
        ("name servers", got.dns == asked.dns),
        ("absence of published ports", got.port_bindings.is_empty() && !got.publish_all_ports),
        ("absence of privileges", !got.privileged),
        ("private cgroup namespace", got.cgroupns_mode == asked.cgroupns_mode),
    ];
    match checks.iter().find(|(_, holds)| !holds) {
        None => Ok(()),
        Some((what, _)) => Err(format!("the engine did not apply the {what}")),
    }
}

/// The kernel's word "out of memory" means that the limit was reached, whatever the last look before it had seen.
pub fn note_limit_reached(report: &mut FinalReport, spec: &TaskSpec) {
    report.usage.peak_memory_bytes = report.usage.peak_memory_bytes.max(spec.memory_bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::HostConfigReadBack;
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
        task_body(&spec(offer), &Identity::new("n", b"k"), "sha256:1", &DNS)
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
        assert_ne!(one, digest(Offer { cpu_millis: 999, ..Offer::default() }));
    }

    #[test]
    fn says_which_limit_the_engine_did_not_apply() {
        let read_back = |asked: &HostConfig| HostConfigReadBack {
            memory: asked.memory,
            nano_cpus: asked.nano_cpus,
            pids_limit: 256,
            readonly_rootfs: true,
            cap_drop: vec!["ALL".to_owned()],
            security_opt: vec!["no-new-privileges".to_owned()],
            network_mode: asked.network_mode.clone(),
            dns: asked.dns.clone(),
            cgroupns_mode: "private".to_owned(),
            ..HostConfigReadBack::default()
        };
        let found = |asked: &HostConfig, host_config| {
            let networks = vec![asked.network_mode.clone()];
            ContainerInspect { host_config, networks, ..ContainerInspect::default() }
        };
        let failed = |what: &str| Err(format!("the engine did not apply the {what}"));
        for network in ["none", "egress"] {
            let asked = body(Offer { network: network.to_owned(), ..Offer::default() }).host_config;
            let good = read_back(&asked);
            assert_eq!(check_read_back(&asked, &found(&asked, good.clone())), Ok(()));
            let bad = HostConfigReadBack { memory: 0, ..good.clone() };
            assert_eq!(check_read_back(&asked, &found(&asked, bad)), failed("memory limit"));
            let bad = HostConfigReadBack { network_mode: "host".to_owned(), ..good.clone() };
            assert_eq!(
                check_read_back(&asked, &found(&asked, bad)),
                failed(&format!("network {}", asked.network_mode))
            );
            let bad = HostConfigReadBack { dns: vec!["192.168.1.1".to_owned()], ..good.clone() };
            assert_eq!(check_read_back(&asked, &found(&asked, bad)), failed("name servers"));
            let port_bindings = [("80/tcp".to_owned(), serde_json::Value::Null)].into();
            let bad = HostConfigReadBack { port_bindings, ..good.clone() };
            assert_eq!(check_read_back(&asked, &found(&asked, bad)), failed("absence of published ports"));
            let mut second = found(&asked, good);
            second.networks.push("bridge".to_owned());
            assert_eq!(check_read_back(&asked, &second), failed("network as the only one"));
        }
    }

    #[test]
    fn egress_is_a_network_of_the_tasks_own_with_the_owners_name_servers() {
        let asked = body(Offer { network: "egress".to_owned(), ..Offer::default() });
        let host = &asked.host_config;
        assert!(!asked.network_disabled && host.network_mode.starts_with("hivemind-"));
        assert_eq!((&host.dns[..], &host.dns_search[..]), (&["203.0.113.53".to_owned()][..], &[".".to_owned()][..]));
        assert!(host.extra_hosts.is_empty() && host.cap_add.is_empty() && host.cap_drop == ["ALL"]);
    }
}
