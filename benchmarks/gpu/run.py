#!/usr/bin/env python3
"""Everything that only a GPU can tell, in one bounded run (./dev gpu): build, tests, sanitizers, profiles, benchmarks.

    run.py [PIECE ...] [--limit SECONDS] [--out FOLDER] [--build FOLDER] [--model 24b-a2b,8b-a1b,1.2b] [--save]

For a machine with one GPU, nvcc, CMake and Python, and no network. Pieces, in the order in which they run:

    build      nvcc and CMake, release, into build/gpu (libraries that are missing come from .gpu/root: ./dev gpu-pack makes it)
    test       kernel tests, goldens, invariance and steps on the device, the embedded model served over HTTP
    sanitize   compute-sanitizer memcheck, racecheck, synccheck on the kernel tests
    kernels    every kernel on the family's shapes (bench_kernels)
    steps      whole steps on dummy weights: decode at 1 to 1,024 streams, prefill, mixed (bench_step)
    rivals     cuBLASLt, cuDNN, torch, vLLM's Triton on the same shapes (rivals.py)
    profile    Nsight Compute on the main kernels

Each piece has its share of the time that is left, none is started without time left, and none stops another (but nothing runs
after a build that failed). What was measured goes to OUT/gpu.json (device, driver, clocks before and after, commit, every row) with one
log a piece, and a short table is printed last. --save copies it to benchmarks/results/gpu_DEVICE.json, the file to commit.
`run.py report OUT/gpu.json` prints the table again. Exit 1 when a piece failed, is incomplete or had no time.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

SOURCE = pathlib.Path(__file__).resolve().parents[2]
RESULTS = SOURCE / "benchmarks" / "results"
ROOT = SOURCE / ".gpu" / "root"
SHARE = {"build": 150, "test": 90, "sanitize": 60, "kernels": 80, "steps": 110, "rivals": 70, "profile": 60}  # of what is left, in proportion
OK, FAILED, INCOMPLETE, MISSING = "ok", "failed", "incomplete", "not installed"
NEEDED = ("jansson", "libpcre2-8", "libevent", "libevent_pthreads", "cmocka")


class Run:
    def __init__(self, limit, out, models, build_folder):
        self.start, self.limit, self.out, self.models, self.build = time.monotonic(), limit, out, models, build_folder
        self.piece_end = self.start + limit
        self.record = {"pieces": {}, "kernels": [], "steps": [], "rivals": []}
        cuda = pathlib.Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
        self.env = dict(os.environ, PATH=os.pathsep.join([os.environ["PATH"], f"{cuda}/bin", f"{cuda}/compute-sanitizer"]))
        out.mkdir(parents=True, exist_ok=True)

    def left(self):
        return self.limit - (time.monotonic() - self.start)

    def begin_piece(self, name, later):
        """The piece may use its share of what is left for it and the pieces after it; a build that is cut short is worth nothing."""
        share = 1 if name == "build" else SHARE[name] / (SHARE[name] + sum(SHARE[p] for p in later))
        self.piece_end = time.monotonic() + share * max(0, self.left())
        (self.out / f"{name}.txt").unlink(missing_ok=True)

    def piece_left(self):
        return min(self.left(), self.piece_end - time.monotonic())

    def call(self, name, command, seconds=None):
        """Runs a command with its output in OUT/NAME.txt; returns its exit status, 124 when it was stopped (with all that it started)."""
        seconds = max(1, min(self.piece_left(), seconds or self.limit))
        began = time.monotonic()
        with open(self.out / f"{name}.txt", "a") as log:
            log.write(f"$ {' '.join(map(str, command))}\n")
            log.flush()
            try:
                process = subprocess.Popen([str(c) for c in command], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                           cwd=SOURCE, env=self.env, start_new_session=True)
                try:
                    code = process.wait(seconds)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    code = 124
            except OSError as e:
                log.write(f"error: {e}\n")
                code = 127
            log.write(f"exit {code} after {time.monotonic() - began:.1f} s\n")
        return code

    def has(self, program):
        return shutil.which(program, path=self.env["PATH"]) is not None

    def text(self, command):
        try:
            return subprocess.run(command, capture_output=True, text=True, cwd=SOURCE, env=self.env, timeout=20).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return ""

    def device(self):
        fields = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu"
        line = self.text(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
        values = [v.strip() for v in line.split("\n")[0].split(",")]
        return dict(zip(fields.split(","), values)) if len(values) == len(fields.split(",")) else {}

    def rows(self, key, path):
        """Adds a program's lines to the record; one that was cut off in the middle is left out."""
        for line in path.read_text().splitlines() if path.is_file() else []:
            try:
                self.record[key].append(json.loads(line))
            except json.JSONDecodeError:
                continue


def system_has_libraries():
    pkg_config = shutil.which("pkg-config") or shutil.which("pkgconf")
    has_parser = any(pathlib.Path(p, "http_parser.h").is_file() for p in ("/usr/include", "/usr/local/include"))
    return bool(pkg_config) and has_parser and subprocess.run([pkg_config, "--exists", *NEEDED]).returncode == 0


def library_environment(root):
    """Nothing when the system has the libraries; else what makes CMake and the programs find those of .gpu/root."""
    if system_has_libraries():
        return {}
    if not root.is_dir():
        sys.exit(f"gpu: {', '.join(NEEDED)} or http_parser.h are not installed and {root} is not there: run ./dev gpu-pack on a machine "
                 "with a network, then bring .gpu along")
    lib = root / "usr" / "lib" / "x86_64-linux-gnu"
    libraries = os.pathsep.join(filter(None, [str(lib), os.environ.get("LD_LIBRARY_PATH")]))
    return {"PKG_CONFIG": str(root / "usr/bin/pkgconf"), "PKG_CONFIG_SYSROOT_DIR": str(root),
            "PKG_CONFIG_LIBDIR": f"{lib}/pkgconfig:{root}/usr/share/pkgconfig", "CMAKE_PREFIX_PATH": str(root / "usr"),
            "CMAKE_LIBRARY_PATH": str(lib), "CMAKE_INCLUDE_PATH": str(root / "usr/include"), "C_INCLUDE_PATH": str(root / "usr/include"),
            "CPLUS_INCLUDE_PATH": str(root / "usr/include"), "LIBRARY_PATH": str(lib), "LD_LIBRARY_PATH": libraries}


def build(run):
    generator = ["-G", "Ninja"] if run.has("ninja") and not (run.build / "CMakeCache.txt").is_file() else []
    code = run.call("build", ["cmake", "-S", ".", "-B", run.build, *generator, "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DHEADRACE_CUDA=ON",
                              "-DHEADRACE_GPU_TESTS=ON", "-DHEADRACE_TESTS=OFF"])
    targets = ["headrace", "gpu_tests", "bench_kernels", "bench_step"]
    code = code or run.call("build", ["cmake", "--build", run.build, "-j", str(os.cpu_count()), "--target", *targets])
    return FAILED if code else OK


def test_programs(run, prefix="gpu_test_"):
    return sorted((run.build / "bin").glob(f"{prefix}*"))


def run_each(run, name, key, commands, seconds, spare):
    """Each command by itself, so that one that dies takes no other along. Says by name what failed and what had no time."""
    results = {}
    for label, command in commands.items():
        results[label] = run.call(name, command, seconds) if run.piece_left() >= spare else "no time left"
    run.record[key] = results
    for label, code in results.items():
        if code:
            print(f"  {label}: {code if isinstance(code, str) else f'FAILED, exit {code}'}")
    if any(code and not isinstance(code, str) for code in results.values()) or len(results) < 2:
        return FAILED
    return INCOMPLETE if any(results.values()) else OK


def test(run):
    commands = {p.name: [p] for p in test_programs(run)}
    goldens = run.build / "bin" / "gpu_test_cuda_goldens"  # alone it chooses the portable kernels
    if goldens.is_file():
        commands[f"{goldens.name} fused"] = [goldens, "fused"]
    commands["served"] = [sys.executable, SOURCE / "benchmarks/gpu/served.py", run.build / "bin" / "headrace"]
    return run_each(run, "test", "tests", commands, 60, 5)


def sanitize(run):
    """memcheck on all kernel tests, then racecheck, then synccheck: exit 9 is a finding, anything else the program's own."""
    if not run.has("compute-sanitizer"):
        return MISSING
    commands = {f"{tool} {p.name}": ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", p]
                for tool in ("memcheck", "racecheck", "synccheck") for p in test_programs(run, "gpu_test_kernel_")}
    return run_each(run, "sanitize", "sanitizers", commands, 60, 8)


def kernels(run):
    out = run.out / "kernels.jsonl"
    out.unlink(missing_ok=True)
    code = run.call("kernels", [run.build / "bin/bench_kernels", "--budget", str(max(5, int(run.piece_left() - 15))), "--out", out])
    run.rows("kernels", out)
    return FAILED if code else OK


def steps(run):
    commands, outs = {}, []
    for shape in run.models:
        if run.call("steps", [sys.executable, SOURCE / "benchmarks/models/write_checkpoint.py", shape, "config", run.out]):
            return FAILED
        folder, rows = run.out / "models" / f"{shape}-config", "3072" if shape == "24b-a2b" else "2048"
        for name, arguments in (("decode", ["--streams", "1,8,64,256,1024", "--mixed", "--rows", rows]),
                                ("prefill", ["--prefill", "2048,8192,32768", "--rows", "8192"])):
            outs.append(run.out / f"steps_{shape}_{name}.jsonl")
            outs[-1].unlink(missing_ok=True)
            commands[f"{shape} {name}"] = [run.build / "bin/bench_step", folder, *arguments, "--out", outs[-1]]
    status = run_each(run, "steps", "step_runs", commands, 90, 10)
    for out in outs:
        run.rows("steps", out)
    return status


def rivals(run):
    out = run.out / "rivals.jsonl"
    out.unlink(missing_ok=True)
    code = run.call("rivals", [sys.executable, SOURCE / "benchmarks/gpu/rivals.py", "--budget", str(max(5, int(run.piece_left() - 15))), "--out", out])
    run.rows("rivals", out)
    return MISSING if code == 3 else FAILED if code else OK


# What decides: how near memory and tensor cores are to their limits, what warps wait for, how many there are.
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis", "WarpStateStats", "SchedulerStats", "Occupancy", "LaunchStats")
PROFILED = {"gate_up": ("256", "gate_up"), "down": ("256", "linear_kernel"), "conv_in": ("256", "conv_in"), "qkv": ("256", "qkv"),
            "attention_decode": ("256", "decode"), "attention_prefill": ("2048", "prefill"), "sampler": ("256", "sampler"),
            "route": ("256", "route")}  # rows, and what the kernel's name contains


def profile(run):
    """Nsight Compute on two launches of each main kernel at a busy step's rows; its tables are in profile.txt, its files beside it."""
    if not run.has("ncu"):
        return MISSING
    sections = [a for s in SECTIONS for a in ("--section", s)]
    commands = {name: ["ncu", "--clock-control", "none", *sections, "--kernel-name", f"regex:{kernel}", "--launch-skip", "1",
                       "--launch-count", "2", "--print-details", "all", "-f", "-o", run.out / f"profile_{name}",
                       run.build / "bin/bench_kernels", "--only", name, "--rows", rows]
                for name, (rows, kernel) in PROFILED.items()}
    status = run_each(run, "profile", "profiles", commands, 40, 5)
    for name in PROFILED:
        report_file = run.out / f"profile_{name}.ncu-rep"
        if report_file.is_file():
            run.call("profile", ["ncu", "--import", report_file, "--page", "details"], 20)
    return status


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
    share = lambda r: f"{r['gb_s'] / ceiling:8.0%}" if ceiling else " " * 8
    print(f"{record.get('device', {}).get('name', 'no device')}, commit {record.get('commit')}, device copy {ceiling:.0f} GB/s")
    if record["kernels"]:
        print(f"{'kernel':24}{'model':10}{'rows':>6}{'context':>8}{'us':>10}{'GB/s':>8}{'of copy':>8}{'TFLOP/s':>9}  best rival")
    for r in record["kernels"]:
        rival = best.get((r["kernel"], r["model"], r["rows"], r["context"]))
        side = f"{rival['rival']} {rival['us']:.1f} us: {rival['us'] / r['us']:.2f}x" if rival else ""
        print(f"{r['kernel']:24}{r['model']:10}{r['rows']:6}{r['context']:8}{r['us']:10.1f}{r['gb_s']:8.0f}{share(r)}{r['tflop_s']:9.1f}  {side}")
    for r in record["steps"]:
        if r["step"] == "routing":
            print(f"routing {r['model']:16} streams {r['streams']:5}: {r['distinct_experts']:.1f} of {r['experts']} experts a layer, at least "
                  f"{r['least_distinct']}; even routing: {r['even_routing']:.1f}")
            continue
        bad = f"  {r['bad_logits']} BAD LOGITS" if r["bad_logits"] else ""
        print(f"step {r['step']:14} {r['model']:16} streams {r['streams']:5} context {r['context']:6} {r['us']:10.0f} us {r['tokens_s']:9.0f} tok/s "
              f"{r['gb_s']:6.0f} GB/s {share(r)} {r['tflop_s']:6.0f} TFLOP/s{bad}")
    for r in record["rivals"]:
        if "failed" in r:
            print(f"rival {r['rival']} {r['kernel']} {r['model']} rows {r['rows']}: {r['failed']}")
    for name, piece in record["pieces"].items():
        print(f"{name:10} {piece['status']:>14} {piece['seconds']:7.1f} s")


def run_pieces(run, names):
    """Runs them in order; returns how many did not end well."""
    bad = 0
    for i, name in enumerate(names):
        began = time.monotonic()
        run.begin_piece(name, names[i + 1:])
        status = PIECES[name](run) if run.left() >= 8 else "no time left"
        bad += status != OK
        run.record["pieces"][name] = {"status": status, "seconds": round(time.monotonic() - began, 1)}
        print(f"== {name}: {status} after {run.record['pieces'][name]['seconds']} s", flush=True)
        if status == FAILED:
            log = run.out / f"{name}.txt"
            lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
            telling = list(dict.fromkeys(line for line in lines if re.search(r"error|FAIL|Error|ERROR", line))) or lines[-4:]
            print("\n".join(telling)[:2000])
        write_record(run)
        if name == "build" and status != OK:
            break
    return bad


def write_record(run):
    (run.out / "gpu.json").write_text(json.dumps(run.record, indent=1) + "\n")


def result_file(record):
    name = re.sub(r"[^a-z0-9]+", "_", record["device"]["name"].lower().removeprefix("nvidia ")).strip("_")
    return RESULTS / f"gpu_{name}.json"


def main(arguments):
    if arguments[:1] == ["report"]:
        report(json.loads(pathlib.Path(arguments[1]).read_text()))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=" ".join(PIECES))
    parser.add_argument("--limit", type=float, default=470, help="seconds for the whole run")
    parser.add_argument("--out", type=pathlib.Path, default=SOURCE / "build" / "gpu-results")
    parser.add_argument("--build", type=pathlib.Path, default=SOURCE / "build" / "gpu")
    parser.add_argument("--model", default="24b-a2b,8b-a1b,1.2b")
    parser.add_argument("--save", action="store_true", help="copy the record to benchmarks/results/gpu_DEVICE.json")
    args = parser.parse_args(arguments)
    unknown = [p for p in args.pieces if p not in PIECES]
    if unknown:
        parser.error(f"no piece {unknown[0]!r}; there are: {' '.join(PIECES)}")
    run = Run(args.limit, args.out.resolve(), args.model.split(","), args.build.resolve())
    run.env.update(library_environment(ROOT))
    run.record |= {"commit": run.text(["git", "rev-parse", "--short=12", "HEAD"]), "command": " ".join(["run.py", *arguments]),
                   "device": run.device(), "nvcc": run.text(["nvcc", "--version"]).splitlines()[-1:]}
    if not run.record["device"]:
        print("gpu: nvidia-smi shows no device: only the pieces that need none can pass")
    bad = run_pieces(run, [name for name in PIECES if not args.pieces or name in args.pieces])
    run.record["device_after"] = run.device()
    write_record(run)
    report(run.record)
    print(f"written: {run.out / 'gpu.json'}")
    if not run.record["device"]:
        print("nothing to commit: no device was measured")
    elif args.save:
        shutil.copyfile(run.out / "gpu.json", result_file(run.record))
        print(f"to commit: {result_file(run.record)}")
    else:
        print(f"with --save it is copied to {result_file(run.record)}, the file to commit")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
