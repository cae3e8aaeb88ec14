"""headrace beside llama.cpp: same shapes, same threads, in turn in one run.

    llama.py [--models 350m:bf16,350m:f16,1.2b:q4_0,...] [--figures prefill,decode,...] [--rounds 5] [--threads 2] [--save [NAME]]

llama.cpp is built from the source package of llama-cpp-python in a cache outside the checkout, optimised for this machine. Each
round runs both for every figure, first the one that was last in the round before, so that drift of a shared machine meets both; the
ratio is of the medians. Both run the same GGUF file; "bf16" are safetensors (what the published checkpoints are), which llama.cpp
cannot read: beside them it runs its F16 file of the same shape.

Figures (tokens/s):
  prefill, prefill2048   a prompt of 512, of 2048 tokens
  decode                 one stream, 128 tokens from an empty context (llama-bench's tg128)
  streams8, streams32    all streams' tokens together: 16 prompt and 64 generated tokens each
  depth                  decode of one stream after 8192 tokens over decode after 1, of headrace alone (llama.cpp takes minutes for the prompt)
and the largest resident set of both in "prefill" and "decode", which counts mapped files too. Beside every "decode" stand the bytes
a second that the machine reads right before and right after headrace's run, and the share of them that decode needs: tokens/s
times the file's bytes that one token passes through.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tarfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import CACHE, HEADRACE, SOURCE, median, run_watching, save  # noqa: E402
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


def llama_bench(programs, model, threads, *arguments):
    """Rows of llama-bench, and the largest resident set in bytes."""
    command = [programs / "llama-bench", "-m", model, "-t", threads, "-r", "1", "-o", "json", *arguments]
    out, _, resident = run_watching(command)
    return json.loads(out), resident


def llama_streams(programs, model, threads, streams):
    out, _, _ = run_watching([programs / "llama-batched-bench", "-m", model, "-t", threads, "-tb", threads, "-c", "4096", "-b", "2048", "-ub", "512",
                              "-npp", "16", "-ntg", "64", "-npl", streams, "--output-format", "jsonl"])
    return next(json.loads(line)["speed_tg"] for line in out.splitlines() if line.startswith("{"))


class Peer:
    """llama.cpp with one file."""

    def __init__(self, programs, model, threads):
        self.programs, self.model, self.threads, self.resident = programs, model, threads, 0

    def one(self, n_prompt, n_generated):
        rows, resident = llama_bench(self.programs, self.model, self.threads, "-p", n_prompt, "-n", n_generated)
        self.resident = max(self.resident, resident)
        return rows[0]["avg_ts"]

    def prefill(self):
        return {"prefill": self.one(512, 0)}

    def decode(self):
        return {"decode": self.one(0, 128)}

    def prefill2048(self):
        return {"prefill2048": llama_bench(self.programs, self.model, self.threads, "-p", "2048", "-n", "0", "--no-warmup")[0][0]["avg_ts"]}

    def streams(self, n):
        return {f"streams{n}": llama_streams(self.programs, self.model, self.threads, n)}

    def depth(self):
        return {}


def bytes_a_token(model):
    """Weight bytes of a GGUF file that one token of one stream reads: all tensors, of expert stacks the chosen experts' share, the
    embedding only where it is the head too."""
    import gguf

    reader = gguf.GGUFReader(model)
    fields = {key.partition(".")[2]: field for key, field in reader.fields.items()}
    share = fields["expert_used_count"].contents() / fields["expert_count"].contents() if "expert_count" in fields else 1
    names = {t.name for t in reader.tensors}
    total = 0
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight" and "output.weight" in names:
            continue
        total += int(tensor.n_bytes) * (share if "_exps." in tensor.name else 1)
    return total


class Ours(Peer):
    """headrace with one file or folder."""

    def __init__(self, model, threads):
        super().__init__(None, model, threads)
        self.anonymous, self.compute, self.bandwidth = 0, None, []

    def measure_bandwidth(self):
        return float(subprocess.run([HEADRACE.parent / "bench_cpu_bandwidth", str(self.threads)], check=True, capture_output=True, text=True).stdout)

    def latency(self, prompt, output, watch=False):
        out, anonymous, resident = run_watching([HEADRACE, "bench", "latency", "--model", self.model, "--threads", self.threads, "--input-len", prompt,
                                                 "--output-len", output, "--num-iters", 1, "--json", "--quiet"])
        if watch:
            self.anonymous, self.resident = max(self.anonymous, anonymous), max(self.resident, resident)
        row = json.loads(out)
        self.compute = row["compute"]
        return row

    def prefill(self):
        return {"prefill": self.latency(512, 2, watch=True)["prefill_tokens_per_s"]}

    def decode(self):
        before = self.measure_bandwidth()
        decode = self.latency(1, 128, watch=True)["decode_tokens_per_s"]
        self.bandwidth.append((before + self.measure_bandwidth()) / 2)
        return {"decode": decode}

    def prefill2048(self):
        return {"prefill2048": self.latency(2048, 2)["prefill_tokens_per_s"]}

    def streams(self, n):
        out, _, _ = run_watching([HEADRACE, "bench", "throughput", "--model", self.model, "--threads", self.threads, "--input-len", 16, "--output-len", 64,
                                  "--num-prompts", n, "--max-concurrency", n, "--json", "--quiet"])
        row = json.loads(out)
        self.compute = row["compute"]
        return {f"streams{n}": row["decode_tokens_per_s"]}

    def depth(self):
        return {"depth": self.latency(8192, 32)["decode_tokens_per_s"] / self.latency(1, 32)["decode_tokens_per_s"]}


STREAMS = {"streams8": 8, "streams32": 32}  # the other figures are the sides' methods


def run(side, figure):
    return side.streams(STREAMS[figure]) if figure in STREAMS else getattr(side, figure)()


def compare(programs, shape, kind, figures, rounds, threads):
    peer = Peer(programs, ensure(shape, "gguf-f16" if kind == "bf16" else f"gguf-{kind}", CACHE), threads)
    ours = Ours(ensure(shape, "bf16" if kind == "bf16" else f"gguf-{kind}", CACHE), threads)
    taken = {"llama.cpp": {}, "headrace": {}}
    sides = [("llama.cpp", peer), ("headrace", ours)]
    for _ in range(rounds):  # each figure of both sides back to back: the shorter the time between them, the less drift
        for figure in figures:
            for name, side in sides:
                for key, value in run(side, figure).items():
                    taken[name].setdefault(key, []).append(value)
        sides.reverse()
    result = {"shape": shape, "format": kind, "threads": threads, "rounds": rounds, "compute": ours.compute, "figures": taken,
              "ratio": {f: median(taken["headrace"][f]) / median(taken["llama.cpp"][f]) for f in taken["llama.cpp"]},
              "resident_bytes": {"llama.cpp": peer.resident, "headrace": ours.resident, "headrace, anonymous": ours.anonymous}}
    if "decode" in taken["headrace"] and kind != "bf16":
        need = bytes_a_token(ours.model)
        result["bandwidth"] = {"bytes_a_token": need, "read_bytes_s": ours.bandwidth,
                               "decode_share": median([need * d / b for d, b in zip(taken["headrace"]["decode"], ours.bandwidth)])}
    print(f"\n{shape} {kind}, {threads} threads, {ours.compute}, median of {rounds} (min to max)")
    for figure in taken["headrace"]:
        sides = "".join(f"{name:>12} {median(v[figure]):8.2f} ({min(v[figure]):.2f}-{max(v[figure]):.2f})" for name, v in taken.items() if figure in v)
        ratio = result["ratio"].get(figure)
        print(f"{figure:<12}{sides:<80}" + (f"{ratio:6.2f}x" if ratio else ""))
    if "bandwidth" in result:
        print(f"decode reads {need / 1e9:.3f} GB a token, the machine {median(ours.bandwidth) / 1e9:.1f} GB/s: {result['bandwidth']['decode_share']:.0%}")
    if peer.resident:
        print(f"{'resident':<12}{'llama.cpp':>12} {peer.resident / 2**20:8.0f} MiB{'headrace':>16} {ours.resident / 2**20:8.0f} MiB "
              f"(anonymous {ours.anonymous / 2**20:.0f}){'':<16}{ours.resident / peer.resident:6.2f}x", flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="350m:bf16,350m:f16,1.2b:bf16,1.2b:f16")
    parser.add_argument("--figures", default="prefill,decode,streams8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", nargs="?", const="cpu_llama")
    arguments = parser.parse_args()
    programs = build_llama()
    subprocess.run(["cmake", "--build", SOURCE / "build" / "release", "--target", "bench_cpu_bandwidth"], check=True, stdout=subprocess.DEVNULL)
    figures = arguments.figures.split(",")
    results = [compare(programs, *model.split(":"), figures, arguments.rounds, arguments.threads) for model in arguments.models.split(",")]
    if arguments.save:
        save(arguments.save, "./dev bench llama " + " ".join(sys.argv[1:]), results)


if __name__ == "__main__":
    main()
