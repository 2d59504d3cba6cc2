#!/usr/bin/env bash
# Two versions of the driver at work at once, as in a rolling upgrade: tests/versions.sh COMMIT. The
# driver of that commit and that of the working tree get the calls of the same 64 clients on the
# same ten names (tests/hammer), for HAMMER_SECONDS.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
commit=$(git rev-parse --verify "${1:?usage: tests/versions.sh COMMIT}^{commit}")
tree=$here/target/versions/$commit
folder=$(mktemp -d --tmpdir versions.XXXXXX)
trap 'lab/ceph down --dir "$folder/ceph" >/dev/null 2>&1; rm -rf "$folder"' EXIT

if [[ ! -d $tree ]]; then
    mkdir -p "$tree"
    git archive "$commit" | tar -x -C "$tree"
fi
# Crates that both versions use are built once.
CARGO_TARGET_DIR=$here/target/versions/build cargo build --locked --manifest-path "$tree/Cargo.toml"
install "$here/target/versions/build/debug/cinderblock" "$tree/cinderblock"

mkdir "$folder/ceph"
lab/ceph up --dir "$folder/ceph" --monitor-round 0.05
eval "$(lab/ceph env --dir "$folder/ceph")"
HAMMER_SECOND=$tree/cinderblock HAMMER_SECONDS=${HAMMER_SECONDS:-60} \
    cargo test --locked --test hammer -- --nocapture every_answer
