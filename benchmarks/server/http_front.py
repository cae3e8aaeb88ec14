"""CPU time that the HTTP front spends on a streamed token.

Starts `headrace serve`, opens STREAMS concurrent streamed chats of TOKENS tokens each, reads them to the end, and divides the CPU time of
the server's I/O threads (metric http_thread_cpu_seconds_total) by the tokens streamed. Accepting, parsing, tokenising and the
closing of each request are in it.

    http_front.py [--streams 64] [--tokens 200] [--repeat 3] [--program FILE] [--save]
"""
import argparse
import asyncio
import json
import pathlib
import re
import subprocess
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import HEADRACE, SOURCE, median, save  # noqa: E402


def metrics(url):
    values = {}
    for line in urllib.request.urlopen(url + "/metrics").read().decode().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = re.sub(r"\{.*", "", name).split(":")[1]
            values[name] = values.get(name, 0) + float(value)
    return values


async def stream(port, body, arrivals):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    text = json.dumps(body)
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
                 f"Content-Length: {len(text)}\r\n\r\n{text}".encode())
    n_events = 0
    while data := await reader.read(65536):
        n_events += data.count(b"\ndata: ")
        arrivals.append(time.perf_counter())
    writer.close()
    return n_events


async def run_all(port, n_streams, n_tokens):
    bodies = [{"messages": [{"role": "user", "content": f"Tell me a story about the number {i}."}], "max_tokens": n_tokens,
               "ignore_eos": True, "stream": True, "seed": i} for i in range(n_streams)]
    arrivals = []
    return sum(await asyncio.gather(*(stream(port, body, arrivals) for body in bodies))), len(arrivals)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(HEADRACE))
    parser.add_argument("--model", default=str(SOURCE / "csrc" / "embedded" / "tiny"))
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--flag", action="append", default=[], help="passed on to serve, e.g. --flag=--io-threads=1")
    arguments = parser.parse_args()
    server = subprocess.Popen([arguments.program, "serve", arguments.model, "--port", "0", "--no-log-requests", *arguments.flag],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = re.search(r"ready on (\S+) ", server.stdout.readline()).group(1)
        port = int(url.rsplit(":", 1)[1])
        rows = []
        for _ in range(arguments.repeat + 1):
            before, start = metrics(url), time.perf_counter()
            n_events, n_reads = asyncio.run(run_all(port, arguments.streams, arguments.tokens))
            seconds, after = time.perf_counter() - start, metrics(url)
            tokens = after["generation_tokens_total"] - before["generation_tokens_total"]
            cpu = after["http_thread_cpu_seconds_total"] - before["http_thread_cpu_seconds_total"]
            rows.append({"tokens": int(tokens), "sse_events": n_events, "tokens_per_s": round(tokens / seconds),
                         "front_cpu_us_per_token": round(1e6 * cpu / tokens, 2)})
        rows = rows[1:]  # the first run warms up
        results = {"streams": arguments.streams, "tokens_each": arguments.tokens, "runs": rows,
                   "median_front_cpu_us_per_token": median([row["front_cpu_us_per_token"] for row in rows])}
        print(json.dumps(results, indent=1))
        if arguments.save:
            save("http", "./dev bench http " + " ".join(sys.argv[1:]), results)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
