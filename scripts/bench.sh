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
BENCHES=(size grpc session task queue)

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

# ---- grpc: a unary call, ours beside tonic's and grpcio's, all against the same tonic server

GRPC_ROUNDS=${GRPC_ROUNDS:-7}
# Client and server share this processor, so that nothing overlaps and a call's whole cost shows.
GRPC_CPU=${GRPC_CPU:-1}
GRPC_CALLS=${GRPC_CALLS:-4000}
UPLOAD_BYTES=$((16 << 20))

pinned() { taskset -c "$GRPC_CPU" "$@"; }

# An authority and a certificate for localhost and 127.0.0.1, in the folder $1.
make_certificate() (
    cd "$1"
    printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' >names
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=bench-authority \
        -keyout ca.key -out ca.pem
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout key.pem -out request
    openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem
) 2>/dev/null

# Starts a server that prints "PORT N" into the file $1 and ends with standard input; its port goes to SERVER_PORT.
start_server() {
    local file=$1
    shift
    taskset -c "$GRPC_CPU" "$@" <"$GRPC_DIR/input" >"$file" &
    local end=$((SECONDS + 20))
    until SERVER_PORT=$(sed -n 's/^PORT //p' "$file") && [ -n "$SERVER_PORT" ]; do
        [ "$SECONDS" -lt "$end" ] || die "no port in $file"
        sleep 0.05
    done
}

# contest CASE ARGUMENTS...: each round runs each of CONTESTANTS once; a line of JSON a run goes to CASE.NAME.
contest() {
    local case=$1 round name
    shift
    for round in $(seq "$GRPC_ROUNDS"); do
        for name in "${CONTESTANTS[@]}"; do
            case $name in
            ours) pinned "$GRPC_BENCH" ours "$URL" "$@" ;;
            bare) pinned "$GRPC_BENCH" bare "$URL" "$@" ;;
            raw) pinned "$GRPC_BENCH" raw "127.0.0.1:$ECHO_PORT" "$@" ;;
            tonic) pinned "$TONIC_PEER" bench "$URL" "$@" ;;
            grpcio) pinned "$GRPCIO_PYTHON" "$ROOT/tests/peers/grpcio_peer.py" bench "$URL" "$@" ;;
            esac >>"$GRPC_DIR/$case.$name" || die "$case: $name failed"
        done
        say "$case: round $round of $GRPC_ROUNDS"
    done
}

# The quantity $3 (a jq expression) of each run of NAME $2 in CASE $1, one a line.
quantity() { jq -r "$3" "$GRPC_DIR/$1.$2"; }

# ratio CASE EXPRESSION: of the medians, ours by tonic's.
ratio() {
    local ours tonic
    read -r _ ours _ < <(quantity "$1" ours "$2" | spread)
    read -r _ tonic _ < <(quantity "$1" tonic "$2" | spread)
    awk -v a="$ours" -v b="$tonic" 'BEGIN { printf "%.3f", a / b }'
}

# table CASE TITLE EXPRESSION: a line for each contestant, median and range.
table() {
    local name low middle high
    echo "  $2"
    for name in "${CONTESTANTS[@]}"; do
        read -r low middle high < <(quantity "$1" "$name" "$3" | spread)
        printf '    %-7s %10.2f  (%.2f to %.2f)\n' "$name" "$middle" "$low" "$high"
    done
}

LATENCY_US='.median_ns / 1000'
CPU_US='.cpu_s / .calls * 1e6'
# Of the time that the calls themselves took.
RATE_MBS='.body / .median_ns * 1000'
GROWTH_MIB='(.peak_rss_kib - .start_rss_kib) / 1024'

bench_grpc() {
    need_command python3 python3
    need_command openssl openssl
    need_command jq jq
    need_command taskset util-linux
    ensure_cargo build
    (cd "$ROOT" && cargo build --release --locked --example grpc_bench) || die "the build failed"
    GRPC_BENCH=${CARGO_TARGET_DIR:-$ROOT/target}/release/examples/grpc_bench
    TONIC_PEER=$(tonic_peer) || die "could not build tests/peers"
    GRPCIO_PYTHON=$(test_python) || die "could not make a Python with grpcio"
    GRPC_DIR=$(mktemp -d)
    # shellcheck disable=SC2064 # the value of now
    trap "kill \$(jobs -p) 2>/dev/null; rm -rf '$GRPC_DIR'" EXIT
    # Servers end with their standard input, which this descriptor keeps open.
    mkfifo "$GRPC_DIR/input"
    exec 7<>"$GRPC_DIR/input"
    make_certificate "$GRPC_DIR"
    local ECHO_PORT PLAIN TLS
    start_server "$GRPC_DIR/echo" "$GRPC_BENCH" echo 100
    ECHO_PORT=$SERVER_PORT
    start_server "$GRPC_DIR/plain" "$TONIC_PEER" server
    PLAIN=http://127.0.0.1:$SERVER_PORT
    start_server "$GRPC_DIR/tls" "$TONIC_PEER" server --tls "$GRPC_DIR/cert.pem" "$GRPC_DIR/key.pem"
    TLS=https://localhost:$SERVER_PORT

    echo "client and server on processor $GRPC_CPU; the same tonic server; $GRPC_ROUNDS rounds, interleaved; median (range)"
    URL=$PLAIN CONTESTANTS=(ours tonic grpcio bare raw)
    contest small --calls "$GRPC_CALLS" --body 100
    echo "unary echo of 100 bytes, one after the other, $GRPC_CALLS calls (bare and raw are floors: see grpc_bench.rs)"
    table small "latency, us" "$LATENCY_US"
    table small "CPU of the client a call, us" "$CPU_US"
    CONTESTANTS=(ours tonic)
    contest paced --calls 100 --body 100 --interval-ms 20
    echo "the same, one call every 20 ms"
    table paced "CPU of the client a call, us" "$CPU_US"
    CONTESTANTS=(ours tonic grpcio)
    contest upload --calls 8 --upload "$UPLOAD_BYTES"
    echo "one message of 16 MiB, answered with its length"
    table upload "MB/s" "$RATE_MBS"
    table upload "CPU of the client a call, us" "$CPU_US"
    table upload "growth of resident memory while it runs, MiB (ours: payload included)" "$GROWTH_MIB"
    URL=$TLS CONTESTANTS=(ours tonic)
    contest tls --calls "$GRPC_CALLS" --body 100 --ca "$GRPC_DIR/ca.pem"
    echo "unary echo of 100 bytes over TLS"
    table tls "latency, us" "$LATENCY_US"
    table tls "CPU of the client a call, us" "$CPU_US"

    figure grpc_latency "$(ratio small "$LATENCY_US")" of_tonic '<=' 0.45
    figure grpc_cpu "$(ratio small "$CPU_US")" of_tonic '<=' 0.35
    figure grpc_cpu_paced "$(ratio paced "$CPU_US")" of_tonic '<=' 0.5
    figure grpc_upload_rate "$(ratio upload "$RATE_MBS")" of_tonic '>=' 1
    figure grpc_upload_cpu "$(ratio upload "$CPU_US")" of_tonic '<=' 0.5
    local memory
    read -r _ memory _ < <(quantity upload ours "$GROWTH_MIB" | spread)
    figure grpc_upload_memory "$(printf '%.2f' "$memory")" MiB '<=' 17
    figure grpc_latency_tls "$(ratio tls "$LATENCY_US")" of_tonic '<=' 0.6
}

# ---- session: how fast a node comes back, and what it costs when nothing happens

# The node's back-off has reached its longest pause by then, as after an outage of an hour.
SESSION_OUTAGE_S=${SESSION_OUTAGE_S:-120}
# All that wait are held by one node.
SESSION_RESULTS=${SESSION_RESULTS:-100}

bench_session() {
    local output
    ensure_engine
    ensure_cargo build
    need_command strace strace
    need_command unshare util-linux
    need_command busybox busybox-static
    bash "$ROOT/scripts/build-image.sh"
    say "building the tests in the release profile"
    output=$(mktemp)
    # shellcheck disable=SC2064 # the value of now
    trap "rm -f '$output'" EXIT
    (cd "$ROOT" && HM_FIGURES_RESULTS=$SESSION_RESULTS HM_FIGURES_OUTAGE_S=$SESSION_OUTAGE_S HM_FIGURES_MIB=100 \
        HM_FIGURES_HEARTBEATS=30 cargo test --release --locked --test session_figures -- --nocapture --test-threads=1) |
        tee "$output"
    measured() { sed -n "s/^.*measured $1 \\([0-9.]*\\) .*/\\1/p" "$output"; }
    echo "$SESSION_RESULTS results waited for $SESSION_OUTAGE_S s, the large output has 100 MiB"
    figure restart_to_reattached "$(measured restart_to_reattached)" s '<=' 2
    figure first_result_after_outage "$(measured first_result_after_outage)" s '<=' 30
    figure all_results_after_outage "$(measured all_results_after_outage)" s '<=' 60
    figure oldest_last_line "$(measured oldest_last_line)" s '<=' 1
    figure synced_writes_of_idle_heartbeats "$(measured synced_writes_of_idle_heartbeats)" calls '<=' 0
}

# ---- task: a task of the node beside the same by docker commands

TASK_ROUNDS=${TASK_ROUNDS:-25}

bench_task() {
    local dir pid end
    need_command python3 python3
    build_release
    ensure_engine
    bash "$ROOT/scripts/build-image.sh"
    dir=$(mktemp -d)
    "$BINARY" standalone --state "$dir/state" --monitor-port 0 --slots 4 >"$dir/node.log" 2>&1 &
    pid=$!
    # shellcheck disable=SC2064 # the value of now
    trap "kill $pid 2>/dev/null; wait $pid 2>/dev/null; rm -rf '$dir'" EXIT
    end=$((SECONDS + 30))
    until "$BINARY" status --json --state "$dir/state" 2>/dev/null | grep -q '"state": *"ready"'; do
        [ "$SECONDS" -lt "$end" ] || die "the node did not become ready: $(tail -n 5 "$dir/node.log")"
        sleep 0.2
    done
    python3 "$ROOT/scripts/bench_task.py" "$BINARY" "$dir/state" "$pid" "$IMAGE" "$TASK_ROUNDS" >"$dir/seconds"
    # Median of a row, and the ratio of two.
    median() { sed -n "s/^$1 //p" "$dir/seconds" | tr ' ' '\n' | spread | cut -d' ' -f2; }
    by() { awk -v a="$(median "$1")" -v b="$(median "$2")" 'BEGIN { printf "%.3f", a / b }'; }
    echo "the base image, the same options for both, $TASK_ROUNDS rounds, interleaved; median (range), seconds"
    local row low middle high
    while read -r row _; do
        read -r low middle high < <(sed -n "s/^$row //p" "$dir/seconds" | tr ' ' '\n' | spread)
        printf '  %-22s %8.3f  (%.3f to %.3f)\n' "$row" "$middle" "$low" "$high"
    done <"$dir/seconds"
    figure task_with_files "$(by files.ours.wall files.docker.wall)" of_docker '<=' 0.95
    figure task_without_files "$(by plain.ours.wall plain.docker.wall)" of_docker_run '<=' 1.3
    figure task_cpu_of_node "$(by files.ours.node files.docker.children)" of_docker '<=' 0.3
    figure task_burst "$(by burst.docker.wall burst.ours.wall)" throughput_of_xargs '>=' 1
}

# ---- queue: one look at it, by its length

bench_queue() {
    local output
    ensure_cargo build
    output=$(cd "$ROOT" && cargo run --release --locked --quiet --example queue_bench) || die "the bench failed"
    echo "tasks that wait, microseconds of a look: median, longest; the first in line does not fit, all others are tried"
    awk '{ printf "  %6d %10.1f %10.1f\n", $1, $2, $3 }' <<<"$output"
    at() { awk -v n="$1" '$1 == n { print $2 }' <<<"$output"; }
    figure queue_of_10000 "$(at 10000)" us '<=' 1000
    # Linear is 10; the lengths differ by as much.
    figure queue_growth "$(awk -v a="$(at 10000)" -v b="$(at 1000)" 'BEGIN { printf "%.1f", a / b }')" of_1000 '<=' 12
}

if [ $# -ne 1 ] || [[ " ${BENCHES[*]} " != *" $1 "* ]]; then
    echo "usage: bench.sh NAME, with NAME of: ${BENCHES[*]}" >&2
    exit 2
fi
"bench_$1"
