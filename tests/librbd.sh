#!/usr/bin/env bash
# librbd itself, release by release: `tests/librbd.sh [RELEASE…]`, for 16, 18 and 20 when none is
# named. Needs root.
#
# - The driver's declarations of C functions are held against the headers of the release.
# - tests/librbd/faults.c shows which faults that the driver works around the release has, with
#   daemons of the same release. Fails when the release has one that `faults_of` does not name, or
#   lacks one that it names. What depends on luck is shown twice and not judged: as librados comes,
#   and on one thread, as the driver has it. Fails when one thread does not mend what it should.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/lab
cd "$here/.."
program=tests/librbd.sh
# shellcheck source=lab/common.sh
source lab/common.sh
# shellcheck source=lab/suites.sh
source lab/suites.sh
# shellcheck source=lab/roots.sh
source lab/roots.sh

by_luck=(removal-twice handles-abort clone-closed clone-refused quiesce-abort)
# Those of them that one thread mends (`librados_thread_count`), which the driver therefore has.
thread_faults=(handles-abort clone-closed clone-refused)

# faults_of RELEASE: the faults that do not depend on luck.
faults_of() {
    echo copy-of-clone copy-stop write-past-end parent-name diff-overflow flush-after-error
    (($1 > 16)) || echo flatten-object-map
}

# headers RELEASE: a folder with the headers of that release.
headers() {
    local suite version='' archive folder=$work/headers-$1
    for suite in $(suites_of "$1"); do
        open_suite "$suite" "$folder/$suite" && version=$(newest_in_suite librbd-dev) &&
            [[ $version == "$1".* ]] && break
        version=
    done
    [[ -n $version ]] || die "Debian has no librbd-dev of Ceph $1"
    (cd "$folder" && apt-get "${suite_apt[@]}" download librbd-dev librados-dev >log 2>&1) ||
        die "the headers of Ceph $1 could not be downloaded"
    for archive in "$folder"/*.deb; do dpkg-deb --extract "$archive" "$folder"; done
    echo "$folder/usr/include"
}

# check RELEASE: prints a line for each fault; fails when one is other than expected.
check() {
    local release=$1 folder name line expected outcome=0
    folder=$(headers "$release") || return
    CEPH_HEADERS=$folder cargo test --quiet --workspace --test externs || outcome=1
    lab/ceph up --dir "$work/ceph" --monitor-round 0.05 --release "$release" || return
    eval "$(lab/ceph env --dir "$work/ceph")"
    for name in $("$work/faults"); do
        line=$(lab/with "$release" "$work/faults" "$name") || outcome=1
        printf 'Ceph %s: %s\n' "$release" "$line"
        if [[ " ${by_luck[*]} " == *" $name "* ]]; then
            line=$(lab/with "$release" "$work/faults" "$name" 1) || outcome=1
            printf 'Ceph %s, librados on one thread: %s\n' "$release" "$line"
            [[ " ${thread_faults[*]} " != *" $name "* || $line == "$name: none, "* ]] || {
                say "expected of Ceph $release on one thread: $name: none"
                outcome=1
            }
            continue
        fi
        expected=none
        [[ " $(faults_of "$release" | tr '\n' ' ') " != *" $name "* ]] || expected=fault
        [[ $line == "$name: $expected, "* ]] || {
            say "expected of Ceph $release: $name: $expected"
            outcome=1
        }
    done
    lab/ceph down --dir "$work/ceph"
    return "$outcome"
}

end() {
    [[ ! -d $work/ceph ]] || lab/ceph down --dir "$work/ceph"
    rm -rf "$work"
}

work=$(mktemp -d --tmpdir cinderblock-librbd.XXXXXX)
trap end EXIT
cc -std=gnu11 -O1 -Wall -Wextra -Werror -o "$work/faults" tests/librbd/faults.c -lrbd -lrados -lpthread
(($# > 0)) || set -- "${releases[@]}"
failed=()
for release; do check "$release" || failed+=("$release"); done
((${#failed[@]} == 0)) || die "something of Ceph ${failed[*]} is other than expected; it is named above"
