#!/usr/bin/env python3
"""Everything that only a GPU can tell, in one bounded run (./dev gpu): build, tests, sanitizers, profiles, benchmarks.

    run.py [PIECE ...] [--limit SECONDS] [--out FOLDER] [--model 24b-a2b,8b-a1b,1.2b]

For a machine with one GPU, nvcc, CMake and Python, and no network. Pieces, in the order in which they run:

    build      nvcc and CMake, release, into build/gpu (libraries that are missing come from .gpu/root: ./dev gpu-pack makes it)
    test       kernel tests, goldens, invariance and faults on the device, the embedded model served over HTTP
    sanitize   compute-sanitizer memcheck, racecheck, synccheck on the kernel tests
    kernels    every kernel on the family's shapes (bench_kernels)
    steps      whole steps on dummy weights: decode at 1 to 1,024 streams, prefill, mixed (bench_step)
    rivals     cuBLASLt, cuDNN, torch, vLLM's Triton on the same shapes (rivals.py)
    profile    Nsight Compute on the main kernels

Each piece has a share of the time, none is started without time left, and none stops another. What was measured goes to
OUT/gpu.json (device, driver, clocks before and after, commit, every row) with one log a piece, and a short table is printed
last. `run.py report OUT/gpu.json` prints the table again.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

SOURCE = pathlib.Path(__file__).resolve().parents[2]
BUILD = SOURCE / "build" / "gpu"
ROOT = SOURCE / ".gpu" / "root"
SHARE = {"build": 150, "test": 90, "sanitize": 60, "kernels": 80, "steps": 110, "rivals": 70, "profile": 60}
NEEDED = ("jansson", "libpcre2-8", "libevent", "libevent_pthreads", "cmocka")


class Run:
    def __init__(self, limit, out, models):
        self.start, self.limit, self.out, self.models = time.monotonic(), limit, out, models
        self.record = {"pieces": {}, "kernels": [], "steps": [], "rivals": []}
        self.env = dict(os.environ, PATH=os.environ["PATH"] + os.pathsep + os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin")
        out.mkdir(parents=True, exist_ok=True)

    def left(self):
        return self.limit - (time.monotonic() - self.start)

    def call(self, name, command, seconds=None, env=None):
        """Runs a command with its output in OUT/NAME.txt; returns its exit status, 124 when it was stopped."""
        seconds = max(1, min(self.left(), seconds or self.left()))
        began = time.monotonic()
        with open(self.out / f"{name}.txt", "a") as log:
            log.write(f"$ {' '.join(map(str, command))}\n")
            log.flush()
            try:
                code = subprocess.run([str(c) for c in command], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=SOURCE,
                                      timeout=seconds, env=env or self.env).returncode
            except subprocess.TimeoutExpired:
                code = 124
            except OSError as e:
                log.write(f"{e}\n")
                code = 127
            log.write(f"exit {code} after {time.monotonic() - began:.1f} s\n")
        return code

    def text(self, command):
        try:
            return subprocess.run(command, capture_output=True, text=True, cwd=SOURCE, env=self.env, timeout=20).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return ""

    def device(self):
        fields = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu"
        line = self.text(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
        return dict(zip(fields.split(","), (v.strip() for v in line.split("\n")[0].split(",")))) if line else {}

    def rows(self, key, path):
        if path.is_file():
            for line in path.read_text().splitlines():
                if line.startswith("{"):
                    self.record[key].append(json.loads(line))


def library_environment(run):
    """Nothing when the system has the libraries; else what makes CMake and the programs find those of .gpu/root."""
    pkg_config = shutil.which("pkg-config") or shutil.which("pkgconf")
    if pkg_config and subprocess.run([pkg_config, "--exists", *NEEDED]).returncode == 0:
        return {}
    if not ROOT.is_dir():
        sys.exit(f"gpu: {', '.join(NEEDED)} are not installed and .gpu/root is not there: run ./dev gpu-pack on a machine with a network, "
                 "then bring .gpu along")
    lib = ROOT / "usr" / "lib" / "x86_64-linux-gnu"
    return {"PKG_CONFIG": str(ROOT / "usr/bin/pkgconf"), "PKG_CONFIG_SYSROOT_DIR": str(ROOT),
            "PKG_CONFIG_LIBDIR": f"{lib}/pkgconfig:{ROOT}/usr/share/pkgconfig", "CMAKE_PREFIX_PATH": str(ROOT / "usr"),
            "C_INCLUDE_PATH": str(ROOT / "usr/include"), "CPLUS_INCLUDE_PATH": str(ROOT / "usr/include"), "LIBRARY_PATH": str(lib),
            "LD_LIBRARY_PATH": f"{lib}:{os.environ.get('LD_LIBRARY_PATH', '')}"}


def build(run):
    jobs = str(os.cpu_count())
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    code = run.call("build", ["cmake", "-S", ".", "-B", BUILD, *generator, "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DHEADRACE_CUDA=ON",
                              "-DHEADRACE_GPU_TESTS=ON", "-DHEADRACE_TESTS=OFF"])
    targets = ["headrace", "gpu_tests", "bench_kernels", "bench_step"]
    return code or run.call("build", ["cmake", "--build", BUILD, "-j", jobs, "--target", *targets])


def test_programs():
    return sorted((BUILD / "bin").glob("gpu_test_*"))


def test(run):
    """Every test program by itself, so that one that dies takes no other along; then the served model."""
    results = {}
    for program in test_programs():
        if run.left() < 5:
            break
        results[program.name] = run.call("test", [program], 60)
    results["served"] = run.call("test", [sys.executable, SOURCE / "benchmarks/gpu/served.py", BUILD / "bin" / "headrace"], 60)
    run.record["tests"] = results
    failed = sorted(name for name, code in results.items() if code)
    print("\n".join(f"  FAILED {name} (exit {results[name]})" for name in failed))
    return 1 if failed or len(results) <= len(test_programs()) else 0


def sanitize(run):
    """memcheck on all; racecheck and synccheck too. The kernel tests' shapes are small."""
    results = {}
    for tool in ("memcheck", "racecheck", "synccheck"):
        for program in (p for p in test_programs() if p.name.startswith("gpu_test_kernel_")):
            if run.left() < 10:
                results[f"{tool} {program.name}"] = "no time left"
                continue
            results[f"{tool} {program.name}"] = run.call("sanitize", ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", program], 60)
    run.record["sanitizers"] = results
    return 1 if any(results.values()) else 0


def kernels(run):
    out = run.out / "kernels.jsonl"
    code = run.call("kernels", [BUILD / "bin/bench_kernels", "--budget", str(min(SHARE["kernels"], run.left() - 10)), "--out", out],
                    SHARE["kernels"] + 30)
    run.rows("kernels", out)
    return code


def config_folder(run, shape):
    code = run.call("steps", [sys.executable, SOURCE / "benchmarks/models/write_checkpoint.py", shape, "config", run.out])
    return run.out / "models" / f"{shape}-config" if code == 0 else None


def steps(run):
    worst = 0
    for shape in run.models:
        folder = config_folder(run, shape)
        rows = "3072" if shape == "24b-a2b" else "2048"
        for name, arguments in (("decode", ["--streams", "1,8,64,256,1024", "--mixed", "--rows", rows]),
                                ("prefill", ["--prefill", "2048,8192,32768", "--rows", "8192"])):
            out = run.out / f"steps_{shape}_{name}.jsonl"
            worst |= run.call("steps", [BUILD / "bin/bench_step", folder, *arguments, "--out", out], 90)
            run.rows("steps", out)
    return worst


def rivals(run):
    out = run.out / "rivals.jsonl"
    code = run.call("rivals", [sys.executable, SOURCE / "benchmarks/gpu/rivals.py", "--budget", str(min(SHARE["rivals"], run.left() - 8)),
                               "--out", out], SHARE["rivals"] + 30)
    run.rows("rivals", out)
    return code


def profile(run):
    """Full Nsight Compute sections of a few launches of each main kernel."""
    report = run.out / "profile"
    code = run.call("profile", ["ncu", "--clock-control", "none", "--set", "full", "--launch-skip", "4", "--launch-count", "12", "-f", "-o", report,
                                BUILD / "bin/bench_kernels", "--only", "gate_up,down,conv_in,attention_decode", "--budget", "20"],
                    SHARE["profile"])
    run.call("profile", ["ncu", "--import", f"{report}.ncu-rep", "--page", "details", "--csv"], 30)
    return code


PIECES = {"build": build, "test": test, "sanitize": sanitize, "kernels": kernels, "steps": steps, "rivals": rivals, "profile": profile}


# ---------------------------------------------------------------- the table

def report(record):
    """The rows side by side: ours, the best rival, the share of what the card can do at most."""
    copy = [r["gb_s"] for r in record["kernels"] if r["kernel"] == "device_copy"]
    ceiling = max(copy, default=0)
    best = {}
    for r in record["rivals"]:
        key = (r["kernel"], r["model"], r["rows"], r["context"])
        if "us" in r and r["us"] < best.get(key, {"us": 1e30})["us"]:
            best[key] = r
    print(f"{record.get('device', {}).get('name', '?')}, commit {record.get('commit')}, device copy {ceiling:.0f} GB/s")
    print(f"{'kernel':24}{'model':10}{'rows':>6}{'context':>8}{'us':>10}{'GB/s':>8}{'of copy':>8}{'TFLOP/s':>9}  best rival")
    for r in record["kernels"]:
        rival = best.get((r["kernel"], r["model"], r["rows"], r["context"]))
        side = f"{rival['rival']} {rival['us']:.1f} us: {rival['us'] / r['us']:.2f}x" if rival else ""
        share = f"{r['gb_s'] / ceiling:7.0%} " if ceiling else "        "
        print(f"{r['kernel']:24}{r['model']:10}{r['rows']:6}{r['context']:8}{r['us']:10.1f}{r['gb_s']:8.0f}{share}{r['tflop_s']:9.1f}  {side}")
    for r in record["steps"]:
        share = f"{r['gb_s'] / ceiling:7.0%}" if ceiling else ""
        print(f"step {r['step']:14} {r['model']:16} streams {r['streams']:5} context {r['context']:6} {r['us']:10.0f} us {r['tokens_s']:9.0f} tok/s "
              f"{r['gb_s']:6.0f} GB/s {share} {r['tflop_s']:6.0f} TFLOP/s")
    for name, piece in record["pieces"].items():
        print(f"{name:10} {piece['status']:>8} {piece['seconds']:7.1f} s")


def main():
    if sys.argv[1:2] == ["report"]:
        return report(json.loads(pathlib.Path(sys.argv[2]).read_text()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=" ".join(PIECES))
    parser.add_argument("--limit", type=float, default=470, help="seconds for the whole run")
    parser.add_argument("--out", type=pathlib.Path, default=SOURCE / "build" / "gpu-results")
    parser.add_argument("--model", default="24b-a2b,8b-a1b,1.2b")
    args = parser.parse_args()
    unknown = [p for p in args.pieces if p not in PIECES]
    if unknown:
        parser.error(f"no piece {unknown[0]!r}; there are: {' '.join(PIECES)}")
    run = Run(args.limit, args.out.resolve(), args.model.split(","))
    run.env.update(library_environment(run))
    run.record |= {"commit": run.text(["git", "rev-parse", "--short=12", "HEAD"]), "command": " ".join(sys.argv), "device": run.device(),
                   "nvcc": run.text(["nvcc", "--version"]).splitlines()[-1:]}
    if not run.record["device"]:
        print("gpu: nvidia-smi shows no device: only the pieces that need none can pass")
    failed = 0
    for name, piece in PIECES.items():
        if args.pieces and name not in args.pieces:
            continue
        began = time.monotonic()
        if run.left() < 8:
            status = "no time left"
        else:
            code = piece(run)
            status = "ok" if code == 0 else f"exit {code}"
        failed += status != "ok"
        run.record["pieces"][name] = {"status": status, "seconds": round(time.monotonic() - began, 1)}
        print(f"== {name}: {status} after {run.record['pieces'][name]['seconds']} s", flush=True)
        if status != "ok":
            log = run.out / f"{name}.txt"
            print("\n".join(line for line in (log.read_text().splitlines() if log.is_file() else []) if re.search(r"error|FAIL|rror:", line))[:2000])
        (run.out / "gpu.json").write_text(json.dumps(run.record, indent=1) + "\n")
        if name == "build" and status != "ok":
            break
    run.record["device_after"] = run.device()
    (run.out / "gpu.json").write_text(json.dumps(run.record, indent=1) + "\n")
    report(run.record)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
