# Workers of multiprocessing, started in each of its ways, write checkpoints and read them back. Argument: write | restart
import json
import multiprocessing
import os
import pickle
import sys


def save(job):
    method, number, step = job
    name = f"ckpt/{method}-{number}.pickle"
    with open(name + ".tmp", "wb") as file:
        pickle.dump({"method": method, "number": number, "step": step, "state": list(range(number * 1000))}, file)
    os.replace(name + ".tmp", name)
    return os.path.getsize(name)


def load(name):
    with open(name, "rb") as file:
        state = pickle.load(file)
    return name, state["step"], sum(state["state"])


def run(method, phase):
    context = multiprocessing.get_context(method)
    step = 0
    with context.Pool(2) as pool:
        if phase == "restart":
            names = sorted(f"ckpt/{name}" for name in os.listdir("ckpt") if name.startswith(method + "-") and name.endswith(".pickle"))
            loaded = pool.map(load, names)
            print(loaded)
            step = 1 + loaded[0][1]
        print(method, pool.map(save, [(method, number, step) for number in range(1, 7)]))
    # One that ends with its file open, and one that is killed: the parent's own file stays as it is.
    with open(f"ckpt/{method}-parent.json", "w") as file:
        json.dump({"step": step}, file)
        file.flush()
        child = context.Process(target=leave, args=(method,))
        child.start()
        child.join()
        print(child.exitcode)
        file.write("\n")


def leave(method):
    file = open(f"ckpt/{method}-left.bin", "wb", buffering=0)
    file.write(b"left open " * 1000)
    os.kill(os.getpid(), 9)


if __name__ == "__main__":
    for method in ["fork", "spawn", "forkserver"]:
        run(method, sys.argv[1])
