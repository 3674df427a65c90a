//! What the engine says that it made of the sandbox, compared with what was asked for: pure. What the kernel says is in
//! `inside`.

use std::collections::BTreeSet;

use crate::docker::{ContainerInspect, CreateBody, HostConfig, HostConfigReadBack, Mount, Ulimit};

/// One field.
struct Check {
    /// As the engine names it; a field that is not asked for but must not be there, too.
    field: &'static str,
    what: String,
    holds: bool,
}

/// Every field that is asked for, and those that may not be there; the first that is not as asked for, in words.
///
/// # Errors
/// What the engine did not apply.
pub fn check_read_back(asked: &CreateBody, found: &ContainerInspect) -> Result<(), String> {
    match checks(asked, found).into_iter().find(|check| !check.holds) {
        None => Ok(()),
        Some(check) => Err(format!("the engine did not apply the {} ({})", check.what, check.field)),
    }
}

fn checks(asked: &CreateBody, found: &ContainerInspect) -> Vec<Check> {
    let mut checks = limits(&asked.host_config, &found.host_config);
    checks.extend(walls(asked, found));
    checks.extend(strangers(&found.host_config));
    checks.extend(program(asked, found));
    checks
}

fn check(field: &'static str, what: impl Into<String>, holds: bool) -> Check {
    Check { field, what: what.into(), holds }
}

/// What bounds the use of the machine.
fn limits(asked: &HostConfig, got: &HostConfigReadBack) -> Vec<Check> {
    // An engine on a kernel that can't count swap says -1, and warns when the container is made.
    let is_swap_limited = got.memory_swap == asked.memory_swap || got.memory_swap == -1;
    vec![
        check("Memory", "memory limit", got.memory == asked.memory),
        check("MemorySwap", "swap limit", is_swap_limited),
        check("NanoCpus", "CPU limit", got.nano_cpus == asked.nano_cpus),
        check("CpuShares", "CPU weight", got.cpu_shares == asked.cpu_shares),
        check("PidsLimit", "pids limit", Some(got.pids_limit) == asked.pids_limit),
        check("ShmSize", "size of /dev/shm", asked.shm_size.is_none_or(|size| size == got.shm_size)),
        check("Ulimits", "limits of each process", ulimits(&got.ulimits) == ulimits(&asked.ulimits)),
        check("LogConfig", "bounds of its log", asked.log_config.as_ref().is_none_or(|log| *log == got.log_config)),
        check("OomScoreAdj", "score for the kernel's OOM killer", got.oom_score_adj == asked.oom_score_adj),
        check("OomKillDisable", "OOM killer", got.oom_kill_disable == asked.oom_kill_disable),
        check("CgroupParent", "parent cgroup", got.cgroup_parent == asked.cgroup_parent),
        check("DeviceRequests", "GPUs", got.device_requests == asked.device_requests),
    ]
}

/// The engine sorts them.
fn ulimits(list: &[Ulimit]) -> BTreeSet<(&str, i64, i64)> {
    list.iter().map(|limit| (limit.name.as_str(), limit.soft, limit.hard)).collect()
}

/// What keeps it to itself.
fn walls(body: &CreateBody, found: &ContainerInspect) -> Vec<Check> {
    let (asked, got) = (&body.host_config, &found.host_config);
    let drops_all = got.cap_drop.iter().any(|dropped| dropped.eq_ignore_ascii_case("all"));
    // Podman names no network where there is none.
    let is_alone = asked.network_mode == "none" && found.networks.is_empty();
    let is_own = |mode: &str| mode.is_empty() || mode == "private";
    vec![
        check("ReadonlyRootfs", "read-only root file system", got.readonly_rootfs == asked.readonly_rootfs),
        check("CapDrop", "dropped capabilities", drops_all),
        check("CapAdd", "empty list of added capabilities", got.cap_add == asked.cap_add),
        check("SecurityOpt", "no-new-privileges", has_options(&asked.security_opt, &got.security_opt)),
        check("Privileged", "absence of privileges", !got.privileged),
        check("NetworkMode", format!("network {}", asked.network_mode), got.network_mode == asked.network_mode),
        check("Networks", "network as the only one", is_alone || found.networks == [asked.network_mode.as_str()]),
        check("Dns", "name servers", got.dns == asked.dns),
        check("DnsSearch", "domains of names", got.dns_search == asked.dns_search),
        check("ExtraHosts", "hosts file", got.extra_hosts == asked.extra_hosts),
        check("PidMode", "process namespace of its own", is_own(&got.pid_mode) && asked.pid_mode.is_empty()),
        check("UTSMode", "host name of its own", is_own(&got.uts_mode) && asked.uts_mode.is_empty()),
        check("IpcMode", "private shared memory", got.ipc_mode == asked.ipc_mode),
        check("CgroupnsMode", "private cgroup namespace", got.cgroupns_mode == asked.cgroupns_mode),
        check("Tmpfs", "file systems in memory", got.tmpfs == asked.tmpfs),
        check("Mounts", "mounts", are_mounts(&asked.mounts, found)),
        check("RestartPolicy", "absence of restarts", got.restart_policy == asked.restart_policy),
        check("AutoRemove", "stay after its end", got.auto_remove == asked.auto_remove),
        check("Runtime", "runtime", asked.runtime.is_empty() || got.runtime == asked.runtime),
        check("Init", "init process", asked.init.is_none_or(|init| init == got.init)),
    ]
}

/// Each one that is asked for, and none that would take a default away, such as `seccomp=unconfined`. An engine may add
/// what it chose by itself for SELinux or AppArmor.
fn has_options(asked: &[String], got: &[String]) -> bool {
    let has = |wanted: &str| got.iter().any(|option| option == wanted || option.strip_prefix(wanted) == Some("=true"));
    let is_loose =
        |option: &String| option.contains("unconfined") || option.contains("disable") || option.ends_with("=false");
    asked.iter().all(|wanted| has(wanted)) && !got.iter().any(is_loose)
}

/// Exactly those that are asked for: an image's own volumes would be room that nobody watches.
fn are_mounts(asked: &[Mount], found: &ContainerInspect) -> bool {
    let got: BTreeSet<_> = found
        .mounts
        .iter()
        .filter(|mount| mount.kind != "tmpfs")
        .map(|mount| (mount.kind.as_str(), mount.name.as_str(), mount.destination.as_str(), mount.rw))
        .collect();
    let wanted = asked.iter().map(|mount| ("volume", mount.source.as_str(), mount.target.as_str(), !mount.read_only));
    got == wanted.collect()
}

/// What is never asked for.
fn strangers(got: &HostConfigReadBack) -> Vec<Check> {
    vec![
        check("Binds", "absence of the machine's folders", got.binds.is_empty()),
        check("VolumesFrom", "absence of others' volumes", got.volumes_from.is_empty()),
        check("Devices", "absence of devices", got.devices.is_empty()),
        check("DeviceCgroupRules", "absence of rules for devices", got.device_cgroup_rules.is_empty()),
        check("GroupAdd", "absence of further groups", got.group_add.is_empty()),
        check("UsernsMode", "engine's user namespace", got.userns_mode.is_empty() || got.userns_mode == "private"),
        check("PortBindings", "absence of published ports", got.port_bindings.is_empty()),
        check("PublishAllPorts", "absence of published ports", !got.publish_all_ports),
    ]
}

/// What runs in it, whatever the image says.
fn program(asked: &CreateBody, found: &ContainerInspect) -> Vec<Check> {
    let got = &found.config;
    let is_word = |asked: &Option<Vec<String>>, got: &[String]| asked.as_ref().is_none_or(|words| words == got);
    let health = asked.healthcheck.as_ref().map(|check| check.test.clone());
    vec![
        check("User", "user", got.user == asked.user),
        check("Tty", "absence of a terminal", got.tty == asked.tty),
        check("Hostname", "host name", got.hostname == asked.hostname),
        check("WorkingDir", "work folder", got.working_dir == asked.working_dir),
        check("Entrypoint", "program", is_word(&asked.entrypoint, &got.entrypoint)),
        check("Cmd", "arguments", is_word(&asked.cmd, &got.cmd)),
        check("Env", "environment", asked.env.iter().all(|pair| got.env.contains(pair))),
        check("Healthcheck", "absence of a health check", is_word(&health, &got.health_test)),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::node::offer::Offer;
    use crate::node::runtime::Runtimes;
    use crate::node::spec::{SpecDefaults, TaskSpec};
    use crate::sandbox::body::task_body;
    use crate::sandbox::image::TaskImage;
    use crate::sandbox::naming::Identity;

    fn asked() -> CreateBody {
        let offer = Offer { task: "t".to_owned(), attempt: 1, runtime: "runsc".to_owned(), ..Offer::default() };
        let defaults = SpecDefaults { runtimes: Runtimes::Any, ..SpecDefaults::default() };
        task_body(
            &TaskSpec::check(&offer, &defaults).unwrap(),
            &Identity::new("n", b"k"),
            &TaskImage { id: "sha256:1".to_owned(), scratch: vec!["/data".to_owned()] },
            &[],
        )
    }

    /// What Engine 20.10.24 answers to that body, as far as it is read: its own words where they are not the question's.
    fn answer(body: &CreateBody) -> Value {
        let mut host = serde_json::to_value(&body.host_config).unwrap();
        host["CapAdd"] = Value::Null;
        host["DeviceRequests"] = Value::Null;
        host["ExtraHosts"] = Value::Null;
        host["OomKillDisable"] = json!(false);
        host["Binds"] = Value::Null;
        host["Devices"] = json!([]);
        host["PortBindings"] = json!({});
        host["Ulimits"].as_array_mut().unwrap().reverse();
        let config = serde_json::to_value(body).unwrap();
        let volume = &body.host_config.mounts[0];
        let mounts = json!([{"Type": "volume", "Name": volume.source, "Destination": volume.target, "RW": true}]);
        json!({"Id": "1", "HostConfig": host, "Config": config, "Mounts": mounts,
               "NetworkSettings": {"Networks": {"none": {}}}})
    }

    fn verdict(answer: &Value) -> Result<(), String> {
        check_read_back(&asked(), &serde_json::from_value(answer.clone()).unwrap())
    }

    /// Each field's wrong answer.
    fn wrong() -> Vec<(&'static str, Value)> {
        vec![
            ("/HostConfig/Memory", json!(0)),
            ("/HostConfig/MemorySwap", json!(0)),
            ("/HostConfig/NanoCpus", json!(0)),
            ("/HostConfig/CpuShares", json!(0)),
            ("/HostConfig/PidsLimit", Value::Null),
            ("/HostConfig/ShmSize", json!(1_u64 << 40)),
            ("/HostConfig/Ulimits", json!([{"Name": "core", "Soft": 0, "Hard": 0}])),
            ("/HostConfig/LogConfig", json!({"Type": "json-file", "Config": {}})),
            ("/HostConfig/OomScoreAdj", json!(0)),
            ("/HostConfig/OomKillDisable", json!(true)),
            ("/HostConfig/CgroupParent", json!("/")),
            ("/HostConfig/DeviceRequests", json!([{"Count": -1}])),
            ("/HostConfig/ReadonlyRootfs", json!(false)),
            ("/HostConfig/CapDrop", json!(["NET_RAW"])),
            ("/HostConfig/CapAdd", json!(["SYS_ADMIN"])),
            ("/HostConfig/SecurityOpt", json!([])),
            ("/HostConfig/SecurityOpt", json!(["no-new-privileges=false"])),
            ("/HostConfig/SecurityOpt", json!(["no-new-privileges", "seccomp=unconfined"])),
            ("/HostConfig/SecurityOpt", json!(["no-new-privileges", "label=disable"])),
            ("/HostConfig/Privileged", json!(true)),
            ("/HostConfig/NetworkMode", json!("host")),
            ("/NetworkSettings/Networks", json!({"none": {}, "bridge": {}})),
            ("/HostConfig/Dns", json!(["192.168.1.1"])),
            ("/HostConfig/DnsSearch", json!(["lan"])),
            ("/HostConfig/ExtraHosts", json!(["gateway:host-gateway"])),
            ("/HostConfig/PidMode", json!("host")),
            ("/HostConfig/UTSMode", json!("host")),
            ("/HostConfig/IpcMode", json!("host")),
            ("/HostConfig/CgroupnsMode", json!("host")),
            ("/HostConfig/Tmpfs", json!({})),
            ("/Mounts", json!([])),
            ("/Mounts/0/RW", json!(false)),
            ("/Mounts/0/Name", json!("another")),
            ("/Mounts/0/Type", json!("bind")),
            ("/HostConfig/RestartPolicy", json!({"Name": "always"})),
            ("/HostConfig/AutoRemove", json!(true)),
            ("/HostConfig/Runtime", json!("runc")),
            ("/HostConfig/Init", Value::Null),
            ("/HostConfig/Binds", json!(["/:/host"])),
            ("/HostConfig/VolumesFrom", json!(["another"])),
            ("/HostConfig/Devices", json!([{"PathOnHost": "/dev/sda"}])),
            ("/HostConfig/DeviceCgroupRules", json!(["c *:* rwm"])),
            ("/HostConfig/GroupAdd", json!(["0"])),
            ("/HostConfig/UsernsMode", json!("host")),
            ("/HostConfig/PortBindings", json!({"80/tcp": null})),
            ("/HostConfig/PublishAllPorts", json!(true)),
            ("/Config/User", json!("root")),
            ("/Config/Tty", json!(true)),
            ("/Config/Hostname", json!("host")),
            ("/Config/WorkingDir", json!("/")),
            ("/Config/Entrypoint", json!(["/image.sh"])),
            ("/Config/Cmd", json!(["image"])),
            ("/Config/Env", json!([])),
            ("/Config/Healthcheck", json!({"Test": ["CMD", "x"]})),
        ]
    }

    /// As the checks name the field of a pointer.
    fn field_of(pointer: &str) -> &str {
        let mut words = pointer.split('/').skip(1);
        match words.next() {
            Some("Mounts") => "Mounts",
            _ => words.next().unwrap(),
        }
    }

    #[test]
    fn says_which_field_the_engine_did_not_apply() {
        let good = answer(&asked());
        assert_eq!(verdict(&good), Ok(()));
        for (pointer, value) in wrong() {
            let mut bad = good.clone();
            match bad.pointer_mut(pointer) {
                Some(place) => *place = value.clone(),
                None => bad["HostConfig"][field_of(pointer)] = value.clone(),
            }
            let said = verdict(&bad).expect_err(pointer);
            assert!(said.contains(&format!("({})", field_of(pointer))), "{pointer} {value}: {said}");
        }
        assert!(verdict(&json!({"Id": "1"})).is_err());
    }

    #[test]
    fn no_field_that_is_asked_for_is_without_a_check() {
        let body = asked();
        let found = serde_json::from_value(answer(&body)).unwrap();
        let checked: BTreeSet<&str> = checks(&body, &found).iter().map(|check| check.field).collect();
        let sent = serde_json::to_value(&body).unwrap();
        let host = sent["HostConfig"].as_object().unwrap().keys();
        // Said by the network, the labels' digest, and the attachment itself.
        let elsewhere =
            ["HostConfig", "Image", "Labels", "NetworkDisabled", "AttachStdout", "AttachStderr", "StopSignal"];
        let config = sent.as_object().unwrap().keys().filter(|key| !elsewhere.contains(&key.as_str()));
        for field in host.chain(config) {
            assert!(checked.contains(field.as_str()), "{field} is asked for and never read back");
        }
        let broken: BTreeSet<&str> = wrong().iter().map(|(pointer, _)| field_of(pointer)).collect();
        assert_eq!(broken, checked, "each check is seen to fail");
    }

    #[test]
    fn what_kernels_and_engines_say_otherwise_is_no_fault() {
        let good = answer(&asked());
        for (pointer, value) in [
            // A kernel that does not count swap; cgroup v2; an engine with SELinux; Podman.
            ("/HostConfig/MemorySwap", json!(-1)),
            ("/HostConfig/OomKillDisable", Value::Null),
            ("/HostConfig/SecurityOpt", json!(["no-new-privileges=true", "label=level:s0:c1,c2"])),
            ("/HostConfig/PidMode", json!("private")),
            ("/NetworkSettings/Networks", json!({})),
        ] {
            let mut other = good.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            assert_eq!(verdict(&other), Ok(()), "{pointer}");
        }
    }
}
