#!/usr/bin/env bash
# Makes the Debian part of the image's root filesystem: `image/debian.sh SUITE DIRECTORY`, a
# directory that is empty or does not exist.
#
# The packages are those of image/lock/SUITE-ARCHITECTURE, byte for byte: each is downloaded from
# where this machine's apt has Debian from, held against its SHA-256, and unpacked. None is
# installed: no script of a package runs, so nothing is needed but root, chroot and the tools every
# Debian has, of any suite; the architecture is this machine's. Documentation, languages and what
# else no container uses are taken out, licences stay, and dpkg's status says which package of which
# version is inside, for those that scan images. The exit code is 3 when a package of the lock
# cannot be downloaded.
set -euo pipefail
shopt -s inherit_errexit
umask 022
# shellcheck source=image/packages.sh
source "$(dirname "${BASH_SOURCE[0]}")/packages.sh"

[[ $# == 2 && $1 != -* ]] || { sed -n '2,/^set/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; [[ ${1:-} == --help ]]; exit; }
suite=$1 root=$2
((EUID == 0)) || die "files of the image belong to root: run this as root"
lock=$locks/$suite-$(dpkg --print-architecture)
[[ -e $lock ]] || die "there is no $lock; \`image/lock.sh $suite\` makes it"
mkdir -p "$root"
root=$(cd "$root" && pwd)
[[ -z $(ls -A "$root") ]] || die "$root is not empty"

work=$(mktemp -d --tmpdir cinderblock-image.XXXXXX)
trap 'rm -rf "$work"' EXIT

read_packages "$suite"
grep --quiet --line-regexp "list $list" "$lock" ||
    die "image/packages names other packages than when $lock was made; \`image/lock.sh $suite\` renews it"
mirrors

# What the lock names, as apt-helper takes it, and for sha256sum.
wanted=()
while read -r name version digest path; do
    from=$mirror
    [[ $path != pool/updates/* ]] || from=$security_mirror
    wanted+=("$from/$path" "$work/$name.deb" "SHA256:$digest")
    printf '%s  %s %s\n' "$digest" "$name" "$version" >>"$work/packages"
done < <(grep --invert-match '^\(#\|list \)' "$lock")
/usr/lib/apt/apt-helper --option APT::Sandbox::User=root download-file "${wanted[@]}" >"$work/log" 2>&1 || true
while read -r digest name version; do
    [[ -e $work/$name.deb ]] || [[ ! -e $work/$name.deb.FAILED ]] || mv "$work/$name.deb.FAILED" "$work/$name.deb"
    if [[ ! -e $work/$name.deb ]]; then
        grep '^E:\|^Err' "$work/log" | head -n 5 >&2
        say "$name $version, which $lock names, could not be downloaded; apt's words are above. A mirror keeps no package" \
            "that a newer one has replaced: \`image/lock.sh $suite\` renews the lock"
        exit 3
    fi
    [[ $(sha256sum <"$work/$name.deb") == "$digest  -" ]] ||
        die "$name $version is not the package that $lock names: its SHA-256 differs. If you trust the mirror," \
            "\`image/lock.sh $suite\` renews the lock"
done <"$work/packages"
cd "$root"

# unpack ARCHIVE [PATH…]: what is named of a package, or all of it, and the package's entry in
# dpkg's status.
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
for part in "${parts[@]}"; do
    read -r name part <<<"$part"
    set -f
    # shellcheck disable=SC2086 # patterns, which tar expands
    unpack "$work/$name.deb" $part
    set +f
    rm "$work/$name.deb"
done
for archive in "$work"/*.deb; do unpack "$archive"; done
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
rm -rf usr/share/{bash-completion,bug,doc-base,fish,gcc,gdb,initramfs-tools,info,libc-bin,lintian,locale,man,zsh} \
    usr/lib/{systemd,udev,valgrind,*/gconv,*/e2fsprogs,*/e2initrd_helper} etc/{cron.d,init.d,default}
# No user becomes root here by running a program.
find . -xdev -type f -perm /6000 -exec chmod ug-s {} +

# Every library that is needed is there.
loader=$(find usr/lib usr/lib64 -maxdepth 1 -name 'ld-linux*' -print -quit)
[[ $loader ]] || die "no dynamic loader is among the files"
lacking=$(find usr -xdev -type f \( -perm /111 -o -name '*.so*' \) ! -path "$(readlink --canonicalize "$loader")" |
    while read -r file; do
        [[ $(head --bytes 4 "$file" | tr -d '\0') == $'\x7fELF' ]] || continue
        chroot . "/$loader" --list "/$file" 2>&1 | sed -n "s|^\s*\(.* => not found\)|/$file: \1|p" || true
    done)
[[ -z $lacking ]] || die "libraries are missing; name their packages in image/packages: $lacking"
say "$root: $(grep --count '^Package:' var/lib/dpkg/status) packages of Debian $suite, $(du --summarize --apparent-size --block-size=M . | cut --fields 1)"
