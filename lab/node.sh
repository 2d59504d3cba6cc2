# A node for lab/kubernetes: containerd, and a kubelet that joins the control plane as node-1.
# Sourced, never run.
# shellcheck shell=bash disable=SC2154 # dir, home, bin, here, network, bridge and cgroup are lab/kubernetes' own
#
# The node has this machine's kernel, processors, devices and network, and mount and process
# namespaces of its own (lab/node-init), so that it has the folders that a node has
# (/var/lib/kubelet) and nothing outlives it. What it writes is in $dir/node. Pods have addresses of
# a network that this machine has the first address of, on a bridge; services have none but the API
# server's, at which a process of the node hands connections on. There is no DNS.

node="node-1"

# The image that holds a pod's namespaces, as this containerd knows it.
pause=registry.k8s.io/pause:3.10.2

# node_init: the process id of the node's first process. There are two of its name, and it is the
# one in a namespace.
node_init() {
    local pid
    for pid in $(pids_of node-init); do
        [[ $(sed -n 's/^NSpid:[^0-9]*//p' "/proc/$pid/status" 2>/dev/null) != *[!0-9]1 ]] || echo "$pid"
    done
}

node_runs() { runs node-init && runs containerd && runs kubelet; }

# in_node COMMAND…: runs it where the node's processes are.
in_node() {
    local init
    init=$(node_init)
    [[ -n $init ]] || die "there is no node in $dir; run: lab/kubernetes node up --dir $dir"
    nsenter --target "$init" --mount --pid -- "$@"
}

node_up() {
    ((EUID == 0)) || die "a node needs root"
    install_packages "${node_packages[@]}"
    make --no-print-directory --directory="$here/.." kubernetes-node-tools >&2
    lock_folder
    if node_runs; then
        say "node $node runs already"
        return
    fi
    clean_node
    local began
    began=$(milliseconds)
    trap failed_node_up EXIT
    make_node
    trap - EXIT
    say "node $node is ready in $(seconds_since "$began")"
}

failed_node_up() {
    trap - EXIT
    explain node-init containerd images kubelet kubectl
    clean_node
    die "the node could not start; the ends of the logs are above"
}

make_node() {
    [[ -z $(ip -brief address show to "$network.1") ]] ||
        die "the node of another lab has the network $network.0/24, which this folder's name stands for; choose another --dir"
    mkdir -m 0755 "$home"
    # An address of its own: a bridge without one takes the lowest of its ports, so it would change
    # when pods come and go, and other pods would lose it for half a minute.
    ip link add "$bridge" address 02:00:0a:4d:00:01 type bridge
    ip address add "$network.1/24" dev "$bridge"
    ip address add "$service_address/32" dev "$bridge"
    ip link set "$bridge" up
    setsid unshare --mount --propagation slave --pid --fork --kill-child "$here/node-init" "$home" \
        {lock}>&- </dev/null >"$dir/log/node-init.log" 2>&1 &
    wait_until 10 "the node's first process" test -e "$home/ready"
    write_node_configuration
    make_cgroups
    make_certificate kubelet "/O=system:nodes/CN=system:node:$node" "IP:$network.1,DNS:$node"
    write_kubeconfig "$dir/kubelet.kubeconfig" "{client-certificate: \"$dir/pki/kubelet.crt\", client-key: \"$dir/pki/kubelet.key\"}"
    start_in_node socat "TCP-LISTEN:443,bind=$service_address,reuseaddr,fork" "TCP:127.0.0.1:$(setting port)"
    # containerd finds its shim and runc there.
    start_in_node env PATH="$bin:$PATH" "$bin/containerd" "$(mark_of containerd)"
    wait_until 30 "containerd" containerd_serves
    import_images
    start_in_node "$bin/kubelet" "$(mark_of kubelet)" --config="$home/kubelet.yaml" \
        --hostname-override="$node" --node-ip="$network.1"
    wait_until 90 "the node to be ready" node_ready
}

# start_in_node COMMAND…: in the background, its words in the log of its name.
start_in_node() {
    local name=$1
    [[ $name != env ]] || name=$3
    name=${name##*/}
    (umask 022; exec setsid nsenter --target "$(node_init)" --mount --pid -- "$@") \
        {lock}>&- </dev/null >>"$dir/log/$name.log" 2>&1 &
}

containerd_serves() { in_node "$bin/ctr" version >/dev/null 2>&1; }
node_ready() { [[ $(kubectl get node "$node" --output jsonpath='{.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null) == True ]]; }

write_node_configuration() {
    mkdir "$home/cni"
    cat >"$home/cni/pods.conflist" <<CNI
{"cniVersion": "1.0.0", "name": "pods", "plugins": [{
    "type": "bridge", "bridge": "$bridge",
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "$network.0/24", "gateway": "$network.1"}]],
             "routes": [{"dst": "0.0.0.0/0", "gw": "$network.1"}]}}]}
CNI
    # Not everybody may make a process less likely to be killed when memory is short
    # (CAP_SYS_RESOURCE).
    cat >"$home/containerd.toml" <<CONTAINERD
version = 3

[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/usr/lib/cni']
conf_dir = '$home/cni'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '$pause'
CONTAINERD
    # Nothing is evicted, and no image collected, for a disk that others fill.
    cat >"$home/kubelet.yaml" <<KUBELET
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $network.1
healthzPort: 0
tlsCertFile: $dir/pki/kubelet.crt
tlsPrivateKeyFile: $dir/pki/kubelet.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $dir/pki/ca.crt}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
enforceNodeAllocatable: []
makeIPTablesUtilChains: false
volumePluginDir: /var/lib/kubelet/exec
resolvConf: ""
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}
KUBELET
}

# make_cgroups: a group for the pods in each hierarchy of this machine, one or many.
make_cgroups() {
    local root=/sys/fs/cgroup folder
    local hierarchies=("$root") cpuset=$root/cpuset
    [[ -e $root/cgroup.procs ]] || hierarchies=("$root"/*)
    for folder in "${hierarchies[@]}"; do
        [[ ! -e $folder/cgroup.procs ]] || mkdir -p "$folder/$cgroup"
    done
    if [[ -e $cpuset/cpuset.mems ]]; then
        # A new group of this one may use no processor and no memory until it is told which.
        cat "$cpuset/cpuset.cpus" >"$cpuset/$cgroup/cpuset.cpus"
        cat "$cpuset/cpuset.mems" >"$cpuset/$cgroup/cpuset.mems"
    fi
}

node_down() {
    [[ -e $home ]] || { say "there is no node in $dir"; return; }
    lock_folder
    clean_node
    ! serves || kubectl delete --ignore-not-found node "$node" >/dev/null
    say "node $node is gone"
}

# clean_node: ends the node, however much of it there is.
clean_node() {
    stop kubelet containerd
    local pid loop loops
    loops=$(loops_of_pods)
    for pid in $(pids_of node-init); do kill -KILL "$pid" 2>/dev/null || true; done
    wait_until 10 "the node's processes to end" is_gone node-init
    for loop in $loops; do losetup --detach "/dev/$loop" 2>/dev/null || true; done
    ip link delete "$bridge" 2>/dev/null || true
    wait_until 10 "the node's cgroups to go" remove_cgroups
    rm -rf --one-file-system "$home" "$dir/pki"/kubelet.{crt,key} "$dir/kubelet.kubeconfig" \
        "$dir/log"/{node-init,containerd,kubelet,socat,images}.log
}

# loops_of_pods: the loop devices, of those that the node shares with this machine, that are mounted
# for pods.
loops_of_pods() {
    [[ -z $(node_init) ]] || in_node grep ' /var/lib/kubelet/' /proc/self/mountinfo | grep -oE '/loop[0-9]+' | sort -u | tr -d / || true
}

remove_cgroups() {
    find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2>/dev/null
    [[ -z $(find /sys/fs/cgroup -type d -name "$cgroup") ]]
}

# --- images ---------------------------------------------------------------------------------------

# image NAME FOLDER COMMAND…: an image of a root filesystem, whose containers run this command.
image() {
    local name=${1%:*} tag=${1##*:} folder=$2 layout=$home/layout
    shift 2
    rm -rf "$layout"
    umoci init --layout "$layout"
    umoci new --image "$layout:$tag"
    umoci insert --image "$layout:$tag" "$folder" /
    umoci config --image "$layout:$tag" --config.env PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        --clear=config.entrypoint "${@/#/--config.entrypoint=}"
    tar --create --directory "$layout" . |
        in_node "$bin/ctr" --namespace k8s.io images import --base-name "$name" - >>"$dir/log/images.log" 2>&1
    rm -rf "$layout"
}

# root_of FOLDER: an empty root filesystem, that everybody may read.
root_of() {
    rm -rf "$1"
    mkdir -m 0755 "$1" "$1/tmp"
    chmod 1777 "$1/tmp"
}

# add_program FOLDER PROGRAM: puts one of our programs at the top of it, and the libraries it is
# linked against.
add_program() {
    local library
    install -m 0755 "$bin/$2" "$1/$2"
    while read -r library; do
        install -D -m 0755 "$library" "$1$library"
    done < <(ldd "$bin/$2" | grep -o '/[^ ]*')
}

# import_images: what the chart's pods run besides the driver, busybox for others, and what holds a
# pod's namespaces.
import_images() {
    local root=$home/image name
    root_of "$root"
    gcc -static -o "$root/pause" "$(cd "$here/../tools/kubernetes" && go list -m -f '{{.Dir}}' k8s.io/kubernetes)/build/pause/linux/pause.c"
    image "$pause" "$root" /pause
    root_of "$root"
    mkdir "$root/bin"
    cp /bin/busybox "$root/bin/"
    chroot "$root" /bin/busybox --install /bin
    image localhost/busybox:lab "$root" /bin/sh
    while read -r name; do
        root_of "$root"
        add_program "$root" "$(basename "${name%:*}")"
        image "$name" "$root" "/$(basename "${name%:*}")"
    done < <(sed -n 's/.*{repository: \(registry[^,]*\), tag: \([^,]*\),.*/\1:\2/p' "$here/../charts/cinderblock/values.yaml")
    rm -rf "$root"
}
