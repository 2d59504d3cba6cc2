#!/usr/bin/env bash
# Renews the locks of the image's packages:
#
#   image/lock.sh                        all that there are
#   image/lock.sh SUITE [ARCHITECTURE]   that suite's, for one architecture or for all; makes them when there are none
#
# A lock, image/lock/SUITE-ARCHITECTURE, names every package of the image: what image/packages
# names, and what that depends on, in the versions that Debian's SUITE has today, with the security
# updates of a stable one. It is found out with lists of apt's own, checked with Debian's keys, so
# any Debian can make the lock of any suite and architecture. Nothing is installed.
set -euo pipefail
shopt -s inherit_errexit
# shellcheck source=image/packages.sh
source "$(dirname "${BASH_SOURCE[0]}")/packages.sh"

[[ $# -le 2 && ${1:-} != -* ]] || { sed -n '2,/^set/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; [[ $1 == --help ]]; exit; }

architectures=(amd64 arm64)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

work=$(mktemp -d --tmpdir cinderblock-image.XXXXXX)
trap 'rm -rf "$work"' EXIT

# lock SUITE ARCHITECTURE: prints the lock.
lock() {
    local suite=$1 architecture=$2 own=$work/$1-$2 options name
    mkdir -p "$own/lists/partial" "$own/cache"
    {
        echo "deb [signed-by=$keyring] $mirror $suite main"
        [[ $suite == sid ]] || echo "deb [signed-by=$keyring] $security_mirror $suite-security main"
    } >"$own/sources.list"
    options=(--option Dir::State::lists="$own/lists" --option Dir::State::status="$own/status" --option Dir::Cache="$own/cache"
        --option Dir::Etc::sourcelist="$own/sources.list" --option Dir::Etc::sourceparts=/dev/null
        --option APT::Architecture="$architecture" --option APT::Architectures="$architecture"
        --option APT::Install-Recommends=false --option APT::Sandbox::User=root --option Acquire::Languages=none
        --option Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
    touch "$own/status"
    apt-get "${options[@]}" --quiet --error-on=any update >&2

    # Packages left out count as installed in the very version there is, and stay; nothing else is
    # installed. Not every suite has all of them.
    for name in "${without[@]}"; do
        apt-cache "${options[@]}" --quiet=1 show --no-all-versions "$name" 2>/dev/null |
            grep --extended-regexp '^(Package|Architecture|Version|Provides):' || continue
        printf 'Status: hold ok installed\nMaintainer: -\nDescription: left out\n\n'
    done >"$own/left-out"
    mv "$own/left-out" "$own/status"

    echo "# Debian $suite on $architecture, made by image/lock.sh: package, version, SHA-256, and its archive's path in the mirror."
    echo "list $list"
    {
        apt-get "${options[@]}" --yes --print-uris install "${whole[@]}" &&
            apt-get "${options[@]}" --print-uris download "${parts[@]%% *}"
    } | sed -n "s|^'[^']*' \([^_]*\)_\([^_]*\)_.*|\1=\2|p" | sed 's/%3a/:/g' | sort --unique >"$own/chosen"
    mapfile -t chosen <"$own/chosen"
    apt-cache "${options[@]}" show "${chosen[@]}" | awk '
        /^Package:/ { package = $2 } /^Version:/ { version = $2 } /^Filename:/ { path = $2 } /^SHA256:/ { digest = $2 }
        /^$/ { print package, version, digest, path }' | sort --unique
}

mirrors
mkdir -p "$locks"
if [[ ${1:-} ]]; then
    [[ ! ${2:-} ]] || architectures=("$2")
    names=("${architectures[@]/#/$1-}")
else
    mapfile -t names < <(ls "$locks")
fi
for name in "${names[@]}"; do
    read_packages "${name%-*}"
    lock "${name%-*}" "${name##*-}" >"$work/lock"
    # A package in two versions would be unpacked twice.
    twice=$(sed 1,2d "$work/lock" | cut -d' ' -f1 | uniq --repeated | tr '\n' ' ')
    [[ -z $twice ]] || die "Debian's lists for $name have two of: $twice"
    mv "$work/lock" "$locks/$name"
    say "$locks/$name: $(sed 1,2d "$locks/$name" | wc -l) packages"
done
