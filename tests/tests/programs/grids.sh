# netCDF: the classic and the HDF5-based format, by Python and by the tools. Argument: write | restart
set -eu
cat >grids.py <<'END'
import sys
import netCDF4
import numpy as np

def write(name, kind):
    with netCDF4.Dataset(f"ckpt/{name}", "w", format=kind) as data:
        data.createDimension("time", None)
        data.createDimension("x", 500)
        field = data.createVariable("field", "f8", ("time", "x"))
        for step in range(10):
            field[step, :] = np.arange(500) * step
            data.sync()
        data.history = "written"

def append(name):
    with netCDF4.Dataset(f"ckpt/{name}", "a") as data:
        print(float(data["field"][:].sum()), data.history)
        data["field"][len(data.dimensions["time"]), :] = 7
        data.history = "appended"

for name, kind in [("classic.nc", "NETCDF3_CLASSIC"), ("wide.nc", "NETCDF3_64BIT_OFFSET"), ("new.nc", "NETCDF4")]:
    write(name, kind) if sys.argv[1] == "write" else append(name)
END
show() {
    for name in classic wide new made copied; do ncdump "ckpt/$name.nc" | sha256sum; done
    ncdump -h ckpt/new.nc
    ncdump -k ckpt/classic.nc
    ls ckpt
}
[ "$1" = write ] || show
python3 grids.py "$1"
ncdump ckpt/classic.nc >text.cdl
ncgen -o ckpt/made.nc text.cdl
nccopy -k netCDF-4 -d 1 ckpt/classic.nc ckpt/copied.nc
nccopy -k classic ckpt/copied.nc ckpt/back.nc
ncdump ckpt/back.nc | tail -n 3
show
