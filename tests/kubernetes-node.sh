#!/usr/bin/env bash
# The chart, installed with helm on a Kubernetes with a node (lab/kubernetes) and a Ceph beside it:
# pods write to volumes, read what a snapshot and a clone hold, a node plugin is replaced while a
# pod writes, and nothing is left afterwards. Volumes are attached by the mounter fuse. Needs root.
set -euo pipefail
umask 077

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
export PATH=$here/.tools/bin:$PATH
program=kubernetes-node
# shellcheck source=lab/common.sh
source lab/common.sh
# shellcheck source=lab/leaks.sh
source lab/leaks.sh
# shellcheck source=lab/checks.sh
source lab/checks.sh

((EUID == 0)) || die "a node needs root"
work=$(mktemp -d --tmpdir kubernetes-node.XXXXXX)
ended=

end() {
    set +e
    [[ -n $ended ]] || explain_cluster >&2
    lab/kubernetes down --dir "$work/kubernetes"
    [[ ! -d $work/ceph ]] || lab/ceph down --dir "$work/ceph"
    rm -rf --one-file-system "$work"
}
trap end EXIT

# explain_cluster: what a person needs to see when the test stops early.
explain_cluster() {
    kubectl get --all-namespaces pods,persistentvolumeclaims,persistentvolumes,volumesnapshots,volumeattachments
    kubectl get --all-namespaces events --sort-by=.lastTimestamp | tail -n 40
    kubectl logs --namespace cinderblock --selector app.kubernetes.io/name=cinderblock --all-containers --prefix --tail=3
}

in_node() { lab/kubernetes --dir "$work/kubernetes" node run "$@"; }

# --- a cluster with a Ceph ------------------------------------------------------------------------

version=$(sed -n 's/^appVersion: *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' charts/cinderblock/Chart.yaml)
lab/kubernetes up --dir "$work/kubernetes"
lab/kubernetes node up --dir "$work/kubernetes"
eval "$(lab/kubernetes env --dir "$work/kubernetes")"
lab/ceph up --dir "$work/ceph" --address "$LAB_NODE_ADDRESS" --monitor-round 0.05
eval "$(lab/ceph env --dir "$work/ceph")"
image/rootfs.sh --binary target/debug/cinderblock "$work/root"
lab/kubernetes --dir "$work/kubernetes" node image "localhost/cinderblock:$version" "$work/root" \
    /usr/bin/tini -- /usr/local/bin/cinderblock
rm -rf --one-file-system "$work/root"

cat >"$work/values.yaml" <<VALUES
clusters:
  lab: {monitors: ["$LAB_MONITORS"], secret: {name: ceph}, ownUser: {userID: "$LAB_USER", secret: ceph}, pools: [rbd]}
storageClasses:
  rbd: {cluster: lab, pool: rbd, mounter: fuse}
volumeSnapshotClasses:
  rbd: {cluster: lab}
backup:
  enabled: true
  suspend: true
  target: /backup
  volume: {hostPath: {path: /var/lib/backup}}
VALUES
in_node mkdir --mode 777 /var/lib/backup
kubectl create namespace cinderblock
kubectl create secret generic ceph --namespace cinderblock --from-literal=userID="$LAB_USER" --from-file=userKey="$LAB_KEY_FILE"
helm() { command helm --namespace cinderblock "$@"; }
check "helm installs the chart, and everything in it becomes ready" \
    helm install cinderblock charts/cinderblock --values "$work/values.yaml" --wait --timeout 5m
check "helm test writes to a volume and reads it back" helm test cinderblock --timeout 5m

# --- pods and volumes -----------------------------------------------------------------------------

# claim NAME FURTHER: a claim of one gibibyte; FURTHER as YAML, what it is made of.
claim() {
    kubectl create --filename - <<CLAIM
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $1}
spec:
  storageClassName: rbd
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
  ${2:-}
CLAIM
}

# pod NAME CLAIM SCRIPT: a pod that runs the script once, with the claim's volume at /volume.
pod() {
    kubectl create --filename - <<POD
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
    - name: main
      image: localhost/busybox:lab
      command: [sh, -euc, $(jq --null-input --arg script "$3" '$script')]
      volumeMounts: [{name: volume, mountPath: /volume}]
  volumes: [{name: volume, persistentVolumeClaim: {claimName: $2}}]
POD
}

# ran POD: whether its script has ended well. Its output is printed in any case.
ran() {
    kubectl wait pod "$1" --for=jsonpath='{.status.phase}'=Succeeded --timeout=120s && return
    kubectl describe pod "$1"
    kubectl logs "$1"
    return 1
}

phase() { kubectl get pod "$1" --output jsonpath='{.status.phase}'; }
log_says() { kubectl logs "$1" 2>/dev/null | grep -qF "$2"; }

claim first
left_loops() { losetup --list --noheadings --output BACK-FILE | grep -F /var/lib/cinderblock/ || true; }
on_node() { in_node cat /proc/self/mountinfo | grep -E ' /var/lib/(kubelet/.*/mount|cinderblock/.*) ' || true; }

pod writer first 'dd if=/dev/urandom of=/volume/data bs=1M count=32; sha256sum </volume/data >/volume/sum; sync'
check "a pod writes to a volume" ran writer
kubectl create --filename - <<'SNAPSHOT'
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: early}
spec: {source: {persistentVolumeClaimName: first}, volumeSnapshotClassName: rbd}
SNAPSHOT
check "a snapshot is taken of it" kubectl wait volumesnapshot early --for=jsonpath='{.status.readyToUse}'=true --timeout=60s
claim restored 'dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: early}'
claim cloned 'dataSource: {kind: PersistentVolumeClaim, name: first}'
kubectl delete pod writer
for name in restored cloned; do
    # shellcheck disable=SC2016 # for the pod's shell
    pod "reads-$name" "$name" '[ "$(sha256sum </volume/data)" = "$(cat /volume/sum)" ]; echo mine >/volume/data'
    check "a second pod reads all of it in what was $name" ran "reads-$name"
done

# --- growth ---------------------------------------------------------------------------------------

kubectl delete pod reads-cloned
kubectl patch persistentvolumeclaim cloned --patch '{"spec": {"resources": {"requests": {"storage": "2Gi"}}}}'
# shellcheck disable=SC2016 # for the pod's shell
pod is-larger cloned '[ "$(df -m /volume | awk "END { print \$2 }")" -gt 1500 ]; [ "$(cat /volume/data)" = mine ]'
check "a volume that grew is larger in its next pod, and holds what it held" ran is-larger

# --- a rollout while a pod writes -----------------------------------------------------------------

plugin() { kubectl get pod --namespace cinderblock --selector app.kubernetes.io/component=node --output "jsonpath={.items[*].$1}"; }
plugin_is_new() { [[ $(plugin metadata.uid) != *"$old_plugin"* && $(plugin 'status.containerStatuses[*].ready') == "true true true" ]]; }
written() { kubectl logs writes-on 2>/dev/null | sed -n 's/^written //p' | tail -n 1; }
writes_beyond() {
    local now
    now=$(written)
    ((${now:-0} > $1))
}

# shellcheck disable=SC2016 # for the pod's shell
pod writes-on first '
    i=0
    while i=$((i + 1)) && echo "$i" >/volume/new && sync /volume/new && mv /volume/new /volume/counter && sync /volume; do
        echo "written $i"
    done
    echo "the volume answers with errors"'
wait_until 60 "the pod to write" writes_beyond 20
check "its volume is mounted on the node" differ "$(on_node)" none
check "from a loop device" differ "$(left_loops)" none
# Without --wait: helm would wait for node plugins, and these stay until they are deleted.
check "helm upgrades the chart" helm upgrade cinderblock charts/cinderblock --reuse-values --set logFormat=text
check "new controllers come" kubectl rollout status --namespace cinderblock deployment --timeout 3m
check "they and the old node plugin do nothing to the pod" wait_until 60 "it to write on" writes_beyond "$(written)"
old_plugin=$(plugin metadata.uid)
kubectl delete pod --namespace cinderblock "$(plugin metadata.name)"
check "the node plugin comes back" wait_until 120 "the new node plugin" plugin_is_new
check "as the chart now says" said log-format=text plugin 'spec.containers[*].args'
check "the pod whose volume its container attached hears of it" wait_until 60 "an error" log_says writes-on "answers with errors"
last=$(written)
# The volume has to be unstaged: a pod that came at once would find it as it is.
kubectl delete pod writes-on
volume=$(kubectl get persistentvolumeclaim first --output jsonpath='{.spec.volumeName}')
detached() { [[ $(kubectl get volumeattachments --output jsonpath='{.items[*].spec.source.persistentVolumeName}') != *"$volume"* ]]; }
check "its volume is detached" wait_until 60 "it to be detached" detached
# shellcheck disable=SC2016 # for the pod's shell
pod reads-on first '[ "$(cat /volume/counter)" -ge '"$last"' ] && [ "$(sha256sum </volume/data)" = "$(cat /volume/sum)" ]'
check "the next pod finds all that was synced" ran reads-on

# --- a backup, and its restore into another claim -------------------------------------------------

# completed JOB: whether it has done well. What it said is printed when it has not.
completed() {
    kubectl wait "job/$1" --namespace cinderblock --for=condition=Complete --timeout=180s && return
    kubectl describe job "$1" --namespace cinderblock
    kubectl logs "job/$1" --namespace cinderblock --all-containers
    return 1
}

# job NAME FILTER: a Job of the chart's CronJob, changed by this filter of jq.
job() {
    kubectl create job "$1" --namespace cinderblock --from cronjob/cinderblock-backup --dry-run=client --output json |
        jq "$2" | kubectl create --filename -
}

kubectl delete pod reads-on
kubectl label persistentvolumeclaim first backup=nightly
job night .
check "a Job of the chart's CronJob backs up the claim with the label" completed night
point=$(kubectl logs job/night --namespace cinderblock --container backup | sed -n 's/^point *//p')
claim again
kubectl wait persistentvolumeclaim again --for=jsonpath='{.status.phase}'=Bound --timeout=60s
arguments='["backup", "restore", "--config=/etc/cinderblock/clusters/clusters.yaml", "--overwrite", "--claim=default/again", "/backup"]'
job restore ".spec.template.spec |= (.containers = [.initContainers[0] | .args = $arguments + [\"$point\"]] | del(.initContainers))"
check "another restores it into a new claim" completed restore
# shellcheck disable=SC2016 # for the pod's shell
pod reads-again again '[ "$(cat /volume/counter)" -ge '"$last"' ] && [ "$(sha256sum </volume/data)" = "$(cat /volume/sum)" ]'
check "whose pod finds all that was backed up" ran reads-again
kubectl delete job night restore --namespace cinderblock

# --- nothing is left ------------------------------------------------------------------------------

kubectl delete pod --all
kubectl delete volumesnapshot --all
kubectl delete persistentvolumeclaim --all
gone() { [[ -z $(kubectl get "$@" --output name 2>/dev/null) ]]; }
check "volumes, snapshots and attachments go" wait_until 120 "them to go" \
    gone persistentvolumes,volumesnapshotcontents,volumeattachments
check "helm uninstalls the chart" helm uninstall cinderblock --wait --timeout 3m
check "its pods go" wait_until 60 "the pods to go" gone pods --all-namespaces
ceph_is_empty() { [[ -z $(rbd_left rbd "") ]]; }
check "nothing is left in Ceph" wait_until 60 "the pool to be empty" ceph_is_empty
check "no volume is mounted on the node" same "$(on_node)" ""
check "no loop device is left" same "$(left_loops)" ""
check "no container runs" same "$(in_node ctr --namespace k8s.io tasks list --quiet)" ""

ended=yes
check "the lab goes" lab/kubernetes down --dir "$work/kubernetes"
lab/ceph down --dir "$work/ceph"
check "and leaves no process" same "$(processes_left "$work/kubernetes")" ""
checked kubernetes-node
