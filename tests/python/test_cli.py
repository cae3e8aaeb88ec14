"""The program `headrace` as a person or a script meets it: arguments, exit codes, what goes to stdout and what to stderr."""
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import time

import numpy
import pytest
import safetensors.numpy

COMMANDS = ["serve", "run", "info", "tokenize", "bench", "logits", "score", "imatrix", "compare", "doctor", "version"]
WHO = "Who are you?"
ANSWER = "I am Headrace Tiny, a test model for the headrace engine."
OK, FAILURE, USAGE, MODEL, MEMORY, PORT = 0, 1, 2, 3, 4, 5


@pytest.fixture
def cli(headrace, tmp_path):
    """cli(arguments…) runs the program in an empty folder, without this machine's settings, and returns its end."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("HEADRACE_", "HF_", "HUGGINGFACE_", "XDG_CACHE"))}

    def call(*arguments, env=None, input=""):
        return subprocess.run([str(headrace), *map(str, arguments)], env={**plain, **(env or {})}, input=input, text=True,
                              timeout=120, capture_output=True, cwd=tmp_path)
    return call


def refused(ended, code, *words):
    """The program said no: exit code, nothing on stdout, every word in the one complaint."""
    assert (ended.returncode, ended.stdout) == (code, ""), ended
    for word in words:
        assert word in ended.stderr, ended.stderr


def fine(ended):
    assert ended.returncode == OK, ended
    return ended.stdout


# ---------------------------------------------------------------- help, usage, version

def test_help_on_every_level(cli):
    top = fine(cli("--help"))
    assert top == fine(cli("help")) == fine(cli("-h"))
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\S", top, re.M)
        ended = cli(command, "--help")
        assert f"Usage: headrace {command}" in fine(ended) and ended.stderr == ""
        assert "--config" in ended.stdout and "HEADRACE_MAX_MODEL_LEN" in ended.stdout


def test_what_cannot_be_understood_ends_with_2(cli):
    refused(cli(), USAGE, "usage: headrace COMMAND")
    refused(cli("nonsense"), USAGE, 'unknown command "nonsense"', "usage:")
    for command in COMMANDS:
        refused(cli(command, "--nonsense"), USAGE, "--nonsense", f"headrace {command} --help")
    refused(cli("bench"), USAGE, "latency|throughput")
    refused(cli("bench", "width", "tiny"), USAGE, "width", "latency or throughput")
    refused(cli("run", "tiny", "a", "b"), USAGE, '"b"')
    refused(cli("info"), USAGE, "which model?", "-hf ORG/NAME")
    refused(cli("info", ""), USAGE, "which model?")
    refused(cli("info", "--json=yes", "tiny"), USAGE, "--json")
    refused(cli("run", "-m", "tiny", "tiny", WHO), USAGE, "given twice")
    refused(cli("info", "-m", "tiny", "--hf", "a/b"), USAGE, "given twice")


@pytest.mark.parametrize("flag, value, wanted", [
    ("--temperature", "warm", "a number"), ("--temperature", "nan", "a number"), ("--temperature", "9", "outside 0..2"),
    ("--top-p", "0", "top_p"), ("--max-tokens", "-1", "a whole number"), ("--max-tokens", "1.5", "a whole number"),
    ("--max-tokens", "4294967296", "4294967295"), ("--max-tokens", "99999999999999999999", "a whole number"),
    ("--kv-cache-memory", "1x", "a size"), ("--kv-cache-memory", "-1g", "a size"), ("--device", "toaster", "auto|cpu|cuda|cuda:N"), ("--device", "cuda:x", "auto|cpu|cuda|cuda:N"),
    ("--kv-cache-dtype", "int3", "auto|bf16|f32"), ("--max-model-len", "5000", "4096"),
    ("--block-size", "4000000000", "--block-size"), ("--threads", "5000", "--threads"),
])
def test_bad_values_name_option_value_and_what_is_right(cli, flag, value, wanted):
    for form in ([flag, value], [f"{flag}={value}"]):
        ended = cli("run", "tiny", WHO, *form)
        refused(ended, USAGE, wanted)
        assert re.search(flag.strip("-").replace("-", "[-_]"), ended.stderr)


def test_help_fits_a_hundred_columns_and_is_parted(cli):
    for command in COMMANDS:
        lines = fine(cli(command, "--help")).splitlines()
        assert max(map(len, lines)) <= 100 and " Every command:" in lines
        assert (" Server:" in lines) == (command == "serve")


def test_flags_of_vllm_scripts_mean_what_runs_here(cli):
    ended = cli("run", "tiny", WHO, "--temp", "0", "--dtype", "bfloat16", "--quantization=auto", "-tp", "1", "--deterministic",
                "--gpu-memory-utilization", "0.9", "--color", "always", env={"NO_COLOR": "1"})
    assert fine(ended) == ANSWER + "\n"
    assert ended.stderr.count("\n") == 1 and "warning: --gpu-memory-utilization" in ended.stderr
    assert "--kv-cache-memory" in ended.stderr
    assert cli("run", "tiny", WHO, "--temp=0", "--gpu-memory-utilization=1", "--log-level=error").stderr == ""
    assert fine(cli("run", "tiny", WHO, "--temp=0", "--dtype=float32", "--exact")) == ANSWER + "\n"


def test_flags_of_vllm_scripts_that_ask_for_something_else_are_refused(cli, source_dir):
    gguf = source_dir / "tests/data/goldens/gguf/dense_tiny-q4_0.gguf"
    refused(cli("run", "tiny", WHO, "--dtype", "float32"), USAGE, "--dtype float32", "file's own dtype (BF16", "--exact")
    refused(cli("run", "tiny", WHO, "--dtype", "float16"), USAGE, "--dtype float16", "BF16", "--dtype auto")
    refused(cli("serve", gguf, "--port=0", "--dtype=bfloat16"), USAGE, "Q4_0")
    refused(cli("bench", "latency", "tiny", "--dtype", "fp8"), USAGE, "auto|bfloat16|float16|float32")
    refused(cli("serve", "tiny", "-tp", "2"), USAGE, "--tensor-parallel-size 2", "one device runs the whole model", "--threads")
    refused(cli("serve", "tiny", "-tp", "0"), USAGE, "--tensor-parallel-size 0")
    refused(cli("serve", "tiny", "--quantization", "awq"), USAGE, "awq", "auto|gguf")
    refused(cli("run", "tiny", WHO, "--quantization", "gguf"), USAGE, "safetensors", ".gguf")
    for value in ("0", "1.5", "-1"):
        refused(cli("run", "tiny", WHO, "--gpu-memory-utilization", value), USAGE, "--gpu-memory-utilization")


def test_the_stronger_source_sets_how_much_is_said(cli):
    def talk(*flags, **env):
        ended = cli("run", "tiny", WHO, "--temp=0", "--gpu-memory-utilization=1", *flags, env=env)
        assert fine(ended) == ANSWER + "\n"
        return ended.stderr
    assert "limits" in talk("--log-level", "debug") and "limits" in talk("-v") and "limits" not in talk()
    assert talk("--log-level=warning").startswith("headrace: warning") and talk("-q") == ""
    assert talk("--log-level=error", HEADRACE_VERBOSE="yes") == "" and "limits" in talk("-v", HEADRACE_LOG_LEVEL="error")


def test_version(cli):
    assert re.fullmatch(r"headrace \d+\.\d+\.\d+\n", fine(cli("version")))
    assert fine(cli("--version")) == fine(cli("version"))
    assert "cpu" in fine(cli("version", "--verbose"))


def test_doctor(cli):
    report = json.loads(fine(cli("doctor", "--json")))
    assert report["cpus"] == os.cpu_count() and report["memory_bytes"] > report["memory_available_bytes"] > 0
    assert report["embedded_model"] is True and report["open_files"] > 0 and isinstance(report["port_8000_free"], bool)
    assert "memory" in fine(cli("doctor")) and "embedded model" in cli("doctor").stdout


# ---------------------------------------------------------------- where values come from

def printed(ended):
    return {m[0]: (m[1], m[2]) for m in re.findall(r"^(\S+) += (.*?) *# (.+)$", fine(ended), re.M)}


def test_flag_wins_over_environment_over_file_over_default(cli, tmp_path):
    config = tmp_path / "conf.toml"
    config.write_text('# of the house\nport = 1   # why\nhost="::1"\r\nmax-body = 4mi\n\nmetrics = off\nalias = a#1,b\n')
    env = {"HEADRACE_CONFIG": str(config), "HEADRACE_PORT": "2", "HEADRACE_HOST": "0.0.0.0", "HEADRACE_SEED": "",
           "HEADRACE_LOG_REQUESTS": "no"}
    values = printed(cli("serve", "--port=3", "--print-config", env=env))
    assert values["port"] == ("3", "flag")
    assert values["host"] == ("0.0.0.0", "environment") and values["log-requests"] == ("no", "environment")
    assert values["max-body"] == ("4mi", "config file") and values["metrics"] == ("off", "config file")
    assert values["served-model-name"] == ("a#1,b", "config file")
    assert values["seed"] == ("0", "default") and values["api-key"] == ("", "unset")
    assert values["config"] == (str(config), "environment")


def test_booleans_are_undone_and_the_last_one_counts(cli):
    assert printed(cli("serve", "--no-metrics", "--print-config"))["metrics"] == ("no", "flag")
    assert printed(cli("serve", "--no-metrics", "--metrics", "--print-config"))["metrics"] == ("yes", "flag")
    off = printed(cli("serve", "--no-enable-prefix-caching", "--print-config"))
    assert off["enable-prefix-caching"] == ("no", "flag")


def test_other_spellings_mean_the_same(cli):
    values = printed(cli("serve", "-c", "100", "-np", "3", "-b", "64", "-t", "2", "-a", "x", "--alias", "y", "-m", "tiny",
                         "-tp", "1", "--print-config"))
    assert values["tensor-parallel-size"] == ("1", "flag")
    assert [values[n][0] for n in ("max-model-len", "max-num-seqs", "max-num-batched-tokens", "threads", "served-model-name",
                                   "model")] == ["100", "3", "64", "2", "x,y", "tiny"]
    assert printed(cli("serve", "--ctx-size=7", "--print-config"))["max-model-len"] == ("7", "flag")
    assert printed(cli("serve", "-hf", "a/b", "--print-config"))["hf"] == ("a/b", "flag")


def test_the_printed_configuration_can_be_read_back(cli, tmp_path):
    first = cli("serve", "--port", "81", "--max-body", "5m", "--print-config")
    (tmp_path / "c").write_text(first.stdout)
    second = printed(cli("serve", "--config", "c", "--print-config"))
    for name, (value, _) in printed(first).items():
        assert name == "config" or second[name][0] == value


def test_keys_are_not_shown_and_may_hold_commas(cli):
    ended = cli("serve", "--api-key", "se,cret", "--print-config")
    assert "se" not in printed(ended)["api-key"][0] and "cret" not in ended.stdout + ended.stderr
    assert printed(ended)["api-key"] == ("(hidden)", "flag")


def test_a_bad_configuration_file_is_named_with_its_line(cli, tmp_path):
    (tmp_path / "c").write_text("port = 1\nprot = 2\n")
    refused(cli("serve", "--config", "c"), USAGE, "c, line 2", "prot")
    (tmp_path / "c").write_text("port\n")
    refused(cli("serve", "--config", "c"), USAGE, "c, line 1", "name = value")
    (tmp_path / "c").write_text("port = many\n")
    refused(cli("serve", "--config", "c"), USAGE, "--port (config file)", "many")
    refused(cli("serve", "--config", "absent"), USAGE, "absent")
    refused(cli("serve", env={"HEADRACE_PORT": "many"}), USAGE, "--port (environment)", "many")


def test_an_argument_wins_over_the_model_of_the_environment(cli, source_dir):
    gguf = source_dir / "tests/data/goldens/gguf/dense_tiny-q4_0.gguf"
    assert "golden" in fine(cli("info", env={"HEADRACE_MODEL": str(gguf)}))
    assert "golden" not in fine(cli("info", "tiny", env={"HEADRACE_MODEL": str(gguf)}))
    assert fine(cli("run", WHO, "--temp", "0", env={"HEADRACE_MODEL": "tiny"})) == ANSWER + "\n"
    assert fine(cli("run", "tiny", WHO, "--temp", "0", env={"HEADRACE_MODEL": str(gguf)})) == ANSWER + "\n"
    assert "golden" in fine(cli("info", "-m", gguf, env={"HEADRACE_HF": "no/where"}))


# ---------------------------------------------------------------- run

def test_one_answer_on_stdout_and_nothing_else(cli):
    ended = cli("run", "tiny", WHO, "--temperature", "0")
    assert (fine(ended), ended.stderr) == (ANSWER + "\n", "")


def test_the_plain_path_gives_the_same_answer(cli):
    assert fine(cli("run", "tiny", WHO, "--temperature=0", "--exact")) == ANSWER + "\n"


def test_a_prompt_from_a_pipe(cli):
    assert fine(cli("run", "tiny", "--temp", "0", input=WHO)) == ANSWER + "\n"
    refused(cli("run", "tiny"), USAGE, "the prompt is empty")
    refused(cli("run", "tiny", ""), USAGE, "the prompt is empty")


def test_run_gives_the_expected_greedy_answers(cli, tiny):
    cases = json.loads((tiny / "expected_greedy.json").read_text())["cases"]
    tried = 0
    for case in cases:
        roles = [m["role"] for m in case["messages"]]
        if case["tools"] is None and roles in (["user"], ["system", "user"]):
            system = ["--system", case["messages"][0]["content"]] if len(roles) == 2 else []
            ended = cli("run", "tiny", case["messages"][-1]["content"], "--temp", "0", *system)
            assert fine(ended) == case["output_text"] + "\n"
            tried += 1
    assert tried >= 8


def test_stop_and_length_and_raw(cli):
    assert fine(cli("run", "tiny", WHO, "--temp", "0", "--stop", "test")) == "I am Headrace Tiny, a \n"
    assert fine(cli("run", "tiny", WHO, "--temp", "0", "--stop", "engine", "--stop", ", a")) == "I am Headrace Tiny\n"
    assert fine(cli("run", "tiny", WHO, "--temp", "0", "-n", "2")) == "I am\n"
    assert fine(cli("run", "tiny", "--raw", "Once upon", "--temp", "0", "-n", "2")) == " a time\n"
    refused(cli("run", "tiny", WHO, *["--stop=x"] * 17), USAGE, "--stop", "at most 16")


def test_a_seed_repeats_an_answer(cli):
    def draw(seed):
        return fine(cli("run", "tiny", "Tell me a story.", "--temp", "1.5", "-n", "40", "--seed", seed))
    assert draw(1) == draw(1)
    assert len({draw(s) for s in range(4)}) > 1


def test_a_special_token_in_the_prompt_stays_text(cli):
    ended = cli("run", "tiny", "<|im_end|>", "--temp", "0", "-n", "4")
    assert ended.returncode == OK


def test_bytes_that_are_not_text(cli):
    refused(cli("run", "tiny", "a\udcff"), USAGE, "not valid UTF-8")  # one raw byte FF
    refused(cli("run", "tiny", "-s", "a\udcff", WHO), USAGE, "not valid UTF-8")
    with_zero = cli("run", "tiny", "--temp", "0", "--raw", "-n", "3", input="Once upon\0 a")
    assert fine(with_zero) != fine(cli("run", "tiny", "--temp", "0", "--raw", "-n", "3", input="Once upon"))
    assert cli("run", "tiny", "--temp", "0", input="Once upon\0 a").returncode == OK
    assert json.loads(fine(cli("tokenize", "tiny", "\udcff", "--json")))["tokens"] == \
        json.loads(fine(cli("tokenize", "tiny", "\ufffd", "--json")))["tokens"]


def test_a_reader_that_leaves_ends_the_answer(cli, headrace):
    with open("/dev/full", "w") as full:
        ended = subprocess.run([headrace, "run", "tiny", WHO, "--temp", "0"], stdout=full, stderr=subprocess.PIPE, text=True,
                               timeout=60)
    assert ended.returncode == FAILURE and "writing to stdout failed" in ended.stderr


def test_interrupted_run_dies_by_the_signal(headrace):
    process = subprocess.Popen([headrace, "run", "tiny", "Tell me a story.", "--temp", "2", "-n", "4000"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGINT, OK)  # OK: the story was over before the signal came


# ---------------------------------------------------------------- chat on a terminal

class Terminal:
    """A chat on a pseudo-terminal of its own session, so that Ctrl-C is what a keyboard sends."""

    def __init__(self, program, *arguments):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(program, [str(program), *map(str, arguments)])
        self.seen = ""
        self.read_until("> ")

    def read_until(self, wanted, seconds=60):
        """Everything up to and with `wanted`."""
        deadline = time.monotonic() + seconds
        while wanted not in self.seen:
            assert time.monotonic() < deadline, f"waited for {wanted!r}, saw {self.seen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:
                    assert wanted in self.seen, f"the program ended before {wanted!r}: {self.seen!r}"
        at = self.seen.index(wanted) + len(wanted)
        taken, self.seen = self.seen[:at], self.seen[at:]
        return taken

    def type(self, text):
        os.write(self.fd, text.encode())

    def say(self, line):
        """Types a line and returns the answer, without echo and prompt."""
        self.type(line + "\n")
        self.read_until(line + "\r\n")
        return self.read_until("> ").removesuffix("> ").replace("\r\n", "\n")

    def end(self):
        self.type("\x04")
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_a_chat_remembers_until_cleared(headrace):
    chat = Terminal(headrace, "run", "tiny", "--temp", "0")
    assert chat.say("I live in Prague.") == "OK, I will remember.\n"
    assert chat.say("Where do I live?") == "You live in Prague.\n"
    assert chat.say("/clear") == ""
    assert "Prague" not in chat.say("Where do I live?")
    assert chat.say("/clear") == ""
    assert chat.say(WHO) == ANSWER + "\n"
    assert chat.say("") == ""
    assert chat.end() == OK


def test_a_raw_chat_on_a_terminal_continues_each_line(headrace):
    chat = Terminal(headrace, "run", "tiny", "--raw", "--temp", "0", "-n", "2")
    assert chat.say("Once upon") == chat.say("Once upon") == " a time\n"
    assert chat.end() == OK


def test_ctrl_c_ends_an_answer_and_not_the_chat(headrace):
    chat = Terminal(headrace, "run", "tiny", "--temp", "2", "--top-k", "0", "--min-p", "0", "--repetition-penalty", "1",
                    "--raw")
    chat.type("Once upon a time there was\n")
    chat.read_until("was\r\n")
    assert select.select([chat.fd], [], [], 60)[0]
    chat.type("\x03")
    chat.read_until("> ")
    chat.type("\x03")  # at the prompt: a fresh line
    chat.type("/clear\n")
    chat.read_until("/clear\r\n")
    chat.read_until("> ")
    assert chat.end() == OK


def test_a_turn_that_fails_is_taken_back(headrace):
    chat = Terminal(headrace, "run", "tiny", "--temp", "0", "-c", "64")
    assert "64" in chat.say("too long " * 60)
    assert chat.say(WHO) == ANSWER + "\n"
    os.write(chat.fd, b"a\xff\n")
    assert "not valid UTF-8" in chat.read_until("> ")
    assert chat.say("/clear") == ""
    assert chat.say("Hello!") == "Hello! How can I help you today?\n"
    assert chat.end() == OK


# ---------------------------------------------------------------- info, tokenize

def test_info_says_what_a_model_is(cli, tiny, source_dir):
    text = fine(cli("info", tiny))
    for words in ("lfm2moe (safetensors)", "9058848", "BF16", "2 attention, 4 convolution of 3 taps", "8, 2 a token", "4096"):
        assert words in text
    text = fine(cli("info", source_dir / "tests/data/goldens/gguf/dense_tiny-q4_0.gguf"))
    assert "lfm2 (gguf)" in text and "Q4_0" in text and "no bos, end unknown" in text


def test_info_json_lists_every_tensor(cli, tiny):
    described = json.loads(fine(cli("info", "tiny", "--json")))
    assert described["info"]["hidden_size"] == 256 and described["info"]["n_experts_used"] == 2
    with open(tiny / "model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    listed = {t["name"]: t for t in described["tensors"]}
    header.pop("__metadata__", None)
    assert set(listed) == set(header)
    for name, tensor in header.items():
        assert listed[name]["dtype"] == tensor["dtype"] and listed[name]["shape"] == tensor["shape"], name


def test_tokenize_meets_the_expected_ids(cli, tiny):
    for case in json.loads((tiny / "expected_greedy.json").read_text())["cases"]:
        ended = cli("tokenize", "tiny", "--special", "--json", input=case["prompt"])
        assert json.loads(fine(ended))["tokens"] == case["prompt_ids"]
        ended = cli("tokenize", "tiny", case["output_text"], "--special", "--json")
        assert json.loads(fine(ended))["tokens"] == case["output_ids"][:-1]


def test_tokenize_shows_ids_and_pieces(cli):
    shown = json.loads(fine(cli("tokenize", "tiny", WHO, "--json")))
    assert shown["count"] == len(shown["tokens"]) == len(shown["pieces"]) and "".join(shown["pieces"]) == WHO
    assert json.loads(fine(cli("tokenize", "tiny", WHO, "--json", "--bos")))["tokens"] == [1, *shown["tokens"]]
    assert [int(line.split()[0]) for line in fine(cli("tokenize", "tiny", WHO)).splitlines()] == shown["tokens"]
    assert 7 not in json.loads(fine(cli("tokenize", "tiny", "<|im_end|>", "--json")))["tokens"]
    assert json.loads(fine(cli("tokenize", "tiny", "<|im_end|>", "--json", "--special")))["tokens"] == [7]
    assert json.loads(fine(cli("tokenize", "tiny", "--json")))["tokens"] == []
    assert json.loads(fine(cli("tokenize", "tiny", "--json", input="a\0b")))["count"] == 3


# ---------------------------------------------------------------- logits, compare, score

def write_ids(folder, lists):
    path = folder / "ids.json"
    path.write_text(json.dumps(lists))
    return path


@pytest.mark.parametrize("case", ["dense_f32", "dense_tiny", "moe_tiny"])
def test_logits_meet_the_goldens(cli, source_dir, tmp_path, case):
    folder = source_dir / "tests/data/goldens" / case
    expected = safetensors.numpy.load_file(folder / "expected.safetensors")
    limits = json.loads((folder / "expected.json").read_text())["tolerance"]
    n = sum(name.endswith(".input_ids") for name in expected)
    lists = [expected[f"seq{i}.input_ids"].tolist() for i in range(n)]
    ids, out = write_ids(tmp_path, lists), tmp_path / "out.safetensors"

    assert fine(cli("logits", "-m", folder, "--ids", ids, "--out", out, "--exact")) == ""
    exact = safetensors.numpy.load_file(out)
    assert sorted(exact) == sorted(f"logits.{i}" for i in range(n))
    for i in range(n):
        wanted = expected[f"seq{i}.logits"]
        assert exact[f"logits.{i}"].shape == wanted.shape and exact[f"logits.{i}"].dtype == numpy.float32
        assert numpy.abs(exact[f"logits.{i}"] - wanted).max() <= limits["f32_compute_max_abs"]

    assert fine(cli("logits", folder, "--ids", ids, "-o", out, "--chunk", "7")) == ""
    fast = safetensors.numpy.load_file(out)
    for i in range(n):
        wanted = expected[f"seq{i}.logits"]
        same = expected.get(f"seq{i}.bf16_same_experts", numpy.ones(len(wanted)))[:len(wanted)] == 1
        difference = (fast[f"logits.{i}"] - wanted)[same]
        assert numpy.abs(difference).max() <= limits["bf16_compute_max_abs"]
        assert numpy.sqrt((difference ** 2).mean()) <= limits["bf16_compute_rms"]


def test_exact_logits_of_a_gguf_file_meet_its_golden(cli, source_dir, tmp_path):
    folder = source_dir / "tests/data/goldens/gguf"
    limits = json.loads((folder / "gguf.json").read_text())["files"]
    for name in ("dense_tiny-q8_0.gguf", "moe_256-q4_k_m.gguf"):
        expected = safetensors.numpy.load_file(folder / f"{name}.expected.safetensors")
        ids, out = write_ids(tmp_path, [expected["input_ids"].reshape(-1).tolist()]), tmp_path / "out"
        fine(cli("logits", folder / name, "--ids", ids, "--out", out, "--exact"))
        wanted = expected["logits_exact"]
        difference = safetensors.numpy.load_file(out)["logits.0"] - wanted.reshape(-1, wanted.shape[-1])
        assert numpy.abs(difference).max() <= limits[name]["tolerance_f32_compute_max_abs"]


def test_logits_refuses_what_is_not_a_list_of_lists_of_ids(cli, tmp_path):
    out = tmp_path / "out"
    for value, words in (([[1, 2048]], "ids[0][1]"), ([[1], [-1]], "ids[1][0]"), ([[1.5]], "ids[0][0]"), ([["a"]], "ids[0][0]"),
                         ([[]], "entry 0"), ([3], "entry 0"), ([], "list of lists"), ({"a": 1}, "list of lists")):
        refused(cli("logits", "tiny", "--ids", write_ids(tmp_path, value), "--out", out), USAGE, words, "ids.json")
    (tmp_path / "ids.json").write_text("[[1,")
    refused(cli("logits", "tiny", "--ids", "ids.json", "--out", out), USAGE, "ids.json", "line 1")
    refused(cli("logits", "tiny", "--ids", "absent.json", "--out", out), USAGE, "absent.json")
    refused(cli("logits", "tiny", "--ids", "ids.json"), USAGE, "--out")
    assert not out.exists()


def test_an_output_that_cannot_be_written_leaves_no_file(cli, tmp_path):
    ids = write_ids(tmp_path, [[1]])
    refused(cli("logits", "tiny", "--ids", ids, "--out", "absent/out"), FAILURE, "absent/out")
    (tmp_path / "folder").mkdir()
    for there in ("folder", "/dev/null"):
        refused(cli("logits", "tiny", "--ids", ids, "--out", there), FAILURE, there, "not an ordinary file")
    assert not os.path.isfile("/dev/null")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder", "ids.json"]


def test_compare_names_every_tap(cli, source_dir, tmp_path):
    folder = source_dir / "tests/data/goldens/moe_tiny"
    report = json.loads(fine(cli("compare", folder, "--ids", write_ids(tmp_path, [[1, 5, 9, 30]]), "--tolerance", "1000")))
    assert report["n_ids"] == 4 and report["left"]["compute"] == "plain" and report["first_difference"] is None
    assert {"embed", "layer_out", "router_ids", "logits"} <= {tap["tap"] for tap in report["taps"]}
    report = json.loads(fine(cli("compare", "tiny", WHO, "--tolerance", "0", "--kv-cache-dtype", "bf16")))
    assert report["first_difference"]["tap"] in {tap["tap"] for tap in report["taps"]}


def test_score_gives_the_perplexity_of_the_evaluation(cli, tiny, tmp_path):
    wanted = float(re.search(r"\*\*F32 (\d\.\d+)\*\*", (tiny / "EVAL.md").read_text())[1])
    n_tokens = int(re.search(r"(\d+) tokens\)", (tiny / "EVAL.md").read_text())[1])
    scored = json.loads(fine(cli("score", "tiny", tiny / "eval.txt", "--json")))
    assert scored["tokens"] == n_tokens and scored["perplexity"] == pytest.approx(wanted, abs=0.002)
    assert scored["perplexity"] == pytest.approx(numpy.exp(scored["nats_per_token"]), rel=1e-5)
    (tmp_path / "part.txt").write_text((tiny / "eval.txt").read_text()[:6000])
    fast, exact = (json.loads(fine(cli("score", "tiny", "part.txt", "--json", *more))) for more in ((), ("--exact",)))
    assert fast["tokens"] == exact["tokens"] and fast["perplexity"] == pytest.approx(exact["perplexity"], abs=0.005)
    assert "perplexity" in fine(cli("score", "tiny", "part.txt"))


def test_score_refuses_what_it_cannot_score(cli, tmp_path):
    (tmp_path / "empty").write_text("")
    refused(cli("score", "tiny", "empty"), USAGE, "empty", "no token")
    refused(cli("score", "tiny", "absent"), FAILURE, "absent")
    refused(cli("score", "tiny"), USAGE, "a text file")
    for window in ("1", "5000", "4000000000"):
        refused(cli("score", "tiny", "empty", "--window", window), USAGE)


# ---------------------------------------------------------------- bench

def test_bench_latency_reports_median_and_spread(cli):
    report = json.loads(fine(cli("bench", "latency", "--model", "tiny", "--input-len", "20", "--output-len", "6", "--threads", "1",
                                 "--device", "cpu", "--num-iters", "4", "--json")))
    for key in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        runs = report[f"{key}_runs"]
        assert len(runs) == 4 and report[f"{key}_min"] == min(runs) > 0 and report[f"{key}_max"] == max(runs)
        assert report[key] == pytest.approx(numpy.median(runs), abs=0.002)
    assert (report["bench"], report["model"], report["threads"], report["input_len"], report["output_len"]) == \
        ("latency", "tiny", 1, 20, 6)
    assert "prefill 8 tokens" in fine(cli("bench", "latency", "tiny", "--input-len", "8", "--output-len", "2"))


def test_bench_throughput_counts_every_token(cli):
    report = json.loads(fine(cli("bench", "throughput", "tiny", "--input-len", "10", "--output-len", "5", "--num-prompts", "6",
                                 "--max-concurrency", "6", "--json")))
    assert report["output_tokens_per_s"] * report["seconds"] == pytest.approx(30, rel=0.05)
    assert report["total_tokens_per_s"] == pytest.approx(3 * report["output_tokens_per_s"], rel=1e-3)
    assert report["requests_per_s"] > 0 and report.get("decode_tokens_per_s", 1) > 0
    assert "3 requests, 2 at once" in fine(cli("bench", "throughput", "tiny", "--input-len", "4", "--output-len", "2",
                                               "--num-prompts", "3", "--max-concurrency", "2"))


def test_bench_refuses_lengths_that_mean_nothing(cli):
    for flags in (["--input-len", "0"], ["--output-len", "0"], ["--input-len", "4294967290"], ["--num-iters", "0"],
                  ["--input-len", "4000", "--output-len", "4000"]):
        refused(cli("bench", "latency", "tiny", *flags), USAGE)
    refused(cli("bench", "throughput", "tiny", "--max-concurrency", "0"), USAGE, "--max-concurrency")


# ---------------------------------------------------------------- models: Hub cache, embedded, damaged

@pytest.fixture
def hub(tmp_path, tiny, source_dir):
    """A Hub cache with a folder checkpoint and a repository of GGUF files, linked to blobs as the Hub's client does."""
    def add(name, files, ref=True):
        base = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (base / "blobs").mkdir(parents=True)
        (base / "snapshots/abc123").mkdir(parents=True)
        if ref:
            (base / "refs").mkdir()
            (base / "refs/main").write_text("abc123")
        for file, source in files.items():
            shutil.copyfile(source, base / "blobs" / file)
            os.symlink(f"../../blobs/{file}", base / "snapshots/abc123" / file)
    goldens = source_dir / "tests/data/goldens/gguf"
    add("Maker/Tiny", {name: tiny / name for name in ("config.json", "model.safetensors", "tokenizer.json",
                                                      "tokenizer_config.json", "chat_template.jinja")})
    add("Maker/Quants", {"q-BF16.gguf": goldens / "dense_f32-f32.gguf", "q-F16.gguf": goldens / "dense_tiny-f16.gguf",
                         "q-Q4_0.gguf": goldens / "dense_tiny-q4_0.gguf", "q-Q8_0.gguf": goldens / "dense_tiny-q8_0.gguf",
                         "mmproj-F16.gguf": goldens / "dense_f32-f32.gguf"})
    add("Maker/Single", {"only-Q4_0.gguf": goldens / "dense_tiny-q4_0.gguf"}, ref=False)
    return {"HF_HUB_CACHE": str(tmp_path / "hub")}


def test_models_of_the_hub_cache_are_found(cli, hub, tmp_path):
    assert fine(cli("run", "-hf", "Maker/Tiny", WHO, "--temp", "0", env=hub)) == ANSWER + "\n"
    for quant, dtype in (("Q4_0", "Q4_0 96%"), ("q8_0", "Q8_0"), ("F16", "F16"), ("BF16", "weights          733.2 KiB, F32")):
        assert dtype in fine(cli("info", "--hf", f"Maker/Quants:{quant}", env=hub))
    assert "Q4_0" in fine(cli("info", "--hf=Maker/Single", env=hub))
    assert "Q4_0" in fine(cli("info", "--hf=Maker/Single", env={"HF_HOME": str(tmp_path), "HF_HUB_CACHE": ""}))


def test_a_model_that_is_not_in_the_cache_prints_the_command_that_brings_it(cli, hub):
    refused(cli("run", "-hf", "Maker/Absent", WHO, env=hub), FAILURE, "\n  hf download Maker/Absent\n", "Hub cache")
    refused(cli("run", "-hf", "Maker/Absent:Q4_0", WHO, env=hub), FAILURE,
            "\n  hf download Maker/Absent --include '*Q4_0*.gguf'\n")
    refused(cli("info", "-hf", "Maker/Quants:Q4", env=hub), FAILURE, "hf download Maker/Quants --include '*Q4*.gguf'", "q-Q4_0.gguf")
    refused(cli("info", "-hf", "Maker/Quants", env=hub), USAGE, "several", "q-Q8_0.gguf", "Maker/Quants:")
    for bad in ("Maker", "/x", "a/../b", "a/b;rm", "a/b:$(x)", "-a/b", "a/", "a/b/c", ""):
        refused(cli("info", f"--hf={bad}", env=hub), USAGE, "")


def test_the_embedded_model_is_found_from_anywhere(cli, tiny, tmp_path, headrace):
    assert fine(cli("run", "tiny", WHO, "--temp", "0")) == ANSWER + "\n"
    os.symlink(headrace, tmp_path / "link")
    ended = subprocess.run([tmp_path / "link", "tokenize", "tiny", "a"], cwd="/", capture_output=True)
    assert ended.returncode == OK
    shutil.copytree(tiny, tmp_path / "other")
    assert "other" in fine(cli("info", "tiny", env={"HEADRACE_TINY_MODEL": str(tmp_path / "other")}))


def test_damaged_models_are_refused_with_exit_code_3_and_a_name(cli, tiny, tmp_path, source_dir):
    def copy(name):
        return shutil.copytree(tiny, tmp_path / name, ignore=shutil.ignore_patterns("*.py", "*.txt", "*.jsonl"))

    cut = copy("cut")
    with open(cut / "model.safetensors", "r+b") as file:
        file.truncate(1_000_000)
    shape = copy("shape")
    raw = bytearray((shape / "model.safetensors").read_bytes())
    at = raw.index(b'"shape":[256,256]')
    raw[at:at + 17] = b'"shape":[256,255]'
    (shape / "model.safetensors").write_bytes(raw)
    other = copy("other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    wide = copy("wide")
    (wide / "config.json").write_text(json.dumps({**config, "hidden_size": 512}))
    no_json = copy("no_json")
    (no_json / "config.json").write_text("{")
    gguf = tmp_path / "cut.gguf"
    gguf.write_bytes((source_dir / "tests/data/goldens/gguf/dense_tiny-q4_0.gguf").read_bytes()[:5000])
    noise = tmp_path / "noise.gguf"
    noise.write_bytes(b"GGUF" + bytes(range(256)) * 64)
    (tmp_path / "nothing").mkdir()

    for model, *words in ((cut, "model.safetensors"), (shape, "model.safetensors"), (other, "config.json", "llama"),
                          (shape / "model.safetensors", "given by its folder"), (wide, "256"), (no_json, "config.json"), (gguf, "cut.gguf"), (noise, "noise.gguf"),
                          (tmp_path / "nothing", "nothing")):
        refused(cli("info", model), MODEL, *words)
    assert re.search(r"model\.layers\.|tensor", cli("info", shape).stderr)


def test_a_file_without_a_tokenizer_says_so(cli, source_dir):
    gguf = source_dir / "tests/data/goldens/gguf/dense_tiny-q4_0.gguf"
    for arguments in (["run", gguf, "hi"], ["run", gguf, "hi", "--raw"], ["tokenize", gguf, "hi"], ["score", gguf, gguf]):
        refused(cli(*arguments), FAILURE, "has no tokenizer", "dense_tiny-q4_0.gguf")
    assert "decode" in fine(cli("bench", "latency", gguf, "--input-len", "8", "--output-len", "4"))


def test_a_model_that_is_not_there(cli):
    refused(cli("info", "/nowhere/model.gguf"), FAILURE, "/nowhere/model.gguf")


# ---------------------------------------------------------------- serve: memory, ports, start-up

def test_too_little_memory_says_what_fits_and_which_flag_helps(cli):
    ended = cli("serve", "tiny", "--port", "0", "--max-model-len", "4096", "--kv-cache-memory", "100ki")
    refused(ended, MEMORY, "max-model-len 4096", "--kv-cache-memory")
    fits = re.search(r"--max-model-len (\d+)", ended.stderr)[1]
    assert fine(cli("run", "tiny", WHO, "--temp", "0", "--max-model-len", fits, "--kv-cache-memory", "100ki")) == ANSWER + "\n"


def test_a_port_in_use_ends_with_5(cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(cli("serve", "tiny", "--port", taken.getsockname()[1]), PORT, str(taken.getsockname()[1]))


def test_serve_refuses_options_that_mean_nothing(cli, tmp_path):
    (tmp_path / "keys").write_text("# none\n")
    (tmp_path / "many").write_text("".join(f"key{i}\n" for i in range(65)))
    for flags in (["--port", "65536"], ["--max-header", "8g"], ["--max-header", "0"], ["--queue-timeout", "-1"],
                  ["--shutdown-timeout=1e300"], ["--header-timeout", "0"], ["--body-timeout", "-1"], ["--idle-timeout", "0"],
                  ["--slow-client-timeout", "2e6"], ["--reasoning-parser", "qwen3"], ["--tool-call-parser", "hermes"], ["--api-key", ""], ["--api-key-file", "keys"], ["--api-key-file", "many"]):
        refused(cli("serve", "tiny", *flags), USAGE, flags[0].partition("=")[0])
    refused(cli("serve", "tiny", "--api-key-file", "absent"), FAILURE, "absent")


def test_serve_prints_what_was_loaded_and_how_memory_is_divided(headrace):
    process = subprocess.Popen([headrace, "serve", "tiny", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    try:
        ready = process.stdout.readline()
        assert re.fullmatch(r"headrace: ready on http://127\.0\.0\.1:\d+ \(model tiny, \d+ seqs, [\d.]+ [KMG]iB KV\)\n", ready)
        process.send_signal(signal.SIGTERM)
        rest, talk = process.communicate(timeout=30)
        assert rest == "" and process.returncode == OK
        for words in (r"model +tiny: lfm2moe, 9\.06 M parameters .*2 of 8 experts.*6 layers.*17\.3 MiB mapped",
                      r"sampling temperature ", r"compute +cpu, .* threads",
                      r"memory +.* keys and values \(\d+ pages of 16 tokens, .*\), .* state, .* scratch",
                      r"limits +4096 tokens a sequence, \d+ sequences at once", r"page +open the address in a browser"):
            assert re.search(words, talk), talk
        assert "\x1b" not in ready + talk
    finally:
        process.kill()
        process.wait()
