#!/usr/bin/env python3
"""Serves the embedded model on the GPU and compares greedy answers with the stored ones: the whole way on the device.

    served.py HEADRACE
"""
import json
import pathlib
import re
import subprocess
import sys
import urllib.request

SOURCE = pathlib.Path(__file__).resolve().parents[2]
TINY = SOURCE / "csrc" / "embedded" / "tiny"


def ask(url, body):
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def main():
    server = subprocess.Popen([sys.argv[1], "serve", str(TINY), "--device", "cuda", "--port", "0"], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
    failed = 0
    try:
        url = None
        for line in server.stdout:
            print(line, end="")
            if found := re.search(r"ready on (http:\S+)", line):
                url = found[1]
                break
        if not url:
            sys.exit("the server did not start")
        cases = json.loads((TINY / "expected_greedy.json").read_text())
        for i, case in enumerate(cases["cases"]):
            body = {"model": "tiny", "prompt": case["prompt_ids"], "max_tokens": len(case["output_ids"]), "temperature": 0,
                    "repetition_penalty": 1, "return_token_ids": True}
            got = ask(url, body)["choices"][0].get("token_ids")
            same, is_close = got == case["output_ids"], case["min_margin"] < 0.5
            failed += not same and not is_close
            print(f"case {i}: {'equal' if same else 'different'}{' (two logits nearly tie: bf16 may part)' if is_close else ''}")
            if not same:
                print(f"  expected {case['output_ids']}\n  got      {got}")
    finally:
        server.terminate()
        server.wait(30)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
