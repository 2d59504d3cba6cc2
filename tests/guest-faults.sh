#!/usr/bin/env bash
# What krbd's volumes go through with their nodes: the node plugin killed under load, the plug
# pulled, a node that is frozen or cut off, fenced by the controller and comes back. Two guests, a
# controller and a Ceph beside them. Needs root. GUEST_KERNEL is the guests' kernel, as `lab/guest
# up --kernel` takes it.
set -euo pipefail
umask 077

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
program=guest-faults
# shellcheck source=lab/common.sh
source lab/common.sh

work=$(mktemp -d --tmpdir guest-faults.XXXXXX)
writer=
controller=

end() {
    set +e
    stop_writer
    stop_controller
    [[ ! -d $work/ceph ]] || lab/ceph down --dir "$work/ceph" >&2
    lab/guest --dir "$work/guest" down
    rm -rf "$work"
}
trap end EXIT

# on N COMMAND…: tests/guest-node.sh in guest N.
on() { lab/guest --dir "$work/guest" --guest "$1" run env "${variables[@]}" "$here/tests/guest-node.sh" "${@:2}"; }
machine() { lab/guest --dir "$work/guest" --guest "$1" "${@:2}"; }
ceph() { machine 1 net env CEPH_CONF="$work/ceph/ceph.conf" "$@"; }

# start_controller: the driver as a controller that fences, in the guests' network.
start_controller() {
    local variable
    for variable in "${variables[@]}"; do export "${variable?}"; done
    printf -- '- clusterID: lab\n  monitors: ["%s"]\n  userID: "%s"\n  keyFile: "%s"\n  pools: ["rbd"]\n' \
        "$LAB_MONITORS" "$LAB_USER" "$LAB_KEY_FILE" >"$work/clusters.yaml"
    setsid lab/guest --dir "$work/guest" net "$here/target/debug/cinderblock" serve --role controller --endpoint "unix://$work/csi.sock" \
        --config "$work/clusters.yaml" >"$work/controller.log" 2>&1 &
    controller=$!
    wait_until 300 "the controller" call probe
}

stop_controller() {
    [[ -z $controller ]] || kill -- "-$controller" 2>/dev/null || true
    controller=
}

# call RPC …: asks the controller.
call() { "$here/target/debug/cinderblock" call --endpoint "unix://$work/csi.sock" --timeout 150s --output json "$@" >"$work/answer" 2>&1; }
ask() { call "$@" || { cat "$work/answer" "$work/controller.log" >&2; die "$1 failed"; }; }

# write_in_background N IMAGE: guest N writes; what is durable is named in $work/written.
write_in_background() {
    : >"$work/written"
    setsid lab/guest --dir "$work/guest" --guest "$1" run env "${variables[@]}" "$here/tests/guest-node.sh" write "$2" \
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
    wait_until 600 "the writer" has_written $(($(durable) + $1))
    kill -0 "$writer" 2>/dev/null || { tail -n 5 "$work/written" "$work/writer.log" >&2; die "the writer failed"; }
}

blocklisted() { ceph ceph --id admin osd blocklist ls 2>/dev/null | grep -c . || true; }

expect() { if [[ $1 != "$2" ]]; then die "$3: $1, not $2"; fi; }

mkdir "$work/ceph"
machine 1 net lab/ceph up --dir "$work/ceph" --address 10.77.0.1 --monitor-round 0.05
mapfile -t variables < <(lab/ceph env --dir "$work/ceph" | sed 's/^export //' | xargs -n 1 printf '%s\n')
ceph rbd --id admin create --size 256M rbd/reset
machine 1 up --kernel "${GUEST_KERNEL:-6.1}"
machine 2 up --kernel "${GUEST_KERNEL:-6.1}"

say "the node plugin is killed five times while a volume is written to"
on 1 start
on 1 stage reset
write_in_background 1 reset
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
say "$count files were told to be durable, all of them are there; files found: $(on 1 verify reset "$count")"
on 1 unstage reset

# publish VOLUME NODE GUEST: publishes a volume to a node and stages it there.
publish() {
    ask controller-publish "lab/rbd/csi-$1" --node "$2"
    cp "$work/answer" "$work/context-$2-$1"
    on "$3" stage "csi-$1" "$work/context-$2-$1"
}

is_unwatched() { ! ceph rbd --id admin status "rbd/csi-$1" | grep -q watcher=; }

# away HOW: the first node freezes, or goes on without a network. back HOW: it is as before.
away() { if [[ $1 == frozen ]]; then machine 1 stop; else machine 1 net ip link set tap1 down; fi; }
back() { if [[ $1 == frozen ]]; then machine 1 cont; else machine 1 net ip link set tap1 up; fi; }

# lose VOLUME HOW SNAPSHOT [PARAMETER…]: the first node, which writes to it, is away until its watch
# has ended, and the volume is given to the second. With a SNAPSHOT that is cut before, while the
# node is idle. The first node's other volume is not touched.
lose() {
    local volume=$1 how=$2 snapshot=$3 before listed second
    local -a parameters=()
    for parameter in "${@:4}"; do parameters+=(--parameter "$parameter"); done
    say "a node with two volumes is $how, and $volume is taken from it"
    ask create-volume --name "$volume" --size 256MiB --parameter clusterID=lab --parameter pool=rbd "${parameters[@]}"
    publish "$volume" first 1
    write_in_background 1 "csi-$volume"
    more_durable 5
    if [[ $snapshot != - ]]; then
        on 1 pause
        ask create-snapshot "lab/rbd/csi-$volume" --name "$snapshot"
    fi
    away "$how"
    before=$(durable)
    listed=$(blocklisted)
    call controller-publish "lab/rbd/csi-$volume" --node second && die "a volume that another node writes to was published"
    wait_until 300 "the watch to end" is_unwatched "$volume"
    ask controller-unpublish "lab/rbd/csi-$volume" --node first
    expect "$(blocklisted)" $((listed + 1)) "clients on the blocklist"
    publish "$volume" second 2
    on 2 verify "csi-$volume" "$before" >/dev/null
    second=/tmp/node/staging/csi-$volume/second
    machine 2 run bash -c "head -c 8M /dev/urandom >$second && sync $second && sha256sum $second" >"$work/sum"
    say "the second node has it, with all $before durable files; the first is back"
    back "$how"
    [[ $snapshot == - ]] || on 1 resume
    wait "$writer" && die "the first node writes on"
    writer=
    expect "$(durable)" "$before" "files the first node took for durable"
    # A client that was cut off connects anew only when the kernel's TCP has given up the old
    # connections, which takes minutes.
    wait_until 900 "the first node to tell that it was fenced" is_told "csi-$volume"
    on 1 health "csi-$volume" >&2
    write_in_background 1 csi-kept
    more_durable 5
    say "it writes on to its other volume"
    stop_writer
    on 1 unstage "csi-$volume"
    on 2 unstage "csi-$volume"
    on 2 stage "csi-$volume" "$work/context-second-$volume"
    machine 2 run sha256sum "$second" | diff - "$work/sum"
    on 2 verify "csi-$volume" "$before" >/dev/null
    on 2 unstage "csi-$volume"
    ask controller-unpublish "lab/rbd/csi-$volume" --node second
    expect "$(blocklisted)" $((listed + 1)) "clients on the blocklist after the second node let go"
    publish "$volume" first 1
    on 1 verify "csi-$volume" "$before" >/dev/null
    on 1 unstage "csi-$volume"
    say "its writes failed, the second's are whole, and it can have the volume again"
}

is_told() { on 1 health "$1" | grep -q ClientBlocklisted; }

start_controller
on 2 start
ask create-volume --name kept --size 256MiB --parameter clusterID=lab --parameter pool=rbd
publish kept first 1
lose unlocked frozen - imageFeatures=layering
lose locked frozen -
lose idle frozen snapshot
lose partitioned cut-off - imageFeatures=layering
on 1 unstage csi-kept
machine 2 run modprobe -r rbd # which works when nothing is mapped
