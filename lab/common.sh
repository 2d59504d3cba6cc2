# Words every script of the lab shares. Sourced, never run.
# shellcheck shell=bash disable=SC2154 # dir is the folder of the script that sources it

# say WORDS…: one line of progress, on standard error so that standard output stays a command's
# answer.
say() {
    printf '%s: %s\n' "${program:-lab}" "$*" >&2
}

# die WORDS…: the last line of a failure: what, and what to do. The caller's EXIT trap cleans up.
die() {
    say "$*"
    exit 1
}

# wait_until SECONDS WHAT COMMAND…: runs COMMAND until it succeeds. Returns 1, naming WHAT, when it
# did not in time.
wait_until() {
    local deadline=$((SECONDS + $1)) what=$2
    local limit=$1
    shift 2
    until "$@"; do
        if ((SECONDS >= deadline)); then
            say "waited $limit s in vain for $what"
            return 1
        fi
        sleep 0.1
    done
}

# milliseconds: the clock, for durations only.
milliseconds() {
    local now=${EPOCHREALTIME/[.,]/}
    echo $((now / 1000))
}

# seconds_since MILLISECONDS: the time passed, as people read it: 3.2 s.
seconds_since() {
    local passed=$(($(milliseconds) - $1))
    printf '%d.%d s' $((passed / 1000)) $((passed % 1000 / 100))
}

# lock_folder: one `up` or `down` at a time per folder. The folder itself is the lock file; when it
# was removed while we waited, the lock is on nothing, so we take it anew.
lock_folder() {
    while true; do
        mkdir -p "$dir"
        exec {lock}<"$dir"
        flock "$lock"
        [[ $(stat -Lc %i "/dev/fd/$lock") == "$(stat -c %i "$dir" 2>/dev/null)" ]] && return
        exec {lock}<&-
    done
}
