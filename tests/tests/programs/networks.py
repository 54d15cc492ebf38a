# PyTorch: torch.save, torch.load and a training run that goes on from where it was. Argument: write | restart
import os
import sys

import torch

torch.set_num_threads(1)
torch.manual_seed(7)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
first = 0
if sys.argv[1] == "restart":
    state = torch.load("ckpt/latest.pt")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    first = state["step"] + 1
    print(len(torch.load("ckpt/plain.pt")), torch.load("ckpt/old.pt").sum().item())
    print(torch.jit.load("ckpt/script.pt")(torch.ones(1, 64)).shape)
for step in range(first, first + 4):
    loss = model(torch.randn(32, 64)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state(), "step": step}
    torch.save(state, f"ckpt/step-{step}.pt")
    torch.save(state, "ckpt/latest.tmp")
    os.replace("ckpt/latest.tmp", "ckpt/latest.pt")
    print(step, f"{loss.item():.6f}")
torch.save([tensor.clone() for tensor in model.parameters()], "ckpt/plain.pt")
torch.save(torch.arange(100000.0), "ckpt/old.pt", _use_new_zipfile_serialization=False)
torch.jit.script(model).save("ckpt/script.pt")
for name in sorted(os.listdir("ckpt")):
    if name.endswith(".pt") and name != "old.pt":
        print(name, os.path.getsize(f"ckpt/{name}"))
if first:
    os.remove("ckpt/step-0.pt")
