"""/v1/completions, /tokenize, /detokenize: prompt shapes, echo, log-probabilities, stop rules, seeds."""
import json
import subprocess

import numpy
import pytest

PLAIN = {"temperature": 0, "repetition_penalty": 1}


def read_safetensors(path):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: numpy.frombuffer(data[8 + size:][slice(*entry["data_offsets"])], numpy.float32).reshape(entry["shape"])
            for name, entry in header.items()}


def log_softmax(logits):
    logits = logits.astype(numpy.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - numpy.log(numpy.exp(logits - top).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def logprobs_of(headrace, tiny, tmp_path_factory):
    """The program's own log-probabilities of every position, without any server."""
    def compute(sequences):
        folder = tmp_path_factory.mktemp("logits")
        (folder / "ids.json").write_text(json.dumps(sequences))
        subprocess.run([headrace, "logits", "--model", tiny, "--ids", folder / "ids.json", "--out",
                        folder / "out.safetensors"], check=True, capture_output=True)
        tensors = read_safetensors(folder / "out.safetensors")
        return [log_softmax(tensors[f"logits.{i}"]) for i in range(len(sequences))]
    return compute


def test_every_prompt_shape_means_the_same(server):
    ids = server.post("/tokenize", {"prompt": "Once upon a time"}).json()["tokens"]
    one = server.complete("Once upon a time", **PLAIN)["choices"][0]["text"]
    assert server.complete(ids, **PLAIN)["choices"][0]["text"] == one
    assert [c["text"] for c in server.complete([ids, ids], **PLAIN)["choices"]] == [one, one]
    several = server.complete(["Once upon a time", "Hello"], n=2, **PLAIN)
    assert [c["index"] for c in several["choices"]] == [0, 1, 2, 3]
    assert [c["text"] for c in several["choices"][:2]] == [one, one]
    assert several["usage"]["completion_tokens"] == 64  # four choices of the default 16


def test_echo_with_logprobs_equals_the_logits(server, logprobs_of, eval_cases):
    texts = ["Hello! How can I help you today?", "Once upon a time there was a 日本 🙂 cat.",
             eval_cases["multi"][0]["prompt"][:400]]
    sequences = [server.post("/tokenize", {"prompt": text}).json()["tokens"] for text in texts]
    for text, ids, truth in zip(texts, sequences, logprobs_of(sequences)):
        choice = server.complete(text, echo=True, logprobs=3, max_tokens=0)["choices"][0]
        assert choice["text"] == text and choice["finish_reason"] == "length"
        logprobs = choice["logprobs"]
        assert len(logprobs["tokens"]) == len(ids) and logprobs["token_logprobs"][0] is None
        expected = [truth[i - 1][ids[i]] for i in range(1, len(ids))]
        assert numpy.allclose(logprobs["token_logprobs"][1:], expected, atol=2e-2)
        for i in range(1, len(ids)):
            best = sorted(truth[i - 1], reverse=True)[:3]
            reported = sorted(logprobs["top_logprobs"][i].values(), reverse=True)[:3]
            assert numpy.allclose(reported, best[:len(reported)], atol=2e-2)


def test_echo_with_more_tokens_is_prompt_then_answer(server):
    plain = server.complete("Once upon a time", logprobs=2, max_tokens=5, **PLAIN)["choices"][0]
    echoed = server.complete("Once upon a time", logprobs=2, max_tokens=5, echo=True, **PLAIN)["choices"][0]
    assert echoed["text"] == "Once upon a time" + plain["text"]
    assert echoed["logprobs"]["tokens"][-5:] == plain["logprobs"]["tokens"]
    assert echoed["logprobs"]["token_logprobs"][-5:] == plain["logprobs"]["token_logprobs"]
    assert [o - len("Once upon a time") for o in echoed["logprobs"]["text_offset"][-5:]] == plain["logprobs"]["text_offset"]
    events = server.stream("/v1/completions", {"prompt": "Once upon a time", "logprobs": 2, "max_tokens": 5, "echo": True,
                                               **PLAIN})
    assert "".join(e["choices"][0]["text"] for e in events[:-1]) == echoed["text"]
    tokens = [t for e in events[:-1] if e["choices"][0]["logprobs"] for t in e["choices"][0]["logprobs"]["tokens"]]
    assert tokens == echoed["logprobs"]["tokens"]


def test_a_model_without_a_tokenizer_names_tokens_by_id(make_server, source_dir):
    server = make_server(model=source_dir / "tests/data/goldens/gguf/dense_tiny-q4_0.gguf")
    choice = server.complete([1, 2, 3], logprobs=2, max_tokens=4, return_token_ids=True, **PLAIN)["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]
    assert all(len(top) == 2 for top in choice["logprobs"]["top_logprobs"])
    assert "has no tokenizer" in server.post("/v1/completions", {"prompt": "hi"}).json()["error"]["message"]


def test_prompt_logprobs_in_vllm_shape(server, logprobs_of):
    ids = server.post("/tokenize", {"prompt": "Hello! How are you?"}).json()["tokens"]
    truth = logprobs_of([ids])[0]
    reported = server.complete("Hello! How are you?", prompt_logprobs=2, max_tokens=1)["choices"][0]["prompt_logprobs"]
    assert len(reported) == len(ids) and reported[0] is None
    for i in range(1, len(ids)):
        mine = reported[i][str(ids[i])]
        assert mine["logprob"] == pytest.approx(truth[i - 1][ids[i]], abs=2e-2)
        assert 2 <= len(reported[i]) <= 3


def test_stop_strings_and_ids(server):
    full = server.chat("Hello!", **PLAIN)["choices"][0]["message"]["content"]
    assert full == "Hello! How can I help you today?"
    choice = server.chat("Hello!", stop=["help", "xyz"], **PLAIN)["choices"][0]
    assert choice["message"]["content"] == "Hello! How can I " and choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == "help"
    choice = server.chat("Hello!", stop="can I", include_stop_str_in_output=True, **PLAIN)["choices"][0]
    assert choice["message"]["content"] == "Hello! How can I" and choice["stop_reason"] == "can I"
    word = server.post("/tokenize", {"prompt": " can", "add_special_tokens": False}).json()["tokens"][0]
    choice = server.chat("Hello!", stop_token_ids=[word], **PLAIN)["choices"][0]
    assert choice["message"]["content"] == "Hello! How" and choice["stop_reason"] == word
    streamed = server.stream("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello!"}], "stop": "I help",
                                                      **PLAIN})
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in streamed[:-1]) == "Hello! How can "


def test_the_end_of_the_model_can_be_ignored(server):
    answer = server.chat("Hello!", ignore_eos=True, max_tokens=40, return_token_ids=True, **PLAIN)
    assert answer["usage"]["completion_tokens"] == 40 and answer["choices"][0]["finish_reason"] == "length"
    answer = server.chat("Hello!", min_tokens=20, max_tokens=40, return_token_ids=True, **PLAIN)
    assert answer["usage"]["completion_tokens"] >= 20


def test_special_tokens_can_be_shown(server):
    ids = server.chat("Hello!", ignore_eos=True, max_tokens=12, return_token_ids=True, **PLAIN)["choices"][0]["token_ids"]
    shown = server.chat("Hello!", ignore_eos=True, max_tokens=12, skip_special_tokens=False, **PLAIN)
    assert 7 in ids and "<|im_end|>" in shown["choices"][0]["message"]["content"]


def test_a_seed_repeats_and_choices_differ(server):
    arguments = {"temperature": 1.5, "seed": -5, "n": 4, "max_tokens": 16}
    first = [c["text"] for c in server.complete("Once", **arguments)["choices"]]
    assert first == [c["text"] for c in server.complete("Once", **arguments)["choices"]]
    assert len(set(first)) > 1


def test_logit_bias_steers(server):
    word = server.post("/tokenize", {"prompt": "Bonjour", "add_special_tokens": False}).json()["tokens"][0]
    answer = server.chat("Hello!", logit_bias={str(word): 100}, max_tokens=3, return_token_ids=True, **PLAIN)
    assert answer["choices"][0]["token_ids"] == [word] * 3


def test_prompts_can_be_cut_from_the_left(server):
    ids = server.post("/tokenize", {"prompt": "one two three four five"}).json()["tokens"]
    answer = server.complete(ids, truncate_prompt_tokens=3, return_token_ids=True, max_tokens=1)
    assert answer["choices"][0]["prompt_token_ids"] == ids[-3:]
    assert server.complete([5] * 5000, truncate_prompt_tokens=-1, max_tokens=4)["usage"]["prompt_tokens"] == 4092


def test_tokens_there_and_back(server):
    for text in ("Hello, world!", "日本語 🙂 naïve", "<|im_start|>user\n", "a\x00b"):
        for add in (True, False):
            reply = server.post("/tokenize", {"prompt": text, "add_special_tokens": add, "return_token_strs": True}).json()
            assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"]) and reply["max_model_len"] == 4096
            assert (reply["tokens"][0] == 1) == add
            back = server.post("/detokenize", {"tokens": reply["tokens"]}).json()["prompt"]
            assert back == ("<|startoftext|>" if add else "") + text
    messages = [{"role": "user", "content": "Hello!"}]
    ids = server.chat(messages, return_token_ids=True, max_tokens=1)["prompt_token_ids"]
    assert server.post("/tokenize", {"messages": messages}).json()["tokens"] == ids
    shorter = server.post("/tokenize", {"messages": messages, "add_generation_prompt": False}).json()["tokens"]
    assert ids[:len(shorter)] == shorter and len(shorter) < len(ids)


def test_usage_tells_cached_tokens(server):
    prompt = "The same long beginning of a prompt, again and again, word after word, line after line. " * 3
    server.complete(prompt, max_tokens=1, cache_salt="a")
    again = server.complete(prompt, max_tokens=1, cache_salt="a")["usage"]["prompt_tokens_details"]["cached_tokens"]
    other = server.complete(prompt, max_tokens=1, cache_salt="b")["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert again > 0 and other == 0


def test_an_echo_with_logprobs_does_not_widen_prompt_logprobs(server):
    ask = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
    alone = server.complete("The cat sat", **ask)["choices"][0]
    echoed = server.complete("The cat sat", echo=True, logprobs=5, **ask)["choices"][0]
    assert echoed["prompt_logprobs"] == alone["prompt_logprobs"]
    assert all(len(entry) <= 2 for entry in echoed["prompt_logprobs"][1:])
    assert all(len(entry) >= 5 for entry in echoed["logprobs"]["top_logprobs"][1:])


def test_a_short_request_cannot_ask_for_a_huge_answer(server):
    """64 prompts x 16 choices x 2,000 echoed tokens x 21 log-probabilities would be gigabytes of JSON."""
    body = {"prompt": [[5] * 2000] * 64, "echo": True, "logprobs": 20, "n": 16, "max_tokens": 1}
    error = server.post("/v1/completions", body).json()["error"]
    assert error["param"] == "logprobs" and "8000000" in error["message"]
