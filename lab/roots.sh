# Root filesystems with one release of Ceph each, made of Debian's own packages. Sourced, never run.
# shellcheck shell=bash disable=SC2154 # here is the folder of the script that sources this
#
# .tools/ceph/RELEASE      the root; its file lab-root says which Ceph is inside, and what it was made
#                          of. A root gets this name when it is whole, so one that is there can be
#                          used.
# .tools/ceph/bin/RELEASE  a folder for PATH: Ceph's programs of that release, links to lab/with

releases=(16 18 20)
roots=$(realpath -m "$here/../.tools/ceph")

# Besides the lab's own packages: what scripts, tests and the driver call while they run inside.
root_packages=(
    base-files base-passwd bash coreutils dash dpkg findutils grep sed mawk diffutils tar gzip
    libc-bin
    ceph-mon ceph-mgr ceph-osd ceph-common librbd1 librados2 python3-rados python3-rbd rbd-nbd
    qemu-system-common qemu-utils qemu-block-extra e2fsprogs xfsprogs util-linux mount kmod procps
    iproute2 jq socat faketime openssl
)

# The programs that a lab of a release, and a client of it, are to find first on PATH.
root_programs=(
    ceph rbd rados rbd-nbd ceph-mon ceph-mgr ceph-osd ceph-authtool ceph-conf monmaptool osdmaptool
    ceph-objectstore-tool
)

# Goes up when make_root makes something else of the same packages.
root_recipe=1

# suites_of RELEASE: the suites of Debian to look for it in. Unstable comes last: it moves on to the
# next release.
suites_of() {
    case $1 in
    16) echo bookworm ;;
    18) echo trixie ;;
    20) echo forky sid ;;
    esac
}

# need_release RELEASE: dies unless it is one of those there are.
need_release() {
    [[ -n $1 && " ${releases[*]} " == *" $1 "* ]] ||
        die "there is no Ceph ${1:-''} here: Debian has packages of ${releases[*]} and of no other"
}

root_is_made() {
    local version made_of
    { read -r version && read -r made_of; } 2>/dev/null <"$roots/$1/lab-root" || return
    [[ $version == "$1".* && $made_of == "$root_recipe ${root_packages[*]}" ]]
}

# root_version RELEASE: the version of the Ceph in it.
root_version() { head -n 1 "$roots/$1/lab-root"; }

# ensure_root RELEASE: makes the root when there is none, or one of another Ceph or of other
# packages. Two callers do not make it at the same time.
ensure_root() {
    need_release "$1"
    root_is_made "$1" && return
    ((EUID == 0)) || die "a root filesystem with Ceph $1 has to be made, and this user is not root"
    local lock scratch
    mkdir -p "$roots"
    exec {lock}<"$roots"
    flock "$lock"
    if ! root_is_made "$1"; then
        rm -rf "$roots"/making.* # of one that was killed
        scratch=$(mktemp -d --tmpdir="$roots" making.XXXXXX)
        # In a shell of its own, so that whatever fails in it ends it.
        if ! (make_root "$1" "$scratch"); then
            rm -rf "$scratch"
            die "the root filesystem with Ceph $1 could not be made"
        fi
        rm -rf "${roots:?}/$1"
        mv "$scratch/root" "$roots/$1"
        rm -rf "$scratch"
    fi
    exec {lock}<&-
    make_programs "$1"
}

# make_root RELEASE SCRATCH: makes SCRATCH/root. No script of a package runs, so nothing is needed
# but apt, dpkg-deb, tar and root.
make_root() {
    set -euo pipefail
    local release=$1 scratch=$2 root=$2/root suite began archive version name
    umask 022
    began=$(milliseconds)
    for suite in $(suites_of "$release"); do
        open_suite "$suite" "$scratch" || {
            tail -n 5 "$scratch/log" >&2
            die "apt-get could not read Debian's suite $suite"
        }
        version=$(newest_in_suite ceph-mon) && [[ $version == "$release".* ]] && break
        version=
    done
    [[ -n $version ]] || die "Debian has no Ceph $release in $(suites_of "$release")"
    say "making $roots/$release with Ceph $version, from Debian's $suite"
    apt-get "${suite_apt[@]}" --download-only install "${root_packages[@]}" \
        >"$scratch/log" 2>&1 || {
        tail -n 5 "$scratch/log" >&2
        die "apt-get could not download the packages; its last words are above"
    }

    # The frame comes first: packages whose files go through /bin or /lib have to find the links.
    mkdir -p "$root"/{dev,proc,root,run,sys,tmp,usr/{bin,sbin,lib,lib64},var/lib/dpkg,var/tmp}
    for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
    for archive in "$scratch"/archives/*.deb; do
        # dpkg-deb's own --extract would put a folder where a link to one is.
        dpkg-deb --fsys-tarfile "$archive" |
            tar --extract --keep-directory-symlink --directory "$root" --exclude='./usr/share/doc/*' \
                --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*'
        { dpkg-deb --field "$archive" && echo 'Status: install ok installed' && echo; } \
            >>"$root/var/lib/dpkg/status"
    done
    finish_root "$release" "$root"

    version=$(chroot "$root" /usr/bin/ceph-mon --version | cut -d' ' -f3)
    [[ $version == "$release".* ]] || die "Debian's Ceph $release says it is ${version:-none}"
    printf '%s\n' "$version" "$root_recipe ${root_packages[*]}" >"$root/lab-root"
    say "made in $(seconds_since "$began"): $(du --summarize --block-size=M "$root" | cut -f1)"
}

# finish_root RELEASE ROOT: what the packages' own scripts would have done, as far as anything here
# needs it.
finish_root() {
    local release=$1 root=$2
    ldconfig -r "$root"
    ln -sf dash "$root/usr/bin/sh"
    ln -sf mawk "$root/usr/bin/awk"
    ln -sf ../proc/self/mounts "$root/etc/mtab"
    ln -sfn ../run "$root/var/run"
    cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
    cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
    printf '%s\n' 'passwd: files' 'group: files' 'hosts: files dns' >"$root/etc/nsswitch.conf"
    touch "$root/etc/hosts" "$root/etc/resolv.conf"
    chmod 1777 "$root/tmp" "$root/var/tmp"
    # The manager's module telemetry does not load without certificates, and health tells.
    mkdir -p "$root/etc/ssl/certs"
    cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
    # Debian 13's bcrypt cannot be loaded by more than one of Python's interpreters in a process.
    # The manager has one for each module, so none of them loads. They want it for passwords of the
    # dashboard alone.
    if ((release == 18)); then
        rm -r "$root"/usr/lib/python3/dist-packages/bcrypt*
        cat >"$root/usr/lib/python3/dist-packages/bcrypt.py" <<'PYTHON'
def gensalt(*_, **__):
    raise RuntimeError("this Ceph has no bcrypt")
hashpw = checkpw = gensalt
PYTHON
    fi
}

# make_programs RELEASE: the folder for PATH.
make_programs() {
    local name
    mkdir -p "$roots/bin/$1"
    for name in "${root_programs[@]}"; do ln -sfn "$here/with" "$roots/bin/$1/$name"; done
}

# path_for RELEASE: this shell's PATH with that release's programs first, and no other's. Without a
# RELEASE, with none.
path_for() {
    local folder path=
    local IFS=:
    for folder in $PATH; do [[ $folder == "$roots"/bin/* ]] || path+=:$folder; done
    echo "${1:+$roots/bin/$1:}${path#:}"
}
