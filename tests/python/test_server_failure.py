"""A server whose backend dies: who is told, what is refused, and how the program ends. The program is the usual one on a backend
that fails when it is told to (tests/support/faulty_backends.c)."""
import os
import subprocess
import threading
import time

import pytest

from server_fixture import Server, parse_events

DEVICE_FAULT = 70


@pytest.fixture
def start(build_dir):
    servers = []

    def start(*flags, **environment):
        servers.append(Server(build_dir / "bin" / "headrace_faulty", "tiny", flags, environment))
        return servers[-1]
    yield start
    for server in servers:
        server.stop()


def in_threads(functions):
    results = [None] * len(functions)

    def run(i):
        results[i] = functions[i]()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    return threads, results


def test_a_dead_backend_ends_streams_with_an_error_and_the_program_with_70(start):
    server = start(HEADRACE_TEST_FAIL_STEP="40")
    assert server.get("/health").status == 200
    body = {"prompt": "Hello", "max_tokens": 1000, "ignore_eos": True, "temperature": 0}
    threads, results = in_threads([lambda: server.post("/v1/completions", {**body, "stream": True}),
                                   lambda: server.post("/v1/completions", body)])
    for thread in threads:
        thread.join()
    died = time.monotonic()
    health = server.get("/health")
    assert health.status == 503 and health.error["code"] == "engine_dead"
    assert server.get("/ready").status == 503
    assert server.post("/v1/completions", body).status == 503
    streamed, plain = results
    events = list(parse_events(streamed.body.decode()))
    assert streamed.status == 200 and events[-1] is None
    errors = [event["error"] for event in events if event and "error" in event]
    assert len(errors) == 1 and errors[0]["code"] == "engine_dead"
    assert plain.status == 503 and plain.error["code"] == "engine_dead"
    assert server.process.wait(30) == DEVICE_FAULT and time.monotonic() - died < 10
    assert "the cpu backend failed: a fault was injected at step 40" in server.log()
    assert "the server ends, to be started anew" in server.log()


def test_a_backend_that_dies_in_its_first_step_ends_the_program(start):
    server = start(HEADRACE_TEST_FAIL_STEP="0")
    assert server.post("/v1/completions", {"prompt": "Hello"}).error["code"] == "engine_dead"
    assert server.process.wait(30) == DEVICE_FAULT


def test_a_signal_does_not_wait_for_who_may_still_ask(start):
    server = start(HEADRACE_TEST_FAIL_STEP="0")
    assert server.post("/v1/completions", {"prompt": "Hello"}).status == 503
    assert server.stop() == DEVICE_FAULT


def test_three_answers_with_bad_logits_end_the_program(start):
    server = start(HEADRACE_TEST_BAD_STEP="0")
    for _ in range(2):
        reply = server.post("/v1/completions", {"prompt": "Hello"})
        assert reply.status == 500 and reply.error["code"] == "engine_error"
        assert server.get("/health").status == 200
    assert server.post("/v1/completions", {"prompt": "Hello"}).status in (500, 503)
    assert server.get("/health").status == 503
    assert server.process.wait(30) == DEVICE_FAULT


def test_other_commands_end_with_70_too(build_dir):
    ended = subprocess.run([build_dir / "bin" / "headrace_faulty", "run", "tiny", "Hello"], capture_output=True, text=True, timeout=60,
                           env={**os.environ, "HEADRACE_TEST_FAIL_STEP": "3"})
    assert ended.returncode == DEVICE_FAULT and "a fault was injected" in ended.stderr
