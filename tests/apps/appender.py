"""Numbered files, each written once. Arguments: COUNT, seconds of computation between two files"""
import sys
import time

for number in range(int(sys.argv[1])):
    with open(f"ckpt/part-{number:05d}", "wb") as file:
        file.write(bytes((number * 11 + index) % 256 for index in range(256)) * (8 << number % 7))
    time.sleep(float(sys.argv[2]))
