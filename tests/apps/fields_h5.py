"""An HDF5 file that is written, reopened for append, changed in place and read. Argument: write | restart"""
import sys

import h5py
import numpy as np

NAME = "ckpt/fields.h5"


def options(**more):
    # HDF5 stamps objects with the time of day unless told not to; the test compares bytes.
    return {"track_times": False, **more}


def write():
    field = np.arange(1 << 16, dtype="f8")
    with h5py.File(NAME, "w") as file:
        file.create_dataset("plain", data=field, **options())
        file.create_dataset("packed", data=field, **options(chunks=(4096,), compression="gzip"))
        file.attrs["step"] = 1
    with h5py.File(NAME, "a") as file:
        series = file.create_dataset("series", (0, 500), **options(maxshape=(None, 500), chunks=(1, 500)))
        for step in range(10):
            series.resize(step + 1, 0)
            series[step] = step
            file.flush()
    show()


def restart():
    show()
    with h5py.File(NAME, "r+") as file:
        file["plain"][:100] = -1
        file.attrs["step"] = 2
        file["series"].resize(15, 0)
        file["series"][10:] = 7
    show()


def show():
    with h5py.File(NAME, "r") as file:
        print(int(file.attrs["step"]), [(name, float(file[name][...].sum())) for name in sorted(file)])


{"write": write, "restart": restart}[sys.argv[1]]()
