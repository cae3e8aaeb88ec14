"""Benchmarks: `./dev bench` lists them, `./dev bench NAME [ARGUMENT...]` runs one.

Timings on shared machines drift, so what counts is a ratio against a peer or a limit measured in turn in the same run; each
benchmark prints both sides and writes a JSON file with device, commit and command under benchmarks/results/ when given --save.
"""
import pathlib
import runpy
import sys

HERE = pathlib.Path(__file__).resolve().parent
NAMES = {
    "llama": ("engine/llama.py", "decode, prefill, concurrent decode and memory beside llama.cpp, same shapes, same threads"),
    "speculative": ("engine/speculative.py", "a stream with and without guessed tokens, in turn"),
    "start": ("engine/start.py", "start to first token of the embedded model"),
    "host": ("engine/host.py", "host time of a step of 1,024 answers on the CUDA backend, without a GPU"),
    "http": ("server/http_front.py", "CPU time of the HTTP front per streamed token"),
    "quality": ("quality/quality.py", "what each weight format costs in quality, on the embedded model"),
    "tokenizer": ("text/run.py", "tokenizer on prose, on one letter and on CJK, beside the tokenizers package"),
    "kernels": ("kernels/run.py", "CPU kernels beside the machine's measured memory and arithmetic roofs"),
    "checkpoint": ("models/write_checkpoint.py", "write a random-weight checkpoint of a real shape"),
}


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print(__doc__.strip(), "\n")
        for name, (path, help_text) in NAMES.items():
            print(f"  {name:<11} {help_text}  (benchmarks/{path})")
        sys.exit(0 if len(sys.argv) < 2 else 2)
    path = HERE / NAMES[sys.argv[1]][0]
    sys.argv = [str(path), *sys.argv[2:]]
    sys.path[:0] = [str(path.parent), str(HERE)]
    runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
