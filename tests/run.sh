#!/usr/bin/env bash
# Every check of the repository, stage by stage: `tests/run.sh` for all, `tests/run.sh lint` for those that need no Ceph.
# A stage that fails does not keep the others from running; the end says which failed, and how long each took.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
export PATH=$here/.tools/bin:$PATH
program=tests
# shellcheck source=lab/common.sh
source lab/common.sh
# shellcheck source=lab/leaks.sh
source lab/leaks.sh

rows=() passed=0 failed=0

# stage NAME COMMAND…
stage() {
    local name=$1 began outcome=passed
    shift
    printf '\n=== %s: %s\n' "$name" "$*"
    began=$(milliseconds)
    if "$@"; then
        passed=$((passed + 1))
    else
        outcome=FAILED
        failed=$((failed + 1))
    fi
    rows+=("$(printf '%-12s %10s  %s' "$name" "$(seconds_since "$began")" "$outcome")")
    [[ $outcome == passed ]]
}

summary() {
    printf '\n'
    printf '%s\n' "${rows[@]}"
    printf 'stages: %d passed, %d failed\n' "$passed" "$failed"
    ((failed == 0))
}

check_scripts() {
    git grep --untracked -lE '^(#!/usr/bin/env bash|# shellcheck shell=bash)' -- lab tests image deploy .ci |
        xargs shellcheck --external-sources --source-path=.
}

lint() {
    stage format cargo fmt --all --check || true
    stage scripts check_scripts || true
    stage clippy cargo clippy --workspace --all-targets -- -D warnings || true
    stage cargo-deny cargo deny --workspace --all-features check bans licenses sources || true
}

# The guest's stage takes minutes of a machine that is emulated: it goes on beside what is not about time.
start_guest() {
    guest_log=$(mktemp --tmpdir cinderblock-guest.XXXXXX)
    trap end_guest EXIT
    tests/guest.sh >"$guest_log" 2>&1 &
    guest=$!
}

# finish_guest: waits for it, and tells what it said.
finish_guest() {
    local outcome=0
    wait "$guest" || outcome=$?
    guest=
    cat "$guest_log"
    return "$outcome"
}

end_guest() {
    [[ -z ${guest:-} ]] || kill "$guest" 2>/dev/null || true
    rm -f "${guest_log:-}"
}

# The guest's tests come first, so that cargo keeps neither of them waiting later.
build() { cargo build --workspace && cargo test --no-run --test node --test guest; }

# Everything below makes its files under $work, so what is left of it afterwards is a leak of a test.
with_ceph() {
    work=$(mktemp -d --tmpdir cinderblock-test.XXXXXX)
    trap end EXIT
    stage lab-up lab/ceph up --dir "$work/ceph" --monitor-round 0.05 --namespace rbd/tests || return 0
    eval "$(lab/ceph env --dir "$work/ceph")"
    mkdir "$work/tmp"
    stage cargo-test env TMPDIR="$work/tmp" cargo test --workspace --no-fail-fast || true
    stage csi-sanity env TMPDIR="$work/tmp" tests/csi-sanity.sh || true
    stage leaks check_leaks || true
    stage lab-down lab/ceph down --dir "$work/ceph" || true
}

left() {
    local namespace
    for namespace in "" $(rbd namespace ls --format json rbd | jq -r '.[].name'); do
        rbd_left rbd "$namespace" || echo "no answer about rbd/$namespace"
        [[ $namespace == @(|tests) ]] || echo "namespace rbd/$namespace"
    done
    rados lspools | sed '/^rbd$/d; s/^/pool /'
    mounts_left "$work"
    loops_left "$work"
    processes_left "$work/tmp"
    find "$work/tmp" -mindepth 1
}

nothing_left() { [[ -z $(left) ]]; }

# The data of deleted snapshots goes when the OSD has trimmed it, in its own time.
check_leaks() {
    wait_until 60 "everything to be gone" nothing_left && return
    left | head -n 40
    return 1
}

end() {
    end_guest
    [[ ! -d $work/ceph ]] || lab/ceph down --dir "$work/ceph"
    rm -rf "$work"
}

stage packages lab/setup || summary
stage tools make --no-print-directory tools || summary
lint
if [[ ${1:-} != lint ]]; then
    stage build build || summary
    start_guest
    stage chart cargo test --test chart || true
    stage lab-test lab/test || true
    stage test-build cargo test --workspace --no-run || true
    stage guest finish_guest || true
    with_ceph
fi
summary
