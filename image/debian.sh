#!/usr/bin/env bash
# Makes the Debian part of the image's root filesystem: `image/debian.sh DIRECTORY`, a directory that is empty or does not exist.
#
# The packages of image/packages, and what they depend on, are downloaded as this machine's apt finds them and unpacked. None is
# installed: no script of a package runs, so nothing is needed but root, chroot and the tools every Debian has, and the architecture is this
# machine's. Documentation, languages and what else no container uses are taken out, licences stay, and dpkg's status says
# which package of which version is inside, for those that scan images.
set -euo pipefail
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
program=image

say() { printf '%s: %s\n' "$program" "$*" >&2; }
die() { say "$*"; exit 1; }

[[ ${1:-} != --help && $# == 1 ]] || { sed -n '2,/^set/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; [[ ${1:-} == --help ]]; exit; }
root=$1
((EUID == 0)) || die "files of the image belong to root: run this as root"
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
[[ $codename == bookworm ]] || die "the image is Debian bookworm, and this machine's packages are of ${codename:-something else}"
mkdir -p "$root"
root=$(cd "$root" && pwd)
[[ -z $(ls -A "$root") ]] || die "$root is not empty"

work=$(mktemp -d --tmpdir cinderblock-image.XXXXXX)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# One array each for whole packages, for parts, as written, and for what is left out.
whole=() parts=() without=()
while read -r name paths; do
    case $name in
        '' | '#'*) ;;
        -*) without+=("${name#-}") ;;
        *) if [[ $paths ]]; then parts+=("$name $paths"); else whole+=("$name"); fi ;;
    esac
done <"$here/packages"

# Packages left out count as installed in a version above all others, and nothing else does, whatever this machine has.
for name in "${without[@]}"; do
    apt-cache show --no-all-versions "$name" | grep --extended-regexp '^(Package|Architecture|Provides):'
    printf 'Status: install ok installed\nVersion: 9999:0\nMaintainer: -\nDescription: left out\n\n'
done >"$work/status"
apt() {
    apt-get --quiet --yes --option Dir::State::status="$work/status" --option Dir::Cache::archives="$work/whole" \
        --option APT::Sandbox::User=root --option Debug::NoLocking=true --option APT::Install-Recommends=false "$@"
}
mkdir -p "$work/whole/partial" "$work/parts"
{
    apt --download-only install "${whole[@]}"
    cd "$work/parts"
    apt download "${parts[@]%% *}"
} >"$work/log" 2>&1 || {
    tail -n 20 "$work/log" >&2
    die "apt-get could not download the packages; its last words are above"
}
cd "$root"

# unpack ARCHIVE [PATH…]: what is named of a package, or all of it, and the package's entry in dpkg's status.
unpack() {
    local archive=$1 selected=()
    shift
    if (($#)); then
        selected=(--wildcards "${@/#/.}" "./usr/share/doc/$(dpkg-deb --field "$archive" Package)/copyright")
    fi
    dpkg-deb --fsys-tarfile "$archive" | tar --extract --keep-directory-symlink "${selected[@]}"
    dpkg-deb --field "$archive" | sed '/^Package:/a Status: install ok installed' >>var/lib/dpkg/status
    echo >>var/lib/dpkg/status
}

# The frame that base-files' scripts would have made.
mkdir -p dev etc proc root run sys tmp usr/{bin,lib,lib64,sbin,local/bin} var/lib/dpkg var/tmp
chmod 700 root
chmod 1777 tmp var/tmp
for name in bin lib lib64 sbin; do ln -s "usr/$name" "$name"; done
ln -s ../run var/run
ln -s ../proc/self/mounts etc/mtab
for archive in "$work"/whole/*.deb; do unpack "$archive"; done
for part in "${parts[@]}"; do
    read -r name part <<<"$part"
    set -f
    # shellcheck disable=SC2086 # patterns, which tar expands
    unpack "$(set +f; ls "$work/parts/$name"_*.deb)" $part
    set +f
done
ln -s dash bin/sh
cat >etc/passwd <<'PASSWD'
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
cinderblock:x:65532:65532:the driver's controller:/nonexistent:/bin/false
PASSWD
cat >etc/group <<'GROUP'
root:x:0:
nogroup:x:65534:
cinderblock:x:65532:
GROUP
echo 'hosts: files dns' >etc/nsswitch.conf

# What no container uses. Each package's licence stays.
find usr/share/doc ! -type d ! -name copyright -delete
find usr/share/doc -type d -empty -delete
rm -rf usr/share/{bash-completion,bug,doc-base,gdb,initramfs-tools,info,libc-bin,lintian,locale,man} \
    usr/lib/{systemd,udev,valgrind,*/gconv,*/e2fsprogs,*/e2initrd_helper} etc/{cron.d,init.d,default}
# Nobody becomes root here by running a program.
find . -xdev -type f -perm /6000 -exec chmod ug-s {} +

# Every library that is needed is there.
loader=$(find usr/lib usr/lib64 -maxdepth 1 -name 'ld-linux*' -print -quit)
[[ $loader ]] || die "no dynamic loader is among the files"
lacking=$(find usr -xdev -type f \( -perm /111 -o -name '*.so*' \) ! -path "$(readlink --canonicalize "$loader")" |
    while read -r file; do
        [[ $(head --bytes 4 "$file" | tr -d '\0') == $'\x7fELF' ]] || continue
        chroot . "/$loader" --list "/$file" 2>&1 | sed -n "s|^\s*\(.* => not found\)|/$file: \1|p"
    done)
[[ -z $lacking ]] || die "libraries are missing; name their packages in image/packages: $lacking"
say "$root: $(grep --count '^Package:' var/lib/dpkg/status) packages of Debian $(cat etc/debian_version), $(du --summarize --apparent-size --block-size=M . | cut --fields 1)"
