#!/usr/bin/env bash
# Runs the fuzz targets of tests/fuzz on the stable toolchain, two at a time at most, and says what came of each.
#
#   fuzz.sh NAME|all [SECONDS]   NAME is a target; SECONDS for each, 1800 by default
#
# Corpora grow in tests/fuzz/corpus, findings are left in tests/fuzz/artifacts; neither is committed. A finding becomes a
# test with its bytes, and a fix.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

TARGETS=(frame hpack connection_client connection_server grpc_client grpc_server inputs)
FUZZ=$ROOT/tests/fuzz
AT_ONCE=2
# Longer inputs only repeat what shorter ones do; frames of the largest size are made by operations.
MAX_LENGTH=4096
# One input takes milliseconds.
TIMEOUT_S=20

[ $# -ge 1 ] && [ $# -le 2 ] || die "usage: fuzz.sh NAME|all [SECONDS], with NAME of: ${TARGETS[*]}"
seconds=${2:-1800}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "no number of seconds: $seconds"
if [ "$1" = all ]; then
    names=("${TARGETS[@]}")
else
    [[ " ${TARGETS[*]} " == *" $1 "* ]] || die "no target '$1'; there are: ${TARGETS[*]}"
    names=("$1")
fi

ensure_cargo build
# The fuzzer itself is C++.
need_command g++ g++
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}/fuzz
if ! cargo fuzz --version >/dev/null 2>&1; then
    say "installing cargo-fuzz"
    cargo install --locked cargo-fuzz
fi

# A few inputs to begin with, written by hand; the rest the fuzzer finds.
seed() {
    mkdir -p "$FUZZ/corpus/$1" "$FUZZ/artifacts/$1"
    if [ "$1" = inputs ]; then
        printf x >"$FUZZ/corpus/$1/x"
        tar cf "$FUZZ/corpus/$1/tar" -C "$FUZZ/corpus/$1" x
        tar czf "$FUZZ/corpus/$1/tar.gz" -C "$FUZZ/corpus/$1" x
        # A zip with the one stored file "x", whose content is "x".
        printf 'PK\003\004\024\0\0\0\0\0\0\0\041\0\203\026\334\214\001\0\0\0\001\0\0\0\001\0\0\0xx' >"$FUZZ/corpus/$1/zip"
        printf 'PK\001\002\024\003\024\0\0\0\0\0\0\0\041\0\203\026\334\214\001\0\0\0\001\0\0\0\001\0\0\0\0\0\0\0\0\0\0\0\244\201\0\0\0\0x' >>"$FUZZ/corpus/$1/zip"
        printf 'PK\005\006\0\0\0\0\001\0\001\0/\0\0\0 \0\0\0\0\0' >>"$FUZZ/corpus/$1/zip"
    fi
    [ "$1" = hpack ] || return 0
    # A block's length in fours goes before it: RFC 7541 C.4.1, C.4.2, C.6.2, size updates.
    printf '\0\005\202\206\204\101\214\361\343\302\345\362\072\153\240\253\220\364\377\0\003\202\206\204\276\130\206\250\353\020\144\234\277' \
        >"$FUZZ/corpus/$1/requests"
    printf '\0\001\040\077\341\037\0\002\110\203\144\016\377\301\300\277' >"$FUZZ/corpus/$1/sizes"
    printf '\001www.example.com' >"$FUZZ/corpus/$1/string"
}

run() {
    nice -n 19 cargo fuzz run --fuzz-dir "$FUZZ" --sanitizer none "$1" -- -max_total_time="$seconds" \
        -max_len="$MAX_LENGTH" -timeout="$TIMEOUT_S" -print_final_stats=1 >"$FUZZ/artifacts/$1.log" 2>&1
}

report() {
    local log=$FUZZ/artifacts/$1.log runs findings
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    findings=$(find "$FUZZ/artifacts/$1" -type f | wc -l)
    printf '%-18s %10s executions %6s s %3s findings\n' "$1" "${runs:-0}" "$2" "$findings"
    [ "$findings" -eq 0 ] && [ -n "$runs" ]
}

say "building"
cargo fuzz build --fuzz-dir "$FUZZ" --sanitizer none
failed=0
for ((i = 0; i < ${#names[@]}; i += AT_ONCE)); do
    pids=()
    for name in "${names[@]:i:AT_ONCE}"; do
        seed "$name"
        begin=$SECONDS
        run "$name" &
        pids+=($!)
    done
    for j in "${!pids[@]}"; do
        wait "${pids[j]}" || failed=1
        report "${names[i + j]}" $((SECONDS - begin)) || failed=1
    done
done
[ "$failed" -eq 0 ] || die "there are findings: see $FUZZ/artifacts"
