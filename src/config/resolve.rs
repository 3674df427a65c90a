//! The second stage: layers to one configuration, with the defaults that depend on the machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use crate::node::guard::Allowed;
use crate::node::id::{Id, MAX_ID_LEN};
use crate::node::resources::{DiskWay, Resources};
use crate::node::runtime::Runtimes;
use crate::node::spec::{MAX_BYTES, MIN_MEMORY_BYTES, SpecDefaults};
use crate::sys::text::from_hex;

use super::alerts;
use super::amount;
use super::error::{ConfigError, Place};
use super::file::{self, FileContent};
use super::flags::Flags;
use super::images;
use super::layers::Layers;
use super::network;
use super::secret::Secret;
use super::url::MasterUrl;
use super::value::{self, shown};
use super::{ClientOptions, Config, MAX_FILE_BYTES, Shutdown, Surroundings};

const MONITOR_PORT: u16 = 5001;
const MAX_LABELS: usize = 32;
const MAX_TOKEN_BYTES: usize = 4_096;
/// An engine has two or three.
const MAX_RUNTIMES: usize = 16;
const MAX_SLOTS: u32 = 256;
/// What is lent of a resource whose amount the machine doesn't tell.
const UNKNOWN_LENT_BYTES: u64 = 1 << 30;
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 86_400);
/// Above the time in which a small board unpacks a large layer, during which the engine may be silent.
const PULL_LIMIT: Duration = Duration::from_secs(600);
/// Large wheels over a slow line.
const PREPARE_LIMIT: Duration = Duration::from_secs(600);
const LONGEST_PULL: Duration = Duration::from_secs(86_400);

/// What the running worker's clients need; a mistake in a key that they don't use is not theirs to report.
pub(super) fn client_options(flags: &Flags, around: &Surroundings<'_>) -> Result<ClientOptions, ConfigError> {
    let (layers, _) = layers(flags, around)?;
    Ok(ClientOptions {
        state_dir: state_dir(&layers, around)?,
        is_state_dir_given: layers.raw("HIVEMIND_STATE").is_some(),
        monitor: monitor(&layers)?,
    })
}

/// The whole configuration.
pub(super) fn config(flags: &Flags, around: &Surroundings<'_>) -> Result<Config, ConfigError> {
    let (layers, wireguard_file) = layers(flags, around)?;
    let mut warnings = Vec::new();
    let is_plaintext_allowed = layers.read("HIVEMIND_ALLOW_PLAINTEXT", value::switch)?.unwrap_or(false);
    let state_dir = state_dir(&layers, around)?;
    let wireguard_config = layers.path("WIREGUARD_CONFIG_PATH").or(wireguard_file);
    if let Some(path) = &wireguard_config {
        warnings.push(format!(
            "WireGuard configuration {} is not used: this version builds no tunnel. Reach the master over https instead",
            path.display()
        ));
    }
    let spec_defaults = spec_defaults(&layers)?;
    let report_interval = layers.read("RESOURCE_REPORT_INTERVAL", |text| value::whole(text, 5..=3_600))?;
    Ok(Config {
        master_url: master_url(&layers, "MASTER_NODE_URL", is_plaintext_allowed)?,
        master_grpc_url: master_url(&layers, "MASTER_GRPC_URL", is_plaintext_allowed)?,
        master_ca_file: layers.path("MASTER_CA_FILE"),
        master_client_files: client_files(&layers)?,
        master_signing_key: layers.read("MASTER_SIGNING_KEY", signing_key)?,
        https_proxy: layers.read("HTTPS_PROXY", secret)?,
        http_proxy: layers.read("HTTP_PROXY", secret)?,
        no_proxy: layers.read("NO_PROXY", |text| Ok(text.to_owned()))?,
        token: token(&layers, around)?,
        is_plaintext_allowed,
        node_id: layers
            .read("NODE_ID", |text| Id::parse(text).map_err(|error| error.to_string()))?
            .map_or_else(|| node_id_from(&around.machine.hostname), Ok)?,
        labels: layers.read("NODE_LABELS", labels)?.unwrap_or_default(),
        lent: lent(&layers, around, &state_dir, &mut warnings)?,
        state_dir,
        is_state_dir_given: layers.raw("HIVEMIND_STATE").is_some(),
        is_service: is_service(around),
        docker_host: layers
            .read("DOCKER_HOST", docker_host)?
            .unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned()),
        monitor: monitor(&layers)?,
        log_level: layers.read("LOG_LEVEL", value::log_level)?.unwrap_or(LevelFilter::Info),
        log_file: layers.path("LOG_FILE"),
        report_interval: Duration::from_secs(report_interval.unwrap_or(30)),
        package_index: network::package_index(&layers, &spec_defaults.network)?,
        egress_dns: network::name_servers(&layers, &spec_defaults.network)?,
        spec_defaults,
        fetch_allowed: layers.read("HIVEMIND_FETCH_ALLOW", Allowed::parse)?.unwrap_or_default(),
        fetch_ca_file: layers.path("HIVEMIND_FETCH_CA_FILE"),
        registry_login: images::login(&layers)?,
        pull_limit: layers
            .read("HIVEMIND_PULL_LIMIT", |text| duration_in(text, LONGEST_PULL, "24h"))?
            .unwrap_or(PULL_LIMIT),
        alerts: layers.read("HIVEMIND_ALERTS", alerts::thresholds)?.unwrap_or_default(),
        task_disk: layers.read("HIVEMIND_TASK_DISK", task_disk)?.unwrap_or_default(),
        shutdown: layers.read("HIVEMIND_SHUTDOWN", shutdown)?.unwrap_or(Shutdown::Stop),
        crash_limit: layers.read("HIVEMIND_CRASH_LIMIT", crash_limit)?.unwrap_or(3),
        log_budget_bytes: layers
            .read("HIVEMIND_LOG_BUDGET", |text| size_in(text, 64 << 10, 16 << 30))?
            .unwrap_or(64 << 20),
        waiting_logs_bytes: layers
            .read("HIVEMIND_WAITING_LOGS", |text| size_in(text, 16 << 20, 1 << 40))?
            .unwrap_or(1 << 30),
        bundles_bytes: layers.read("HIVEMIND_BUNDLES", |text| size_in(text, 0, 1 << 40))?.unwrap_or(256 << 20),
        bundle_age: layers.read("HIVEMIND_BUNDLE_AGE", bundle_age)?.unwrap_or(Duration::from_secs(7 * 86_400)),
        kept_bytes: layers.read("HIVEMIND_KEPT", |text| size_in(text, 0, 1 << 40))?.unwrap_or(1 << 30),
        package_index_ca_file: layers.path("HIVEMIND_PACKAGE_INDEX_CA_FILE"),
        prepare_limit: layers
            .read("HIVEMIND_PREPARE_LIMIT", |text| duration_in(text, LONGEST_PULL, "24h"))?
            .unwrap_or(PREPARE_LIMIT),
        packages_bytes: layers.read("HIVEMIND_PACKAGES", |text| size_in(text, 1 << 20, MAX_BYTES))?.unwrap_or(4 << 30),
        package_age: layers.read("HIVEMIND_PACKAGE_AGE", bundle_age)?.unwrap_or(Duration::from_secs(30 * 86_400)),
        wireguard_config,
        warnings,
        places: layers.places(),
    })
}

/// The layers of this start, and the path of `--config` when it is a WireGuard file.
fn layers<'a>(flags: &'a Flags, around: &'a Surroundings<'_>) -> Result<(Layers<'a>, Option<PathBuf>), ConfigError> {
    let mut layers = Layers { flags: &flags.settings, env: around.env, file: Vec::new(), file_path: PathBuf::new() };
    let Some(path) = &flags.config_file else {
        return Ok((layers, None));
    };
    let refuse = |message: String| ConfigError::new(Place::File { path: path.clone(), line: 0 }, message);
    let bytes = (around.read_file)(path).map_err(|error| refuse(format!("can't be read: {error}")))?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(refuse(format!("is larger than {} KiB", MAX_FILE_BYTES >> 10)));
    }
    let text = String::from_utf8(bytes).map_err(|_| refuse("is not UTF-8 text".to_owned()))?;
    match file::parse(path, &text)? {
        FileContent::Settings(entries) => {
            layers.file = entries;
            layers.file_path.clone_from(path);
            Ok((layers, None))
        }
        FileContent::WireGuard => Ok((layers, Some(path.clone()))),
    }
}

/// Not INVOCATION_ID: a shell in a session of systemd's has it too.
fn is_service(around: &Surroundings<'_>) -> bool {
    around.is_root || service_folder(around).is_some()
}

/// The first folder of systemd's `StateDirectory=`, which only a service has.
fn service_folder(around: &Surroundings<'_>) -> Option<PathBuf> {
    let folders = (around.env)("STATE_DIRECTORY")?;
    let first = folders.to_str()?.split(':').next()?;
    Some(PathBuf::from(first)).filter(|path| path.is_absolute())
}

fn state_dir(layers: &Layers<'_>, around: &Surroundings<'_>) -> Result<PathBuf, ConfigError> {
    if let Some(path) = layers.path("HIVEMIND_STATE") {
        return Ok(path);
    }
    if let Some(folder) = service_folder(around) {
        return Ok(folder);
    }
    if around.is_root {
        return Ok("/var/lib/hivemind".into());
    }
    let absolute = |name: &str| (around.env)(name).map(PathBuf::from).filter(|path| path.is_absolute());
    match (absolute("XDG_STATE_HOME"), absolute("HOME")) {
        (Some(base), _) => Ok(base.join("hivemind")),
        (None, Some(home)) => Ok(home.join(".local/state/hivemind")),
        (None, None) => Err(ConfigError::new(
            Place::Default,
            "HIVEMIND_STATE has no default without HOME: set it, or give --state DIR",
        )),
    }
}

fn monitor(layers: &Layers<'_>) -> Result<SocketAddr, ConfigError> {
    let address = layers.read("MONITOR_ADDRESS", |text| {
        text.trim()
            .parse::<IpAddr>()
            .map_err(|_| format!("{} is no IP address: write 127.0.0.1, ::1, or 0.0.0.0 for all", shown(text)))
    })?;
    let port = layers.read("MONITOR_PORT", |text| {
        let number = value::whole(text, 0..=65_535)?;
        u16::try_from(number).map_err(|error| error.to_string())
    })?;
    Ok(SocketAddr::new(address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), port.unwrap_or(MONITOR_PORT)))
}

fn master_url(layers: &Layers<'_>, key: &str, is_plaintext_allowed: bool) -> Result<Option<MasterUrl>, ConfigError> {
    layers.read(key, |text| {
        let url = MasterUrl::parse(text)?;
        if url.is_https || url.is_loopback() || is_plaintext_allowed {
            Ok(url)
        } else {
            Err(format!(
                "would send the token in clear text to {}: write https://, or set HIVEMIND_ALLOW_PLAINTEXT=yes",
                url.host
            ))
        }
    })
}

/// Certificate and key, which are of no use one without the other.
fn client_files(layers: &Layers<'_>) -> Result<Option<(PathBuf, PathBuf)>, ConfigError> {
    let names = ["MASTER_CLIENT_CERT_FILE", "MASTER_CLIENT_KEY_FILE"];
    match names.map(|name| layers.path(name)) {
        [Some(certificate), Some(key)] => Ok(Some((certificate, key))),
        [None, None] => Ok(None),
        [Some(_), None] => Err(layers.refuse(names[0], "is set without MASTER_CLIENT_KEY_FILE: set both")),
        [None, Some(_)] => Err(layers.refuse(names[1], "is set without MASTER_CLIENT_CERT_FILE: set both")),
    }
}

fn crash_limit(text: &str) -> Result<u32, String> {
    u32::try_from(value::whole(text, 1..=1_000_000)?).map_err(|error| error.to_string())
}

fn bundle_age(text: &str) -> Result<Duration, String> {
    let age = value::duration(text)?;
    let is_in = (Duration::from_secs(60)..=LONGEST_TIMEOUT).contains(&age);
    is_in.then_some(age).ok_or_else(|| format!("{} is out of range: from 1m to 365d", shown(text)))
}

fn signing_key(text: &str) -> Result<[u8; 32], String> {
    from_hex(text.trim())
        .ok_or_else(|| format!("{} is no Ed25519 public key: write its 32 bytes as 64 hex digits", shown(text)))
}

/// A text that is looked into where it is used.
fn secret(text: &str) -> Result<Secret<String>, String> {
    Ok(Secret::new(text.to_owned()))
}

fn token(layers: &Layers<'_>, around: &Surroundings<'_>) -> Result<Option<Secret<String>>, ConfigError> {
    let direct = layers.read("HIVEMIND_TOKEN", checked_token)?;
    let Some(path) = layers.path("HIVEMIND_TOKEN_FILE") else {
        return Ok(direct);
    };
    let refuse = |message: String| layers.refuse("HIVEMIND_TOKEN_FILE", &message);
    if direct.is_some() {
        return Err(refuse("is set, and HIVEMIND_TOKEN too: set only one".to_owned()));
    }
    let bytes =
        (around.read_file)(&path).map_err(|error| refuse(format!("{} can't be read: {error}", path.display())))?;
    std::str::from_utf8(&bytes)
        .map_err(|_| "is not text".to_owned())
        .and_then(checked_token)
        .map(Some)
        .map_err(|problem| refuse(format!("{} {problem}", path.display())))
}

/// A token goes into one header-like field: one line of visible ASCII.
fn checked_token(text: &str) -> Result<Secret<String>, String> {
    let token = text.trim();
    if token.is_empty() {
        Err("holds no token".to_owned())
    } else if token.len() > MAX_TOKEN_BYTES {
        Err(format!("is longer than {MAX_TOKEN_BYTES} bytes"))
    } else if token.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(Secret::new(token.to_owned()))
    } else {
        Err("has a space, line break or other character that no token has".to_owned())
    }
}

/// The host name as a node id: other characters become '-'.
fn node_id_from(hostname: &str) -> Result<Id, ConfigError> {
    let mapped: String =
        hostname.chars().map(|c| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '-' }).collect();
    let mut name = mapped.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() {
        name = "node";
    }
    Id::parse(&name[..name.len().min(MAX_ID_LEN)])
        .map_err(|error| ConfigError::new(Place::Default, format!("NODE_ID from the host name {error}: set NODE_ID")))
}

fn labels(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut labels: Vec<(String, String)> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, value) =
            part.split_once('=').ok_or_else(|| format!("{} has no '=': write key=value,key=value", shown(part)))?;
        let (key, value) = (key.trim(), value.trim());
        Id::parse(key).map_err(|error| format!("{}: the key {error}", shown(part)))?;
        if !value.is_empty() {
            Id::parse(value).map_err(|error| format!("{}: the value {error}", shown(part)))?;
        }
        if labels.iter().any(|(other, _)| other == key) {
            return Err(format!("{} repeats a key", shown(part)));
        }
        labels.push((key.to_owned(), value.to_owned()));
    }
    if labels.len() > MAX_LABELS {
        return Err(format!("has {} labels, at most {MAX_LABELS} are allowed", labels.len()));
    }
    Ok(labels)
}

fn docker_host(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_unix = text.strip_prefix("unix://").is_some_and(|path| path.starts_with('/') && path.len() > 1);
    let is_pipe = text.strip_prefix("npipe://").is_some_and(|path| path.len() > 1);
    if is_unix || is_pipe {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{} is not an engine on this machine: write unix:///path/to/docker.sock (npipe:////./pipe/name in Windows builds; tcp:// and ssh:// are not taken)",
            shown(text)
        ))
    }
}

fn shutdown(text: &str) -> Result<Shutdown, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "stop" => Ok(Shutdown::Stop),
        "finish" => Ok(Shutdown::Finish),
        "leave" => Ok(Shutdown::Leave),
        _ => Err(format!("{} is not right: write stop, finish or leave", shown(text))),
    }
}

fn task_disk(text: &str) -> Result<DiskWay, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "auto" => Ok(DiskWay::Auto),
        "watch" => Ok(DiskWay::Watch),
        "volume" => Ok(DiskWay::Volume),
        _ => Err(format!("{} is not right: write auto, watch or volume", shown(text))),
    }
}

fn spec_defaults(layers: &Layers<'_>) -> Result<SpecDefaults, ConfigError> {
    let read = |key: &str| layers.read(key, |text| duration_in(text, LONGEST_TIMEOUT, "365d"));
    let defaults = SpecDefaults::default();
    let max_timeout = read("HIVEMIND_MAX_TIMEOUT")?.unwrap_or(defaults.max_timeout);
    let timeout = read("HIVEMIND_TIMEOUT")?;
    if timeout.is_some_and(|timeout| timeout > max_timeout) {
        return Err(layers
            .refuse("HIVEMIND_TIMEOUT", &format!("is longer than HIVEMIND_MAX_TIMEOUT, {} s", max_timeout.as_secs())));
    }
    let limit = layers.read("HIVEMIND_FETCH_LIMIT", |text| size_in(text, 1 << 20, 1 << 40))?;
    Ok(SpecDefaults {
        timeout: timeout.unwrap_or(defaults.timeout.min(max_timeout)),
        max_timeout,
        max_fetch_bytes: limit.unwrap_or(defaults.max_fetch_bytes),
        network: network::policy(layers)?,
        images: images::policy(layers)?,
        runtimes: layers.read("HIVEMIND_RUNTIMES", runtimes)?.unwrap_or_default(),
    })
}

fn runtimes(text: &str) -> Result<Runtimes, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let name = |name| Id::parse(name).map_err(|error| format!("{}: the name {error}", shown(name)));
    let names: Vec<Id> = names.map(name).collect::<Result<_, _>>()?;
    if names.len() > MAX_RUNTIMES {
        return Err(format!("has {} names, at most {MAX_RUNTIMES} are allowed", names.len()));
    }
    Ok(Runtimes::Only(names))
}

/// A duration from one second to `max`, which is called so.
fn duration_in(text: &str, max: Duration, max_words: &str) -> Result<Duration, String> {
    let duration = value::duration(text)?;
    if (Duration::from_secs(1)..=max).contains(&duration) {
        Ok(duration)
    } else {
        Err(format!("{} is out of range: from 1s to {max_words}", shown(text)))
    }
}

fn size_in(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let bytes = value::size(text)?;
    if (min..=max).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("{} is out of range: from {} to {}", shown(text), amount::bytes(min), amount::bytes(max)))
    }
}

fn lent(
    layers: &Layers<'_>,
    around: &Surroundings<'_>,
    state_dir: &std::path::Path,
    warnings: &mut Vec<String>,
) -> Result<Resources, ConfigError> {
    let machine = around.machine;
    let cpus = machine.cpus.max(1);
    let all_cpus = u64::from(cpus) * 1_000;
    let mut cpu_millis = layers.read("HIVEMIND_CPUS", value::cpu_millis)?.unwrap_or(all_cpus);
    if cpu_millis > all_cpus {
        warnings.push(format!("HIVEMIND_CPUS is more than this machine has: {cpus} are lent"));
        cpu_millis = all_cpus;
    }
    let has_memory = (machine.memory_bytes > 0).then_some(machine.memory_bytes);
    let asked = layers.read("HIVEMIND_MEMORY", |text| size_in(text, MIN_MEMORY_BYTES, MAX_BYTES))?;
    let memory_bytes = match (asked, has_memory) {
        (Some(asked), Some(has)) if asked > has => {
            warnings.push(format!("HIVEMIND_MEMORY is more than this machine has: {} MiB are lent", has >> 20));
            has
        }
        (Some(asked), _) => asked,
        (None, Some(has)) => has / 5 * 4,
        (None, None) => {
            warnings
                .push("the machine doesn't tell its memory: 1 GiB is lent, HIVEMIND_MEMORY changes that".to_owned());
            UNKNOWN_LENT_BYTES
        }
    };
    let disk_bytes = match layers.read("HIVEMIND_DISK", |text| size_in(text, 1 << 20, MAX_BYTES))? {
        Some(asked) => asked,
        None => (around.disk_free)(state_dir).map_or_else(
            || {
                warnings.push(
                    "the free space of the state folder is unknown: 1 GiB is lent, HIVEMIND_DISK changes that"
                        .to_owned(),
                );
                UNKNOWN_LENT_BYTES
            },
            |free| free / 2,
        ),
    };
    let slots = layers.read("HIVEMIND_SLOTS", |text| value::whole(text, 1..=u64::from(MAX_SLOTS)))?;
    Ok(Resources {
        cpu_millis,
        memory_bytes,
        disk_bytes,
        slots: slots.and_then(|slots| u32::try_from(slots).ok()).unwrap_or(cpus.min(MAX_SLOTS)),
    })
}
