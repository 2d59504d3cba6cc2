# What the tests of the labs assert with. Sourced, never run.
# shellcheck shell=bash

passed=0 failed=0

# check WHAT COMMAND…: one assertion.
check() {
    local what=$1 output
    shift
    if output=$("$@" 2>&1); then
        passed=$((passed + 1))
        echo "ok      $what"
    else
        failed=$((failed + 1))
        echo "FAILED  $what"
        echo "        $* said: $output"
    fi
}

# refuses WORDS COMMAND…: whether the command fails and says these words.
refuses() {
    local words=$1 output
    shift
    ! output=$("$@" 2>&1) || return
    echo "$output"
    [[ $output == *"$words"* ]]
}

# said WORDS COMMAND…: whether the command succeeds and says these words.
said() {
    local words=$1 output
    shift
    output=$("$@" 2>&1) || { echo "$output"; return 1; }
    echo "$output"
    [[ $output == *"$words"* ]]
}

# says WORDS COMMAND…: the same within five minutes.
says() {
    wait_until 300 "the answer $1" said "$@" >/dev/null || said "$@"
}

same() { [[ "$1" == "$2" ]]; }
differ() { [[ -n $1 && -n $2 && "$1" != "$2" ]]; }

# checked WHAT: the last line of a test. Fails when a check has.
checked() {
    echo "$1: $passed passed, $failed failed"
    ((failed == 0))
}
