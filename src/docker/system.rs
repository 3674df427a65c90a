//! The engine itself: ping and version, facts, disk usage.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::call::Call;
use super::error::Error;
use super::model::{DiskUsage, VolumeUsage, or_default};
use super::target::Target;
use super::{ApiVersion, Docker};

/// Since this version disk usage can be asked for volumes alone.
const DF_BY_TYPE: ApiVersion = ApiVersion { major: 1, minor: 42 };

/// What the engine is and can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineFacts {
    /// Such as `20.10.24`.
    pub version: String,
    /// The version of the API that is spoken, such as `1.41`.
    pub api: String,
    /// The engine's own id, which tells one engine from another at the same socket.
    pub id: String,
    /// The machine's name as the engine sees it.
    pub name: String,
    /// `linux`.
    pub os: String,
    /// For people, such as `Debian GNU/Linux 12 (bookworm)` or `Docker Desktop`.
    pub operating_system: String,
    /// As images name it: amd64, arm64, arm.
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// Whether it is Podman behind its compatible API.
    pub podman: bool,
    /// 1 or 2; 0 where the engine doesn't say.
    pub cgroup_version: u8,
    /// `cgroupfs`, `systemd` or `none`.
    pub cgroup_driver: String,
    /// Such as `overlay2`.
    pub storage_driver: String,
    /// What lies under the storage driver, such as `extfs`; empty where unknown.
    pub backing_filesystem: String,
    /// Whether the engine runs without root.
    pub rootless: bool,
    /// Whether containers survive a restart of the engine.
    pub live_restore: bool,
    /// Whether memory can be limited.
    pub memory_limit: bool,
    /// Whether swap can be limited.
    pub swap_limit: bool,
    /// Whether processes can be limited.
    pub pids_limit: bool,
    /// Whether CPU time can be limited.
    pub cpu_quota: bool,
    /// Processors.
    pub cpus: u32,
    /// Bytes.
    pub mem_total: u64,
    /// Such as `name=seccomp,profile=default`.
    pub security_options: Vec<String>,
    /// Names of the runtimes, such as `runc` and `nvidia`.
    pub runtimes: Vec<String>,
    /// Where the engine keeps its files.
    pub root_dir: String,
    /// The engine's log driver for containers that name none.
    pub logging_driver: String,
    /// What the engine complains about.
    pub warnings: Vec<String>,
}

impl EngineFacts {
    /// The first number of the version; 0 where it is none.
    pub fn major_version(&self) -> u32 {
        self.version.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
    }
}

/// What an engine's containers run on, as images name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Platform {
    /// Such as linux.
    pub os: String,
    /// Such as amd64, arm64, arm.
    pub arch: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Version {
    version: String,
    os: String,
    arch: String,
    kernel_version: String,
    #[serde(deserialize_with = "or_default")]
    components: Vec<Component>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Component {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Info {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    operating_system: String,
    kernel_version: String,
    cgroup_version: String,
    cgroup_driver: String,
    driver: String,
    #[serde(deserialize_with = "or_default")]
    driver_status: Vec<Vec<String>>,
    live_restore_enabled: bool,
    memory_limit: bool,
    swap_limit: bool,
    pids_limit: bool,
    cpu_cfs_quota: bool,
    #[serde(rename = "NCPU")]
    cpus: u32,
    mem_total: u64,
    #[serde(deserialize_with = "or_default")]
    security_options: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    runtimes: BTreeMap<String, serde_json::Value>,
    docker_root_dir: String,
    logging_driver: String,
    #[serde(deserialize_with = "or_default")]
    warnings: Vec<String>,
}

impl Docker {
    /// Whether the engine is there, and which version of its API to speak with it. Asks anew each time, since an engine
    /// may have been replaced by another version.
    pub fn ping(&self) -> Result<ApiVersion, Error> {
        let reply = self.send_as(None, Call::get(Target::new("_ping"), "ping the engine".to_owned()))?;
        let Some(text) = reply.api_version.as_deref() else {
            return Err(reply.body.protocol("no Api-Version in the answer to a ping".to_owned()));
        };
        let Some(engine) = ApiVersion::parse(text) else {
            return Err(reply.body.protocol("an Api-Version that is none".to_owned()));
        };
        let version = engine.negotiate().ok_or(Error::TooOld { engine })?;
        self.remember_api(version);
        Ok(version)
    }

    /// What the engine is and can.
    pub fn facts(&self) -> Result<EngineFacts, Error> {
        let api = self.ping()?;
        let version: Version = self.fetch(Call::get(Target::new("version"), "read the engine's version".to_owned()))?;
        let info: Info = self.fetch(Call::get(Target::new("info"), "read the engine's facts".to_owned()))?;
        Ok(facts(api, version, info))
    }

    /// What the engine's containers run on.
    pub fn platform(&self) -> Result<Platform, Error> {
        self.fetch(Call::get(Target::new("version"), "read the engine's version".to_owned()))
    }

    /// What the volumes take on the engine's disk. The engine walks all of them, so it is slow; before API 1.42 it walks
    /// images and containers too.
    pub fn disk_usage(&self) -> Result<DiskUsage, Error> {
        let mut target = Target::new("system").word("df");
        if self.api()? >= DF_BY_TYPE {
            target = target.query("type", "volume");
        }
        let call = Call::get(target, "read the engine's disk usage".to_owned()).within(self.timeouts().slow);
        self.fetch::<Df>(call).map(DiskUsage::from)
    }
}

fn facts(api: ApiVersion, version: Version, info: Info) -> EngineFacts {
    let backing_filesystem = info.driver_status.into_iter().find_map(|pair| match <[String; 2]>::try_from(pair) {
        Ok([name, value]) if name == "Backing Filesystem" => Some(value),
        _ => None,
    });
    EngineFacts {
        version: version.version,
        api: api.to_string(),
        id: info.id,
        name: info.name,
        os: version.os,
        operating_system: info.operating_system,
        arch: version.arch,
        kernel: if info.kernel_version.is_empty() { version.kernel_version } else { info.kernel_version },
        podman: version.components.iter().any(|component| component.name.contains("Podman")),
        cgroup_version: info.cgroup_version.parse().unwrap_or(0),
        cgroup_driver: info.cgroup_driver,
        storage_driver: info.driver,
        backing_filesystem: backing_filesystem.unwrap_or_default(),
        rootless: info.security_options.iter().any(|option| option.split(',').any(|part| part == "name=rootless")),
        live_restore: info.live_restore_enabled,
        memory_limit: info.memory_limit,
        swap_limit: info.swap_limit,
        pids_limit: info.pids_limit,
        cpu_quota: info.cpu_cfs_quota,
        cpus: info.cpus,
        mem_total: info.mem_total,
        security_options: info.security_options,
        runtimes: info.runtimes.into_keys().collect(),
        root_dir: info.docker_root_dir,
        logging_driver: info.logging_driver,
        warnings: info.warnings,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Df {
    #[serde(default)]
    layers_size: Option<i64>,
    #[serde(default, deserialize_with = "or_default")]
    volumes: Vec<DfVolume>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DfVolume {
    name: String,
    #[serde(default)]
    usage_data: Option<UsageData>,
}

/// -1 stands for unknown.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UsageData {
    size: i64,
    ref_count: i64,
}

impl From<Df> for DiskUsage {
    fn from(df: Df) -> DiskUsage {
        let known = |value: i64| u64::try_from(value).ok();
        let volumes = df.volumes.into_iter().map(|volume| VolumeUsage {
            name: volume.name,
            size: volume.usage_data.as_ref().and_then(|usage| known(usage.size)),
            ref_count: volume.usage_data.as_ref().and_then(|usage| known(usage.ref_count)),
        });
        DiskUsage { layers: df.layers_size.and_then(known), volumes: volumes.collect() }
    }
}
