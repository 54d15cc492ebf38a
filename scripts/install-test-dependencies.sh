#!/usr/bin/env bash
# Installs what the tests run: real programs from Debian, stock tar readers, and one reader from PyPI.
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
/usr/lib/python3/dist-packages/numpy         python3-numpy
/usr/lib/python3/dist-packages/h5py          python3-h5py
/usr/share/python-wheels                     python3-venv
bsdtar                                       libarchive-tools
7zz                                          7zip
/bin/busybox                                 busybox-static
rsync                                        rsync
strace                                       strace
fio                                          fio
mkfs.xfs                                     xfsprogs
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

# The Python that the tests run: Debian's, with its numpy and h5py, and the ratarmount library on top.
venv=$root/target/test-venv
if ! "$venv/bin/python3" -c 'import numpy, h5py, ratarmountcore' 2>/dev/null; then
    rm -rf "$venv"
    /usr/bin/python3 -m venv --system-site-packages "$venv"
    "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check 'ratarmountcore==0.10.4'
    "$venv/bin/python3" -c 'import numpy, h5py, ratarmountcore'
fi
