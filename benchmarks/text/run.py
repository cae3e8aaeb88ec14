"""Encoding speed on a megabyte of prose, of one letter, of random letters, of blanks and of CJK, beside the tokenizers package.

    run.py [--save] [TOKENIZER_JSON]      without a path: the LFM2 vocabulary if the tests have fetched it, else the embedded one
"""
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from common import SOURCE, median, save  # noqa: E402

MEGABYTE = 1_000_000


def texts():
    prose = (SOURCE / "csrc" / "embedded" / "tiny" / "eval.txt").read_text("utf-8")
    readme = "".join(p.read_text("utf-8") for p in sorted((SOURCE / "docs").rglob("*.md")))
    prose = (prose + readme) * (MEGABYTE // len(prose + readme) + 1)
    rng = random.Random(1)
    return {
        "prose": prose[:MEGABYTE],
        "one letter": "a" * MEGABYTE,
        "random letters": "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=MEGABYTE)),
        "blanks": " " * MEGABYTE,
        "one ideograph": "中" * (MEGABYTE // 3),
    }


def reference_us(path, text):
    try:
        import tokenizers
    except ModuleNotFoundError:
        return None
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        tokenizer.encode(text, add_special_tokens=False)
        times.append((time.perf_counter() - begin) * 1e6)
    return median(times[1:])


def main():
    arguments = [a for a in sys.argv[1:] if a != "--save"]
    fetched = SOURCE / ".cache" / "lfm2-tokenizer" / "tokenizer.json"
    path = pathlib.Path(arguments[0]) if arguments else fetched if fetched.exists() else SOURCE / "csrc/embedded/tiny/tokenizer.json"
    build = SOURCE / "build" / "release"
    subprocess.run(["cmake", "--build", build, "--target", "bench_tokenizer"], check=True, stdout=subprocess.DEVNULL)
    rows = []
    print(f"{path}\n{'1 MB of':<16}{'MB/s':>8}{'spread':>20}{'tokenizers MB/s':>18}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts().items():
            file = pathlib.Path(folder) / name.replace(" ", "_")
            file.write_text(text, "utf-8")
            row = json.loads(subprocess.run([build / "bin" / "bench_tokenizer", path, file], check=True, capture_output=True, text=True).stdout)
            row |= {"text": name, "tokenizers_us": reference_us(path, text)}
            rows.append(row)
            other = row["tokenizers_us"]
            print(f"{name:<16}{row['bytes'] / row['median_us']:>8.1f}"
                  f"{row['bytes'] / row['slowest_us']:>11.1f} .. {row['bytes'] / row['fastest_us']:<6.1f}"
                  f"{row['bytes'] / other if other else float('nan'):>15.1f}{other / row['median_us'] if other else float('nan'):>8.1f}")
    if "--save" in sys.argv:
        save("tokenizer", "./dev bench tokenizer " + " ".join(sys.argv[1:]), rows)


if __name__ == "__main__":
    main()
