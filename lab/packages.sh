# Debian's packages the lab runs on. Sourced, never run.
# shellcheck shell=bash disable=SC2034 # the lists are for the scripts that source this

# Ceph's daemons and tools, librbd and librados to build against, what a node needs to attach
# through FUSE, and what `cinderblock image` converts disks with.
lab_packages=(
    ceph-mon ceph-mgr ceph-osd ceph-common librbd-dev librados-dev
    qemu-system-common qemu-block-extra qemu-utils e2fsprogs xfsprogs util-linux
)

# What lab/guest takes besides: an emulator, what its initramfs is made of, and what a guest
# attaches with.
guest_packages=(qemu-system-x86 qemu-system-common busybox-static cpio kmod iproute2 socat rbd-nbd)

# What lab/kubernetes takes besides, for a control plane and for its node.
kubernetes_packages=(openssl)
node_packages=(runc containernetworking-plugins busybox-static umoci socat iproute2 gcc libc6-dev)

# A linker for Rust, and a C compiler for the check of the declarations against librados' and
# librbd's headers. What tests look at scripts and answers with, end processes with (procps has
# kill), and make hosts odd with. Python, for what checks objects against Kubernetes' schemas.
# Prometheus, which alerts and the dashboard are evaluated on.
build_packages=(gcc libc6-dev shellcheck jq socat faketime procps python3-venv prometheus)

# missing_packages NAME…: those of the named packages that are not installed, one a line.
missing_packages() {
    local name
    for name in "$@"; do
        [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || echo "$name"
    done
}

# as_root COMMAND…: runs COMMAND as root, through sudo where need be and where it asks no password.
as_root() {
    if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi
}

# install_packages NAME…: installs what is missing of Debian's packages, and says so first.
install_packages() {
    local missing
    # A root of lab/with has what it needs, and no apt.
    [[ ! -e /lab-root ]] || return 0
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null ||
        die "this needs Debian 12 or a relative of it; elsewhere install by hand what these packages hold: ${missing[*]}"
    ((EUID == 0)) || sudo -n true 2>/dev/null ||
        die "packages are missing and this user is not root and has no sudo without a password; run: apt-get install --no-install-recommends ${missing[*]}"
    say "installing from Debian: ${missing[*]}"
    local log
    log=$(mktemp)
    if ! { as_root apt-get update && as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt-get could not install them; its last words are above"
    fi
    rm -f "$log"
    stop_packaged_services "${missing[@]}"
}

# stop_packaged_services NAME…: where systemd runs, the packages of Ceph and Prometheus start units
# of their own. The lab and the tests start their daemons themselves, in folders of their own, so
# units that came with packages just installed are stopped and stay off.
stop_packaged_services() {
    local units=()
    [[ -d /run/systemd/system ]] || return 0
    [[ " $* " != *" ceph-"* ]] || units+=(
        ceph.target ceph-mon.target ceph-mgr.target ceph-osd.target
        ceph-mon.service ceph-crash.service rbdmap.service
    )
    [[ " $* " != *" prometheus "* ]] || units+=(prometheus.service)
    ((${#units[@]})) || return 0
    say "stopping and disabling the systemd units these packages brought: the lab starts its own daemons"
    as_root systemctl disable --now --quiet "${units[@]}"
}
