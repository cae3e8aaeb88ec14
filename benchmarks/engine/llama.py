"""headrace beside llama.cpp: same shapes, same threads, in turn in one run.

    llama.py [--shapes 350m,1.2b] [--rounds 5] [--threads 2] [--formats bf16,gguf-f16] [--save]

llama.cpp is built from the source package of llama-cpp-python in a cache outside the checkout, optimised for this machine. Each
round runs llama.cpp and then headrace, for every figure, so that drift of a shared machine meets both; the ratio is
of the medians. llama.cpp always runs its F16 file; headrace runs the same file and, beside it, the BF16 safetensors of the same
shape (what the published checkpoints are).

Figures: prefill of 512 tokens, decode of one stream (128 tokens), decode of 8 streams at once (16 + 64 tokens), and the memory
that headrace holds beyond the mapped weights.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tarfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import CACHE, HEADRACE, median, run_watching, save  # noqa: E402
from models.write_checkpoint import ensure  # noqa: E402

PACKAGE = "llama-cpp-python==0.3.36"


def build_llama():
    """llama-bench and llama-batched-bench of the pinned source package; built once."""
    root = CACHE / PACKAGE.replace("==", "-")
    programs = root / "build" / "bin"
    if (programs / "llama-batched-bench").exists() and (programs / "llama-bench").exists():
        return programs
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(root), PACKAGE], check=True)
    archive = next(root.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")
    source = next(root.glob("llama_cpp_python-*/vendor/llama.cpp"))
    flags = next(line for line in open("/proc/cpuinfo") if line.startswith("flags")).split()
    options = ["-DGGML_NATIVE=ON"]
    if "amx_tile" in flags:  # listed but not always granted: a native build would then die of an illegal instruction
        options = ["-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_BMI2=ON", "-DGGML_AVX512=ON", "-DGGML_AVX512_VNNI=ON",
                   "-DGGML_AVX512_BF16=ON"]
    subprocess.run(["cmake", "-S", source, "-B", root / "build", "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF",
                    "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_TOOLS=ON", *options], check=True)
    subprocess.run(["cmake", "--build", root / "build", "--target", "llama-bench", "llama-batched-bench", "-j", str(os.cpu_count())], check=True)
    return programs


def llama_single(programs, model, threads):
    out = subprocess.run([programs / "llama-bench", "-m", model, "-t", str(threads), "-p", "512", "-n", "128", "-r", "1", "-o", "json"],
                         capture_output=True, text=True, check=True).stdout
    rows = json.loads(out)
    return {"prefill": next(r["avg_ts"] for r in rows if r["n_prompt"]), "decode": next(r["avg_ts"] for r in rows if r["n_gen"])}


def llama_concurrent(programs, model, threads, streams):
    out = subprocess.run([programs / "llama-batched-bench", "-m", model, "-t", str(threads), "-tb", str(threads), "-c", "4096", "-b", "2048", "-ub", "512",
                          "-npp", "16", "-ntg", "64", "-npl", str(streams), "--output-format", "jsonl"], capture_output=True, text=True, check=True).stdout
    return next(json.loads(line)["speed_tg"] for line in out.splitlines() if line.startswith("{"))


def headrace_single(model, threads):
    out, anonymous, _ = run_watching([HEADRACE, "bench", "latency", "--model", model, "--threads", threads, "--input-len", 512, "--output-len", 128,
                                      "--num-iters", 1, "--json", "--quiet"])
    row = json.loads(out)
    return {"prefill": row["prefill_tokens_per_s"], "decode": row["decode_tokens_per_s"]}, anonymous, row["compute"]


def headrace_concurrent(model, threads, streams):
    out, _, _ = run_watching([HEADRACE, "bench", "throughput", "--model", model, "--threads", threads, "--input-len", 16, "--output-len", 64,
                              "--num-prompts", streams, "--max-concurrency", streams, "--json", "--quiet"])
    return json.loads(out)["decode_tokens_per_s"]


def compare(programs, shape, formats, rounds, threads, streams=8):
    peer_file = ensure(shape, "gguf-f16", CACHE)
    ours = {kind: ensure(shape, kind, CACHE) for kind in formats}
    runs = {"llama.cpp f16": {"prefill": [], "decode": [], "concurrent": []}, **{f"headrace {k}": {"prefill": [], "decode": [], "concurrent": []} for k in formats}}
    memory, compute = {}, None
    for _ in range(rounds):  # each figure of all sides back to back: the shorter the time between them, the less drift
        peer = llama_single(programs, peer_file, threads)
        for key in peer:
            runs["llama.cpp f16"][key].append(peer[key])
        for kind, path in ours.items():
            row, anonymous, compute = headrace_single(path, threads)
            for key in row:
                runs[f"headrace {kind}"][key].append(row[key])
            memory[kind] = max(memory.get(kind, 0), anonymous)
        runs["llama.cpp f16"]["concurrent"].append(llama_concurrent(programs, peer_file, threads, streams))
        for kind, path in ours.items():
            runs[f"headrace {kind}"]["concurrent"].append(headrace_concurrent(path, threads, streams))
    result = {"shape": shape, "threads": threads, "rounds": rounds, "compute": compute, "tokens_per_s": runs, "anonymous_rss_bytes": memory, "ratio": {}}
    peer = {key: median(v) for key, v in runs["llama.cpp f16"].items()}
    print(f"\n{shape}, {threads} threads, {compute}, median of {rounds} (min to max), tokens/s")
    print(f"{'':<20}{'prefill 512':>28}{'decode, 1 stream':>28}{f'decode, {streams} streams':>28}")
    for name, row in runs.items():
        cells = "".join(f"{median(row[k]):>12.1f} ({min(row[k]):.1f}-{max(row[k]):.1f})".rjust(28) for k in ("prefill", "decode", "concurrent"))
        print(f"{name:<20}{cells}")
    for kind in formats:
        ratio = {key: median(runs[f"headrace {kind}"][key]) / peer[key] for key in peer}
        result["ratio"][kind] = ratio
        print(f"{'ratio ' + kind:<20}" + "".join(f"{ratio[k]:.2f}x".rjust(28) for k in ("prefill", "decode", "concurrent"))
              + f"   anonymous RSS {memory[kind] / 2**20:.0f} MiB")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="350m,1.2b")
    parser.add_argument("--formats", default="bf16,gguf-f16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    programs = build_llama()
    results = [compare(programs, shape, arguments.formats.split(","), arguments.rounds, arguments.threads) for shape in arguments.shapes.split(",")]
    if arguments.save:
        save("cpu_llama", "./dev bench llama " + " ".join(sys.argv[1:]), results)


if __name__ == "__main__":
    main()
