"""What a task tries: `probe.py NAME[=ARGUMENT]...` prints `NAME RESULT` for each, RESULT being the name of the errno, or
what was got. Run outside of the sandbox, with the right granted, the same probe succeeds."""

import ctypes, errno, hashlib, os, platform, resource, signal, socket, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
NUMBERS = {  # asm/unistd_64.h and asm-generic/unistd.h
    name: x86 if X86 else arm
    for name, x86, arm in [
        ("mount", 165, 40), ("umount2", 166, 39), ("pivot_root", 155, 41), ("ptrace", 101, 117),
        ("process_vm_readv", 310, 270), ("add_key", 248, 217), ("keyctl", 250, 219), ("bpf", 321, 280),
        ("unshare", 272, 97), ("setns", 308, 268), ("clone3", 435, 435), ("io_uring_setup", 425, 425),
        ("syslog", 103, 116), ("perf_event_open", 298, 241), ("open_by_handle_at", 304, 265),
        ("swapon", 167, 224), ("init_module", 175, 105), ("kexec_load", 246, 104), ("clock_settime", 227, 112),
        ("sethostname", 170, 161), ("shmget", 29, 194), ("userfaultfd", 323, 282),
    ]
}
NEWNS, NEWUSER, NEWNET = 0x20000, 0x10000000, 0x40000000


def call(name, *arguments):
    words = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def does(name, *arguments):
    """Of which only the success counts."""
    call(name, *arguments)


def in_child(work):
    """What changes the process itself is tried in a child."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, result_of(work).encode())
        os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    return os.read(ours, 4096).decode()


def result_of(work):
    try:
        found = work()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except ValueError:
        return "ValueError"
    return "done" if found is None else str(found)


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def opens(path, flags=os.O_WRONLY):
    """Nothing is written: the right to is what counts."""
    os.close(os.open(path, flags))


def creates(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    os.unlink(path)


def first_bytes(path):
    with open(path, "rb") as file:
        return len(file.read(4))


def writes(path, text):
    with open(path, "w") as file:
        file.write(text)


def mounts_tmpfs():
    call("mount", b"none", b"/mnt", b"tmpfs", 0, b"")
    call("umount2", b"/mnt", 0)


def makes_device(path, kind, major, minor):
    os.mknod(path, kind | 0o600, os.makedev(major, minor))
    os.unlink(path)


def joins(path):
    file = os.open(path, os.O_RDONLY)
    call("setns", file, 0)


def traces(process):
    call("ptrace", 16, process, 0, 0)
    os.waitpid(process, 0x40000000)
    call("ptrace", 17, process, 0, 0)


def reads_memory(process):
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    call("process_vm_readv", process, vector, 1, vector, 1, 0)


def open_by_handle():
    handle = (ctypes.c_uint32 * 34)(8, 1, 2, 0)
    call("open_by_handle_at", os.open("/", os.O_RDONLY), handle, os.O_RDONLY)


def connects(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as stream:
        stream.settimeout(3)
        stream.connect(address)


def connects_tcp(text):
    host, port = text.rsplit(":", 1)
    connects(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port)))


def sends_udp(text):
    host, port = text.rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.sendto(b"x", (host, int(port)))


def sets_up_loopback_address():
    """RTM_NEWADDR 10.99.0.1/8 on interface 1; the answer is an error message of netlink."""
    message = bytes([2, 8, 0, 0]) + (1).to_bytes(4, sys.byteorder)
    attribute = (8).to_bytes(2, sys.byteorder) + (2).to_bytes(2, sys.byteorder) + bytes([10, 99, 0, 1])
    length = 16 + len(message) + len(attribute)
    head = length.to_bytes(4, sys.byteorder) + (20).to_bytes(2, sys.byteorder) + (0x605).to_bytes(2, sys.byteorder) + bytes(8)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(head + message + attribute)
        code = int.from_bytes(netlink.recv(4096)[16:20], sys.byteorder, signed=True)
    if code:
        raise OSError(-code, "netlink")


def socket_of(family, kind, protocol=0):
    socket.socket(family, kind, protocol).close()


def suid(path):
    program = "import os; print(os.geteuid(), [l.split()[1] for l in open('/proc/self/status') if l.startswith('CapEff')][0])"
    return subprocess.run([path, "-c", program], capture_output=True, text=True).stdout.strip()


def raises_open_files():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))


def forks(most):
    children, failure = [], "done"
    try:
        while len(children) < most:
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError as error:
        failure = errno.errorcode[error.errno]
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)
    return f"{failure} {len(children)}"


def fills(path, most):
    """In pieces of a mebibyte; how many fit."""
    count, failure = 0, "done"
    with open(path, "wb", buffering=0) as file:
        try:
            while count < most:
                file.write(bytes(1 << 20))
                count += 1
        except OSError as error:
            failure = errno.errorcode[error.errno]
    os.unlink(path)
    return f"{failure} {count}"


def truncates(path, size):
    try:
        with open(path, "wb") as file:
            os.ftruncate(file.fileno(), size)
    finally:
        os.unlink(path)


def foreign_processes():
    """Processes that are neither this one's tree nor process 1."""
    known = {1, os.getpid()}
    return len([p for p in os.listdir("/proc") if p.isdigit() and int(p) not in known])


IO = ctypes.create_string_buffer(256)
PROBES = {
    # The machine's files.
    "shadow": lambda process: sha256_of(f"/proc/{process}/root/etc/shadow"),
    "file": lambda path: opens(path, os.O_RDONLY),
    "foreign_processes": foreign_processes,
    # Mounts.
    "mount": mounts_tmpfs,
    "remount": lambda: does("mount", b"", b"/", b"", 0x1020, b""),
    "umount": lambda: call("umount2", b"/proc/acpi", 2),
    "pivot_root": lambda: call("pivot_root", b"/", b"/"),
    "chroot": lambda: in_child(lambda: os.chroot("/")),
    "open_by_handle": open_by_handle,
    # Devices.
    "mknod_mem": lambda: makes_device("/tmp/mem", 0o020000, 1, 1),
    "mknod_disk": lambda: makes_device("/tmp/disk", 0o060000, 254, 0),
    "mknod_in_workspace": lambda: makes_device("/workspace/mem", 0o020000, 1, 1),
    # Other processes.
    "ptrace": lambda process: traces(int(process)),
    "read_memory": lambda process: reads_memory(int(process)),
    "signal": lambda process: os.kill(int(process), 0),
    # Rights.
    "suid": suid,
    "setuid": lambda: in_child(lambda: os.setuid(0)),
    "setgroups": lambda: in_child(lambda: os.setgroups([0])),
    "chown": lambda: os.chown("/workspace", 0, 0),
    "raise_open_files": lambda: in_child(raises_open_files),
    "nice": lambda: in_child(lambda: os.setpriority(os.PRIO_PROCESS, 0, -20)),
    "real_time": lambda: in_child(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))),
    "oom_score": lambda: in_child(lambda: writes("/proc/self/oom_score_adj", "-1000")),
    "hostname": lambda: does("sethostname", b"evil", 4),
    # The kernel.
    "unshare_user": lambda: in_child(lambda: does("unshare", NEWUSER)),
    "unshare_mount": lambda: in_child(lambda: does("unshare", NEWNS)),
    "unshare_net": lambda: in_child(lambda: does("unshare", NEWNET)),
    "setns": lambda: in_child(lambda: joins("/proc/self/ns/net")),
    "clone3": lambda: call("clone3", IO, 1),
    "add_key": lambda: does("add_key", b"user", b"hm", b"x", 1, -2),
    "keyctl": lambda: does("keyctl", 0, -2, 1),
    "bpf": lambda: call("bpf", 0, IO, 1),
    "perf": lambda: call("perf_event_open", IO, 0, -1, -1, 0),
    "io_uring": lambda: call("io_uring_setup", 0, IO),
    "userfaultfd": lambda: os.close(call("userfaultfd", 0)),
    "dmesg": lambda: does("syslog", 3, IO, 8),
    "init_module": lambda: call("init_module", IO, 0, b""),
    "kexec": lambda: call("kexec_load", 0, 0, 0, 0),
    "swapon": lambda: call("swapon", b"/workspace/none", 0),
    "clock": lambda: call("clock_settime", 0, 0),
    # /proc and /sys.
    "kcore": lambda: first_bytes("/proc/kcore"),
    "keys": lambda: first_bytes("/proc/keys"),
    "timer_list": lambda: first_bytes("/proc/timer_list"),
    "acpi": lambda: len(os.listdir("/proc/acpi")),
    "firmware": lambda: len(os.listdir("/sys/firmware")),
    "core_pattern": lambda: opens("/proc/sys/kernel/core_pattern"),
    "sysrq": lambda: opens("/proc/sysrq-trigger"),
    "sys": lambda: opens("/sys/kernel/mm/transparent_hugepage/enabled"),
    "cgroup": lambda: os.rmdir(os.mkdir("/sys/fs/cgroup/memory/hm-escape") or "/sys/fs/cgroup/memory/hm-escape"),
    "new_cgroup": lambda: os.mkdir("/sys/fs/cgroup/hm-escape"),
    # The root file system.
    "create": creates,
    "append": lambda path: opens(path, os.O_WRONLY | os.O_APPEND),
    "chmod": lambda path: os.chmod(path, 0o777),
    "remove": lambda path: os.unlink(path),
    # Amounts.
    "forks": lambda most: forks(int(most)),
    "fills": lambda text: fills(text.split(":")[0], int(text.split(":")[1])),
    "sparse": lambda path: truncates(path, 1 << 40),
    # The network.
    "interfaces": lambda: " ".join(sorted(os.listdir("/sys/class/net"))),
    "tcp": connects_tcp,
    "udp": sends_udp,
    "unix": lambda path: connects(socket.AF_UNIX, path),
    "abstract": lambda name: connects(socket.AF_UNIX, "\0" + name),
    "raw": lambda: socket_of(socket.AF_INET, socket.SOCK_RAW, 1),
    "packet": lambda: socket_of(socket.AF_PACKET, socket.SOCK_RAW),
    "vsock": lambda: socket_of(40, socket.SOCK_STREAM),
    "address": sets_up_loopback_address,
    "shared_memory": lambda key: does("shmget", int(key), 1, 0),
}

if __name__ == "__main__":
    for word in sys.argv[1:]:
        name, _, argument = word.partition("=")
        probe = PROBES[name]
        print(word, result_of((lambda: probe(argument)) if argument else probe), flush=True)
