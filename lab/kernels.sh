# The kernels of lab/guest: Debian's cloud kernels, each from the suite that has it. Sourced, never
# run.
# shellcheck shell=bash disable=SC2154 # here is the folder of the script that sources this
#
# Each is unpacked, not installed, in .tools/kernel/RELEASE (as `uname -r` names it), with
# `boot/vmlinuz-RELEASE` and `lib`, whatever the layout of its packages. A folder there is complete:
# it is made elsewhere and moved.

kernels=$here/../.tools/kernel

# The versions there are, and the suites they come from.
declare -A kernel_suites=([6.1]=bookworm [6.12]=trixie [7]=trixie-backports)

# find_kernel VERSION: sets `release` and `kernel`, its folder, to the newest one of that version;
# fails when none is there.
find_kernel() {
    release=$(find "$kernels" -mindepth 1 -maxdepth 1 -name "$1.*" -printf '%f\n' | sort -V | tail -n 1)
    # shellcheck disable=SC2034 # for the scripts that source this
    kernel=$(realpath -m "$kernels/$release")
    [[ -n $release ]]
}

# fetch_kernel VERSION: the same; fetches it from Debian when none is there.
fetch_kernel() {
    mkdir -p "$kernels"
    exec {kernel_lock}<"$kernels"
    flock "$kernel_lock"
    if ! find_kernel "$1"; then
        rm -rf "$kernels/fetch" # of one that failed
        unpack_kernel "$1" "$kernels/fetch"
        mv "$kernels"/fetch/root/* "$kernels/"
        rm -rf "$kernels/fetch"
        find_kernel "$1"
    fi
    exec {kernel_lock}<&- # or virtiofsd and QEMU would hold it
}

# unpack_kernel VERSION FOLDER: makes FOLDER/root/RELEASE.
unpack_kernel() {
    local version=$1 folder=$2 suite=${kernel_suites[$1]} release package
    open_suite "$suite" "$folder" || { tail -n 5 "$folder/log" >&2; die "apt-get could not read Debian's suite $suite"; }
    depends() { apt-cache "${suite_apt[@]:2}" depends "$1" | sed -n 's/^ *\(Pre\)\?Depends: //p'; }
    release=$(depends linux-image-cloud-amd64 | sed -n 's/^linux-image-//p')
    [[ $release == "$version".* ]] ||
        die "Debian's suite $suite has the cloud kernel ${release:-none}, and not $version"
    # From 7 on the modules and the kernel itself are in packages of their own.
    local packages=("linux-image-$release")
    for package in $(depends "linux-image-$release"); do
        if [[ $package == linux-*-"$release" ]]; then packages+=("$package"); fi
    done
    say "fetching ${packages[*]}"
    (cd "$folder" && apt-get "${suite_apt[@]}" download "${packages[@]}" >log 2>&1) ||
        { tail -n 5 "$folder/log" >&2; die "apt-get could not download them"; }
    local root=$folder/root/$release
    mkdir -p "$root"
    for package in "$folder"/*.deb; do dpkg --extract "$package" "$root"; done
    [[ -e $root/lib ]] || ln -s usr/lib "$root/lib"
    if [[ ! -e $root/boot/vmlinuz-$release ]]; then
        mkdir -p "$root/boot"
        ln "$root/lib/modules/$release/vmlinuz" "$root/boot/vmlinuz-$release"
    fi
    depmod --basedir "$root" "$release"
    chmod -R go+rX "$root"
}
