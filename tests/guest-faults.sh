#!/usr/bin/env bash
# What krbd's volumes go through with their nodes: the node plugin killed under load, the plug pulled, a node that is frozen,
# fenced and wakes up. Two guests and a Ceph beside them. Needs root.
set -euo pipefail
umask 077

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
program=guest-faults
# shellcheck source=lab/common.sh
source lab/common.sh

work=$(mktemp -d --tmpdir guest-faults.XXXXXX)
writer=

end() {
    set +e
    stop_writer
    [[ ! -d $work/ceph ]] || lab/ceph down --dir "$work/ceph" >&2
    lab/guest --dir "$work/guest" down
    rm -rf "$work"
}
trap end EXIT

# on N COMMAND…: tests/guest-node.sh in guest N.
on() { lab/guest --dir "$work/guest" --guest "$1" run env "${variables[@]}" "$here/tests/guest-node.sh" "${@:2}"; }
machine() { lab/guest --dir "$work/guest" --guest "$1" "${@:2}"; }
ceph() { machine 1 net env CEPH_CONF="$work/ceph/ceph.conf" "$@"; }

# write_in_background N: guest N writes; what is durable is named in $work/written.
write_in_background() {
    : >"$work/written"
    setsid lab/guest --dir "$work/guest" --guest "$1" run env "${variables[@]}" "$here/tests/guest-node.sh" write \
        >"$work/written" 2>"$work/writer.log" &
    writer=$!
}

# stop_writer: who listens to a guest that is gone listens for ever.
stop_writer() {
    [[ -z $writer ]] || kill -- "-$writer" 2>/dev/null || true
    writer=
}

durable() { grep -cE '^[0-9]+$' "$work/written" || true; }
has_written() { (($(durable) >= $1)) || ! kill -0 "$writer" 2>/dev/null; }

# more_durable N: waits for N more durable files; fails when the writer does.
more_durable() {
    wait_until 120 "the writer" has_written $(($(durable) + $1))
    kill -0 "$writer" 2>/dev/null || { tail -n 5 "$work/written" "$work/writer.log" >&2; die "the writer failed"; }
}

expect() { if [[ $1 != "$2" ]]; then die "$3: $1, not $2"; fi; }

mkdir "$work/ceph"
machine 1 net lab/ceph up --dir "$work/ceph" --address 10.77.0.1 --monitor-round 0.05
mapfile -t variables < <(lab/ceph env --dir "$work/ceph" | sed 's/^export //' | xargs -n 1 printf '%s\n')
ceph rbd --id admin create --size 256M rbd/reset
ceph rbd --id admin create --size 256M rbd/frozen
machine 1 up
machine 2 up

say "the node plugin is killed five times while a volume is written to"
on 1 start
on 1 stage reset
write_in_background 1
for _ in 1 2 3 4 5; do
    more_durable 3
    on 1 start
    on 1 stage reset
done
more_durable 3
expect "$(machine 1 run ls /sys/bus/rbd/devices | wc -l)" 1 "mapped images"

say "the plug is pulled after $(durable) durable files"
machine 1 reset
stop_writer
count=$(durable)
on 1 start
on 1 stage reset
say "$count files were told to be durable, all of them are there; files found: $(on 1 verify "$count")"
on 1 unstage reset

say "a node is frozen while it writes, and fenced"
on 1 stage frozen
write_in_background 1
more_durable 5
address=$(machine 1 run bash -c 'cat /sys/bus/rbd/devices/*/client_addr')
machine 1 stop
before=$(durable)
ceph ceph --id admin osd blocklist add "$address" 3600 2>&1
on 2 start
on 2 stage frozen
on 2 verify "$before" >/dev/null
machine 2 run bash -c 'head -c 8M /dev/urandom >/tmp/node/staging/second && sync /tmp/node/staging/second && sha256sum /tmp/node/staging/second' \
    >"$work/sum"
say "the second node has it, with all $before durable files; the first wakes up"
machine 1 cont
wait "$writer" && die "the first node writes on"
writer=
expect "$(durable)" "$before" "files the first node took for durable"
on 2 unstage frozen
on 2 stage frozen
machine 2 run sha256sum /tmp/node/staging/second | diff - "$work/sum"
on 2 verify "$before" >/dev/null
on 2 unstage frozen
machine 2 run modprobe -r rbd # which works when nothing is mapped
say "its writes failed, and the second's are whole"
