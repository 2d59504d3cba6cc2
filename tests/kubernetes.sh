#!/usr/bin/env bash
# The driver, the chart's sidecars and the chart's rights on a real control plane: brings up a Ceph
# and a Kubernetes, runs the test target `kubernetes` on them, sees that nothing is left in either,
# and takes both down. Needs root, FUSE and loop devices, since volumes are really mounted.
#
#   tests/kubernetes.sh             every test
#   tests/kubernetes.sh NAME        those alone whose names hold this
#
# KUBERNETES_CLAIMS=50 makes as many claims at once instead of 200. When a test fails, the folder
# with every log stays.
set -euo pipefail
umask 077

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
program=kubernetes
# shellcheck source=lab/common.sh
source lab/common.sh
# shellcheck source=lab/leaks.sh
source lab/leaks.sh

((EUID == 0)) || die "attaching and mounting needs root"
[[ -c /dev/fuse ]] || die "this kernel has no FUSE (/dev/fuse), which the volumes are attached through"
work=$(mktemp -d --tmpdir kubernetes.XXXXXX)
failures=0

end() {
    set +e
    [[ ! -d $work/kubernetes ]] || lab/kubernetes down --dir "$work/kubernetes"
    [[ ! -d $work/ceph ]] || lab/ceph down --dir "$work/ceph"
    if ((failures == 0)); then rm -rf --one-file-system "$work"; else say "logs are in $work/tmp"; fi
}
trap end EXIT

# objects_left: what a claim or a snapshot leads to, anywhere in the cluster.
objects_left() {
    local kind
    for kind in pvc pv volumeattachment volumesnapshot volumesnapshotcontent volumegroupsnapshot volumegroupsnapshotcontent; do
        .tools/bin/kubectl get "$kind" --all-namespaces --no-headers --output name 2>/dev/null || echo "no answer about $kind"
    done
}

left() {
    local namespace
    for namespace in "" $(rbd namespace ls --format json rbd | jq -r '.[].name'); do
        rbd_left rbd "$namespace" || echo "no answer about rbd/$namespace"
        [[ -z $namespace ]] || echo "namespace rbd/$namespace"
    done
    objects_left
    mounts_left "$work/tmp"
    loops_left "$work/tmp"
    processes_left "$work/tmp"
    find "$work/tmp" -mindepth 1
}

nothing_left() { [[ -z $(left) ]]; }

lab/ceph up --dir "$work/ceph" --monitor-round 0.05
lab/kubernetes up --dir "$work/kubernetes"
eval "$(lab/ceph env --dir "$work/ceph")"
eval "$(lab/kubernetes env --dir "$work/kubernetes")"
mkdir "$work/tmp"
TMPDIR=$work/tmp cargo test --test kubernetes -- "$@" || failures=1
# The data of deleted snapshots goes when the OSD has trimmed it, in its own time.
if ((failures == 0)); then
    wait_until 60 "everything to be gone" nothing_left || { left | head -n 40 >&2; failures=1; }
fi
((failures == 0)) && say "nothing is left"
