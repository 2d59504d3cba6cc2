#!/usr/bin/env bash
# Prints what is inside the image, as a CycloneDX document: `image/sbom.sh DIRECTORY`, with the root
# filesystem that image/debian.sh made, or its var/lib/dpkg and usr/lib/os-release alone. Debian's
# packages are those of its dpkg status, and the crates those that the binary is linked from on this
# machine's architecture. Needs cargo, dpkg-query and jq.
set -euo pipefail

[[ ${1:-} != --help && $# == 1 ]] || { sed -n '2,/^set/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; [[ ${1:-} == --help ]]; exit; }
status=$(realpath "$1/var/lib/dpkg")
# A suite that is not released has a name and no number.
# shellcheck disable=SC1091 # the image's own
distribution=$(. "$1/usr/lib/os-release" && echo "$ID-${VERSION_ID:-$VERSION_CODENAME}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

{
    dpkg-query --admindir="$status" --show \
        --showformat='debian\t${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\n'
    # The line of the crate itself comes first.
    cargo tree --locked --package cinderblock --edges normal,no-proc-macro --prefix none --format $'crate\t{p}\t{l}' |
        sed 's/ (\*)$//' | awk '!seen[$0]++'
} | jq --raw-input --null-input --arg distribution "$distribution" '
    def debian: {
        type: "library", name: .[1], version: .[2],
        "bom-ref": "pkg:deb/debian/\(.[1] | @uri)@\(.[2] | @uri)?arch=\(.[3])&distro=\($distribution)",
        properties: [{name: "debian:source", value: "\(.[4]) \(.[5])"}]
    } | .purl = ."bom-ref";
    def crate: (.[1] | split(" ")) as [$name, $version] | {
        type: "library", $name, version: ($version | ltrimstr("v")),
        "bom-ref": "pkg:cargo/\($name)@\($version | ltrimstr("v") | @uri)",
        licenses: (if .[2] == "" then [] else [{expression: (.[2] | gsub(" *(/| OR ) *"; " OR "))}] end)
    } | .purl = ."bom-ref";
    [inputs | split("\t")] | map(select(.[0] == "debian") | debian) as $debian | map(select(.[0] == "crate") | crate) as $crates
    | if ($debian | length) == 0 or ($crates | length) == 0 then error("no packages, or no crates") else . end
    | {
        bomFormat: "CycloneDX", specVersion: "1.6", version: 1,
        metadata: {component: ($crates[0] | .type = "application")},
        components: ($debian + $crates[1:])
    }'
