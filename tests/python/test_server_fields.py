"""Every request field: accepted values, refused values, and that an unknown one is refused by name.

The tables below repeat docs/http_api.md; a field of either endpoint that is missing here fails test_every_documented_field_is_tested.
"""
import re

import pytest

NO = "unsupported_parameter"
BAD = "invalid_value"
STRUCTURED = "structured_outputs_unavailable"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}

# field: (endpoints, accepted values, [(refused value, code)])
FIELDS = {
    "model": ("chat completions", ["tiny"], [("other", "model_not_found"), (1, BAD), ("a\0b", BAD)]),
    "messages": ("chat", [[{"role": "user", "content": "Hi"}], [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]],
                 [([], BAD), ("Hi", BAD), ([1], BAD), ([{"content": "Hi"}], BAD), ([{"role": "king", "content": "Hi"}], BAD),
                  ([{"role": "user"}], BAD), ([{"role": "user", "content": 1}], BAD),
                  ([{"role": "user", "content": None}], BAD), ([{"role": "user", "content": [{"type": "sound"}]}], NO),
                  ([{"role": "user", "content": [{"type": "text"}]}], BAD),
                  ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}],
                   "remote_media_disabled"),
                  ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}],
                   NO), ([{"role": "user", "content": "a"}] * 4097, BAD)]),
    "prompt": ("completions", ["Hi", ["Hi", "Ho"], [5, 6], [[5], [6]]],
               [([], BAD), (5, BAD), ([[]], BAD), (["a", 5], BAD), ([5, "a"], BAD), ([2048], BAD), ([-1], BAD), ([[5], "a"], BAD),
                (["a"] * 65, BAD), ({}, BAD), ([1.5], BAD), ([2 ** 40], BAD)]),
    "max_tokens": ("chat completions", [1, 2], [(0, BAD), (-1, BAD), (1.0, BAD), ("1", BAD), (True, BAD), (2 ** 31, BAD),
                                                (4096, "context_length_exceeded")]),
    "max_completion_tokens": ("chat", [1], [(0, BAD), (2, BAD)]),  # 2: differs from max_tokens
    "temperature": ("chat completions", [0, 0.5, 2], [(-0.1, BAD), (2.1, BAD), ("1", BAD), (True, BAD), ([], BAD)]),
    "top_p": ("chat completions", [0.1, 1], [(0, BAD), (1.1, BAD), (-1, BAD), (1e-60, BAD)]),
    "n": ("chat completions", [1, 3], [(0, BAD), (17, BAD), (-1, BAD), (1.5, BAD), (2 ** 62, BAD)]),
    "stop": ("chat completions", ["x", ["x", "y"], []],
             [([""], BAD), ("", BAD), (["x"] * 17, BAD), ("x" * 257, BAD), (5, BAD), (["x", 5], BAD), ("a\0", BAD)]),
    "stream": ("chat completions", [False], [(1, BAD), ("true", BAD)]),
    "stream_options": ("chat completions", [], [({"include_usage": True}, BAD), ([], BAD), ({"x": 1}, "unknown_parameter"),
                                                ({"include_usage": 1}, BAD), ({"include_obfuscation": True}, NO)]),
    "seed": ("chat completions", [0, -1, 2 ** 63 - 1, -2 ** 63], [(1.5, BAD), ("1", BAD), (2 ** 64, "invalid_json")]),
    "presence_penalty": ("chat completions", [-2, 0.5, 2], [(2.5, BAD), (-2.5, BAD), ("0", BAD)]),
    "frequency_penalty": ("chat completions", [-2, 0.5, 2], [(2.5, BAD), (-2.5, BAD), ("0", BAD)]),
    "logit_bias": ("chat completions", [{}, {"5": -100}, {"5": 1.5, "6": 100}],
                   [({"5": 101}, BAD), ({"2048": 1}, BAD), ({"-1": 1}, BAD), ({"a": 1}, BAD), ({"5": "1"}, BAD), ([], BAD),
                    ({str(i): 1 for i in range(1025)}, BAD)]),
    "logprobs": ("", [], []),  # differs by endpoint, see below
    "top_logprobs": ("chat", [], [(1, BAD), (21, BAD), (-1, BAD)]),  # 1: needs logprobs
    "response_format": ("chat completions", [{"type": "text"}],
                        [({"type": "json_object"}, STRUCTURED), ({"type": "json_schema", "json_schema": {}}, STRUCTURED),
                         ({"type": "xml"}, BAD), ({}, BAD), ("text", BAD)]),
    "tools": ("chat", [[TOOL], [TOOL["function"]], []],
              [([1], BAD), ("f", BAD), ([{}], BAD), ([{"type": "search"}], NO), ([{"type": "function"}], BAD),
               ([{"type": "function", "function": {}}], BAD), ([{"type": "function", "function": {"name": ""}}], BAD),
               ([{"type": "function", "function": {"name": "x" * 65}}], BAD),
               ([{"type": "function", "function": {"name": "f", "parameters": 1}}], BAD),
               ([{"type": "function", "function": {"name": "f", "strict": True}}], STRUCTURED), ([TOOL] * 129, BAD)]),
    "tool_choice": ("chat", ["auto", "none"],
                    [("required", NO), ({"type": "function", "function": {"name": "f"}}, NO), ("x", BAD), (1, BAD)]),
    "parallel_tool_calls": ("chat", [True], [(False, NO)]),
    "user": ("chat completions", ["me"], []),
    "store": ("chat", [True], []),
    "metadata": ("chat", [{"a": "b"}], []),
    "service_tier": ("chat", ["auto"], []),
    "safety_identifier": ("chat", ["x"], []),
    "prompt_cache_key": ("chat", ["x"], []),
    "spaces_between_special_tokens": ("chat completions", [True], []),
    "top_k": ("chat completions", [-1, 0, 5], [(-2, BAD), (1.5, BAD), ("5", BAD)]),
    "min_p": ("chat completions", [0, 0.5, 1], [(-0.1, BAD), (1.1, BAD)]),
    "repetition_penalty": ("chat completions", [0.5, 1, 10], [(0, BAD), (-1, BAD), (10.5, BAD)]),
    "min_tokens": ("chat completions", [0, 1], [(-1, BAD), (5, BAD), (1.5, BAD)]),  # 5: more than max_tokens
    "ignore_eos": ("chat completions", [True, False], [(1, BAD)]),
    "stop_token_ids": ("chat completions", [[], [7, 5]], [([2048], BAD), ([-1], BAD), (["7"], BAD), (7, BAD), ([5] * 17, BAD)]),
    "include_stop_str_in_output": ("chat completions", [True], [(1, BAD)]),
    "skip_special_tokens": ("chat completions", [True, False], [(1, BAD)]),
    "prompt_logprobs": ("chat completions", [0, 2], [(-1, BAD), (21, BAD), (True, BAD)]),
    "truncate_prompt_tokens": ("chat completions", [1, 5, -1], [(0, BAD), (-2, BAD), (5000, BAD), ("1", BAD)]),
    "add_generation_prompt": ("chat", [True, False], [(1, BAD)]),
    "continue_final_message": ("chat", [False], [("x", BAD)]),
    "chat_template_kwargs": ("chat", [{}, {"keep_past_thinking": True}, {"preserve_thinking": False}],
                             [({"bos_token": "x"}, NO), ({"keep_past_thinking": 1}, BAD), ([], BAD)]),
    "add_special_tokens": ("completions", [True, False], [(1, BAD)]),
    "echo": ("completions", [True, False], [(1, BAD)]),
    "priority": ("chat completions", [0, -5, 5], [(1.5, BAD), (2 ** 31, BAD)]),
    "request_id": ("chat completions", ["abc-1_2"], [("", BAD), ("a b", BAD), ("x" * 65, BAD), (1, BAD)]),
    "return_token_ids": ("chat completions", [True, False], [(1, BAD)]),
    "cache_salt": ("chat completions", ["x"], [("", BAD), (1, BAD)]),
    "speculative.n_max": ("chat completions", [0, 16], [(-1, BAD), (17, BAD), (1.5, BAD), ("4", BAD)]),
    "structured_outputs": ("chat completions", [], [({"regex": "a"}, STRUCTURED)]),
    "guided_json": ("chat completions", [], [({}, STRUCTURED)]),
    "guided_regex": ("chat completions", [], [("a", STRUCTURED)]),
    "guided_choice": ("chat completions", [], [(["a"], STRUCTURED)]),
    "guided_grammar": ("chat completions", [], [("a", STRUCTURED)]),
    "best_of": ("chat completions", [1], [(2, NO)]),
    "use_beam_search": ("chat completions", [False], [(True, NO)]),
    "length_penalty": ("chat completions", [1, 1.0], [(2, NO)]),
    "modalities": ("chat", [["text"]], [(["audio"], NO), (["text", "audio"], NO)]),
    "suffix": ("completions", [], [("x", NO)]),
    "functions": ("chat", [], [([], NO)]),
    "function_call": ("chat", [], [("auto", NO)]),
    "audio": ("chat", [], [({}, NO)]),
    "prediction": ("chat", [], [({}, NO)]),
    "web_search_options": ("chat", [], [({}, NO)]),
    "reasoning_effort": ("chat", [], [("low", NO)]),
    "verbosity": ("chat", [], [("low", NO)]),
    "chat_template": ("chat", [], [("{{ 1 }}", NO)]),
    "documents": ("chat", [], [([], NO)]),
    "mm_processor_kwargs": ("chat completions", [], [({}, NO)]),
    "logits_processors": ("chat completions", [], [([], NO)]),
    "bad_words": ("chat completions", [], [(["x"], NO)]),
    "allowed_token_ids": ("chat completions", [], [([5], NO)]),
}


def body_of(endpoint):
    first = {"messages": [{"role": "user", "content": "Hi"}]} if endpoint == "chat" else {"prompt": "Hi there"}
    return {**first, "max_tokens": 1}


def path_of(endpoint):
    return "/v1/chat/completions" if endpoint == "chat" else "/v1/completions"


PAIRS = [(field, endpoint) for field in FIELDS for endpoint in ("chat", "completions") if endpoint in FIELDS[field][0].split()]


@pytest.mark.parametrize("field, endpoint", PAIRS)
def test_a_field_takes_its_range_and_nothing_else(server, field, endpoint):
    _, accepted, refused = FIELDS[field]
    for value in [*accepted, *([None] if field not in ("messages", "prompt") else [])]:
        reply = server.post(path_of(endpoint), {**body_of(endpoint), field: value})
        assert reply.status == 200, (value, reply.body)
    for value, code in refused:
        reply = server.post(path_of(endpoint), {**body_of(endpoint), field: value})
        assert reply.error["code"] == code, (value, reply.body)
        assert reply.status == (404 if code == "model_not_found" else 400)
        assert reply.error["type"] == "invalid_request_error"
        if code not in ("invalid_json", "context_length_exceeded"):
            assert reply.error["param"].startswith(field), (value, reply.error)
            assert field.split(".")[0] in reply.error["message"] or code in (BAD, NO, "remote_media_disabled",
                                                                             "unknown_parameter", "model_not_found")


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_unknown_fields_are_refused_by_name(server, endpoint):
    others = [f for f, (endpoints, _, _) in FIELDS.items() if endpoints and endpoint not in endpoints.split()]
    for field in ["foo", "Temperature", "top-p", "tokens", *others]:
        reply = server.post(path_of(endpoint), {**body_of(endpoint), field: None})
        assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "unknown_parameter", field), field


def test_logprobs_is_a_boolean_in_chat_and_a_number_in_completions(server):
    for value, code in [(True, None), (False, None), (1, BAD), ("true", BAD)]:
        reply = server.post(path_of("chat"), {**body_of("chat"), "logprobs": value})
        assert (reply.error["code"] if reply.status == 400 else None) == code
    for value, code in [(0, None), (20, None), (21, BAD), (-1, BAD), (True, BAD), (1.5, BAD)]:
        reply = server.post(path_of("completions"), {**body_of("completions"), "logprobs": value})
        assert (reply.error["code"] if reply.status == 400 else None) == code
    for top in (0, 1, 20):
        entry = server.post(path_of("chat"), {**body_of("chat"), "logprobs": True, "top_logprobs": top}).json()
        assert len(entry["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == top


def test_missing_fields_are_named(server):
    for endpoint, field in (("chat", "messages"), ("completions", "prompt")):
        for body in ({}, {field: None}):
            reply = server.post(path_of(endpoint), body)
            assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "missing_field", field)
    assert server.post("/tokenize", {}).error["code"] == "missing_field"
    assert server.post("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}).status == 400
    assert server.post("/detokenize", {}).error["code"] == "missing_field"
    assert server.post("/detokenize", {"tokens": [99999]}).error["param"] == "tokens[0]"


def test_fields_that_exclude_each_other(server):
    reply = server.post(path_of("chat"), {**body_of("chat"), "add_generation_prompt": True, "continue_final_message": True})
    assert reply.error["param"] == "continue_final_message"
    reply = server.post(path_of("chat"), {**body_of("chat"), "stream": True, "prompt_logprobs": 1})
    assert reply.error["param"] == "prompt_logprobs"


@pytest.mark.parametrize("body, code", [
    (b"", "invalid_json"), (b"{", "invalid_json"), (b"[]", "invalid_json"), (b"null", "invalid_json"), (b"{} {}", "invalid_json"),
    (b'{"prompt": "a", "prompt": "b"}', "invalid_json"), (b'{"prompt": "\\ud800"}', "invalid_json"),
    (b'{"prompt": "\xff"}', "invalid_utf8"), (b'{"prompt": "\xed\xa0\x80"}', "invalid_utf8"),
    (b'{"prompt": ' + b"[" * 65 + b"]" * 65 + b"}", "invalid_json"), (b'{"prompt": ' + b"[" * 100000, "invalid_json"),
    (b'{"prompt": "a", "temperature": NaN}', "invalid_json"), (b'{"prompt": "a", "temperature": 1e999}', "invalid_json"),
    (b'{"prompt": "a", "seed": 99999999999999999999}', "invalid_json"), (b"{'prompt': 'a'}", "invalid_json"),
    (b'{"prompt": "a\nb"}', "invalid_json"), (b'{"a\\u0000b": 1}', "invalid_json"),
])
def test_broken_json_is_refused(server, body, code):
    reply = server.post("/v1/completions", body)
    assert (reply.status, reply.error["code"]) == (400, code)


def test_error_texts_do_not_repeat_the_prompt(server):
    for body in (b'{"prompt": "CANARY", }', b'{"prompt": "CANARY" "CANARY"}', b'{"messages": "CANARY"}',
                 b'{"messages": [{"role": "CANARY", "content": "a"}]}', b'{"prompt": ["CANARY", 5]}'):
        for path in ("/v1/completions", "/v1/chat/completions"):
            reply = server.post(path, body)
            assert reply.status == 400 and b"CANARY" not in reply.body
    server.complete("CANARY", max_tokens=1)
    server.chat("CANARY", max_tokens=1)
    assert "CANARY" not in server.log()
    assert b"CANARY" not in server.get("/metrics").body


def test_every_documented_field_is_tested(source_dir):
    text = (source_dir / "docs" / "http_api.md").read_text()
    section = text[text.index("## Request fields"):text.index("## Answers")]
    documented = set(re.findall(r"^\| `([a-z_.]+)`", section, re.M))
    assert documented == set(FIELDS)
