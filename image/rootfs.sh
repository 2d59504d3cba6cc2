#!/usr/bin/env bash
# Makes the image's root filesystem without a container engine, out of the same parts as the Dockerfile:
#
#   image/rootfs.sh [--binary FILE] DIRECTORY
#
# DIRECTORY is empty or does not exist. FILE is a built cinderblock; without it the release binary is built first. Needs root on Debian
# bookworm (see image/debian.sh), cargo and jq. What the engine would set besides is in the Dockerfile: PATH, USER 65532:65532,
# and the entry point /usr/bin/tini -- /usr/local/bin/cinderblock.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary=
while (($# > 1)); do
    [[ $1 == --binary ]] || break
    binary=$2
    shift 2
done
[[ $# == 1 && $1 != -* ]] || { sed -n '2,/^set/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; [[ ${1:-} == --help ]]; exit; }

if [[ -z $binary ]]; then
    (cd "$here/.." && cargo build --release --locked --bin cinderblock)
    binary=$here/../target/release/cinderblock
fi
"$here/debian.sh" "$1"
install --mode 755 "$binary" "$1/usr/local/bin/cinderblock"
mkdir "$1/usr/share/cinderblock"
"$here/sbom.sh" "$1" >"$1/usr/share/cinderblock/sbom.cdx.json"
