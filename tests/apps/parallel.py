"""Parallel HDF5 as simulations use it: all ranks write one file by MPI-IO, and each two of its own, one of them by MPI-IO, too.

HDF5 calls MPI_File_open for both; Fortran's bindings would call PMPI_File_open. `write` writes; `read` shows what is in the shared file.
"""
import sys

import numpy

SHARED = "ckpt/shared.h5"
COLUMNS = 1 << 15


def write():
    from mpi4py import MPI
    # Debian has two; which one `h5py` is depends on the launcher.
    import h5py._debian_h5py_mpi as h5py

    ranks = MPI.COMM_WORLD
    with open(f"ckpt/rank-{ranks.rank}", "w") as own:
        own.write(f"of rank {ranks.rank}\n")
    with h5py.File(f"ckpt/own-{ranks.rank}.h5", "w", driver="mpio", comm=MPI.COMM_SELF) as file:
        file["field"] = numpy.arange(COLUMNS) * ranks.rank
    with h5py.File(SHARED, "w", driver="mpio", comm=ranks) as file:
        field = file.create_dataset("field", (ranks.size, COLUMNS), dtype="i8")
        field[ranks.rank] = numpy.arange(COLUMNS) * (ranks.rank + 1)
    ranks.Barrier()


def read():
    import h5py

    with h5py.File(SHARED, "r") as file:
        print(file["field"].shape, [int(row.sum()) for row in file["field"]])


write() if sys.argv[1] == "write" else read()
