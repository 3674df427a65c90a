//! Tests of `inside` and `mounts`: texts of a real container, and each line changed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::body::task_body;
use super::image::TaskImage;
use super::inside::View;
use super::naming::Identity;
use crate::docker::CreateBody;
use crate::node::offer::Offer;
use crate::node::spec::{SpecDefaults, TaskSpec};

const ID: &str = "3097ef0bd0bb5569";

/// Of Engine 20.10.24 with runc 1.1.5 on Linux 6.18, without the lines that say nothing here.
const STATUS: &str = "Name:\tdocker-init\nState:\tS (sleeping)\nPid:\t2619\nPPid:\t2598\nUid:\t1000\t1000\t1000\t1000\n\
    Gid:\t1000\t1000\t1000\t1000\nGroups:\t1000 \nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n\
    CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n\
    Seccomp_filters:\t1\n";
const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units     
Max file size             1048576              1048576              bytes     
Max core file size        0                    0                    bytes     
Max processes             96365                96365                processes 
Max open files            4096                 4096                 files     
";
const MOUNTS: &str = "\
72 48 0:39 / / ro,relatime master:2 - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/X7Y5
73 72 0:42 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
74 72 0:43 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
75 74 0:44 / /dev/pts rw,nosuid,noexec,relatime - devpts devpts rw,gid=5,mode=620,ptmxmode=666
76 72 0:45 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
77 76 0:46 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
81 77 0:32 /docker/3097ef0bd0bb5569 /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime - cgroup cgroup rw,memory
87 74 0:41 / /dev/mqueue rw,nosuid,nodev,noexec,relatime - mqueue mqueue rw
88 74 0:47 / /dev/shm rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size=32768k
89 72 254:0 /usr/bin/tini-static /usr/sbin/docker-init ro,relatime - ext4 /dev/vda rw,discard
90 72 254:0 /var/lib/docker/volumes/v/_data /workspace rw,relatime master:1 - ext4 /dev/vda rw,discard
91 72 0:48 / /tmp rw,nosuid,nodev,relatime - tmpfs tmpfs rw,size=32768k
92 72 254:0 /var/lib/docker/containers/3097/resolv.conf /etc/resolv.conf ro,relatime - ext4 /dev/vda rw,discard
93 72 254:0 /var/lib/docker/containers/3097/hostname /etc/hostname ro,relatime - ext4 /dev/vda rw,discard
94 72 254:0 /var/lib/docker/containers/3097/hosts /etc/hosts ro,relatime - ext4 /dev/vda rw,discard
52 73 0:42 /sys /proc/sys ro,nosuid,nodev,noexec,relatime - proc proc rw
53 73 0:49 / /proc/acpi ro,relatime - tmpfs tmpfs ro
54 73 0:43 /null /proc/keys rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
56 76 0:50 / /sys/firmware ro,relatime - tmpfs tmpfs ro
";
const INTERFACES: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
";

/// `/proc` and `/sys/fs/cgroup` of such a container, as folders.
struct Machine {
    dir: PathBuf,
}

impl Machine {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("hivemind-inside-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let machine = Self { dir };
        machine.write("proc/2619/status", STATUS);
        machine.write("proc/2619/limits", LIMITS);
        machine.write("proc/2619/mountinfo", MOUNTS);
        machine.write("proc/2619/net/dev", INTERFACES);
        machine.write("proc/2619/oom_score_adj", "500\n");
        machine.write("proc/2619/uid_map", "         0          0 4294967295\n");
        machine.write("proc/2619/gid_map", "         0          0 4294967295\n");
        for (name, number) in ["cgroup", "ipc", "mnt", "net", "pid", "uts"].into_iter().zip(1..) {
            machine.link(&format!("proc/self/ns/{name}"), &format!("{name}:[{number}]"));
            machine.link(&format!("proc/2598/ns/{name}"), &format!("{name}:[{number}0]"));
            machine.link(&format!("proc/2619/ns/{name}"), &format!("{name}:[{number}00]"));
        }
        machine
    }

    fn v1(name: &str) -> Self {
        let machine = Self::new(name);
        let of = |names: &str| format!("{names}:/docker/{ID}\n");
        let lines = ["9:name=systemd", "8:pids", "4:memory", "2:cpuacct", "1:cpu", "0:"].map(of);
        machine.write("proc/2619/cgroup", &lines.concat());
        machine.write("cgroup/memory/docker/3097ef0bd0bb5569/memory.limit_in_bytes", "67108864\n");
        machine.write("cgroup/memory/docker/3097ef0bd0bb5569/memory.memsw.limit_in_bytes", "67108864\n");
        machine.write("cgroup/cpu/docker/3097ef0bd0bb5569/cpu.cfs_quota_us", "50000\n");
        machine.write("cgroup/cpu/docker/3097ef0bd0bb5569/cpu.cfs_period_us", "100000\n");
        machine.write("cgroup/pids/docker/3097ef0bd0bb5569/pids.max", "256\n");
        machine
    }

    /// By the kernel's cgroup-v2.rst, with the systemd driver, and a runtime that puts the process one level below.
    fn v2(name: &str) -> Self {
        let machine = Self::new(name);
        machine.write("proc/2619/cgroup", "0::/system.slice/docker-3097ef0bd0bb5569.scope/container\n");
        for (file, text) in
            [("memory.max", "67108864"), ("memory.swap.max", "0"), ("cpu.max", "50000 100000"), ("pids.max", "256")]
        {
            machine.write(&format!("cgroup/system.slice/docker-3097ef0bd0bb5569.scope/{file}"), &format!("{text}\n"));
        }
        machine
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        symlink(target, path).unwrap();
    }

    /// With one text changed, then as before.
    fn with(&self, file: &str, from: &str, to: &str) -> Result<(), String> {
        let path = self.dir.join(file);
        let before = fs::read_to_string(&path).unwrap();
        assert!(before.contains(from), "{file}: {from}");
        fs::write(&path, before.replacen(from, to, 1)).unwrap();
        let result = self.view().check(&asked());
        fs::write(&path, before).unwrap();
        result
    }

    fn view(&self) -> View {
        View::read(2619, ID, &self.dir.join("proc"), &self.dir.join("cgroup"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn asked() -> CreateBody {
    let offer = Offer {
        task: "t".to_owned(),
        attempt: 1,
        cpu_millis: 500,
        memory_bytes: 64 << 20,
        disk_bytes: 1 << 20,
        ..Offer::default()
    };
    let spec = TaskSpec::check(&offer, &SpecDefaults::default()).unwrap();
    task_body(&spec, &Identity::new("n", b"k"), &TaskImage::default(), &[])
}

/// File, a text in it, what is there instead, and a word of what is said then.
const CHANGES: &[(&str, &str, &str, &str)] = &[
    ("proc/2619/status", "CapInh:\t0", "CapInh:\t8", "CapInh"),
    ("proc/2619/status", "CapPrm:\t00000000000000", "CapPrm:\t00000000a80425", "CapPrm"),
    ("proc/2619/status", "CapEff:\t0000000000000000", "CapEff:\t0000000000000400", "CapEff"),
    ("proc/2619/status", "CapBnd:\t0000000000000000", "CapBnd:\t00000000a80425fb", "CapBnd"),
    ("proc/2619/status", "CapAmb:\t0", "CapAmb:\t1", "CapAmb"),
    ("proc/2619/status", "NoNewPrivs:\t1", "NoNewPrivs:\t0", "NoNewPrivs 0 instead of 1"),
    ("proc/2619/status", "Seccomp:\t2", "Seccomp:\t0", "Seccomp 0 instead of 2"),
    ("proc/2619/status", "Uid:\t1000", "Uid:\t0", "Uid 0 instead of 1000"),
    ("proc/2619/status", "Uid:\t1000\t1000\t1000\t1000", "Uid:\t1000\t1000\t0\t1000", "Uid 0"),
    ("proc/2619/status", "Gid:\t1000", "Gid:\t0", "Gid 0"),
    ("proc/2619/status", "Groups:\t1000 ", "Groups:\t1000 998 ", "Groups 998"),
    ("proc/2619/uid_map", "0          0 4294967295", "0     100000      65536", "Uid 1000 (not mapped)"),
    ("proc/2619/limits", "4096 ", "1024 ", "nofile 1024 instead of 4096"),
    ("proc/2619/limits", "Max core file size        0", "Max core file size        unlimited", "core unlimited"),
    ("proc/2619/limits", "1048576              1048576", "1048576              unlimited", "fsize unlimited"),
    ("proc/2619/limits", "Max file size", "Max nothing", "tells no limit of fsize"),
    ("proc/2619/mountinfo", "/ / ro", "/ / rw", "/ mounted without ro"),
    ("proc/2619/mountinfo", "/ /sys ro", "/ /sys rw", "/sys mounted without ro"),
    ("proc/2619/mountinfo", "/proc/sys ro", "/proc/sys rw", "/proc/sys mounted without ro"),
    ("proc/2619/mountinfo", "52 73 0:42 /sys /proc/sys", "52 73 0:42 /bus /proc/bus", "nothing mounted at /proc/sys"),
    ("proc/2619/mountinfo", "/workspace rw", "/workspace ro", "/workspace mounted without rw"),
    ("proc/2619/mountinfo", "/tmp rw,nosuid,nodev", "/tmp rw,nosuid", "/tmp mounted without nodev"),
    ("proc/2619/mountinfo", "/tmp rw,nosuid,nodev", "/tmp rw,nodev", "/tmp mounted without nosuid"),
    ("proc/2619/mountinfo", "- tmpfs tmpfs rw,size=32768k", "- ext4 /dev/vda rw", "at /tmp ext4 instead of tmpfs"),
    ("proc/2619/mountinfo", "tmpfs rw,size=32768k", "tmpfs rw,size=65536k", "/tmp of size 65536k"),
    ("proc/2619/mountinfo", "tmpfs rw,size=32768k", "tmpfs rw", "/tmp of size none"),
    ("proc/2619/mountinfo", "shm rw,size=32768k", "shm rw,size=12328812k", "/dev/shm of size 12328812k"),
    ("proc/2619/mountinfo", "/etc/hosts ro", "/root/.ssh ro", "nobody asked for"),
    (
        "proc/2619/mountinfo",
        "94 72",
        "95 72 254:0 / /host rw - ext4 /dev/vda rw\n94 72",
        "nobody asked for: / at /host",
    ),
    (
        "proc/2619/mountinfo",
        "94 72",
        "95 72 0:24 /run/docker.sock /run/docker.sock rw - tmpfs tmpfs rw\n94 72",
        "nobody",
    ),
    ("proc/2619/mountinfo", "94 72", "95 74 0:5 /sda /dev/sda rw - devtmpfs dev rw\n94 72", "nobody asked for: /sda"),
    ("proc/2619/mountinfo", "94 72", "95 74 254:0 /x /proc/acpi rw - ext4 /dev/vda rw\n94 72", "nobody"),
    ("proc/2619/mountinfo", "docker-init ro", "docker-init rw", "nobody asked for"),
    ("proc/2619/mountinfo", " - overlay", " overlay", "odd mount"),
    ("proc/2619/net/dev", "    lo:", "  eth0:", "network interface eth0"),
    ("proc/2619/net/dev", "    lo:", "    lo: 0 0\n   wg0:", "network interface wg0"),
    ("proc/2619/oom_score_adj", "500", "0", "oom_score_adj 0 instead of 500"),
];

#[test]
fn says_which_line_of_the_kernel_is_not_as_asked_for() {
    let machine = Machine::v1("v1");
    assert_eq!((machine.view().check(&asked()), machine.view().unknown()), (Ok(()), Vec::new()));
    let own = [
        (
            "cgroup/memory/docker/3097ef0bd0bb5569/memory.limit_in_bytes",
            "67108864",
            "9223372036854771712",
            "memory limit",
        ),
        ("cgroup/memory/docker/3097ef0bd0bb5569/memory.memsw.limit_in_bytes", "67108864", "134217728", "swap limit"),
        ("cgroup/cpu/docker/3097ef0bd0bb5569/cpu.cfs_quota_us", "50000", "-1", "CPU limit"),
        ("cgroup/cpu/docker/3097ef0bd0bb5569/cpu.cfs_period_us", "100000", "50000", "CPU limit"),
        ("cgroup/pids/docker/3097ef0bd0bb5569/pids.max", "256", "max", "pids limit max instead of 256"),
    ];
    for (file, from, to, said) in CHANGES.iter().chain(&own) {
        let found = machine.with(file, from, to).expect_err(said);
        assert!(found.contains(said), "{file}: {from:?} as {to:?}: {found}");
    }
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        for other in ["self", "2598"] {
            let theirs = fs::read_link(machine.dir.join(format!("proc/{other}/ns/{name}"))).unwrap();
            machine.link(&format!("proc/2619/ns/{name}"), &theirs.display().to_string());
            let found = machine.view().check(&asked()).unwrap_err();
            assert!(found.contains("name space") && found.ends_with(name), "{found}");
        }
        machine.link(&format!("proc/2619/ns/{name}"), "another");
    }
    assert_eq!(machine.view().check(&asked()), Ok(()), "all is as before");
}

#[test]
fn cgroup_v2_is_read_back_too() {
    let machine = Machine::v2("v2");
    assert_eq!((machine.view().check(&asked()), machine.view().unknown()), (Ok(()), Vec::new()));
    let folder = "cgroup/system.slice/docker-3097ef0bd0bb5569.scope";
    for (file, from, to, said) in [
        ("memory.max", "67108864", "max", "memory limit max instead of 67108864"),
        ("memory.swap.max", "0", "max", "swap limit max instead of 0"),
        ("cpu.max", "50000", "max", "CPU limit"),
        ("pids.max", "256", "1024", "pids limit 1024 instead of 256"),
    ] {
        let found = machine.with(&format!("{folder}/{file}"), from, to).expect_err(said);
        assert!(found.contains(said), "{file}: {found}");
    }
    // A board whose kernel has no memory controller, and one that does not count swap.
    fs::remove_file(machine.dir.join(folder).join("memory.swap.max")).unwrap();
    assert_eq!(machine.view().check(&asked()), Ok(()));
    fs::remove_file(machine.dir.join(folder).join("memory.max")).unwrap();
    assert!(machine.view().check(&asked()).unwrap_err().contains("memory limit none instead of 67108864"));
}

#[test]
fn what_cannot_be_seen_is_not_known_and_no_fault() {
    let machine = Machine::v2("unseen");
    for (file, part) in [("mountinfo", "mounts"), ("net/dev", "network"), ("limits", "limits of each process")] {
        fs::remove_file(machine.dir.join("proc/2619").join(file)).unwrap();
        assert!(machine.view().unknown().contains(&part));
    }
    fs::remove_dir_all(machine.dir.join("cgroup")).unwrap();
    fs::remove_dir_all(machine.dir.join("proc/2619/ns")).unwrap();
    assert_eq!(machine.view().unknown(), ["limits of each process", "mounts", "network", "name spaces", "cgroup"]);
    assert_eq!(machine.view().check(&asked()), Ok(()));
    // Another process by that number, one that has ended, and none.
    machine.write("proc/2619/cgroup", "0::/user.slice\n");
    assert_eq!(machine.view(), View::default());
    machine.write("proc/2619/cgroup", "0::/docker/3097ef0bd0bb5569\n");
    machine.write("proc/2619/status", &STATUS.replace("S (sleeping)", "Z (zombie)"));
    assert_eq!(machine.view(), View::default());
    assert_eq!(View::read(0, ID, Path::new("/proc"), Path::new("/sys/fs/cgroup")), View::default());
}

#[test]
fn ids_are_counted_as_inside_of_a_mapped_name_space() {
    let machine = Machine::v2("mapped");
    let map = "         0     100000      65536\n";
    machine.write("proc/2619/uid_map", map);
    machine.write("proc/2619/gid_map", map);
    machine.write("proc/2619/status", &STATUS.replace("\t1000", "\t101000"));
    assert_eq!(machine.view().check(&asked()), Ok(()));
    machine.write("proc/2619/status", &STATUS.replace("\t1000", "\t100000"));
    assert!(machine.view().check(&asked()).unwrap_err().contains("Uid 0 instead of 1000"));
}

#[test]
fn interfaces_that_every_name_space_has_are_no_network() {
    let machine = Machine::v1("fallback");
    assert_eq!(machine.with("proc/2619/net/dev", "    lo:", "    lo: 0 0\n tunl0:"), Ok(()));
}

#[test]
fn devices_that_a_rootless_engine_mounts_are_no_strangers() {
    let machine = Machine::v1("rootless");
    let line = "94 72";
    for more in [
        "95 74 0:5 /null /dev/null rw,nosuid - devtmpfs dev rw,size=4096k\n94 72",
        "95 73 0:5 /null /proc/kcore rw,nosuid - devtmpfs dev rw,size=4096k\n94 72",
    ] {
        assert_eq!(machine.with("proc/2619/mountinfo", line, more), Ok(()), "{more}");
    }
}

#[test]
fn of_a_runtime_with_a_kernel_of_its_own_the_cgroup_is_read_back() {
    let machine = Machine::v1("apart");
    let body = asked();
    let mut plain = machine.view();
    assert!(!plain.leave_to_runtime(&body.host_config), "a process with the work folder is the task's");
    assert_eq!(plain.check(&body), Ok(()));
    // Of runsc 20221219 on Engine 20.10.24.
    machine.write("proc/2619/mountinfo", "224 185 0:77 / / ro,relatime - tmpfs runsc-root rw,uid=65534,gid=65534\n");
    machine.write("proc/2619/status", &STATUS.replace("CapPrm:\t0000000000000000", "CapPrm:\t0000000000240000"));
    assert!(machine.view().check(&body).is_err());
    let mut apart = machine.view();
    assert!(apart.leave_to_runtime(&body.host_config));
    assert_eq!(apart.check(&body), Ok(()));
    assert_eq!(apart.unknown().len(), 6, "{:?}", apart.unknown());
    // Its limits count.
    machine.write("cgroup/memory/docker/3097ef0bd0bb5569/memory.limit_in_bytes", "9223372036854771712\n");
    let mut wide = machine.view();
    assert!(wide.leave_to_runtime(&body.host_config));
    assert!(wide.check(&body).unwrap_err().contains("memory limit"));
}
