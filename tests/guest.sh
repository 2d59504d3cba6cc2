#!/usr/bin/env bash
# The mounters rbd and rbd-nbd on a kernel that has them: a guest (lab/guest) and a Ceph beside it,
# in a network of their own. The tests of tests/node run in the guest with each of them, those of
# tests/guest, and csi-sanity's node specs. Needs root.
#
#   tests/guest.sh quick       what `make test` runs: each mounter once
#   tests/guest.sh more        what `make test-more` runs besides
#   tests/guest.sh all         every test of tests/node that applies
#   tests/guest.sh NAME …      those of tests/node alone whose names hold one of these
#
# GUEST_KERNEL is the guest's kernel, as `lab/guest up --kernel` takes it.
set -euo pipefail
umask 077

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
program=guest
# shellcheck source=lab/common.sh
source lab/common.sh

((EUID == 0)) || die "a guest needs root"
work=$(mktemp -d --tmpdir guest-test.XXXXXX)
failures=0

end() {
    set +e
    [[ ! -d $work/ceph ]] || lab/ceph down --dir "$work/ceph" >&2
    lab/guest --dir "$work/guest" down
    rm -rf "$work"
}
trap end EXIT

# test_binary NAME: where cargo has built the test target of that name.
test_binary() {
    cargo test --no-run --quiet --test "$1" --message-format=json |
        jq -r --arg name "$1" 'select(.target.name? == $name and .executable != null).executable'
}

guest() { lab/guest --dir "$work/guest" "$@"; }

# in_guest WHAT COMMAND…: one part of the whole, with the lab's variables.
in_guest() {
    local what=$1 began
    shift
    began=$(milliseconds)
    guest run env "${variables[@]}" TMPDIR=/tmp/guest RUST_BACKTRACE=0 CINDERBLOCK="$here/target/debug/cinderblock" "$@" ||
        { failures=$((failures + 1)); say "$what: FAILED"; }
    say "$what: $(seconds_since "$began")"
}

# What of tests/node runs over which mounter. Each test takes seconds in an emulated machine, so all
# of it is for `make test-guest`.
quick_of_rbd=(growth::xfs a_restarted_driver the_key_is_in a_refused_attach)
quick_of_rbd_nbd=(a_restarted_driver the_key_is_in)
more_of_rbd=(
    pods_write_on steps:: growth::ext4 growth::images growth::growth_beyond a_fenced a_watch_that
    a_filesystem_that a_read_only_block a_block_device_in_use a_reader_sees_what
)
more_of_rbd_nbd=(
    a_driver_killed_while_unstaging growth_beyond a_watch_that data_on_a_block
    a_block_device_in_use a_refused_attach
)
# Of all steps a driver could die after, one in so many.
stride=8
skipped=(
    # A storage daemon that dies or is interrupted: the mounter fuse.
    --skip a_volume_whose_daemon --skip an_attach_that_stopped_half_way --skip an_interrupted_growth
    --skip a_device_that_does_not_answer
    # Nodes that share a kernel share its clients.
    --skip of_readers_on_many_nodes
    # `rbd du` counts whole objects; the kernel trims them to pieces.
    --skip trimmed_space_goes_back
)
(($#)) || set -- more
node=$(test_binary node)
own=$(test_binary guest)
guest up --kernel "${GUEST_KERNEL:-6.1}"
guest net lab/ceph up --dir "$work/ceph" --address 10.77.0.1 --monitor-round 0.05 --namespace rbd/tests
mapfile -t variables < <(lab/ceph env --dir "$work/ceph" | sed 's/^export //' | xargs -n 1 printf '%s\n')
[[ $1 == @(quick|more) ]] || stride=1
variables+=("NODE_VOLUMES=${NODE_VOLUMES:-20}" "NODE_KILL_STRIDE=${NODE_KILL_STRIDE:-$stride}")
guest run mkdir -p /tmp/guest

over_rbd() {
    in_guest "tests/node over rbd" NODE_MOUNTER=rbd "$node" --test-threads 2 "$@" "${skipped[@]}"
}

over_rbd_nbd() {
    in_guest "tests/node over rbd-nbd" NODE_MOUNTER=rbd-nbd "$node" --test-threads 2 "$@" "${skipped[@]}"
}

# sanity MOUNTER ACCESS…
sanity() {
    in_guest "csi-sanity over $1" SANITY_MOUNTER="$1" SANITY_FOCUS='Node Service' SANITY_ACCESS="${*:2}" "$here/tests/csi-sanity.sh"
}

# nearly_all ACCESS…: all but what is quick's, with csi-sanity of rbd-nbd with these kinds of
# access.
nearly_all() {
    over_rbd "${more_of_rbd[@]}"
    in_guest "tests/guest over rbd" NODE_MOUNTER=rbd "$own" --test-threads 1 krbd::
    sanity rbd mount block
    over_rbd_nbd "${more_of_rbd_nbd[@]}"
    in_guest "tests/guest over rbd-nbd" NODE_MOUNTER=rbd-nbd "$own" --test-threads 1 nbd::
    sanity rbd-nbd "$@"
}

case $1 in
quick)
    over_rbd "${quick_of_rbd[@]}"
    over_rbd_nbd "${quick_of_rbd_nbd[@]}"
    ;;
more) nearly_all block ;;
all)
    more_of_rbd=() more_of_rbd_nbd=()
    nearly_all mount block
    ;;
*)
    over_rbd "$@"
    over_rbd_nbd "$@"
    ;;
esac
((failures == 0))
