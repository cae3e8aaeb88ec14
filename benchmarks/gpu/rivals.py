#!/usr/bin/env python3
"""Times libraries on the shapes of bench_kernels, in the same way: graph replays over rotating sets larger than the cache, medians.

    rivals.py [--budget SECONDS] [--out FILE]

Rivals: cuBLASLt through torch (dense products), cuDNN's and torch's attention (contiguous keys and values: easier than pages), torch's
grouped product, and vLLM's Triton fused mixture with its tuned file where vLLM can be imported (the whole operator: gate, up, SwiGLU,
down, combine). A rival that cannot run here is a row with its reason, not a silent gap. Needs torch with CUDA.
"""
import argparse
import json
import sys
import time

SHAPES = {  # H, heads, kv heads, D, dense width, experts, used, expert width, V
    "24b-a2b": (2048, 32, 8, 64, 11776, 64, 4, 1536, 65536),
    "8b-a1b": (2048, 32, 8, 64, 7168, 32, 4, 1792, 65536),
    "1.2b": (2048, 32, 8, 64, 8192, 0, 0, 0, 65536),
}
ROWS = (1, 8, 64, 256, 1024, 4096, 8192)


class Bench:
    def __init__(self, budget, out):
        import torch

        self.torch, self.out, self.deadline = torch, out, time.monotonic() + budget
        self.l2 = torch.cuda.get_device_properties(0).L2_cache_size
        torch.manual_seed(1)

    def randn(self, *shape, scale=1.0):
        return (self.torch.randn(*shape, device="cuda", dtype=self.torch.float32) * scale).to(self.torch.bfloat16)

    def sets_for(self, n_bytes):
        return max(3, min(16, int(3 * self.l2 / n_bytes) + 1))

    def time(self, calls):
        """Median microseconds of one of `calls` (functions over different data), replayed as one graph; plainly if capture fails."""
        torch = self.torch
        for call in calls:
            call()
        torch.cuda.synchronize()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
            run = graph.replay
        except RuntimeError:
            torch.cuda.synchronize()
            run = lambda: [call() for call in calls]
        run()
        times = []
        for _ in range(9):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(1e3 * begin.elapsed_time(end) / len(calls))
        return sorted(times)[len(times) // 2]

    def row(self, rival, kernel, model, rows, context, make, n_bytes, flop):
        """make() -> list of functions. Says why when it cannot."""
        entry = {"rival": rival, "kernel": kernel, "model": model, "rows": rows, "context": context}
        if time.monotonic() > self.deadline:
            entry["skipped"] = "no time left"
        else:
            try:
                us = self.time(make())
                entry |= {"us": round(us, 3), "bytes": n_bytes, "flop": flop, "gb_s": round(n_bytes / us * 1e-3, 1),
                          "tflop_s": round(flop / us * 1e-6, 2)}
            except Exception as e:  # a rival's failure is a result
                entry["failed"] = f"{type(e).__name__}: {e}"[:300]
            self.torch.cuda.empty_cache()
        print(json.dumps(entry), file=self.out, flush=True)


def linears(b):
    from torch.nn import functional as F

    H, heads, kv, D, *_ = SHAPES["24b-a2b"]
    for name, rows, cols in (("out_proj", H, H), ("ffn_down", H, 8192), ("head", 65536, H), ("conv_in", 3 * H, H),
                             ("qkv", (heads + 2 * kv) * D, H)):
        for T in ROWS if name != "head" else ROWS[:5]:
            def make():
                sets = [(b.randn(T, cols), b.randn(rows, cols, scale=cols**-0.5)) for _ in range(b.sets_for(2 * rows * cols))]
                return [lambda x=x, w=w: F.linear(x, w) for x, w in sets]
            kernel = name if name in ("conv_in", "qkv") else f"linear_{name}"
            b.row("cublaslt", kernel, "24b-a2b", T, 0, make, 2 * rows * cols + 2 * T * (rows + cols), 2 * T * rows * cols)


def attention(b):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn import functional as F

    _, heads, kv, D, *_ = SHAPES["24b-a2b"]

    def rows(rival, backend):
        for n, context in ((1, 1024), (8, 1024), (64, 1024), (256, 1024), (1024, 1024), (1, 8192), (8, 8192), (64, 8192), (1, 32768)):
            def make():
                sets = [(b.randn(n, heads, 1, D), b.randn(n, kv, context, D), b.randn(n, kv, context, D)) for _ in range(3)]

                def call(q, k, v):
                    with sdpa_kernel(backend):
                        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
                return [lambda s=s: call(*s) for s in sets]
            b.row(rival, "attention_decode", "24b-a2b", n, context, make, 4 * n * context * kv * D + 4 * n * heads * D,
                  4 * n * context * heads * D)
        for n in (2048, 8192, 32768):
            def make():
                sets = [(b.randn(1, heads, n, D), b.randn(1, kv, n, D), b.randn(1, kv, n, D)) for _ in range(3)]

                def call(q, k, v):
                    with sdpa_kernel(backend):
                        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                return [lambda s=s: call(*s) for s in sets]
            b.row(rival, "attention_prefill", "24b-a2b", n, n, make, 4 * n * kv * D + 4 * n * heads * D, 2 * n * (n + 1) * heads * D)

    rows("cudnn", SDPBackend.CUDNN_ATTENTION)
    rows("torch_flash", SDPBackend.FLASH_ATTENTION)


def mixtures(b):
    torch = b.torch
    for model in ("24b-a2b", "8b-a1b"):
        H, _, _, _, _, E, K, M, _ = SHAPES[model]
        for T in ROWS:
            choice = torch.stack([torch.randperm(E, device="cuda")[:K] for _ in range(T)])
            distinct, n = choice.unique().numel(), T * K
            n_bytes = distinct * 2 * 3 * H * M + 2 * T * H + 4 * n * M + 2 * n * H
            counts = torch.bincount(choice.flatten(), minlength=E)

            def grouped(which):
                offsets = counts.cumsum(0).to(torch.int32)
                sets = [(b.randn(n, H if which else M), b.randn(E, 2 * M if which else H, H if which else M, scale=H**-0.5)) for _ in range(3)]
                return [lambda x=x, w=w: torch._grouped_mm(x, w.transpose(-2, -1), offs=offsets) for x, w in sets]
            b.row("torch_grouped_mm", "gate_up", model, T, 0, lambda: grouped(True), distinct * 4 * H * M + 2 * n * H + 4 * n * M, 4 * n * H * M)
            b.row("torch_grouped_mm", "down", model, T, 0, lambda: grouped(False), distinct * 2 * H * M + 2 * n * M + 2 * n * H, 2 * n * H * M)

            def fused():
                from vllm.model_executor.layers.fused_moe import fused_experts

                sets = [(b.randn(T, H), b.randn(E, 2 * M, H, scale=H**-0.5), b.randn(E, H, M, scale=M**-0.5)) for _ in range(3)]
                weights = torch.full((T, K), 1.0 / K, device="cuda")
                ids = choice.to(torch.int32)
                return [lambda x=x, up=up, down=down: fused_experts(x, up, down, weights, ids) for x, up, down in sets]
            b.row("vllm_triton", "gate_up+down+combine", model, T, 0, fused, n_bytes, 6 * n * H * M)


def sampler(b):
    torch = b.torch
    for n in (1, 8, 64, 256, 1024):
        def make():
            sets = [b.randn(n, 65536).float() for _ in range(3)]

            def call(logits):
                logits = logits / 0.3
                top = torch.topk(logits, 50, dim=-1)
                p = torch.softmax(top.values, dim=-1)
                p = torch.where(p < 0.15 * p[:, :1], torch.zeros_like(p), p)
                return top.indices.gather(1, torch.multinomial(p, 1))
            return [lambda x=x: call(x) for x in sets]
        b.row("torch_topk_multinomial", "sampler", "24b-a2b", n, 0, make, 4 * n * 65536, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=120)
    parser.add_argument("--out", default="-")
    args = parser.parse_args()
    try:
        import torch
    except ImportError as e:
        print(f"error: the rivals need torch: {e}", file=sys.stderr)
        sys.exit(3)
    if not torch.cuda.is_available():
        sys.exit("error: torch sees no GPU")
    out = sys.stdout if args.out == "-" else open(args.out, "w")
    b = Bench(args.budget, out)
    for part in (mixtures, attention, linears, sampler):
        part(b)


if __name__ == "__main__":
    main()
