#!/usr/bin/env bash
# Measures the shipped profile. bench.sh NAME prints what was measured and how, then a line for each figure:
#
#   figure NAME VALUE UNIT goal <=|>= NUMBER met|short
#
# It exits 0 when it ran, whether or not a goal was met.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# Each name is a function bench_NAME below.
BENCHES=(size)

# figure NAME VALUE UNIT <=|>= GOAL
figure() {
    local verdict
    verdict=$(awk -v value="$2" -v goal="$5" -v sign="$4" 'BEGIN { print (sign == "<=" ? value <= goal : value >= goal) ? "met" : "short" }')
    echo "figure $1 $2 $3 goal $4 $5 $verdict"
}

build_release() {
    ensure_cargo build
    (cd "$ROOT" && cargo build --release --locked) || die "the build failed"
}

# The smallest, middle and largest of the numbers on stdin.
spread() { sort -n | awk '{ v[NR] = $1 } END { print v[1], v[int((NR + 1) / 2)], v[NR] }'; }

# ---- size: the binary on disk, and an idle standalone node in memory

SIZE_ROUNDS=3
SIZE_IDLE_S=${SIZE_IDLE_S:-15}

# A kB value of /proc/PID/status.
memory_kb() { awk -v key="$2:" '$1 == key { print $2 }' "/proc/$1/status"; }

# Starts a node, lets it idle and appends its figures to the files in $1.
measure_idle() {
    local dir=$1 state pid
    state=$(mktemp -d "$dir/state.XXXXXX")
    "$BINARY" standalone --state "$state" >"$dir/node.log" 2>&1 &
    pid=$!
    local end=$((SECONDS + 30))
    until timeout 5 "$BINARY" status --json --state "$state" >/dev/null 2>&1; do
        if [ ! -d "/proc/$pid" ] || [ "$SECONDS" -ge "$end" ]; then
            tail -n 5 "$dir/node.log" >&2
            kill "$pid" 2>/dev/null || true
            die "the node did not start"
        fi
        sleep 0.2
    done
    sleep "$SIZE_IDLE_S"
    memory_kb "$pid" VmRSS >>"$dir/rss"
    memory_kb "$pid" VmHWM >>"$dir/peak"
    memory_kb "$pid" RssAnon >>"$dir/anon"
    find "/proc/$pid/task" -mindepth 1 -maxdepth 1 | wc -l >>"$dir/threads"
    kill -TERM "$pid"
    wait "$pid" || say "the node ended with code $?"
}

bench_size() {
    local dir bytes name low middle high
    build_release
    ensure_engine
    dir=$(mktemp -d)
    # shellcheck disable=SC2064 # the value of now
    trap "rm -rf '$dir'" EXIT
    bytes=$(stat -c %s "$BINARY")
    echo "binary: release profile, $(cd "$ROOT" && rustc -vV | sed -n 's/^host: //p'), $bytes bytes"
    for _ in $(seq "$SIZE_ROUNDS"); do measure_idle "$dir"; done
    echo "idle: standalone (node and small master in one process), engine connected, $SIZE_IDLE_S s after it was ready, $SIZE_ROUNDS rounds"
    for name in rss anon peak threads; do
        read -r low middle high < <(spread <"$dir/$name")
        echo "  $name: $middle ($low to $high)$([ "$name" = threads ] || echo ' kB')"
    done
    figure binary_size "$(awk -v b="$bytes" 'BEGIN { printf "%.2f", b / 1e6 }')" MB '<=' "${SIZE_GOAL_MB:-5}"
    figure idle_rss "$(spread <"$dir/rss" | awk '{ printf "%.2f", $2 * 1024 / 1e6 }')" MB '<=' "${RSS_GOAL_MB:-10}"
}

if [ $# -ne 1 ] || [[ " ${BENCHES[*]} " != *" $1 "* ]]; then
    echo "usage: bench.sh NAME, with NAME of: ${BENCHES[*]}" >&2
    exit 2
fi
"bench_$1"
