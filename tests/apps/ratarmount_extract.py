"""Reads a tar file as ratarmount does, without the mount, which needs more than an ordinary user may do in a container.
Arguments: ARCHIVE, and a directory to extract into, or nothing to list."""
import os
import shutil
import stat
import sys

from ratarmountcore.mountsource.compositing.versioning import FileVersionLayer
from ratarmountcore.mountsource.factory import open_mount_source

# The mount has this layer, which resolves hard links.
source = FileVersionLayer(open_mount_source(sys.argv[1], recursive=False, indexFilePath=":memory:"))


def below(directory):
    for name in source.list(directory) or {}:
        path = directory.rstrip("/") + "/" + name
        entry = source.lookup(path)
        print(path)
        if len(sys.argv) > 2:
            extract(path, entry)
        if stat.S_ISDIR(entry.mode):
            below(path)


def extract(path, entry):
    target = sys.argv[2] + path
    if stat.S_ISDIR(entry.mode):
        os.mkdir(target)
    elif stat.S_ISLNK(entry.mode):
        os.symlink(entry.linkname, target)
    else:
        with source.open(entry) as content, open(target, "wb") as file:
            shutil.copyfileobj(content, file)


below("/")
