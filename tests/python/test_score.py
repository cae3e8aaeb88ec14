"""`headrace score`: perplexity and divergence, against numpy on logits that were stored by somebody else."""
import json
import os
import shutil
import subprocess

import numpy
import pytest
import safetensors.numpy

OK, FAILURE, USAGE, MODEL = 0, 1, 2, 3


@pytest.fixture
def cli(headrace, tmp_path):
    plain = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}

    def call(*arguments):
        return subprocess.run([str(headrace), *map(str, arguments)], env=plain, text=True, timeout=120, capture_output=True, cwd=tmp_path)
    return call


@pytest.fixture
def score(cli):
    def call(*arguments):
        ended = cli("score", *arguments, "--json")
        assert ended.returncode == OK, ended
        return json.loads(ended.stdout)
    return call


@pytest.fixture
def goldens(source_dir):
    """goldens(file) is a GGUF golden: its path, the ids run, and the logits that a float64 forward pass gave for them."""
    def load(name):
        path = source_dir / "tests/data/goldens/gguf" / name
        stored = safetensors.numpy.load_file(f"{path}.expected.safetensors")
        ids, logits = stored["input_ids"].reshape(-1), stored["logits_exact"]
        return path, ids, logits.reshape(-1, logits.shape[-1]).astype(numpy.float64)
    return load


def refused(ended, code, *words):
    assert (ended.returncode, ended.stdout) == (code, ""), ended
    for word in words:
        assert word in ended.stderr, ended.stderr


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - numpy.log(numpy.exp(shifted).sum(-1, keepdims=True))


def expected(model_logits, base_logits, ids):
    """Everything score reports, from the definitions; positions 0 .. n-2 foretell ids 1 .. n-1."""
    q, p = log_softmax(model_logits)[:-1], log_softmax(base_logits)[:-1]
    rows, n = numpy.arange(len(ids) - 1), len(ids) - 1
    nats, base_nats = -q[rows, ids[1:]], -p[rows, ids[1:]]
    kl = (numpy.exp(p) * (p - q)).sum(-1)
    error = lambda values: values.std(ddof=1) / numpy.sqrt(n)
    difference = numpy.exp(-nats) - numpy.exp(-base_nats)
    ratio = numpy.exp((nats - base_nats).mean())
    return {
        "tokens": n, "nats_per_token": nats.mean(), "perplexity": numpy.exp(nats.mean()),
        "perplexity_error": numpy.exp(nats.mean()) * error(nats), "base_nats_per_token": base_nats.mean(),
        "base_perplexity": numpy.exp(base_nats.mean()), "perplexity_ratio": ratio, "perplexity_ratio_error": ratio * error(nats - base_nats),
        "kl": {"mean": kl.mean(), "mean_error": error(kl), "median": numpy.median(kl), "p90": numpy.quantile(kl, 0.9),
               "p99": numpy.quantile(kl, 0.99), "p99_9": numpy.quantile(kl, 0.999), "max": kl.max()},
        "probability_difference": {"rms": numpy.sqrt((difference ** 2).mean()), "mean": difference.mean()},
        "same_top": (q.argmax(-1) == p.argmax(-1)).mean(),
    }


@pytest.mark.parametrize("name, base_name", [("dense_256-q4_k.gguf", "dense_256-q6_k.gguf"), ("dense_256-q6_k.gguf", "dense_256-q4_k.gguf"),
                                             ("dense_tiny-q4_0.gguf", "dense_tiny-f16.gguf")])
def test_divergence_of_two_models_is_what_numpy_makes_of_their_stored_logits(score, goldens, tmp_path, name, base_name):
    (path, ids, logits), (base, base_ids, base_logits) = goldens(name), goldens(base_name)
    assert (ids == base_ids).all()
    (tmp_path / "ids.json").write_text(json.dumps([ids.tolist()]))
    got = score(path, "--ids", "ids.json", "--kl", base, "--exact")
    wanted = expected(logits, base_logits, ids)
    assert sorted(got) == sorted(wanted)
    for key in ("kl", "probability_difference"):
        assert got.pop(key) == pytest.approx(wanted.pop(key), rel=0.005, abs=2e-6)
    assert got == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_a_model_does_not_diverge_from_itself(score, tiny, tmp_path):
    (tmp_path / "part.txt").write_text((tiny / "eval.txt").read_text()[:4000])
    for more in ([], ["--exact"]):
        alone, got = score("tiny", "part.txt", *more), score("tiny", "part.txt", "--kl", "tiny", *more)
        assert set(got["kl"].values()) == {0} and got["same_top"] == 1 and got["probability_difference"] == {"rms": 0, "mean": 0}
        assert (got["perplexity_ratio"], got["perplexity_ratio_error"]) == (1, 0)
        assert {key: got[key] for key in alone} == alone and got["base_nats_per_token"] == pytest.approx(alone["nats_per_token"], rel=1e-7)


def test_the_base_may_take_the_exact_path_alone(score, tiny, tmp_path):
    (tmp_path / "part.txt").write_text((tiny / "eval.txt").read_text()[:1500])
    got = score("tiny", "part.txt", "--kl", "tiny", "--exact-base")
    exact = score("tiny", "part.txt", "--exact")
    assert 0 < got["kl"]["mean"] < 1e-3 and got["base_nats_per_token"] == pytest.approx(exact["nats_per_token"], rel=1e-8)


def test_windows_threads_and_chunks_change_nothing_but_what_is_seen(score, tiny, tmp_path):
    (tmp_path / "part.txt").write_text((tiny / "eval.txt").read_text()[:1200])
    whole = score("tiny", "part.txt", "--kl", "tiny")
    assert whole["tokens"] < 511  # shorter than a window
    for more in (["--threads", "1"], ["--threads", "3", "--chunk", "17"], ["--window", "4096"]):
        assert score("tiny", "part.txt", "--kl", "tiny", *more) == whole
    short = score("tiny", "part.txt", "--kl", "tiny", "--window", "8")
    assert short["tokens"] == whole["tokens"] and short["perplexity"] > whole["perplexity"]


def test_one_token_is_enough(score, tmp_path):
    (tmp_path / "a").write_text("a")
    got = score("tiny", "a", "--kl", "tiny")
    assert got["tokens"] == 1 and got["perplexity_error"] == got["kl"]["mean_error"] == 0


def test_the_text_report_says_the_same(cli, tiny, tmp_path):
    (tmp_path / "part.txt").write_text((tiny / "eval.txt").read_text()[:600])
    lines = cli("score", "tiny", "part.txt", "--kl", "tiny").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["tokens", "base", "divergence", "right", "same"]
    assert "100.000 %" in lines[-1]
    assert len(cli("score", "tiny", "part.txt").stdout.splitlines()) == 1


def test_another_vocabulary_is_refused(cli, goldens, tiny, tmp_path):
    (tmp_path / "part.txt").write_text("Once upon a time")
    refused(cli("score", "tiny", "part.txt", "--kl", goldens("dense_256-q4_k.gguf")[0]), USAGE, "vocabulary of", "2048")
    other = shutil.copytree(tiny, tmp_path / "other", ignore=shutil.ignore_patterns("*.py", "*.txt", "*.jsonl"))
    text = json.loads((other / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    ends = [token for token, number in vocabulary.items() if number in (2046, 2047)]
    vocabulary[ends[0]], vocabulary[ends[1]] = vocabulary[ends[1]], vocabulary[ends[0]]
    (other / "tokenizer.json").write_text(json.dumps(text))
    refused(cli("score", "tiny", "part.txt", "--kl", other), USAGE, "another vocabulary", "id 2046")


def test_what_cannot_be_scored_is_refused(cli, goldens, tmp_path):
    (tmp_path / "empty").write_text("")
    (tmp_path / "text").write_text("a")
    (tmp_path / "short.json").write_text("[[5, 6], [7]]")
    refused(cli("score", "tiny", "empty", "--kl", "tiny"), USAGE, "empty", "no token")
    refused(cli("score", "tiny", "text", "--kl", "absent.gguf"), FAILURE, "absent.gguf")
    refused(cli("score", "tiny", "text", "--ids", "short.json"), USAGE, "not both")
    refused(cli("score", "tiny", "--ids", "short.json"), USAGE, "entry 1", "two ids")
    refused(cli("score", "tiny", "text", "--window", "1", "--kl", "tiny"), USAGE, "--window")
