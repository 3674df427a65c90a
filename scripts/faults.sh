#!/usr/bin/env bash
# Runs the fault matrix row by row: what tests/faults.table names as the proof of each row.
#
#   faults.sh                 the short form: what takes seconds
#   faults.sh --full          all of it, with the long campaigns
#   faults.sh [--full] ROW... these rows only
#
# Each row ends with ok or FAIL. A row of which something is not proven ends with TODO: the short form lists it, --full
# counts it as failed. The last line is "N passed, N failed".
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

TABLE=tests/faults.table
# Longest time of one row.
ROW_LIMIT_S=7200

usage() { die "usage: faults.sh [--full] [ROW...]"; }

IS_FULL=
ROWS=()
for word in "$@"; do
    case $word in
    --full) IS_FULL=1 ;;
    *[!0-9]* | '') usage ;;
    *)
        grep -q "^row $word |" "$TABLE" || die "no row $word in $TABLE"
        ROWS+=("$word")
        ;;
    esac
done

LOG=$(mktemp -d)
: >"$LOG/passed"
trap 'rm -rf "$LOG"' EXIT

# ---- what the tests need

need_command python3 python3
need_command jq jq
need_command strace strace
need_command unshare util-linux
need_command ip iproute2
need_command iptables iptables
need_command busybox busybox-static
ensure_nginx
ensure_registry
ensure_engine
ensure_cargo build
[ ${#AS_ENGINE_USER[@]} -eq 0 ] || die "the tests open the engine's socket: run this as root, or as a member of the group docker"
engine image inspect "$IMAGE" >/dev/null 2>&1 || bash scripts/build-image.sh >&2
HIVEMIND_TEST_PYTHON=$(test_python) || die "could not make a Python with grpcio $GRPCIO"
HIVEMIND_TEST_TONIC=$(tonic_peer) || die "could not build tests/peers"
export HIVEMIND_TEST_PYTHON HIVEMIND_TEST_TONIC
if [ -n "$IS_FULL" ]; then
    # What is already set stays.
    export HM_STORE_FAULTS=${HM_STORE_FAULTS:-30} HM_STORE_POWER_POINTS=${HM_STORE_POWER_POINTS:-0} HM_KILLS=${HM_KILLS:-200} HM_SIM_SEEDS=${HM_SIM_SEEDS:-100000}
    # 10,000 kills; each call of the state folder.
    export HM_SCRIPTED_KILLS=${HM_SCRIPTED_KILLS:-10000} HM_SCRIPTED_CALLS=${HM_SCRIPTED_CALLS:-0}
    export HM_SOAK_CALLS=${HM_SOAK_CALLS:-1000000} HM_FIGURES_RESULTS=${HM_FIGURES_RESULTS:-100}
    export HM_FIGURES_OUTAGE_S=${HM_FIGURES_OUTAGE_S:-600} HM_FAULT_MUTATIONS=${HM_FAULT_MUTATIONS:-1000000}
fi

say "building the tests"
cargo test --locked --no-run --message-format=json 2>"$LOG/build" >"$LOG/json" || {
    cat "$LOG/build" >&2
    die "the tests do not build"
}
# Name and path of each test binary; the library's own is called lib.
jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable)
    | (if .target.kind[0] == "test" then .target.name else .target.kind[0] end) + " " + .executable' "$LOG/json" >"$LOG/binaries"

# ---- the rows

# Runs tests of one binary by their exact names; fails unless each of them ran.
run_tests() {
    local binary=$1 executable ran
    shift
    executable=$(sed -n "s/^$binary //p" "$LOG/binaries")
    [ -n "$executable" ] || {
        echo "no test binary $binary"
        return 1
    }
    timeout --kill-after=10 "$ROW_LIMIT_S" "$executable" --exact "$@" >"$LOG/out" 2>&1 || {
        cat "$LOG/out"
        return 1
    }
    # A name that no test has any more would be passed over in silence.
    ran=$(sed -n 's/^test result: ok\. \([0-9]*\) passed.*/\1/p' "$LOG/out")
    [ "$ran" = $# ] || {
        cat "$LOG/out"
        echo "$binary: $# tests are named and ${ran:-none} ran: $*"
        return 1
    }
    printf "$binary %s\n" "$@" >>"$LOG/passed"
}

# Lines "BINARY TEST" of a row that are to run now.
tests_of() {
    awk -v wanted="$1" -v full="$IS_FULL" '
        $1 == "row" { is_it = $2 == wanted; next }
        !is_it || NF == 0 || $1 ~ /^#/ || $1 == "missing" { next }
        $1 == "full" { if (full) print $2, $3; next }
        { print $1, $2 }' "$TABLE"
}

missing_of() {
    awk -v wanted="$1" '$1 == "row" { is_it = $2 == wanted; next } is_it && $1 == "missing" { $1 = ""; print substr($0, 2) }' "$TABLE"
}

run_row() {
    local row=$1 binary test
    local -A named=()
    while read -r binary test; do
        # What has passed for another row is not run again.
        grep -qxF "$binary $test" "$LOG/passed" || named[$binary]+=" $test"
    done < <(tests_of "$row")
    for binary in "${!named[@]}"; do
        # The variable holds several names.
        # shellcheck disable=SC2086
        run_tests "$binary" ${named[$binary]} || return 1
    done
}

PASSED=0
FAILED=()
UNPROVEN=()
# Those of which the short form runs nothing.
LEFT=()

judge_row() {
    local row=$1 words begin verdict missing
    words=$(sed -n "s/^row $row | //p" "$TABLE")
    missing=$(missing_of "$row")
    if [ -z "$missing" ] && [ -z "$(tests_of "$row")" ]; then
        LEFT+=("row $row")
        return
    fi
    begin=$(date +%s%N)
    if run_row "$row" >"$LOG/row" 2>&1; then verdict=ok; else verdict=FAIL; fi
    [ "$verdict" = FAIL ] || [ -z "$missing" ] || verdict=TODO
    LC_ALL=C printf 'row %-3s %-76s %8.1f s  %s\n' "$row" "$words" "$((($(date +%s%N) - begin) / 100000000))e-1" "$verdict"
    case $verdict in
    ok) PASSED=$((PASSED + 1)) ;;
    FAIL)
        FAILED+=("$row")
        # Why, where much is behind it; then the end.
        { grep -A 3 "panicked at" "$LOG/row" || true; } | cut -c 1-1000 | sed 's/^/    /' >&2
        sed 's/^/    /' "$LOG/row" | tail -n 80 >&2
        ;;
    TODO) UNPROVEN+=("row $row: $missing") ;;
    esac
}

if [ ${#ROWS[@]} -eq 0 ]; then
    mapfile -t ROWS < <(sed -n 's/^row \([0-9]*\) |.*/\1/p' "$TABLE")
fi
for row in "${ROWS[@]}"; do judge_row "$row"; done

[ ${#LEFT[@]} -eq 0 ] || printf 'left to --full: %s\n' "${LEFT[@]}"
if [ ${#UNPROVEN[@]} -gt 0 ]; then
    printf 'not proven: %s\n' "${UNPROVEN[@]}"
    [ -z "$IS_FULL" ] || for row in "${UNPROVEN[@]}"; do FAILED+=("$row"); done
fi
printf '%d passed, %d failed\n' "$PASSED" ${#FAILED[@]}
[ ${#FAILED[@]} -eq 0 ]
