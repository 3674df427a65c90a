#!/usr/bin/env bash
# Runs inside the virtual machine of scripts/vm.sh, as root, with the disk of that run at /run/share. What it prints is
# the run's result; the last line is "vm: exit N".
set -uo pipefail
SHARE=/run/share
# shellcheck source=/dev/null
. "$SHARE/settings"

FAILED=()
PASSED=()
# Longest time of one test binary: many times what it takes when emulated.
STEP_LIMIT_S=1200

say() { printf '== [%s s] %s\n' "$(cut -d ' ' -f 1 /proc/uptime)" "$*"; }

end() {
    [ ${#PASSED[@]} -eq 0 ] || printf 'vm: passed %s\n' "${PASSED[@]}"
    [ ${#FAILED[@]} -eq 0 ] || printf 'vm: FAILED %s\n' "${FAILED[@]}"
    echo "vm: exit $1"
    sync
    exit "$1"
}

die() {
    printf 'error: %s\n' "$*"
    end 1
}

# ---- the machine itself

# The checkout and the binaries, at the paths that were compiled into them.
place_files() {
    local path
    while read -r _ path; do
        mkdir -p "$(dirname "$path")"
        touch "$path"
        mount --bind "$SHARE/paths$path" "$path" || die "can't mount $path"
    done <"$SHARE/binaries"
    mkdir -p "$ROOT"
    mount --bind "$SHARE/paths$ROOT" "$ROOT" || die "can't mount $ROOT"
}

# The check without which none of the others would mean anything.
check_cgroups() {
    local kind
    kind=$(stat -fc %T /sys/fs/cgroup)
    [ "$kind" = cgroup2fs ] || die "this machine has no cgroup v2: /sys/fs/cgroup is $kind"
    say "kernel $(uname -r), /sys/fs/cgroup is $kind: $(cat /sys/fs/cgroup/cgroup.controllers)"
}

# ---- tests

# Runs the tests of one binary; further words are the test runner's.
run_tests() {
    local label=$1 name=$2 binary begin=$SECONDS out=/tmp/test-output code=0 ran
    shift 2
    binary=$(sed -n "s/^$name //p" "$SHARE/binaries")
    [ -n "$binary" ] || die "no test binary $name"
    say "$label: $name $*"
    (cd "$ROOT" && timeout --kill-after=10 "$STEP_LIMIT_S" "$binary" --test-threads=2 "$@") >"$out" 2>&1 || code=$?
    cat "$out"
    ran=$(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed.*/\1 passed, \2 failed/p' "$out")
    # A name that no test has any more would be passed over in silence.
    if [ "$code" -eq 0 ] && [ -n "$ran" ] && [ "${ran%% *}" -gt 0 ]; then
        PASSED+=("$label: $name: $ran, $((SECONDS - begin)) s")
    else
        FAILED+=("$label: $name: ${ran:-no result}, exit code $code")
    fi
}

# ---- Docker

# Starts Docker with this cgroup driver and checks that it is what it uses.
start_docker() {
    local driver=$1 answer
    mkdir -p /run/systemd/system/docker.service.d
    printf '{"exec-opts": ["native.cgroupdriver=%s"]}\n' "$driver" >/etc/docker/daemon.json
    systemctl restart docker || {
        journalctl -u docker --no-pager | tail -n 20
        die "docker did not start"
    }
    answer=$(docker info --format '{{.CgroupVersion}} {{.CgroupDriver}} {{.ServerVersion}}') || die "docker does not answer"
    say "docker info: cgroup version, driver and engine are $answer"
    [ "${answer% *}" = "2 $driver" ] || die "Docker uses cgroups otherwise than asked"
}

test_docker() {
    mkdir -p /etc/docker
    systemctl unmask --quiet docker.service docker.socket
    start_docker systemd
    docker load --quiet --input "$SHARE/base.tar" || die "can't load the base image"
    run_tests systemd lib host:: sandbox::
    run_tests systemd sandbox_cgroup
    run_tests systemd sandbox_engine
    run_tests systemd docker_engine
    run_tests systemd node_kill
    start_docker cgroupfs
    run_tests cgroupfs sandbox_cgroup
}

# ---- Podman

# Its service as root, with folders of its own, and the base image under the name that the worker asks for.
test_podman() {
    local words=(--root /var/tmp/podman/root --runroot /run/podman-test) socket=/run/podman-test.sock
    podman "${words[@]}" load --quiet --input "$SHARE/base.tar" || die "can't load the base image"
    podman "${words[@]}" tag "localhost/$IMAGE:latest" "docker.io/$IMAGE:latest" || die "can't name the base image"
    podman "${words[@]}" system service --time=0 "unix://$socket" >/tmp/podman.log 2>&1 &
    for _ in $(seq 60); do [ -S "$socket" ] && break || sleep 1; done
    say "podman info: $(podman "${words[@]}" info --format 'Podman {{.Version.Version}}, cgroup {{.Host.CgroupsVersion}}, {{.Host.CgroupManager}}, {{.Host.OCIRuntime.Name}}')"
    HIVEMIND_TEST_PODMAN=unix://$socket run_tests podman sandbox_podman
    [ ${#FAILED[@]} -eq 0 ] || tail -n 20 /tmp/podman.log
}

# ---- all of it

place_files
check_cgroups
"test_$ENGINE"
[ ${#FAILED[@]} -eq 0 ] && end 0
end 1
