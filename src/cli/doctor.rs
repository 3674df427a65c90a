//! `doctor`: looks for what would keep the node from working, and says how to mend it. Changes nothing.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::config::{Config, MasterUrl};
use crate::daemon;
use crate::docker::{Docker, DockerHost, EngineFacts, NodeTimeouts};
use crate::node::id::Id;
use crate::node::resources::DiskWay;
use crate::node::runtime::Runtimes;
use crate::node::spec::{BASE_IMAGE, SpecDefaults};
use crate::sandbox::{Registries, can_hold, check_volumes, could_guard};
use crate::sys::private::{self, PrivateError};

use super::table::{self, row};
use super::{EXIT_FAILURE, Failure, folder, health, print};

/// A person waits for it.
const PATIENCE: NodeTimeouts =
    NodeTimeouts { connect: Duration::from_secs(2), quick: Duration::from_secs(10), slow: Duration::from_secs(10) };

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grade {
    /// As it should be.
    Ok,
    /// Good to know; nothing is wrong.
    Hint,
    /// The node works, but less than it could.
    Warn,
    /// The node can't do its work.
    Fail,
}

struct Finding {
    grade: Grade,
    text: String,
}

impl Finding {
    fn ok(text: impl Into<String>) -> Self {
        Self::new(Grade::Ok, text)
    }

    fn warn(text: impl Into<String>) -> Self {
        Self::new(Grade::Warn, text)
    }

    fn fail(text: impl Into<String>) -> Self {
        Self::new(Grade::Fail, text)
    }

    fn new(grade: Grade, text: impl Into<String>) -> Self {
        Self { grade, text: text.into() }
    }
}

/// `doctor`: ends with 1 when something fails.
pub(super) fn doctor(config: &Config) -> Result<u8, Failure> {
    let mut findings: Vec<(&str, Finding)> =
        config.warnings.iter().map(|warning| ("configuration", Finding::warn(warning))).collect();
    findings.extend([
        ("state folder", state_folder(&config.state_dir)),
        ("cgroups", cgroups(&|path| fs::read_to_string(path).ok())),
        ("master", master(config)),
        ("monitor", monitor(config.monitor)),
    ]);
    findings.extend(registries(config).map(|finding| ("registries", finding)));
    findings.extend(engine(&config.docker_host, &config.spec_defaults, config.task_disk));
    let rows: Vec<Vec<String>> = findings
        .iter()
        .map(|(name, finding)| {
            let grade = match finding.grade {
                Grade::Ok => "ok",
                Grade::Hint => "hint",
                Grade::Warn => "warn",
                Grade::Fail => "FAIL",
            };
            row([grade, name, &finding.text])
        })
        .collect();
    print(&table::render(&rows))?;
    let has_failed = findings.iter().any(|(_, finding)| finding.grade == Grade::Fail);
    Ok(if has_failed { EXIT_FAILURE } else { 0 })
}

fn state_folder(path: &Path) -> Finding {
    match private::check_private_dir(path) {
        Ok(()) => match tempfile_check(path) {
            Ok(()) => Finding::ok(format!("{} is ours and private", path.display())),
            Err(error) => Finding::fail(format!("{} can't be written: {error}", path.display())),
        },
        Err(PrivateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => missing_folder(path),
        Err(error) => Finding::fail(folder::trouble(&error)),
    }
}

fn missing_folder(path: &Path) -> Finding {
    let Ok(absolute) = std::path::absolute(path) else {
        return Finding::fail(format!("{} is no path", path.display()));
    };
    let parent = absolute.ancestors().skip(1).find(|parent| parent.exists());
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    match parent {
        Some(parent) if rustix::fs::access(parent, access).is_ok() => {
            Finding::ok(format!("{} will be made at the first start", path.display()))
        }
        _ => Finding::fail(format!(
            "{0} isn't there and can't be made: as root, install -d -m 700 -o USER '{0}', or choose another with --state",
            path.display()
        )),
    }
}

fn tempfile_check(path: &Path) -> Result<(), String> {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).map_err(|errno| io::Error::from(errno).to_string())
}

/// Whether there are credentials for each registry that the owner names.
fn registries(config: &Config) -> Option<Finding> {
    let (file, hosts) = config.registry_login.as_ref()?;
    let checked = Registries::new(file.clone(), hosts.clone()).check();
    Some(match checked {
        Ok(()) => Finding::ok(format!("{} has credentials for {}", file.display(), hosts.join(", "))),
        Err(problem) => Finding::fail(config.refuse("HIVEMIND_REGISTRY_AUTH_FILE", &problem)),
    })
}

/// Whether the engine answers, can hold what the sandbox asks for and what the owner allows, and has the base image.
fn engine(docker_host: &str, allowed: &SpecDefaults, task_disk: DiskWay) -> Vec<(&'static str, Finding)> {
    let socket = engine_socket(docker_host);
    if socket.grade == Grade::Fail {
        return vec![("engine", socket)];
    }
    let host = match DockerHost::parse(docker_host) {
        Ok(host) => host,
        Err(error) => return vec![("engine", Finding::fail(error.to_string()))],
    };
    let docker = Docker::new(host, PATIENCE);
    let facts = match docker.ping().and_then(|_| docker.facts()) {
        Ok(facts) => facts,
        Err(error) => return vec![("engine", Finding::fail(format!("can't be used: {error}")))],
    };
    vec![
        ("engine", Finding::ok(format!("{} (API {}, {})", facts.version, facts.api, facts.storage_driver))),
        ("limits", limits(&facts)),
        ("disk limits", disk_limits(task_disk, check_volumes(&facts))),
        ("base image", base_image(&docker)),
        ("egress", egress(allowed, || could_guard(&facts))),
        ("runtimes", runtimes(&allowed.runtimes, &facts.runtimes)),
    ]
}

/// The owner's word, and whether this machine can keep it.
fn egress(allowed: &SpecDefaults, could_guard: impl Fn() -> Result<(), String>) -> Finding {
    if !allowed.network.is_egress_allowed {
        return Finding::new(Grade::Hint, "tasks have no network: HIVEMIND_TASK_NETWORK=egress would allow it");
    }
    match could_guard() {
        Ok(()) => Finding::ok("allowed, and nft can be used; a container tries the rules before the first task has it"),
        Err(reason) => Finding::warn(format!("allowed, but tasks that ask for it are refused: {reason}")),
    }
}

fn runtimes(allowed: &Runtimes, known: &[String]) -> Finding {
    let Runtimes::Only(names) = allowed else { return Finding::ok("tasks may name any") };
    let missing: Vec<&str> = names.iter().map(Id::as_str).filter(|name| !known.iter().any(|one| one == name)).collect();
    if !missing.is_empty() {
        return Finding::warn(format!(
            "the engine doesn't know {}, which HIVEMIND_RUNTIMES names; it knows {}",
            missing.join(", "),
            known.join(", ")
        ));
    }
    match names.as_slice() {
        [] => Finding::ok("tasks have the engine's default"),
        names => Finding::ok(format!(
            "beside the engine's default, tasks may have {}",
            names.iter().map(Id::as_str).collect::<Vec<_>>().join(", ")
        )),
    }
}

fn limits(facts: &EngineFacts) -> Finding {
    match can_hold(facts) {
        Ok(()) => Finding::ok("the engine can limit memory, CPU time and processes"),
        Err(reason) => Finding::fail(reason),
    }
}

/// Which way they are held.
fn disk_limits(choice: DiskWay, possible: Result<(), String>) -> Finding {
    match (choice, possible) {
        (DiskWay::Watch, _) => Finding::ok("held by a watch that looks each second, as HIVEMIND_TASK_DISK says"),
        (_, Ok(())) => Finding::ok("held by a volume of that size for each task"),
        (DiskWay::Auto, Err(reason)) => {
            Finding::new(Grade::Hint, format!("held by a watch that looks each second: {reason}"))
        }
        (DiskWay::Volume, Err(reason)) => Finding::fail(format!("HIVEMIND_TASK_DISK=volume can't be: {reason}")),
    }
}

fn base_image(docker: &Docker) -> Finding {
    match docker.inspect_image(BASE_IMAGE) {
        Ok(_) => Finding::ok(format!("{BASE_IMAGE} is here")),
        Err(error) if error.is_not_found() => Finding::warn(format!(
            "{BASE_IMAGE} isn't here, which tasks without an image of their own use: scripts/build-image.sh makes it"
        )),
        Err(error) => Finding::fail(format!("{BASE_IMAGE} can't be looked at: {error}")),
    }
}

fn engine_socket(docker_host: &str) -> Finding {
    let Some(path) = docker_host.strip_prefix("unix://") else {
        return Finding::fail(format!("{docker_host} is for Windows: write DOCKER_HOST=unix:///var/run/docker.sock"));
    };
    match UnixStream::connect(path) {
        Ok(_) => Finding::ok(format!("{path} takes connections")),
        Err(error) => Finding::fail(match error.kind() {
            io::ErrorKind::NotFound => format!(
                "{path} isn't there: install and start Docker (apt-get install docker.io; systemctl start docker), or set DOCKER_HOST"
            ),
            io::ErrorKind::PermissionDenied => format!(
                "no permission for {path}: usermod -aG docker USER and log in again (that group equals root), or use a rootless engine"
            ),
            io::ErrorKind::ConnectionRefused => format!("nobody answers at {path}: systemctl start docker"),
            _ => format!("{path} can't be reached: {error}"),
        }),
    }
}

/// Memory limits need the controller; some boards boot with it off.
fn cgroups(read: &dyn Fn(&str) -> Option<String>) -> Finding {
    let mend = "add cgroup_enable=memory to the kernel's command line and reboot";
    if let Some(controllers) = read("/sys/fs/cgroup/cgroup.controllers") {
        let has = |name: &str| controllers.split_ascii_whitespace().any(|controller| controller == name);
        return match (has("memory"), has("cpu")) {
            (true, true) => Finding::ok("version 2 with memory and cpu"),
            (false, _) => Finding::fail(format!("version 2 without the memory controller: {mend}")),
            (true, false) => Finding::fail("version 2 without the cpu controller: enable it for the engine"),
        };
    }
    let is_on = |name: &str| {
        let table = read("/proc/cgroups")?;
        let line = table.lines().find(|line| line.split_ascii_whitespace().next() == Some(name))?;
        Some(line.split_ascii_whitespace().nth(3)? == "1")
    };
    match (is_on("memory"), is_on("cpu")) {
        (Some(true), Some(true)) => Finding::ok("version 1 with memory and cpu"),
        (None, _) | (_, None) => Finding::warn("the kernel doesn't tell its controllers: limits may not hold"),
        _ => Finding::fail(format!("version 1 without memory or cpu controller: {mend}")),
    }
}

fn master(config: &Config) -> Finding {
    let Some(url) = config.master_grpc_url.as_ref().or(config.master_url.as_ref()) else {
        return Finding::new(
            Grade::Hint,
            "none is set, which `hivemind-worker standalone` doesn't need; for `run` set MASTER_NODE_URL=https://HOST[:PORT]",
        );
    };
    match daemon::proxy_to_master(config) {
        Ok(None) => master_address(url),
        // Its name is resolved there.
        Ok(Some(proxy)) => Finding::ok(format!("{url} is behind the proxy {proxy}")),
        Err(problem) => Finding::fail(problem),
    }
}

fn master_address(url: &MasterUrl) -> Finding {
    match (url.host.as_str(), url.port).to_socket_addrs() {
        Ok(mut addresses) => match addresses.next() {
            Some(address) => Finding::ok(format!("{url} is at {}", address.ip())),
            None => Finding::fail(format!("{} has no address: look at the name and at DNS", url.host)),
        },
        Err(error) => Finding::fail(format!("{} has no address ({error}): look at the name and at DNS", url.host)),
    }
}

fn monitor(address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if health::is_worker(address) {
                Finding::ok(format!("a worker runs at {address}"))
            } else {
                Finding::fail(format!("{address} is taken by another program: set MONITOR_PORT (ss -ltnp shows which)"))
            }
        }
        Err(error) => Finding::fail(format!("{address} can't be used: {error}: set MONITOR_ADDRESS or MONITOR_PORT")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::net::NetworkPolicy;

    #[test]
    fn grades_cgroups_of_both_versions() {
        let with = |files: &[(&str, &str)]| {
            cgroups(&|path| {
                let found = files.iter().find(|(name, _)| *name == path);
                found.map(|(_, text)| (*text).to_owned())
            })
            .grade
        };
        let v2 = "/sys/fs/cgroup/cgroup.controllers";
        assert_eq!(with(&[(v2, "cpuset cpu io memory pids\n")]), Grade::Ok);
        assert_eq!(with(&[(v2, "cpuset cpu io pids\n")]), Grade::Fail);
        let v1 = "/proc/cgroups";
        let text = "#subsys_name hierarchy num_cgroups enabled\ncpu 3 1 1\nmemory 4 1 1\n";
        assert_eq!(with(&[(v1, text)]), Grade::Ok);
        assert_eq!(with(&[(v1, &text.replace("memory 4 1 1", "memory 0 1 0"))]), Grade::Fail);
        assert_eq!(with(&[]), Grade::Warn);
    }

    #[test]
    fn an_engine_must_limit_what_the_sandbox_limits() {
        let good = EngineFacts {
            os: "linux".to_owned(),
            memory_limit: true,
            cpu_quota: true,
            pids_limit: true,
            security_options: vec!["name=seccomp,profile=default".to_owned()],
            ..EngineFacts::default()
        };
        assert_eq!(limits(&good).grade, Grade::Ok);
        for (bad, word) in [
            (EngineFacts { memory_limit: false, ..good.clone() }, "memory"),
            (EngineFacts { cpu_quota: false, ..good.clone() }, "CPU time"),
            (EngineFacts { pids_limit: false, ..good.clone() }, "processes"),
            (EngineFacts { os: "windows".to_owned(), ..good.clone() }, "Linux containers"),
            (EngineFacts { security_options: Vec::new(), ..good.clone() }, "system calls"),
        ] {
            let finding = limits(&bad);
            assert!(finding.grade == Grade::Fail && finding.text.contains(word), "{}", finding.text);
        }
    }

    #[test]
    fn says_whether_tasks_get_what_the_owner_allows() {
        let closed = SpecDefaults::default();
        let network = NetworkPolicy { is_egress_allowed: true, ..NetworkPolicy::default() };
        let open = SpecDefaults { network, ..SpecDefaults::default() };
        let fine = || Ok(());
        let bad = || Err("nft is not installed".to_owned());
        for (allowed, could, grade, word) in [
            (&closed, &fine as &dyn Fn() -> Result<(), String>, Grade::Hint, "HIVEMIND_TASK_NETWORK=egress"),
            (&closed, &bad, Grade::Hint, "HIVEMIND_TASK_NETWORK=egress"),
            (&open, &fine, Grade::Ok, "allowed"),
            (&open, &bad, Grade::Warn, "refused: nft is not installed"),
        ] {
            let finding = egress(allowed, could);
            assert!(finding.grade == grade && finding.text.contains(word), "{}", finding.text);
        }
        let list = Runtimes::Only(vec![Id::parse("runsc").unwrap(), Id::parse("kata").unwrap()]);
        let known = ["runc".to_owned(), "runsc".to_owned()];
        let finding = runtimes(&list, &known);
        assert!(finding.grade == Grade::Warn && finding.text.contains("doesn't know kata"), "{}", finding.text);
        assert_eq!(runtimes(&Runtimes::default(), &known).grade, Grade::Ok);
    }

    #[test]
    fn says_what_holds_disk_limits() {
        let lacks = || Err("there is no mkfs.ext4: apt-get install e2fsprogs".to_owned());
        for (choice, possible, grade, word) in [
            (DiskWay::Auto, Ok(()), Grade::Ok, "by a volume"),
            (DiskWay::Auto, lacks(), Grade::Hint, "by a watch that looks each second: there is no mkfs.ext4"),
            (DiskWay::Volume, lacks(), Grade::Fail, "apt-get install e2fsprogs"),
            (DiskWay::Watch, lacks(), Grade::Ok, "as HIVEMIND_TASK_DISK says"),
        ] {
            let finding = disk_limits(choice, possible);
            assert!(finding.grade == grade && finding.text.contains(word), "{}", finding.text);
        }
    }

    #[test]
    fn says_how_to_mend() {
        let findings = engine("unix:///not/there.sock", &SpecDefaults::default(), DiskWay::Auto);
        let (_, finding) = &findings[0];
        assert!(finding.grade == Grade::Fail && finding.text.contains("apt-get install docker.io"));
        assert_eq!(findings.len(), 1, "an engine that isn't there is one finding");
        let loopback = MasterUrl::parse("http://127.0.0.1:5").unwrap();
        assert_eq!(master_address(&loopback).grade, Grade::Ok);
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        drop(std::thread::spawn({
            let taken = taken.try_clone().unwrap();
            // Whoever asks is hung up on: not a worker.
            move || drop(taken.accept())
        }));
        let finding = monitor(taken.local_addr().unwrap());
        assert!(finding.grade == Grade::Fail && finding.text.contains("MONITOR_PORT"), "{}", finding.text);
    }
}
