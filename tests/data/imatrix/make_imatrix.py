#!/usr/bin/env python3
"""Small importance matrices in both forms, and the mean squares that follow from them.

    make_imatrix.py [OUT_DIR]

small.gguf is written with the gguf package (0.19.0), keys and tensors as llama-imatrix writes them; small.dat has the older
form. expected.bin: float32 mean squares, tensor by tensor in the order below, of small.gguf; they follow csrc/convert/imatrix.h.
Needs numpy and gguf.
"""
import os, struct, sys
import numpy as np, gguf

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
PRIOR = 32
rng = np.random.default_rng(5)
# name: rows that reached each expert, columns
TENSORS = {"blk.0.shortconv.in_proj.weight": ([1000], 12), "blk.0.shortconv.out_proj.weight": ([1000], 4),
           "blk.1.attn_q.weight": ([1000], 4), "blk.2.ffn_down_exps.weight": ([1500, 0, 5, 495], 6),
           "blk.3.ffn_up_exps.weight": ([0, 0], 3)}
sums = {}
for name, (counts, columns) in TENSORS.items():
    counts = np.array(counts, np.float32)
    squares = rng.gamma(0.5, 2.0, (len(counts), columns)) * rng.gamma(1.0, 1.0, (len(counts), 1))
    sums[name] = (squares * counts[:, None]).astype(np.float32), counts
sums["blk.2.ffn_down_exps.weight"][0][2, 1] = 0  # a column that was silent in the few rows of this expert

writer = gguf.GGUFWriter(os.path.join(OUT, "small.gguf"), "", use_temp_file=False)
writer.kv_data[0].clear()  # an imatrix has no general.architecture
writer.add_string("general.type", "imatrix")
writer.add_array("imatrix.datasets", ["first.txt", "second text.txt"])
writer.add_uint32("imatrix.chunk_count", 4)
writer.add_uint32("imatrix.chunk_size", 512)
for name, (values, counts) in sums.items():
    writer.add_tensor(name + ".in_sum2", values if len(values) > 1 else values[0])
    writer.add_tensor(name + ".counts", counts[:, None] if len(counts) > 1 else counts)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

expected = []
for values, counts in sums.values():
    values, counts = values.astype(np.float64), counts.astype(np.float64)[:, None]
    if len(counts) == 1:
        expected.append(values / counts)
    elif not counts.any():
        expected.append(np.ones_like(values))
    else:
        mean = values.sum(0) / counts.sum()
        size = np.divide(values.sum(1, keepdims=True), counts, out=np.zeros_like(counts), where=counts > 0)
        scale = np.where(size > 0, size / mean.sum(), 1)
        expected.append((values + PRIOR * scale * mean) / (counts + PRIOR))
np.concatenate([e.reshape(-1) for e in expected]).astype(np.float32).tofile(os.path.join(OUT, "expected.bin"))

calls = 4
with open(os.path.join(OUT, "small.dat"), "wb") as f:
    f.write(struct.pack("<i", len(sums)))
    for name, (values, counts) in sums.items():
        seen = counts[:, None] > 0
        means = np.where(seen, values / np.where(seen, counts[:, None], 1), 1)
        f.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, means.size))
        f.write((means * calls).astype("<f4").tobytes())
    f.write(struct.pack("<ii", calls, 9) + b"first.txt")
