#!/usr/bin/env bash
# The driver's tests on pairs of a librbd and a Ceph of the releases 16, 18 and 20.
#
#   tests/matrix.sh quick     the newest pair in few minutes: a part of `make test`
#   tests/matrix.sh all       every pair, from the beginning: `make test-matrix`
#   tests/matrix.sh PAIR…     these pairs alone, in place of what is known of them
#   tests/matrix.sh write     puts the table of what is known into docs/reference/compatibility.md
#
# A pair is LIBRBD-on-DAEMONS: 18-on-20 is the driver and Ceph's tools on librbd 18, and daemons of
# Ceph 20. The clients' keys are the newest kind that both have; 20-on-20-aes is 20-on-20 with the
# older kind. Tests are built once, on this machine, and run in each release's root (lab/with).
#
# MATRIX_SUITES names the suites to run, all of the pair's without it. What came of them stays in
# target/matrix/PAIR: SUITE.log, and SUITE with numbers. Needs root.
set -euo pipefail
shopt -s inherit_errexit
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=matrix
# shellcheck source=lab/common.sh
source "$here/lab/common.sh"
# shellcheck source=lab/leaks.sh
source "$here/lab/leaks.sh"
cd "$here"

known=${MATRIX_KNOWN:-target/matrix}
document=docs/reference/compatibility.md
# As many run side by side as pay on two cores: a test waits for Ceph half of its time.
side_by_side=${MATRIX_JOBS:-2}

pairs=(
    20-on-16 16-on-20 20-on-20 18-on-18 16-on-16
    20-on-20-aes 18-on-20 20-on-18 18-on-16 16-on-18
)

# Suites, in the table's order. Every pair runs the first, those of full_pairs the others too.
suites=(integration model csi-sanity)
full_suites=(node kills)
full_pairs=(16-on-16 18-on-18 20-on-20 20-on-16 16-on-20)

# --- the suites ----------------------------------------------------------------------------------

# Targets whose tests ask Ceph for something that releases may answer otherwise.
integration=(rbd controller lists groups metadata modify serve fencing takeover conformance)

suite_integration() {
    local target
    for target in "${integration[@]}"; do run_target "$target"; done
}

suite_model() {
    AGREEMENT_SEQUENCES=15 AGREEMENT_KILLS=18 run_target model_agreement
}

suite_node() {
    NODE_VOLUMES=10 run_target node
}

suite_kills() {
    run_target kill_sweep
}

suite_csi-sanity() { run_sanity; }

# The newest pair's own, for `make test`.
suite_quick() {
    run_target controller
    AGREEMENT_SEQUENCES=5 run_target model_agreement random_sequences
    run_target node use_of_volumes::
    SANITY_ACCESS=mount run_sanity
}

# run_target TARGET [FILTER…]: a test target of cargo's.
run_target() {
    local executable
    executable=$(sed -n "s/^$1 //p" "$known/programs")
    printf '\n=== %s\n' "$*"
    with_result "$executable" "${@:2}"
}

run_sanity() {
    printf '\n=== csi-sanity\n'
    with_result tests/csi-sanity.sh
}

# with_result COMMAND…: what breaks off tells no numbers: it counts as one failure.
with_result() {
    local outcome=0
    timeout --kill-after 30 900 "$@" >"$work/output" 2>&1 || outcome=$?
    cat "$work/output"
    # What libtest and tests/csi-sanity.sh end with. A test may have shown such a line of its own.
    printf '%s' "$result_mark"
    grep -E '^(test result|csi-sanity): .*[0-9]+ passed' "$work/output" | tail -n 1 |
        grep . || echo "broke off with exit code $outcome: 0 passed, 1 failed"
}

result_mark='result --- '

# --- one pair, inside the root of its librbd -----------------------------------------------------

# librbd_of, daemons_of, key_of PAIR
librbd_of() { echo "${1%%-*}"; }
daemons_of() { cut -d- -f3 <<<"$1"; }
key_of() { if [[ $1 == 20-on-20 ]]; then echo aes256k; else echo aes; fi; }

# inside PAIR SUITE…: a cluster, the suites on it, and a look at what they left.
inside() {
    local pair=$1 suite path=$PATH options
    shift
    options=(--key "$(key_of "$pair")")
    [[ $(daemons_of "$pair") == "$(librbd_of "$pair")" ]] ||
        options+=(--release "$(daemons_of "$pair")")
    # Labs that tests bring up are of that release too.
    export LAB_UP="${options[*]}"
    lab/ceph up --dir "$work/ceph" --monitor-round 0.05 --namespace rbd/tests
    eval "$(lab/ceph env --dir "$work/ceph")"
    # The tools that tests call are those of the driver's release.
    export PATH=$path TMPDIR=$work/tmp
    mkdir "$TMPDIR"
    for suite in "$@"; do run_suite "$pair" "$suite"; done
    wait_until_tests_left_nothing "$work" >&2
    lab/ceph down --dir "$work/ceph"
}

# run_suite PAIR SUITE: leaves its log, and its numbers: passed, failed, seconds, date, commit.
run_suite() {
    local file=$known/$1/$2 began=$SECONDS passed failed
    rm -f "$file"
    "suite_$2" >"$file.log"
    passed=$(total passed "$file.log") failed=$(total failed "$file.log")
    echo "$passed $failed $((SECONDS - began)) $(date --utc +%F) $MATRIX_COMMIT" >"$file"
    say "$1 $2: $passed passed, $failed failed, in $((SECONDS - began)) s"
    grep -hE '^test .* FAILED$|^ *\[(FAIL|PANICKED!|TIMEDOUT)\]' "$file.log" | sort -u >&2 || true
}

# total WORD LOG: the sum of the numbers before that word in the lines of results.
total() {
    grep -F -e "$result_mark" "$2" | grep -oE "[0-9]+ $1" |
        awk '{ sum += $1 } END { print sum + 0 }'
}

# --- all of them ---------------------------------------------------------------------------------

# build TARGET…: writes where the test programs are to $known/programs.
build() {
    mkdir -p "$known"
    cargo test --workspace --locked --no-run --message-format json-render-diagnostics \
        "${@/#/--test=}" |
        jq --raw-output 'select(.executable and .profile.test) | "\(.target.name) \(.executable)"' \
            >"$known/programs"
}

# run_pair PAIR SUITE…
run_pair() {
    local pair=$1 work
    # A short name: Ceph's sockets are in it.
    work=$(mktemp -d /tmp/mx.XXXXXX)
    mkdir -p "$known/$pair"
    rm -f "$known/$pair/broken"
    "$here/lab/with" "$(librbd_of "$pair")" "$here/tests/matrix.sh" --inside "$work" "$@" || {
        say "$pair broke off, or left something"
        touch "$known/$pair/broken"
    }
    "$here/lab/ceph" down --dir "$work/ceph"
    # What was cut off may have left labs and drivers. What it mounted went with its namespace. From
    # here the files under loop devices have the root's path before their own.
    processes_left "$work" | while read -r _ pid _; do kill -KILL "${pid%:}" || true; done
    losetup --list --noheadings --output NAME,BACK-FILE | grep -F "$work/" |
        while read -r device _; do losetup --detach "$device" || true; done
    rm -rf --one-file-system "$work"
}

# suites_of PAIR
suites_of() {
    if [[ -n ${MATRIX_SUITES:-} ]]; then
        echo "$MATRIX_SUITES"
    elif [[ " ${full_pairs[*]} " == *" $1 "* ]]; then
        echo "${suites[*]} ${full_suites[*]}"
    else
        echo "${suites[*]}"
    fi
}

# --- the table -----------------------------------------------------------------------------------

# cell PAIR SUITE: what came of it: 40 of 40, 61 s.
cell() {
    local passed failed seconds
    if [[ ! -f $known/$1/$2 ]]; then
        echo -
        return
    fi
    read -r passed failed seconds _ <"$known/$1/$2"
    if ((failed)); then
        echo "$passed passed, **$failed failed**, $seconds s"
    else
        echo "$passed passed, $seconds s"
    fi
}

table() {
    local pair suite row
    row="| librbd | daemons | keys |"
    for suite in "${suites[@]}" "${full_suites[@]}"; do row+=" $suite |"; done
    echo "$row"
    echo "${row//[^|]/-}"
    for pair in $(printf '%s\n' "${pairs[@]}" | sort -V); do
        row="| $(librbd_of "$pair") | $(daemons_of "$pair") | $(key_of "$pair") |"
        for suite in "${suites[@]}" "${full_suites[@]}"; do row+=" $(cell "$pair" "$suite") |"; done
        echo "$row"
    done
}

# failures: the tests that failed, a line each, with the pairs they failed on.
failures() {
    local pair
    for pair in "${pairs[@]}"; do
        sed -nE "s/^test (.*) \.\.\. FAILED$/\1 $pair/p" "$known/$pair"/*.log 2>/dev/null
    done | sort -u |
        awk '{ on[$1] = on[$1] " " $2 } END { for (name in on) print "- `" name "`:" on[name] }' |
        sort
}

# write: the table, in the document's place for it. Every number in it has to be of one commit.
write() {
    local commits pair suite
    commits=$(for pair in "${pairs[@]}"; do
        for suite in "${suites[@]}" "${full_suites[@]}"; do
            cut -d' ' -f5 "$known/$pair/$suite" 2>/dev/null || true
        done
    done | sort -u)
    [[ $(wc -w <<<"$commits") == 1 ]] || die "what is known is of several commits or none: $commits"
    local new
    new=$(mktemp)
    local begin='<!-- matrix begins -->' end='<!-- matrix ends -->'
    grep -qF "$begin" "$document" || die "$document has no place for the table: $begin"
    {
        sed "/$begin/q" "$document"
        echo
        echo "Output of one run of \`make test-matrix\`, on $(date --utc +%F), of commit" \
            "\`$commits\`, on $(nproc) cores:"
        echo
        table
        [[ -z $(failures) ]] || { echo; echo "Failed:"; echo; failures; }
        echo
        sed -n "/$end/,\$p" "$document"
    } >"$new"
    cat "$new" >"$document"
    rm "$new"
}

# --- the command line ----------------------------------------------------------------------------

# targets_of SUITE…: the test targets to build for them.
targets_of() {
    local suite
    for suite in "$@"; do
        case $suite in
        integration) printf '%s\n' "${integration[@]}" ;;
        model) echo model_agreement ;;
        node) echo node ;;
        kills) echo kill_sweep ;;
        quick) printf '%s\n' controller model_agreement node ;;
        csi-sanity) ;;
        *) die "$suite is no suite; there are ${suites[*]} ${full_suites[*]} quick" ;;
        esac
    done | sort -u
}

# run PAIR…: so many side by side. Fails when a test failed or a suite has no numbers.
run() {
    local pair suite passed failed running=0 wanted=()
    for pair in "$@"; do
        for suite in $(suites_of "$pair"); do wanted+=("$pair/$suite"); done
    done
    mapfile -t targets < <(targets_of "${wanted[@]#*/}")
    build "${targets[@]}"
    for pair in "$@"; do
        if ((running == side_by_side)); then
            wait -n || true
            running=$((running - 1))
        fi
        # shellcheck disable=SC2046 # words
        run_pair "$pair" $(suites_of "$pair") &
        running=$((running + 1))
    done
    wait
    unsuccessful=()
    for suite in "${wanted[@]}"; do
        passed=0 failed=0
        read -r passed failed _ 2>/dev/null <"$known/$suite" || true
        ((passed && !failed)) || unsuccessful+=("$suite")
        [[ ! -e $known/${suite%/*}/broken ]] || unsuccessful+=("${suite%/*}")
    done
    ((${#unsuccessful[@]} == 0)) ||
        die "failed or not run, see $known: $(printf '%s\n' "${unsuccessful[@]}" | sort -u | xargs)"
}

MATRIX_COMMIT=${MATRIX_COMMIT:-$(git describe --always --dirty --exclude '*')}
export MATRIX_COMMIT
case ${1:-} in
quick)
    MATRIX_SUITES=quick
    export MATRIX_KNOWN=target/matrix-quick
    known=$MATRIX_KNOWN
    outcome=0
    (run 20-on-20) || outcome=$?
    cat "$known/20-on-20/quick.log" || true
    exit "$outcome"
    ;;
all)
    rm -rf "$known"
    began=$(milliseconds)
    run "${pairs[@]}" || true
    table
    say "all of it in $(seconds_since "$began")"
    ;;
write) write ;;
--inside)
    work=$2
    inside "${@:3}"
    ;;
*-on-*)
    for pair in "$@"; do
        [[ " ${pairs[*]} " == *" $pair "* ]] || die "$pair is no pair; there are ${pairs[*]}"
    done
    run "$@"
    ;;
*)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
    ;;
esac
