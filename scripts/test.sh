#!/usr/bin/env bash
# Checks everything: format, lints, all tests, those on a real Docker engine among them. Installs what is missing.
#
#   test.sh                  the checks of every change
#   test.sh --full [NAME...] the long parts: all of them, or those named
#
# shellcheck disable=SC2317 # the steps are called by name
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

# The long parts: each name is a function part_NAME below.
PARTS=(demo store soak simulation faults escape vm podman)

DONE=()
FAILED=()

# Runs one step and notes how long it took; a failed one does not keep the others from running.
step() {
    local name=$1 begin=$SECONDS
    shift
    say "$name"
    if ("$@"); then
        DONE+=("$name $((SECONDS - begin)) s")
    else
        FAILED+=("$name")
        say "$name FAILED after $((SECONDS - begin)) s"
    fi
}

# Ends the script by what the steps came to.
finish() {
    local IFS=,
    [ ${#FAILED[@]} -eq 0 ] || die "${#FAILED[@]} of $((${#DONE[@]} + ${#FAILED[@]})) steps failed:${FAILED[*]/#/ }. Passed:${DONE[*]/#/ }"
    printf 'passed:%s\n' "${DONE[*]/#/ }"
    exit 0
}

# ---- the long parts

part_demo() {
    bash scripts/demo.sh && bash scripts/demo.sh
}

# Every call of the store that changes the disk, at each of its first 30 times, is killed or fails; and the power goes
# after each.
part_store() {
    need_command strace strace
    ensure_cargo lints
    HM_STORE_FAULTS=30 HM_STORE_POWER_POINTS=0 cargo test --locked --test store_crash --test store_power
}

# Calls through nginx with a GOAWAY every 20 requests and 1 % injected faults.
part_soak() {
    ensure_nginx
    ensure_cargo build
    HIVEMIND_TEST_TONIC=$(tonic_peer) || die "could not build tests/peers"
    export HIVEMIND_TEST_TONIC
    HM_SOAK_CALLS=${HM_SOAK_CALLS:-1000000} cargo test --locked --test grpc_soak -- --nocapture
}

# A million histories of the core in a simulated world, not 5,000 as in every change: ten minutes on two busy cores.
part_simulation() {
    ensure_cargo build
    HM_SIM_SEEDS=${HM_SIM_SEEDS:-1000000} cargo test --locked --release --test simulation
}

# The fault matrix with its long campaigns.
part_faults() { bash scripts/faults.sh --full; }

# The escape suite with a flood of 10 GB, not of one GiB, and with 200 mixed tasks, not 24: five minutes on two cores.
part_escape() {
    need_command jq jq
    need_command busybox busybox-static
    need_command rootlesskit rootlesskit
    need_command newuidmap uidmap
    ensure_engine
    bash scripts/build-image.sh
    ensure_cargo build
    HM_ESCAPE_OUTPUT_BYTES=${HM_ESCAPE_OUTPUT_BYTES:-10000000000} HM_MIXED_TASKS=${HM_MIXED_TASKS:-200} \
        cargo test --locked --test sandbox_escape -- --nocapture
}
# The tests of the real engine in a virtual machine with cgroup v2: three minutes with KVM, a quarter of an hour emulated.
part_vm() { bash scripts/vm.sh; }

# Podman's compatible API in the same machine: what holds, and why the worker refuses it.
part_podman() { bash scripts/vm.sh podman; }

run_parts() {
    local name
    for name in "$@"; do
        [[ " ${PARTS[*]} " == *" $name "* ]] || die "no part '$name'; there are: ${PARTS[*]}"
    done
    [ $# -gt 0 ] || set -- "${PARTS[@]}"
    for name in "$@"; do step "$name" "part_$name"; done
    finish
}

# ---- the checks of every change

scripts_parse() {
    local script
    for script in scripts/*.sh .ci/run; do bash -n "$script" || return 1; done
}

# They are run by scripts/fuzz.sh; here they must only keep up with the code.
fuzz_targets_compile() {
    need_command g++ g++
    cargo check --locked --manifest-path tests/fuzz/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-$ROOT/target}/fuzz"
}

# All tests; what failed is said once more behind them, where it is found.
run_tests() {
    local log status=0
    log=$(mktemp)
    cargo test --locked --no-fail-fast 2>&1 | tee "$log" || status=1
    [ $status -eq 0 ] || {
        say "what failed"
        grep -A 3 -E "^thread '.*' .*panicked at|^(error|warning: unused)" "$log" | grep -v '^stack backtrace:' | tail -n 80
    }
    rm -f "$log"
    return $status
}

case ${1:-} in
'') ;;
--full)
    shift
    run_parts "$@"
    ;;
*) die "usage: test.sh [--full [NAME...]], with NAME of: ${PARTS[*]}" ;;
esac

need_command python3 python3
need_command jq jq
need_command strace strace
need_command unshare util-linux
need_command busybox busybox-static
need_command ip iproute2
need_command iptables iptables
need_command nft nftables
need_command rootlesskit rootlesskit
need_command newuidmap uidmap
need_command runsc runsc
need_command mkfs.ext4 e2fsprogs
need_command losetup mount
ensure_nginx
ensure_registry
ensure_engine
ensure_cargo lints
[ ${#AS_ENGINE_USER[@]} -eq 0 ] || die "the tests open the engine's socket: run this as root, or as a member of the group docker"
say "python with grpcio $GRPCIO"
HIVEMIND_TEST_PYTHON=$(test_python) || die "could not make a Python with grpcio $GRPCIO"
export HIVEMIND_TEST_PYTHON
say "tonic peer"
HIVEMIND_TEST_TONIC=$(tonic_peer) || die "could not build tests/peers"
export HIVEMIND_TEST_TONIC

step scripts scripts_parse
step image bash scripts/build-image.sh
step format cargo fmt --check
step "format of peers" cargo fmt --check --all --manifest-path tests/peers/Cargo.toml
step clippy cargo clippy --locked --all-targets -- -D warnings
step "fuzz targets" fuzz_targets_compile
step build cargo build --locked
step tests run_tests
finish
