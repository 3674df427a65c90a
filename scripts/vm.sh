#!/usr/bin/env bash
# Runs the tests of the real engine in a small virtual machine with cgroup v2, which this machine need not have.
#
#   vm.sh [docker]   Docker Engine, once with each cgroup driver
#   vm.sh podman     Podman's compatible API
#
# The machine is Debian's kernel and packages under QEMU: with KVM where that starts a kernel, else emulated, which takes
# several times as long. It has no network device. It sees a copy of the checkout and of the built tests, read-only, and
# what it writes is thrown away. Its root file system is kept in the target folder, and made anew when its recipe changes.
#
# HM_VM_LIMIT_S bounds the run (default: 900 with KVM, 2400 without); HM_VM_KEEP=1 keeps its logs.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

ENGINE=${1:-docker}
case $ENGINE in
docker | podman) ;;
*) die "usage: vm.sh [docker|podman]" ;;
esac

# What is built for the run; the guest's script says which of it is run.
TESTS=(sandbox_engine sandbox_cgroup docker_engine node_kill)
[ "$ENGINE" = docker ] || TESTS=(sandbox_podman)

SUITE=bookworm
PACKAGES=(
    linux-image-cloud-amd64 systemd-sysv dbus kmod procps iproute2 util-linux
    docker.io iptables apparmor busybox-static
    podman crun netavark catatonit
)
# Only what the packages do not bring; Docker and containerd start when the guest's script asks for them.
MASKED=(apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer
    systemd-timesyncd.service getty@tty1.service serial-getty@ttyS0.service systemd-update-utmp.service podman.service
    podman.socket podman-auto-update.timer podman-restart.service podman-clean-transient.service docker.service docker.socket)
# Docker needs room for the images and for the tests that fill a disk.
DISK=4G
MEMORY_MIB=${HM_VM_MEMORY_MIB:-3072}
# A kernel that KVM can start says its first word within this time.
KVM_PROBE_S=20

TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
WORK=
QEMU_PID=

clean_up() {
    [ -z "$QEMU_PID" ] || kill -KILL "$QEMU_PID" 2>/dev/null || true
    [ -z "$WORK" ] || [ -n "${HM_VM_KEEP:-}" ] || rm -rf "$WORK"
    [ -z "$WORK" ] || [ -z "${HM_VM_KEEP:-}" ] || say "logs are in $WORK"
}
trap clean_up EXIT
# A signal ends the script by way of that trap.
trap 'exit 130' INT TERM

# ---- the root file system

# Runs on the finished tree ($1): what is done at each start, and what is not.
finish_tree() {
    local tree=$1 unit
    for unit in "${MASKED[@]}"; do ln -sf /dev/null "$tree/etc/systemd/system/$unit"; done
    # The guest's script comes with the disk of each run, so that a change of it needs no new tree.
    cat >"$tree/etc/systemd/system/hivemind-tests.service" <<'UNIT'
[Unit]
After=local-fs.target dbus.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'mkdir -p /run/share && mount -o ro /dev/vdb /run/share && exec bash /run/share/run >/dev/ttyS1 2>&1'
ExecStopPost=/sbin/reboot --force --force
UNIT
    ln -sf ../hivemind-tests.service "$tree/etc/systemd/system/multi-user.target.wants/hivemind-tests.service"
    echo hivemind-vm >"$tree/etc/hostname"
    printf '127.0.0.1 localhost hivemind-vm\n::1 localhost\n' >"$tree/etc/hosts"
    printf '/dev/vda / ext4 rw,noatime 0 0\n' >"$tree/etc/fstab"
    : >"$tree/etc/machine-id"
    rm -f "$tree"/etc/apt/sources.list "$tree"/etc/apt/sources.list.d/* "$tree"/etc/apt/apt.conf.d/99mmdebstrap
    rm -rf "$tree"/var/cache/debconf/* "$tree"/usr/lib/*/gconv
}

# This machine's sources of Debian, third parties' left out; a Debian of another release gets its own.
debian_sources() {
    # shellcheck disable=SC2016 # apt expands them
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' | sort -u | grep " $SUITE"
}

make_image() {
    local options=() path began=$SECONDS
    say "making the root file system of the virtual machine ($SUITE: ${PACKAGES[*]})"
    need_command mmdebstrap mmdebstrap
    need_command mkfs.ext4 e2fsprogs
    [ -n "$(debian_sources)" ] || refresh_packages
    debian_sources >"$WORK/sources.list" || die "apt knows no source of Debian $SUITE on this machine"
    apt-config dump | grep -E '^Acquire::(http|https)::' >"$WORK/apt.conf" || true
    for path in doc man info locale lintian; do options+=("--dpkgopt=path-exclude=/usr/share/$path/*"); done
    [ ! -e /usr/share/keyrings/debian-archive-keyring.gpg ] || options+=(--keyring=/usr/share/keyrings/debian-archive-keyring.gpg)
    mkdir "$WORK/tree"
    mmdebstrap --variant=essential --hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr \
        --include="$(printf '%s,' "${PACKAGES[@]}")" --aptopt='Apt::Install-Recommends "false"' --aptopt="$WORK/apt.conf" \
        "${options[@]}" --format=directory "$SUITE" "$WORK/tree" "$WORK/sources.list" >"$WORK/mmdebstrap.log" 2>&1 || {
        tail -n 20 "$WORK/mmdebstrap.log" >&2
        die "mmdebstrap failed"
    }
    finish_tree "$WORK/tree"
    rm -rf "$IMAGE_DIR"
    mkdir -p "$IMAGE_DIR"
    cp "$WORK"/tree/boot/vmlinuz-* "$IMAGE_DIR/vmlinuz"
    cp "$WORK"/tree/boot/initrd.img-* "$IMAGE_DIR/initrd"
    rm -rf "$WORK"/tree/boot/*
    truncate -s "$DISK" "$IMAGE_DIR/root.ext4"
    mkfs.ext4 -q -F -d "$WORK/tree" "$IMAGE_DIR/root.ext4"
    rm -rf "$WORK/tree"
    echo "$RECIPE" >"$IMAGE_DIR/recipe"
    say "made it in $((SECONDS - began)) s: $(du -h "$IMAGE_DIR/root.ext4" | cut -f 1)"
}

# ---- what it is given

# The built test binaries, one path a line; the library's own tests among them.
build_tests() {
    local name words=()
    for name in "${TESTS[@]}"; do words+=(--test "$name"); done
    cargo test --locked --no-run --message-format=json --lib "${words[@]}" >"$WORK/cargo.json" || die "the tests do not build"
    jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable)
        | (if .target.kind[0] == "test" then .target.name else .target.kind[0] end) + " " + .executable' "$WORK/cargo.json"
    jq -r 'select(.reason == "compiler-artifact" and (.profile.test | not) and .executable) | "worker " + .executable' "$WORK/cargo.json"
}

# A file system with the checkout and the binaries at the paths that were compiled into them, and the base image.
make_share() {
    local files=()
    mapfile -t files < <(cut -d ' ' -f 2- "$WORK/binaries")
    mkdir "$WORK/share"
    cp scripts/vm-guest.sh "$WORK/share/run"
    cp "$WORK/binaries" "$WORK/share/binaries"
    printf '%s\n' "ENGINE=$ENGINE" "ROOT=$ROOT" "IMAGE=$IMAGE" "ACCELERATOR=$ACCELERATOR" >"$WORK/share/settings"
    engine save "$IMAGE:latest" -o "$WORK/share/base.tar"
    mkdir -p "$WORK/share/paths$ROOT"
    cp -a Cargo.toml proto scripts src tests "$WORK/share/paths$ROOT/"
    cp --parents "${files[@]}" "$WORK/share/paths/"
    mksquashfs "$WORK/share" "$WORK/share.sqfs" -noI -noD -noF -noX -quiet -no-progress
    rm -rf "$WORK/share"
}

# ---- the machine

# Runs qemu with the words that every start has.
machine() {
    local accelerator=$1
    shift
    qemu-system-x86_64 -nodefaults -no-user-config -display none -monitor none -no-reboot -nic none \
        -accel "$accelerator" -cpu max -smp 2 -m "$MEMORY_MIB" -kernel "$IMAGE_DIR/vmlinuz" -initrd "$IMAGE_DIR/initrd" "$@"
}

# Whether /dev/kvm starts a kernel: there are machines where it is there and does not.
can_kvm() {
    [ -r /dev/kvm ] && [ -w /dev/kvm ] || return 1
    timeout --kill-after=1 "$KVM_PROBE_S" qemu-system-x86_64 -nodefaults -no-user-config -display none -monitor none -no-reboot \
        -nic none -accel kvm -cpu max -m 512 -kernel "$IMAGE_DIR/vmlinuz" -append "console=ttyS0 panic=-1" -serial stdio \
        </dev/null 2>/dev/null | grep -qa -m 1 'Linux version'
}

choose_accelerator() {
    if can_kvm; then
        ACCELERATOR=kvm
        LIMIT_S=${HM_VM_LIMIT_S:-900}
    else
        ACCELERATOR=tcg,thread=multi
        LIMIT_S=${HM_VM_LIMIT_S:-2400}
        say "KVM starts no kernel here: the machine is emulated, which takes several times as long"
    fi
}

run_machine() {
    local began=$SECONDS
    say "starting the virtual machine ($ACCELERATOR, $MEMORY_MIB MiB, at most $LIMIT_S s)"
    : >"$WORK/results"
    # The disk of the root file system stays as it is: what is written goes to a temporary file.
    TMPDIR=$WORK machine "$ACCELERATOR" \
        -drive "file=$IMAGE_DIR/root.ext4,format=raw,if=virtio,snapshot=on,cache=unsafe" \
        -drive "file=$WORK/share.sqfs,format=raw,if=virtio,readonly=on" \
        -append "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off systemd.unified_cgroup_hierarchy=1 systemd.show_status=0 quiet" \
        -serial "file:$WORK/console" -serial "file:$WORK/results" </dev/null >"$WORK/qemu.log" 2>&1 &
    QEMU_PID=$!
    tail -f --pid="$QEMU_PID" -n +1 "$WORK/results" >&2 &
    local follower=$!
    while kill -0 "$QEMU_PID" 2>/dev/null && [ $((SECONDS - began)) -lt "$LIMIT_S" ]; do sleep 1; done
    if kill -KILL "$QEMU_PID" 2>/dev/null; then IS_LATE=1; fi
    wait "$QEMU_PID" 2>/dev/null || true
    QEMU_PID=
    wait "$follower" 2>/dev/null || true
    say "the virtual machine ran for $((SECONDS - began)) s"
}

# ---- all of it

[ "$(uname -m)" = x86_64 ] || die "this script knows only x86_64 machines"
[ "$(id -u)" -eq 0 ] || die "run this as root: it makes a root file system"
need_command qemu-system-x86_64 qemu-system-x86
need_command mksquashfs squashfs-tools
need_command jq jq
ensure_engine
ensure_cargo build
engine image inspect "$IMAGE" >/dev/null 2>&1 || bash scripts/build-image.sh >&2

mkdir -p "$TARGET/vm"
WORK=$(mktemp -d "$TARGET/vm/run.XXXXXX")
IMAGE_DIR=$TARGET/vm/image
RECIPE=$({
    declare -f finish_tree make_image
    echo "$SUITE ${PACKAGES[*]} ${MASKED[*]} $DISK"
} | sha256sum | cut -c 1-32)
[ "$(cat "$IMAGE_DIR/recipe" 2>/dev/null)" = "$RECIPE" ] || make_image

say "building the tests"
build_tests >"$WORK/binaries"
IS_LATE=
choose_accelerator
make_share
run_machine
VERDICT=$(tr -d '\r' <"$WORK/results" | sed -n 's/^vm: exit \([0-9]*\)$/\1/p' | tail -n 1)
if [ "$VERDICT" != 0 ]; then
    tail -n 30 "$WORK/qemu.log" "$WORK/console" >&2
    [ -z "$IS_LATE" ] || die "the virtual machine was not done within $LIMIT_S s (HM_VM_LIMIT_S)"
    [ -n "$VERDICT" ] || die "the virtual machine ended without a result"
    die "tests failed in the virtual machine"
fi
