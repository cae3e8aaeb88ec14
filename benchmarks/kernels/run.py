"""CPU kernels beside the machine's measured roofs: builds bench_cpu_kernels (or bench_cpu_attention) and runs it.

    run.py [--save] [ARGUMENT...]      arguments go to the program (see --help)
    run.py attention [ARGUMENT...]
"""
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import SOURCE, save  # noqa: E402

if __name__ == "__main__":
    wants_save = "--save" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--save"]
    name = "bench_cpu_kernels"
    if arguments[:1] == ["attention"]:
        name, arguments = "bench_cpu_attention", arguments[1:]
        if wants_save:
            sys.exit("--save: attention has no results file")
    subprocess.run(["cmake", "--build", SOURCE / "build" / "release", "--target", name], check=True, stdout=subprocess.DEVNULL)
    program = SOURCE / "build" / "release" / "bin" / name
    if wants_save:
        with tempfile.NamedTemporaryFile("r", suffix=".json") as out:
            subprocess.run([program, *arguments, "--json", out.name], check=True)
            save("cpu_kernels", "./dev bench kernels " + " ".join(sys.argv[1:]), json.load(out))
    else:
        subprocess.run([program, *arguments], check=True)
