"""Host time of a step of 1,024 answers on the CUDA backend, without a GPU: builds bench_host_step and runs it.

    host.py [--save]
"""
import json
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import SOURCE, save  # noqa: E402

GOAL_US = 250

if __name__ == "__main__":
    build = SOURCE / "build" / "release"
    subprocess.run(["cmake", "--build", build, "--target", "bench_host_step"], check=True, stdout=subprocess.DEVNULL)
    out = subprocess.run([build / "bin" / "bench_host_step", SOURCE / "csrc" / "embedded" / "tiny"], check=True, capture_output=True, text=True)
    results = json.loads(out.stdout)
    print(f"{results['sequences']} sequences, {results['steps']} steps, microseconds a step: median (95 of 100 below)")
    for part in ("engine", "begin", "wait", "total"):
        times = results[part + "_us"]
        print(f"  {part:<7} {times['median']:8.1f} ({times['p95']:.1f})")
    print(f"  goal    {GOAL_US:8.1f}")
    if "--save" in sys.argv:
        save("host_step", "./dev bench host --save", {**results, "goal_us": GOAL_US})
