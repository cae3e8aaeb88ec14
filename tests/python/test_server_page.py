"""What a server tells about itself: the page at /, /openapi.json, /props, /slots. The schema is held against the tables of the
server's source, against the documentation, against every field value that is accepted or refused, and against real answers."""
import json
import re
import subprocess

import pytest
from test_server_fields import FIELDS, NO, STRUCTURED, body_of
from test_server_life import LONG, begin, read_some

# Runs where jsonschema is: [[name of a schema, value], …] on stdin, [messages, …] on stdout, "" for a value that fits.
VALIDATE = """
import json, sys
from jsonschema import Draft202012Validator
work = json.load(sys.stdin)
Draft202012Validator.check_schema({"$defs": work["document"]["components"]["schemas"]})
def check(name, value):
    schema = {"$ref": "#/components/schemas/" + name, "components": work["document"]["components"]}
    return "; ".join(str(e.message) for e in Draft202012Validator(schema).iter_errors(value))
json.dump([check(*pair) for pair in work["pairs"]], sys.stdout)
"""


@pytest.fixture(scope="module")
def document(server):
    return server.get("/openapi.json").json()


@pytest.fixture(scope="module")
def routes(source_dir):
    """{(method, path)} of the server's own table; * is a name."""
    text = (source_dir / "csrc/server/routes.c").read_text()
    rows = re.findall(r'^    \{"([A-Z]+)", "([^"]+)", hr_handle_\w+, (AUTH_\w+), ', text, re.M)
    assert len(rows) > 10
    return {(method, pattern.replace("*", "{name}")): auth for method, pattern, auth in rows}


@pytest.fixture
def validate(litellm_python, document):
    def run(pairs):
        ended = subprocess.run([litellm_python, "-c", VALIDATE], input=json.dumps({"document": document, "pairs": pairs}), text=True,
                               capture_output=True, check=True)
        return json.loads(ended.stdout)
    return run


# ---------------------------------------------------------------- the schema

def test_the_schema_has_every_route_and_no_other(document, routes):
    described = {(method.upper(), path): bool(entry.get("security"))
                 for path, methods in document["paths"].items() for method, entry in methods.items()}
    assert described == {route: auth == "AUTH_KEY" for route, auth in routes.items()}
    assert document["openapi"].startswith("3.1.")
    names = [entry["operationId"] for methods in document["paths"].values() for entry in methods.values()]
    assert len(set(names)) == len(names)


def test_the_documentation_has_every_route_and_no_other(source_dir, routes):
    text = (source_dir / "docs/http_api.md").read_text()
    section = text[text.index("## Routes"):text.index("## Request fields")]
    rows = re.findall(r"^\| (`[^|]+`) \| (GET|POST) \| (yes|no) \|", section, re.M)
    documented = {(method, path.replace("NAME", "{name}")): key == "yes"
                  for paths, method, key in rows for path in re.findall(r"`([^`]+)`", paths)}
    assert documented == {route: auth == "AUTH_KEY" for route, auth in routes.items()}


def test_the_schema_has_every_request_field_and_no_other(document, source_dir):
    text = (source_dir / "csrc/server/openai_fields.c").read_text()
    kinds = {"ChatRequest": {"HR_FOR_CHAT", "ALL", "CHAT_TEXT", "EVERY"},
             "CompletionRequest": {"HR_FOR_COMPLETIONS", "ALL", "EVERY"},
             "TokenizeRequest": {"HR_FOR_TOKENIZE", "CHAT_TEXT", "EVERY"},
             "DetokenizeRequest": {"HR_FOR_DETOKENIZE", "EVERY"}}
    rows = re.findall(r'^    \{"([\w.]+)", ([A-Z_| ]+), FIELD_', text, re.M)
    assert len(rows) > 60
    for name, wanted in kinds.items():
        schema = document["components"]["schemas"][name]
        assert set(schema["properties"]) == {field for field, where in rows if wanted & set(where.split(" | "))}, name
        assert schema["additionalProperties"] is False


def test_every_reference_leads_somewhere(document):
    for target in set(re.findall(r'"\$ref": ?"#/([^"]+)"', json.dumps(document))):
        at = document
        for part in target.split("/"):
            at = at[part]
        assert isinstance(at, dict)


def test_values_that_the_server_accepts_fit_the_schema(validate):
    pairs = [("ChatRequest" if endpoint == "chat" else "CompletionRequest", {**body_of(endpoint), field: value})
             for field, (endpoints, accepted, _) in FIELDS.items() for endpoint in endpoints.split()
             for value in [*accepted, *([None] if field not in ("messages", "prompt") else [])]]
    pairs += [("ChatRequest", {**body_of("chat"), "logprobs": True}), ("CompletionRequest", {**body_of("completions"), "logprobs": 2}),
              ("TokenizeRequest", {"prompt": "a", "return_token_strs": True}), ("DetokenizeRequest", {"tokens": [5]})]
    assert [(pair, said) for pair, said in zip(pairs, validate(pairs)) if said] == []


def test_values_that_the_server_does_not_support_do_not_fit_the_schema(validate):
    pairs = [("ChatRequest" if endpoint == "chat" else "CompletionRequest", {**body_of(endpoint), field: value})
             for field, (endpoints, _, refused) in FIELDS.items() for endpoint in endpoints.split()
             for value, code in refused if code in (NO, STRUCTURED)]
    assert len(pairs) > 40
    assert [pair for pair, said in zip(pairs, validate(pairs)) if not said] == []


def test_answers_fit_the_schema(server, make_server, validate, greedy_cases):
    other = make_server("--enable-per-request-metrics")
    case = next(c for c in greedy_cases if c["skill"] == "tool_call")
    told = {"logprobs": True, "top_logprobs": 2, "n": 2, "max_tokens": 5, "return_token_ids": True}
    chat = {"messages": [{"role": "user", "content": "Hello!"}], **told, "stream_options": {"include_usage": True}}
    text = {"prompt": "Hi", "max_tokens": 5, "logprobs": 2, "echo": True, "stream_options": {"include_usage": True}}
    pairs = [("ChatAnswer", other.chat("Hello!", **told, prompt_logprobs=1)),
             ("ChatAnswer", server.chat(case["messages"], tools=case["tools"], temperature=0, repetition_penalty=1)),
             ("CompletionAnswer", server.complete(["Hi", "Ho"], max_tokens=5, logprobs=2, echo=True, return_token_ids=True)),
             *[("ChatChunk", event) for event in other.stream("/v1/chat/completions", chat)[:-1]],
             *[("CompletionChunk", event) for event in other.stream("/v1/completions", text)[:-1]],
             ("ModelList", server.get("/v1/models").json()), ("Model", server.get("/v1/models/tiny").json()),
             ("TokenizeAnswer", server.post("/tokenize", {"prompt": "Hi", "return_token_strs": True}).json()),
             ("DetokenizeAnswer", server.post("/detokenize", {"tokens": [5, 6]}).json()),
             ("Status", server.get("/ready").json()), ("Version", server.get("/version").json()),
             ("Load", server.get("/load").json()), ("Props", server.get("/props").json()),
             *[("Slot", slot) for slot in server.get("/slots").json()],
             ("Error", server.get("/nowhere").json()), ("Error", server.post("/v1/completions", {}).json())]
    assert pairs[1][1]["choices"][0]["message"]["tool_calls"]
    assert [(pair, said) for pair, said in zip(pairs, validate(pairs)) if said] == []


# ---------------------------------------------------------------- props and slots

def test_props_tell_defaults_and_limits(make_server):
    server = make_server("--max-model-len", "256", "--max-num-seqs", "3", "--max-n", "5", "-a", "x,y")
    props = server.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 256 and props["total_slots"] == 3
    params = props["default_generation_settings"]["params"]
    assert (params["temperature"], params["min_p"], params["repeat_penalty"]) == (0.3, 0.15, 1.05)
    assert props["limits"]["max_n"] == 5 and props["model_alias"] == "x"
    assert props["bos_token"] == "<|startoftext|>" and props["eos_token"] == "<|im_end|>"
    assert b"/" not in server.get("/props").body.replace(b"</", b"")  # no place in the file system


def test_slots_tell_how_much_runs_and_never_what(make_server):
    server = make_server("--max-num-seqs", "4")
    assert [slot["is_processing"] for slot in server.get("/slots").json()] == [False] * 4
    busy = [begin(server, {**LONG, "messages": [{"role": "user", "content": "CANARY"}], "max_tokens": 3500}) for _ in range(2)]
    for sock in busy:
        read_some(sock)
    slots = server.get("/slots").json()
    assert [s["is_processing"] for s in slots] == [True, True, False, False]
    for slot in slots[:2]:
        assert slot["n_prompt_tokens"] > 5 and slot["n_prompt_tokens_cache"] >= 0 and 1 <= slot["n_decoded"] < 3500
    assert "n_decoded" not in slots[2]
    server.wait_until(lambda: server.get("/slots").json()[0]["n_decoded"] > slots[0]["n_decoded"], "more tokens")
    assert b"CANARY" not in server.get("/slots").body + server.get("/props").body
    for sock in busy:
        sock.close()
    server.wait_until_idle()
    server.wait_until(lambda: not any(s["is_processing"] for s in server.get("/slots").json()), "free slots")
    server.complete("Hi", n=4, max_tokens=3)
    server.complete(["Hi"] * 8, max_tokens=3)  # more sequences than slots
    assert [len(s) for s in server.get("/slots").json()] == [3] * 4


def test_props_and_slots_need_the_key_and_the_page_does_not(make_server):
    server = make_server("--api-key", "sk1")
    for path in ("/props", "/slots"):
        assert server.get(path).status == 401 and server.get(path, {"Authorization": "Bearer sk1"}).status == 200
    assert server.get("/").status == server.get("/openapi.json").status == 200


# ---------------------------------------------------------------- the page

def test_the_page_is_one_small_file_without_foreign_parts(server, source_dir, routes):
    reply = server.get("/")
    page = reply.body.decode()
    assert reply.status == 200 and reply.fields["content-type"] == "text/html; charset=utf-8" and len(reply.body) <= 100_000
    assert reply.body == (source_dir / "csrc/server/web/index.html").read_bytes()
    policy = reply.fields["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "http:" not in page and "https:" not in page and not re.search(r'(src|href)="(?!data:)', page)
    assert "innerHTML = '" in page and page.count("innerHTML") == 1  # markup only where it is a constant
    fetched = re.findall(r'fetch\("([^"]+)"', page)
    assert set(fetched) == {"v1/models", "v1/chat/completions", "metrics"} <= {path[1:] for _, path in routes}


def test_the_page_shows_metrics_that_exist(server, source_dir):
    page = server.get("/").body.decode()
    names = {name for name in re.findall(r"\b(?:now|old)\.(\w+)", page)}
    names |= {name + end for name in re.findall(r'mean\("(\w+)"', page) for end in ("_sum", "_count")}
    assert len(names) >= 9 and names <= set(server.metrics())


def test_the_page_can_be_switched_off(make_server):
    server = make_server("--no-webui")
    assert (server.get("/").status, server.get("/").error["code"]) == (404, "not_found")
    assert server.get("/openapi.json").status == 200
