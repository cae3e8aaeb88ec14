#!/usr/bin/env python3
"""Blocks of values and what the gguf package (0.19.0) makes of them in the types whose rounding is a rule.

    make_quantize.py [OUT_DIR]

Writes values.bin (float32, 96 blocks of 32) and TYPE.bin (the same blocks quantised); little endian. Needs numpy and gguf.
The blocks: zeros, constants, one value alone, ramps full of ties, the same magnitude with both signs, tiny values whose scale
is a subnormal half or none, large ones at the end of fp16, then uniform, normal and heavy-tailed values of many sizes.
"""
import os, sys
import numpy as np, gguf

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(20261122)
ramp = np.arange(32, dtype=np.float32)
alone = np.zeros(32, np.float32)
alone[17] = -0.37
blocks = [0 * ramp, 0 * ramp + 1, 0 * ramp - 0.3, alone, -alone, ramp, -ramp, ramp - 15.5, ramp - 16, (ramp - 16) / 2, ramp * 8 - 127,
          ramp * 4 - 63.5, np.where(ramp % 2, 5, -5), np.where(ramp % 2, -5, 5), ramp * 2**-24, (ramp - 15) * 2**-26, (ramp - 9) * 2**-40,
          (ramp - 20) * 2**-120, ramp * 2**-124, (ramp - 16) * 2.0**11, ramp * 2.0**10, 1000 + ramp / 64]
while len(blocks) < 96:
    size = 10 ** rng.uniform(-6, 2)
    kind = len(blocks) % 3
    blocks.append(size * (rng.uniform(-1, 1, 32) if kind == 0 else rng.normal(size=32) if kind == 1 else rng.standard_t(3, 32)))
values = np.stack(blocks).astype(np.float32)
values.tofile(os.path.join(OUT, "values.bin"))
for name in "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0":
    with np.errstate(all="ignore"):
        gguf.quantize(values, gguf.GGMLQuantizationType[name]).tofile(os.path.join(OUT, name.lower() + ".bin"))
