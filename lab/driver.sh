# The built driver as one process that serves everything, against the lab. Sourced, never run.
# shellcheck shell=bash

driver=${CINDERBLOCK:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/target/debug/cinderblock}
driver_pid=

# need_node: dies when this machine or user cannot attach and mount volumes.
need_node() {
    ((EUID == 0)) || die "attaching and mounting needs root"
    [[ ${SANITY_MOUNTER:-fuse} != fuse || -c /dev/fuse ]] || die "this kernel has no FUSE (/dev/fuse), which the volumes are attached through"
}

# need_driver: dies when the binary, the lab or the rights are missing, saying how to get them.
need_driver() {
    need_node
    [[ -x $driver ]] || die "$driver is not built; run: make build"
    [[ -n ${LAB_MONITORS:-} && -r ${LAB_KEY_FILE:-} ]] || die "no Ceph is named; run: make lab-up && eval \"\$(lab/ceph env)\""
}

# start_driver FOLDER POOL ARGUMENT…: serves on FOLDER/csi.sock, keeps its state in FOLDER/state and
# its log in FOLDER/driver.log. POOL, or POOL/NAMESPACE, is where it works when a request brings no
# secrets. Further arguments go to `cinderblock serve`.
start_driver() {
    driver_folder=$1
    cat >"$driver_folder/clusters.yaml" <<YAML
- clusterID: lab
  monitors: ["$LAB_MONITORS"]
  userID: "$LAB_USER"
  keyFile: "$LAB_KEY_FILE"
  pools: ["$2"]
YAML
    "$driver" serve --role all --endpoint "unix://$driver_folder/csi.sock" --node-id lab-node \
        --config "$driver_folder/clusters.yaml" --state-dir "$driver_folder/state" "${@:3}" \
        >"$driver_folder/driver.log" 2>&1 &
    driver_pid=$!
    wait_until 300 "the driver's socket" driver_answers && kill -0 "$driver_pid" && return
    tail_driver_log
    die "the driver does not serve; its log is above"
}

# A driver that has ended counts as an answer, so that no script waits for it.
driver_answers() { [[ -S $driver_folder/csi.sock ]] || ! kill -0 "$driver_pid" 2>/dev/null; }

# stop_driver: SIGTERM, and SIGKILL when it does not leave. No error when none runs.
stop_driver() {
    [[ -n $driver_pid ]] || return 0
    kill "$driver_pid" 2>/dev/null || true
    wait_until 40 "the driver to stop" driver_is_gone || kill -KILL "$driver_pid" 2>/dev/null || true
    wait "$driver_pid" 2>/dev/null || true
    driver_pid=
}

driver_is_gone() { ! kill -0 "$driver_pid" 2>/dev/null; }

# clear_node FOLDER: takes away by force what a driver that has stopped still holds on this machine:
# filesystems, the last first; the loop devices they were on; the processes that hold the images
# open, with the files they export. Needs leaks.sh. It goes on whatever fails.
clear_node() {
    local path device pid
    mounts_left "$1" | grep -v "^mount $1/state/" | tac | while read -r _ path; do umount "$path" || true; done
    loops_left "$1" | while read -r _ device _; do losetup --detach "$device" || true; done
    processes_left "$1/state/" | while read -r _ pid _; do kill "${pid%:}" || true; done
    mounts_left "$1" | tac | while read -r _ path; do umount --lazy "$path" || true; done
}

tail_driver_log() {
    printf -- '--- the driver'\''s log, its end (%s)\n' "$driver_folder/driver.log"
    tail -n 30 "$driver_folder/driver.log"
} >&2
