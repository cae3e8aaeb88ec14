"""Speculative decoding over HTTP and on the command line: the same answers, and numbers that add up."""
import json
import os
import subprocess

import pytest

LOOKUP = '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3, "prompt_lookup_min": 1}'
PROMPTS = ["one two three one two three one two three one", "Who are you?", "a b c d a b c d a b", "Tell me about water."]


@pytest.fixture
def cli(headrace, tmp_path):
    """cli(arguments…) runs the program in an empty folder, without this machine's settings, and returns its end."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}

    def call(*arguments):
        return subprocess.run([str(headrace), *map(str, arguments)], env=plain, input="", text=True, timeout=120,
                              capture_output=True, cwd=tmp_path)
    return call


def answers(server, **fields):
    found = []
    for seed, prompt in enumerate(PROMPTS):
        for temperature in (0, 0.8):
            body = {"prompt": prompt, "max_tokens": 40, "temperature": temperature, "seed": seed, "logprobs": 2,
                    "return_token_ids": True, "n": 2, **fields}
            reply = server.post("/v1/completions", body).json()
            found.append([{k: v for k, v in choice.items()} for choice in reply["choices"]])
    return found


@pytest.fixture
def plain_answers(server):
    return answers(server)


def test_a_server_that_guesses_gives_the_same_answers_and_counts_its_guesses(make_server, plain_answers, tiny):
    for flags in (["--speculative-config", LOOKUP], ["--model-draft", str(tiny), "--draft-max", "4"]):
        server = make_server(*flags, "--metrics-prefix", "vllm", "--enable-per-request-metrics")
        assert answers(server) == plain_answers
        values = server.metrics("vllm")
        n_drafts, n_guessed = values["spec_decode_num_drafts_total"], values["spec_decode_num_draft_tokens_total"]
        n_right = values["spec_decode_num_accepted_tokens_total"]
        at = [v for k, v in values.items() if k.startswith("spec_decode_num_accepted_tokens_per_pos_total")]
        assert 0 < n_right <= n_guessed and n_drafts <= n_guessed and sum(at) == n_right and at == sorted(at, reverse=True)
        assert at[0] <= n_drafts and len(at) == (5 if "--speculative-config" in flags else 4)
        assert "guesses  by" in server.log()


def test_the_metrics_of_a_request_say_what_was_guessed_for_it(make_server, tiny):
    server = make_server("-md", str(tiny), "--enable-per-request-metrics")
    body = {"prompt": "one two three", "max_tokens": 30, "ignore_eos": True}
    metrics = server.post("/v1/completions", body).json()["metrics"]
    assert metrics["accepted_draft_tokens"] >= 20 and metrics["draft_tokens"] >= metrics["accepted_draft_tokens"]
    metrics = server.post("/v1/completions", {**body, "speculative.n_max": 0}).json()["metrics"]
    assert metrics["draft_tokens"] == metrics["accepted_draft_tokens"] == 0
    body["seed"] = 3
    events = server.stream("/v1/completions", body)
    streamed = "".join(choice["text"] for event in events if event for choice in event["choices"])
    assert streamed == server.post("/v1/completions", body).json()["choices"][0]["text"]


def test_a_server_without_guesses_has_no_numbers_of_them(server):
    assert not [name for name in server.metrics("headrace") if name.startswith("spec_decode")]


def test_a_stop_string_among_accepted_tokens_ends_the_answer_there(make_server, server, tiny):
    guessing = make_server("-md", str(tiny), "--draft-max", "8")
    for stop in ("am", "test", " the "):
        body = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, "max_tokens": 40, "stop": stop}
        with_guesses, without = (s.post("/v1/chat/completions", body).json() for s in (guessing, server))
        assert with_guesses["choices"] == without["choices"] and with_guesses["usage"] == without["usage"]


def test_run_answers_the_same_with_guesses(cli, tiny):
    plain = cli("run", "tiny", "Who are you?", "--temperature", "0")
    for flags in (["--draft", "6"], ["-md", tiny, "--draft-max", "3"], ["--speculative-config", LOOKUP]):
        ended = cli("run", "tiny", "Who are you?", "--temperature", "0", *flags)
        assert (ended.returncode, ended.stdout) == (0, plain.stdout), ended


@pytest.mark.parametrize("flags, words", [
    (["--speculative-config", "{"], ["--speculative-config", "not JSON"]),
    (["--speculative-config", "[]"], ["expected a JSON object"]),
    (["--speculative-config", '{"method": "eagle", "num_speculative_tokens": 2}'], ["eagle", "ngram, draft_model"]),
    (["--speculative-config", '{"method": "ngram"}'], ["num_speculative_tokens is missing"]),
    (["--speculative-config", '{"num_speculative_tokens": 2}'], ["method is missing"]),
    (["--speculative-config", '{"method": "draft_model", "num_speculative_tokens": 2}'], ["needs a \"model\""]),
    (["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2, "tokens": 1}'], ["'tokens' is not known"]),
    (["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2.5}'], ["whole number"]),
    (["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 17}'],
     ["17 is outside 0..16", "(--speculative-config)"]),
    (["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 5000}'], ["5000 is outside 0..16"]),
    (["--speculative-config", '{"method": "ngram", "num_speculative_tokens": -1}'], ["a whole number from 1 on"]),
    (["--speculative-config", '{"method": "ngram", "num_speculative_tokens": true}'], ["a whole number from 1 on"]),
    (["--speculative-config", '{"method": 1, "num_speculative_tokens": 2}'], ["method must be a text"]),
    (["--speculative-config", '{"method": "ngram", "method": "ngram", "num_speculative_tokens": 2}'], ["not JSON"]),
    (["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2, "model": "x"}'], ["needs no \"model\""]),
    (["--speculative-config", '{"model": "tiny", "num_speculative_tokens": 2, "prompt_lookup_max": 3}'],
     ["given together with prompt_lookup_max", "(--speculative-config)"]),
    (["--speculative-config", json.dumps({"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 1,
                                          "prompt_lookup_min": 2})], ["prompt_lookup_min: 2 is above"]),
    (["--speculative-config", LOOKUP, "--draft-max", "2"], ["one of the two ways"]),
    (["--draft-max", "17"], ["17 is outside 0..16", "--draft-max"]),
])
def test_what_cannot_be_guessed_is_refused_by_name(cli, flags, words):
    ended = cli("run", "tiny", "Hi", *flags)
    assert ended.returncode == 2 and ended.stdout == ""
    for word in words:
        assert word in ended.stderr, ended.stderr


def test_a_draft_model_with_another_vocabulary_is_refused(cli, source_dir):
    ended = cli("run", "tiny", "Hi", "-md", source_dir / "tests/data/goldens/dense_tiny")
    assert ended.returncode == 2 and "vocabulary must be the same" in ended.stderr and "--model-draft" in ended.stderr
