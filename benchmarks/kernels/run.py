"""CPU kernels beside the machine's measured roofs: builds bench_cpu_kernels and runs it.

    run.py [--save] [ARGUMENT...]      arguments go to the program (see --help)
"""
import json
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import SOURCE, save  # noqa: E402

if __name__ == "__main__":
    wants_save = "--save" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--save"]
    subprocess.run(["cmake", "--build", SOURCE / "build" / "release", "--target", "bench_cpu_kernels"], check=True, stdout=subprocess.DEVNULL)
    program = SOURCE / "build" / "release" / "bin" / "bench_cpu_kernels"
    if wants_save:
        out = subprocess.run([program, "--json", *arguments], check=True, capture_output=True, text=True).stdout
        print(out)
        save("cpu_kernels", "./dev bench kernels " + " ".join(sys.argv[1:]), json.loads(out))
    else:
        subprocess.run([program, *arguments], check=True)
