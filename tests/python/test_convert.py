"""`headrace convert`: what the files hold, compared with the gguf package and with files made by llama.cpp's own tools, and
what is left of a conversion that could not end."""
import json
import os
import pathlib
import pty
import resource
import shutil
import signal
import subprocess
import sys
import time

import gguf
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from test_tokenizer import lfm2  # noqa: F401  (a fixture: the real tokenizer.json)

OK, FAILURE, USAGE, MODEL = 0, 1, 2, 3
FLOATS = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


@pytest.fixture
def run(headrace, tmp_path):
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("HEADRACE_", "HF_", "HUGGINGFACE_", "XDG_CACHE"))}

    def call(*arguments, env=None, **more):
        return subprocess.run([str(headrace), *map(str, arguments)], env={**plain, **(env or {})}, text=True, timeout=120, capture_output=True, cwd=tmp_path, **more)
    return call


@pytest.fixture
def convert(run, tmp_path):
    """convert(source, type, options…): the path of the file made."""
    def call(source, kind, *options, name=None):
        out = tmp_path / (name or f"{pathlib.Path(source).name}-{kind}.gguf")
        ended = run("convert", source, out, "--type", kind, "--quiet", *options)
        assert (ended.returncode, ended.stderr) == (OK, ""), ended
        return out
    return call


@pytest.fixture(scope="session")
def goldens(source_dir):
    return source_dir / "tests" / "data" / "goldens"


def entries(path):
    """Every key with its types and value."""
    return {k: ([t.name for t in f.types], f.contents()) for k, f in gguf.GGUFReader(path).fields.items() if not k.startswith("GGUF.")}


def tensors(path):
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def kinds(path):
    return {name: t.tensor_type.name for name, t in tensors(path).items()}


def folder_like(source, place, **files):
    """A folder with links to the files of another one, except those given: bytes or JSON; None leaves a file out."""
    place.mkdir()
    for path in source.iterdir():
        if path.suffix in (".json", ".safetensors", ".jinja", ".md") and path.name not in files:
            (place / path.name).symlink_to(path)
    for name, content in files.items():
        if content is not None:
            (place / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return place


def read_safetensors(path):
    """name: (dtype, shape, bytes), in the file's order."""
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8:8 + n])
    head.pop("__metadata__", None)
    return {k: (v["dtype"], v["shape"], raw[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]]) for k, v in head.items()}


def write_safetensors(path, items):
    head, at = {}, 0
    for name, (dtype, shape, data) in items.items():
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in items.values()))
    return path


def values(dtype, data):
    """A tensor's bytes as float32."""
    raw = np.frombuffer(data, FLOATS[dtype])
    return (raw.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else raw.astype(np.float32)


# ---------------------------------------------------------------- metadata

def expected_tokens(folder, rows):
    """Tokens and types by the rules of llama.cpp's converter, from the tokenizers package's view of the file."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    by_id = {i: t for t, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    added = tokenizer.get_added_tokens_decoder()
    texts, types = [], []
    for i in range(rows):
        texts.append(by_id.get(i, f"[PAD{i}]"))
        special = i in added and (added[i].special or (texts[-1].startswith("<|") and texts[-1].endswith("|>")))
        types.append(5 if i not in by_id else 1 if i not in added else 3 if special else 4)
    return texts, types


def write_expected(folder, path, total, shared, experts, file_type):
    """The metadata of a folder as the gguf package's writer, metadata and vocabulary classes put them."""
    config = json.loads((folder / "config.json").read_text())
    moe = "num_experts" in config
    w = gguf.GGUFWriter(None, "lfm2moe" if moe else "lfm2")
    w.add_type(gguf.GGUFType.MODEL)
    meta = gguf.Metadata.load(None, folder, None, total)
    generation = json.loads((folder / "generation_config.json").read_text())
    if meta.sampling_penalty_repeat is None:  # newer versions of the package take it from there, too
        meta.sampling_penalty_repeat = generation.get("repetition_penalty")
    meta.size_label = meta.size_label or gguf.size_label(total, shared, experts, config.get("num_experts", 0))
    meta.set_gguf_meta_model(w)
    w.add_block_count(config["num_hidden_layers"])
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_head_count_kv([0 if kind == "conv" else config["num_key_value_heads"] for kind in config["layer_types"]])
    w.add_rope_freq_base(config["rope_theta"])
    w.add_layer_norm_rms_eps(config["norm_eps"])
    w.add_vocab_size(config["vocab_size"])
    w.add_shortconv_l_cache(config["conv_L_cache"])
    w.add_file_type(file_type)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if moe:
        w.add_expert_count(config["num_experts"])
        w.add_expert_used_count(config["num_experts_per_tok"])
        w.add_expert_feed_forward_length(config["moe_intermediate_size"])
        w.add_leading_dense_block_count(config["num_dense_layers"])
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    texts, types = expected_tokens(folder, config["vocab_size"])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("lfm2")
    w.add_token_list(texts)
    w.add_token_types(types)
    gguf.SpecialVocab(folder, load_merges=True).add_to_gguf(w, quiet=True)
    w.add_tensor("x", np.zeros(1, np.float32))
    w.write_header_to_file(path)
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return entries(path)


def count_parameters(path):
    """In all, outside the experts, in one expert of each stack."""
    shapes = {name: [int(n) for n in t.shape] for name, t in tensors(path).items()}
    total = sum(np.prod(s) for s in shapes.values())
    stacked = {n: s for n, s in shapes.items() if "_exps" in n}
    experts = sum(np.prod(s) // s[-1] for s in stacked.values())
    return int(total), int(total - sum(np.prod(s) for s in stacked.values())), int(experts)


def test_metadata_are_what_the_gguf_package_writes(convert, tiny, tmp_path):
    made = convert(tiny, "q8_0")
    wanted = write_expected(tiny, tmp_path / "wanted.gguf", *count_parameters(made), gguf.LlamaFileType.MOSTLY_Q8_0)
    found = entries(made)
    assert sorted(found) == sorted(wanted)
    assert found == wanted


CARD = """---
license: other
license_name: lfm1.0
license_link: LICENSE
language:
- en
- ja
tags:
- liquid
- "edge"
pipeline_tag: text-generation
base_model:
- LiquidAI/LFM2-350M
- https://huggingface.co/Other-Org/thing-7b-v2
datasets: someone/set-one
---
# A card
"""


def test_a_model_of_the_hub_cache_has_its_name(run, tiny, tmp_path):
    folder = tmp_path / "hub" / "models--LiquidAI--LFM2-9M" / "snapshots"
    folder.mkdir(parents=True)
    folder_like(tiny, folder / "0123abcd")
    (folder.parent / "refs").mkdir()
    (folder.parent / "refs" / "main").write_text("0123abcd")
    env = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    ended = run("convert", "--hf", "LiquidAI/LFM2-9M", "--type", "f16", env=env)
    assert ended.returncode == USAGE and "OUT.gguf" in ended.stderr, ended
    assert run("convert", "--hf", "LiquidAI/LFM2-9M", tmp_path / "x.gguf", "--type", "f16", env=env).returncode == OK
    found = entries(tmp_path / "x.gguf")
    assert [found[f"general.{k}"][1] for k in ("name", "organization", "basename", "size_label")] == ["LFM2 9M", "LiquidAI", "LFM2", "9M"]


def test_a_model_card_and_a_telling_name(convert, tiny, tmp_path):
    folder = folder_like(tiny, tmp_path / "Headrace-9M-Chat-v2", **{"README.md": CARD.encode()})
    made = convert(folder, "f16")
    wanted = write_expected(folder, tmp_path / "wanted.gguf", *count_parameters(made), gguf.LlamaFileType.MOSTLY_F16)
    found = entries(made)
    assert found == wanted
    assert found["general.name"][1] == "Headrace 9M Chat v2" and found["general.license.name"][1] == "lfm1.0"
    assert found["general.base_model.1.organization"][1] == "Other Org"


def test_the_real_vocabulary(convert, run, lfm2, goldens, source_dir, tmp_path):
    config = json.loads((goldens / "dense_tiny" / "config.json").read_text()) | {"vocab_size": 65536}
    weights = read_safetensors(goldens / "dense_tiny" / "model.safetensors")
    weights["model.embed_tokens.weight"] = ("BF16", [65536, 64], bytes(65536 * 64 * 2))
    folder = tmp_path / "real"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(lfm2, folder / "tokenizer.json")
    shutil.copy(lfm2.parent / "chat_template.jinja", folder)
    made = convert(folder, "q8_0")
    found = entries(made)
    texts, types = expected_tokens(folder, 65536)
    assert found["tokenizer.ggml.tokens"][1] == texts and found["tokenizer.ggml.token_type"][1] == types
    assert [types[i] for i in (1, 7, 14, 15, 64011, 64014, 64400, 65535)] == [3, 3, 1, 1, 4, 4, 5, 5]
    merges = json.loads(lfm2.read_text())["model"]["merges"]
    assert found["tokenizer.ggml.merges"][1] == [m if isinstance(m, str) else " ".join(m) for m in merges]
    assert found["tokenizer.chat_template"][1] == (folder / "chat_template.jinja").read_text()
    assert [found[f"tokenizer.ggml.{k}"][1] for k in ("bos_token_id", "eos_token_id", "padding_token_id", "add_bos_token")] == [1, 7, 0, True]
    text = "\n".join(c["text"] for c in json.loads((source_dir / "tests/data/tokenizer_cases.json").read_text())["cases"] if "\0" not in c["text"])
    for options in ([], ["--special"], ["--bos"]):
        assert run("tokenize", made, *options, input=text).stdout == run("tokenize", folder, *options, input=text).stdout != ""


def test_the_embedded_model_reads_and_answers_alike(convert, run, tiny, source_dir):
    made = convert("tiny", "bf16", name="t.gguf")
    text = (source_dir / "csrc/embedded/tiny/eval.txt").read_text()[:20000] + " <|im_start|> é日本 \u0301 🙂"
    for options in ([], ["--special", "--bos"]):
        assert run("tokenize", made, *options, input=text).stdout == run("tokenize", tiny, *options, input=text).stdout != ""
    chat = ["run", "--temperature", "0", "--max-tokens", "40"]
    assert run(*chat, made, "Who are you?").stdout == run(*chat, tiny, "Who are you?").stdout != ""


# ---------------------------------------------------------------- where a text begins and ends

def changed(tiny, name, *without, **fields):
    """A JSON file of the embedded model with some fields others, or left out."""
    content = json.loads((tiny / name).read_text()) | fields
    return {k: v for k, v in content.items() if k not in without}


def info(run, model):
    ended = run("info", model, "--json")
    assert ended.returncode == OK, ended
    return json.loads(ended.stdout)["info"]


@pytest.mark.parametrize("config,generation,named,wanted", [
    (7, [7, 12], "<|im_end|>", {"eos": 7, "eot": 12}),   # one that only generation_config.json has
    ([7, 12], 7, None, {"eos": 7, "eot": 12}),           # a list, and no eos_token
    ([12, 7], 7, "<|im_end|>", {"eos": 7, "eot": 12}),   # the tokenizer's first, as llama.cpp's converter has it
    (7, 7, "<|endoftext|>", {"eos": 2, "eot": 7}),       # 2 does not imply 7
    ([7, 2], 7, "<|im_end|>", {"eos": 7}),               # 7 implies 2
    ([12], 12, "<|im_end|>", {"eos": 12}),               # not the tokenizer's, at which the folder does not stop
])
def test_every_id_that_ends_a_text_comes_along(run, convert, tiny, tmp_path, config, generation, named, wanted):
    folder = folder_like(tiny, tmp_path / "ends", **{
        "config.json": changed(tiny, "config.json", eos_token_id=config),
        "generation_config.json": changed(tiny, "generation_config.json", eos_token_id=generation),
        "tokenizer_config.json": changed(tiny, "tokenizer_config.json", eos_token=named)})
    made = convert(folder, "q4_0")
    found = {k.split(".")[-1].removesuffix("_token_id"): v for k, (_, v) in entries(made).items() if k.endswith(("eos_token_id", "eot_token_id"))}
    assert found == wanted
    listed = [config] if isinstance(config, int) else config
    listed += [generation] if isinstance(generation, int) else generation
    assert sorted(info(run, made)["eos_ids"]) == sorted(info(run, folder)["eos_ids"]) == sorted({*listed, *([2] if 7 in listed else [])})


def test_more_ends_than_keys_are_refused(run, tiny, tmp_path):
    folder = folder_like(tiny, tmp_path / "ends", **{"generation_config.json": changed(tiny, "generation_config.json", eos_token_id=[2, 12, 13])})
    ended = run("convert", folder, tmp_path / "x.gguf", "--type", "q4_0")
    assert ended.returncode == FAILURE and "7, 12, 13 end a text" in ended.stderr and "generation_config.json" in ended.stderr, ended
    assert not list(tmp_path.glob("x.gguf*"))


BOS, EOS = ({"SpecialToken": {"id": text, "type_id": 0}} for text in ("<|startoftext|>", "<|im_end|>"))
A, B = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))


def template(single, pair):
    return {"type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in (("<|startoftext|>", 1), ("<|im_end|>", 7))}}


@pytest.mark.parametrize("processor,without,fields,begins", [
    (None, (), {}, False),                                # a bos_token, but no text begins with it
    (None, (), {"add_bos_token": True}, False),
    (None, ("add_bos_token",), {"add_eos_token": True}, False),
    (template([A], [A, B]), ("add_bos_token",), {"add_eos_token": True, "add_sep_token": True}, False),
    (template([BOS, A], [BOS, A, EOS, B]), (), {}, True),  # a pair is nothing to a GGUF file
    (template([BOS, A], [BOS, A, B]), ("bos_token", "add_bos_token"), {}, True),  # named nowhere else, nor in config.json
])
def test_texts_begin_and_end_as_in_the_folder(run, convert, tiny, tmp_path, processor, without, fields, begins):
    folder = folder_like(tiny, tmp_path / "folder", **{
        "config.json": changed(tiny, "config.json", *(["bos_token_id"] if "bos_token" in without else [])),
        "tokenizer.json": changed(tiny, "tokenizer.json", post_processor=processor),
        "tokenizer_config.json": changed(tiny, "tokenizer_config.json", *without, **fields)})
    made, text = convert(folder, "q4_0"), "Hello you"
    wanted = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert (wanted[0] == 1) == begins
    for model in (folder, made):
        assert json.loads(run("tokenize", model, text, "--json", "--bos").stdout)["tokens"] == wanted, model
    found = entries(made)
    assert [found[f"tokenizer.ggml.add_{k}_token"] for k in ("bos", "eos", "sep")] == [(["BOOL"], begins), (["BOOL"], False), (["BOOL"], False)]
    assert found["tokenizer.ggml.bos_token_id"] == (["UINT32"], 1)


def test_an_id_that_no_file_could_name_is_refused_before_the_work(run, tiny, tmp_path):
    tokenizer = json.loads((tiny / "tokenizer.json").read_text())
    config = changed(tiny, "config.json", bos_token_id=2047)
    last = max(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    assert tokenizer["model"]["vocab"].pop(last) == 2047  # the row stays, and has no text
    tokenizer["model"]["merges"] = [m for m in tokenizer["model"]["merges"] if "".join(m if isinstance(m, list) else m.split(" ")) != last]
    tokenizer["post_processor"] = None
    folder = folder_like(tiny, tmp_path / "hole", **{"config.json": config, "tokenizer.json": tokenizer,
                                                     "tokenizer_config.json": changed(tiny, "tokenizer_config.json", "bos_token")})
    ended = run("convert", folder, tmp_path / "x.gguf", "--type", "q4_0")
    assert ended.returncode == MODEL and "bos_token_id: 2047 is not a token" in ended.stderr, ended
    assert not list(tmp_path.glob("x.gguf*"))


# ---------------------------------------------------------------- named chat templates

def named(*pairs):
    """Each template writes its own last word behind the message."""
    return [{"name": name, "template": "{% for m in messages %}<|im_start|>{{ m.content }} " + word + "{% endfor %}"} for name, word in pairs]


@pytest.mark.parametrize("given,word,keys", [
    (named(("default", "one"), ("tool_use", "two")), "one", {"tool_use": "two"}),
    (named(("tool_use", "one"), ("rag", "two")), "one", {"tool_use": "one", "rag": "two"}),                       # no default
    (named(("default", "one"), ("default", "two")), "two", {}),                                                  # a table keeps the last
    (named(("default", "one"), ("a.b", "two"), ("a b", "three"), ("c", "four")), "one", {"a_b": "three", "c": "four"}),
    (named(("x" * 63 + "1", "one"), ("x" * 63 + "2", "two")), "one", {"x" * 63: "two"}),
])
def test_named_templates(convert, make_server, tiny, tmp_path, given, word, keys):
    folder = folder_like(tiny, tmp_path / "folder", **{"chat_template.jinja": None, "tokenizer_config.json": changed(tiny, "tokenizer_config.json", chat_template=given)})
    made = convert(folder, "q4_0")
    wanted = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(f"<|im_start|>Hello {word}", add_special_tokens=False).ids
    for model in (folder, made):
        reply = make_server("--max-num-seqs", "1", model=model).post("/tokenize", {"messages": [{"role": "user", "content": "Hello"}]})
        assert reply.status == 200 and reply.json()["tokens"] == wanted, (model, reply.body)
    found = entries(made)
    texts = {k.removeprefix("tokenizer.chat_template."): v for k, (_, v) in found.items() if k.startswith("tokenizer.chat_template.")}
    assert texts == {k: named((k, w))[0]["template"] for k, w in keys.items()} and found.get("tokenizer.chat_templates", (None, []))[1] == list(keys)


# ---------------------------------------------------------------- tensors

GOLDENS = [("dense_f32", "F32"), ("dense_tiny", "F16"), ("dense_tiny", "Q8_0"), ("dense_tiny", "Q4_0"), ("moe_tiny", "Q4_0")]
# The goldens have every matrix in the one type; in the mix the embedding, and with 8 experts keys and values, have another.
IN_THE_MIX = {"token_embd.weight": "Q8_0", "attn_k.weight": "Q8_0", "attn_v.weight": "Q8_0"}


@pytest.mark.parametrize("name,kind", GOLDENS)
def test_files_equal_those_of_llama_cpp(convert, goldens, name, kind):
    made, golden = convert(goldens / name, kind.lower()), goldens / "gguf" / f"{name}-{kind.lower()}.gguf"
    ours, theirs = tensors(made), tensors(golden)
    assert sorted(ours) == sorted(theirs)
    mixed = set()
    for key, tensor in ours.items():
        assert tensor.shape.tolist() == theirs[key].shape.tolist(), key
        if tensor.tensor_type == theirs[key].tensor_type:
            assert np.array_equal(tensor.data, theirs[key].data), key
        else:
            suffix = key.split(".", 2)[-1] if key.startswith("blk.") else key
            assert tensor.tensor_type.name == IN_THE_MIX[suffix], key
            mixed.add(suffix)
    wanted = {"F32": set(), "F16": set(), "Q8_0": set(), "Q4_0": {"token_embd.weight"} | ({"attn_k.weight", "attn_v.weight"} if name == "moe_tiny" else set())}
    assert mixed == wanted[kind]
    ours, theirs = entries(made), entries(golden)
    for key in theirs:  # the golden's writer put numbers of another width, and no vocabulary
        if key != "general.name" and key != "general.file_type":
            assert ours[key][1] == theirs[key][1], key


def test_the_mixes_of_the_embedded_model(convert, tiny):
    # What llama-quantize gives it: 8 experts, so attention is larger; more bits for the first and last ffn_down.
    found = kinds(convert(tiny, "q4_k_m"))
    assert {n for n, k in found.items() if k == "Q6_K"} == {"token_embd.weight", "blk.2.ffn_down_exps.weight", "blk.5.ffn_down_exps.weight"}
    assert {n for n, k in found.items() if k == "Q8_0"} == {f"blk.{i}.attn_{x}.weight" for i in (2, 4) for x in "kv"}
    assert {n for n, k in found.items() if k == "Q5_K"} == {"blk.2.attn_output.weight", "blk.4.attn_output.weight"}
    plain = {n for n, k in found.items() if k == "F32"}
    assert all("norm" in n or "shortconv.conv" in n or "ffn_gate_inp" in n or "exp_probs_b" in n for n in plain)
    assert {k for k in found.values()} == {"F32", "Q4_K", "Q5_K", "Q6_K", "Q8_0"}
    assert {k for k in kinds(convert(tiny, "q5_k")).values()} == {"F32", "Q5_K", "Q6_K", "Q8_0"}
    assert {k for k in kinds(convert(tiny, "BF16")).values()} == {"F32", "BF16"}


@pytest.mark.parametrize("kind,error", [("f32", 0), ("bf16", 0), ("f16", 1e-3), ("q8_0", 0.01), ("q6_k", 0.03), ("q5_k_m", 0.06), ("q4_k_m", 0.12), ("q4_0", 0.15)])
def test_weights_keep_their_values(convert, tiny, kind, error):
    """Relative error of every matrix, by the gguf package's dequantisation."""
    source = read_safetensors(tiny / "model.safetensors")
    made = tensors(convert(tiny, kind))
    for name, key in {"blk.0.shortconv.in_proj": "layers.0.conv.in_proj", "blk.2.attn_q": "layers.2.self_attn.q_proj", "token_embd": "embed_tokens",
                      "blk.1.ffn_down": "layers.1.feed_forward.w2", "blk.3.shortconv.conv": "layers.3.conv.conv"}.items():
        tensor = made[f"{name}.weight"]
        found = gguf.dequantize(tensor.data, tensor.tensor_type).ravel()
        wanted = values(*source[f"model.{key}.weight"][::2])
        assert np.linalg.norm(found - wanted) <= error * np.linalg.norm(wanted), name
    stack = gguf.dequantize(made["blk.4.ffn_up_exps.weight"].data, made["blk.4.ffn_up_exps.weight"].tensor_type)
    for e in range(8):
        wanted = values(*source[f"model.layers.4.feed_forward.experts.{e}.w3.weight"][::2])
        assert np.linalg.norm(stack[e].ravel() - wanted) <= error * np.linalg.norm(wanted), e


def logits(run, tmp_path, model, name):
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([[1] + [(i * 37) % 350 + 20 for i in range(24)]]))
    ended = run("logits", model, "--ids", ids, "--out", tmp_path / name, "--exact")
    assert ended.returncode == OK, ended
    return safetensors.numpy.load_file(tmp_path / name)["logits.0"]


@pytest.mark.parametrize("name", ["dense_tiny", "moe_tiny", "dense_f32"])
def test_logits_of_exact_types_are_the_sources(run, convert, goldens, tmp_path, name):
    wanted = logits(run, tmp_path, goldens / name, "source.safetensors")
    assert np.array_equal(logits(run, tmp_path, convert(goldens / name, "f32"), "f32.safetensors"), wanted)
    if name != "dense_f32":
        assert np.array_equal(logits(run, tmp_path, convert(goldens / name, "bf16"), "bf16.safetensors"), wanted)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_logits_of_rounded_types_are_near(run, convert, goldens, tmp_path, kind):
    # The bound is what llama.cpp's quantiser cost the same checkpoint, and a quarter more.
    known = json.loads((goldens / "gguf" / "gguf.json").read_text())["files"][f"dense_tiny-{kind}.gguf"]
    wanted = logits(run, tmp_path, goldens / "dense_tiny", "source.safetensors")
    found = logits(run, tmp_path, convert(goldens / "dense_tiny", kind), "made.safetensors")
    assert np.abs(found - wanted).max() <= 1.25 * known["weights_quantised_vs_not_max_abs"] + 1e-5


# ---------------------------------------------------------------- one result, whatever the way

def test_threads_and_detours_change_no_byte(convert, tiny, tmp_path):
    once = convert(tiny, "q4_k_m", "--threads", "1").read_bytes()
    assert convert(tiny, "q4_k_m", "--threads", "5", name="five.gguf").read_bytes() == once
    full = convert(tiny, "f32")
    assert convert(full, "q4_k_m", name="detour.gguf").read_bytes() == once


def test_shards_and_fused_experts_change_no_byte(convert, tiny, tmp_path):
    whole = convert(tiny, "q8_0").read_bytes()
    weights = read_safetensors(tiny / "model.safetensors")
    for i in range(2, 6):
        part = [[weights.pop(f"model.layers.{i}.feed_forward.experts.{e}.{w}.weight") for e in range(8)] for w in ("w1", "w3", "w2")]
        weights[f"model.layers.{i}.feed_forward.experts.gate_up_proj"] = ("BF16", [8, 512, 256], b"".join(g[2] + u[2] for g, u in zip(*part[:2])))
        weights[f"model.layers.{i}.feed_forward.experts.down_proj"] = ("BF16", [8, 256, 256], b"".join(d[2] for d in part[2]))
    folder = folder_like(tiny, tmp_path / "other" , **{"model.safetensors": None})
    names = list(weights)
    place = {}
    for k in range(2):
        file = f"model-{k + 1:05}-of-00002.safetensors"
        write_safetensors(folder / file, {n: weights[n] for n in names[k::2]})
        place |= {n: file for n in names[k::2]}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    made = convert(folder, "q8_0")
    assert entries(made).pop("general.name")[1] == "Other"
    assert made.read_bytes()[-len(whole) // 2:] == whole[-len(whole) // 2:]
    assert {n: t.data.tobytes() for n, t in tensors(made).items()} == {n: t.data.tobytes() for n, t in tensors(tmp_path / "tiny-q8_0.gguf").items()}


def test_a_split_source_changes_no_byte(run, convert, tiny, tmp_path):
    whole = gguf.GGUFReader(convert(tiny, "f32"))
    w = gguf.GGUFWriter(tmp_path / "split.gguf", "lfm2moe", split_max_tensors=20)
    for key, field in whole.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            w.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for t in whole.tensors:
        w.add_tensor(t.name, t.data)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) == 4
    assert convert(parts[1], "q8_0", name="made.gguf").read_bytes() == convert(tiny, "q8_0").read_bytes()
    for part in parts:  # none of them is written
        ended = run("convert", parts[0], part, "--type", "q8_0", "--force")
        assert ended.returncode == USAGE and "own file" in ended.stderr


def test_quantised_sources_only_on_demand(run, convert, tiny, tmp_path):
    small = convert(tiny, "q8_0")
    ended = run("convert", small, tmp_path / "x.gguf", "--type", "q4_0")
    assert ended.returncode == FAILURE and "token_embd.weight" in ended.stderr and "--allow-requantize" in ended.stderr
    assert convert(small, "q8_0", name="same.gguf").read_bytes() == small.read_bytes()
    assert kinds(convert(small, "q4_0", "--allow-requantize", name="again.gguf"))["blk.0.ffn_up.weight"] == "Q4_0"


# ---------------------------------------------------------------- importance

def write_imatrix(path, model, figures):
    """The form that llama-imatrix writes; figures(name, experts, columns) gives the mean squares."""
    w = gguf.GGUFWriter(path, "")
    w.kv_data[0].clear()  # such files name no architecture
    w.add_type("imatrix")
    w.add_array("imatrix.datasets", ["a text", "another"])
    w.add_uint32("imatrix.chunk_count", 7)
    w.add_uint32("imatrix.chunk_size", 512)
    for name, t in tensors(model).items():
        shape = [int(n) for n in t.shape]
        if len(shape) > 1 and "norm" not in name and "conv.weight" not in name and "token_embd" not in name:
            experts = shape[2] if len(shape) == 3 else 1
            w.add_tensor(f"{name}.in_sum2", (1000 * figures(name, experts, shape[0])).astype(np.float32))
            w.add_tensor(f"{name}.counts", np.full((experts, 1), 1000, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def few_columns(name, experts, columns):
    """Expert e is driven by the columns with number e mod 8."""
    return np.array([[100.0 if c % 8 == e % 8 else 0.01 for c in range(columns)] for e in range(experts)])


@pytest.mark.parametrize("kind", ["q4_0", "q4_k_m"])
def test_importance_moves_the_errors_to_where_they_matter_less(convert, tiny, tmp_path, kind):
    full = convert(tiny, "f32")
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", full, few_columns)
    plain, weighed = convert(tiny, kind), convert(tiny, kind, "--imatrix", imatrix, name="weighed.gguf")
    found = entries(weighed)
    assert found["quantize.imatrix.file"][1] == str(imatrix) and found["quantize.imatrix.dataset"][1] == "a text"
    assert found["quantize.imatrix.chunks_count"] == (["UINT32"], 7) and found["quantize.imatrix.entries_count"][0] == ["UINT32"]
    assert {k: v for k, v in found.items() if "imatrix" not in k} == entries(plain)
    a, b, exact = tensors(plain), tensors(weighed), tensors(full)
    for name in ("blk.0.shortconv.in_proj.weight", "blk.1.ffn_up.weight", "blk.4.ffn_gate_exps.weight", "blk.3.ffn_down_exps.weight"):
        true = exact[name].data.reshape(-1, *exact[name].data.shape[-2:])
        weights = few_columns(name, *true.shape[::2])[:, None, :]
        errors = [(weights * (gguf.dequantize(t[name].data, t[name].tensor_type).reshape(true.shape) - true) ** 2).sum(axis=(1, 2)) for t in (a, b)]
        assert (errors[1] < 0.9 * errors[0]).all(), name  # every expert by its own columns
    assert np.array_equal(a["token_embd.weight"].data, b["token_embd.weight"].data)  # nothing is known of it


def test_importance_of_another_model_is_refused(run, convert, tiny, goldens, tmp_path):
    other = write_imatrix(tmp_path / "other.gguf", convert(goldens / "dense_tiny", "f32"), few_columns)
    ended = run("convert", tiny, tmp_path / "x.gguf", "--type", "q4_0", "--imatrix", other)
    assert ended.returncode == MODEL and "blk.0.ffn_down.weight" in ended.stderr and "160 columns" in ended.stderr, ended
    ended = run("convert", tiny, tmp_path / "x.gguf", "--type", "q4_0", "--imatrix", goldens / "gguf" / "dense_tiny-f16.gguf")
    assert ended.returncode == MODEL, ended
    assert not (tmp_path / "x.gguf").exists()


def test_memory_does_not_grow_with_the_model(headrace, tmp_path):
    # 288 MB of weights, most of them in one matrix (zeros, so that the source takes no disk).
    config = {"architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "vocab_size": 65536, "hidden_size": 1024, "num_hidden_layers": 2,
              "layer_types": ["conv", "full_attention"], "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 16384,
              "block_auto_adjust_ff_dim": False, "conv_L_cache": 3, "conv_bias": False, "norm_eps": 1e-5, "rope_theta": 1e6,
              "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 7}
    shapes = {"embed_tokens": [65536, 1024], "embedding_norm": [1024]}
    for i in range(2):
        shapes |= {f"layers.{i}.operator_norm": [1024], f"layers.{i}.ffn_norm": [1024]}
        shapes |= {f"layers.{i}.feed_forward.{w}": [16384, 1024] if w != "w2" else [1024, 16384] for w in ("w1", "w2", "w3")}
    shapes |= {"layers.0.conv.in_proj": [3072, 1024], "layers.0.conv.conv": [1024, 1, 3], "layers.0.conv.out_proj": [1024, 1024]}
    shapes |= {f"layers.1.self_attn.{n}": s for n, s in {"q_proj": [1024, 1024], "k_proj": [512, 1024], "v_proj": [512, 1024], "out_proj": [1024, 1024],
                                                         "q_layernorm": [64], "k_layernorm": [64]}.items()}
    head, at = {}, 0
    for name, shape in shapes.items():
        n = 2 * int(np.prod(shape))
        head[f"model.{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    # A process begins with the size of the one that made it, so a small one in between does.
    script = "import os, subprocess, sys; c = subprocess.Popen(sys.argv[1:], stdout=2); r = os.wait4(c.pid, 0); print(r[1], r[2].ru_maxrss)"
    ended = subprocess.run([sys.executable, "-c", script, headrace, "convert", folder, tmp_path / "large.gguf", "--type", "q8_0", "--threads", "2",
                            "--quiet"], capture_output=True, text=True, timeout=120)
    status, kibibytes = map(int, ended.stdout.split())
    assert status == 0 and at > 280e6 and kibibytes < 64 * 1024, ended


# ---------------------------------------------------------------- what is refused

def test_usage(run, tiny, tmp_path):
    for arguments, words in [(["tiny"], "--type, one of f32"), (["tiny", "x.gguf", "--type", "q3_k"], "'q3_k' is not one of f32, f16, bf16, q8_0"),
                             (["--type", "f16"], "which model"), (["tiny", "x.gguf", "y", "--type", "f16"], "")]:
        ended = run("convert", *arguments)
        assert (ended.returncode, ended.stdout) == (USAGE, "") and words in ended.stderr, ended
    assert list(tmp_path.iterdir()) == []


def test_the_name_when_none_is_given(run, convert, tiny, tmp_path):
    ended = run("convert", "tiny", "--type", "q8_0")
    assert ended.returncode == OK and ended.stdout.startswith("./tiny-Q8_0.gguf: Q8_0, 9.3 MiB, 8.60 bits a weight, 64 tensors")
    folder = folder_like(tiny, tmp_path / "mine")
    assert run("convert", f"{folder}/", "--type", "f16").stdout.startswith(f"{folder}/mine-F16.gguf: F16, ")
    assert (folder / "mine-F16.gguf").exists()
    assert run("convert", folder / "mine-F16.gguf", "--type", "q4_k").returncode == OK and (folder / "mine-Q4_K_M.gguf").exists()


def test_an_existing_file_stays_unless_forced(run, convert, goldens, tmp_path):
    out = tmp_path / "x.gguf"
    out.write_bytes(b"mine")
    ended = run("convert", goldens / "dense_tiny", out, "--type", "f16")
    assert ended.returncode == FAILURE and "--force" in ended.stderr and out.read_bytes() == b"mine"
    assert run("convert", goldens / "dense_tiny", out, "--type", "f16", "--force").returncode == OK
    assert out.read_bytes()[:4] == b"GGUF"
    out.unlink()
    out.mkdir()
    ended = run("convert", goldens / "dense_tiny", out, "--type", "f16", "--force")
    assert ended.returncode == FAILURE and "not an ordinary file" in ended.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_the_source_is_never_written(run, convert, goldens, tmp_path):
    source = convert(goldens / "dense_tiny", "f16", name="model.gguf")
    before = source.read_bytes()
    (tmp_path / "link.gguf").symlink_to(source)
    os.link(source, tmp_path / "hard.gguf")
    for name in ("model.gguf", "link.gguf", "hard.gguf", "../" + tmp_path.name + "/model.gguf"):
        ended = run("convert", source, tmp_path / name, "--type", "q8_0", "--force")
        assert ended.returncode == USAGE and "own file" in ended.stderr, ended
    folder = folder_like(goldens / "dense_tiny", tmp_path / "folder")
    ended = run("convert", folder, folder / "model.safetensors", "--type", "q8_0", "--force")
    assert ended.returncode == USAGE and "own file" in ended.stderr, ended
    assert source.read_bytes() == before
    assert not list(tmp_path.glob("**/*.partial"))


def test_what_is_read_beside_the_weights_is_never_written(run, convert, tiny, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md", "model.safetensors"):
        shutil.copy(tiny / name, folder)
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", convert(tiny, "f32"), few_columns)
    (tmp_path / "link.gguf").symlink_to(imatrix)
    before = {p: p.read_bytes() for p in tmp_path.glob("**/*") if p.is_file()}
    for out in (imatrix, tmp_path / "link.gguf"):
        ended = run("convert", folder, out, "--type", "q4_0", "--imatrix", imatrix, "--force")
        assert ended.returncode == USAGE and "imatrix.gguf, which is read" in ended.stderr, ended
    for path in folder.iterdir():
        ended = run("convert", folder, path, "--type", "q4_0", "--force")
        assert ended.returncode == USAGE and str(path) in ended.stderr and "is read and never replaced" in ended.stderr, ended
    assert {p: p.read_bytes() for p in tmp_path.glob("**/*") if p.is_file()} == before


@pytest.mark.parametrize("key,row,column", [("model.layers.0.conv.in_proj.weight", 5, 7), ("model.layers.2.feed_forward.experts.3.w2.weight", 255, 255)])
@pytest.mark.parametrize("bits,words", [(0x7FC0, "NaN"), (0xFF80, "infinity")])
def test_a_weight_that_is_no_number_is_named(run, tiny, tmp_path, key, row, column, bits, words):
    weights = read_safetensors(tiny / "model.safetensors")
    dtype, shape, data = weights[key]
    data = bytearray(data)
    at = 2 * (row * shape[1] + column)
    data[at:at + 2] = bits.to_bytes(2, "little")
    weights[key] = (dtype, shape, bytes(data))
    folder = folder_like(tiny, tmp_path / "bad", **{"model.safetensors": None})
    write_safetensors(folder / "model.safetensors", weights)
    for kind in ("bf16", "q4_k_m"):
        ended = run("convert", folder, tmp_path / "x.gguf", "--type", kind)
        assert ended.returncode == MODEL, ended
        for word in (f"'{key}', row {row}, column {column}", words, "model.safetensors"):
            assert word in ended.stderr, ended.stderr
    assert not list(tmp_path.glob("x.gguf*"))


def test_a_weight_too_large_for_the_type_is_named(run, goldens, tmp_path):
    weights = read_safetensors(goldens / "dense_f32" / "model.safetensors")
    dtype, shape, data = weights["model.layers.1.conv.out_proj.weight"]
    changed = np.frombuffer(data, np.float32).copy()
    changed[130] = 1e6
    weights["model.layers.1.conv.out_proj.weight"] = (dtype, shape, changed.tobytes())
    folder = folder_like(goldens / "dense_f32", tmp_path / "big", **{"model.safetensors": None})
    write_safetensors(folder / "model.safetensors", weights)
    ended = run("convert", folder, tmp_path / "x.gguf", "--type", "f16")
    assert ended.returncode == MODEL and "row 2, column 2" in ended.stderr and "1e+06 is too large for F16" in ended.stderr, ended
    assert run("convert", folder, tmp_path / "x.gguf", "--type", "bf16").returncode == OK


def test_what_gguf_cannot_say_is_refused(run, tiny, tmp_path):
    config = json.loads((tiny / "config.json").read_text())
    tokenizer = json.loads((tiny / "tokenizer.json").read_text())
    folder = folder_like(tiny, tmp_path / "scaled", **{"config.json": config | {"routed_scaling_factor": 2.0}})
    ended = run("convert", folder, tmp_path / "x.gguf", "--type", "f16")
    assert ended.returncode == FAILURE and "routed_scaling_factor 2" in ended.stderr, ended
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\p{L}+|\\s+|[^\\s\\p{L}]+"
    folder = folder_like(tiny, tmp_path / "split", **{"tokenizer.json": tokenizer})
    ended = run("convert", folder, tmp_path / "x.gguf", "--type", "f16")
    assert ended.returncode == FAILURE and "splitting expression" in ended.stderr, ended
    assert not list(tmp_path.glob("x.gguf*"))


def test_a_token_that_its_merges_do_not_make_is_refused(run, tiny, tmp_path):
    # A GGUF reader would take " the" as one token all the same.
    tokenizer = json.loads((tiny / "tokenizer.json").read_text())
    last = tokenizer["model"]["merges"].pop()
    folder = folder_like(tiny, tmp_path / "odd", **{"tokenizer.json": tokenizer})
    ended = run("convert", folder, tmp_path / "x.gguf", "--type", "f16")
    assert ended.returncode == FAILURE and "other ids" in ended.stderr, (last, ended)


# ---------------------------------------------------------------- what cannot end

def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def test_no_room_for_the_file(run, tiny, tmp_path):
    ended = run("convert", tiny, tmp_path / "x.gguf", "--type", "q8_0", preexec_fn=limit_file_size)
    assert ended.returncode == FAILURE and "needs 97" in ended.stderr and "1048576" in ended.stderr, ended
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def begun(headrace, tmp_path, tiny):
    """A conversion that is stopped (SIGSTOP) in the middle of its work; its end is the test's."""
    out = tmp_path / "x.gguf"
    child = subprocess.Popen([headrace, "convert", tiny, out, "--type", "q4_k_m", "--threads", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    partial = tmp_path / "x.gguf.partial"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > 0) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    child.send_signal(signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    assert partial.exists() and not out.exists()
    yield child, out, partial
    child.kill()
    child.communicate()


def test_what_a_killed_run_leaves_is_no_model(begun, run, convert, tiny):
    child, out, partial = begun
    assert partial.stat().st_size == 5700896 - 5700896 % 32
    ended = run("convert", tiny, out, "--type", "q4_k_m")
    assert ended.returncode == FAILURE and "another conversion" in ended.stderr
    child.kill()
    child.wait()
    assert not out.exists() and partial.read_bytes()[:24] == bytes(24)
    ended = run("info", partial)
    assert ended.returncode == MODEL and "not a GGUF file" in ended.stderr
    whole = convert(tiny, "q4_k_m", name="whole.gguf").read_bytes()
    assert run("convert", tiny, out, "--type", "q4_k_m").returncode == OK
    assert out.read_bytes() == whole and not partial.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_tidies_up(begun, number):
    child, out, partial = begun
    child.send_signal(number)
    child.send_signal(signal.SIGCONT)
    stdout, stderr = child.communicate(timeout=60)
    assert (child.returncode, stdout) == (FAILURE, "") and "was stopped" in stderr
    assert not out.exists() and not partial.exists()


# ---------------------------------------------------------------- telling of it

def test_a_bar_on_a_terminal_and_none_with_quiet(headrace, tiny, tmp_path):
    for options, has_bar in (([], True), (["--quiet"], False)):
        ours, theirs = pty.openpty()
        child = subprocess.Popen([headrace, "convert", tiny, tmp_path / "x.gguf", "--type", "q5_k_m", "--threads", "1", "--force", *options], stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # the terminal's other end was closed
            pass
        os.close(ours)
        result = child.communicate()[0].decode()
        assert child.returncode == OK and result.startswith(f"{tmp_path}/x.gguf: Q5_K_M, "), result
        assert (b"\r[" in shown and b"% " not in shown and b"%, " in shown) == has_bar, shown
        assert has_bar or shown == b""
