"""Speculative decoding: tokens a second of one stream, and of several, with and without guesses.

    speculative.py [--model tiny] [--draft PATH] [--tokens 128] [--streams 1,8] [--rounds 5] [--ids] [--save]

Servers with the same model stand side by side and answer the same requests in turn, so that a change of the machine's speed meets all of
them: without guesses, with prompt lookup, and with a draft model if one is named. --ids asks with token ids, for checkpoints of
random weights: a bias makes their `repeats` say one token for ever, which is the most that guesses can bring. `repeats` is greedy after a prompt that repeats itself;
`wanders` is drawn at temperature 1 after one that does not, where guesses can only cost. Answers must be equal, token for token.
"""
import argparse
import concurrent.futures
import http.client
import json
import pathlib
import re
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import HEADRACE, median, save  # noqa: E402

IDS = {"repeats": [20 + i % 12 for i in range(96)], "wanders": [20 + i * i * 7 % 1900 for i in range(96)]}
KINDS = {
    "repeats": {"prompt": "name: Ada, town: London; name: Alan, town: London; " * 6, "temperature": 0},
    "wanders": {"prompt": "A letter from the harbour, written in haste and never sent:", "temperature": 1, "seed": 5},
}


class Server:
    def __init__(self, model, flags):
        command = [HEADRACE, "serve", model, "--port", "0", "--quiet", "--enable-per-request-metrics", "--no-enable-prefix-caching", *flags]
        self.process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True)
        self.port = int(re.search(r"ready on http://[^:]+:(\d+)", self.process.stdout.readline()).group(1))

    def ask(self, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = json.loads(connection.getresponse().read())
        connection.close()
        if "error" in reply:
            sys.exit(f"the server answered: {reply['error']['message']}")
        return reply

    def close(self):
        self.process.terminate()
        self.process.wait()


def measure(server, kind, n_tokens, n_streams, with_ids):
    """(tokens a second over all streams, part of the guesses that were right, the answers)."""
    bodies = [{**KINDS[kind], "seed": 5 + i, "max_tokens": n_tokens, "ignore_eos": True, "return_token_ids": True} for i in range(n_streams)]
    for body in bodies if with_ids else []:
        body["prompt"] = IDS[kind]
        if kind == "repeats":
            body["logit_bias"] = {"50": 100}
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(n_streams) as pool:
        replies = list(pool.map(server.ask, bodies))
    seconds = time.perf_counter() - begin
    guessed = sum(r["metrics"].get("draft_tokens", 0) for r in replies)
    right = sum(r["metrics"].get("accepted_draft_tokens", 0) for r in replies)
    return n_streams * n_tokens / seconds, right / guessed if guessed else 0.0, [r["choices"][0]["token_ids"] for r in replies]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--draft")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--streams", default="1,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ids", action="store_true")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    ways = {"without": [], "lookup": ["--draft-max", "5"]}
    if arguments.draft:
        ways["draft"] = ["--model-draft", arguments.draft, "--draft-max", "4"]
    servers = {way: Server(arguments.model, flags) for way, flags in ways.items()}
    results = []
    try:
        for kind in KINDS:
            for n_streams in map(int, arguments.streams.split(",")):
                found = {way: [] for way in ways}
                for _ in range(arguments.rounds + 1):  # the first one warms up
                    for way, server in servers.items():
                        found[way].append(measure(server, kind, arguments.tokens, n_streams, arguments.ids))
                for way in ways:
                    if any(answers != found["without"][0][2] for _, _, answers in found[way]):
                        sys.exit(f"{kind}, {n_streams} streams: the answers {way} differ")
                plain = median([speed for speed, _, _ in found["without"][1:]])
                for way in ways:
                    speed, right = median([s for s, _, _ in found[way][1:]]), found[way][-1][1]
                    results.append({"text": kind, "streams": n_streams, "guesses": way, "tokens_per_second": speed, "right": right,
                                    "ratio": speed / plain})
                    print(f"{kind:8} {n_streams:3} streams  {way:8} {speed:8.1f} tokens/s  x {speed / plain:.2f}  "
                          f"{100 * right:3.0f} % of the guesses right")
    finally:
        for server in servers.values():
            server.close()
    if arguments.save:
        save("speculative", "./dev bench speculative " + " ".join(sys.argv[1:]), results)


if __name__ == "__main__":
    main()
