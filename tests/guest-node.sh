#!/usr/bin/env bash
# In a guest: the driver as a node, and one who writes. For tests/guest-faults.sh, which tells the
# lab's variables.
#
#   tests/guest-node.sh start        the driver, in the background; one that runs is killed first, as a crash would
#   tests/guest-node.sh stage IMAGE [CONTEXT], unstage IMAGE     CONTEXT is what controller-publish answered
#   tests/guest-node.sh write IMAGE      writes file after file; each is named when it is durable. Ends when one fails
#   tests/guest-node.sh pause, resume    that, or goes on
#   tests/guest-node.sh verify IMAGE N   the first N files are there, whole; prints how many there are
#   tests/guest-node.sh health IMAGE     why the volume cannot be used, if so
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=/tmp/node
staging=$work/staging/${2:-}
mkdir -p "$staging"
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
        --enable-alpha --config "$work/clusters.yaml" --state-dir "$work/state" </dev/null >>"$work/log" 2>&1 &
    echo $! >"$work/pid"
    until call probe >/dev/null 2>&1; do sleep 0.2; done
    ;;
stage)
    printf %s "$LAB_USER" >"$work/user"
    call stage "lab/rbd/$2" --staging "$staging" --fs-type ext4 --volume-context mounter=rbd \
        --volume-context contentSource=none --secret-file "userID=$work/user" --secret-file "userKey=$LAB_KEY_FILE" \
        ${3:+--context-from "$3"}
    ;;
unstage) call unstage "lab/rbd/$2" --staging "$staging" ;;
health) call node-volume-health "lab/rbd/$2" --path "$staging" ;;
write)
    echo $$ >"$work/writer"
    for ((number = 1; ; number++)); do
        content "$number" >"$staging/$number"
        sync "$staging/$number" "$staging"
        echo "$number"
    done
    ;;
pause) kill -STOP "$(cat "$work/writer")" ;;
resume) kill -CONT "$(cat "$work/writer")" ;;
verify)
    for ((number = 1; number <= $3; number++)); do
        [[ $(<"$staging/$number") == "$(content "$number")" ]] || { echo "file $number is not as it was written"; exit 1; }
    done
    find "$staging" -name '[0-9]*' | wc -l
    ;;
esac
