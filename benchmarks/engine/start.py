"""Start to first token: from starting the program until the first byte of the answer, on the embedded model.

    start.py [--rounds 11] [--save]
"""
import argparse
import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import HEADRACE, median, save  # noqa: E402


def once():
    begin = time.perf_counter()
    process = subprocess.Popen([HEADRACE, "run", "tiny", "Who are you?", "--temperature", "0", "--quiet"], stdout=subprocess.PIPE)
    os.read(process.stdout.fileno(), 1)
    first = time.perf_counter() - begin
    process.communicate()
    return first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    once()
    seconds = [once() for _ in range(arguments.rounds)]
    print(f"start to first token: {median(seconds) * 1000:.0f} ms ({min(seconds) * 1000:.0f} to {max(seconds) * 1000:.0f})")
    if arguments.save:
        save("start", "./dev bench start " + " ".join(sys.argv[1:]), {"seconds": seconds, "median_seconds": median(seconds)})


if __name__ == "__main__":
    main()
