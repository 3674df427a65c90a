//! The configuration as a whole: precedence of the layers, defaults by machine, and each message of a bad value.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hivemind_worker::config::{self, Config, ConfigError, Loaded, Shutdown, Surroundings};
use hivemind_worker::node::image::ImageRef;
use hivemind_worker::node::resources::DiskWay;
use hivemind_worker::node::snapshot::MachineFacts;
use log::LevelFilter;

#[derive(Clone, Default)]
struct Scene {
    args: Vec<String>,
    env: HashMap<String, String>,
    files: HashMap<PathBuf, String>,
    is_root: bool,
    memory_bytes: u64,
    disk_free: u64,
}

impl Scene {
    fn new() -> Self {
        Self { memory_bytes: 10 << 30, disk_free: 100 << 30, ..Self::default() }.env("HOME", "/home/u")
    }

    fn args(mut self, args: &str) -> Self {
        self.args = args.split_whitespace().map(str::to_owned).collect();
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn file(mut self, path: &str, text: &str) -> Self {
        self.files.insert(path.into(), text.to_owned());
        self
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        let env = |name: &str| self.env.get(name).map(OsString::from);
        let read_file = |path: &Path| match self.files.get(path) {
            Some(text) => Ok(text.clone().into_bytes()),
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        let machine = MachineFacts {
            hostname: "_my host.example".to_owned(),
            cpus: 4,
            memory_bytes: self.memory_bytes,
            ..MachineFacts::default()
        };
        let surroundings = Surroundings {
            env: &env,
            read_file: &read_file,
            disk_free: &|_| Some(self.disk_free),
            machine: &machine,
            is_root: self.is_root,
        };
        config::load(self.args.iter().map(OsString::from), &surroundings)
    }

    fn config(&self) -> Config {
        match self.load().unwrap() {
            Loaded::Run(config) => *config,
            other => panic!("{other:?}"),
        }
    }

    fn error(&self) -> (String, u8) {
        let error = self.load().unwrap_err();
        (error.to_string(), error.exit_code())
    }
}

#[test]
fn defaults_follow_the_machine() {
    let config = Scene::new().config();
    assert_eq!(config.master_url, None);
    assert_eq!(config.node_id.as_str(), "my-host.example");
    assert_eq!(config.state_dir, Path::new("/home/u/.local/state/hivemind"));
    assert_eq!(config.docker_host, "unix:///var/run/docker.sock");
    assert_eq!(config.monitor.to_string(), "127.0.0.1:5001");
    assert_eq!(config.log_level, LevelFilter::Info);
    assert_eq!(config.report_interval, Duration::from_secs(30));
    assert_eq!(config.lent.cpu_millis, 4_000);
    assert_eq!(config.lent.memory_bytes, 8 << 30);
    assert_eq!(config.lent.disk_bytes, 50 << 30);
    assert_eq!(config.lent.slots, 4);
    assert_eq!(config.spec_defaults.timeout, Duration::from_secs(3_600));
    assert_eq!(config.shutdown, Shutdown::Stop);
    assert_eq!(config.log_budget_bytes, 64 << 20);
    assert!(config.warnings.is_empty());
}

#[test]
fn state_folder_follows_service_and_xdg() {
    let at = |scene: Scene| scene.config().state_dir;
    let base = Scene::new();
    let by_hand = Path::new("/home/u/.local/state/hivemind");
    assert_eq!(at(base.clone().env("XDG_STATE_HOME", "/x")), Path::new("/x/hivemind"));
    assert_eq!(at(base.clone().env("INVOCATION_ID", "1")), by_hand, "a shell under systemd has it too");
    let unit = |folder: &str| base.clone().env("STATE_DIRECTORY", folder);
    assert_eq!(at(unit("/var/lib/hivemind")), Path::new("/var/lib/hivemind"));
    assert_eq!(at(unit("/var/lib/one:/var/lib/two")), Path::new("/var/lib/one"));
    assert_eq!(at(unit("relative")), by_hand);
    let root = Scene { is_root: true, ..base.clone() };
    assert_eq!(at(root), Path::new("/var/lib/hivemind"));
    assert_eq!(at(base.clone().env("XDG_STATE_HOME", "relative")), by_hand);
    let (message, code) = base.env("HOME", "").error();
    assert_eq!(message, "default: HIVEMIND_STATE has no default without HOME: set it, or give --state DIR");
    assert_eq!(code, 78);
}

#[test]
fn flag_wins_over_environment_over_file_over_default() {
    let seen = |scene: &Scene| {
        let config = scene.config();
        (config.log_level, config.node_id.to_string(), config.monitor.port())
    };
    let text = "LOG_LEVEL=WARNING\nNODE_ID=file\nMONITOR_PORT=1\nHIVEMIND_SLOTS=\n";
    let scene = Scene::new().file("/c", text).args("--config /c");
    assert_eq!(seen(&scene), (LevelFilter::Warn, "file".to_owned(), 1));
    assert_eq!(scene.config().lent.slots, 4, "an empty value counts as absent");
    let scene = scene.env("NODE_ID", "env").env("MONITOR_PORT", "2").env("LOG_LEVEL", "");
    assert_eq!(seen(&scene), (LevelFilter::Warn, "env".to_owned(), 2));
    let scene = scene.args("--config /c --node-id flag --debug --monitor-port 3 --monitor-port 4");
    assert_eq!(seen(&scene), (LevelFilter::Debug, "flag".to_owned(), 4));
    let config = scene.config();
    let places: Vec<String> = config.places.iter().map(|(key, place)| format!("{key} {place}")).collect();
    assert!(places.contains(&"NODE_ID flag --node-id".to_owned()), "{places:?}");
}

#[test]
fn reads_all_kinds_of_values() {
    let text = "MASTER_NODE_URL=https://m.example\nMASTER_GRPC_URL=https://g.example:50051\nMASTER_CA_FILE=/ca.pem\n\
                MASTER_CLIENT_CERT_FILE=/node.pem\nMASTER_CLIENT_KEY_FILE=/node.key\nHTTPS_PROXY=http://u:hidden@p:1\n\
                HTTP_PROXY=q\nNO_PROXY=10.0.0.0/8,x\n\
                HIVEMIND_TOKEN_FILE=/token\nNODE_LABELS=zone=eu, gpu=\nDOCKER_HOST=unix:///run/user/1/docker.sock\n\
                MONITOR_ADDRESS=::\nMONITOR_PORT=0\nRESOURCE_REPORT_INTERVAL=5\nHIVEMIND_CPUS=1.5\nHIVEMIND_MEMORY=2GiB\n\
                HIVEMIND_DISK=10GB\nHIVEMIND_SLOTS=8\nHIVEMIND_TIMEOUT=90s\nHIVEMIND_MAX_TIMEOUT=2h\nHIVEMIND_PULL_LIMIT=3m\n\
                HIVEMIND_TASK_DISK=Volume\nHIVEMIND_SHUTDOWN=leave\nHIVEMIND_LOG_BUDGET=1MiB\nHIVEMIND_STATE=/s\nLOG_FILE=/l\n";
    let scene = Scene::new().file("/c", text).file("/token", "s3cret\n").args("--config /c");
    let config = scene.config();
    assert_eq!(config.master_url.as_ref().unwrap().to_string(), "https://m.example:443");
    assert_eq!(config.token.as_ref().unwrap().expose(), "s3cret");
    assert!(!format!("{config:?}").contains("s3cret") && !format!("{config:?}").contains("hidden"));
    assert_eq!(config.master_client_files, Some(("/node.pem".into(), "/node.key".into())));
    let proxies = [&config.https_proxy, &config.http_proxy].map(|proxy| proxy.as_ref().unwrap().expose().as_str());
    assert_eq!((proxies, config.no_proxy.as_deref()), (["http://u:hidden@p:1", "q"], Some("10.0.0.0/8,x")));
    let labels = [("zone".to_owned(), "eu".to_owned()), ("gpu".to_owned(), String::new())];
    assert_eq!(config.labels, labels);
    assert_eq!(config.monitor.to_string(), "[::]:0");
    assert_eq!(config::reachable(config.monitor).to_string(), "[::1]:0");
    assert_eq!((config.lent.cpu_millis, config.lent.memory_bytes), (1_500, 2 << 30));
    assert_eq!((config.lent.disk_bytes, config.lent.slots), (10_000_000_000, 8));
    assert_eq!(config.spec_defaults.max_timeout, Duration::from_secs(7_200));
    assert_eq!(config.pull_limit, Duration::from_secs(180));
    assert_eq!((config.shutdown, config.task_disk), (Shutdown::Leave, DiskWay::Volume));
    assert_eq!(config.state_dir, Path::new("/s"));
}

#[test]
fn bad_values_name_file_line_and_what_is_right() {
    for (line, message) in [
        ("NODE_IDD=x", "unknown key \"NODE_IDD\": the nearest is NODE_ID"),
        (
            "MASTER_NODE_URL=m.example",
            "MASTER_NODE_URL must begin with https:// (or http:// on loopback): write https://host[:port]",
        ),
        (
            "MASTER_NODE_URL=http://m.example",
            "MASTER_NODE_URL would send the token in clear text to m.example: write https://, or set HIVEMIND_ALLOW_PLAINTEXT=yes",
        ),
        (
            "MASTER_NODE_URL=https://u:p@m",
            "MASTER_NODE_URL must not hold a user or password: the token has a key of its own, HIVEMIND_TOKEN",
        ),
        ("MASTER_CLIENT_CERT_FILE=/c", "MASTER_CLIENT_CERT_FILE is set without MASTER_CLIENT_KEY_FILE: set both"),
        ("MASTER_CLIENT_KEY_FILE=/k", "MASTER_CLIENT_KEY_FILE is set without MASTER_CLIENT_CERT_FILE: set both"),
        ("HIVEMIND_TOKEN=a b", "HIVEMIND_TOKEN has a space, line break or other character that no token has"),
        ("HIVEMIND_TOKEN_FILE=/none", "HIVEMIND_TOKEN_FILE /none can't be read: entity not found"),
        (
            "HIVEMIND_ALLOW_PLAINTEXT=perhaps",
            "HIVEMIND_ALLOW_PLAINTEXT \"perhaps\" is neither yes nor no: write true or false",
        ),
        ("NODE_ID=-x", "NODE_ID must begin with a letter or digit"),
        ("NODE_LABELS=zone", "NODE_LABELS \"zone\" has no '=': write key=value,key=value"),
        ("NODE_LABELS=a=1,a=2", "NODE_LABELS \"a=2\" repeats a key"),
        (
            "DOCKER_HOST=tcp://h:1",
            "DOCKER_HOST \"tcp://h:1\" is not an engine on this machine: write unix:///path/to/docker.sock (npipe:////./pipe/name in Windows builds; tcp:// and ssh:// are not taken)",
        ),
        (
            "MONITOR_ADDRESS=localhost",
            "MONITOR_ADDRESS \"localhost\" is no IP address: write 127.0.0.1, ::1, or 0.0.0.0 for all",
        ),
        ("MONITOR_PORT=70000", "MONITOR_PORT \"70000\" is not right: write a whole number from 0 to 65535"),
        ("LOG_LEVEL=loud", "LOG_LEVEL \"loud\" is no log level: write off, error, warn, info, debug or trace"),
        (
            "RESOURCE_REPORT_INTERVAL=4",
            "RESOURCE_REPORT_INTERVAL \"4\" is not right: write a whole number from 5 to 3600",
        ),
        ("HIVEMIND_CPUS=all", "HIVEMIND_CPUS \"all\" is no number of CPUs: write 2 or 1.5, from 0.01 to 1024"),
        ("HIVEMIND_MEMORY=2 XB", "HIVEMIND_MEMORY \"2 XB\" is no size: write 512MiB, 2GiB, 1.5GB or a number of bytes"),
        ("HIVEMIND_MEMORY=1MiB", "HIVEMIND_MEMORY \"1MiB\" is out of range: from 16 MiB to 1 PiB"),
        ("HIVEMIND_DISK=-1", "HIVEMIND_DISK \"-1\" is no size: write 512MiB, 2GiB, 1.5GB or a number of bytes"),
        ("HIVEMIND_SLOTS=257", "HIVEMIND_SLOTS \"257\" is not right: write a whole number from 1 to 256"),
        (
            "HIVEMIND_TIMEOUT=soon",
            "HIVEMIND_TIMEOUT \"soon\" is no duration: write 90s, 5m, 1h, 1d or a number of seconds",
        ),
        ("HIVEMIND_TIMEOUT=2d", "HIVEMIND_TIMEOUT is longer than HIVEMIND_MAX_TIMEOUT, 86400 s"),
        ("HIVEMIND_MAX_TIMEOUT=0", "HIVEMIND_MAX_TIMEOUT \"0\" is out of range: from 1s to 365d"),
        ("HIVEMIND_TASK_DISK=quota", "HIVEMIND_TASK_DISK \"quota\" is not right: write auto, watch or volume"),
        ("HIVEMIND_PULL_LIMIT=25h", "HIVEMIND_PULL_LIMIT \"25h\" is out of range: from 1s to 24h"),
        (
            "HIVEMIND_TASK_IMAGES=python, *",
            "HIVEMIND_TASK_IMAGES \"*\" stands for nothing: write ** for every image, docker.io/library/* for those",
        ),
        (
            "HIVEMIND_REGISTRY_AUTH_FILE=/f",
            "HIVEMIND_REGISTRY_AUTH_FILE is set without HIVEMIND_TASK_REGISTRIES: set both",
        ),
        (
            "HIVEMIND_TASK_REGISTRIES=h:1",
            "HIVEMIND_TASK_REGISTRIES is set without HIVEMIND_REGISTRY_AUTH_FILE: set both",
        ),
        (
            "HIVEMIND_TASK_REGISTRIES=ghcr.io/acme",
            "HIVEMIND_TASK_REGISTRIES \"ghcr.io/acme\" is no host with a dot, a port or the name localhost: write ghcr.io or host:port",
        ),
        ("HIVEMIND_SHUTDOWN=now", "HIVEMIND_SHUTDOWN \"now\" is not right: write stop, finish or leave"),
        ("HIVEMIND_LOG_BUDGET=1", "HIVEMIND_LOG_BUDGET \"1\" is out of range: from 64 KiB to 16 GiB"),
    ] {
        let scene = Scene::new().file("/etc/w.conf", &format!("# head\n{line}\n")).args("--config /etc/w.conf");
        assert_eq!(scene.error(), (format!("/etc/w.conf:2: {message}"), 78), "{line}");
    }
}

#[test]
fn bad_values_name_the_flag_or_variable() {
    let scene = Scene::new().env("MONITOR_PORT", "x");
    let message = "\"x\" is not right: write a whole number from 0 to 65535";
    assert_eq!(scene.error(), (format!("environment variable MONITOR_PORT: {message}"), 78));
    let scene = scene.args("--monitor-port x");
    assert_eq!(scene.error(), (format!("flag --monitor-port: {message}"), 2));
    let scene = Scene::new().args("--config /none");
    assert_eq!(scene.error(), ("/none: can't be read: entity not found".to_owned(), 78));
    let scene = Scene::new().env("HIVEMIND_TOKEN", "s3cret").env("HIVEMIND_TOKEN_FILE", "/t");
    let (message, _) = scene.error();
    assert!(message.contains("set only one") && !message.contains("s3cret"), "{message}");
    let (message, _) = Scene::new().env("HIVEMIND_TOKEN", "s3\tcret").error();
    assert!(!message.contains("cret\""), "{message}");
}

#[test]
fn proxy_variables_are_taken_in_lower_case_first() {
    let proxy = |scene: &Scene| scene.config().https_proxy.map(|proxy| proxy.expose().clone());
    let scene = Scene::new().file("/c", "HTTPS_PROXY=file\n").args("--config /c");
    assert_eq!(proxy(&scene).as_deref(), Some("file"));
    let scene = scene.env("HTTPS_PROXY", "upper");
    assert_eq!(proxy(&scene).as_deref(), Some("upper"));
    let scene = scene.env("https_proxy", "lower");
    assert_eq!(proxy(&scene).as_deref(), Some("lower"));
    assert_eq!(scene.config().refuse("HTTPS_PROXY", "is odd"), "environment variable https_proxy: is odd");
    assert_eq!(proxy(&scene.env("https_proxy", "")).as_deref(), Some("upper"));
    assert_eq!(Scene::new().env("node_id", "x").config().node_id.as_str(), "my-host.example", "only the proxies");
}

#[test]
fn plaintext_needs_the_owners_word() {
    let scene = Scene::new().env("MASTER_NODE_URL", "http://m.example:8080");
    assert_eq!(scene.error().1, 78);
    let config = scene.env("HIVEMIND_ALLOW_PLAINTEXT", "yes").config();
    assert_eq!(config.master_url.unwrap().to_string(), "http://m.example:8080");
    let config = Scene::new().env("MASTER_NODE_URL", "http://127.0.0.1:5").config();
    assert!(config.master_url.unwrap().is_loopback());
}

#[test]
fn more_than_the_machine_has_is_cut_and_said() {
    let scene = Scene::new().env("HIVEMIND_CPUS", "64").env("HIVEMIND_MEMORY", "1TiB");
    let config = scene.config();
    assert_eq!((config.lent.cpu_millis, config.lent.memory_bytes), (4_000, 10 << 30));
    assert_eq!(config.warnings.len(), 2);
    let silent = Scene { memory_bytes: 0, ..Scene::new() };
    let warnings = silent.config().warnings;
    assert!(warnings[0].contains("doesn't tell its memory"), "{warnings:?}");
}

#[test]
fn wireguard_is_warned_about_by_key_and_by_content() {
    let config = Scene::new().env("WIREGUARD_CONFIG_PATH", "/wg").config();
    assert!(config.warnings[0].contains("/wg is not used"), "{:?}", config.warnings);
    let scene = Scene::new().file("/wg0.conf", "[Interface]\nAddress = 10.8.0.2/32\n").args("--config /wg0.conf");
    assert_eq!(scene.config().wireguard_config, Some("/wg0.conf".into()));
    assert_eq!(scene.config().warnings.len(), 1);
}

#[test]
fn clients_need_no_more_than_the_place() {
    let scene = Scene::new().env("HIVEMIND_SLOTS", "broken").args("status --state /s");
    match scene.load().unwrap() {
        Loaded::Client(_, options) => {
            assert_eq!(options.state_dir, Path::new("/s"));
            assert!(options.is_state_dir_given);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_has_its_socket_in_its_run_time_folder() {
    let service = Scene::new().env("STATE_DIRECTORY", "/var/lib/hivemind");
    let run = Path::new("/run/hivemind/control.sock");
    assert_eq!(service.config().control_socket(true), run);
    assert_eq!(service.config().control_socket(false), Path::new("/var/lib/hivemind/control.sock"));
    assert_eq!(service.args("--state /s").config().control_socket(true), Path::new("/s/control.sock"));
    let by_hand = Scene::new().config().control_socket(true);
    assert_eq!(by_hand, Path::new("/home/u/.local/state/hivemind/control.sock"));
}

#[test]
fn reload_takes_what_is_live_and_names_the_rest() {
    let old = Scene::new().config();
    let new = Scene::new().env("LOG_LEVEL", "debug").env("NODE_ID", "other").env("HIVEMIND_TOKEN", "t");
    let reload = old.reload(&new.config());
    assert_eq!(reload.changed, ["LOG_LEVEL"]);
    assert_eq!(reload.needs_restart, ["HIVEMIND_TOKEN", "NODE_ID"]);
    let new =
        Scene::new().env("NO_PROXY", "x").env("MASTER_CLIENT_CERT_FILE", "/c").env("MASTER_CLIENT_KEY_FILE", "/k");
    let names = ["MASTER_CLIENT_CERT_FILE", "MASTER_CLIENT_KEY_FILE", "NO_PROXY"];
    assert_eq!(old.reload(&new.config()).needs_restart, names);
    assert_eq!(reload.config.log_level, LevelFilter::Debug);
    assert_eq!(reload.config.node_id, old.node_id);
}

#[test]
fn images_that_tasks_may_name_can_change_live_and_the_refusal_says_where_they_stand() {
    let images = |text: &str| Scene::new().file("/etc/w.conf", &format!("# head\nHIVEMIND_TASK_IMAGES={text}\n"));
    let old = images("ghcr.io/acme/**").args("--config /etc/w.conf").config();
    let reload = old.reload(&images("python").args("--config /etc/w.conf").config());
    assert_eq!((reload.changed, reload.needs_restart), (vec!["HIVEMIND_TASK_IMAGES"], Vec::new()));
    let judge = |config: &Config, image: &str| config.spec_defaults.images.judge(&ImageRef::parse(image).unwrap());
    assert_eq!(judge(&reload.config, "python:3"), Ok(()));
    let words = "is python:3, which no pattern in HIVEMIND_TASK_IMAGES of this node (/etc/w.conf:2) allows";
    assert_eq!(judge(&old, "python:3"), Err(words.to_owned()));
    assert_eq!(judge(&Scene::new().config(), "python:3"), Ok(()));
    let moved = Scene::new().env("HIVEMIND_TASK_IMAGES", "ghcr.io/acme/**").config();
    assert!(old.reload(&moved).changed.is_empty(), "the same list in another place");
}

#[test]
fn reload_keeps_the_default_of_the_disk_though_free_space_moved() {
    let old = Scene::new().config();
    let less = Scene { disk_free: 90 << 30, ..Scene::new() };
    let reload = old.reload(&less.config());
    assert_eq!((reload.changed, reload.config.lent.disk_bytes), (Vec::new(), 50 << 30));
    let set = less.clone().env("HIVEMIND_DISK", "10GiB");
    let reload = old.reload(&set.config());
    assert_eq!((reload.changed, reload.config.lent.disk_bytes), (vec!["HIVEMIND_DISK"], 10 << 30));
    let back = set.config().reload(&less.config());
    assert_eq!((back.changed, back.config.lent.disk_bytes), (vec!["HIVEMIND_DISK"], 45 << 30), "no longer set");
}
