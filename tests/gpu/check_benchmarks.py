#!/usr/bin/env python3
"""Runs a GPU benchmark against the emulation on shapes of a toy, so that every call in it is known to be right.

    check_benchmarks.py kernels|step PROGRAM

Times mean nothing here. Checked: every kernel and every kind of step has its line, in numbers; no logit is bad; and the weights that
are made on the device route evenly, without which a benchmark of a mixture would look faster than it is.
"""
import json
import math
import pathlib
import subprocess
import sys
import tempfile

KERNELS = {"device_copy", "route", "gate_up", "down", "combine", "conv_in", "qkv", "linear_out_proj", "linear_ffn_down", "linear_head",
           "step_begin", "sampler", "attention_decode", "attention_prefill"} | {
    "portable_" + name for name in ("gate_up", "down", "linear_ffn_down", "norm", "conv", "qk_rope", "attention_decode", "attention_prefill")} | {
    form + name for form in ("q4_k_", "q6_k_", "q8_0_") for name in ("gate_up", "down", "conv_in", "qkv", "linear_ffn_down", "linear_head")}


def toy(experts):
    config = {"architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 4,
              "num_attention_heads": 2, "num_key_value_heads": 1, "layer_types": ["conv", "conv", "full_attention", "conv"],
              "intermediate_size": 192, "conv_L_cache": 3, "conv_bias": False, "norm_eps": 1e-5, "rope_theta": 1000000.0,
              "max_position_embeddings": 1024, "tie_embedding": True, "bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0,
              "torch_dtype": "bfloat16"}
    if experts:
        return config | {"architectures": ["Lfm2MoeForCausalLM"], "model_type": "lfm2_moe", "num_experts": experts, "num_experts_per_tok": 2,
                         "moe_intermediate_size": 64, "num_dense_layers": 1, "use_expert_bias": True, "norm_topk_prob": True,
                         "routed_scaling_factor": 1.0}
    return config | {"block_auto_adjust_ff_dim": False, "block_ff_dim": 192, "block_multiple_of": 64, "block_ffn_dim_multiplier": 1.0}


def rows_of(command):
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=110).stdout
    rows = [json.loads(line, parse_constant=lambda name: sys.exit(f"{name} in {text}")) for line in text.splitlines()]
    for row in rows:
        assert all(math.isfinite(v) for v in row.values() if not isinstance(v, str)), row
    return rows


def check_kernels(program):
    rows = rows_of([program, "--quick"])
    assert {r["kernel"] for r in rows} == KERNELS, sorted(KERNELS ^ {r["kernel"] for r in rows})
    assert all(r["bytes"] > 0 and r["us"] > 0 for r in rows)
    routed = [r for r in rows if r["kernel"] == "route" and r["rows"] == 12]
    assert routed and all(r["distinct_experts"] > 5 for r in routed), routed  # of 8, by 24 choices
    only = rows_of([program, "--quick", "--only", "sampler"])
    assert {r["kernel"] for r in only} == {"device_copy", "sampler"}, only


def check_step(program):
    with tempfile.TemporaryDirectory() as folder:
        for experts in (0, 16):
            path = pathlib.Path(folder) / f"toy{experts}"
            path.mkdir()
            (path / "config.json").write_text(json.dumps(toy(experts)))
            rows = rows_of([program, path, "--streams", "1,5,24", "--context", "5", "--steps", "5", "--rows", "40", "--mixed", "--prefill", "30,90"])
            kinds = [r["step"] for r in rows if r["step"] != "routing"]
            assert kinds == ["prefill_bulk", "decode"] * 3 + ["mixed", "prefill", "prefill"], kinds
            assert all(r["us"] > 0 and r["bad_logits"] == 0 for r in rows if r["step"] != "routing")
            routing = [r for r in rows if r["step"] == "routing"]
            assert [r["streams"] for r in routing] == ([1, 5, 24] if experts else []), routing
            for r in routing:
                assert r["layers"] == 3 and r["experts"] == 16, r
                assert r["distinct_experts"] >= 0.8 * r["even_routing"], r
                assert r["least_distinct"] >= 0.6 * r["even_routing"], r


if __name__ == "__main__":
    {"kernels": check_kernels, "step": check_step}[sys.argv[1]](sys.argv[2])
