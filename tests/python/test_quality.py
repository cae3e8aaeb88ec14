"""No weight format may become worse unnoticed: divergence of the embedded model from its original, format by format, within a bound.

Bounds are one and a half to two times what was measured on the same part of the text (docs/quality.md has the whole text). The base is
the original by the plain fp32 path; the model runs by the default path, so the loss by int8 activations counts as well.
"""
import json
import os
import subprocess

import pytest

PART_BYTES = 12_000

# type: largest mean KL in nats, its 99th percentile, |perplexity ratio - 1|, least part of positions with the same top token
BOUNDS = {
    "f16": (1e-6, 1e-5, 2e-4, 0.999),
    "q8_0": (1.5e-4, 1.5e-3, 1e-3, 0.985),
    "q6_k": (3e-4, 3e-3, 2e-3, 0.976),
    "q5_k_m": (8e-4, 1e-2, 3e-3, 0.977),
    "q4_k_m": (2.5e-3, 2e-2, 5e-3, 0.965),
    "q4_0": (2.6e-3, 3e-2, 6e-3, 0.945),
}


@pytest.fixture(scope="module")
def run(headrace):
    plain = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}

    def call(*arguments):
        return subprocess.run([str(headrace), *map(str, arguments)], env=plain, check=True, timeout=120, capture_output=True, text=True).stdout
    return call


@pytest.fixture(scope="module")
def text(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("quality") / "part.txt"
    path.write_bytes((tiny / "eval.txt").read_bytes()[:PART_BYTES])
    return path


@pytest.fixture(scope="module")
def measure(run, tiny, text):
    """measure(type, flags…) converts the embedded model and compares it with the original."""
    def call(name, *flags):
        path = text.parent / f"{name}.gguf"
        run("convert", tiny, path, "--type", name, "--force", *flags)
        return json.loads(run("score", path, text, "--kl", tiny, "--exact-base", "--device", "cpu", "--json"))
    return call


@pytest.mark.parametrize("name", BOUNDS)
def test_a_format_stays_near_the_original(measure, name):
    kl, kl_99, ratio, same_top = BOUNDS[name]
    got = measure(name)
    print(name, got["kl"], got["perplexity_ratio"], got["same_top"])
    assert got["kl"]["mean"] <= kl and got["kl"]["p99"] <= kl_99
    assert abs(got["perplexity_ratio"] - 1) <= ratio and got["same_top"] >= same_top


def test_importance_brings_four_bits_nearer(measure, run, tiny, text):
    """The calibration text is the part of the evaluation that is not scored."""
    calibration, imatrix = text.parent / "calibration.txt", text.parent / "tiny.imatrix"
    calibration.write_bytes((tiny / "eval.txt").read_bytes()[-40_000:])
    run("imatrix", tiny, calibration, "--out", imatrix, "--device", "cpu")
    plain, weighed = measure("q4_k_m"), measure("q4_k_m", "--imatrix", imatrix)
    print(plain["kl"], weighed["kl"])
    assert weighed["kl"]["mean"] < plain["kl"]["mean"]
