#!/usr/bin/env bash
# Makes the image's root filesystem without a container engine, out of the same parts as the
# Dockerfile:
#
#   image/rootfs.sh [--suite SUITE] [--binary FILE] DIRECTORY
#
# DIRECTORY is empty or does not exist. SUITE is the suite of Debian that fills it; the default is
# the Dockerfile's. FILE is a built cinderblock; without it the release binary is built first. A
# binary runs on the suite it was built on and on newer ones, so build it on bookworm. Needs root on
# a Debian (see image/debian.sh), cargo and jq. What the engine would set besides is in the
# Dockerfile: PATH, USER 65532:65532, and the entry point /usr/bin/tini --
# /usr/local/bin/cinderblock.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary=
suite=$(sed -n 's/^ARG SUITE=//p' "$here/../Dockerfile")
while (($# > 1)); do
    case $1 in
    --binary) binary=$2 ;;
    --suite) suite=$2 ;;
    *) break ;;
    esac
    shift 2
done
[[ $# == 1 && $1 != -* ]] || { sed -n '2,/^set/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; [[ ${1:-} == --help ]]; exit; }

if [[ -z $binary ]]; then
    (cd "$here/.." && cargo build --release --locked --bin cinderblock)
    binary=$here/../target/release/cinderblock
fi
"$here/debian.sh" "$suite" "$1"
install --mode 755 "$binary" "$1/usr/local/bin/cinderblock"
mkdir "$1/usr/share/cinderblock"
"$here/sbom.sh" "$1" >"$1/usr/share/cinderblock/sbom.cdx.json"
