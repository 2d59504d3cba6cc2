#!/usr/bin/env bash
# In a guest: the driver as a node, and one who writes. For tests/guest-faults.sh, which tells the lab's variables.
#
#   tests/guest-node.sh start        the driver, in the background; one that runs is killed first, as a crash would
#   tests/guest-node.sh stage IMAGE, unstage IMAGE
#   tests/guest-node.sh write N      writes file after file, N at least; each is named when it is durable. Ends when one fails
#   tests/guest-node.sh verify N     the first N files are there, whole; prints how many more
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=/tmp/node
mkdir -p "$work/staging"
call() { "$here/target/debug/cinderblock" call --endpoint "unix://$work/csi.sock" --timeout 150s "$@"; }

# content N: what the N-th file holds.
content() { printf '%0.s'"$1 " {1..500}; }

case $1 in
start)
    # shellcheck disable=SC2046 # one process id each
    kill -KILL $(cat "$work/pid" 2>/dev/null) 2>/dev/null || true
    rm -f "$work/csi.sock"
    printf -- '- clusterID: lab\n  monitors: ["%s"]\n' "$LAB_MONITORS" >"$work/clusters.yaml"
    setsid "$here/target/debug/cinderblock" serve --role node --endpoint "unix://$work/csi.sock" --node-id guest \
        --config "$work/clusters.yaml" --state-dir "$work/state" </dev/null >>"$work/log" 2>&1 &
    echo $! >"$work/pid"
    until call probe >/dev/null 2>&1; do sleep 0.2; done
    ;;
stage)
    printf %s "$LAB_USER" >"$work/user"
    call stage "lab/rbd/$2" --staging "$work/staging" --fs-type ext4 --volume-context mounter=rbd \
        --volume-context contentSource=none --secret-file "userID=$work/user" --secret-file "userKey=$LAB_KEY_FILE"
    ;;
unstage) call unstage "lab/rbd/$2" --staging "$work/staging" ;;
write)
    for ((number = 1; ; number++)); do
        content "$number" >"$work/staging/$number"
        sync "$work/staging/$number" "$work/staging"
        echo "$number"
    done
    ;;
verify)
    for ((number = 1; number <= $2; number++)); do
        [[ $(<"$work/staging/$number") == "$(content "$number")" ]] || { echo "file $number is not as it was written"; exit 1; }
    done
    find "$work/staging" -name '[0-9]*' | wc -l
    ;;
esac
