# safetensors, whose files get their names by a system call that the module makes itself. Argument: write | restart
import os
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

first = 0
if sys.argv[1] == "restart":
    state = load_file("ckpt/model.safetensors")
    print({name: float(value.sum()) for name, value in sorted(state.items())})
    first = int(state["step"][0])
for step in range(first, first + 3):
    save_file({"weights": np.arange(5000.0) * step, "step": np.array([step + 1])}, f"ckpt/step-{step}.safetensors")
    save_file({"weights": np.arange(5000.0) * step, "step": np.array([step + 1])}, "ckpt/model.safetensors")
os.remove(f"ckpt/step-{first}.safetensors")
print(sorted(name for name in os.listdir("ckpt") if name != ".sheaf"))
