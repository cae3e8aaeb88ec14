"""litellm as a judge, in a Python of its own."""
import json
import subprocess
import textwrap

SCRIPT = """
    import json, sys
    import litellm
    url, tools = sys.argv[1], json.loads(sys.argv[3])
    common = dict(model="openai/tiny", api_base=url + "/v1", api_key="none", temperature=0, num_retries=0,
                  extra_body={"repetition_penalty": 1})
    hello = [{"role": "user", "content": "Hello!"}]
    whole = litellm.completion(messages=hello, **common)
    pieces, usage = [], None
    for chunk in litellm.completion(messages=hello, stream=True, stream_options={"include_usage": True}, **common):
        pieces.append((chunk.choices[0].delta.content or "") if chunk.choices else "")
        usage = getattr(chunk, "usage", None) or usage
    call = litellm.completion(messages=json.loads(sys.argv[2]), tools=tools, **common).choices[0]
    try:
        litellm.completion(messages=hello, **{**common, "temperature": 9})
        error = None
    except litellm.BadRequestError as caught:
        error = caught.status_code
    try:
        litellm.completion(messages=[{"role": "user", "content": "word " * 9000}], **common)
        too_long = None
    except litellm.ContextWindowExceededError as caught:
        too_long = "ContextWindowExceededError"
    except litellm.BadRequestError as caught:
        too_long = str(caught)
    print(json.dumps({"whole": whole.choices[0].message.content, "pieces": pieces, "tokens": usage.completion_tokens,
                      "finish": call.finish_reason, "name": call.message.tool_calls[0].function.name, "error": error,
                      "too_long": too_long}))
"""


def test_litellm_talks_to_the_server(server, litellm_python, greedy_cases):
    case = next(c for c in greedy_cases if c["skill"] == "tool_call")
    result = subprocess.run([litellm_python, "-c", textwrap.dedent(SCRIPT), server.url, json.dumps(case["messages"]),
                             json.dumps(case["tools"])], capture_output=True, text=True, timeout=300,
                            env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PATH": "/usr/bin:/bin"})
    assert result.returncode == 0, result.stderr[-3000:]
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen["whole"] == "".join(seen["pieces"]) == "Hello! How can I help you today?"
    assert seen["tokens"] == 10 and seen["finish"] == "tool_calls" and f"[{seen['name']}(" in case["output_text"]
    assert seen["error"] == 400 and "context" in seen["too_long"].lower()
