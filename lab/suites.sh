# Packages of Debian's other suites, without touching this machine's apt. Sourced, never run.
# shellcheck shell=bash disable=SC2034 # suite_apt is for the scripts that source this

# debian_mirror: where this machine's apt gets Debian from, one URI. Security updates stand
# elsewhere.
debian_mirror() {
    # shellcheck disable=SC2016 # for apt-get
    apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE)' \
        'Created-By: Packages' 'Component: main' |
        awk -v own="$(. /etc/os-release && echo "$VERSION_CODENAME")" '$2 == own { print $1; exit }'
}

# open_suite SUITE FOLDER: an apt for that suite alone, with lists and archives of its own in
# FOLDER. Use it as apt-get "${suite_apt[@]}" … . Nothing counts as installed. Fails when the suite
# cannot be read.
open_suite() {
    local suite=$1 folder=$2 mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mirror=$(debian_mirror)
    [[ -n $mirror ]] ||
        die "this machine's apt names no Debian mirror: this needs a Debian with its own sources"
    mkdir -p "$folder"/{lists,archives}/partial
    echo "deb [signed-by=$keyring] $mirror $suite main" >"$folder/sources.list"
    suite_apt=(
        --quiet --yes
        --option Dir::Etc::SourceList="$folder/sources.list"
        --option Dir::Etc::SourceParts=/dev/null
        --option Dir::State::Lists="$folder/lists" --option Dir::State::status=/dev/null
        --option Dir::State::extended_states=/dev/null
        --option Dir::Cache="$folder" --option Dir::Cache::archives="$folder/archives"
        --option Acquire::Languages=none --option APT::Install-Recommends=false
        --option APT::Sandbox::User=root --option Debug::NoLocking=true
        --option APT::Keep-Downloaded-Packages=true
    )
    apt-get "${suite_apt[@]}" update >"$folder/log" 2>&1
}

# newest_in_suite PACKAGE: the version that suite has, or nothing.
newest_in_suite() {
    apt-cache "${suite_apt[@]:2}" policy "$1" | sed -n 's/^ *Candidate: //p' | grep -vxF '(none)'
}
