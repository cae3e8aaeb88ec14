"""What each weight format costs in quality, on the embedded model: `headrace convert`, then how far the result is from the original.

    quality.py [--types q8_0,q4_k_m] [--part BYTES] [--no-exact] [--no-tasks] [--save] | --show

The base of every comparison is the original (BF16 weights) by the plain fp32 path. Two paths are measured against it: the plain
one, which shows what the weights alone lost, and the default one, which also rounds activations to int8 (with quantised
weights) or to bf16. Tasks are the 720 held-out cases beside the model: a case counts when the engine, decoding greedily,
gives the whole expected answer and the end token. With importance: weighed by an imatrix of a calibration text, made here from
the generator of the model's training text with a seed of its own, so that neither the evaluated text nor the cases are in it.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import HEADRACE, SOURCE, save  # noqa: E402

TINY = SOURCE / "csrc" / "embedded" / "tiny"
TYPES = ["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"]
WEIGHED = {"q6_k", "q5_k_m", "q4_k_m", "q4_0"}  # where importance is looked at
CALIBRATION_BYTES, END, PROMPTS_AT_ONCE = 200_000, 7, 64


def headrace(*arguments):
    return subprocess.run([HEADRACE, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def write_calibration(path):
    """Conversations and prose as in training, of a seed that neither training nor evaluation used."""
    sys.path.insert(0, str(TINY))
    import corpus
    documents, size = [], 0
    while size < CALIBRATION_BYTES:
        documents.append(corpus.document("calibration", len(documents)))
        size += len(documents[-1].encode())
    path.write_text("".join(documents), encoding="utf-8")


def score(model, text, *flags):
    got = json.loads(headrace("score", model, text, "--kl", TINY, "--exact-base", "--device", "cpu", "--json", *flags))
    return {"perplexity": got["perplexity"], "perplexity_ratio": got["perplexity_ratio"], "perplexity_ratio_error": got["perplexity_ratio_error"],
            "kl_mean": got["kl"]["mean"], "kl_mean_error": got["kl"]["mean_error"], "kl_median": got["kl"]["median"], "kl_p99": got["kl"]["p99"],
            "kl_max": got["kl"]["max"], "rms_probability_difference": got["probability_difference"]["rms"], "same_top": got["same_top"],
            "tokens": got["tokens"]}


class Server:
    def __init__(self, model):
        self.process = subprocess.Popen([HEADRACE, "serve", model, "--port", "0", "--device", "cpu", "--quiet"], stdout=subprocess.PIPE, text=True)
        self.url = re.search(r"ready on (\S+) ", self.process.stdout.readline()).group(1)

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.load(reply)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def tasks(model):
    """(right cases, cases): greedy answers of the engine, 64 prompts in a request."""
    cases = [json.loads(line) for line in (TINY / "eval_cases.jsonl").read_text(encoding="utf-8").splitlines()]
    right = 0
    with Server(model) as server:
        ids = lambda text: server.post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
        pairs = sorted(((ids(c["prompt"]), ids(c["expected"]) + [END]) for c in cases), key=lambda pair: len(pair[1]))
        for at in range(0, len(pairs), PROMPTS_AT_ONCE):
            batch = pairs[at:at + PROMPTS_AT_ONCE]
            answer = server.post("/v1/completions", {
                "prompt": [prompt for prompt, _ in batch], "temperature": 0, "repetition_penalty": 1,
                "max_tokens": max(len(expected) for _, expected in batch), "return_token_ids": True})
            for choice in answer["choices"]:
                right += choice["token_ids"] == batch[choice["index"]][1]
    return right, len(cases)


def measure(name, model, text, arguments):
    info = json.loads(headrace("info", model, "--json"))["info"]
    files = [model] if model.is_file() else [model / "model.safetensors"]
    row = {"format": name, "file_bytes": sum(f.stat().st_size for f in files),
           "bits_per_weight": 8 * info["weight_bytes"] / info["n_parameters"], "default": score(model, text)}
    if not arguments.no_exact:
        row["exact"] = score(model, text, "--exact")
    if not arguments.no_tasks:
        row["tasks_right"], row["tasks"] = tasks(model)
    print(line(row), flush=True)
    return row


HEADER = """| format | bits a weight | MiB | perplexity ratio, weights | mean KL, weights | 99 % | same top | perplexity ratio | mean KL | 99 % | same top | tasks |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def line(row):
    def path(s):
        if not s:
            return ["", "", "", ""]
        return [f"{s['perplexity_ratio']:.4f} ± {s['perplexity_ratio_error']:.4f}", f"{s['kl_mean']:.2g}", f"{s['kl_p99']:.2g}", f"{100 * s['same_top']:.2f} %"]
    done = f"{100 * row['tasks_right'] / row['tasks']:.1f} %" if "tasks" in row else ""
    cells = [row["format"], f"{row['bits_per_weight']:.2f}", f"{row['file_bytes'] / 2**20:.1f}", *path(row.get("exact")), *path(row["default"]), done]
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--part", type=int, help="only the first bytes of eval.txt")
    parser.add_argument("--no-exact", action="store_true", help="only the default path")
    parser.add_argument("--no-tasks", action="store_true")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--show", action="store_true", help="measure nothing: print the table of the saved results")
    arguments = parser.parse_args()
    if arguments.show:
        saved = json.loads((SOURCE / "benchmarks" / "results" / "quality.json").read_text())
        print("\n".join([HEADER, *map(line, saved["results"])]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        text, calibration, imatrix = folder / "text.txt", folder / "calibration.txt", folder / "tiny.imatrix"
        text.write_bytes((TINY / "eval.txt").read_bytes()[:arguments.part])
        write_calibration(calibration)
        headrace("imatrix", TINY, calibration, "--special", "--out", imatrix, "--device", "cpu")
        print(HEADER)
        rows.append(measure("BF16, the original", TINY, text, arguments))
        for name in arguments.types.split(","):
            for weighed in [False, True][:2 if name in WEIGHED else 1]:
                path = folder / f"{name}.gguf"
                headrace("convert", TINY, path, "--type", name, "--force", *(["--imatrix", imatrix] if weighed else []))
                rows.append(measure(name.upper() + (", importance" if weighed else ""), path, text, arguments))
    if arguments.save:
        save("quality", "./dev bench quality " + " ".join(sys.argv[1:]), rows)


if __name__ == "__main__":
    main()
