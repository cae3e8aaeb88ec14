"""Writes goldens.json: logits, and what transformers' logits processors and warpers make of them.

Run with torch and transformers installed:  python make_sampling_goldens.py > goldens.json
Each case: which logits, parameters, history, and the ids that stay finite with their processed values. The processors are run in
the order of transformers' generate(): bias, repetition penalty, minimum length, temperature, top_k, top_p, min_p. One
thing transformers leaves open is settled here: see settle_ties.
"""
import itertools
import json

import torch
import transformers
from transformers.generation import logits_process as lp

V = 384
EOS = [7, 11]


def vectors():
    g = torch.Generator().manual_seed(20240531)
    flat = torch.randn(V, generator=g)
    peaked = torch.randn(V, generator=g) * 4
    peaked[200] = 14.0
    ties = torch.round(torch.randn(V, generator=g) * 2)  # many equal values, at every border
    bf16 = (torch.randn(V, generator=g) * 3).to(torch.bfloat16).float()  # what a bf16 head gives: some ties
    return {"flat": flat, "peaked": peaked, "ties": ties, "bf16": bf16}


def process(logits, case, n_prompt, history):
    ids = torch.tensor([history])
    steps = []
    if case.get("bias"):
        steps.append(lp.SequenceBiasLogitsProcessor({(i,): v for i, v in case["bias"]}))
    if "repetition_penalty" in case:
        steps.append(lp.RepetitionPenaltyLogitsProcessor(case["repetition_penalty"]))
    if "min_tokens" in case:
        steps.append(lp.MinNewTokensLengthLogitsProcessor(n_prompt, case["min_tokens"], EOS))
    if "temperature" in case:
        steps.append(lp.TemperatureLogitsWarper(case["temperature"]))
    if "top_k" in case:
        steps.append(lp.TopKLogitsWarper(case["top_k"]))
    if "top_p" in case:
        steps.append(lp.TopPLogitsWarper(case["top_p"]))
    if "min_p" in case:
        steps.append(lp.MinPLogitsWarper(case["min_p"]))
    return lp.LogitsProcessorList(steps)(ids, logits[None].clone())[0]


def settle_ties(done, before):
    """torch.sort is not stable, so which of several equal logits top_p keeps is open: say the lowest ids."""
    least = done[torch.isfinite(done)].min()
    n = int((done == least).sum())
    equal = (before == least).nonzero()[:, 0]
    done[equal] = float("-inf")
    done[equal[:n]] = least
    return done


def cases():
    yield {}
    for t in (0.1, 0.3, 0.7, 1.5, 2.0):
        yield {"temperature": t}
    for k in (1, 2, 5, 40, 383, 384, 1000):
        yield {"top_k": k}
    for p in (0.01, 0.1, 0.5, 0.9, 0.95, 0.999):
        yield {"top_p": p}
    for p in (0.02, 0.05, 0.15, 0.5, 1.0):
        yield {"min_p": p}
    for t, k, p, m in itertools.product((0.3, 1.0, 1.3), (3, 50), (0.1, 0.9), (0.01, 0.2)):
        yield {"temperature": t, "top_k": k, "top_p": p, "min_p": m}
    yield {"top_k": 20, "min_p": 0.05}
    yield {"top_p": 0.8, "min_p": 0.1}
    yield {"top_k": 300, "top_p": 0.97}
    for r in (0.8, 1.05, 1.5):
        yield {"repetition_penalty": r, "top_k": 60}
    yield {"temperature": 0.3, "min_p": 0.15, "repetition_penalty": 1.05}
    yield {"temperature": 0.1, "top_k": 50, "top_p": 0.1, "repetition_penalty": 1.05}
    yield {"bias": [[3, 5.5], [200, -100.0], [7, 12.25]], "top_k": 30}
    yield {"bias": [[3, 5.5], [7, 12.25]], "repetition_penalty": 1.3, "min_tokens": 9, "top_p": 0.9}
    yield {"min_tokens": 4, "bias": [[7, 20.0], [11, 20.0]], "top_k": 5}


def main():
    g = torch.Generator().manual_seed(7)
    n_prompt, prompt = 12, torch.randint(0, V, (12,), generator=g).tolist() + [200, 200, 7]
    n_prompt = len(prompt)
    history = prompt + torch.randint(0, V, (5,), generator=g).tolist()
    history[-1] = history[-2]
    all_logits = vectors()
    out = []
    for name, logits in all_logits.items():
        for case in cases():
            done = process(logits, case, n_prompt, history)
            if "top_p" in case:
                before = {k: v for k, v in case.items() if k not in ("top_p", "min_p")}
                done = settle_ties(done, process(logits, before, n_prompt, history))
            kept = torch.isfinite(done).nonzero()[:, 0].tolist()
            if len(kept) > 100 and name != "ties":  # large sets: every id, but only some values
                values = [[i, float(f"{done[i].item():.9g}")] for i in kept[::16]]
            else:
                values = [[i, float(f"{done[i].item():.9g}")] for i in kept]
            out.append({"logits": name, **case, "kept": kept if len(kept) < V else "all", "values": values})
    print(json.dumps({
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "vocab_size": V, "eos": EOS, "n_prompt": n_prompt, "history": history,
        "logits": {k: [float(f"{x:.9g}") for x in v.tolist()] for k, v in all_logits.items()},
    })[:-1] + ', "cases": [')
    print(",\n".join(json.dumps(c, separators=(",", ":")) for c in out))
    print("]}")


if __name__ == "__main__":
    main()
