#!/usr/bin/env bash
# The checks of the repository, stage by stage: `tests/run.sh PART…`, where a part is one of
#
#   lint   formats, scripts, clippy; needs no Ceph
#   test   what `make test` runs: every part of the product once
#   more   what `make test-more` runs: the long rest, and lint
#
# No check is in both test and more. A guest is an emulated machine that runs for minutes on one
# processor, so the guests of all parts run one after another beside the other stages, and the stage
# that waits for a part's guest is the last of that part.
#
# A stage that fails does not keep the others from running. The end tells the outcome of each
# stage, how long it took, and how many seconds of a processor it has used. The daemons of the lab
# and the guest are not in these seconds. Where no terminal shows the output, the end also repeats
# what each failed stage said of its failure.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
export PATH=$here/.tools/bin:$PATH
program=tests
# shellcheck source=lab/common.sh
source lab/common.sh
# shellcheck source=lab/leaks.sh
source lab/leaks.sh

# Test targets of minutes: they belong to more, all others to test.
long_targets=(faults hammer interleavings kill_sweep lineage takeover)

guests='' guest_parts=()
rows=() passed=0 failed=() run_began=$(milliseconds)
logs=$(mktemp -d --tmpdir cinderblock-logs.XXXXXX)
trap end EXIT

# processor_seconds: what ended children of this script have used, in hundredths there.
processor_seconds() {
    local fields
    read -ra fields <"/proc/$$/stat"
    echo $(((fields[15] + fields[16]) / 100))
}

# stage NAME COMMAND…
stage() {
    local name=$1 began used outcome=FAILED
    shift
    printf '\n=== %s: %s\n' "$name" "$*"
    began=$(milliseconds) used=$(processor_seconds)
    # A program that writes to a pipe shows no progress, so a terminal is left to it.
    if [[ -t 1 ]]; then "$@"; else "$@" > >(tee "$logs/$name") 2>&1; fi && outcome=passed
    if [[ $outcome == passed ]]; then passed=$((passed + 1)); else failed+=("$name"); fi
    used=$(($(processor_seconds) - used))
    rows+=("$(printf '%-14s %10s %8s  %s' \
        "$name" "$(seconds_since "$began")" "$used s" "$outcome")")
    [[ $outcome == passed ]]
}

# failures: what the failed stages said of their failures.
failures() {
    local name
    for name in "${failed[@]}"; do
        [[ -f $logs/$name ]] || continue
        printf '\n=== %s failed:\n' "$name"
        grep -E --before-context=2 --after-context=8 \
            '^error|panicked at|FAILED|signal: |^failures:' "$logs/$name" | tail -n 120 || true
    done
}

# summary: the failures, and the table of the stages. Its exit code is that of the whole.
summary() {
    failures
    printf '\n%-14s %10s %8s\n' stage time CPU
    printf '%s\n' "${rows[@]}"
    printf '%-14s %10s\n' together "$(seconds_since "$run_began")"
    printf 'stages: %d passed, %d failed\n' "$passed" "${#failed[@]}"
    ((${#failed[@]} == 0))
}

# --- lint -----------------------------------------------------------------------------------------

check_scripts() {
    local bash='^(#!/usr/bin/env bash|# shellcheck shell=bash)'
    git grep --untracked -lE "$bash" -- lab tests image deploy .ci |
        xargs shellcheck --external-sources --source-path=.
}

# --- the guest ------------------------------------------------------------------------------------

# start_guests: the guest's tests of each part, one part after another.
start_guests() {
    [[ -z $guests ]] || return 0
    mkdir "$logs/guests"
    (
        for part in "${guest_parts[@]}"; do
            outcome=0
            tests/guest.sh "$part" >"$logs/guests/$part" 2>&1 || outcome=$?
            echo "$outcome" >"$logs/guests/$part.outcome"
        done
    ) &
    guests=$!
}

# finish_guest PART: waits for the guest of that part, and prints its output.
finish_guest() {
    local outcome=$logs/guests/$1.outcome
    until [[ -s $outcome ]]; do sleep 1; done
    cat "$logs/guests/$1"
    return "$(<"$outcome")"
}

# --- tests ----------------------------------------------------------------------------------------

# targets PART: cargo's arguments that name the test targets of that part.
targets() {
    local long=" ${long_targets[*]} " name part
    [[ $1 == more ]] || printf '%s\n' --lib --bins
    while read -r name; do
        if [[ $long == *" $name "* ]]; then part="more"; else part="test"; fi
        [[ $1 != "$part" ]] || printf '%s\n' --test "$name"
    done < <(cargo metadata --no-deps --locked --format-version 1 |
        jq --raw-output '.packages[].targets[] | select(.kind == ["test"] and .test).name')
}

build() {
    cargo test --workspace --locked --no-run "${arguments[@]}" --test node --test guest
}

# with_lab COMMAND…: the stages that COMMAND makes, on a Ceph of their own. All their files are in
# $work, so what is left of those afterwards is a leak of a test.
with_lab() {
    work=$(mktemp -d --tmpdir cinderblock-test.XXXXXX)
    stage lab-up lab/ceph up --dir "$work/ceph" --monitor-round 0.05 --namespace rbd/tests ||
        return 0
    eval "$(lab/ceph env --dir "$work/ceph")"
    mkdir "$work/tmp"
    "$@"
    stage leaks wait_until_tests_left_nothing "$work" || true
    stage lab-down lab/ceph down --dir "$work/ceph" || true
    rm -rf "$work"
}

end() {
    [[ -z $guests ]] || { pkill -P "$guests"; kill "$guests"; wait "$guests"; } 2>/dev/null || true
    rm -rf "$logs"
    [[ ! -d ${work:-} ]] || {
        [[ ! -d $work/ceph ]] || lab/ceph down --dir "$work/ceph"
        rm -rf "$work"
    }
}

# cargo_test NAME: the test targets in $arguments, as a stage of that name.
cargo_test() {
    stage "$1" env TMPDIR="$work/tmp" \
        cargo test --workspace --locked --no-fail-fast "${arguments[@]}" || true
}

test_on_ceph() {
    cargo_test cargo-test
    stage csi-sanity env TMPDIR="$work/tmp" tests/csi-sanity.sh || true
}

part_test() {
    stage tools make --no-print-directory tools || return 0
    mapfile -t arguments < <(targets test)
    stage build build || return 0
    start_guests
    with_lab test_on_ceph
    stage newest-pair tests/matrix.sh quick || true
    stage guest finish_guest quick || true
}

part_more() {
    mapfile -t arguments < <(targets more)
    stage more-build build || return 0
    start_guests
    part_lint
    stage lab-test lab/test || true
    stage image tests/image.sh quick target/debug/cinderblock || true
    stage pairings tests/pairings.sh || true
    with_lab cargo_test more-tests
    stage more-guest finish_guest more || true
}

part_lint() {
    stage format cargo fmt --all --check || true
    stage scripts check_scripts || true
    stage clippy cargo clippy --workspace --all-targets --locked -- -D warnings || true
}

(($#)) || set -- test
for part in "$@"; do
    case $part in
    test) guest_parts+=(quick) ;;
    more) guest_parts+=(more) ;;
    lint) ;;
    *) die "$part is no part; there are lint, test and more" ;;
    esac
done
stage packages lab/setup || { summary; exit 1; }
for part in "$@"; do "part_$part"; done
summary
