"""Writes some checkpoints, keeps one of them open, says so, and waits to be killed."""
import os
import signal

for number in range(30):
    with open(f"ckpt/part.{number}", "wb") as file:
        file.write(bytes([number]) * (number * 1000))
    os.rename(f"ckpt/part.{number}", f"ckpt/closed.{number}")
kept = os.open("ckpt/open", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
os.write(kept, b"never closed\n" * 9999)
with open("said", "w") as file:
    file.write("ready")
signal.pause()
