"""What the benchmarks share: where things lie, what machine this is, running a program beside another."""
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

SOURCE = pathlib.Path(__file__).resolve().parents[1]
HEADRACE = SOURCE / "build" / "release" / "bin" / "headrace"
# Checkpoints and peers are large: they are kept outside the checkout.
CACHE = pathlib.Path(os.environ.get("HEADRACE_BENCH_CACHE", pathlib.Path.home() / ".cache" / "headrace"))


def median(values):
    ordered = sorted(values)
    n = len(ordered)
    return (ordered[n // 2] + ordered[(n - 1) // 2]) / 2


def machine():
    """The processor by its own name, its vector extensions, cores, memory."""
    cpu, flags = "unknown", set()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            cpu = value.strip()
        if key.strip() == "flags":
            flags = set(value.split())
    known = ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8"]
    memory = next(int(l.split()[1]) // 1024 for l in open("/proc/meminfo") if l.startswith("MemTotal"))
    return {"cpu": cpu, "extensions": [f for f in known if f in flags], "cores": os.cpu_count(), "memory_mib": memory, "kernel": platform.release().partition("-")[0]}


def commit():
    """The commit measured, with "-dirty" when the tree differs from it in more than results."""
    run = lambda *a: subprocess.run(["git", *a], cwd=SOURCE, capture_output=True, text=True).stdout.strip()
    return run("rev-parse", "--short=12", "HEAD") + ("-dirty" if run("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results") else "")


def save(name, command, results):
    """Writes benchmarks/results/NAME.json."""
    path = SOURCE / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    record = {"benchmark": name, "command": command, "date": datetime.date.today().isoformat(), "commit": commit(), "machine": machine(),
              "results": results}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"saved {path.relative_to(SOURCE)}", file=sys.stderr)


def run_watching(command, env=None):
    """Runs a program and returns (stdout, peak anonymous RSS in bytes, peak RSS in bytes): its memory beyond file mappings is what it
    added to them."""
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    anonymous = total = 0
    while process.poll() is None:
        try:
            for line in open(f"/proc/{process.pid}/status"):
                if line.startswith("RssAnon"):
                    anonymous = max(anonymous, int(line.split()[1]) * 1024)
                if line.startswith("VmHWM"):
                    total = max(total, int(line.split()[1]) * 1024)
        except (FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.05)
    out, err = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{err[-2000:]}")
    return out, anonymous, total
