//! Flags, environment, file and defaults, merged into one immutable configuration.
//!
//! Two stages: the layers are parsed each for itself, then resolved once into a [`Config`] that can't be wrong. Pure:
//! what it must know of the machine comes in through [`Surroundings`].

mod alerts;
pub(crate) mod amount;
mod error;
mod file;
mod flags;
mod images;
pub mod keys;
mod layers;
mod near;
mod network;
mod resolve;
mod secret;
pub mod taskfile;
mod url;
mod value;

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

use crate::node::alerts::Thresholds;
use crate::node::guard::Allowed;
use crate::node::id::Id;
use crate::node::resources::{DiskWay, Resources};
use crate::node::snapshot::MachineFacts;
use crate::node::spec::SpecDefaults;
use crate::node::url::Url;

pub use self::error::{ConfigError, EXIT_CONFIG, EXIT_USAGE, Place};
pub use self::file::MAX_FILE_BYTES;
pub use self::flags::{COMMANDS, ClientCommand, Command, Format, Logs, Submit};
pub use self::near::nearest;
pub use self::secret::Secret;
pub use self::url::MasterUrl;

/// Name of the control socket in the state folder.
pub const CONTROL_SOCKET: &str = "control.sock";
/// Where a service has its control socket, when it runs on the default state folder and the folder above is there.
pub const SERVICE_SOCKET: &str = "/run/hivemind/control.sock";

/// What a configuration depends on beside the command line.
pub struct Surroundings<'a> {
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// Reads a small file; may stop behind [`MAX_FILE_BYTES`] bytes.
    pub read_file: &'a dyn Fn(&Path) -> io::Result<Vec<u8>>,
    /// Free bytes of the file system that holds a path, or would hold it.
    pub disk_free: &'a dyn Fn(&Path) -> Option<u64>,
    /// The machine; a memory of 0 bytes means unknown.
    pub machine: &'a MachineFacts,
    /// Whether the process runs as root.
    pub is_root: bool,
}

/// What a stop of the worker does with running tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// SIGTERM, a short grace, then the end.
    Stop,
    /// They run to their end first.
    Finish,
    /// They run on and the next start adopts them.
    Leave,
}

/// Everything that the owner decides. Each field has the meaning, unit, range and default of its key in [`keys::KEYS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `MASTER_NODE_URL`; without it and the next there is nobody to work for.
    pub master_url: Option<MasterUrl>,
    /// `MASTER_GRPC_URL`.
    pub master_grpc_url: Option<MasterUrl>,
    /// `MASTER_CA_FILE`.
    pub master_ca_file: Option<PathBuf>,
    /// `MASTER_CLIENT_CERT_FILE` and `MASTER_CLIENT_KEY_FILE`.
    pub master_client_files: Option<(PathBuf, PathBuf)>,
    /// `MASTER_SIGNING_KEY`.
    pub master_signing_key: Option<[u8; 32]>,
    /// `HTTPS_PROXY`.
    pub https_proxy: Option<Secret<String>>,
    /// `HTTP_PROXY`.
    pub http_proxy: Option<Secret<String>>,
    /// `NO_PROXY`.
    pub no_proxy: Option<String>,
    /// `HIVEMIND_TOKEN`, or the content of `HIVEMIND_TOKEN_FILE`.
    pub token: Option<Secret<String>>,
    /// `HIVEMIND_ALLOW_PLAINTEXT`.
    pub is_plaintext_allowed: bool,
    /// `NODE_ID`.
    pub node_id: Id,
    /// `NODE_LABELS`, in the order of the text, keys unique.
    pub labels: Vec<(String, String)>,
    /// `HIVEMIND_STATE`.
    pub state_dir: PathBuf,
    /// Whether flag, environment or file names the state folder.
    pub is_state_dir_given: bool,
    /// Whether it runs as a service: root, or a unit of systemd's with StateDirectory=.
    pub is_service: bool,
    /// `DOCKER_HOST`: begins with `unix://` or `npipe://`.
    pub docker_host: String,
    /// `MONITOR_ADDRESS` and `MONITOR_PORT`; port 0 takes a free one.
    pub monitor: SocketAddr,
    /// `LOG_LEVEL`.
    pub log_level: LevelFilter,
    /// `LOG_FILE`; standard error without it.
    pub log_file: Option<PathBuf>,
    /// `RESOURCE_REPORT_INTERVAL`.
    pub report_interval: Duration,
    /// `HIVEMIND_CPUS`, `HIVEMIND_MEMORY`, `HIVEMIND_DISK`, `HIVEMIND_SLOTS`.
    pub lent: Resources,
    /// `HIVEMIND_TIMEOUT`, `HIVEMIND_MAX_TIMEOUT`, `HIVEMIND_FETCH_LIMIT`, `HIVEMIND_TASK_IMAGES`, `HIVEMIND_TASK_NETWORK`,
    /// `HIVEMIND_EGRESS_ALLOW` and `HIVEMIND_RUNTIMES`.
    pub spec_defaults: SpecDefaults,
    /// `HIVEMIND_EGRESS_DNS`.
    pub egress_dns: Vec<Ipv4Addr>,
    /// `HIVEMIND_FETCH_ALLOW`.
    pub fetch_allowed: Allowed,
    /// `HIVEMIND_FETCH_CA_FILE`.
    pub fetch_ca_file: Option<PathBuf>,
    /// `HIVEMIND_REGISTRY_AUTH_FILE` and `HIVEMIND_TASK_REGISTRIES`.
    pub registry_login: Option<(PathBuf, Vec<String>)>,
    /// `HIVEMIND_PULL_LIMIT`.
    pub pull_limit: Duration,
    /// `HIVEMIND_ALERTS`.
    pub alerts: Thresholds,
    /// `HIVEMIND_TASK_DISK`.
    pub task_disk: DiskWay,
    /// `HIVEMIND_SHUTDOWN`.
    pub shutdown: Shutdown,
    /// `HIVEMIND_CRASH_LIMIT`.
    pub crash_limit: u32,
    /// `HIVEMIND_LOG_BUDGET`: bytes of output that are kept of each attempt.
    pub log_budget_bytes: u64,
    /// `HIVEMIND_WAITING_LOGS`: bytes of output of all attempts together that wait for the master.
    pub waiting_logs_bytes: u64,
    /// `HIVEMIND_BUNDLES`: bytes of the bundles of failed attempts, all together.
    pub bundles_bytes: u64,
    /// `HIVEMIND_BUNDLE_AGE`.
    pub bundle_age: Duration,
    /// `HIVEMIND_KEPT`: bytes of output files that are kept for later tasks.
    pub kept_bytes: u64,
    /// `HIVEMIND_PACKAGE_INDEX`.
    pub package_index: Option<Url>,
    /// `HIVEMIND_PACKAGE_INDEX_CA_FILE`.
    pub package_index_ca_file: Option<PathBuf>,
    /// `HIVEMIND_PREPARE_LIMIT`.
    pub prepare_limit: Duration,
    /// `HIVEMIND_PACKAGES`: bytes of installed packages, all together.
    pub packages_bytes: u64,
    /// `HIVEMIND_PACKAGE_AGE`.
    pub package_age: Duration,
    /// `WIREGUARD_CONFIG_PATH`, or a `--config` that is one.
    pub wireguard_config: Option<PathBuf>,
    /// What the owner should know about this configuration, in words.
    pub warnings: Vec<String>,
    /// Which keys are set, and where.
    pub places: Vec<(&'static str, Place)>,
}

/// What a client of a running worker needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Where the control socket and the token of the monitor are.
    pub state_dir: PathBuf,
    /// Whether flag, environment or file names it.
    pub is_state_dir_given: bool,
    /// Where the monitor page is, as far as this configuration says.
    pub monitor: SocketAddr,
}

/// A command with as much configuration as it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// Print help.
    Help(Option<String>),
    /// Print the version.
    Version,
    /// Run the node.
    Run(Box<Config>),
    /// Run the node and a small master.
    Standalone(Box<Config>),
    /// Check the machine.
    Doctor(Box<Config>),
    /// Ask the monitor whether all is well.
    Healthcheck(ClientOptions),
    /// Ask a running worker for something.
    Client(ClientCommand, ClientOptions),
}

/// Reads a command line (without the program's name) and what it needs of the configuration.
///
/// # Errors
/// Says where the mistake is and what would be right; ends the process with [`ConfigError::exit_code`].
pub fn load(args: impl IntoIterator<Item = OsString>, surroundings: &Surroundings<'_>) -> Result<Loaded, ConfigError> {
    let flags = flags::parse(args)?;
    Ok(match flags.command {
        Command::Help(topic) => Loaded::Help(topic),
        Command::Version => Loaded::Version,
        Command::Run => Loaded::Run(Box::new(resolve::config(&flags, surroundings)?)),
        Command::Standalone => Loaded::Standalone(Box::new(resolve::config(&flags, surroundings)?)),
        Command::Doctor => Loaded::Doctor(Box::new(resolve::config(&flags, surroundings)?)),
        Command::Healthcheck => Loaded::Healthcheck(resolve::client_options(&flags, surroundings)?),
        Command::Client(ref command) => Loaded::Client(command.clone(), resolve::client_options(&flags, surroundings)?),
    })
}

/// What a second reading of the configuration brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// The running configuration with what can change live.
    pub config: Config,
    /// Keys that changed.
    pub changed: Vec<&'static str>,
    /// Keys that differ and need a restart.
    pub needs_restart: Vec<&'static str>,
}

impl Config {
    /// Where the control socket belongs: in a service's run-time folder (`is_run_dir_there`: the folder of
    /// [`SERVICE_SOCKET`] exists), else in the state folder. The clients look in the same places.
    pub fn control_socket(&self, is_run_dir_there: bool) -> PathBuf {
        if self.is_service && !self.is_state_dir_given && is_run_dir_there {
            SERVICE_SOCKET.into()
        } else {
            self.state_dir.join(CONTROL_SOCKET)
        }
    }

    /// What sets this key, for a message on its value that is not known to be wrong before it is used.
    pub fn refuse(&self, key: &str, message: &str) -> String {
        match self.places.iter().find(|(name, _)| *name == key) {
            Some((_, place @ Place::Env(_))) => format!("{place}: {message}"),
            Some((_, place)) => format!("{place}: {key} {message}"),
            None => format!("{key} {message}"),
        }
    }

    /// Takes over from `new` what can change while the worker runs, and says what can't.
    pub fn reload(&self, new: &Self) -> Reload {
        let mut new = new.clone();
        let has_disk = |config: &Self| config.places.iter().any(|(name, _)| *name == "HIVEMIND_DISK");
        if !has_disk(self) && !has_disk(&new) {
            // The default is a part of what is free, which moves with each file: that is no change of the owner's.
            new.lent.disk_bytes = self.lent.disk_bytes;
        }
        let new = &new;
        let mut reload = Reload {
            config: Self {
                log_level: new.log_level,
                report_interval: new.report_interval,
                lent: new.lent,
                spec_defaults: SpecDefaults {
                    // The firewall's rules were made for it.
                    network: self.spec_defaults.network.clone(),
                    ..new.spec_defaults.clone()
                },
                alerts: new.alerts,
                shutdown: new.shutdown,
                warnings: new.warnings.clone(),
                places: new.places.clone(),
                ..self.clone()
            },
            changed: Vec::new(),
            needs_restart: Vec::new(),
        };
        for (name, is_same) in self.comparison(new) {
            let is_live = keys::find(name).is_some_and(|key| key.is_live);
            match (is_same, is_live) {
                (true, _) => {}
                (false, true) => reload.changed.push(name),
                (false, false) => reload.needs_restart.push(name),
            }
        }
        reload
    }

    fn comparison(&self, new: &Self) -> [(&'static str, bool); 52] {
        let (old_spec, new_spec) = (&self.spec_defaults, &new.spec_defaults);
        let (old_login, new_login) = (self.registry_login.as_ref(), new.registry_login.as_ref());
        let (old_client, new_client) = (self.master_client_files.as_ref(), new.master_client_files.as_ref());
        [
            ("MASTER_NODE_URL", self.master_url == new.master_url),
            ("MASTER_GRPC_URL", self.master_grpc_url == new.master_grpc_url),
            ("MASTER_CA_FILE", self.master_ca_file == new.master_ca_file),
            ("MASTER_CLIENT_CERT_FILE", old_client.map(|files| &files.0) == new_client.map(|files| &files.0)),
            ("MASTER_CLIENT_KEY_FILE", old_client.map(|files| &files.1) == new_client.map(|files| &files.1)),
            ("MASTER_SIGNING_KEY", self.master_signing_key == new.master_signing_key),
            ("HTTPS_PROXY", self.https_proxy == new.https_proxy),
            ("HTTP_PROXY", self.http_proxy == new.http_proxy),
            ("NO_PROXY", self.no_proxy == new.no_proxy),
            ("HIVEMIND_TOKEN", self.token == new.token),
            ("HIVEMIND_ALLOW_PLAINTEXT", self.is_plaintext_allowed == new.is_plaintext_allowed),
            ("NODE_ID", self.node_id == new.node_id),
            ("NODE_LABELS", self.labels == new.labels),
            ("HIVEMIND_STATE", self.state_dir == new.state_dir),
            ("DOCKER_HOST", self.docker_host == new.docker_host),
            ("MONITOR_ADDRESS", self.monitor.ip() == new.monitor.ip()),
            ("MONITOR_PORT", self.monitor.port() == new.monitor.port()),
            ("LOG_LEVEL", self.log_level == new.log_level),
            ("LOG_FILE", self.log_file == new.log_file),
            ("RESOURCE_REPORT_INTERVAL", self.report_interval == new.report_interval),
            ("HIVEMIND_CPUS", self.lent.cpu_millis == new.lent.cpu_millis),
            ("HIVEMIND_MEMORY", self.lent.memory_bytes == new.lent.memory_bytes),
            ("HIVEMIND_DISK", self.lent.disk_bytes == new.lent.disk_bytes),
            ("HIVEMIND_SLOTS", self.lent.slots == new.lent.slots),
            ("HIVEMIND_TIMEOUT", old_spec.timeout == new_spec.timeout),
            ("HIVEMIND_MAX_TIMEOUT", old_spec.max_timeout == new_spec.max_timeout),
            ("HIVEMIND_FETCH_ALLOW", self.fetch_allowed == new.fetch_allowed),
            ("HIVEMIND_FETCH_CA_FILE", self.fetch_ca_file == new.fetch_ca_file),
            ("HIVEMIND_FETCH_LIMIT", old_spec.max_fetch_bytes == new_spec.max_fetch_bytes),
            ("HIVEMIND_PULL_LIMIT", self.pull_limit == new.pull_limit),
            ("HIVEMIND_TASK_IMAGES", old_spec.images.is_same(&new_spec.images)),
            ("HIVEMIND_TASK_REGISTRIES", old_login.map(|login| &login.1) == new_login.map(|login| &login.1)),
            ("HIVEMIND_REGISTRY_AUTH_FILE", old_login.map(|login| &login.0) == new_login.map(|login| &login.0)),
            ("HIVEMIND_TASK_NETWORK", old_spec.network.is_egress_allowed == new_spec.network.is_egress_allowed),
            ("HIVEMIND_EGRESS_DNS", self.egress_dns == new.egress_dns),
            ("HIVEMIND_EGRESS_ALLOW", old_spec.network.allow == new_spec.network.allow),
            ("HIVEMIND_ALERTS", self.alerts == new.alerts),
            ("HIVEMIND_RUNTIMES", old_spec.runtimes == new_spec.runtimes),
            ("HIVEMIND_TASK_DISK", self.task_disk == new.task_disk),
            ("HIVEMIND_SHUTDOWN", self.shutdown == new.shutdown),
            ("HIVEMIND_CRASH_LIMIT", self.crash_limit == new.crash_limit),
            ("HIVEMIND_LOG_BUDGET", self.log_budget_bytes == new.log_budget_bytes),
            ("HIVEMIND_WAITING_LOGS", self.waiting_logs_bytes == new.waiting_logs_bytes),
            ("HIVEMIND_BUNDLES", self.bundles_bytes == new.bundles_bytes),
            ("HIVEMIND_BUNDLE_AGE", self.bundle_age == new.bundle_age),
            ("HIVEMIND_KEPT", self.kept_bytes == new.kept_bytes),
            ("HIVEMIND_PACKAGE_INDEX", self.package_index == new.package_index),
            ("HIVEMIND_PACKAGE_INDEX_CA_FILE", self.package_index_ca_file == new.package_index_ca_file),
            ("HIVEMIND_PREPARE_LIMIT", self.prepare_limit == new.prepare_limit),
            ("HIVEMIND_PACKAGES", self.packages_bytes == new.packages_bytes),
            ("HIVEMIND_PACKAGE_AGE", self.package_age == new.package_age),
            ("WIREGUARD_CONFIG_PATH", self.wireguard_config == new.wireguard_config),
        ]
    }
}

/// The address that a client on this machine uses for a listener at `address`.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
