#!/usr/bin/env bash
# What a user reads where librados 16 or 20 and a cluster of Ceph 20 do not go together:
# tests/pairings.rs on both. Needs root.
set -euo pipefail
umask 077

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
program=pairings
# shellcheck source=lab/common.sh
source lab/common.sh

work=$(mktemp -d --tmpdir pairings.XXXXXX)
end() {
    set +e
    [[ ! -d $work/ceph ]] || lab/ceph down --dir "$work/ceph" >&2
    rm -rf "$work"
}
trap end EXIT

pairings=$(cargo test --workspace --no-run --quiet --test pairings --message-format=json |
    jq -r 'select(.target.name? == "pairings" and .executable != null).executable')
lab/ceph up --dir "$work/ceph" --release 20 --monitor-round 0.05
eval "$(lab/ceph env --dir "$work/ceph")"
mkdir "$work/tmp"
export TMPDIR=$work/tmp
outcome=0
# This machine's librados is of Ceph 16. Ceph's tools are those of the lab in both runs.
"$pairings" --test-threads 1 --nocapture "$@" || outcome=1
lab/with 20 "$pairings" --test-threads 1 --nocapture "$@" || outcome=1
[[ -z $(find "$work/tmp" -mindepth 1) ]] || { find "$work/tmp" >&2; die "the tests left files"; }
((outcome == 0))
