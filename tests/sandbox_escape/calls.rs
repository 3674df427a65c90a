//! The machine's files, mounts, devices, other processes, rights, and the kernel's doors.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use ring::digest::{SHA256, digest};

use crate::yard::{Try, Yard, compare, outside};

const DONE: &[&str] = &["done"];
const NOT_PERMITTED: &[&str] = &["EPERM"];
const READ_ONLY: &[&str] = &["EROFS"];

/// With these rights, the machine's processes in view and no filter. Not `--privileged`, which needs every right that there
/// is, and an engine in a virtual machine may not have them all.
const GRANTED: &[&str] = &[
    "--user=0",
    "--pid=host",
    "--network=none",
    "--cgroupns=private",
    "--device=/dev/kmsg",
    "--security-opt=seccomp=unconfined",
    "--security-opt=systempaths=unconfined",
    "--security-opt=apparmor=unconfined",
    "--cap-add=SYS_ADMIN",
    "--cap-add=SYS_PTRACE",
    "--cap-add=SYS_NICE",
    "--cap-add=SYS_TIME",
    "--cap-add=SYSLOG",
    "--cap-add=NET_ADMIN",
    "--cap-add=DAC_READ_SEARCH",
];

/// What no argument changes. Outside, calls that would change the machine get arguments that make no sense, so that an
/// errno behind the check of rights is the sign.
const TRIES: &[Try<'_>] = &[
    ("file=/dev/kmsg", &["ENOENT"], DONE),
    ("mount", NOT_PERMITTED, DONE),
    ("remount", NOT_PERMITTED, DONE),
    ("pivot_root", NOT_PERMITTED, &["EBUSY", "EINVAL"]),
    ("chroot", NOT_PERMITTED, DONE),
    ("open_by_handle", NOT_PERMITTED, &["ESTALE", "EBADF", "EINVAL", "EOPNOTSUPP"]),
    ("mknod_mem", NOT_PERMITTED, DONE),
    ("mknod_disk", NOT_PERMITTED, DONE),
    ("mknod_in_workspace", NOT_PERMITTED, DONE),
    ("setuid", NOT_PERMITTED, DONE),
    ("setgroups", NOT_PERMITTED, DONE),
    ("chown", NOT_PERMITTED, DONE),
    ("nice", &["EACCES"], DONE),
    ("hostname", NOT_PERMITTED, DONE),
    ("unshare_user", NOT_PERMITTED, DONE),
    ("unshare_mount", NOT_PERMITTED, DONE),
    ("unshare_net", NOT_PERMITTED, DONE),
    ("setns", NOT_PERMITTED, DONE),
    // So that a C library takes `clone`, whose flags a filter can read.
    ("clone3", &["ENOSYS", "EPERM"], &["EINVAL"]),
    ("add_key", NOT_PERMITTED, DONE),
    ("keyctl", NOT_PERMITTED, DONE),
    ("bpf", NOT_PERMITTED, &["EINVAL", "EFAULT", "E2BIG"]),
    ("perf", NOT_PERMITTED, &["EINVAL", "E2BIG", "EFAULT", "ENOENT", "ESRCH"]),
    ("userfaultfd", NOT_PERMITTED, DONE),
    ("dmesg", NOT_PERMITTED, DONE),
    ("swapon", NOT_PERMITTED, &["ENOENT"]),
    ("clock", NOT_PERMITTED, &["EFAULT", "EINVAL"]),
    ("core_pattern", &["EACCES"], DONE),
    ("create=/x", READ_ONLY, DONE),
    ("create=/etc/x", READ_ONLY, DONE),
    ("create=/usr/bin/x", READ_ONLY, DONE),
    ("create=/dev/x", &["EACCES"], DONE),
    ("create=/root/x", &["EACCES", "EROFS"], DONE),
    ("append=/etc/passwd", &["EACCES", "EROFS"], DONE),
    ("remove=/etc/passwd", READ_ONLY, DONE),
    ("chmod=/usr/bin", READ_ONLY, DONE),
    ("raw", NOT_PERMITTED, DONE),
    ("packet", NOT_PERMITTED, DONE),
    ("address", NOT_PERMITTED, DONE),
];

/// Where there is no way to let it succeed that is harmless on every machine.
const ONLY_INSIDE: &[(&str, &[&str])] = &[
    ("umount", &["EPERM"]),
    ("init_module", &["EPERM", "ENOSYS"]),
    ("kexec", &["EPERM", "ENOSYS"]),
    ("real_time", &["EPERM"]),
    ("oom_score", &["EACCES"]),
    // What Python makes of EPERM here.
    ("raise_open_files", &["ValueError"]),
    ("kcore", &["0", "ENOENT", "EACCES"]),
    ("keys", &["0", "ENOENT"]),
    ("timer_list", &["0", "ENOENT"]),
    ("sys", &["EROFS", "EACCES"]),
    ("acpi", &["0", "ENOENT"]),
    ("firmware", &["0", "ENOENT"]),
    ("sysrq", &["ENOENT", "EACCES", "EROFS"]),
    ("cgroup", &["EROFS", "ENOENT"]),
    ("new_cgroup", &["EACCES", "EROFS"]),
];

/// Somebody else's process, which the engine's containers can't be.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        // Of another user, so that nothing but a capability may touch it.
        Self(Command::new("sleep").arg("600").uid(12_345).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_kernels_doors_are_closed() {
    let yard = Yard::open("escape-calls");
    let words: Vec<&str> = TRIES.iter().map(|(word, ..)| *word).collect();
    let only: Vec<&str> = ONLY_INSIDE.iter().map(|(word, _)| *word).collect();
    let inside = yard.probe("doors", &[words.as_slice(), &only].concat());
    compare(TRIES, &inside, &outside(GRANTED, &words));
    for (word, refused) in ONLY_INSIDE {
        println!("{word}: inside {}", inside[*word]);
        assert!(refused.contains(&inside[*word].as_str()), "{word}: {}", inside[*word]);
    }
    // What the engine's own filter decides: told, since it differs from engine to engine.
    for (word, result) in yard.probe("filter", &["io_uring", "vsock"]) {
        println!("{word}: inside {result}");
    }
    yard.unharmed();
}

#[test]
fn the_machines_files_and_processes_are_out_of_sight() {
    let yard = Yard::open("escape-sight");
    let sleeper = Sleeper::start();
    let id = sleeper.0.id();
    let worker = yard.scene.worker.as_ref().unwrap().id();
    let of = |name: &str, id: u32| format!("{name}={id}");
    let words = [of("ptrace", id), of("read_memory", id), of("signal", id), of("signal", worker), of("ptrace", worker)];
    let tries: &[Try<'_>] = &[
        (&words[0], &["ESRCH", "EPERM"], &["done"]),
        // Behind the check of rights: what is asked for is not mapped there.
        (&words[1], &["EPERM", "ESRCH"], &["EFAULT"]),
        (&words[2], &["ESRCH"], &["done"]),
        (&words[3], &["ESRCH"], &["done"]),
        (&words[4], &["ESRCH", "EPERM"], &["done"]),
    ];
    let asked: Vec<&str> = words.iter().map(String::as_str).collect();
    let shadow_of = of("shadow", id);
    let more = ["foreign_processes", "shadow=1", &shadow_of];
    let inside = yard.probe("processes", &[asked.as_slice(), &more].concat());
    let control = outside(GRANTED, &[asked.as_slice(), &more].concat());
    compare(tries, &inside, &control);
    // The small init is process 1, and this is its only child.
    assert_eq!(inside["foreign_processes"], "0");
    assert!(control["foreign_processes"].parse::<u32>().unwrap() > 5);
    let shadow = digest(&SHA256, &std::fs::read("/etc/shadow").expect("this test must be root"));
    let shadow: String = shadow.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(control[&shadow_of], shadow);
    assert_eq!(inside[&shadow_of], "ENOENT");
    // The image's own, which is root's or not there.
    assert!(["ENOENT", "EACCES"].contains(&inside["shadow=1"].as_str()), "{inside:?}");
    drop(sleeper);
    yard.unharmed();
}
