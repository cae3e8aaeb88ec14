"""`headrace serve --device cuda` without a GPU: the usual program on the CUDA backend, its kernels and the CUDA runtime emulated
(tests/support/emulated_backends.c, tests/emulator). Slow, so a few answers and one fault of each kind are enough here; the kernels and
every call of the host side have tests of their own."""
import threading

import pytest

from server_fixture import Server, parse_events

DEVICE_FAULT = 70
SMALL = ["--device", "cuda", "--kv-cache-memory", "8mi", "--max-num-seqs", "8", "--max-num-batched-tokens", "64", "--max-model-len", "512"]


@pytest.fixture
def program(build_dir):
    return build_dir / "bin" / "headrace_emulated"


def together(functions):
    results = [None] * len(functions)

    def run(i):
        results[i] = functions[i]()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_answers_are_those_of_the_model(program, greedy_cases):
    """Different prompts in one batch, with steps begun ahead."""
    server = Server(program, "tiny", SMALL)
    try:
        cases = sorted(greedy_cases, key=lambda case: len(case["prompt_ids"]) + 4 * len(case["output_ids"]))[:6]

        def ask(case):
            return server.complete(case["prompt_ids"], temperature=0, max_tokens=64, return_token_ids=True)["choices"][0]
        for case, choice in zip(cases, together([lambda case=case: ask(case) for case in cases])):
            assert choice["token_ids"] == case["output_ids"] and choice["finish_reason"] == "stop"
        info = server.get("/metrics").body.decode()
        assert 'device="cuda"' in info and "Emulated" in info
        server.wait_until_idle()
    finally:
        assert server.stop() == 0, server.log()


LOOKUP = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}'


@pytest.mark.parametrize("flags", [["--speculative-config", LOOKUP], ["--model-draft", "tiny", "--draft-max", "3"]])
def test_guesses_leave_the_answers_as_they_are(program, tiny, greedy_cases, flags):
    """Greedy answers are the stored ones, drawn and penalised ones those of a server that does not guess."""
    case = min(greedy_cases, key=lambda case: len(case["prompt_ids"]) + 4 * len(case["output_ids"]))
    drawn = {"prompt": "one two three one two", "max_tokens": 8, "temperature": 0.8, "seed": 3, "logprobs": 1, "ignore_eos": True}
    answers = []
    for more in ([], [str(tiny) if flag == "tiny" else flag for flag in flags]):
        server = Server(program, "tiny", [*SMALL, *more])
        try:
            choice = server.complete(case["prompt_ids"], temperature=0, max_tokens=64, return_token_ids=True)["choices"][0]
            assert choice["token_ids"] == case["output_ids"]
            answers.append([server.post("/v1/completions", {**drawn, **fields}).json()["choices"]
                            for fields in ({}, {"repetition_penalty": 1.3}, {"logit_bias": {"50": 12}})])
            values = server.metrics()
            assert bool(more) == (values.get("spec_decode_num_draft_tokens_total", 0) > 0)
            server.wait_until_idle()
        finally:
            assert server.stop() == 0, server.log()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("call", ["cudaGraphLaunch", "cudaMemcpyAsync", "cudaEventSynchronize"])
def test_a_fault_on_the_device_ends_streams_with_an_error_and_the_program_with_70(program, call):
    server = Server(program, "tiny", SMALL, {"HEADRACE_TEST_CUDA_FAULT": f"{call}:6"})
    body = {"prompt": "Hello", "max_tokens": 100, "ignore_eos": True, "temperature": 0}
    streamed, plain = together([lambda: server.post("/v1/completions", {**body, "stream": True}),
                                lambda: server.post("/v1/completions", body)])
    health = server.get("/health")
    assert health.status == 503 and health.error["code"] == "engine_dead"
    errors = [event["error"]["code"] for event in parse_events(streamed.body.decode()) if event and "error" in event] \
        if streamed.status == 200 else [streamed.error["code"]]
    assert errors == ["engine_dead"]
    assert plain.status == 503 and plain.error["code"] == "engine_dead"
    assert server.process.wait(60) == DEVICE_FAULT
    assert call in server.log() and "the cuda backend failed" in server.log()
