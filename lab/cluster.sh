# One Ceph cluster of one monitor, one manager and one OSD, all of it inside one folder. Sourced,
# never run.
# shellcheck shell=bash disable=SC2154 # dir, lock and the options are lab/ceph's own
#
# The folder ($dir) holds:
#   ceph.conf    what daemons and clients read; its first line marks the folder as a lab
#   keyring      the keys of client.admin and of every --user
#   NAME.key     one key each, nothing else in the file
#   settings     what `up` was asked for, and the releases daemons were upgraded to
#   mon mgr osd  the daemons' data; block is the store of a bluestore OSD
#   log run      their logs and admin sockets
#
# Nothing else is written anywhere, and a daemon is known by its command line alone
# (`--conf=$dir/ceph.conf`): there is no pid file that could lie. Every file is 0600, every folder
# 0700 (umask of lab/ceph).

daemons=(mon mgr osd)
mark="# A Cinderblock lab: made by lab/ceph, removed by lab/ceph down."

needless_modules=(
    alerts influx insights iostat localpool mirroring nfs osd_perf_query osd_support prometheus restful selftest
    snap_schedule stats telegraf test_orchestrator zabbix
)

is_lab() { [[ -f $dir/ceph.conf && $(head -n 1 "$dir/ceph.conf") == "$mark" ]]; }

# conf_value NAME: one value of ceph.conf.
conf_value() { sed -n "s/^$1 = //p" "$dir/ceph.conf" | head -n 1; }

# setting NAME: one value of what `up` was asked for.
setting() { sed -n "s/^$1=//p" "$dir/settings"; }

# set_setting NAME VALUE: a reader finds all the old ones meanwhile, or all the new ones.
set_setting() {
    { sed "/^$1=/d" "$dir/settings" && echo "$1=$2"; } >"$dir/settings.new"
    mv "$dir/settings.new" "$dir/settings"
}

# lab_ceph, lab_rbd ARGUMENTS…: Ceph's own tools as client.admin. They give up in the end when a
# monitor does not answer.
lab_ceph() { timeout 300 ceph --conf="$dir/ceph.conf" --connect-timeout 120 "$@"; }
lab_rbd() { timeout 300 rbd --conf="$dir/ceph.conf" "$@"; }

# --- processes ------------------------------------------------------------------------------------

# pids_of DAEMON…: the running processes of this lab's daemons of those kinds.
pids_of() {
    local file pid argument
    while read -r file; do
        pid=${file//[!0-9]/}
        argument=$(tr '\0' '\n' 2>/dev/null <"$file" | head -n 1) || continue
        if [[ " $* " == *" ${argument#ceph-} "* ]]; then echo "$pid"; fi
    done < <(grep -lzxF -e "--conf=$dir/ceph.conf" /proc/[0-9]*/cmdline 2>/dev/null)
}

runs() { [[ -n $(pids_of "$1") ]]; }
is_gone() { [[ -z $(pids_of "$@") ]]; }

# stopped_by_signal DAEMON: whether SIGSTOP holds it.
stopped_by_signal() { [[ $(sed 's/.*) //' "/proc/$(pids_of "$1")/stat") == [Tt]* ]]; }

# signal NAME DAEMON…: sends a signal to each process of those daemons. One that has gone meanwhile
# is no error.
signal() {
    local name=$1 pid
    shift
    for pid in $(pids_of "$@"); do kill -s "$name" "$pid" 2>/dev/null || true; done
}

# stop_daemon DAEMON: TERM, and KILL when it does not leave in time. One held by SIGSTOP is let go
# first.
stop_daemon() {
    signal CONT "$1"
    signal TERM "$1"
    wait_until 10 "$1 to stop on SIGTERM" is_gone "$1" && return
    say "sending SIGKILL"
    signal KILL "$1"
    wait_until 60 "$1 to stop on SIGKILL" is_gone "$1"
}

# stop_daemons: the OSD goes first: it tells the monitor that it leaves, and waits for the answer.
stop_daemons() {
    signal CONT "${daemons[@]}"
    local daemon
    for daemon in osd mgr mon; do stop_daemon "$daemon"; done
}

# release_of DAEMON: the release of its programs, that of its last upgrade or the lab's own. Empty
# means this machine's.
release_of() {
    local own
    own=$(setting "$1")
    echo "${own:-$(setting release)}"
}

# version_of DAEMON: the Ceph it is of.
version_of() {
    if [[ -n $(setting "$1") ]]; then root_version "$(setting "$1")"; else setting version; fi
}

# start_daemon DAEMON: returns when the daemon has bound its ports and gone into the background. The
# lock of lab/ceph is closed for it, or the daemon would hold it for as long as it lives. Debian's
# Ceph 20 looks for the OSD's classes under a relative name, so it starts in /.
start_daemon() {
    local id=a
    [[ $1 == osd ]] && id=0
    (
        cd /
        PATH=$(path_for "$(release_of "$1")")
        "ceph-$1" --conf="$dir/ceph.conf" --id="$id"
    ) {lock}>&- </dev/null >"$dir/log/start.$1" 2>&1
}

# explain DAEMON…: the last words of each daemon, for a person to read.
explain() {
    local daemon file
    for daemon in "$@"; do
        for file in "$dir/log/start.$daemon" "$dir/log/$daemon.log"; do
            [[ -s $file ]] || continue
            printf -- '--- %s\n' "$file"
            tail -n 15 "$file"
        done
    done >&2
}

# --- making a cluster -----------------------------------------------------------------------------

# write_conf V2_PORT V1_PORT
write_conf() {
    local address=$address
    [[ $address == *:* ]] && address="[$address]"
    cat >"$dir/ceph.conf" <<CONF
$mark
[global]
fsid = $fsid
mon host = [v2:$address:$1,v1:$address:$2]
public addr = $address
ms bind ipv4 = $([[ $address == *:* ]] && echo false || echo true)
ms bind ipv6 = $([[ $address == *:* ]] && echo true || echo false)
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
run dir = $dir/run
log file = $dir/log/\$type.log
mon cluster log file = $dir/log/cluster.log
admin socket = $dir/run/\$type.asok
crash dir = $dir/run
# The daemons stay the user who started them.
setuser match path =
# One OSD: one copy, small pools, nothing moved about behind a test's back.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon warn on pool no redundancy = false
mon max pg per osd = 2000
# Health tells of this cluster, not of how full the disk it stands on is.
mon data avail warn = 1
mon data avail crit = 0
auth allow insecure global id reclaim = false
mgr initial modules = status

[mon]
mon data = $dir/mon
mon initial members = a
# A taken port is known at once; lab/ceph tries another.
ms bind retry count = 1
${monitor_round:+paxos propose interval = $monitor_round}

[mgr]
mgr data = $dir/mgr
# No pool of its own, for the health of disks.
mgr pool = false
keyring = $dir/mgr/keyring
# Loading a module takes a tenth of a second each; these are not needed, and Ceph's health does not
# miss them.
mgr disabled modules = $(IFS=,; echo "${needless_modules[*]}")

[osd]
osd data = $dir/osd
keyring = $dir/osd/keyring
osd journal =
osd objectstore = $objectstore
memstore device bytes = 8589934592
osd memory target = 1073741824
# An OSD may read for heartbeat grace times this, an hour, before it has to be told again that it
# may. One that is held for longer than that (a stopped process, a busy machine) finds its groups
# "laggy", and with no other OSD to tell it, Ceph 16 never ends that: all that reads waits for ever.
osd pool default read lease ratio = 180
# The data of a removed snapshot goes at once, not with a pause of seconds after each step.
osd snap trim sleep hdd = 0
osd snap trim sleep hybrid = 0
bluestore block path = $dir/block
bluestore block size = 10737418240
bluestore block create = true

[client]
keyring = $dir/keyring
# Clients share a name, so each has a socket of its own, and none writes a log.
log file =
log to stderr = false
admin socket = $dir/run/\$name.\$pid.asok
CONF
}

# Whether the cluster has to let users in whose keys are older than its own.
has_older_users() { ((${version%%.*} >= 20)) && [[ $key == aes ]]; }

# write_keys: one keyring with every key the cluster starts with (the monitor takes them in at
# birth), and what each party may read of it.
write_keys() {
    ceph-authtool --create-keyring "$dir/mon.keyring" --gen-key --name=mon. --cap mon 'allow *'
    local kind=()
    if has_older_users; then kind=(--key-type aes); fi
    ceph-authtool "$dir/mon.keyring" --gen-key "${kind[@]}" --name=client.admin \
        --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    ceph-authtool "$dir/mon.keyring" --gen-key --name=mgr.a \
        --cap mon 'allow profile mgr' --cap osd 'allow *'
    ceph-authtool "$dir/mon.keyring" --gen-key --name=osd.0 \
        --cap mon 'allow profile osd' --cap mgr 'allow profile osd' --cap osd 'allow *'
    local name
    for name in client.admin mgr.a osd.0; do
        printf '[%s]\n\tkey = %s\n' "$name" "$(ceph-authtool "$dir/mon.keyring" --name="$name" --print-key)" \
            >"$dir/$name.keyring"
    done
    mv "$dir/client.admin.keyring" "$dir/keyring"
    mv "$dir/mgr.a.keyring" "$dir/mgr/keyring"
    mv "$dir/osd.0.keyring" "$dir/osd/keyring"
    write_key_file admin
} >/dev/null

# write_key_file USER: the key alone, for those who take a key and not a keyring.
write_key_file() {
    local key
    key=$(ceph-authtool "$dir/keyring" --name="client.$1" --print-key)
    printf %s "$key" >"$dir/$1.key"
}

# start_monitor: tries port pairs until the monitor could bind both. The bind itself decides, so two
# labs that pick the same pair at the same time cannot both get it. The ports lie below the range
# the kernel hands to clients.
start_monitor() {
    local try port ciphers=()
    # The daemons keep newer keys; the preferred kind is that of new users.
    if has_older_users; then
        ciphers=(--auth-allowed-ciphers 'aes,aes256k' --auth-preferred-cipher aes)
    fi
    for ((try = 0; try < 20; try++)); do
        port=$((20000 + (RANDOM % 5000) * 2))
        write_conf "$port" $((port + 1))
        rm -rf "$dir/mon" "$dir/monmap"
        monmaptool --create --fsid "$fsid" --set-min-mon-release 14 "${ciphers[@]}" \
            --addv a "$(conf_value 'mon host')" "$dir/monmap" >"$dir/log/start.mon" 2>&1
        ceph-mon --conf="$dir/ceph.conf" --id=a --mkfs --monmap="$dir/monmap" --keyring="$dir/mon.keyring" \
            >"$dir/log/start.mon" 2>&1
        start_daemon mon && return
        grep -qi 'address already in use' "$dir/log/start.mon" "$dir/log/mon.log" 2>/dev/null || return 1
        say "port $port or $((port + 1)) is taken; trying others"
        rm -f "$dir/log/mon.log"
    done
    return 1
}

# start_osd_first_time: the OSD gets its number from the monitor, then its store.
start_osd_first_time() {
    local uuid
    uuid=$(</proc/sys/kernel/random/uuid)
    lab_ceph osd new "$uuid" 0 >"$dir/log/start.osd" 2>&1
    ceph-osd --conf="$dir/ceph.conf" --id=0 --mkfs --osd-uuid="$uuid" >"$dir/log/start.osd" 2>&1
    start_daemon osd
}

# is_ready: HEALTH_OK, an active manager (without one health stays OK for the first two minutes)
# that has heard from the OSD, and every placement group in service.
is_ready() {
    local report
    report=$(lab_ceph status --format json 2>/dev/null) &&
        [[ $report == *'"status":"HEALTH_OK"'* && $report == *'"mgrmap":{"available":true'* ]] &&
        [[ $report =~ \"pgs_by_state\":\[\{\"state_name\":\"active\+clean\",\"count\":[0-9]+\}\] ]]
}

# wait_until_ready: says what Ceph holds against itself when it takes too long.
wait_until_ready() {
    wait_until 600 HEALTH_OK is_ready && return
    lab_ceph status >&2 || true
    return 1
}

# mute CODE…: health says nothing of these.
mute() {
    local code
    for code in "$@"; do lab_ceph health mute "$code" --sticky || return; done
} >/dev/null 2>&1

# accept_older_users: this lab was asked to have keys that health complains of.
accept_older_users() { mute AUTH_INSECURE_{KEYS_ALLOWED,KEYS_CREATABLE,CLIENT_KEY_TYPE}; }

# make_cluster: from an empty folder to a cluster that answers.
make_cluster() {
    fsid=$(</proc/sys/kernel/random/uuid)
    write_conf 0 0 # marks the folder as a lab before anything else is in it
    mkdir "$dir"/{mgr,osd,log,run}
    write_keys
    printf '%s=%s\n' objectstore "$objectstore" monitor_round "$monitor_round" address "$address" \
        release "$release" version "$version" key "$key" >"$dir/settings"
    start_monitor
    rm "$dir/mon.keyring" "$dir/monmap"
    if has_older_users; then accept_older_users; fi
    # Or the manager makes a pool of its own for the health of disks.
    lab_ceph config set mgr mgr/devicehealth/enable_monitoring false --force
    start_daemon mgr
    start_osd_first_time
}

# --- upgrades ------------------------------------------------------------------------------------

# name_of RELEASE: what Ceph calls it.
name_of() {
    case $1 in
    16) echo pacific ;;
    18) echo reef ;;
    20) echo tentacle ;;
    esac
}

# accept_upgrade: health says nothing of what monitors of the next release hold against a cluster
# that is older. Those of 20 complain of keys of the kind aes. Those of 18 and 20 take an OSD of
# Debian's 16.2.15 for one of 18, and so OSD_UPGRADE_FINISHED comes before its time.
accept_upgrade() {
    mute OSD_UPGRADE_FINISHED \
        AUTH_INSECURE_{SERVICE_TICKETS,SERVICE_KEY_TYPE,ROTATING_SERVICE_KEY_TYPE} &&
        accept_older_users
}

# finish_upgrade DAEMON RELEASE: what an operator does once a daemon runs. The lab is of the new
# release when all of its daemons are.
finish_upgrade() {
    local daemon
    if [[ $1 == osd ]]; then
        lab_ceph osd require-osd-release "$(name_of "$2")" &&
            lab_ceph health unmute OSD_UPGRADE_FINISHED || return
    fi >/dev/null 2>&1
    for daemon in "${daemons[@]}"; do
        [[ $(release_of "$daemon") == "$2" ]] || return 0
    done
    set_setting release "$2"
    set_setting version "$(root_version "$2")"
}

# --- what is in it --------------------------------------------------------------------------------

ensure_pool() {
    lab_ceph osd pool create "$1" >/dev/null 2>&1 && lab_rbd pool init "$1"
}

ensure_namespace() {
    local names
    names=$(lab_rbd namespace ls --format json "${1%%/*}") || return
    [[ $names == *"\"name\":\"${1#*/}\""* ]] || lab_rbd namespace create "$1"
}

# ensure_user NAME=CAPS: CAPS as `ceph auth` takes them: mon 'profile rbd' osd 'profile rbd
# pool=rbd'.
ensure_user() {
    local name=${1%%=*} caps
    mapfile -t caps < <(xargs -n 1 printf '%s\n' <<<"${1#*=}")
    lab_ceph auth get-or-create "client.$name" "${caps[@]}" >"$dir/run/user.keyring" &&
        ceph-authtool "$dir/keyring" --import-keyring "$dir/run/user.keyring" >/dev/null &&
        rm "$dir/run/user.keyring" &&
        write_key_file "$name"
}
