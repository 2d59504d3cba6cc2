#!/usr/bin/env bash
# The image's root filesystem, made by image/rootfs.sh as the Dockerfile makes it: its packages
# against the lock, its size against the budget, every program in it, the controller as an ordinary
# user on a read-only root, and lab/demo with the driver running inside.
#
#   tests/image.sh [FILE]        the demo on Ceph 16, 18 and 20 with the kinds of keys that each has;
#                                Debian bookworm's root filesystem as well; what a lock refuses
#   tests/image.sh quick [FILE]  the demo on Ceph 20 alone
#
# FILE is a built cinderblock. Without it the release binary is built first.
# Needs root.
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

lock() { echo "${IMAGE_LOCKS:-image/lock}/$suite-$(dpkg --print-architecture)"; }
packages_locked() { sed '/^#/d; /^list /d' "$(lock)" | cut -d' ' -f1,2 | sort; }
# locked PACKAGE: its version, as those who wrote it count.
locked() { packages_locked | sed -n "s/^$1 \([0-9.]*\).*/\1/p"; }

# run_inside WHAT…: programs, or a volume's life with that kind of key; in namespaces of its own for
# mounts and processes, so that all of these end with it.
run_inside() {
    local as_root as_user folder what
    as_root=(chroot "$root" /usr/bin/env --ignore-environment PATH=/usr/local/bin:/usr/sbin:/usr/bin)
    as_user=("${as_root[0]}" --userspec 65532:65532 --groups '' "${as_root[@]:1}")
    # Within, a mount is seen on both sides of a bind mount.
    mount --make-rshared /

    # As the chart's pods have it: a root that is read-only, and what they mount.
    mount --bind "$root" "$root"
    mkdir -p "$root/csi"
    for folder in csi run; do mount -t tmpfs -o mode=1777 tmpfs "$root/$folder"; done
    for folder in proc sys dev; do mount --rbind "/$folder" "$root/$folder"; done
    # The one folder that is the same within and without. Its name is short, as sockets in it must
    # be.
    mkdir -p "$work/tmp" "$root$work/tmp"
    mount --bind "$work/tmp" "$root$work/tmp"
    mount -o remount,bind,ro "$root"

    for what in "$@"; do
        case $what in
        programs)
            every_program
            controller
            ;;
        *) life "$what" ;;
        esac
    done
}

every_program() {
    local tool type ceph version
    say "every program"
    ceph=$(locked librbd1)
    version=$(sed -n '0,/^version/s/^version = "\(.*\)"/\1/p' Cargo.toml)
    says "cinderblock $version (librbd of Ceph ${ceph:?the lock lacks librbd1})" "${as_user[@]}" tini -- cinderblock --version
    says "ceph version $ceph " "${as_root[@]}" rbd-nbd --version
    says 'qemu-img version' "${as_root[@]}" qemu-img --version
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
    rm "$work/tmp/"{ext4,xfs}
    # Only a driver that was loaded goes looking for a cluster.
    says 'error connecting' "${as_root[@]}" qemu-storage-daemon --blockdev driver=rbd,node-name=image,pool=none,image=none,conf=/dev/null
}

controller() {
    local controller
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
    rm -r "$work/tmp/config"
}

# life KEY: with tools and daemons that are this namespace's, and the driver that is inside.
life() {
    say "a volume's life with the driver inside, on $(ceph --version | cut -d' ' -f1-3) with keys of the kind $1"
    printf '#!/bin/sh\nexec chroot "%s" /usr/local/bin/cinderblock "$@"\n' "$root" >"$work/cinderblock"
    chmod 755 "$work/cinderblock"
    TMPDIR=$work/tmp CINDERBLOCK=$work/cinderblock lab/demo --key "$1"
}

if [[ ${1:-} == --inside ]]; then
    suite=$2 work=$3 root=$3/$2
    run_inside "${@:4}"
    exit
fi

work=$(mktemp -d --tmpdir image-test.XXXXXX)
chmod 755 "$work"

# Nothing is ever mounted where this removes: the mounts are another namespace's. If something is,
# nothing is removed.
end() {
    if [[ -n $(mounts_left "$work") ]]; then
        mounts_left "$work" >&2
        die "these are mounted below $work, which stays: unmount them, then remove it"
    fi
    rm -rf "$work"
    if [[ -n $(processes_left "$work") ]]; then processes_left "$work" >&2; die "these processes are left"; fi
}
trap end EXIT

# make_root SUITE: the root filesystem of that suite, and what can be told of it from without.
make_root() {
    suite=$1 root=$work/$1
    local code=0 whole driver
    say "the root filesystem of Debian $suite"
    image/rootfs.sh --suite "$suite" --binary "$binary" "$root" || code=$?
    # Debian moves on every day, and what a change breaks has to be seen on any day.
    if ((code == 3)) && [[ $mode == quick ]]; then
        say "WARNING: the lock is out of date, and a newer one is tested. \`make image-lock\` renews it"
        export IMAGE_LOCKS=$work/lock
        image/lock.sh "$suite" "$(dpkg --print-architecture)"
        code=0
        image/rootfs.sh --suite "$suite" --binary "$binary" "$root" || code=$?
    fi
    ((code == 0)) || die "no root filesystem, see above"
    sizes
    whole=$(sizes | awk '$2 == "whole" { print $1 }')
    # A binary for debugging is several times as large.
    driver=$(stat --format %s "$root/usr/local/bin/cinderblock")
    [[ $binary == target/release/* ]] || whole=$((whole - driver + release_size))
    ((whole <= budget)) || die "$whole bytes are more than the budget, $budget"
    [[ -z $(find "$root" -xdev -perm /6000 -type f) ]] || die "programs that make root of who runs them"
    diff <(packages_locked) <(dpkg-query --admindir="$root/var/lib/dpkg" --show --showformat '${Package} ${Version}\n' | sort) ||
        die "dpkg's status differs from the lock, see above"
    jq --raw-output '.components[] | select(.purl | startswith("pkg:deb/")) | "\(.name) \(.version)"' \
        "$root/usr/share/cinderblock/sbom.cdx.json" | sort | diff <(packages_locked) - ||
        die "Debian's packages in the bill of materials differ from the lock, see above"
    jq --exit-status '[.components[].purl | split("/")[0]] | unique == ["pkg:cargo", "pkg:deb"]' \
        "$root/usr/share/cinderblock/sbom.cdx.json" >/dev/null || die "the bill of materials lacks the crates"
}

# inside RELEASE WHAT…: with a Ceph of that release around it.
inside() {
    lab/with "$1" unshare --mount --propagation private --pid --fork --mount-proc "$here/tests/image.sh" --inside "$suite" "$work" "${@:2}"
}

# check_lock: a package that differs from the lock, or that the mirror lacks, ends the build, and
# the end says what to do.
check_lock() {
    say "what a lock refuses"
    suite=$default_suite
    refused '/^tini/s/ [0-9a-f]\{8\}/ 00000000/' 'its SHA-256 differs'
    refused '/^tini/s/_[a-z0-9]*[.]deb/.gone&/' 'could not be downloaded'
    refused 's/^list ......../list 00000000/' 'image/packages names other packages'
}

# refused CHANGE WORDS: with that change (sed's) to the lock the build ends with these words, and
# with the command that renews it.
refused() {
    local lock said
    lock=$(lock)
    mkdir "$work/lock"
    # Two small packages are enough of it.
    sed "/^\(#\|list\|tini\|dash\)/!d; $1" "$lock" >"$work/lock/${lock##*/}"
    ! said=$(IMAGE_LOCKS=$work/lock image/debian.sh "$suite" "$work/refused" 2>&1) || die "a lock with $1 is taken"
    [[ $said == *"$2"*"image/lock.sh $suite"* ]] || die "a lock with $1 is refused without '$2', but with: $said"
    rm -r "$work/lock" "$work/refused"
}

# As many bytes as a megabyte is said to have of old: a million.
budget=120000000
# What the release binary has at most.
release_size=20000000
default_suite=$(sed -n 's/^ARG SUITE=//p' Dockerfile)
mode=full
if [[ ${1:-} == quick ]]; then
    mode=quick
    shift
fi
binary=${1:-target/release/cinderblock}
[[ $binary != target/release/* ]] || cargo build --release --locked --bin cinderblock
if [[ $mode == quick ]]; then
    make_root "$default_suite"
    inside 20 programs aes256k
else
    check_lock
    make_root "$default_suite"
    inside 20 programs aes256k aes
    inside 18 aes
    inside 16 aes
    make_root bookworm
    inside 16 programs aes
fi
