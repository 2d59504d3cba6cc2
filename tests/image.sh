#!/usr/bin/env bash
# The image's root filesystem, made by image/rootfs.sh as the Dockerfile makes it: its size against the budget, every program in it, the
# controller as an ordinary user on a read-only root, and lab/demo with the driver running inside. Needs root. Minutes, as
# the release is built; `tests/image.sh FILE` takes that binary instead.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
program=image-test
# shellcheck source=lab/common.sh
source lab/common.sh
# shellcheck source=lab/leaks.sh
source lab/leaks.sh

((EUID == 0)) || die "this needs root"

# sizes: bytes by part, and the whole.
sizes() {
    find "$root" -xdev \( -type f -o -type l \) -printf '%s %P\n' | awk '
        { part = "other files" }
        $2 ~ /^usr\/lib/ { part = "other libraries" }
        $2 ~ /^usr\/s?bin/ { part = "other programs" }
        $2 ~ /\/(librbd|librados|libceph-common|rbd-nbd)/ { part = "Ceph: librbd, librados, rbd-nbd" }
        $2 ~ /\/qemu|libglib|libgio|libgobject|libgnutls|libunistring|libp11-kit|libgmp|libfuse3/ { part = "qemu-storage-daemon and its libraries" }
        $2 ~ /\/lib(crypto|ssl|stdc\+\+|c|m|mvec)\.so/ { part = "OpenSSL, C and C++" }
        $2 ~ /^usr\/share\/doc/ { part = "licences" }
        $2 ~ /cinderblock/ { part = "the driver and its bill of materials" }
        { bytes[part] += $1; whole += $1 }
        END { for (part in bytes) printf "%10d  %s\n", bytes[part], part | "sort -nr"; close("sort -nr"); printf "%10d  whole\n", whole }'
}

# says WORDS COMMAND…: fails unless the command's output holds the words, whatever its exit code.
says() {
    local words=$1 output
    shift
    output=$("$@" 2>&1) || true
    [[ $output == *"$words"* ]] || die "$* does not say '$words' but: $output"
}

# run_inside: in namespaces of its own for mounts and processes, so that all of these end with it.
run_inside() {
    local as_root as_user folder tool type controller
    as_root=(chroot "$root" /usr/bin/env --ignore-environment PATH=/usr/local/bin:/usr/sbin:/usr/bin)
    as_user=("${as_root[0]}" --userspec 65532:65532 --groups '' "${as_root[@]:1}")
    # Within, a mount is seen on both sides of a bind mount.
    mount --make-rshared /

    # As the chart's pods have it: a root that is read-only, and what they mount.
    mount --bind "$root" "$root"
    mkdir "$root/csi"
    for folder in csi run; do mount -t tmpfs -o mode=1777 tmpfs "$root/$folder"; done
    for folder in proc sys dev; do mount --rbind "/$folder" "$root/$folder"; done
    # The one folder that is the same within and without. Its name is short, as sockets in it must be.
    mkdir -p "$work/tmp" "$root$work/tmp"
    mount --bind "$work/tmp" "$root$work/tmp"
    mount -o remount,bind,ro "$root"

    say "every program"
    says "cinderblock $(sed -n '0,/^version/s/^version = "\(.*\)"/\1/p' Cargo.toml)" "${as_user[@]}" tini -- cinderblock --version
    says 'ceph version 16.2' "${as_root[@]}" rbd-nbd --version
    says 'kmod version' "${as_root[@]}" modprobe --version
    for tool in blkid blockdev dumpe2fs e2fsck findmnt losetup lsblk mkfs.xfs mount umount xfs_growfs xfs_repair; do
        "${as_root[@]}" "$tool" -V >/dev/null 2>&1 || die "$tool does not run"
    done
    for type in ext4 xfs; do
        truncate --size 512M "$work/tmp/$type"
        "${as_root[@]}" "mkfs.$type" "$work/tmp/$type" >/dev/null
        says "TYPE=\"$type\"" "${as_root[@]}" blkid --probe "$work/tmp/$type"
    done
    "${as_root[@]}" e2fsck -fn "$work/tmp/ext4" >/dev/null 2>&1 || die "e2fsck finds errors in what mkfs.ext4 made"
    "${as_root[@]}" xfs_repair -n "$work/tmp/xfs" >/dev/null 2>&1 || die "xfs_repair finds errors in what mkfs.xfs made"
    # Only a driver that was loaded goes looking for a cluster.
    says 'error connecting' "${as_root[@]}" qemu-storage-daemon --blockdev driver=rbd,node-name=image,pool=none,image=none,conf=/dev/null

    say "the controller"
    mkdir --mode 755 "$work/tmp/config"
    printf -- '- clusterID: none\n  monitors: ["192.0.2.1"]\n' >"$work/tmp/config/clusters.yaml"
    chmod 644 "$work/tmp/config/clusters.yaml"
    "${as_user[@]}" tini -s -- cinderblock serve --role controller --endpoint unix:///csi/driver/csi.sock \
        --config "$work/tmp/config/clusters.yaml" >"$work/controller.log" 2>&1 &
    controller=$!
    wait_until 300 "the controller" "${as_user[@]}" cinderblock call info --endpoint unix:///csi/driver/csi.sock >"$work/info" 2>&1 || { cat "$work/controller.log" >&2; exit 1; }
    kill "$controller"
    wait "$controller" || die "the controller ended with an error: $(cat "$work/controller.log")"

    say "a volume's life, with the driver inside"
    printf '#!/bin/sh\nexec chroot "%s" /usr/local/bin/cinderblock "$@"\n' "$root" >"$work/cinderblock"
    chmod 755 "$work/cinderblock"
    TMPDIR=$work/tmp CINDERBLOCK=$work/cinderblock lab/demo
}

if [[ ${1:-} == --inside ]]; then
    work=$2 root=$2/root
    run_inside
    exit
fi

budget=$((200 << 20))
work=$(mktemp -d --tmpdir image-test.XXXXXX)
root=$work/root
chmod 755 "$work"

# Nothing is ever mounted where this removes: the mounts are another namespace's. If something is, nothing is removed.
end() {
    if [[ -n $(mounts_left "$work") ]]; then
        mounts_left "$work" >&2
        die "these are mounted below $work, which stays: unmount them, then remove it"
    fi
    rm -rf "$work"
    if [[ -n $(processes_left "$work") ]]; then processes_left "$work" >&2; die "these processes are left"; fi
}
trap end EXIT

say "the root filesystem"
image/rootfs.sh ${1:+--binary "$1"} "$root"
sizes
whole=$(sizes | awk '$2 == "whole" { print $1 }')
((whole <= budget)) || die "$whole bytes are more than the budget, $budget"
[[ -z $(find "$root" -xdev -perm /6000 -type f) ]] || die "programs that make root of who runs them"
jq --exit-status '[.components[].purl | split("/")[0]] | unique == ["pkg:cargo", "pkg:deb"]' \
    "$root/usr/share/cinderblock/sbom.cdx.json" >/dev/null || die "the bill of materials lacks Debian's packages or the crates"
[[ $(dpkg-query --admindir="$root/var/lib/dpkg" --show --showformat '${db:Status-Status}' librbd1) == installed ]] ||
    die "dpkg's status lacks librbd1"

unshare --mount --propagation private --pid --fork --mount-proc "$0" --inside "$work"
