#!/usr/bin/env python3
"""Seeds of the weight file fuzzers: whole but tiny checkpoints, so that a mutation reaches every check.

    make_corpus.py [OUT_DIR]        writes OUT_DIR/{safetensors,gguf,config,imatrix}/...; the standard library is enough
"""
import json, os, struct, sys

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")
H, D, NQ, NKV, F, V, L, E, M = 4, 2, 2, 1, 4, 4, 3, 2, 4


def save(kind, name, data):
    os.makedirs(os.path.join(OUT, kind), exist_ok=True)
    with open(os.path.join(OUT, kind, name), "wb") as f:
        f.write(data)


def config(moe, old):
    c = {"model_type": "lfm2_moe" if moe else "lfm2", "vocab_size": V, "hidden_size": H, "num_hidden_layers": 2,
         "num_key_value_heads": NKV, "conv_L_cache": L, "max_position_embeddings": 64, "eos_token_id": [3], "bos_token_id": 1}
    c.update({"num_heads": NQ, "full_attn_idxs": [1], "block_ff_dim": 6, "block_multiple_of": 4, "block_norm_eps": 1e-5,
              "block_ffn_dim_multiplier": 1.0, "rope_theta": 1e6, "tie_embedding": True} if old else
             {"num_attention_heads": NQ, "layer_types": ["conv", "full_attention"], "intermediate_size": F, "norm_eps": 1e-5,
              "block_auto_adjust_ff_dim": False, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}})
    if moe:
        c.update({"num_experts": E, "num_experts_per_tok": 1, "num_dense_layers": 1, "moe_intermediate_size": M,
                  "use_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 1.0})
    return json.dumps(c).encode()


def safetensors(tensors):
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape in tensors:
        n = 4 if dtype == "F32" else 2
        for d in shape:
            n *= d
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n]}
        at += n
    h = json.dumps(head, separators=(",", ":")).encode()
    h += b" " * (-len(h) % 8)
    return struct.pack("<Q", len(h)) + h + bytes(at)


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def gguf(moe, quantised=False):
    a = "lfm2moe" if moe else "lfm2"
    kv = [("general.architecture", 8, text(a)), ("general.alignment", 4, struct.pack("<I", 32))]
    u = {"block_count": 2, "context_length": 64, "embedding_length": H, "feed_forward_length": F, "attention.head_count": NQ,
         "vocab_size": V, "shortconv.l_cache": L}
    if moe:
        u.update({"expert_count": E, "expert_used_count": 1, "expert_feed_forward_length": M, "leading_dense_block_count": 1,
                  "expert_gating_func": 2})
    kv += [(f"{a}.{k}", 4, struct.pack("<I", v)) for k, v in u.items()]
    kv += [(f"{a}.rope.freq_base", 6, struct.pack("<f", 1e6)),
           (f"{a}.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
           (f"{a}.attention.head_count_kv", 9, struct.pack("<IQ2I", 5, 2, 0, NKV)),
           ("general.sampling.temp", 6, struct.pack("<f", 0.3)),
           ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
           ("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 3))]
    t = [("token_embd.weight", [H, V]), ("token_embd_norm.weight", [H])]
    for i in range(2):
        b = f"blk.{i}."
        t += [(b + "attn_norm.weight", [H]), (b + "ffn_norm.weight", [H])]
        t += ([(b + "shortconv.in_proj.weight", [H, 3 * H]), (b + "shortconv.conv.weight", [L, H]),
               (b + "shortconv.out_proj.weight", [H, H])] if i == 0 else
              [(b + "attn_q.weight", [H, NQ * D]), (b + "attn_k.weight", [H, NKV * D]), (b + "attn_v.weight", [H, NKV * D]),
               (b + "attn_output.weight", [NQ * D, H]), (b + "attn_q_norm.weight", [D]), (b + "attn_k_norm.weight", [D])])
        t += ([(b + "ffn_gate_inp.weight", [H, E]), (b + "exp_probs_b.bias", [E]), (b + "ffn_gate_exps.weight", [H, M, E]),
               (b + "ffn_up_exps.weight", [H, M, E]), (b + "ffn_down_exps.weight", [M, H, E])] if moe and i else
              [(b + "ffn_gate.weight", [H, F]), (b + "ffn_up.weight", [H, F]), (b + "ffn_down.weight", [F, H])])
    if quantised:
        t = [("a", [32, 2])]
    out = b"GGUF" + struct.pack("<IQQ", 3, len(t), len(kv))
    out += b"".join(text(k) + struct.pack("<I", ty) + v for k, ty, v in kv)
    data = b""
    for name, dims in t:
        n = 4
        for d in dims:
            n *= d
        n = 68 if quantised else n
        out += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        out += struct.pack("<IQ", 8 if quantised else 0, len(data))
        data += bytes(n + -n % 32)
    return out + bytes(-len(out) % 32) + data


def imatrix():
    kv = [("general.type", 8, text("imatrix")), ("imatrix.datasets", 9, struct.pack("<IQ", 8, 1) + text("t")),
          ("imatrix.chunk_count", 4, struct.pack("<I", 2)), ("imatrix.chunk_size", 4, struct.pack("<I", 8))]
    t = [("a.in_sum2", [2], [3, 4]), ("a.counts", [1], [9]), ("e.in_sum2", [2, 3], [1, 2, 0, 0, 5, 6]), ("e.counts", [1, 3], [40, 0, 2])]
    out, data = b"GGUF" + struct.pack("<IQQ", 3, len(t), len(kv)), b""
    out += b"".join(text(k) + struct.pack("<I", ty) + v for k, ty, v in kv)
    for name, dims, values in t:
        out += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, len(data))
        data += struct.pack(f"<{len(values)}f", *values) + bytes(-4 * len(values) % 32)
    return out + bytes(-len(out) % 32) + data


def imatrix_dat():
    entries = b"".join(struct.pack("<i", len(n)) + n + struct.pack(f"<ii{len(v)}f", 2, len(v), *v) for n, v in [(b"a", [1, 2]), (b"bc", [3])])
    return struct.pack("<i", 2) + entries + struct.pack("<ii", 2, 1) + b"t"


save("config", "dense_old", config(False, True))
save("config", "dense_new", config(False, False))
save("config", "moe_old", config(True, True))
save("config", "moe_new", config(True, False))
save("safetensors", "empty", safetensors([]))
save("safetensors", "three", safetensors([("a", "F32", [2, 2]), ("b.weight", "BF16", [3]), ("c", "F16", [1, 1, 5])]))
save("safetensors", "scalar", safetensors([("s", "F32", []), ("z", "F32", [0, 3])]))
save("gguf", "dense", gguf(False))
save("gguf", "moe", gguf(True))
save("gguf", "quantised", gguf(False, True))
save("imatrix", "gguf", imatrix())
save("imatrix", "dat", imatrix_dat())
save("model_card", "card", b"---\nlicense: other\nlicense_name: \"lfm1.0\" # x\nlanguage:\n- en\n- 'ja'\ntags: [a, \"b c\"]\nbase_model: LiquidAI/LFM2-8B-A1B\n---\n")
save("model_card", "names", b"---\nbase_model:\n- https://huggingface.co/A/lfm2-7b1-q4_k_m-iter2.1-chat\n- A/x-8x7B-xl-32k-v2\n---\n")
