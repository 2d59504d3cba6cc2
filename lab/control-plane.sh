# A Kubernetes control plane of processes, all of it inside one folder. Sourced, never run.
# shellcheck shell=bash disable=SC2154 # dir, home, bin, here, service_… and lock are lab/kubernetes' own
#
# The folder ($dir) holds:
#   mark                what marks it as a lab
#   settings            the API server's port
#   pki                 the lab's own certificate authority, and keys and certificates of who takes part
#   NAME.kubeconfig     how each party reaches the API server: admin for people, the rest for the processes of their names
#   tokens              kubeconfigs of service accounts
#   etcd, etcd.sock     the store, and the socket it serves on
#   log                 what each process has said
#   node                the node, see lab/node.sh
#
# A process is known by one argument of its command line that names this folder: there is no pid
# file that could lie. Every file is 0600, every folder 0700 (umask of lab/kubernetes).

control_plane=(etcd kube-apiserver kube-controller-manager kube-scheduler snapshot-controller)

# mark_of PROCESS: the argument it is known by.
mark_of() {
    case $1 in
    etcd) echo "--data-dir=$dir/etcd" ;;
    kube-apiserver) echo "--cert-dir=$dir/pki" ;;
    node-init) echo "$home" ;;
    containerd) echo "--config=$home/containerd.toml" ;;
    *) echo "--kubeconfig=$dir/$1.kubeconfig" ;;
    esac
}

# setting NAME: one value of what this lab is.
setting() { sed -n "s/^$1=//p" "$dir/settings"; }

# --- processes ------------------------------------------------------------------------------------

# shellcheck disable=SC2062 # it is quoted
# (The pattern is glued to its option, or grep would find itself.)
pids_of() { grep -lzxF -e"$(mark_of "$1")" /proc/[0-9]*/cmdline 2>/dev/null | tr -dc "0-9\n" || true; }

runs() { [[ -n $(pids_of "$1") ]]; }
is_gone() { ! runs "$1"; }

# start PROCESS ARGUMENTS…: in a session of its own, without our lock, so that it outlives us.
start() {
    local name=$1
    shift
    setsid "$bin/$name" "$(mark_of "$name")" "$@" {lock}>&- </dev/null >>"$dir/log/$name.log" 2>&1 &
}

# stop PROCESS…: TERM, and KILL for one that does not leave in time.
stop() {
    local name signal pid
    for name in "$@"; do
        for signal in CONT TERM KILL; do
            for pid in $(pids_of "$name"); do kill -s "$signal" "$pid" 2>/dev/null || true; done
            [[ $signal != TERM ]] || wait_until 10 "$name to stop on SIGTERM" is_gone "$name" || say "sending SIGKILL"
        done
        wait_until 10 "$name to stop on SIGKILL" is_gone "$name"
    done
}

# explain PROCESS…: the last words of each, for a person to read.
explain() {
    local name
    for name in "$@"; do
        [[ -s $dir/log/$name.log ]] || continue
        printf -- '--- %s\n' "$dir/log/$name.log"
        tail -n 15 "$dir/log/$name.log"
    done >&2
}

# --- who is who -----------------------------------------------------------------------------------

# make_authority: the certificate authority, and the key that signs service accounts' tokens.
make_authority() {
    mkdir "$dir/pki"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=lab \
        -keyout "$dir/pki/ca.key" -out "$dir/pki/ca.crt"
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$dir/pki/accounts.key"
    openssl pkey -in "$dir/pki/accounts.key" -pubout -out "$dir/pki/accounts.pub"
} 2>>"$dir/log/openssl.log"

# make_certificate NAME SUBJECT ADDRESSES: ADDRESSES as in subjectAltName, empty for one that only
# calls others.
make_certificate() {
    local name=$1 subject=$2 addresses=$3
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$subject" \
        -keyout "$dir/pki/$name.key" -out "$dir/pki/$name.csr"
    openssl x509 -req -in "$dir/pki/$name.csr" -CA "$dir/pki/ca.crt" -CAkey "$dir/pki/ca.key" -days 30 \
        -set_serial "0x$(openssl rand -hex 8)" -out "$dir/pki/$name.crt" -extfile <(
            echo "extendedKeyUsage=clientAuth${addresses:+,serverAuth}"
            echo "${addresses:+subjectAltName=$addresses}"
        )
    rm "$dir/pki/$name.csr"
} 2>>"$dir/log/openssl.log"

# write_kubeconfig FILE USER: USER as YAML, how the caller proves who it is.
write_kubeconfig() {
    cat >"$1" <<KUBECONFIG
apiVersion: v1
kind: Config
clusters:
  - name: lab
    cluster: {server: "https://127.0.0.1:$(setting port)", certificate-authority: "$dir/pki/ca.crt"}
users:
  - name: user
    user: $2
contexts:
  - name: lab
    context: {cluster: lab, user: user}
current-context: lab
KUBECONFIG
}

# make_client NAME SUBJECT: a certificate and a kubeconfig with it.
make_client() {
    make_certificate "$1" "$2" ""
    write_kubeconfig "$dir/$1.kubeconfig" "{client-certificate: \"$dir/pki/$1.crt\", client-key: \"$dir/pki/$1.key\"}"
}

# token NAMESPACE/SERVICEACCOUNT: makes a kubeconfig that is that service account's for a day,
# prints its path.
token() {
    local file=$dir/tokens/${1/\//.}.kubeconfig token
    mkdir -p "$dir/tokens"
    token=$(kubectl create token --namespace "${1%%/*}" "${1#*/}" --duration 24h) ||
        die "no token for $1, see above; the account must exist"
    write_kubeconfig "$file" "{token: \"$token\"}"
    echo "$file"
}

kubectl() { "$bin/kubectl" --kubeconfig="$dir/admin.kubeconfig" "$@"; }

# --- making a control plane -----------------------------------------------------------------------

make_control_plane() {
    echo "$mark" >"$dir/mark"
    mkdir "$dir/log"
    make_authority
    make_certificate kube-apiserver /CN=kube-apiserver \
        "IP:127.0.0.1,IP:$service_address,DNS:localhost,DNS:kubernetes.default.svc"
    make_certificate kubelet-client /O=system:masters/CN=kube-apiserver ""
    # The URL that etcd advertises must have a port. No client is told of it.
    start etcd --listen-client-urls="unix://$dir/etcd.sock" --advertise-client-urls=http://localhost:2379 \
        --listen-peer-urls="unix://$dir/etcd.peer.sock" --unsafe-no-fsync --log-level=warn
    wait_until 30 "etcd" test -S "$dir/etcd.sock"
    start_api_server
    make_client kube-controller-manager /CN=system:kube-controller-manager
    make_client kube-scheduler /CN=system:kube-scheduler
    start kube-controller-manager --use-service-account-credentials --leader-elect=false --secure-port=0 \
        --service-account-private-key-file="$dir/pki/accounts.key" --root-ca-file="$dir/pki/ca.crt"
    start kube-scheduler --leader-elect=false --secure-port=0
    add_snapshots
    wait_until 60 "the service account default" kubectl get --namespace default serviceaccount default >"$dir/log/kubectl.log" 2>&1
    all_run
}

all_run() {
    local name
    for name in "${control_plane[@]}"; do
        runs "$name" || { say "$name has ended"; return 1; }
    done
}

# start_api_server: tries ports until it could bind one. The ports lie below the range the kernel
# hands to clients.
start_api_server() {
    local try
    for ((try = 0; try < 20; try++)); do
        echo "port=$((30000 + RANDOM % 2768))" >"$dir/settings"
        make_client admin /O=system:masters/CN=admin
        rm -f "$dir/log/kube-apiserver.log"
        # No one else finds this API server by its endpoints, so it need not list itself there.
        start kube-apiserver --etcd-servers="unix://$dir/etcd.sock" \
            --bind-address=127.0.0.1 --secure-port="$(setting port)" \
            --advertise-address="$service_address" --endpoint-reconciler-type=none \
            --service-cluster-ip-range="$service_range" \
            --tls-cert-file="$dir/pki/kube-apiserver.crt" --tls-private-key-file="$dir/pki/kube-apiserver.key" \
            --client-ca-file="$dir/pki/ca.crt" --anonymous-auth=false \
            --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged \
            --service-account-issuer=https://kubernetes.default.svc \
            --service-account-key-file="$dir/pki/accounts.pub" \
            --service-account-signing-key-file="$dir/pki/accounts.key" \
            --kubelet-client-certificate="$dir/pki/kubelet-client.crt" \
            --kubelet-client-key="$dir/pki/kubelet-client.key" \
            --kubelet-certificate-authority="$dir/pki/ca.crt" --kubelet-preferred-address-types=InternalIP
        wait_until 120 "the API server" serves_or_ended && runs kube-apiserver && return
        grep -q 'address already in use' "$dir/log/kube-apiserver.log" || return 1
        say "port $(setting port) is taken; trying another"
    done
    return 1
}

serves() { kubectl get --raw /readyz --request-timeout=5s >"$dir/log/kubectl.log" 2>&1; }
serves_or_ended() { serves || is_gone kube-apiserver; }

# add_snapshots: the kinds of snapshots, group snapshots and changed blocks, and the controller that
# Kubernetes has for them, under an account of its own. Its files come from the modules its program
# is built from.
add_snapshots() {
    local module=github.com/kubernetes-csi/external-snapshot snapshotter client metadata
    client=$(module_folder "${module}ter/client/v8")
    snapshotter=$(module_folder "${module}ter/v8")
    metadata=$(module_folder "$module-metadata/client")
    kubectl create --filename="$snapshotter/deploy/kubernetes/snapshot-controller/rbac-snapshot-controller.yaml" \
        "${crds[@]/#/--filename=$client/config/crd/}" \
        --filename="$metadata/config/crd" >>"$dir/log/kubectl.log"
    kubectl wait --for=condition=Established --timeout=60s customresourcedefinition --all >>"$dir/log/kubectl.log"
    cp "$(token kube-system/snapshot-controller)" "$dir/snapshot-controller.kubeconfig"
    start snapshot-controller --feature-gates=CSIVolumeGroupSnapshot=true
}

crds=(
    snapshot.storage.k8s.io_volumesnapshot{s,contents,classes}.yaml
    groupsnapshot.storage.k8s.io_volumegroupsnapshot{s,contents,classes}.yaml
)

# module_folder MODULE: where its source lies, at the version that the sidecars are built from.
module_folder() (
    cd "$here/../tools/csi-sidecars" || exit
    go mod download "$1" && go list -m -f '{{.Dir}}' "$1"
)
