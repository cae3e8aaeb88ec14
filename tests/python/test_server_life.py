"""A server's life: start, keys, full queues, clients that leave, drain, the end."""
import json
import re
import signal
import socket
import subprocess
import threading
import time

import openai
import pytest

from server_fixture import parse_events

LONG = {"messages": [{"role": "user", "content": "Tell me a story."}], "ignore_eos": True, "temperature": 1, "stream": True}


def begin(server, body, path="/v1/chat/completions"):
    """Sends a request and returns its socket without reading the answer."""
    sock = server.connect()
    text = json.dumps(body)
    sock.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}"
                 .encode())
    return sock


def read_some(sock):
    data = sock.recv(4096)
    assert data, "the server closed the connection"
    return data


def read_rest(sock):
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def test_clients_that_leave_free_everything(server):
    for stream in (True, False):
        before = server.metrics()['requests_cancelled_total{cause="disconnect"}']
        socks = [begin(server, {**LONG, "stream": stream, "max_tokens": 3000, "n": 1 + i % 3}) for i in range(8)]
        server.wait_until(lambda: server.metrics()["num_requests_running"] >= 8, "eight running requests")
        for sock in socks:
            sock.close()
        server.wait_until_idle()
        assert server.metrics()['requests_cancelled_total{cause="disconnect"}'] == before + 8


def test_clients_that_leave_the_queue_free_everything(make_server):
    server = make_server("--max-num-seqs", "1")
    running = begin(server, {**LONG, "max_tokens": 3000, "n": 16})
    read_some(running)
    waiting = [begin(server, {**LONG, "max_tokens": 3000, "stream": i % 2 == 0}) for i in range(3)]
    server.wait_until(lambda: server.metrics()["num_requests_waiting"] == 18, "three waiting requests")
    for sock in waiting:
        sock.close()
    server.wait_until(lambda: server.metrics()["num_requests_waiting"] <= 15, "an empty queue")
    assert server.metrics()["num_requests_running"] == 1
    running.close()
    server.wait_until_idle()


def test_a_full_queue_is_503_and_the_client_comes_again(make_server):
    server = make_server("--max-num-seqs", "1", "--max-num-queued-reqs", "1")
    first = begin(server, {**LONG, "max_tokens": 3000, "n": 16})  # one runs, its fifteen siblings wait: for long
    read_some(first)
    second = begin(server, {**LONG, "max_tokens": 3000})
    server.wait_until(lambda: server.metrics()["num_requests_waiting"] == 16, "a waiting request")
    reply = server.post("/v1/chat/completions", {**LONG, "stream": False, "max_tokens": 1})
    assert (reply.status, reply.error["code"], reply.error["type"]) == (503, "queue_full", "server_error")
    assert 1 <= int(reply.fields["retry-after"]) <= 60
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="tiny", prompt="Hi", max_tokens=1)
    assert caught.value.code == "queue_full"

    def leave_when_refused():
        server.wait_until(lambda: server.metrics()['request_failure_total{code="queue_full"}'] >= 3, "a refusal")
        first.close()
        second.close()
    leaver = threading.Thread(target=leave_when_refused)
    leaver.start()
    patient = openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=5)
    assert patient.completions.create(model="tiny", prompt="Hi", max_tokens=1).choices[0].finish_reason == "length"
    leaver.join()


def test_waiting_too_long_is_503(make_server):
    server = make_server("--max-num-seqs", "1", "--queue-timeout", "0.3")
    first = begin(server, {**LONG, "max_tokens": 3500, "n": 16})
    read_some(first)
    for stream in (True, False):
        reply = server.post("/v1/chat/completions", {**LONG, "stream": stream, "max_tokens": 1})
        assert (reply.status, reply.error["code"]) == (503, "queue_timeout")
    first.close()


def test_a_drain_finishes_what_runs_and_refuses_what_comes(make_server):
    server = make_server()
    body = {**LONG, "max_tokens": 400}
    running = [begin(server, body) for _ in range(3)]
    for sock in running:
        read_some(sock)
    kept = server.connect()
    server.process.send_signal(signal.SIGTERM)
    server.wait_until(lambda: server.get("/ready").status == 503, "/ready to say no")
    assert server.get("/ready").error["code"] == "draining" and server.get("/health").status == 200
    reply = server.post("/v1/chat/completions", {**body, "stream": False})
    assert (reply.status, reply.error["code"]) == (503, "draining") and "retry-after" in reply.fields
    kept.sendall(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"Connection: close" in read_rest(kept)
    for sock in running:
        answer = read_rest(sock)
        assert b'"finish_reason":"length"' in answer and b"data: [DONE]" in answer
    assert server.process.wait(30) == 0


def test_a_second_signal_ends_streams_with_an_error(make_server):
    server = make_server()
    streaming, whole = (
        begin(server, {**LONG, "max_tokens": 3500, "n": 16, "stream": stream}) for stream in (True, False))
    read_some(streaming)
    server.process.send_signal(signal.SIGTERM)
    server.wait_until(lambda: server.get("/ready").status == 503, "/ready to say no")
    server.process.send_signal(signal.SIGINT)
    answer = read_rest(streaming)
    assert b'"code":"draining"' in answer and b"data: [DONE]" in answer
    assert read_rest(whole).startswith(b"HTTP/1.1 503")
    assert server.process.wait(30) == 0


def test_a_drain_has_a_deadline(make_server):
    server = make_server("--shutdown-timeout", "0.3")
    sock = begin(server, {**LONG, "max_tokens": 3500, "n": 16})
    read_some(sock)
    assert server.stop() == 0
    assert b'"code":"draining"' in read_rest(sock)


def test_an_error_event_reaches_the_openai_client(make_server):
    server = make_server("--shutdown-timeout", "0.1")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0)
    stream = client.chat.completions.create(model="tiny", messages=LONG["messages"], stream=True, max_tokens=3500, n=16,
                                            extra_body={"ignore_eos": True})
    next(iter(stream))
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError, match="shut down"):
        for _ in stream:
            pass


def test_a_port_in_use_is_exit_5(server, headrace, tiny):
    result = subprocess.run([headrace, "serve", tiny, "--port", str(server.port)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 5 and "in use" in result.stderr and "--port" in result.stderr


def test_a_unix_socket(headrace, tiny, make_server, tmp_path):
    path = tmp_path / "s.sock"
    server = make_server("--host", f"unix:{path}")
    assert server.ready_line.startswith(f"headrace: ready on unix:{path} ")
    assert server.chat("Hello!", temperature=0)["choices"][0]["message"]["content"].startswith("Hello!")
    second = subprocess.run([headrace, "serve", tiny, "--host", f"unix:{path}"], capture_output=True, text=True, timeout=60)
    assert second.returncode == 5
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL and path.exists()
    again = make_server("--host", f"unix:{path}")  # what a killed server left is no obstacle
    assert again.stop() == 0 and not path.exists()


ROUTES = [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/a"),
          ("POST", "/tokenize"), ("POST", "/detokenize")]
OPEN_ROUTES = [("GET", "/health"), ("GET", "/ping"), ("GET", "/ready"), ("GET", "/version"), ("GET", "/load"), ("GET", "/metrics")]


def test_every_route_that_works_needs_a_key(make_server, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("second-key\n")
    server = make_server("--api-key", "first-key", "--api-key-file", keys, "-a", "a", "-a", "b")
    for method, path in ROUTES:
        for authorization in (None, "Bearer wrong", "Bearer first-ke", "Bearer first-key2", "first-key", "Basic first-key",
                              "Bearer ", "Bearer"):
            fields = {"Content-Type": "application/json", **({"Authorization": authorization} if authorization else {})}
            reply = server.request(method, path, "{}" if method == "POST" else None, fields)
            assert (reply.status, reply.error["code"], reply.error["type"]) == (401, "invalid_api_key", "authentication_error")
            assert reply.fields["www-authenticate"] == "Bearer"
        for key in ("first-key", "second-key"):
            fields = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
            assert server.request(method, path, "{}" if method == "POST" else None, fields).status in (200, 400)
    for method, path in OPEN_ROUTES:
        assert server.request(method, path).status == 200
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="first-key")
    assert [m.id for m in client.models.list()] == ["a", "b"]
    assert client.completions.create(model="b", prompt="Hi", max_tokens=1).model == "b"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="no").models.list()
    assert "first-key" not in server.log()


def test_limits_come_from_flags(make_server):
    server = make_server("--max-n", "2", "--max-logprobs", "3", "--max-body", "1k", "--max-header", "512", "--max-model-len", "64")
    assert server.post("/v1/completions", {"prompt": "Hi", "n": 3}).error["param"] == "n"
    assert server.post("/v1/completions", {"prompt": "Hi", "logprobs": 4}).error["param"] == "logprobs"
    assert server.post("/v1/completions", {"prompt": "Hi" * 600}).error["code"] == "body_too_large"
    assert server.get("/health", {"X": "a" * 600}).error["code"] == "headers_too_large"
    reply = server.post("/v1/completions", {"prompt": [5] * 60, "max_tokens": 5})
    assert reply.error["code"] == "context_length_exceeded" and "65" in reply.error["message"] and "64" in reply.error["message"]
    assert server.complete([5] * 60)["usage"]["completion_tokens"] <= 4
    assert server.get("/v1/models").json()["data"][0]["max_model_len"] == 64


def test_too_many_connections(make_server):
    server = make_server("--max-connections", "4", "--io-threads", "1")
    busy = [begin(server, {**LONG, "max_tokens": 3500, "n": 16}) for _ in range(4)]
    for sock in busy:
        read_some(sock)
    with server.connect() as sock:
        assert b"503 Service Unavailable" in read_rest(sock)
    busy.pop().close()
    server.wait_until(lambda: _health_or_none(server) == 200, "a free place")
    idle = server.connect()
    idle.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    read_some(idle)
    assert server.get("/health").status == 200  # the idle one made room
    assert idle.recv(10) == b""
    for sock in busy:
        sock.close()


def _health_or_none(server):
    try:
        return server.get("/health").status
    except (OSError, ValueError):
        return None


def test_a_slow_reader_is_not_lost_and_does_not_stop_others(make_server):
    server = make_server()
    body = {**LONG, "max_tokens": 3000, "temperature": 0, "repetition_penalty": 1, "logprobs": True, "top_logprobs": 20}
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.settimeout(60)
    slow.connect(("127.0.0.1", server.port))
    text = json.dumps(body)
    slow.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
                 f"Content-Length: {len(text)}\r\n\r\n{text}".encode())
    server.wait_until(lambda: server.metrics()["stream_backlog_bytes"] > 200000, "a backlog")
    assert server.chat("Hello!", temperature=0)["choices"][0]["message"]["content"].startswith("Hello!")
    server.wait_until(lambda: server.metrics()["num_requests_running"] == 0, "the end of the computation", 60)
    assert server.metrics()["stream_backlog_bytes"] < 2 ** 20
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    answer = read_rest(slow)
    assert answer.count(b'"top_logprobs"') == 3000 and answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_reader_that_takes_nothing_is_dropped(make_server):
    server = make_server("--slow-client-timeout", "0.5")
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.settimeout(60)
    stuck.connect(("127.0.0.1", server.port))
    text = json.dumps({**LONG, "max_tokens": 3500, "n": 16, "logprobs": True, "top_logprobs": 20})
    stuck.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                  f"Content-Length: {len(text)}\r\n\r\n{text}".encode())
    server.wait_until(lambda: server.metrics()['requests_cancelled_total{cause="slow_client"}'] == 1, "the end of patience")
    server.wait_until_idle()
    assert server.metrics()['request_success_total{finished_reason="abort"}'] == 16
    assert server.metrics()["stream_backlog_bytes"] == 0
    stuck.close()


def test_metrics_of_a_session(make_server):
    server = make_server("--metrics-prefix", "vllm", "--log-format", "json")
    server.chat("Hello!", temperature=0, max_tokens=4)
    server.stream("/v1/completions", {"prompt": "Hi", "max_tokens": 5, "ignore_eos": True})
    assert server.post("/v1/completions", {"prompt": "Hi", "foo": 1}).status == 400
    values = server.metrics("vllm")
    assert values["generation_tokens_total"] == 9 and values['request_success_total{finished_reason="length"}'] == 2
    assert values['http_requests_total{route="/v1/completions",status="400"}'] == 1
    assert values['request_failure_total{code="unknown_parameter"}'] == 1
    assert values["time_to_first_token_seconds_count"] == 2
    assert values['time_to_first_token_seconds_bucket{le="+Inf"}'] == 2
    assert values["request_params_max_tokens_sum"] == 9 and values['request_params_n_bucket{le="1"}'] == 2
    assert sum(v for k, v in values.items() if k.startswith("http_thread_cpu_seconds_total")) > 0
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "conv_state_usage_perc",
                 "http_connections", "stream_backlog_bytes", "engine_healthy", "prompt_tokens_total",
                 "prompt_tokens_cached_total", "prefix_cache_queries_total", "prefix_cache_hits_total",
                 "num_preemptions_total", "corrupted_logits_total"):
        assert name in values
    for name in ("inter_token_latency_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
                 "request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds",
                 "request_prompt_tokens", "request_generation_tokens", "request_params_n", "iteration_tokens_total",
                 "delivery_lag_seconds"):
        buckets = [v for k, v in values.items() if k.startswith(name + "_bucket")]
        assert buckets and buckets == sorted(buckets) and buckets[-1] == values[name + "_count"]
    for phase, count in (("prefill", 2), ("decode", 3 + 4)):
        buckets = [v for k, v in values.items() if k.startswith('step_time_seconds_bucket{phase="' + phase)]
        assert buckets == sorted(buckets) and buckets[-1] == values[f'step_time_seconds_count{{phase="{phase}"}}'] == count
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines] == [200, 200, 400]
    assert lines[0]["route"] == "/v1/chat/completions" and lines[0]["completion_tokens"] == 4
    assert lines[0]["finish_reason"] == "length" and lines[2]["code"] == "unknown_parameter"
    assert all(line["client"] == "127.0.0.1" and not line["cancelled"] for line in lines)


def test_metrics_are_openmetrics_for_who_asks(server):
    server.get("/health")  # a request is counted after its answer: the first scrape must not be the first request
    # what Prometheus sends
    asked = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;q=0.3,*/*;q=0.2"
    plain, other = server.get("/metrics", {"Accept": "text/plain"}), server.get("/metrics", {"Accept": asked})
    assert plain.fields["content-type"].startswith("text/plain; version=0.0.4") and plain.fields["vary"] == "Accept"
    assert other.fields["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"

    def lines(reply, begin):
        return [line.split()[:4] for line in reply.body.decode().splitlines() if line.startswith(begin)]
    assert plain.body.count(b"# EOF") == 0 and other.body.endswith(b"\n# EOF\n") and other.body.count(b"# EOF") == 1
    named = [[a, b, name.removesuffix("_total") if kind == "counter" else name, kind] for a, b, name, kind in lines(plain, "# TYPE")]
    assert lines(other, "# TYPE") == named and [w for w in named if w[3] == "counter"]
    names = [{line[0].split("{")[0] for line in lines(reply, "headrace:")} for reply in (plain, other)]
    assert names[0] == names[1] and len(names[0]) > 40
    bounds = re.findall(rb'le="([^"]+)"', other.body)
    assert bounds and all(re.fullmatch(rb"\+Inf|[\d.]+\.\d+|\d\.?\d*e[+-]\d\d", bound) for bound in bounds)


def test_metrics_can_be_switched_off(make_server):
    server = make_server("--no-metrics")
    assert server.get("/metrics").status == 404 and server.get("/health").status == 200


def test_a_killed_server_leaves_nothing_in_the_way(headrace, tiny, make_server):
    first = make_server()
    begin(first, {**LONG, "max_tokens": 3500})
    port = first.port
    first.stop(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while True:  # the port is free at once or as soon as the kernel has let the connections go
        process = subprocess.Popen([headrace, "serve", tiny, "--port", str(port)], stdout=subprocess.PIPE, text=True,
                                   stderr=subprocess.DEVNULL)
        ready = process.stdout.readline()
        process.terminate()
        process.wait()
        if ready:
            break
        assert time.monotonic() < deadline


def test_events_that_wait_behind_much_output_are_sent(server):
    """16 echoes make more than may wait at once, though the client takes everything: the rest must not be forgotten."""
    events = server.stream("/v1/completions", {"prompt": "hello " * 500, "n": 16, "echo": True, "logprobs": 3,
                                               "max_tokens": 1})
    assert events[-1] is None
    assert sorted(choice["index"] for event in events[:-1] for choice in event["choices"]
                  if choice["finish_reason"] == "length") == list(range(16))


def test_one_large_event_does_not_drop_its_reader(server):
    """An echo with logprobs is one event of several MiB: that it does not fit the kernel's buffers is not the reader's
    fault."""
    body = json.dumps({"prompt": "hello " * 2000, "n": 6, "echo": True, "logprobs": 20, "max_tokens": 1, "stream": True})
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.settimeout(60)
    reader.connect(("127.0.0.1", server.port))
    with reader:
        reader.sendall(f"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
                       f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = b""
        while part := reader.recv(1 << 20):
            answer += part
    events = list(parse_events(answer.decode().partition("\r\n\r\n")[2]))
    assert events[-1] is None and {choice["index"] for event in events[:-1] for choice in event["choices"]} == set(range(6))


def test_a_batch_larger_than_the_queue_is_refused_for_good(make_server):
    server = make_server("--max-num-seqs", "2", "--max-num-queued-reqs", "4")
    ask = {"max_tokens": 2, "ignore_eos": True}
    reply = server.post("/v1/completions", {"prompt": ["a"] * 5, **ask})
    assert (reply.status, reply.error["param"]) == (400, "prompt") and "at most 4" in reply.error["message"]
    assert len(server.complete(["a"] * 4, **ask)["choices"]) == 4


def test_every_io_thread_sees_every_stop(make_server):
    """A phase set between a loop's look at it and its reading of the wake-up was lost: the server then never ended."""
    for _ in range(6):
        server = make_server("--io-threads", "4")
        assert server.stop() == 0
