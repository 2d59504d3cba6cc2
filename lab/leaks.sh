# What a test or a demonstration has left behind. Each function prints what it finds, a line each,
# and nothing when all is gone. Sourced, never run. They ask Ceph as CEPH_CONF says.
# shellcheck shell=bash

# rbd_left POOL NAMESPACE: images, what librbd keeps of images that are half gone, and every key in
# librbd's own lists (images, trash, children, groups) and in the driver's catalogue and journal.
# NAMESPACE may be empty.
rbd_left() {
    local pool=$1 namespace=$2 object objects keys
    objects=$(rados --pool "$pool" --namespace "$namespace" ls) || return
    while read -r object; do
        case $object in
        '' | rbd_namespace) ;; # the latter lists the namespaces there are
        rbd_data.* | rbd_header.* | rbd_id.* | rbd_object_map.* | rbd_group_header.*)
            echo "object $pool/$namespace/$object"
            ;;
        *)
            keys=$(rados --pool "$pool" --namespace "$namespace" listomapkeys "$object") || return
            # librbd's own note on whether the namespace's directory is ready.
            [[ $object != rbd_directory ]] || keys=$(grep -vx state <<<"$keys" || true)
            if [[ -n $keys ]]; then printf '%s\n' "$keys" | sed "s|^|key of $pool/$namespace/$object: |"; fi
            ;;
        esac
    done <<<"$objects"
}

# mounts_left FOLDER: what is mounted on or below it.
mounts_left() {
    awk -v folder="$1" '$5 == folder || index($5, folder "/") == 1 { print "mount " $5 }' /proc/self/mountinfo
}

# loops_left FOLDER: loop devices that stand on a file below it.
loops_left() {
    losetup --list --noheadings --output NAME,BACK-FILE | awk -v folder="$1/" 'index($2, folder) == 1 { print "loop " $0 }'
}

# krbd_left NAMESPACE: images of that RADOS namespace that the kernel has mapped.
krbd_left() {
    grep -lxF -e "$1" /sys/bus/rbd/devices/*/pool_ns 2>/dev/null | sed 's/^/mapped image /' || true
}

# tests_left FOLDER: all of that, after tests that had FOLDER/tmp for their files and a lab with the
# pool rbd and the namespace rbd/tests.
tests_left() {
    local namespace
    for namespace in "" $(rbd namespace ls --format json rbd | jq -r '.[].name'); do
        rbd_left rbd "$namespace" || echo "no answer about rbd/$namespace"
        [[ $namespace == @(|tests) ]] || echo "namespace rbd/$namespace"
    done
    rados lspools | sed '/^rbd$/d; s/^/pool /'
    mounts_left "$1"
    loops_left "$1"
    processes_left "$1/tmp"
    find "$1/tmp" -mindepth 1
}

# wait_until_tests_left_nothing FOLDER: fails when something is left after minutes, and says what.
# The data of deleted snapshots goes when the OSD has trimmed it, in its own time.
wait_until_tests_left_nothing() {
    wait_until 300 "everything to be gone" tests_left_nothing "$1" && return
    tests_left "$1" | head -n 40
    return 1
}

tests_left_nothing() { [[ -z $(tests_left "$1") ]]; }

# processes_left WORD: processes whose command line holds it, a folder's or a namespace's name.
processes_left() {
    local file line
    for file in /proc/[0-9]*/cmdline; do
        line=$(tr '\0' ' ' <"$file") || continue # it has ended meanwhile
        if [[ $line == *"$1"* ]]; then echo "process ${file//[!0-9]/}: $line"; fi
    done 2>/dev/null
}
