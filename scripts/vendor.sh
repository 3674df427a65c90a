#!/usr/bin/env bash
# Puts the sources of all crates into vendor/, for builds without a network.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

ensure_cargo build
cd "$ROOT"
# cargo empties the folder it writes to, so ours with its committed files is filled from another.
NEW=$(mktemp -d "$ROOT/vendor/.new.XXXXXX")
trap 'rm -rf "$NEW"' EXIT
cargo vendor --quiet --locked "$NEW/crates" >/dev/null
find vendor -mindepth 1 -maxdepth 1 -type d ! -name '.new.*' -exec rm -rf {} +
mv "$NEW"/crates/* vendor/
say "$(find vendor -mindepth 1 -maxdepth 1 -type d ! -name '.new.*' | wc -l) crates in vendor/, $(du -sm vendor | cut -f 1) MB"
echo "Build without a network:  cargo build --release --offline --config vendor/config.toml"
