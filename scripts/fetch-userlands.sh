#!/usr/bin/env bash
# Unpacks the C library, shell and tools of other Debian releases below target/userlands, for the tests that load
# libsheaf.so there. The system's own mirror and keys serve; nothing is installed and no list of the system is touched.
# Looks first, so a second run costs nothing.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
userlands=$root/target/userlands
keys=/usr/share/keyrings/debian-archive-keyring.gpg

# release  packages: the C library first
releases="
bullseye libc6 libc6-dev linux-libc-dev bash coreutils libtinfo6 libselinux1 libattr1 libacl1 libgmp10 libpcre2-8-0
trixie   libc6 bash coreutils libtinfo6 libselinux1 libattr1 libacl1 libgmp10 libpcre2-8-0 libssl3t64 libcap2 libsystemd0 zlib1g libzstd1
"

fetch() { # release, packages
    local release=$1 work=$userlands/.$1
    shift
    rm -rf "$work" "${userlands:?}/$release"
    mkdir -p "$work"/{lists,cache,packages} "$work/lists/partial" "$work/cache/archives/partial"
    : >"$work/status"
    echo "deb [arch=amd64 signed-by=$keys] $mirror $release main" >"$work/sources.list"
    local options=(-q -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State=$work" -o "Dir::State::Lists=$work/lists" -o "Dir::State::status=$work/status"
        -o "Dir::Cache=$work/cache" -o Acquire::Languages=none -o APT::Sandbox::User=
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
    if ! apt-get "${options[@]}" update || ! (cd "$work/packages" && apt-get "${options[@]}" download "$@"); then
        echo "fetch-userlands: the system's mirror has no packages of Debian $release (any more)" >&2
        exit 2
    fi
    local package
    for package in "$work"/packages/*.deb; do
        dpkg-deb -x "$package" "$work/root"
    done
    mv "$work/root" "$userlands/$release"
    rm -rf "$work"
}

# Programs of the release run with its loader and libraries, whoever starts them: that is written into them.
settle() { # release
    local tree=$userlands/$1 program directory
    local libraries=$tree/lib/x86_64-linux-gnu:$tree/usr/lib/x86_64-linux-gnu loader
    # Releases that keep everything below /usr bring no link to it, and links from the root lead out of the tree.
    for directory in lib lib64; do
        [ -e "$tree/$directory" ] || ln -s "usr/$directory" "$tree/$directory"
    done
    loader=$(readlink "$tree/lib64/ld-linux-x86-64.so.2")
    case $loader in /*) ln -sf "$tree$loader" "$tree/lib64/ld-linux-x86-64.so.2" ;; esac
    mkdir -p "$tree/programs"
    for program in "$tree"/bin/* "$tree"/usr/bin/*; do
        [ -f "$program" ] && [ ! -L "$program" ] || continue
        cp "$program" "$tree/programs/"
        # Scripts stay as they are.
        patchelf --set-interpreter "$tree/lib64/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$libraries" \
            "$tree/programs/$(basename "$program")" 2>&1 | grep -v "not an ELF executable" || true
    done
    "$tree/programs/bash" -c true
}

while read -r release packages; do
    [ -n "$release" ] || continue
    ! "$userlands/$release/programs/bash" -c true 2>/dev/null || continue
    mirror=$(apt-get indextargets --format '$(REPO_URI)|$(ORIGIN)|$(LABEL)' 'Created-By: Packages' |
        sed -n 's/|Debian|Debian$//p' | head -n 1)
    if [ -z "$mirror" ]; then
        echo "fetch-userlands: apt knows no Debian mirror; run apt-get update first" >&2
        exit 2
    fi
    # shellcheck disable=SC2086 # a list of names
    fetch "$release" $packages
    settle "$release"
done <<<"$releases"
