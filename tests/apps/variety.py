"""Files of every kind, each written once under its final name, so that any tar reader shows the same as the program saw."""
import os

HERE = "ckpt"


def put(name, content):
    with open(os.fsencode(HERE) + b"/" + name, "wb") as file:
        file.write(content)


os.makedirs(f"{HERE}/sub/deep/er")
for size in (0, 1, 511, 512, 513, 4095, 4096, 4097, 32767, 32768, 32769, 1 << 20, (5 << 20) + 17):
    put(b"size-%d" % size, bytes((index * 7 + size) % 251 for index in range(256)) * (size // 256) + b"x" * (size % 256))
put(b"sub/" + b"long-" * 24, b"a component of more than 100 bytes\n")
put(b"sub/deep/er/" + "\u00e9tat \u2713 \U0001f33e".encode(), b"beyond ASCII\n")
put(b"sub/ blanks and\ttab", b"blanks\n")
with open(f"{HERE}/holes", "wb") as file:
    file.write(b"start")
    file.seek(8 << 20)
    file.write(b"end")
os.symlink("sub/deep", f"{HERE}/link")
os.symlink("nowhere", f"{HERE}/dangling")
for number in range(300):
    put(b"sub/small-%03d" % number, b"%d\n" % number * number)
os.mkdir(f"{HERE}/bare")
