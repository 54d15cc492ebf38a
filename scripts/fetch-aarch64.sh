#!/usr/bin/env bash
# Unpacks below target/aarch64 what scripts/check-aarch64.sh needs: a Rust compiler with the standard libraries of both
# architectures (one release of both, because build scripts run here), a linker, a C library and an emulator. The
# system's own mirrors and keys serve; nothing is installed and no list of the system is touched. Looks first, so a
# second run costs nothing.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)/target/aarch64
keys=/usr/share/keyrings/debian-archive-keyring.gpg
work=$root/work

[ ! -e "$root/complete" ] || exit 0
rm -rf "$root"
mkdir -p "$work"/{lists,cache,packages} "$work/lists/partial" "$work/cache/archives/partial"
: >"$work/status"
apt-get indextargets --format '$(REPO_URI) $(RELEASE) main|$(ORIGIN)' 'Created-By: Packages' | sort -u |
    sed -n "s#|Debian\$##; t keep; d; :keep; s#^#deb [arch=amd64,arm64 signed-by=$keys] #p" >"$work/sources.list"
options=(-q -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State=$work" -o "Dir::State::Lists=$work/lists" -o "Dir::State::status=$work/status"
    -o "Dir::Cache=$work/cache" -o Acquire::Languages=none -o APT::Sandbox::User=
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
    -o APT::Architectures::=amd64 -o APT::Architectures::=arm64)
if [ ! -s "$work/sources.list" ] || ! apt-get "${options[@]}" update; then
    echo "fetch-aarch64: apt knows no Debian mirror that has packages for arm64; run apt-get update first" >&2
    exit 2
fi

needed() { # package, pattern: the packages with names of this form that it depends on
    apt-cache "${options[@]}" depends "$1" | sed -nE "s/^ *Depends: ($2)\$/\1/p"
}
runtime=$(needed libstd-rust-web-dev 'libstd-rust-web-[0-9.]+')
packages=(rustc-web libstd-rust-web-dev libstd-rust-web-dev:arm64 "$runtime" "$(needed "$runtime" 'libllvm[0-9]+')"
    libedit2 libz3-4 libxml2 libicu72 libbsd0 libmd0
    gcc-aarch64-linux-gnu gcc-12-aarch64-linux-gnu cpp-12-aarch64-linux-gnu binutils-aarch64-linux-gnu
    libisl23 libmpc3 libmpfr6 libjansson4
    libgcc-12-dev-arm64-cross libgcc-s1-arm64-cross libc6-arm64-cross libc6-dev-arm64-cross linux-libc-dev-arm64-cross
    qemu-user-static)
(cd "$work/packages" && apt-get "${options[@]}" download "${packages[@]}")
for package in "$work"/packages/*.deb; do
    dpkg-deb -x "$package" "$root"
done
find "$root/usr/bin" -name 'qemu-*' ! -name qemu-aarch64-static -delete

# They find their libraries here; those that they start do, too.
for tool in "rustc $root/usr/bin/rustc" "gcc $root/usr/bin/aarch64-linux-gnu-gcc --sysroot=$root"; do
    cat >"$root/${tool%% *}" <<TOOL
#!/bin/sh
LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu exec ${tool#* } "\$@"
TOOL
    chmod +x "$root/${tool%% *}"
done
cat >"$root/run" <<TOOL
#!/bin/sh
exec $root/usr/bin/qemu-aarch64-static -L $root/usr/aarch64-linux-gnu "\$@"
TOOL
chmod +x "$root/run"
rm -rf "$work"
touch "$root/complete"
