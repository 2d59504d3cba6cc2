# shellcheck shell=bash disable=SC2034 # list and locks are for the scripts that source this
# Reads image/packages, for image/lock.sh and image/debian.sh.

image=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
program=image
# Where the locks are. Tests have their own.
locks=${IMAGE_LOCKS:-$image/lock}

say() { printf '%s: %s\n' "$program" "$*" >&2; }
die() { say "$*"; exit 1; }

# read_packages SUITE: sets `whole`, names of whole packages; `parts`, lines of a name and its
# patterns; `without`, names of packages that are left out; and `list`, a digest of all the names.
read_packages() {
    local suite=$1 name paths
    whole=() parts=() without=()
    while read -r name paths; do
        if [[ $paths =~ ^(.*)\[(!?)([a-z]+)\]$ ]]; then
            if [[ ${BASH_REMATCH[3]} == "$suite" ]]; then [[ ! ${BASH_REMATCH[2]} ]] || continue
            else [[ ${BASH_REMATCH[2]} ]] || continue; fi
            paths=${BASH_REMATCH[1]}
        fi
        case $name in
            '' | '#'*) ;;
            -*) without+=("${name#-}") ;;
            *) if [[ $paths ]]; then parts+=("$name $paths"); else whole+=("$name"); fi ;;
        esac
    done <"$image/packages"
    list=$(printf '%s\n' "${whole[@]}" "${parts[@]%% *}" "${without[@]/#/-}" | sort | sha256sum | cut -d' ' -f1)
}

# mirrors: sets `mirror` and `security_mirror`, where this machine's apt has Debian from. Lists need
# not be there.
mirrors() {
    local releases
    releases=$(apt-get update --print-uris | sed -n "s|^'\(.*\)/dists/\([^/]*\)/InRelease' .*|\2 \1|p")
    mirror=$(awk -v codename="$(. /etc/os-release && echo "$VERSION_CODENAME")" \
        '$1 == codename && $2 ~ /debian/ { print $2; exit }' <<<"$releases")
    [[ $mirror ]] || die "apt on this machine has no mirror of Debian; this takes Debian, as a container perhaps"
    security_mirror=$(awk '$1 ~ /-security$/ { print $2; exit }' <<<"$releases")
    : "${security_mirror:=$mirror-security}"
}
