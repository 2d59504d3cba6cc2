#!/usr/bin/env bash
# csi-sanity against the built driver on a real Ceph: once with filesystems, once with block
# devices. Volumes are really attached, formatted and mounted, so it runs as root. It has a RADOS
# namespace of its own and leaves nothing.
#
#   eval "$(lab/ceph env)" && tests/csi-sanity.sh
#
# CINDERBLOCK=path/to/the/binary takes another one, SANITY_MOUNTER another mounter than fuse,
# SANITY_FOCUS the specs alone whose names it matches, SANITY_ACCESS one of mount and block.
set -euo pipefail
umask 077

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=csi-sanity
# shellcheck source=lab/common.sh
source "$here/lab/common.sh"
# shellcheck source=lab/leaks.sh
source "$here/lab/leaks.sh"
# shellcheck source=lab/driver.sh
source "$here/lab/driver.sh"

mounter=${SANITY_MOUNTER:-fuse}
sanity=$here/.tools/bin/csi-sanity
[[ -x $sanity ]] || die "csi-sanity is not built; run: make tools"
need_driver

work=$(mktemp -d --tmpdir csi-sanity.XXXXXX)
namespace=sanity-$$
total_passed=0 total_failed=0 total_skipped=0

end() {
    set +e
    stop_driver
    clear_node "$work"
    rbd namespace rm "rbd/$namespace" 2>/dev/null || say "the namespace rbd/$namespace keeps what was left in it, for a look"
    rm -rf --one-file-system "$work"
}
trap end EXIT

# write_secrets: the same user for every kind of request that csi-sanity gives secrets to.
write_secrets() {
    local request key
    key=$(cat "$LAB_KEY_FILE")
    for request in CreateVolume DeleteVolume ControllerPublishVolume ControllerUnpublishVolume \
        ControllerValidateVolumeCapabilities ControllerExpandVolume ControllerModifyVolume \
        NodeStageVolume NodePublishVolume CreateSnapshot DeleteSnapshot ListSnapshots GetSnapshot; do
        printf '%sSecret:\n  userID: "%s"\n  userKey: "%s"\n' "$request" "$LAB_USER" "$key"
    done >"$work/secrets.yaml"
}

write_parameters() {
    printf '%s: "%s"\n' clusterID lab pool rbd radosNamespace "$namespace" mounter "$mounter" >"$work/parameters.yaml"
    printf '%s: "%s"\n' rbd_qos_iops_limit 5000 >"$work/mutable-parameters.yaml"
}

# run_sanity mount|block: one whole run. Its report is the line ginkgo ends with.
run_sanity() {
    local log=$work/$1.log outcome=0 counts
    say "$1: ${SANITY_FOCUS:-every spec}, with real volumes, over $mounter"
    "$sanity" --csi.endpoint="unix:$work/csi.sock" \
        --csi.testvolumeaccesstype="$1" \
        --csi.testvolumesize=$((64 << 20)) --csi.testvolumeexpandsize=$((128 << 20)) \
        --csi.testvolumeparameters="$work/parameters.yaml" --csi.secrets="$work/secrets.yaml" \
        --csi.testnodevolumeattachlimit \
        --csi.testvolumemutableparameters="$work/mutable-parameters.yaml" \
        --csi.mountdir="$work/target" --csi.stagingdir="$work/staging" \
        --ginkgo.focus="${SANITY_FOCUS:-}" --ginkgo.v --ginkgo.no-color --ginkgo.timeout=15m >"$log" 2>&1 || outcome=$?
    counts=$(grep -oE '[0-9]+ Passed \| [0-9]+ Failed \| [0-9]+ Pending \| [0-9]+ Skipped' "$log" | tail -n 1) ||
        { tail -n 30 "$log" >&2; die "csi-sanity broke off; its last words are above"; }
    grep -E '^ *\[(FAIL|PANICKED!|TIMEDOUT)\]' "$log" | sort -u >&2 || true
    say "$1: $counts"
    # Why specs were skipped, and how many: what the driver does not offer is not tried.
    sed -n 's/^  \[SKIPPED\] \([^[]*\)$/        skipped: \1/p' "$log" | grep -v ' in $' | sort | uniq -c | cut -c5- >&2
    read -r passed _ _ failed _ _ _ _ _ skipped _ <<<"$counts"
    total_passed=$((total_passed + passed))
    total_failed=$((total_failed + failed))
    total_skipped=$((total_skipped + skipped))
    if ((outcome != 0)); then
        grep -B 2 -A 25 -E '^ *\[FAILED\]' "$log" | head -n 200 >&2
        tail_driver_log
        return 1
    fi
}

left() {
    rbd_left rbd "$namespace" || echo "no answer about rbd/$namespace"
    mounts_left "$work"
    loops_left "$work"
    krbd_left "$namespace"
    processes_left "$work/state/"
    find "$work/target" "$work/staging" -mindepth 1 2>/dev/null
}

nothing_left() { [[ -z $(left) ]]; }

rbd namespace create "rbd/$namespace"
write_secrets
write_parameters
start_driver "$work" "rbd/$namespace" --max-volumes-per-node 4
failures=0
for access in ${SANITY_ACCESS:-mount block}; do
    run_sanity "$access" || failures=$((failures + 1))
    # The data of deleted snapshots goes when the OSD has trimmed it, in its own time.
    wait_until 300 "everything to be gone" nothing_left || { left | head -n 40 >&2; failures=$((failures + 1)); }
done
stop_driver
if grep -qF -f "$LAB_KEY_FILE" "$work/driver.log"; then
    say "the driver has written a Ceph key to its log"
    failures=$((failures + 1))
fi
echo "csi-sanity: $total_passed passed, $total_failed failed, $total_skipped skipped"
((failures == 0))
