//! Bodies that are sent. Field names are the engine's; the documentation of a field is the Engine API's own.
//!
//! What isn't in here can't be asked for: no host binds, no devices by path, no seccomp profile. Maps are ordered, so the
//! same value always gives the same bytes and a digest of them is a digest of the value.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::model::or_default;

/// What a container is made of (`POST /containers/create`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateBody {
    /// Image reference or id.
    pub image: String,
    /// Arguments, or the command where the entry point is empty; `None`: the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Entry point; `None`: the image's, empty: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value`, beside those of the image.
    pub env: Vec<String>,
    /// `uid:gid`; empty: the image's.
    pub user: String,
    /// Working folder; empty: the image's.
    pub working_dir: String,
    /// Labels, beside those of the image.
    pub labels: BTreeMap<String, String>,
    /// Host name inside; empty: the id.
    pub hostname: String,
    /// No network at all; beside `NetworkMode: none`.
    pub network_disabled: bool,
    /// Must be true for attach to give standard output.
    pub attach_stdout: bool,
    /// Must be true for attach to give standard error.
    pub attach_stderr: bool,
    /// Must stay false: a terminal's output is not framed.
    pub tty: bool,
    /// Health check; `None`: the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Signal that asks the task to end; `None`: the image's, else SIGTERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Limits and isolation.
    pub host_config: HostConfig,
}

/// Health check of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// The check; `["NONE"]` switches off the image's.
    pub test: Vec<String>,
}

impl Healthcheck {
    /// No check, even if the image has one.
    pub fn none() -> Healthcheck {
        Healthcheck { test: vec!["NONE".to_owned()] }
    }
}

/// Limits and isolation of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostConfig {
    /// `none`, or the name of a network.
    pub network_mode: String,
    /// Bytes.
    pub memory: i64,
    /// Bytes of memory and swap together; equal to `memory`: no swap.
    pub memory_swap: i64,
    /// Processors times 10^9.
    pub nano_cpus: i64,
    /// Weight among siblings; 0: the engine's default of 1024.
    pub cpu_shares: i64,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<i64>,
    /// Capabilities taken away; `ALL`.
    pub cap_drop: Vec<String>,
    /// Capabilities given back.
    pub cap_add: Vec<String>,
    /// Such as `no-new-privileges`.
    pub security_opt: Vec<String>,
    /// The image's files can't be changed.
    pub readonly_rootfs: bool,
    /// Path to mount options, such as `/tmp` to `size=64m,nosuid,nodev`.
    pub tmpfs: BTreeMap<String, String>,
    /// Volumes.
    pub mounts: Vec<Mount>,
    /// Limits of each process.
    pub ulimits: Vec<Ulimit>,
    /// The engine's own log of the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_config: Option<LogConfig>,
    /// Whether the engine starts it again.
    pub restart_policy: RestartPolicy,
    /// Whether the engine removes it at its end.
    pub auto_remove: bool,
    /// Must stay false.
    pub privileged: bool,
    /// Empty: own.
    pub pid_mode: String,
    /// `private`: own; empty: the engine's default.
    pub ipc_mode: String,
    /// Empty: own.
    #[serde(rename = "UTSMode")]
    pub uts_mode: String,
    /// `private` must be said: on cgroup v1 the engine's default is the host's.
    pub cgroupns_mode: String,
    /// Added to the kernel's score when memory is short.
    pub oom_score_adj: i32,
    /// False: the kernel may kill it. Not sent when false, as cgroup v2 engines warn about it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub oom_kill_disable: bool,
    /// Bytes of `/dev/shm`; `None`: the engine's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<i64>,
    /// GPUs.
    pub device_requests: Vec<DeviceRequest>,
    /// Whether the engine puts a small init as process 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// `name:address` for the container's hosts file.
    pub extra_hosts: Vec<String>,
    /// Name servers; empty: the engine's choice.
    pub dns: Vec<String>,
    /// Domains that names are completed with; empty: those of the machine, `.`: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// Parent cgroup; empty: the engine's.
    pub cgroup_parent: String,
    /// Name of the runtime; empty: the engine's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub runtime: String,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Mount {
    /// What is mounted.
    #[serde(rename = "Type")]
    pub kind: MountType,
    /// Name of the volume.
    pub source: String,
    /// Path inside.
    pub target: String,
    /// Whether writing is refused.
    pub read_only: bool,
    /// More for a volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_options: Option<VolumeOptions>,
}

/// What is mounted. There is no bind: the host's paths are never given to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MountType {
    /// A volume of the engine.
    Volume,
}

/// More for a volume's mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumeOptions {
    /// Don't copy the image's folder into an empty volume.
    pub no_copy: bool,
}

/// A limit of each process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ulimit {
    /// Such as `nofile`, `core`, `fsize`.
    pub name: String,
    /// Soft limit.
    pub soft: i64,
    /// Hard limit.
    pub hard: i64,
}

/// The engine's own log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LogConfig {
    /// Driver, such as `json-file`, `local`, `none`.
    #[serde(rename = "Type")]
    pub driver: String,
    /// Options, such as `max-size`.
    #[serde(deserialize_with = "or_default")]
    pub config: BTreeMap<String, String>,
}

/// Whether the engine starts a container again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// `no`, the default.
    pub name: String,
}

impl Default for RestartPolicy {
    fn default() -> RestartPolicy {
        RestartPolicy { name: "no".to_owned() }
    }
}

/// GPUs for a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DeviceRequest {
    /// Empty: by the capabilities.
    pub driver: String,
    /// 0 where ids are given.
    pub count: i32,
    /// UUIDs.
    #[serde(rename = "DeviceIDs", deserialize_with = "or_default")]
    pub device_ids: Vec<String>,
    /// Any of these lists, each of which is needed whole; `[["gpu"]]`.
    #[serde(deserialize_with = "or_default")]
    pub capabilities: Vec<Vec<String>>,
    /// For the driver.
    #[serde(deserialize_with = "or_default")]
    pub options: BTreeMap<String, String>,
}

/// A change of a container, running or not. What is `None` stays; a 0 changes nothing either, though the engine says 200.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct UpdateBody {
    /// Processors times 10^9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<i64>,
    /// Weight among siblings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<i64>,
    /// Bytes. Must be given together with `memory_swap` where the new limit is above the old swap limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<i64>,
    /// Bytes of memory and swap together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<i64>,
}

/// A new network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkCreate {
    /// Its name.
    pub name: String,
    /// Refuse a name that is taken; engines before 25 allow doubles otherwise.
    pub check_duplicate: bool,
    /// `bridge`.
    pub driver: String,
    /// Without a way out.
    pub internal: bool,
    /// With IPv6.
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    /// Driver options, such as `com.docker.network.bridge.enable_icc` to `false`.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Addresses; `None`: from the engine's pools.
    #[serde(rename = "IPAM", skip_serializing_if = "Option::is_none")]
    pub ipam: Option<IpamCreate>,
}

impl NetworkCreate {
    /// A bridge of the given name on the given subnet, such as `10.99.0.0/28`; the rest at its default.
    pub fn bridge(name: &str, subnet: &str) -> NetworkCreate {
        NetworkCreate {
            name: name.to_owned(),
            check_duplicate: true,
            driver: "bridge".to_owned(),
            ipam: Some(IpamCreate { config: vec![IpamConfig { subnet: subnet.to_owned(), gateway: None }] }),
            ..NetworkCreate::default()
        }
    }
}

/// Addresses of a new network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpamCreate {
    /// Its subnets.
    pub config: Vec<IpamConfig>,
}

/// A subnet of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IpamConfig {
    /// Such as `10.99.0.0/28`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subnet: String,
    /// The host's address in it; `None`: the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}

/// A new volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumeCreate {
    /// Its name.
    pub name: String,
    /// Empty: `local`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// Driver options, such as `type`, `device`, `o`.
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speaks_the_engines_names() {
        let body = CreateBody {
            image: "i".into(),
            cmd: Some(vec!["c".into()]),
            healthcheck: Some(Healthcheck::none()),
            host_config: HostConfig {
                mounts: vec![Mount {
                    kind: MountType::Volume,
                    source: "v".into(),
                    target: "/w".into(),
                    read_only: false,
                    volume_options: Some(VolumeOptions { no_copy: true }),
                }],
                log_config: Some(LogConfig { driver: "local".into(), config: BTreeMap::new() }),
                device_requests: vec![DeviceRequest { device_ids: vec!["GPU-1".into()], ..Default::default() }],
                ..Default::default()
            },
            ..Default::default()
        };
        let json = serde_json::to_string(&body).unwrap();
        for part in [
            r#""Healthcheck":{"Test":["NONE"]}"#,
            r#""Mounts":[{"Type":"volume","Source":"v","Target":"/w","ReadOnly":false,"VolumeOptions":{"NoCopy":true}}]"#,
            r#""LogConfig":{"Type":"local","Config":{}}"#,
            r#""RestartPolicy":{"Name":"no"}"#,
            r#""DeviceIDs":["GPU-1"]"#,
            r#""UTSMode":"""#,
            r#""CgroupnsMode":"""#,
            r#""NanoCpus":0"#,
            r#""MemorySwap":0"#,
            r#""ReadonlyRootfs":false"#,
            r#""Cmd":["c"]"#,
            r#""Tty":false"#,
        ] {
            assert!(json.contains(part), "{part} in {json}");
        }
        assert!(!json.contains("Entrypoint") && !json.contains("PidsLimit"));
        let update = UpdateBody { nano_cpus: Some(5), ..Default::default() };
        assert_eq!(serde_json::to_string(&update).unwrap(), r#"{"NanoCpus":5}"#);
    }
}
