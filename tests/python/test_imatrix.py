"""`headrace imatrix`: sums of squares of every matrix's input, against a numpy forward pass that shares no code with headrace."""
import json
import os
import shutil
import subprocess
import sys

import gguf
import numpy
import pytest

OK, FAILURE, USAGE = 0, 1, 2


@pytest.fixture
def cli(headrace, tmp_path):
    plain = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}

    def call(*arguments):
        return subprocess.run([str(headrace), *map(str, arguments)], env=plain, text=True, timeout=120, capture_output=True, cwd=tmp_path)
    return call


def refused(ended, code, *words):
    assert (ended.returncode, ended.stdout) == (code, ""), ended
    for word in words:
        assert word in ended.stderr, ended.stderr


def read(path):
    """(facts, {name: (sums [experts, columns], counts [experts])}) of an imatrix file."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: t.data.astype(numpy.float64) for t in reader.tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    assert len(tensors) == 2 * len(names)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    return facts, {name: (tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"].reshape(-1)) for name in names}


class Watched(numpy.ndarray):
    """A weight that notes the squares of whatever is multiplied with it."""

    def __array_finalize__(self, other):
        self.name, self.seen = getattr(other, "name", None), getattr(other, "seen", None)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [i.view(numpy.ndarray) if isinstance(i, Watched) else i for i in inputs]
        if ufunc is numpy.matmul:
            sums, count = self.seen.get(self.name, (0, 0))
            self.seen[self.name] = (sums + (plain[0] ** 2).sum(0), count + len(plain[0]))
        return getattr(ufunc, method)(*plain, **kwargs)


GGUF_NAMES = {"conv.in_proj": "shortconv.in_proj", "conv.out_proj": "shortconv.out_proj", "self_attn.q_proj": "attn_q",
              "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_output",
              "feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up", "feed_forward.w2": "ffn_down"}


def weights_of(path):
    """{name: float64} of a safetensors file, by its own header: numpy has no bfloat16."""
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    out = {}
    for name, entry in json.loads(raw[8:8 + n]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        data = raw[8 + n + begin:8 + n + end]
        if entry["dtype"] == "BF16":
            values = (numpy.frombuffer(data, numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
        else:
            values = numpy.frombuffer(data, numpy.float32)
        out[name] = values.astype(numpy.float64).reshape(entry["shape"])
    return out


def slow_sums(source_dir, folder, windows):
    """The same from reference.py: {GGUF name: (sums [experts, columns], counts [experts])}."""
    sys.path.insert(0, str(source_dir / "tests/data/goldens"))
    from reference import Reference
    config, seen = json.loads((folder / "config.json").read_text()), {}
    model = Reference(config, weights_of(folder / "model.safetensors"))
    for name in model.w:
        model.w[name] = model.w[name].view(Watched)
        model.w[name].name, model.w[name].seen = name, seen
    for ids in windows:
        model.forward(ids)
    out = {"token_embd.weight": seen["model.embed_tokens.weight"]}
    for name, sums in seen.items():
        parts = name.split(".")
        if "experts" in parts:
            matrix = GGUF_NAMES["feed_forward." + parts[6]]
            out.setdefault(f"blk.{parts[2]}.{matrix}_exps.weight", {})[int(parts[5])] = sums
        elif parts[1] == "layers" and ".".join(parts[3:5]) in GGUF_NAMES:
            out[f"blk.{parts[2]}.{GGUF_NAMES['.'.join(parts[3:5])]}.weight"] = sums
    for name, entry in out.items():
        experts = [entry.get(e, (None, 0)) for e in range(config["num_experts"])] if isinstance(entry, dict) else [entry]
        width = max(len(sums) for sums, _ in experts if sums is not None)
        out[name] = (numpy.array([numpy.zeros(width) if sums is None else sums for sums, _ in experts]), numpy.array([n for _, n in experts]))
    return out


@pytest.fixture
def text(tiny, tmp_path):
    """The beginning of the evaluation text, as a file and as its ids."""
    path = tmp_path / "text.txt"
    path.write_text((tiny / "eval.txt").read_text()[:2400])
    return path


def ids_of(cli, text):
    ended = cli("tokenize", "tiny", text.read_text(), "--json")
    return json.loads(ended.stdout)["tokens"]


def test_sums_are_those_of_a_slow_forward_pass(cli, tiny, text, source_dir, tmp_path):
    ended = cli("imatrix", "tiny", text, "--out", "out.gguf", "--window", "200", "--chunk", "64", "--exact")
    assert ended.returncode == OK and ended.stdout == "", ended
    ids = ids_of(cli, text)
    windows = [[1, *ids[at:at + 199]] for at in range(0, len(ids), 199)]
    assert len(windows) > 2 and len(windows[-1]) < 200
    facts, got = read(tmp_path / "out.gguf")
    wanted = slow_sums(source_dir, tiny, windows)
    assert facts["general.type"] == "imatrix" and facts["imatrix.datasets"] == ["text.txt"]
    assert (facts["imatrix.chunk_count"], facts["imatrix.chunk_size"]) == (len(windows), 200)
    assert sorted(got) == sorted(wanted)
    for name, (sums, counts) in wanted.items():
        assert got[name][1] == pytest.approx(counts), name
        assert got[name][0].shape == sums.shape
        assert numpy.abs(got[name][0] - sums).max() <= 1e-4 * sums.max(), name
        assert got[name][0] == pytest.approx(sums, rel=5e-3, abs=1e-6 * sums.max()), name


def test_chunks_and_threads_change_nothing_and_the_fast_path_little(cli, text, tmp_path):
    def run(name, *more):
        assert cli("imatrix", "tiny", text, "--out", name, "--window", "300", *more).returncode == OK
        return (tmp_path / name).read_bytes(), read(tmp_path / name)[1]
    whole, fast = run("a.gguf")
    assert run("b.gguf", "--chunk", "17", "--threads", "1")[0] == whole
    _, exact = run("c.gguf", "--exact")
    for name, (sums, counts) in exact.items():
        assert counts.sum() == fast[name][1].sum() and (abs(counts - fast[name][1]) <= 3).all()
        if len(counts) == 1:  # a row more or less moves an expert's sums by a row
            assert numpy.abs(fast[name][0] - sums).max() <= 0.02 * sums.max()


def test_every_quantised_matrix_of_a_converted_file_has_its_sums(cli, text, tmp_path):
    assert cli("imatrix", "tiny", text, "--out", "tiny.imatrix").returncode == OK
    assert cli("convert", "tiny", "plain.gguf", "--type", "q4_k_m").returncode == OK
    assert cli("convert", "tiny", "weighed.gguf", "--type", "q4_k_m", "--imatrix", "tiny.imatrix").returncode == OK
    _, sums = read(tmp_path / "tiny.imatrix")
    plain, weighed = ({t.name: t for t in gguf.GGUFReader(tmp_path / name).tensors} for name in ("plain.gguf", "weighed.gguf"))
    quantised = {name for name, t in plain.items() if t.tensor_type not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)}
    assert quantised == set(sums)
    for name in quantised:
        experts = plain[name].shape[2] if len(plain[name].shape) == 3 else 1
        assert sums[name][0].shape == (experts, plain[name].shape[0])
    assert sum((plain[name].data != weighed[name].data).any() for name in quantised) == len(quantised)


def test_experts_that_were_never_chosen_are_told(cli, tmp_path):
    (tmp_path / "word").write_text("a")
    ended = cli("imatrix", "tiny", "word", "--out", "out.gguf")
    assert ended.returncode == OK and "2 rows in 1 window; of 32 experts" in ended.stderr and "the rarest had 0 rows" in ended.stderr
    _, sums = read(tmp_path / "out.gguf")
    assert all(counts.sum() == (4 if "_exps" in name else 2) for name, (_, counts) in sums.items())
    assert cli("imatrix", "tiny", "word", "--out", "out.gguf", "--quiet").stderr == ""


def test_what_cannot_be_done_is_refused_and_leaves_nothing(cli, source_dir, tmp_path):
    (tmp_path / "empty").write_text("")
    (tmp_path / "text").write_text("a b c")
    refused(cli("imatrix", "tiny", "text"), USAGE, "--out")
    refused(cli("imatrix", "tiny", "--out", "x"), USAGE, "text file")
    refused(cli("imatrix", "tiny", "empty", "--out", "x"), USAGE, "empty", "no token")
    refused(cli("imatrix", "tiny", "absent", "--out", "x"), FAILURE, "absent")
    refused(cli("imatrix", "tiny", "text", "--out", "nowhere/x"), FAILURE, "nowhere/x")
    refused(cli("imatrix", "tiny", "text", "--out", tmp_path), FAILURE, "not an ordinary file")
    for window in ("1", "5000"):
        refused(cli("imatrix", "tiny", "text", "--out", "x", "--window", window), USAGE, "--window")
    gguf_file = source_dir / "tests/data/goldens/gguf/dense_tiny-q4_0.gguf"
    refused(cli("imatrix", gguf_file, "text", "--out", "x"), FAILURE, "has no tokenizer")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "text"]


def test_model_and_text_are_never_written_over(cli, tiny, tmp_path):
    (tmp_path / "text").write_text("a b c")
    shutil.copytree(tiny, tmp_path / "folder")
    assert cli("convert", "tiny", "m.gguf", "--type", "q8_0").returncode == OK
    os.link(tmp_path / "m.gguf", tmp_path / "hard.gguf")
    (tmp_path / "link").symlink_to("text")
    (tmp_path / "to-it").symlink_to("folder/tokenizer.json")
    os.link(tmp_path / "folder/config.json", tmp_path / "hard.json")
    before = {p: p.read_bytes() for p in tmp_path.glob("**/*") if p.is_file()}
    for model, out, words in [("m.gguf", "m.gguf", "which is read"), ("m.gguf", "hard.gguf", "which is read"), ("tiny", "text", "which is read"),
                              ("tiny", "link", "which is read"), ("folder", "folder/model.safetensors", "model's folder"),
                              ("folder", "folder/tokenizer.json", "model's folder"), ("folder", "to-it", "model's folder"),
                              ("folder", "hard.json", "model's folder")]:
        refused(cli("imatrix", model, "text", "--out", out, "--window", "64"), USAGE, out, words)
        if out not in ("text", "link"):  # said before the text is looked for, let alone run
            refused(cli("imatrix", model, "absent", "--out", out), USAGE, out, words)
    refused(cli("imatrix", "--model", "folder", "text", "--out", "folder/tokenizer.json"), USAGE, "model's folder")
    assert {p: p.read_bytes() for p in tmp_path.glob("**/*") if p.is_file()} == before


def test_special_tokens_of_a_rendered_conversation_are_run_as_such(cli, tmp_path):
    (tmp_path / "chat").write_text("<|im_start|>user\nHello!<|im_end|>\n")
    n = {flag: json.loads(cli("tokenize", "tiny", (tmp_path / "chat").read_text(), "--json", *flag).stdout)["count"] for flag in ((), ("--special",))}
    assert n[("--special",)] < n[()]
    for flag, count in n.items():
        assert cli("imatrix", "tiny", "chat", "--out", "out", *flag).returncode == OK
        assert read(tmp_path / "out")[1]["blk.0.ffn_down.weight"][1] == [count + 1]
        assert json.loads(cli("score", "tiny", "chat", "--json", *flag).stdout)["tokens"] == count


def test_a_gpu_shows_what_the_cpu_shows(cli, build_dir, tmp_path):
    """On the emulated CUDA backend: the same rows for every matrix and expert, sums within what bf16 explains."""
    (tmp_path / "text").write_text("The quick brown fox")
    assert cli("imatrix", "tiny", "text", "--out", "cpu", "--exact").returncode == OK
    subprocess.run([build_dir / "bin" / "headrace_emulated", "imatrix", "tiny", "text", "--out", "gpu", "--device", "cuda"], check=True,
                   cwd=tmp_path, timeout=120, capture_output=True)
    cpu, gpu = read(tmp_path / "cpu")[1], read(tmp_path / "gpu")[1]
    assert sorted(cpu) == sorted(gpu)
    for name, (sums, counts) in cpu.items():
        assert (gpu[name][1] == counts).all() and numpy.abs(gpu[name][0] - sums).max() <= 0.05 * sums.max(), name
