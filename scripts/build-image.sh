#!/usr/bin/env bash
# Makes the base image for tasks from the distribution's packages, without any image registry.
# The recipe's hash is a label of the image: while it is unchanged, a further run only checks. --force builds anyway.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

PACKAGES=python3,python3-pip,ca-certificates
LABEL=org.hivemind.recipe

case ${1:-} in
'' | --force) ;;
*) die "usage: build-image.sh [--force]" ;;
esac

VERSION=$(package_value version)
SUITE=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
DISTRIBUTION=$(sed -n 's/^ID=//p' /etc/os-release)
RECIPE=$({ cat "$0"; echo "$VERSION $SUITE $PACKAGES"; } | sha256sum | cut -c 1-32)

# Prints the recipe that an image of this tag was made by.
recipe_of() { engine image inspect --format "{{index .Config.Labels \"$LABEL\"}}" "$1" 2>/dev/null || true; }

# This machine's own sources of the distribution, as one-line entries; third parties' are left out.
distribution_sources() {
    # shellcheck disable=SC2016 # apt expands them
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' "Origin: ${DISTRIBUTION^}" | sort -u
}

# What the machine's apt knows about proxies and certificates.
transport_options() { apt-config dump | grep -E '^Acquire::(http|https)::' || true; }

# Runs on the finished tree ($1) before it is packed: user, work folder, and nothing that a task does not need.
finish_tree() {
    local tree=$1
    echo 'task:*:1000:1000:task:/workspace:/bin/sh' >>"$tree/etc/passwd"
    echo 'task:x:1000:' >>"$tree/etc/group"
    install -d -m 0755 -o 1000 -g 1000 "$tree/workspace"
    # The image has no package manager, so pip may write where it is told to.
    rm -f "$tree"/usr/lib/python3*/EXTERNALLY-MANAGED
    rm -rf "$tree"/var/cache/debconf/* "$tree"/var/log/* "$tree"/usr/lib/*/gconv
    # Which mirror and proxy this machine uses is nobody else's business.
    rm -f "$tree"/etc/apt/sources.list "$tree"/etc/apt/sources.list.d/* "$tree"/etc/apt/apt.conf.d/99mmdebstrap
    rm -f "$tree"/etc/machine-id "$tree"/etc/hostname "$tree"/etc/resolv.conf "$tree"/etc/*- "$tree"/var/lib/dpkg/*-old
    # A task has no use for programs that gain rights.
    find "$tree" -xdev -type f -perm /6000 -exec chmod ug-s {} +
}

# mmdebstrap calls this script again for the hook.
if [ -n "${HIVEMIND_IMAGE_TREE:-}" ]; then
    finish_tree "$HIVEMIND_IMAGE_TREE"
    exit 0
fi

ensure_engine
if [ "${1:-}" != --force ] && [ "$(recipe_of "$IMAGE:latest")" = "$RECIPE" ]; then
    engine tag "$IMAGE:latest" "$IMAGE:$VERSION"
    say "image $IMAGE:latest is up to date (recipe $RECIPE)"
    exit 0
fi

need_command mmdebstrap mmdebstrap
[ -n "$SUITE" ] || die "/etc/os-release names no release"
[ -n "$(distribution_sources)" ] || refresh_packages
[ -n "$(distribution_sources)" ] || die "apt knows no source of ${DISTRIBUTION^} on this machine"

WORK=$(mktemp -d)
trap 'need_root rm -rf "$WORK"' EXIT
transport_options >"$WORK/apt.conf"
distribution_sources >"$WORK/sources.list"
chmod 755 "$WORK"

OPTIONS=(
    --variant=essential
    --hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr
    --include="$PACKAGES"
    --aptopt='Apt::Install-Recommends "false"'
    --aptopt="$WORK/apt.conf"
)
for path in doc man info locale lintian; do
    OPTIONS+=(--dpkgopt="path-exclude=/usr/share/$path/*")
done
KEYRING=/usr/share/keyrings/$DISTRIBUTION-archive-keyring.gpg
[ ! -e "$KEYRING" ] || OPTIONS+=(--keyring="$KEYRING")
SELF=$(realpath "$0")
OPTIONS+=(--customize-hook="HIVEMIND_IMAGE_TREE=\"\$1\" bash '$SELF'")

say "building the root file system ($SUITE: $PACKAGES)"
need_root mmdebstrap "${OPTIONS[@]}" "$SUITE" "$WORK/root.tar" "$WORK/sources.list" >"$WORK/log" 2>&1 || {
    tail -n 20 "$WORK/log" >&2
    die "mmdebstrap failed"
}

OLD=$(engine image inspect --format '{{.Id}}' "$IMAGE:latest" 2>/dev/null || true)
say "importing $(need_root stat -c %s "$WORK/root.tar" | awk '{printf "%.0f MB", $1 / 1e6}')"
engine import \
    --change 'USER 1000:1000' \
    --change 'WORKDIR /workspace' \
    --change 'ENV PYTHONUNBUFFERED=1 LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin' \
    --change 'CMD ["python3"]' \
    --change "LABEL $LABEL=$RECIPE" \
    --message "hivemind-worker $VERSION" \
    "$WORK/root.tar" "$IMAGE:latest" >/dev/null
engine tag "$IMAGE:latest" "$IMAGE:$VERSION"
# What this one replaced is of no more use, unless something still holds it.
[ -z "$OLD" ] || engine image rm "$OLD" >/dev/null 2>&1 || true
say "image $IMAGE:latest and :$VERSION: $(engine image inspect --format '{{.Size}}' "$IMAGE:latest" | awk '{printf "%.0f MB", $1 / 1e6}')"
