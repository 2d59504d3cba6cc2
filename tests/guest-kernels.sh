#!/usr/bin/env bash
# What each of Debian's kernels and each mounter takes of a cluster of Ceph 20: features of images,
# types of keys, protocols; and what a user reads where they do not go together. Prints the table
# "Kernels" of docs/reference/compatibility.md. Needs root.
#
#   tests/guest-kernels.sh [VERSION …]   the kernels, as `lab/guest up --kernel` takes them      (6.1 6.12 7)
#
# The driver of these tests runs with the librbd of Ceph 20, in a guest with the kernel, one after
# the other.
set -euo pipefail
umask 077

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
program=guest-kernels
# shellcheck source=lab/common.sh
source lab/common.sh

((EUID == 0)) || die "a guest needs root"
work=$(mktemp -d --tmpdir kernels.XXXXXX)
failures=0

end() {
    set +e
    [[ ! -d $work/ceph ]] || lab/ceph down --dir "$work/ceph" >&2
    lab/guest --dir "$work/guest" down
    rm -rf "$work"
}
trap end EXIT

guest() { lab/guest --dir "$work/guest" --guest "$number" "$@"; }
ceph() { CEPH_CONF=$work/ceph/ceph.conf lab/guest --dir "$work/guest" net lab/with 20 "$@"; }

# The images that tests/guest/kernels.rs looks for, and its users.
make_images() {
    local image features
    while read -r image features; do
        # shellcheck disable=SC2086 # several words
        ceph rbd create --size 16M $features "rbd/$image"
    done <<IMAGES
layering --image-feature layering
exclusive-lock --image-feature layering,exclusive-lock
object-map --image-feature layering,exclusive-lock,object-map
fast-diff --image-feature layering,exclusive-lock,object-map,fast-diff
deep-flatten --image-feature layering,deep-flatten
data-pool --image-feature layering --data-pool data
striping --image-feature layering,striping --stripe-unit 65536 --stripe-count 4
journaling --image-feature layering,exclusive-lock,journaling
all --image-feature layering,striping,exclusive-lock,object-map,fast-diff,deep-flatten,journaling --stripe-unit 65536 --stripe-count 4 --data-pool data
IMAGES
    ceph rbd snap create --no-progress rbd/layering@parent
    ceph rbd clone --rbd-default-clone-format 2 rbd/layering@parent rbd/clone
}

make_users() {
    local capabilities=(mon 'profile rbd' osd 'profile rbd' mgr 'profile rbd')
    ceph ceph mon set auth_allowed_ciphers aes,aes256k
    # The monitor permits such keys a moment after that.
    wait_until 60 "the monitor to make a key of the type aes" \
        ceph ceph auth get-or-create client.csi-aes "${capabilities[@]}" --key_type aes >/dev/null 2>&1
    ceph ceph auth get-or-create client.csi "${capabilities[@]}" >/dev/null
    ceph ceph auth get-key client.csi-aes >"$work/ceph/csi-aes.key"
    ceph ceph auth get-key client.csi >"$work/ceph/csi.key"
}

# check MOUNTER TEST LAUNCHER…: one test in the guest, the test's program started by LAUNCHER. Its
# words go to standard error, its row of the table to $work/rows.
check() {
    local mounter=$1 test=$2
    shift 2
    guest run env "${variables[@]}" TMPDIR=/tmp/guest RUST_BACKTRACE=0 NODE_MOUNTER="$mounter" \
        "$@" "$own" --exact "kernels::$test" --nocapture >"$work/output" 2>&1 ||
        { failures=$((failures + 1)); say "Linux $version, $mounter, $test: FAILED"; }
    sed -n '/^| /p' "$work/output" >>"$work/rows"
    cat "$work/output" >&2
}

# What is the same on every kernel.
on_the_first_kernel() {
    local mounter
    for mounter in rbd-nbd fuse; do
        check "$mounter" a_cluster_that_has_stopped_taking_aes "${with_20[@]}"
        check "$mounter" a_cluster_that_insists_on_encryption "${with_20[@]}"
        # The librbd of this machine, Ceph 16, for all; then that of Ceph 20 for the driver alone.
        check "$mounter" a_key_too_new_for_the_driver
        check "$mounter" a_key_too_new_for_the_program "${driver_with_20[@]}"
    done
}

# on_kernel VERSION
on_kernel() {
    local mounter
    version=$1
    guest up --kernel "$version"
    guest run sh -c 'mkdir -p /tmp/guest && modprobe --all rbd nbd loop'
    for mounter in rbd rbd-nbd fuse; do check "$mounter" row "${with_20[@]}"; done
    check rbd a_cluster_that_has_stopped_taking_aes "${with_20[@]}"
    check rbd a_cluster_that_insists_on_encryption "${with_20[@]}"
    [[ $version == 7 ]] || check rbd a_key_too_new_for_the_kernel "${with_20[@]}"
    ((number > 1)) || on_the_first_kernel
}

own=$(cargo test --workspace --no-run --quiet --test guest --message-format=json |
    jq -r 'select(.target.name? == "guest" and .executable != null).executable')
number=1
guest net lab/ceph up --dir "$work/ceph" --release 20 --address 10.77.0.1 --monitor-round 0.05 --pool rbd --pool data
mapfile -t variables < <(lab/ceph env --dir "$work/ceph" | sed -n 's/^export \(LAB_\|CEPH_\)/\1/p' | xargs -n 1 printf '%s\n')
make_users
make_images
libraries=$here/.tools/ceph/20/usr/lib/x86_64-linux-gnu
with_20=("$here/lab/with" 20)
driver_with_20=("$here/.tools/ceph/20/usr/lib64/ld-linux-x86-64.so.2" --library-path "$libraries:$libraries/ceph")

(($#)) || set -- 6.1 6.12 7
for version; do
    on_kernel "$version"
    number=$((number + 1))
done
echo "| Linux | mounter | layering | exclusive-lock | object-map | fast-diff | deep-flatten | data-pool | striping | journaling \
| clone | key aes | key aes256k | v1 | crc | secure |"
echo "|$(printf -- '---|%.0s' {1..16})"
cat "$work/rows"
((failures == 0))
