"""A task of the node beside the same by docker commands: called by bench.sh, which starts the node.

    bench_task.py BINARY STATE NODE_PID IMAGE ROUNDS

Prints lines "NAME VALUE..." with the seconds of each round. Contestants take turns in each round.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time

BINARY, STATE, NODE_PID, IMAGE, ROUNDS = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
BURST = 50
AT_A_TIME = 4

# The sandbox of src/sandbox/body.rs in the words of the command line.
OPTIONS = """--network none --read-only --cap-drop ALL --security-opt no-new-privileges --memory 512m --memory-swap 512m
--cpu-shares 500 --pids-limit 256 --tmpfs /tmp:rw,nosuid,nodev,exec,mode=1777,size=256m --ulimit nofile=4096:4096
--ulimit core=0:0 --ulimit fsize=1073741824:1073741824 --log-driver json-file --log-opt max-size=1m --log-opt max-file=2
--ipc private --cgroupns private --oom-score-adj 500 --init --user 1000:1000 --hostname task --no-healthcheck
--workdir /workspace""".split()

PROGRAM = """import hashlib, os
data = open("input.bin", "rb").read()
os.makedirs("output", exist_ok=True)
open("output/digest", "w").write(hashlib.sha256(data).hexdigest())
open("output/copy", "wb").write(data)
"""
INPUT_BYTES = 256 << 10


def run(*words, check=True):
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if check and result.returncode != 0:
        sys.exit(f"{' '.join(words)}: {result.returncode}: {result.stderr.decode()}")
    return result.stdout


def node_cpu():
    """Seconds that the node has computed, threads that have ended included: clock_getcpuclockid(3) of its process."""
    return time.clock_gettime((~NODE_PID << 3) | 2)


def children_cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Clock:
    """Seconds of wall time, of children, and of the node."""

    def __enter__(self):
        self.before = (time.monotonic(), children_cpu(), node_cpu())
        return self

    def __exit__(self, *_):
        after = (time.monotonic(), children_cpu(), node_cpu())
        self.wall, self.children, self.node = (b - a for a, b in zip(self.before, after))


def submit(folder_or_file, *words):
    run(BINARY, "submit", folder_or_file, "--state", STATE, "--wait", *words)


def check(folder):
    with open(os.path.join(folder, "digest"), encoding="ascii") as file:
        assert len(file.read()) == 64
    assert os.path.getsize(os.path.join(folder, "copy")) == INPUT_BYTES


def ours_with_files(work, number):
    result = f"{work}/ours-{number}"
    with Clock() as clock:
        submit(f"{work}/task", "--output", result)
    check(f"{result}/output")
    return clock


def docker_with_files(work, number):
    name, result = f"hm-bench-{os.getpid()}-{number}", f"{work}/docker-{number}"
    with Clock() as clock:
        run("docker", "volume", "create", name)
        mount = f"type=volume,src={name},dst=/workspace"
        run("docker", "create", "--name", name, "--cpus", "1", *OPTIONS, "--mount", mount, IMAGE, "python3", "main.py")
        run("docker", "cp", f"{work}/task/.", f"{name}:/workspace")
        run("docker", "start", "--attach", name)
        run("docker", "cp", f"{name}:/workspace/output", result)
        run("docker", "rm", name)
        run("docker", "volume", "rm", name)
    check(result)
    return clock


def ours_without_files(work, _):
    with Clock() as clock:
        submit(f"{work}/echo.json")
    return clock


def docker_without_files(*_):
    with Clock() as clock:
        run("docker", "run", "--rm", "--cpus", "1", *OPTIONS, IMAGE, "echo", "done")
    return clock


def ours_burst(work, _):
    words = ["xargs", "-P", str(BURST), "-I", "{}", BINARY, "submit", f"{work}/burst.json", "--state", STATE, "--wait"]
    return burst(words)


def docker_burst(*_):
    words = ["xargs", "-P", str(AT_A_TIME), "-I", "{}", "docker", "run", "--rm", "--cpus", "0.5", *OPTIONS, IMAGE, "echo", "done"]
    return burst(words)


def burst(words):
    numbers = "\n".join(map(str, range(BURST))).encode()
    with Clock() as clock:
        result = subprocess.run(words, input=numbers, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.count(b"done\n") == BURST, result.stdout
    return clock


def contest(work, name, ours, docker, rounds):
    """Each round both, in turns; a round before that nobody counts warms both up."""
    seconds = {"ours": [], "docker": []}
    for number in range(-1, rounds):
        for who, race in (("ours", ours), ("docker", docker)):
            clock = race(work, f"{name}{number}")
            if number >= 0:
                seconds[who].append(clock)
        print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr)
    for who, clocks in seconds.items():
        print(f"{name}.{who}.wall", *(f"{clock.wall:.6f}" for clock in clocks))
        print(f"{name}.{who}.children", *(f"{clock.children:.6f}" for clock in clocks))
    print(f"{name}.ours.node", *(f"{clock.node:.6f}" for clock in seconds["ours"]))


def main():
    with tempfile.TemporaryDirectory() as work:
        os.mkdir(f"{work}/task")
        with open(f"{work}/task/main.py", "w", encoding="ascii") as file:
            file.write(PROGRAM)
        with open(f"{work}/task/input.bin", "wb") as file:
            file.write(os.urandom(INPUT_BYTES))
        with open(f"{work}/task/task.json", "w", encoding="ascii") as file:
            json.dump({"command": ["python3", "main.py"]}, file)
        for name, cpu in (("echo", 1), ("burst", 0.5)):
            with open(f"{work}/{name}.json", "w", encoding="ascii") as file:
                json.dump({"command": ["echo", "done"], "cpu": cpu}, file)
        contest(work, "files", ours_with_files, docker_with_files, ROUNDS)
        contest(work, "plain", ours_without_files, docker_without_files, ROUNDS)
        contest(work, "burst", ours_burst, docker_burst, max(3, ROUNDS // 5))


main()
