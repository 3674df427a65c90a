# shellcheck shell=bash
# What the scripts share: messages, packages, cargo, the engine. Sourced, never run.
#
# Works as root or with sudo. Packages come from the distribution, so that a fresh Debian machine needs nothing else.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # used by the scripts that source this file
IMAGE=justin308/hivemind-worker
# shellcheck disable=SC2034
BINARY=${CARGO_TARGET_DIR:-$ROOT/target}/release/hivemind-worker

say() { printf '== %s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The value of a key in the [package] part of Cargo.toml.
package_value() { sed -n "s/^$1 = \"\(.*\)\"\$/\1/p" "$ROOT/Cargo.toml" | head -n 1; }

# ---- root and packages

# Runs a command as root.
need_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        command -v sudo >/dev/null || die "'$1' needs root: run this script as root, or install sudo"
        sudo "$@"
    fi
}

has_package() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

refresh_packages() {
    [ -z "${PACKAGES_REFRESHED:-}" ] || return 0
    command -v apt-get >/dev/null || die "no apt-get here: install by hand what the scripts need (see scripts/lib.sh)"
    say "apt-get update"
    # A broken third-party source must not stop us; what is missing in the end shows at the installation.
    need_root apt-get -qq update >&2 || say "apt-get update reported errors; going on with the lists that are here"
    PACKAGES_REFRESHED=1
}

# Installs those of the named packages that are missing.
need_packages() {
    local package missing=()
    for package in "$@"; do
        has_package "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    refresh_packages
    say "installing ${missing[*]}"
    need_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends "${missing[@]}" >&2 || die "apt-get could not install ${missing[*]}"
}

# Installs the package unless the command is there already, wherever it came from.
need_command() { command -v "$1" >/dev/null || need_packages "$2"; }

# ---- cargo

# True if version $1 is at least $2.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# Run in the repository, so that a toolchain chosen for this folder is the one that answers.
tool_version() { (cd "$ROOT" && "$@" 2>/dev/null) | sed -n 's/^[a-z]* \([0-9][0-9.]*\).*/\1/p' | head -n 1; }

cargo_is_usable() {
    local version
    version=$(tool_version cargo --version) || return 1
    [ -n "$version" ] && at_least "$version" "$(package_value rust-version)" || return 1
    version=$(tool_version rustc --version) || return 1
    [ -n "$version" ] && at_least "$version" "$(package_value rust-version)" || return 1
    [ "$1" != lints ] || { (cd "$ROOT" && cargo fmt --version && cargo clippy --version) >/dev/null 2>&1; }
}

# Finds a cargo that can do what $1 says, else installs the distribution's: "build", or "lints" for fmt and clippy too.
ensure_cargo() {
    # SQLite and ring bring C sources.
    need_command cc gcc
    need_packages libc6-dev ca-certificates
    # rustup's folder is not on the PATH of every shell.
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    if ! cargo_is_usable "$1"; then
        say "no cargo of at least $(package_value rust-version) on the PATH that is fit for '$1': taking the distribution's"
        need_packages rustc-web cargo-web rustfmt-web rust-web-clippy
        # All parts must come from the same compiler, so these go before whatever else is on the PATH.
        unset RUSTC RUSTDOC RUSTUP_TOOLCHAIN
        PATH=/usr/bin:$PATH
        hash -r
        cargo_is_usable "$1" || die "needs Rust $(package_value rust-version) or later with cargo, rustfmt and clippy; found $(cargo --version 2>&1)"
    fi
    say "$(cd "$ROOT" && cargo --version)"
}

# ---- independent gRPC implementations, for tests and benches

# An independent gRPC implementation that the tests talk to. Its generator makes the code of the master in Python from
# proto/; that master checks a node's Ed25519 proof with cryptography.
GRPCIO=1.85.1
CRYPTOGRAPHY=50.0.2

# A Python with these, apart from the machine's own packages; made anew when the versions asked for change.
test_python() {
    local venv=${CARGO_TARGET_DIR:-$ROOT/target}/venv
    local packages=("grpcio==$GRPCIO" "grpcio-tools==$GRPCIO" "cryptography==$CRYPTOGRAPHY")
    if [ "$(cat "$venv/made" 2>/dev/null)" != "${packages[*]}" ]; then
        python3 -c 'import ensurepip, venv' 2>/dev/null || need_packages python3-venv
        rm -rf "$venv"
        python3 -m venv "$venv" && "$venv/bin/pip" -q install "${packages[@]}" >&2 || return 1
        echo "${packages[*]}" >"$venv/made"
    fi
    "$venv/bin/python" -c 'import grpc, grpc_tools, cryptography' || return 1
    echo "$venv/bin/python"
}

# peer NAME: one of the peers in Rust, from a workspace of their own.
peer() {
    local folder=${CARGO_TARGET_DIR:-$ROOT/target}/peers
    cargo build --locked --manifest-path "$ROOT/tests/peers/Cargo.toml" --package "$1" --target-dir "$folder" --release >&2 || return 1
    echo "$folder/release/$1"
}

# The same kind of peer on tonic.
tonic_peer() { peer tonic-peer; }

# A proxy for the tests, which start it themselves: as a service it would take port 80.
ensure_nginx() {
    PATH=$PATH:/usr/sbin
    command -v nginx >/dev/null && return 0
    need_packages nginx-light
    if [ -d /run/systemd/system ]; then
        need_root systemctl disable --now --quiet nginx
    else
        need_root service nginx stop >&2 || true
    fi
}

# Debian's registry, as a program for the tests; its service, at a port of its own, is of no use here.
ensure_registry() {
    command -v docker-registry >/dev/null && return 0
    need_packages docker-registry
    if [ -d /run/systemd/system ]; then
        need_root systemctl disable --now --quiet docker-registry
    else
        need_root service docker-registry stop >&2 || true
    fi
}

# ---- the engine
#
# HIVEMIND_ENGINE_DIR names a folder for an engine of one's own, apart from the machine's;
# HIVEMIND_DOCKERD_ARGS are further words for dockerd where this script starts it.
# Two engines in one network namespace share docker0, and --bridge=none deletes it under the other one:
# start an engine of one's own in a namespace of its own (unshare --net) where it matters.

ENGINE_WAIT_S=60

engine_paths() {
    local dir=${HIVEMIND_ENGINE_DIR:-}
    ENGINE_ARGS=()
    if [ -n "$dir" ]; then
        need_root mkdir -p "$dir"
        ENGINE_ARGS=(--host "unix://$dir/docker.sock" --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/docker.pid")
        ENGINE_PID=$dir/docker.pid
        ENGINE_EXEC=$dir/exec
        ENGINE_LOG=$dir/dockerd.log
        export DOCKER_HOST=unix://$dir/docker.sock
    else
        ENGINE_PID=/var/run/docker.pid
        ENGINE_EXEC=/var/run/docker
        ENGINE_LOG=/var/log/hivemind-dockerd.log
    fi
    # The variable holds several words.
    # shellcheck disable=SC2206
    ENGINE_ARGS+=(${HIVEMIND_DOCKERD_ARGS:-})
}

# The docker command and whatever else talks to the engine: by sudo where its socket is not ours to open.
AS_ENGINE_USER=()
engine() { "${AS_ENGINE_USER[@]}" docker "$@"; }

engine_answers() {
    command -v docker >/dev/null || return 1
    timeout 20 docker version --format '{{.Server.Version}}' >/dev/null 2>&1 && return 0
    [ "$(id -u)" -ne 0 ] && command -v sudo >/dev/null || return 1
    timeout 20 sudo -n --preserve-env docker version --format '{{.Server.Version}}' >/dev/null 2>&1 || return 1
    AS_ENGINE_USER=(sudo --preserve-env)
}

# True if the pid file names a running process of that name. One that nobody has reaped yet is dead.
pid_file_is_live() {
    local pid
    pid=$(need_root cat "$1" 2>/dev/null) && [ -n "$pid" ] || return 1
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null
}

# An engine that was killed hard leaves its pid files. Once the numbers belong to others, a new one would refuse to start or wait for them.
remove_stale_pid_files() {
    pid_file_is_live "$ENGINE_PID" dockerd || need_root rm -f "$ENGINE_PID"
    local containerd=$ENGINE_EXEC/containerd/containerd.pid
    pid_file_is_live "$containerd" containerd || need_root rm -f "$containerd"
}

engine_failed() {
    printf 'the last lines of %s:\n' "$ENGINE_LOG" >&2
    need_root tail -n 15 "$ENGINE_LOG" >&2 || true
    die "$1"
}

# Waits until the engine answers; fails at once when its process ends.
wait_for_engine() {
    local end=$((SECONDS + ENGINE_WAIT_S))
    sleep 1
    while [ "$SECONDS" -lt "$end" ]; do
        engine_answers && return 0
        # The pid file appears a moment after the start; the launched process itself is the first sign.
        pid_file_is_live "$ENGINE_PID" dockerd || [ "$SECONDS" -lt $((end - ENGINE_WAIT_S + 10)) ] || return 1
        sleep 1
    done
    return 1
}

iptables_failed() { need_root grep -i 'failed to start daemon' "$ENGINE_LOG" | grep -qi 'iptables\|nf_tables\|NAT chain'; }

launch_engine() {
    say "starting dockerd ${ENGINE_ARGS[*]} $* (log: $ENGINE_LOG)"
    remove_stale_pid_files
    # A session of its own, so that it outlives this script and its terminal.
    # shellcheck disable=SC2016 # the inner shell expands them
    need_root sh -c 'log=$1; shift; exec setsid nohup dockerd "$@" </dev/null >"$log" 2>&1 &' sh "$ENGINE_LOG" "${ENGINE_ARGS[@]}" "$@"
}

install_engine() {
    need_command dockerd docker.io
    need_command iptables iptables
    need_packages ca-certificates
    need_command ps procps
    # Later Debian releases have the client in a package of its own.
    need_command docker docker-cli
    # /usr/sbin is not on every user's PATH, and dockerd needs its helpers there.
    PATH=$PATH:/usr/sbin:/sbin
    # Without an init system nobody has mounted the control groups.
    [ -d /run/systemd/system ] || mountpoint -q /sys/fs/cgroup || { need_packages cgroupfs-mount && need_root cgroupfs-mount; }
}

start_engine() {
    if [ -z "${HIVEMIND_ENGINE_DIR:-}" ] && [ -d /run/systemd/system ]; then
        say "systemctl start docker"
        need_root systemctl start docker || die "docker did not start: see journalctl -u docker"
        local end=$((SECONDS + ENGINE_WAIT_S))
        until engine_answers; do
            [ "$SECONDS" -lt "$end" ] || die "docker started but does not answer: see journalctl -u docker"
            sleep 1
        done
        return 0
    fi
    if pid_file_is_live "$ENGINE_PID" dockerd; then
        say "dockerd runs as process $(need_root cat "$ENGINE_PID") but does not answer yet: waiting"
        wait_for_engine && return 0
        # It may have ended meanwhile: then ours takes its place.
        ! pid_file_is_live "$ENGINE_PID" dockerd ||
            die "dockerd (process $(need_root cat "$ENGINE_PID")) does not answer within $ENGINE_WAIT_S s: look at its log, or stop it and run this again"
    fi
    launch_engine
    wait_for_engine && return 0
    iptables_failed || engine_failed "dockerd did not start"
    # Not beside another engine: the option deletes the bridge that it uses.
    # shellcheck disable=SC2009 # pgrep counts the unreaped too
    ! ps -C dockerd -o stat= | grep -qv '^Z' || engine_failed "dockerd could not set up iptables, and another dockerd runs"
    say "dockerd could not set up iptables: trying without. Containers then have no network; tasks need none by default"
    launch_engine --iptables=false --ip6tables=false --bridge=none
    wait_for_engine || engine_failed "dockerd did not start, with or without iptables"
}

# Makes sure that a Docker engine answers.
ensure_engine() {
    local asked=${DOCKER_HOST:-}
    engine_paths
    if ! engine_answers; then
        # Whoever names an engine of their own must start it themselves.
        [ -z "$asked" ] || [ -n "${HIVEMIND_ENGINE_DIR:-}" ] || [ "$asked" = unix:///var/run/docker.sock ] ||
            die "no engine answers at DOCKER_HOST=$asked"
        install_engine
        engine_answers || start_engine
    fi
    say "engine $(engine version --format '{{.Server.Version}}')"
}
