//! Answers that are read: only the fields in use. A missing field or a null is the field's default.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::create::{DeviceRequest, IpamConfig, LogConfig, RestartPolicy, Ulimit};

/// The engine writes null for empty lists and maps.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

/// A created container or network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Created {
    /// Its id.
    pub id: String,
    /// What the engine could not do as asked, such as a limit that the kernel doesn't have.
    #[serde(default, deserialize_with = "or_default")]
    pub warnings: Vec<String>,
}

/// A container in full.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerInspect {
    /// Its id.
    pub id: String,
    /// Its name, without the slash that the engine puts before it.
    #[serde(deserialize_with = "without_slash")]
    pub name: String,
    /// The image's id.
    pub image: String,
    /// When it was created, RFC 3339.
    pub created: String,
    /// Where it is in its life.
    pub state: ContainerState,
    /// What it was created from.
    pub config: ContainerConfig,
    /// The limits that the engine put down.
    pub host_config: HostConfigReadBack,
    /// What is mounted.
    #[serde(deserialize_with = "or_default")]
    pub mounts: Vec<MountPoint>,
    /// Names of the networks that it is on.
    #[serde(rename = "NetworkSettings", deserialize_with = "network_names")]
    pub networks: Vec<String>,
}

fn network_names<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Settings {
        #[serde(deserialize_with = "or_default")]
        networks: BTreeMap<String, serde::de::IgnoredAny>,
    }
    or_default::<D, Settings>(value).map(|settings| settings.networks.into_keys().collect())
}

/// The capabilities of a container that asks for none in particular, with Docker and with Podman.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Podman compares what a container has with what it has by default, and names each that is missing. Its own default may
/// be shorter than Docker's; what it lists then, is not known to be all.
fn dropped<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    let list: Vec<String> = or_default(value)?;
    let bare = |name: &String| name.strip_prefix("CAP_").unwrap_or(name).to_ascii_uppercase();
    let has = |wanted: &str| list.iter().any(|name| bare(name) == wanted);
    let is_all = has("ALL") || DEFAULT_CAPABILITIES.iter().all(|name| has(name));
    Ok(if is_all { vec!["ALL".to_owned()] } else { list })
}

fn without_slash<'de, D: Deserializer<'de>>(value: D) -> Result<String, D::Error> {
    let name: String = or_default(value)?;
    Ok(name.strip_prefix('/').map(str::to_owned).unwrap_or(name))
}

/// Where a container is in its life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerState {
    /// created, running, paused, restarting, removing, exited or dead.
    pub status: String,
    /// True while paused, too.
    pub running: bool,
    /// Frozen.
    pub paused: bool,
    /// The kernel killed a process of it because memory ran out; the exit code may be 0 all the same.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// Code of process 1; 128 + signal where a signal ended it.
    pub exit_code: i64,
    /// Why it could not be started.
    pub error: String,
    /// Process 1 as the host counts; 0 when it isn't running.
    pub pid: i64,
    /// RFC 3339; the year 1 before the start.
    pub started_at: String,
    /// RFC 3339; the year 1 before the end.
    pub finished_at: String,
}

/// What a container was created from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// The reference that was given.
    pub image: String,
    /// User.
    pub user: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Host name inside.
    pub hostname: String,
    /// Working folder.
    pub working_dir: String,
    /// Entry point.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Command.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Environment, that of the image included.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Health check.
    #[serde(rename = "Healthcheck", deserialize_with = "health_test")]
    pub health_test: Vec<String>,
    /// Labels, those of the image included.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

fn health_test<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Check {
        #[serde(deserialize_with = "or_default")]
        test: Vec<String>,
    }
    or_default::<D, Check>(value).map(|check| check.test)
}

/// The limits that the engine put down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfigReadBack {
    /// Bytes.
    pub memory: i64,
    /// Bytes of memory and swap together.
    pub memory_swap: i64,
    /// Processors times 10^9.
    pub nano_cpus: i64,
    /// Weight among siblings.
    pub cpu_shares: i64,
    /// Processes and threads; 0: no limit.
    #[serde(deserialize_with = "or_default")]
    pub pids_limit: i64,
    /// The image's files can't be changed.
    pub readonly_rootfs: bool,
    /// Capabilities taken away; `ALL` alone where it is all of them.
    #[serde(deserialize_with = "dropped")]
    pub cap_drop: Vec<String>,
    /// Capabilities given back.
    #[serde(deserialize_with = "or_default")]
    pub cap_add: Vec<String>,
    /// Such as `no-new-privileges`.
    #[serde(deserialize_with = "or_default")]
    pub security_opt: Vec<String>,
    /// Network.
    pub network_mode: String,
    /// Name servers.
    #[serde(deserialize_with = "or_default")]
    pub dns: Vec<String>,
    /// Domains in which names are looked up.
    #[serde(deserialize_with = "or_default")]
    pub dns_search: Vec<String>,
    /// Ports of the machine that lead into it.
    #[serde(deserialize_with = "or_default")]
    pub port_bindings: BTreeMap<String, serde_json::Value>,
    /// Whether each port of the image gets one.
    pub publish_all_ports: bool,
    /// Must be false.
    pub privileged: bool,
    /// Namespace of cgroups.
    pub cgroupns_mode: String,
    /// Namespace of processes; empty: own.
    pub pid_mode: String,
    /// Namespace of shared memory.
    pub ipc_mode: String,
    /// Namespace of the host name; empty: own.
    #[serde(rename = "UTSMode")]
    pub uts_mode: String,
    /// Namespace of users; empty: the engine's.
    pub userns_mode: String,
    /// Path to mount options.
    #[serde(deserialize_with = "or_default")]
    pub tmpfs: BTreeMap<String, String>,
    /// Limits of each process, in the engine's order.
    #[serde(deserialize_with = "or_default")]
    pub ulimits: Vec<Ulimit>,
    /// The engine's own log of the output.
    pub log_config: LogConfig,
    /// Whether the engine starts it again.
    pub restart_policy: RestartPolicy,
    /// Whether the engine removes it at its end.
    pub auto_remove: bool,
    /// Added to the kernel's score when memory is short.
    pub oom_score_adj: i32,
    /// The kernel may not kill it.
    #[serde(deserialize_with = "or_default")]
    pub oom_kill_disable: bool,
    /// Bytes of `/dev/shm`.
    pub shm_size: i64,
    /// GPUs.
    #[serde(deserialize_with = "or_default")]
    pub device_requests: Vec<DeviceRequest>,
    /// Devices of the machine by path; nothing that we ask for.
    #[serde(deserialize_with = "or_default")]
    pub devices: Vec<serde_json::Value>,
    /// Rules for devices; nothing that we ask for.
    #[serde(deserialize_with = "or_default")]
    pub device_cgroup_rules: Vec<String>,
    /// Paths of the machine; nothing that we ask for.
    #[serde(deserialize_with = "or_default")]
    pub binds: Vec<String>,
    /// Containers whose volumes it has; nothing that we ask for.
    #[serde(deserialize_with = "or_default")]
    pub volumes_from: Vec<String>,
    /// Groups beside that of the user; nothing that we ask for.
    #[serde(deserialize_with = "or_default")]
    pub group_add: Vec<String>,
    /// Whether a small init is process 1.
    #[serde(deserialize_with = "or_default")]
    pub init: bool,
    /// Lines of the hosts file.
    #[serde(deserialize_with = "or_default")]
    pub extra_hosts: Vec<String>,
    /// Parent cgroup; empty: the engine's.
    pub cgroup_parent: String,
    /// Name of the runtime.
    pub runtime: String,
}

/// A mount of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MountPoint {
    /// volume, bind, tmpfs.
    #[serde(rename = "Type")]
    pub kind: String,
    /// The volume's name.
    pub name: String,
    /// Path on the host.
    pub source: String,
    /// Path inside.
    pub destination: String,
    /// Whether it may be written.
    #[serde(rename = "RW")]
    pub rw: bool,
}

/// A container in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSummary {
    /// Its id.
    pub id: String,
    /// Its names, each with a slash before it.
    #[serde(deserialize_with = "or_default")]
    pub names: Vec<String>,
    /// The reference that it was created from.
    pub image: String,
    /// The image's id.
    #[serde(rename = "ImageID")]
    pub image_id: String,
    /// Labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// created, running, paused, restarting, removing, exited or dead.
    pub state: String,
    /// The same for people.
    pub status: String,
    /// When it was created, in seconds since 1970.
    pub created: i64,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitStatus {
    /// Code of process 1.
    pub code: i64,
    /// What went wrong in the engine while it waited.
    pub error: Option<String>,
}

/// An image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageInspect {
    /// Its id, the digest of its configuration.
    pub id: String,
    /// Its tags here.
    #[serde(deserialize_with = "or_default")]
    pub repo_tags: Vec<String>,
    /// `name@sha256:...` for each registry it came from; none for one that was imported.
    #[serde(deserialize_with = "or_default")]
    pub repo_digests: Vec<String>,
    /// Such as amd64, arm64, arm.
    pub architecture: String,
    /// Such as v7 for arm.
    #[serde(deserialize_with = "or_default")]
    pub variant: String,
    /// linux.
    pub os: String,
    /// Bytes.
    #[serde(deserialize_with = "or_default")]
    pub size: i64,
    /// What containers get from it.
    #[serde(deserialize_with = "or_default")]
    pub config: ImageConfig,
}

/// What containers get from an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// User; empty: root.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    /// Working folder.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// Entry point.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Command.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Environment.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Paths for which the engine makes anonymous volumes; the values say nothing.
    #[serde(deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// Labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// A network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// bridge, host, null, overlay.
    pub driver: String,
    /// Without a way out.
    pub internal: bool,
    /// Labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Driver options.
    #[serde(deserialize_with = "or_default")]
    pub options: BTreeMap<String, String>,
    /// Its subnets.
    #[serde(rename = "IPAM", deserialize_with = "subnets")]
    pub subnets: Vec<IpamConfig>,
}

fn subnets<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<IpamConfig>, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Ipam {
        #[serde(deserialize_with = "or_default")]
        config: Vec<IpamConfig>,
    }
    or_default::<D, Ipam>(value).map(|ipam| ipam.config)
}

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// local, or a plugin's name.
    pub driver: String,
    /// Its folder on the host.
    pub mountpoint: String,
    /// When it was created, RFC 3339.
    #[serde(deserialize_with = "or_default")]
    pub created_at: String,
    /// Labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Driver options.
    #[serde(deserialize_with = "or_default")]
    pub options: BTreeMap<String, String>,
}

/// What the engine keeps on its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes of all image layers; `None` where the engine was asked for volumes only.
    pub layers: Option<u64>,
    /// Each volume.
    pub volumes: Vec<VolumeUsage>,
}

/// What a volume takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Its name.
    pub name: String,
    /// Bytes; `None` where the engine doesn't know.
    pub size: Option<u64>,
    /// Containers that mount it; `None` where the engine doesn't know.
    pub ref_count: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_capabilities_are_all_in_either_engines_words() {
        let dropped = |list: &[&str]| {
            let text = serde_json::json!({ "CapDrop": list }).to_string();
            serde_json::from_str::<HostConfigReadBack>(&text).unwrap().cap_drop
        };
        let podman = DEFAULT_CAPABILITIES.map(|name| format!("CAP_{name}"));
        let podman = podman.each_ref().map(String::as_str);
        assert_eq!(dropped(&["all"]), ["ALL"]);
        assert_eq!(dropped(&DEFAULT_CAPABILITIES), ["ALL"]);
        assert_eq!(dropped(&podman), ["ALL"]);
        assert_eq!(dropped(&podman[1..]), podman[1..]);
        assert!(dropped(&[]).is_empty());
    }

    #[test]
    fn nulls_and_missing_fields_are_defaults() {
        let inspect: ContainerInspect = serde_json::from_str(
            r#"{"Id":"x","Name":"/n","State":{"OOMKilled":true,"ExitCode":137},"Config":{"Labels":null},
                "HostConfig":{"PidsLimit":null,"CapDrop":null},"Mounts":null,"New":[1,{"a":2}]}"#,
        )
        .unwrap();
        assert_eq!((inspect.name.as_str(), inspect.state.oom_killed, inspect.state.exit_code), ("n", true, 137));
        let image: ImageInspect = serde_json::from_str(r#"{"Id":"x","Config":null,"RepoDigests":null}"#).unwrap();
        assert_eq!(image.config, ImageConfig::default());
        let network: Network =
            serde_json::from_str(r#"{"IPAM":{"Driver":"default","Config":[{"Subnet":"10.0.0.0/8"}]}}"#).unwrap();
        assert_eq!(network.subnets[0].subnet, "10.0.0.0/8");
        let network: Network = serde_json::from_str(r#"{"IPAM":null}"#).unwrap();
        assert!(network.subnets.is_empty());
    }
}
