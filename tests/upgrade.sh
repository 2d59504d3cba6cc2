#!/usr/bin/env bash
# A driver at work while the daemons of its cluster go one by one from Ceph 16 to 18 to 20:
# tests/upgrade. Needs root.
#
#   tests/upgrade.sh          the driver is on this machine's librbd, 16
#   tests/upgrade.sh 18|20    on that one
set -euo pipefail
umask 077

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
program=upgrade
# shellcheck source=lab/common.sh
source lab/common.sh

work=$(mktemp -d --tmpdir upgrade.XXXXXX)
end() {
    set +e
    # Of a test that was killed.
    while read -r lab; do lab/ceph down --dir "$lab"; done < <(find "$work" -name ceph -type d)
    rm -rf "$work"
}
trap end EXIT

upgrade=$(cargo test --workspace --locked --no-run --quiet --test upgrade --message-format=json |
    jq -r 'select(.target.name? == "upgrade" and .executable != null).executable')
command=("$upgrade" --nocapture)
roots=(18 20)
if (($#)); then
    # In the root filesystem of that release the daemons of 16 come from one of their own.
    export LAB_UP='--release 16'
    command=(lab/with "$1" "${command[@]}")
    roots+=(16)
fi
# They cannot be made inside of one, and the time that takes is no upgrade's.
for root in "${roots[@]}"; do lab/with "$root" true; done
TMPDIR=$work "${command[@]}"
[[ -z $(find "$work" -mindepth 1) ]] || { find "$work" >&2; die "the test left files"; }
