"""256 streams at once, each equal, token by token, to the same request alone."""
import asyncio
import json

from server_fixture import parse_events

N = 256
WORDS = "red blue green seven cat dog house river sun moon tree bread tea book".split()


def body_of(i):
    content = f"Tell me about {WORDS[i % 14]} and {WORDS[(i // 14) % 14]}" + (f", {i} times." if i % 3 else ".")
    sampled = {"temperature": 1.2, "seed": i, "top_p": 0.9} if i % 2 else {"temperature": 0, "repetition_penalty": 1}
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 6 + i % 9, "ignore_eos": i % 4 == 0,
            "return_token_ids": True, "stream": True, **sampled}


def tokens_of(events):
    ids, text = [], ""
    for event in events:
        for choice in event["choices"] if event else []:
            ids += choice.get("token_ids", [])
            text += choice["delta"].get("content") or ""
    assert events[-1] is None
    return ids, text


async def stream(port, body):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    text = json.dumps(body)
    writer.write(f"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}"
                 .encode())
    answer = await reader.read(-1)
    writer.close()
    head, _, events = answer.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200"), answer
    return tokens_of(list(parse_events(events)))


async def all_at_once(port, bodies):
    return await asyncio.gather(*(stream(port, body) for body in bodies))


def test_256_streams_equal_their_solo_runs(server):
    bodies = [body_of(i) for i in range(N)]
    together = asyncio.run(all_at_once(server.port, bodies))
    for body, (ids, text) in zip(bodies, together):
        assert 0 < len(ids) <= body["max_tokens"]
        assert (ids, text) == tokens_of(server.stream("/v1/chat/completions", body)), body
    server.wait_until_idle()
    values = server.metrics()
    assert values['request_success_total{finished_reason="error"}'] == 0


def test_several_io_threads_serve_as_one(make_server):
    server = make_server("--io-threads", "3")
    bodies = [body_of(i) for i in range(48)]
    together = asyncio.run(all_at_once(server.port, bodies))
    assert [(ids, text) for ids, text in together] == [tokens_of(server.stream("/v1/chat/completions", body)) for body in bodies]
    assert sum(name.startswith("http_thread_cpu_seconds_total") for name in server.metrics()) == 3
    assert server.stop() == 0
