#!/usr/bin/env bash
# Installs what the tests run: real programs from Debian, stock tar readers, suites from crates.io, modules from PyPI, and
# other releases' userlands below target/.
# Looks first, so a second run costs a second. It must never start a daemon nor touch anything but apt and target/.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

# program-or-file  package
needs="
lmp                                          lammps
mpirun                                       openmpi-bin
mpicc                                        libopenmpi-dev
gfortran                                     gfortran
gcc                                          gcc
go                                           golang-go
/usr/lib/python3/dist-packages/numpy         python3-numpy
/usr/lib/python3/dist-packages/h5py          python3-h5py
/usr/lib/python3/dist-packages/h5py/_debian_h5py_mpi python3-h5py-mpi
/usr/lib/python3/dist-packages/mpi4py        python3-mpi4py
/usr/share/python-wheels                     python3-venv
bsdtar                                       libarchive-tools
7zz                                          7zip
/bin/busybox                                 busybox-static
rsync                                        rsync
strace                                       strace
fio                                          fio
mkfs.xfs                                     xfsprogs
mkfs.btrfs                                   btrfs-progs
git                                          git
sqlite3                                      sqlite3
zip                                          zip
unzip                                        unzip
vim                                          vim
perl                                         perl
node                                         nodejs
javac                                        default-jdk-headless
ncgen                                        netcdf-bin
/usr/lib/python3/dist-packages/netCDF4       python3-netcdf4
/usr/lib/python3/dist-packages/torch         python3-torch
stress-ng                                    stress-ng
valgrind                                     valgrind
nm                                           binutils
g++                                          g++
patchelf                                     patchelf
fakeroot                                     fakeroot
fusermount3                                  fuse3
slurmctld                                    slurm-wlm
munged                                       munge
glusterd                                     glusterfs-server
mount.glusterfs                              glusterfs-client
mfsmaster                                    moosefs-master
mfschunkserver                               moosefs-chunkserver
mfsmount                                     moosefs-client
mfscli                                       moosefs-cli
ip                                           iproute2
setpriv                                      util-linux
musl-gcc                                     musl-tools
/usr/lib/x86_64-linux-gnu/libjemalloc.so.2   libjemalloc2
/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4 libtcmalloc-minimal4
/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1 libfaketime
/usr/include/x86_64-linux-gnu/gnu/stubs-32.h libc6-dev-i386
/usr/lib/gcc/x86_64-linux-gnu/12/32          lib32gcc-12-dev
"

missing=()
while read -r thing package; do
    [ -n "$thing" ] || continue
    case $thing in
        /*) [ -e "$thing" ] ;;
        *) PATH="$PATH:/usr/sbin:/sbin" command -v "$thing" >/dev/null ;;
    esac || missing+=("$package")
done <<<"$needs"

if [ ${#missing[@]} -gt 0 ]; then
    install=(apt-get install -y --no-install-recommends "${missing[@]}")
    if [ "$(id -u)" = 0 ]; then
        become=()
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        become=(sudo -n)
    else
        echo "install-test-dependencies: missing packages; run as root: ${install[*]}" >&2
        exit 2
    fi
    # RUNLEVEL=1 keeps the packages' own scripts from starting services.
    "${become[@]}" apt-get update -q
    "${become[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 "${install[@]}"
fi

# Test suites for file systems, from crates.io.
tools=$root/target/tools
for suite in fsx@0.3.2 pjdfstest@0.2.2; do
    if ! "$tools/bin/${suite%@*}" --version 2>/dev/null | grep -qF "${suite#*@}"; then
        CARGO_TARGET_DIR=$tools/build cargo install --quiet --locked --force --root "$tools" "$suite"
    fi
done
rm -rf "$tools/build"

# The Python that the tests run: Debian's, with its numpy and h5py, and modules of PyPI on top.
venv=$root/target/test-venv
if ! "$venv/bin/python3" -c 'import numpy, h5py, ratarmountcore, safetensors' 2>/dev/null; then
    rm -rf "$venv"
    /usr/bin/python3 -m venv --system-site-packages "$venv"
    "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check 'ratarmountcore==0.10.4' 'safetensors==0.8.0'
    "$venv/bin/python3" -c 'import numpy, h5py, ratarmountcore, safetensors'
fi

# Other releases' C libraries, with a shell and tools.
"$root/scripts/fetch-userlands.sh"
