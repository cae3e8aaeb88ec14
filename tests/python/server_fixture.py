"""A running server for black-box tests: `headrace serve` on a port of its own, spoken to over the wire.

Fixtures: `server` (one for the session, the embedded model), `make_server` (with flags of the test's choice, ends with the test),
`client` (the official openai client on `server`).
"""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse

import pytest

JSON = {"Content-Type": "application/json"}


class Reply:
    """Status, header fields (lower case names) and body of one answer."""

    def __init__(self, status, fields, body):
        self.status, self.fields, self.body = status, fields, body

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json()["error"]


def start_program(arguments, environment=None):
    """Starts a program; its standard error goes to a file named .log_path on the returned process."""
    log = tempfile.NamedTemporaryFile(prefix="headrace-test-", suffix=".log", delete=False)
    process = subprocess.Popen([str(a) for a in arguments], stdout=subprocess.PIPE, stderr=log, text=True,
                               env={**os.environ, **(environment or {})})
    log.close()
    process.log_path = log.name
    return process


class Server:
    """A served model. Ends with stop(), or when the fixture ends."""

    def __init__(self, program, model, flags=(), environment=None):
        self.process = start_program([program, "serve", model, "--port", "0", *flags], environment)
        self.ready_line = self.process.stdout.readline()
        if not self.ready_line:
            raise RuntimeError(f"the server did not start: {self.log()}")
        self.url = re.search(r"ready on (\S+) ", self.ready_line).group(1)
        self.socket_path = self.url[len("unix:"):] if self.url.startswith("unix:") else None
        if not self.socket_path:
            self.port = urllib.parse.urlparse(self.url).port

    def log(self):
        with open(self.process.log_path) as file:
            return file.read()

    def connect(self, timeout=60):
        """A raw socket."""
        if self.socket_path:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout)
            sock.connect(self.socket_path)
            return sock
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def request(self, method, path, body=None, fields=None, timeout=120):
        connection = http.client.HTTPConnection("localhost", timeout=timeout)
        connection.sock = self.connect(timeout)
        try:
            connection.request(method, path, body, fields or {})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path, fields=None):
        return self.request("GET", path, fields=fields)

    def post(self, path, value, fields=None):
        body = value if isinstance(value, (bytes, str)) else json.dumps(value)
        return self.request("POST", path, body, {**JSON, **(fields or {})})

    def chat(self, content, **fields):
        """The whole JSON answer to one user message (or a list of messages)."""
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        reply = self.post("/v1/chat/completions", {"messages": messages, **fields})
        assert reply.status == 200, reply.body
        return reply.json()

    def complete(self, prompt, **fields):
        reply = self.post("/v1/completions", {"prompt": prompt, **fields})
        assert reply.status == 200, reply.body
        return reply.json()

    def stream(self, path, value):
        """Every event of a stream, [DONE] included as None."""
        reply = self.post(path, {**value, "stream": True})
        assert reply.status == 200, reply.body
        return list(parse_events(reply.body.decode()))

    def metrics(self, prefix="headrace"):
        """{name or name{labels}: value}, without the labels that every sample has."""
        values = {}
        for line in self.get("/metrics").body.decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                assert name.startswith(prefix + ":"), line
                name = re.sub(r'model_name="[^"]*",engine="0",?', "", name[len(prefix) + 1:]).replace("{}", "")
                values[name] = float(value)
        return values

    def wait_until(self, condition, what, seconds=30):
        """Waits for a state that another thread brings about; the limit only ends a hung test."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{self.log()[-2000:]}"
            time.sleep(0.02)

    def wait_until_idle(self):
        def idle():
            values = self.metrics()
            return values["num_requests_running"] == values["num_requests_waiting"] == 0 and values["kv_pages_used"] == 0 \
                and values["conv_state_usage_perc"] == 0
        self.wait_until(idle, "all pages and slots to be free")

    def stop(self, number=signal.SIGTERM, timeout=60):
        """Signals and waits; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process.stdout.close()


def parse_events(text):
    for block in text.split("\n\n"):
        if not block.strip() or block.startswith(":"):
            continue
        assert block.startswith("data: "), block
        yield None if block == "data: [DONE]" else json.loads(block[len("data: "):])


@pytest.fixture(scope="session")
def server(headrace, tiny):
    running = Server(headrace, tiny)
    yield running
    assert running.stop() == 0, running.log()


@pytest.fixture
def make_server(headrace, tiny):
    running = []

    def make(*flags, model=None, environment=None):
        running.append(Server(headrace, model or tiny, flags, environment))
        return running[-1]

    yield make
    for one in running:
        if one.process.poll() is None:
            one.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def client(server):
    import openai
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def greedy_cases(tiny):
    """Prompts with the one continuation that every correct engine gives."""
    return json.loads((tiny / "expected_greedy.json").read_text())["cases"]


@pytest.fixture(scope="session")
def eval_cases(tiny):
    """Held-out conversations by skill."""
    cases = {}
    for line in (tiny / "eval_cases.jsonl").read_text().splitlines():
        case = json.loads(line)
        cases.setdefault(case["skill"], []).append(case)
    return cases
