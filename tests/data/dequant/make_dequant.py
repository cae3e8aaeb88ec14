#!/usr/bin/env python3
"""Blocks of every weight type with the values that the gguf package (0.19.0) reads from them.

    make_dequant.py [OUT_DIR]

Writes TYPE.bin: u32 blocks, u32 values a block, u32 bytes a block, the blocks, then the values as float32; all little endian.
Needs numpy and gguf. The blocks: all bits zero, all bits one, the largest finite scales, the smallest subnormal ones,
infinite ones, negative ones, zero scales with random quants, then random bytes with scales of a usual size, then random bytes.
Of types in blocks come last, for each special scale, a block with all other bits one and one with all other bits zero: the
largest and the smallest values that there are.
"""
import os, sys
import numpy as np, gguf

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
# type: offsets of its half-precision scales within a block
SCALES = {"F32": [], "F16": [0], "BF16": [], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
SPECIAL = [0x7BFF, 0x0001, 0x7C00, 0xFC00, 0xFBFF, 0x8001, 0x0000, 0x8000, 0x03FF, 0x0400]

for name, at in SCALES.items():
    kind = gguf.GGMLQuantizationType[name]
    n_values, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(20260000 + int(kind))
    n = 1024 if n_values == 1 else 48 if n_values == 32 else 24
    blocks = rng.integers(0, 256, (n, n_bytes), dtype=np.uint8)
    blocks[0], blocks[1] = 0, 255
    for i, half in enumerate(SPECIAL):
        for k, offset in enumerate(at):
            # the second scale takes another special value, so that both are met alone and together
            blocks[2 + i, offset:offset + 2] = np.frombuffer(np.uint16(half if k == 0 else SPECIAL[(i * 3) % 10]).tobytes(), np.uint8)
    if n_values > 1:
        usual = slice(2 + len(SPECIAL), 2 + len(SPECIAL) + (n - 12) // 2)
        for offset in at:
            scales = rng.uniform(-0.05, 0.05, usual.stop - usual.start).astype(np.float16)
            blocks[usual, offset:offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    if n_values > 1:
        extreme = np.repeat(np.array([[255], [0]], np.uint8), n_bytes, axis=1)
        extreme = np.tile(extreme, (len(SPECIAL), 1))
        for i, half in enumerate(SPECIAL):
            for offset in at:
                extreme[2 * i:2 * i + 2, offset:offset + 2] = np.frombuffer(np.uint16(half).tobytes(), np.uint8)
        blocks = np.concatenate([blocks, extreme])
        n = len(blocks)
    with np.errstate(all="ignore"):
        if n_values == 1:
            flat = blocks.reshape(-1)
            values = {"F32": lambda: flat.view(np.float32), "F16": lambda: flat.view(np.float16).astype(np.float32),
                      "BF16": lambda: gguf.dequantize(blocks.reshape(1, -1), kind).reshape(-1)}[name]()
        else:
            values = gguf.dequantize(blocks, kind).reshape(-1)
    with open(os.path.join(OUT, name.lower() + ".bin"), "wb") as f:
        f.write(np.array([n, n_values, n_bytes], np.uint32).tobytes() + blocks.tobytes() + values.astype(np.float32).tobytes())
    print(name, n, "blocks")
