"""Writes random-weight checkpoints of the family's real shapes, for benchmarks (they answer nonsense at the right speed).

    write_checkpoint.py SHAPE FORMAT FOLDER      SHAPE: 350m 700m 1.2b 2.6b 8b-a1b 24b-a2b
    FORMAT: bf16 (Hugging Face folder), gguf-f16, gguf-bf16, config (config.json alone, for --load-format dummy),
            gguf-q4_0, gguf-q4_k_m, gguf-q5_k_m, gguf-q6_k, gguf-q8_0 (random blocks, types tensor by tensor as llama.cpp mixes them)

Weights are normal with standard deviation 1/sqrt(fan-in), norms 1, expert bias 0, so that activations stay near 1 through all
layers and routing is near uniform: a naive dummy (all equal, or all small) sends every token to the same experts and
makes a mixture look faster than it is. No tokenizer is written: benchmarks use random ids. Quantised files are drawn as blocks (even
levels, one scale a tensor), not quantised from the others: files of gigabytes then take seconds, and speed does not see the difference.
"""
import json
import pathlib
import struct
import sys

try:
    import numpy as np
except ImportError:  # enough for FORMAT config
    np = None

# name: layers, attention layers, hidden, real dense width, heads, kv heads, experts, experts a token, expert width, dense layers
SHAPES = {
    "350m": (16, [2, 5, 8, 10, 12, 14], 1024, 4608, 16, 8, 0, 0, 0, 0),
    "700m": (16, [2, 5, 8, 10, 12, 14], 1536, 6912, 24, 8, 0, 0, 0, 0),
    "1.2b": (16, [2, 5, 8, 10, 12, 14], 2048, 8192, 32, 8, 0, 0, 0, 0),
    "2.6b": (30, [2, 5, 9, 13, 17, 21, 24, 27], 2048, 10752, 32, 8, 0, 0, 0, 0),
    "8b-a1b": (24, [2, 6, 10, 14, 18, 21], 2048, 7168, 32, 8, 32, 4, 1792, 2),
    "24b-a2b": (40, list(range(2, 40, 4)), 2048, 11776, 32, 8, 64, 4, 1536, 2),
}
VOCAB, HEAD_DIM, TAPS = 65536, 64, 3


class Weights:
    """Normal numbers from one seed, made per tensor so that order does not matter."""

    def __init__(self, seed):
        self.seed = seed

    def normal(self, name, shape, fan_in):
        key = int.from_bytes(name.encode()[-8:].ljust(8, b"\0"), "little") ^ self.seed ^ hash_name(name)
        rng = np.random.Generator(np.random.SFC64(key & (2**64 - 1)))
        return rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(fan_in))


def hash_name(name):
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) & (2**64 - 1)
    return value


def tensors(shape):
    """Yields (Hugging Face name, GGUF name, shape, fan_in or 0 for ones, is_vector) in the layout of the published files; expert
    stacks come as one (E, out, in) entry whose Hugging Face name holds {e}."""
    layers, attention, hidden, width, heads, kv_heads, experts, _, expert_width, dense = SHAPES[shape]
    yield "model.embed_tokens.weight", "token_embd.weight", (VOCAB, hidden), hidden, False
    yield "model.embedding_norm.weight", "token_embd_norm.weight", (hidden,), 0, True
    for i in range(layers):
        hf, gg = f"model.layers.{i}.", f"blk.{i}."
        yield hf + "operator_norm.weight", gg + "attn_norm.weight", (hidden,), 0, True
        yield hf + "ffn_norm.weight", gg + "ffn_norm.weight", (hidden,), 0, True
        if i in attention:
            yield hf + "self_attn.q_proj.weight", gg + "attn_q.weight", (heads * HEAD_DIM, hidden), hidden, False
            yield hf + "self_attn.k_proj.weight", gg + "attn_k.weight", (kv_heads * HEAD_DIM, hidden), hidden, False
            yield hf + "self_attn.v_proj.weight", gg + "attn_v.weight", (kv_heads * HEAD_DIM, hidden), hidden, False
            yield hf + "self_attn.out_proj.weight", gg + "attn_output.weight", (hidden, heads * HEAD_DIM), heads * HEAD_DIM, False
            yield hf + "self_attn.q_layernorm.weight", gg + "attn_q_norm.weight", (HEAD_DIM,), 0, True
            yield hf + "self_attn.k_layernorm.weight", gg + "attn_k_norm.weight", (HEAD_DIM,), 0, True
        else:
            yield hf + "conv.in_proj.weight", gg + "shortconv.in_proj.weight", (3 * hidden, hidden), hidden, False
            yield hf + "conv.conv.weight", gg + "shortconv.conv.weight", (hidden, 1, TAPS), TAPS, True
            yield hf + "conv.out_proj.weight", gg + "shortconv.out_proj.weight", (hidden, hidden), hidden, False
        if experts and i >= dense:
            yield hf + "feed_forward.gate.weight", gg + "ffn_gate_inp.weight", (experts, hidden), hidden, True
            yield hf + "feed_forward.expert_bias", gg + "exp_probs_b.bias", (experts,), -1, True
            for role, ggname, s in (("w1", "ffn_gate_exps", (expert_width, hidden)), ("w3", "ffn_up_exps", (expert_width, hidden)),
                                    ("w2", "ffn_down_exps", (hidden, expert_width))):
                yield hf + "feed_forward.experts.{e}." + role + ".weight", gg + ggname + ".weight", (experts, *s), s[1], False
        else:
            for role, ggname, s in (("w1", "ffn_gate", (width, hidden)), ("w3", "ffn_up", (width, hidden)), ("w2", "ffn_down", (hidden, width))):
                yield hf + f"feed_forward.{role}.weight", gg + ggname + ".weight", s, s[1], False


def values(weights, name, shape, fan_in):
    if fan_in == 0:
        return np.ones(shape, np.float32)
    if fan_in == -1:
        return np.zeros(shape, np.float32)
    return weights.normal(name, shape, fan_in)


def to_bf16(x):
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_config(shape, folder):
    layers, attention, hidden, width, heads, kv_heads, experts, used, expert_width, dense = SHAPES[shape]
    config = {
        "architectures": ["Lfm2MoeForCausalLM" if experts else "Lfm2ForCausalLM"], "model_type": "lfm2_moe" if experts else "lfm2",
        "vocab_size": VOCAB, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "layer_types": ["full_attention" if i in attention else "conv" for i in range(layers)], "intermediate_size": width,
        "conv_L_cache": TAPS, "conv_bias": False, "norm_eps": 1e-5, "rope_theta": 1000000.0, "max_position_embeddings": 128000,
        "tie_embedding": True, "bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0, "torch_dtype": "bfloat16",
    }
    if experts:
        config |= {"num_experts": experts, "num_experts_per_tok": used, "moe_intermediate_size": expert_width, "num_dense_layers": dense,
                   "use_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 1.0}
    else:
        config |= {"block_auto_adjust_ff_dim": False, "block_ff_dim": width, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def write_hf(shape, folder):
    write_config(shape, folder)
    weights, header, offset, plan = Weights(1), {}, 0, []
    for name, _, s, fan_in, is_vector in tensors(shape):
        is_f32 = name.endswith("expert_bias")
        parts = [(name.format(e=e), s[1:], e) for e in range(s[0])] if "{e}" in name else [(name, s, None)]
        for part, part_shape, e in parts:
            n = int(np.prod(part_shape)) * (4 if is_f32 else 2)
            header[part] = {"dtype": "F32" if is_f32 else "BF16", "shape": list(part_shape), "data_offsets": [offset, offset + n]}
            offset += n
            plan.append((part, part_shape, fan_in, is_f32))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = folder / "model.safetensors.part"
    with open(partial, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for part, part_shape, fan_in, is_f32 in plan:
            v = values(weights, part, part_shape, fan_in)
            f.write((v if is_f32 else to_bf16(v)).tobytes())
    partial.rename(folder / "model.safetensors")


MIXES = {"f16": "F16", "bf16": "BF16", "q4_0": "Q4_0", "q8_0": "Q8_0", "q6_k": "Q6_K", "q4_k_m": "Q4_K", "q5_k_m": "Q5_K"}
FILE_TYPES = {"f16": 1, "bf16": 32, "q4_0": 2, "q8_0": 7, "q6_k": 18, "q4_k_m": 15, "q5_k_m": 17}


def type_of(mix, name, layers, attention, is_vector):
    """The type of a tensor in a mix: llama.cpp's rules for tied embeddings and for what _M files keep more bits of."""
    if is_vector:
        return "F32"
    if name == "token_embd.weight" and mix.startswith("q"):
        return "Q8_0" if mix == "q8_0" else "Q6_K"
    if mix.endswith("_m") and ("attn_v" in name or "ffn_down" in name):
        i, n = int(name.split(".")[1]), layers
        if "attn_v" in name:
            i, n = attention.index(i), len(attention)
        if i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2:
            return "Q6_K"
    return MIXES[mix]


def random_blocks(rng, kind, n_rows, cols):
    """[n_rows, bytes of a row] of blocks whose values have mean 0 and standard deviation about 1/sqrt(cols)."""
    std, half = 1 / np.sqrt(cols), lambda x: np.frombuffer(np.float16(x).tobytes(), np.uint8)
    values, size = {"Q4_0": (32, 18), "Q8_0": (32, 34), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210)}[kind]
    blocks = rng.integers(0, 256, (n_rows * cols // values, size), dtype=np.uint8)
    if kind == "Q4_0":
        quants = blocks[:, 2:]
        quants[(quants & 15) == 0] |= 8  # -8 has no counterpart above
        quants[quants < 16] |= 128
        blocks[:, :2] = half(std / 4.3)
    elif kind == "Q8_0":
        quants = blocks[:, 2:].view(np.int8)
        quants[quants == -128] = 0
        blocks[:, :2] = half(std / 73.3)
    elif kind in ("Q4_K", "Q5_K"):  # all sub-scales 30, all minima 60: value = 30 d q - 60 dmin
        top = 15 if kind == "Q4_K" else 31
        d = std / (30 * np.sqrt(((top + 1) ** 2 - 1) / 12))
        blocks[:, :2], blocks[:, 2:4] = half(d), half(np.float16(d) * 30 * top / 2 / 60)
        blocks[:, 4:8], blocks[:, 8:12] = 30 | (30 >> 4) << 6, 60 | (60 >> 4) << 6
        blocks[:, 12:16] = (30 & 15) | (60 & 15) << 4
    else:
        blocks[:, 192:208] = 64
        blocks[:, 208:] = half(std / (64 * 18.5))
    return blocks.reshape(n_rows, -1)


def gguf_tensor(weights, name, shape, fan_in, kind):
    """One tensor (an expert of a stack) as bytes."""
    if kind in ("F32", "F16", "BF16"):
        v = values(weights, name, shape, fan_in)
        return v if kind == "F32" else to_bf16(v) if kind == "BF16" else v.astype(np.float16)
    return random_blocks(np.random.Generator(np.random.SFC64(hash_name(name))), kind, int(np.prod(shape[:-1])), shape[-1])


def write_gguf(shape, path, mix):
    import gguf

    layers, attention, hidden, width, heads, kv_heads, experts, used, expert_width, dense = SHAPES[shape]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    arch = "lfm2moe" if experts else "lfm2"
    w = gguf.GGUFWriter(str(partial), arch)
    w.add_name(f"random {shape}")
    w.add_block_count(layers)
    w.add_context_length(128000)
    w.add_embedding_length(hidden)
    w.add_feed_forward_length(width)
    w.add_head_count(heads)
    w.add_head_count_kv([kv_heads if i in attention else 0 for i in range(layers)])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(1000000.0)
    w.add_vocab_size(VOCAB)
    w.add_uint32(f"{arch}.shortconv.l_cache", TAPS)
    if experts:
        w.add_expert_count(experts)
        w.add_expert_used_count(used)
        w.add_expert_feed_forward_length(expert_width)
        w.add_leading_dense_block_count(dense)
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    w.add_file_type(FILE_TYPES[mix])
    w.add_string("tokenizer.ggml.model", "none")
    weights = Weights(1)
    plan = []
    for name, gg, s, fan_in, is_vector in tensors(shape):
        s = (s[0], s[2]) if gg.endswith("shortconv.conv.weight") else s
        kind = type_of(mix, gg, layers, attention, is_vector)
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        raw = (*s[:-1], s[-1] // block * size) if kind not in ("F32", "F16") else s  # the writer takes the shape in bytes for these
        dtype = np.dtype({"F32": np.float32, "F16": np.float16}.get(kind, np.uint8))
        w.add_tensor_info(gg, raw, dtype, int(np.prod(s)) // block * size, raw_dtype=gguf.GGMLQuantizationType[kind])
        plan.append((name, s, fan_in, kind))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    for name, s, fan_in, kind in plan:
        if "{e}" in name:
            w.write_tensor_data(np.stack([gguf_tensor(weights, name.format(e=e), s[1:], fan_in, kind) for e in range(s[0])]))
        else:
            w.write_tensor_data(gguf_tensor(weights, name, s, fan_in, kind))
    w.close()
    partial.rename(path)


def ensure(shape, kind, cache):
    """The checkpoint's path, written first if it is not there."""
    if kind == "config":
        write_config(shape, cache / "models" / f"{shape}-config")
        return cache / "models" / f"{shape}-config"
    path = cache / "models" / (f"{shape}-bf16" if kind == "bf16" else f"{shape}-{kind[5:]}.gguf")
    done = path / "model.safetensors" if kind == "bf16" else path
    if not done.exists():
        print(f"writing {path}", file=sys.stderr)
        if kind == "bf16":
            write_hf(shape, path)
        else:
            write_gguf(shape, path, kind[5:])
    return path


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in SHAPES or sys.argv[2] not in ("bf16", "config", *(f"gguf-{m}" for m in MIXES)):
        sys.exit(__doc__)
    print(ensure(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])))
