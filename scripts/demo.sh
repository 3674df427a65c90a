#!/usr/bin/env bash
# Shows the whole of it on a fresh Debian machine: engine, build, base image, a standalone node, six tasks with six different ends.
# Prints DEMO OK and exits 0 only if each task ended as it should and nothing of ours is left. --keep leaves the node running.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

export LC_ALL=C

KEEP=
case ${1:-} in
'') ;;
--keep) KEEP=1 ;;
*) die "usage: demo.sh [--keep]" ;;
esac

TASKS=(wordcount primes exit3 stubborn childoom cancelled)
# task: outcome, exit code of submit --wait, exit code of the task itself ("-": not checked)
declare -A EXPECTED=(
    [wordcount]='Succeeded 0 0'
    [primes]='Succeeded 0 0'
    [exit3]='Failed 3 3'
    [stubborn]='TimedOut 124 -'
    [childoom]='OutOfMemory 137 0'
    [cancelled]='Cancelled 130 -'
)
# What the node lends: less than the six tasks want together, so that some wait.
LENT_CPUS=2
LENT_MEMORY=1GiB
# The known number of primes below 500,000,000.
PRIMES=26355867
TASKS_END_S=300
export MONITOR_PORT=${MONITOR_PORT:-5001}

WORK=
NODE_PID=
FAILURES=()
MOST_AT_ONCE=0

fail() {
    FAILURES+=("$*")
    printf 'not as expected: %s\n' "$*" >&2
}

worker() { "${AS_ENGINE_USER[@]}" "$BINARY" "$@"; }

# ---- before and after

# Everything on the engine that a node made, one line each.
labelled_things() {
    engine ps -aq --no-trunc --filter label=hivemind.node | sed 's/^/container /'
    engine network ls -q --no-trunc --filter label=hivemind.node | sed 's/^/network /'
    engine volume ls -q --filter label=hivemind.node | sed 's/^/volume /'
}

# The processes that run our binary on this demo's state folder.
our_processes() {
    local process
    for process in /proc/[0-9]*; do
        [[ $(need_root readlink "$process/exe" 2>/dev/null) == "$(realpath "$BINARY")"* ]] || continue
        tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -q -F "$STATE" && echo "${process#/proc/}"
    done
    return 0
}

# True while the process runs; one that ended and waits to be reaped does not.
is_running() { grep -q '^State:.[^Z]' "/proc/$1/status" 2>/dev/null; }

# Asks the node to end and waits; true if it ended by itself and well.
stop_node() {
    local pid=$NODE_PID code=0 end=$((SECONDS + 45))
    [ -n "$pid" ] || return 0
    NODE_PID=
    need_root kill -TERM "$pid" 2>/dev/null || true
    while is_running "$pid"; do
        if [ "$SECONDS" -ge "$end" ]; then
            say "the node does not end: killing it"
            need_root kill -KILL "$pid"
            return 1
        fi
        sleep 0.1
    done
    wait "$pid" || code=$?
    [ "$code" -eq 0 ] || { say "the node ended with code $code"; return 1; }
}

# shellcheck disable=SC2317 # called by the trap
at_exit() {
    local code=$?
    trap - EXIT
    if [ "$code" -ne 0 ] && [ -n "$WORK" ] && [ -e "$WORK/node.log" ]; then
        printf 'the last lines of %s:\n' "$WORK/node.log" >&2
        tail -n 20 "$WORK/node.log" >&2
    fi
    if [ -n "$NODE_PID" ] && { [ -z "$KEEP" ] || [ "$code" -ne 0 ]; }; then
        stop_node || true
        # Clients that still wait for a node that is gone.
        jobs -p | xargs -r kill 2>/dev/null || true
    fi
    if [ -n "$WORK" ] && [ -z "$NODE_PID" ]; then
        if [ "$code" -eq 0 ]; then need_root rm -rf "$WORK"; else say "kept for a look: $WORK"; fi
    fi
    exit "$code"
}

# ---- the node

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_node() {
    port_is_taken "$MONITOR_PORT" && die "port $MONITOR_PORT is taken (an earlier demo.sh --keep?): stop what holds it, or set MONITOR_PORT"
    say "starting the node: $LENT_CPUS CPUs and $LENT_MEMORY to lend (log: $WORK/node.log)"
    # In a session of its own, so that with --keep it outlives this terminal.
    setsid nohup "${AS_ENGINE_USER[@]}" "$BINARY" standalone --state "$STATE" --cpus "$LENT_CPUS" --memory "$LENT_MEMORY" \
        </dev/null >"$WORK/node.log" 2>&1 &
    NODE_PID=$!
    local end=$((SECONDS + 30))
    until timeout 5 "${AS_ENGINE_USER[@]}" "$BINARY" status --json --state "$STATE" >"$WORK/status.json" 2>"$WORK/status.err"; do
        kill -0 "$NODE_PID" 2>/dev/null || [ -n "${AS_ENGINE_USER[*]}" ] || die "the node ended while starting"
        [ "$SECONDS" -lt "$end" ] || die "the node is not ready after 30 s: $(tail -n 1 "$WORK/status.err")"
        sleep 0.2
    done
}

monitor_url() {
    local monitor
    monitor=$(jq -r '.monitor // empty' "$WORK/status.json")
    echo "${monitor:-http://127.0.0.1:$MONITOR_PORT/monitor.html}"
}

# Asks for the monitor page over a plain socket, since a fresh machine has no curl.
check_monitor() {
    local port line=
    port=$(monitor_url | sed -n 's|.*://[^/]*:\([0-9]*\)/.*|\1|p')
    exec 3<>"/dev/tcp/127.0.0.1/${port:-$MONITOR_PORT}" || { fail "the monitor does not answer at $(monitor_url)"; return; }
    printf 'GET /monitor.html HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nConnection: close\r\n\r\n' "${port:-$MONITOR_PORT}" >&3
    read -r -t 5 line <&3 || true
    exec 3>&-
    [[ $line == HTTP/1.[01]" 200"* ]] || fail "the monitor page: '${line%$'\r'}'"
}

# ---- the tasks

# Copies the task folders; the word count gets its input: the GPL's text, repeated to a few MB.
prepare_tasks() {
    local task text=/usr/share/common-licenses/GPL-3
    [ -r "$text" ] || text=$ROOT/LICENSE
    mkdir "$WORK/tasks" "$WORK/output" "$WORK/result"
    for task in "${TASKS[@]}"; do
        cp -r "$ROOT/tests/tasks/$task" "$WORK/tasks/$task"
        jq --arg name "demo-$task" '.name = $name' "$ROOT/tests/tasks/$task/task.json" >"$WORK/tasks/$task/task.json"
    done
    for _ in $(seq 120); do cat "$text"; done >"$WORK/tasks/wordcount/input.txt"
}

submit_task() {
    local task=$1 code=0
    timeout "$TASKS_END_S" "${AS_ENGINE_USER[@]}" "$BINARY" submit "$WORK/tasks/$task" --wait --json \
        --output "$WORK/output/$task" --state "$STATE" >"$WORK/result/$task.out" 2>"$WORK/result/$task.err" || code=$?
    echo "$code" >"$WORK/result/$task.code"
}

# Notes how many of our tasks run at this moment, and that they stay within what is lent.
sample_load() {
    local ids count nano
    ids=$(engine ps --filter label=hivemind.role=task --format '{{.Label "hivemind.task"}} {{.ID}}' | sed -n 's/^demo-[a-z0-9]* //p')
    [ -n "$ids" ] || return 0
    count=$(wc -l <<<"$ids")
    [ "$count" -le "$MOST_AT_ONCE" ] || MOST_AT_ONCE=$count
    # One may be gone by now: what the others say still counts.
    # shellcheck disable=SC2086 # one word each
    nano=$(engine inspect --format '{{.HostConfig.NanoCpus}}' $ids 2>/dev/null | awk '{ sum += $1 } END { printf "%d", sum }') || true
    [ "${nano:-0}" -le $((LENT_CPUS * 1000000000)) ] || fail "tasks with $nano nano-CPUs ran at once, lent are $LENT_CPUS CPUs"
}

# Cancels the one that is to be cancelled, once it has printed its half-way line.
try_cancel() {
    local log=$WORK/result/cancelled.log
    timeout 5 "${AS_ENGINE_USER[@]}" "$BINARY" logs demo-cancelled --state "$STATE" >"$log" 2>/dev/null || true
    grep -q 'step 30 of 60' "$log" "$WORK/result/cancelled.out" "$WORK/result/cancelled.err" || return 1
    worker cancel demo-cancelled --state "$STATE" >&2 || fail "cancel was refused"
}

run_tasks() {
    local task cancelled=
    say "submitting ${TASKS[*]}"
    for task in "${TASKS[@]}"; do submit_task "$task" & done
    local end=$((SECONDS + TASKS_END_S + 10))
    while [ "$(find "$WORK/result" -name '*.code' -size +0 | wc -l)" -lt ${#TASKS[@]} ]; do
        [ "$SECONDS" -lt "$end" ] || die "the tasks did not end within $TASKS_END_S s"
        sample_load
        [ -n "$cancelled" ] || ! try_cancel || cancelled=1
        sleep 0.3
    done
}

# ---- what came out

# A field of a task's result object, which is the last line that submit printed.
result_of() { tail -n 1 "$WORK/result/$1.out" | jq -r "($2) // \"-\"" 2>/dev/null || echo -; }

check_task() {
    local task=$1 outcome code exit_code want
    read -r outcome code exit_code <<<"${EXPECTED[$task]}"
    want=$(result_of "$task" .outcome)
    [ "$want" = "$outcome" ] || fail "$task: outcome $want, expected $outcome: $(tail -n 1 "$WORK/result/$task.err")"
    want=$(cat "$WORK/result/$task.code")
    [ "$want" = "$code" ] || fail "$task: submit exits with $want, expected $code"
    want=$(result_of "$task" '.exit_code | tostring')
    [ "$exit_code" = - ] || [ "$want" = "$exit_code" ] || fail "$task: exit code $want, expected $exit_code"
}

# Where submit saved a task's output file.
output_file() { find "$WORK/output/$1" -name "$2" -type f 2>/dev/null | head -n 1; }

# Counts the same words by other means.
check_wordcount() {
    local counts
    counts=$(output_file wordcount counts.json)
    [ -n "$counts" ] || { fail "wordcount: no counts.json came back"; return; }
    # The C locale is set above; the classes of tr would say the same in more letters.
    # shellcheck disable=SC2018,SC2019
    tr 'A-Z' 'a-z' <"$WORK/tasks/wordcount/input.txt" | tr -cs 'a-z' '\n' | grep . | sort | uniq -c |
        awk '{ print $2, $1 }' | sort >"$WORK/words.expected"
    jq -r 'to_entries[] | "\(.key) \(.value)"' "$counts" | sort >"$WORK/words"
    cmp -s "$WORK/words" "$WORK/words.expected" || fail "wordcount: the counts differ from those of tr, sort and uniq"
    local size digest
    size=$(result_of wordcount '.outputs[] | select(.path | endswith("counts.json")) | .size')
    digest=$(result_of wordcount '.outputs[] | select(.path | endswith("counts.json")) | .sha256')
    [ "$size $digest" = "$(stat -c %s "$counts") $(sha256sum "$counts" | cut -d ' ' -f 1)" ] ||
        fail "wordcount: size or sha256 in the result are not those of the file"
}

check_primes() {
    local report used limit
    limit=$(jq .cpu "$WORK/tasks/primes/task.json")
    report=$(output_file primes primes.json)
    [ -n "$report" ] || { fail "primes: no primes.json came back"; return; }
    [ "$(jq .count "$report")" = $PRIMES ] || fail "primes: $(jq .count "$report") primes, there are $PRIMES"
    used=$(jq --argjson limit "$limit" '.cpu_s / .wall_s / $limit * 100 | round' "$report")
    say "primes: $(jq -r '"\(.cpu_s) s of CPU in \(.wall_s) s"' "$report"): $used % of its limit of $limit CPUs"
    # Below, the machine is too busy to show it; above, the limit does not hold.
    if [ "$used" -lt 70 ] || [ "$used" -gt 110 ]; then fail "primes: used $used % of its CPU limit"; fi
}

check_stubborn() {
    local duration
    duration=$(result_of stubborn '.duration_ms | tostring')
    if ! [[ $duration =~ ^[0-9]+$ ]] || [ "$duration" -lt 3000 ] || [ "$duration" -gt 20000 ]; then
        fail "stubborn: took $duration ms with a timeout of 3 s and 2 s of grace"
    fi
}

check_concurrency() {
    say "at most $MOST_AT_ONCE of the ${#TASKS[@]} tasks ran at once"
    if [ "$MOST_AT_ONCE" -lt 2 ] || [ "$MOST_AT_ONCE" -ge ${#TASKS[@]} ]; then
        fail "$MOST_AT_ONCE tasks at once: some should run together and some wait"
    fi
}

print_table() {
    local task row='%-10s %-12s %9s %10s %12s  %s\n'
    # shellcheck disable=SC2059
    printf "$row" task outcome 'exit code' duration 'peak memory' 'output files'
    for task in "${TASKS[@]}"; do
        # shellcheck disable=SC2059
        printf "$row" "$task" "$(result_of "$task" .outcome)" "$(result_of "$task" '.exit_code | tostring')" \
            "$(result_of "$task" '"\(.duration_ms / 100 | round / 10) s"')" \
            "$(result_of "$task" '"\(.peak_memory_bytes / 104857.6 | round / 10) MiB"')" \
            "$(result_of "$task" '[.outputs[]? | "\(.path) (\(.size) B)"] | join(", ")')"
    done
}

check_nothing_left() {
    local left
    left=$(labelled_things | sort | comm -13 "$WORK/before" -)
    [ -z "$left" ] || fail "left on the engine: ${left//$'\n'/, }"
    left=$(our_processes)
    [ -z "$left" ] || fail "left running: ${left//$'\n'/, }"
}

# ---- the demo

trap at_exit EXIT
need_command jq jq
need_command setsid util-linux
ensure_engine
ensure_cargo build
say "building"
(cd "$ROOT" && cargo build --release --locked) || die "the build failed"
bash "$ROOT/scripts/build-image.sh"

WORK=$(mktemp -d "${TMPDIR:-/tmp}/hivemind-demo.XXXXXX")
STATE=$WORK/state
labelled_things | sort >"$WORK/before"
prepare_tasks
BEGIN=$SECONDS
start_node
run_tasks
TOOK=$((SECONDS - BEGIN))

for task in "${TASKS[@]}"; do check_task "$task"; done
check_wordcount
check_primes
check_stubborn
check_concurrency
check_monitor
print_table
echo "monitor: $(monitor_url)"

if [ -z "$KEEP" ]; then
    stop_node || fail "the node did not end well when it was told to"
    check_nothing_left
fi
[ ${#FAILURES[@]} -eq 0 ] || die "${#FAILURES[@]} of the checks failed"
if [ -n "$KEEP" ]; then
    echo "The node goes on running. Talk to it:  $BINARY status --state $STATE"
    echo "Stop it:  kill $NODE_PID    (then remove $WORK)"
    disown
fi
echo "DEMO OK ($TOOK s from the node's start to the last task's end)"
