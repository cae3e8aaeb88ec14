#!/usr/bin/env python3
"""Holds every kernel to a committed budget of what nvcc made of it, on a machine without a GPU.

    kernel_budget.py check  [--jobs N]     compile, compare with kernels/budget.json, say what differs; exit 1 if anything does
    kernel_budget.py update [--jobs N]     compile and write what was found (never what must hold: see RULES)

A kernel's line says: registers a thread (as compiled with setmaxnreg off, since ptxas otherwise prints the cap), bytes of
spills and stack (always 0), static and dynamic shared memory, threads a block, blocks a multiprocessor that follow from these, and
the size of its code. What instructions it must and must not contain is a property of its kind, and stands in RULES below.
Registers may shrink freely; growing, or losing a block a multiprocessor, has to be a decision that shows in a diff.

Threads and dynamic shared memory are what the host code asks for: they come from the launches that the kernel tests record
(kernels/launches.json, written by `kernel_budget.py launches TRACE...` from what the kernel tests append to SIMT_TRACE).
"""
import argparse
import concurrent.futures
import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
BUDGET = KERNELS / "budget.json"
LAUNCHES = KERNELS / "launches.json"
BUILD = ROOT / "build" / "budget"
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-gencode", "arch=compute_90a,code=sm_90a", f"-I{KERNELS}", "-Xptxas", "-v"]

# What the instructions of a file's kernels must and must not be. Patterns are searched at the start of a SASS mnemonic.
NO_LOCAL = ["LDL", "STL"]
RULES = {
    "default": {"require": [], "forbid": NO_LOCAL},
    "linear/wgmma_linear.cu": {"require": ["HGMMA", "UBLKCP", "LDGSTS", "SYNCS", "ACQBULK"], "forbid": NO_LOCAL + ["HMMA"]},
    "linear/wgmma_gate_up.cu": {"require": ["HGMMA", "UBLKCP", "LDGSTS", "SYNCS", "ACQBULK"], "forbid": NO_LOCAL + ["HMMA"]},
    "linear/wgmma_down.cu": {"require": ["HGMMA", "UBLKCP", "LDGSTS", "SYNCS", "ACQBULK"], "forbid": NO_LOCAL + ["HMMA"]},
    "conv/conv_in.cu": {"require": ["HGMMA", "UBLKCP", "LDGSTS", "SYNCS", "ACQBULK"], "forbid": NO_LOCAL + ["HMMA"]},
    "attention/qkv.cu": {"require": ["HGMMA", "UBLKCP", "LDGSTS", "SYNCS", "ACQBULK"], "forbid": NO_LOCAL + ["HMMA"]},
    "attention/decode.cu": {"require": ["HMMA.16816", "LDSM", "UBLKCP", "SYNCS", "ACQBULK"], "forbid": NO_LOCAL},
    "attention/prefill.cu": {"require": ["HGMMA", "UBLKCP", "SYNCS", "ACQBULK"], "forbid": NO_LOCAL + ["HMMA"]},
    "linear/mma.cu": {"require": ["HMMA.16816", "LDSM", "LDGSTS"], "forbid": NO_LOCAL},
}
# An sm_90a multiprocessor.
REGISTERS, SHARED, RESERVED_SHARED, THREADS, BLOCKS = 65536, 233472, 1024, 2048, 32


@functools.lru_cache
def tool(name):
    """nvcc or nvdisasm."""
    path = subprocess.run(["sh", str(ROOT / "tests/tools/cuda_path.sh"), name], text=True, capture_output=True).stdout.strip()
    if not path:
        sys.exit(f"kernel_budget: {name} not found; ./dev cuda-toolkit installs it")
    return path


def sources():
    return sorted(p.relative_to(KERNELS).as_posix() for p in KERNELS.rglob("*.cu"))


def digest(file):
    """Of a source and everything it can include: headers are few, so all of them."""
    h = hashlib.sha256(" ".join(NVCC_FLAGS).encode())
    for path in [KERNELS / file] + sorted(p for p in KERNELS.rglob("*") if p.suffix in (".h", ".inc")):
        h.update(path.name.encode() + path.read_bytes())
    return h.hexdigest()


def demangle(names):
    out = subprocess.run(["c++filt"], input="\n".join(names), text=True, capture_output=True, check=True).stdout
    return dict(zip(names, map(tidy, out.splitlines())))


def tidy(name):
    """A name that does not depend on compilers or hashes: `decode_kernel<4>`."""
    name = re.sub(r"\(anonymous namespace\)::|hrk::|void ", "", name)
    depth = 0
    for i, c in enumerate(name):  # cut the parameter list
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            name = name[:i]
            break
    return re.sub(r"\s+", "", name).replace("false", "0").replace("true", "1")


def compile_one(file):
    """What ptxas says and what nvdisasm shows of every kernel of a file: {name: facts}, and warnings."""
    key = digest(file)
    stem = BUILD / (file.replace("/", "_"))
    cache = stem.with_suffix(".json")
    if cache.is_file():
        stored = json.loads(cache.read_text())
        if stored["key"] == key:
            return stored["kernels"], stored["warnings"]
    text = (KERNELS / file).read_text()
    runs = [("", [])]
    if "reg_inc" in text or "reg_dec" in text or "_pipeline.h" in text:
        runs.append(("-free", ["-DHRK_NO_SETMAXNREG"]))
    kernels, warnings = {}, []
    for suffix, extra in runs:
        cubin = str(stem) + suffix + ".cubin"
        p = subprocess.run([tool("nvcc"), *NVCC_FLAGS, *extra, "-cubin", "-o", cubin, str(KERNELS / file)], text=True,
                           capture_output=True)
        if p.returncode != 0:
            return {}, [f"{file}: nvcc failed:\n{p.stdout}{p.stderr}"]
        name = None
        for line in (p.stdout + p.stderr).splitlines():
            if m := re.search(r"Compiling entry function '([^']+)'", line):
                name = m[1]
                kernels.setdefault(name, {"file": file})
            elif m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
                if name and not suffix:
                    kernels[name].update(stack=int(m[1]), spill=int(m[2]) + int(m[3]))
            elif m := re.search(r"Used (\d+) registers", line):
                if name:
                    kernels[name]["registers"] = int(m[1])  # the run without setmaxnreg comes last
                    smem = re.search(r"(\d+) bytes smem", line)
                    kernels[name]["static_shared"] = int(smem[1]) if smem else 0
            elif not suffix and re.search(r"C75\d\d|wgmma.*serializ|setmaxnreg.*ignored|[Ww]arning", line):
                warnings.append(f"{file}: {line.strip()}")
        if not suffix:
            sass = subprocess.run([tool("nvdisasm"), "-c", cubin], text=True, capture_output=True, check=True).stdout
            for part in re.split(r"\n//-+ ", sass):
                m = re.match(r"\.text\.(\S+)", part)
                if m and m[1] in kernels:
                    ops = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)", part)
                    kernels[m[1]]["instructions"] = len(ops)
                    kernels[m[1]]["ops"] = sorted(set(ops))
    names = demangle(list(kernels))
    kernels = {names[k]: v for k, v in kernels.items()}
    cache.write_text(json.dumps({"key": key, "kernels": kernels, "warnings": warnings}))
    return kernels, warnings


def blocks_per_sm(registers, threads, shared):
    warps = (threads + 31) // 32
    per_warp = -(-registers * 32 // 256) * 256
    return min(BLOCKS, THREADS // (warps * 32), REGISTERS // (per_warp * warps), SHARED // (shared + RESERVED_SHARED))


def measure(jobs):
    BUILD.mkdir(parents=True, exist_ok=True)
    launches = json.loads(LAUNCHES.read_text()) if LAUNCHES.is_file() else {}
    found, warnings = {}, []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for kernels, warned in pool.map(compile_one, sources()):
            warnings += warned
            for name, k in kernels.items():
                launch = launches.get(name)
                if launch:
                    k["threads"], k["dynamic_shared"] = launch["threads"], launch["dynamic_shared"]
                    k["blocks_per_sm"] = blocks_per_sm(k["registers"], k["threads"], k["static_shared"] + k["dynamic_shared"])
                found[name] = k
    return found, warnings


def rule_of(file):
    return RULES.get(file, RULES["default"])


def faults_of(name, k, budget):
    """What is wrong with one kernel, as sentences."""
    out = []
    where = f"{k['file']}: {name}"
    if k.get("spill") or k.get("stack"):
        out.append(f"{where}: {k.get('spill')} bytes of spills and {k.get('stack')} bytes of stack; both must be 0")
    rule = rule_of(k["file"])
    for want in rule["require"]:
        if not any(op.startswith(want) for op in k.get("ops", [])):
            out.append(f"{where}: no {want} instruction, which its kind must have")
    for bad in rule["forbid"]:
        if any(op.startswith(bad) for op in k.get("ops", [])):
            out.append(f"{where}: has {bad} instructions, which its kind must not have")
    line = budget.get(name)
    if not line:
        return out + [f"{where}: has no line in kernels/budget.json; kernel_budget.py update writes it"]
    if "threads" not in k:
        out.append(f"{where}: no test launches it (kernels/launches.json)")
    for key in ("registers", "static_shared", "dynamic_shared", "threads"):
        if k.get(key, 0) > line.get(key, 0):
            out.append(f"{where}: {key} {k.get(key)}, the budget is {line.get(key)}")
    if k.get("blocks_per_sm", 0) < line.get("blocks_per_sm", 0):
        out.append(f"{where}: {k.get('blocks_per_sm')} blocks fit a multiprocessor, the budget is {line['blocks_per_sm']}")
    if k.get("instructions", 0) > 1.25 * line.get("instructions", 0):
        out.append(f"{where}: {k.get('instructions')} instructions, the budget is {line.get('instructions')} and a quarter")
    return out


def check(jobs):
    """Every fault as a sentence, over all kernels."""
    found, warnings = measure(jobs)
    budget = json.loads(BUDGET.read_text()) if BUDGET.is_file() else {}
    faults = list(warnings)
    for name, k in sorted(found.items()):
        faults += faults_of(name, k, budget)
    faults += [f"kernels/budget.json: {name} is no longer there" for name in budget if name not in found]
    return found, faults


def write_launches(traces):
    """Keeps, for each kernel, the largest block and dynamic shared memory that any test launched it with."""
    launches = {}
    for trace in traces:
        for line in pathlib.Path(trace).read_text().splitlines():
            name, threads, shared = line.split("\t")
            entry = launches.setdefault(tidy(name), {"threads": 0, "dynamic_shared": 0})
            entry["threads"] = max(entry["threads"], int(threads))
            entry["dynamic_shared"] = max(entry["dynamic_shared"], int(shared))
    return launches


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "update", "launches"])
    parser.add_argument("traces", nargs="*")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if args.what == "launches":
        found, _ = measure(args.jobs)
        table = {name: launch for name, launch in sorted(write_launches(args.traces).items()) if name in found}
        LAUNCHES.write_text("{\n" + ",\n".join(f" {json.dumps(n)}: {json.dumps(v)}" for n, v in table.items()) + "\n}\n")
        return
    if args.what == "update":
        found, warnings = measure(args.jobs)
        keep = ("file", "registers", "static_shared", "dynamic_shared", "threads", "blocks_per_sm", "instructions")
        table = {name: {key: k[key] for key in keep if key in k} for name, k in sorted(found.items())}
        BUDGET.write_text("{\n" + ",\n".join(f" {json.dumps(n)}: {json.dumps(v)}" for n, v in table.items()) + "\n}\n")
        print("\n".join(warnings))
        return
    found, faults = check(args.jobs)
    print("\n".join(faults))
    print(f"{len(found)} kernels, {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
