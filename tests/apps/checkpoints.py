"""Checkpoints as Python programs write them. Argument: write | restart"""
import os
import pickle
import shutil
import sys
import tempfile

import numpy as np

HERE = "ckpt"


def save(name, state):
    with open(f"{HERE}/{name}.tmp", "wb") as file:
        pickle.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{HERE}/{name}.tmp", f"{HERE}/{name}")


def write():
    field = np.arange(1 << 17, dtype="f8")
    for step in range(4):
        save("state.pkl", {"step": step, "field": field * step})
    np.save(f"{HERE}/field.npy", field)
    np.savez(f"{HERE}/both.npz", field=field, squares=field**2)
    os.makedirs(f"{HERE}/step-3/ranks", exist_ok=True)
    for rank in range(20):
        with open(f"{HERE}/step-3/ranks/{rank:03d}.txt", "w") as file:
            file.write(f"rank {rank}\n" * (rank * 50))
    with open(f"{HERE}/step-3/\u00e9tat \u2713", "x") as file:
        file.write("a name beyond ASCII\n")
    os.symlink("step-3", f"{HERE}/latest.tmp")
    os.replace(f"{HERE}/latest.tmp", f"{HERE}/latest")
    os.link(f"{HERE}/field.npy", f"{HERE}/field-3.npy")
    mapped = np.memmap(f"{HERE}/mapped.raw", "f8", "w+", shape=field.shape)
    mapped[:] = field
    mapped.flush()
    del mapped
    with open(f"{HERE}/holes.raw", "wb") as file:
        file.write(b"start")
        file.seek(10 << 20)
        file.write(b"middle")
        file.truncate(20 << 20)
    with tempfile.NamedTemporaryFile(dir=HERE, delete=False) as file:
        file.write(field.tobytes())
    shutil.move(file.name, f"{HERE}/moved.raw")
    open(f"{HERE}/empty", "w").close()
    os.truncate(f"{HERE}/both.npz", os.path.getsize(f"{HERE}/both.npz"))
    os.chmod(f"{HERE}/moved.raw", 0o640)
    os.remove(f"{HERE}/step-3/ranks/007.txt")
    show()


def restart():
    show()
    with open(f"{HERE}/state.pkl", "rb") as file:
        state = pickle.load(file)
    print(state["step"], float(state["field"].sum()))
    print(float(np.load(f"{HERE}/field.npy", mmap_mode="r")[99]))
    print(float(np.load(f"{HERE}/both.npz")["squares"].sum()))
    mapped = np.memmap(f"{HERE}/mapped.raw", "f8", "r+")
    mapped[5] = -1
    mapped.flush()
    del mapped
    with open(f"{HERE}/latest/ranks/011.txt", "a") as file:
        file.write("appended\n")
    for step in range(4, 7):
        save("state.pkl", {"step": step, "field": state["field"] + step})
    os.rename(f"{HERE}/step-3", f"{HERE}/step-old")
    os.replace(f"{HERE}/moved.raw", f"{HERE}/field.npy")
    shutil.copyfile(f"{HERE}/both.npz", f"{HERE}/copy.npz")
    show()


def show():
    for directory, directories, files in sorted(os.walk(HERE)):
        print(directory, sorted(directories), [(name, os.lstat(f"{directory}/{name}").st_size) for name in sorted(files)])


{"write": write, "restart": restart}[sys.argv[1]]()
