"""benchmarks/gpu/run.py, the driver of ./dev gpu, with programs that are small scripts: what it reports, and that it never hangs."""
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = SOURCE / "benchmarks" / "gpu" / "run.py"

spec = importlib.util.spec_from_file_location("gpu_run", SCRIPT)
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder in front of PATH; nvidia-smi there names a device, and nothing of CUDA is found elsewhere."""
    folder = tmp_path / "tools"
    program(folder / "nvidia-smi", 'echo "NVIDIA H100 80GB HBM3, 580.1, 81559, 1980, 2619, 1980, 70.1, 700.0, 30"\n')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "no-cuda"))
    monkeypatch.setattr(gpu, "system_has_libraries", lambda: True)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    return folder


@pytest.fixture
def bin_dir(tmp_path):
    return tmp_path / "build" / "bin"


def start(tmp_path, *arguments):
    code = gpu.main([*arguments, "--out", str(tmp_path / "out"), "--build", str(tmp_path / "build")])
    return code, json.loads((tmp_path / "out" / "gpu.json").read_text())


def kernel_row(**changes):
    return {"kernel": "down", "model": "24b-a2b", "rows": 64, "context": 0, "us": 10.0, "bytes": 1e7, "flop": 1e9, "gb_s": 1000.0,
            "tflop_s": 100.0} | changes


def step_row(**changes):
    return {"step": "decode", "model": "24b-a2b", "streams": 64, "context": 1024, "rows": 64, "us": 5000.0, "tokens_s": 12800.0, "bytes": 1e9,
            "flop": 1e12, "gb_s": 1500.0, "tflop_s": 200.0, "bad_logits": 0} | changes


def test_an_unknown_piece_is_refused_by_name(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        gpu.main(["tset", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "no piece 'tset'" in capsys.readouterr().err


def test_every_program_that_fails_is_named(tools, bin_dir, tmp_path, capsys):
    program(bin_dir / "gpu_test_kernel_good", "exit 0\n")
    program(bin_dir / "gpu_test_kernel_bad", "echo 'error: three is not four'; exit 1\n")
    program(bin_dir / "gpu_test_cuda_crash", "kill -SEGV $$\n")
    program(bin_dir / "headrace", "exit 5\n")
    code, record = start(tmp_path, "test")
    said = capsys.readouterr().out
    assert code == 1 and record["pieces"]["test"]["status"] == gpu.FAILED
    assert record["tests"]["gpu_test_kernel_good"] == 0
    assert record["tests"]["gpu_test_kernel_bad"] == 1
    assert record["tests"]["gpu_test_cuda_crash"] == -11
    assert record["tests"]["served"] != 0
    assert "gpu_test_kernel_bad: FAILED, exit 1" in said and "gpu_test_cuda_crash: FAILED" in said
    assert "gpu_test_kernel_good" not in said
    assert "error: three is not four" in said


def test_no_test_programs_are_no_success(tools, bin_dir, tmp_path):
    program(bin_dir / "headrace", "exit 0\n")
    code, record = start(tmp_path, "test")
    assert code == 1 and record["pieces"]["test"]["status"] == gpu.FAILED


def test_a_program_that_hangs_is_stopped_with_what_it_started(tools, bin_dir, tmp_path):
    child = tmp_path / "child"
    program(bin_dir / "bench_kernels", f"sleep 300 & echo $! > {child}; wait\n")
    began = time.monotonic()
    code, record = start(tmp_path, "kernels", "--limit", "9")
    assert time.monotonic() - began < 30
    assert code == 1 and record["pieces"]["kernels"]["status"] == gpu.FAILED
    assert "exit 124" in (tmp_path / "out" / "kernels.txt").read_text()
    time.sleep(0.2)
    status = pathlib.Path(f"/proc/{child.read_text().strip()}/stat")
    assert not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_a_line_that_was_cut_off_is_left_out(tools, bin_dir, tmp_path):
    row = json.dumps(kernel_row())
    program(bin_dir / "bench_kernels", f"""while [ $# -gt 0 ]; do [ "$1" = --out ] && out=$2; shift; done
printf '%s\\n%s' '{row}' '{row[:30]}' > "$out"\n""")
    code, record = start(tmp_path, "kernels")
    assert code == 0 and record["kernels"] == [kernel_row()]


def test_time_is_shared_in_proportion_and_what_is_unused_goes_on(tmp_path):
    run = gpu.Run(100, tmp_path / "out", [], tmp_path)
    run.begin_piece("build", ["test", "kernels"])
    assert run.piece_left() > 99
    run.begin_piece("test", ["kernels"])
    share = gpu.SHARE["test"] / (gpu.SHARE["test"] + gpu.SHARE["kernels"])
    assert abs(run.piece_left() - 100 * share) < 1
    run.begin_piece("kernels", [])
    assert run.piece_left() > 99


def test_no_piece_starts_without_time_left(tools, bin_dir, tmp_path, capsys):
    program(bin_dir / "bench_kernels", "exit 0\n")
    code, record = start(tmp_path, "kernels", "rivals", "--limit", "3")
    assert code == 1
    assert {p["status"] for p in record["pieces"].values()} == {"no time left"}


def test_a_tool_that_is_not_there_is_said_to_be_missing(tools, bin_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.Run, "has", lambda self, name: False)
    program(bin_dir / "gpu_test_kernel_good", "exit 0\n")
    code, record = start(tmp_path, "sanitize", "profile")
    assert code == 1
    assert {p["status"] for p in record["pieces"].values()} == {gpu.MISSING}


def test_findings_of_the_sanitizer_are_told_from_success(tools, bin_dir, tmp_path, capsys):
    program(tools / "compute-sanitizer", 'case "$*" in *racecheck*one*) exit 9;; esac; exit 0\n')
    program(bin_dir / "gpu_test_kernel_one", "exit 0\n")
    program(bin_dir / "gpu_test_cuda_step", "exit 0\n")
    code, record = start(tmp_path, "sanitize")
    assert code == 1
    assert record["sanitizers"] == {"memcheck gpu_test_kernel_one": 0, "racecheck gpu_test_kernel_one": 9, "synccheck gpu_test_kernel_one": 0}
    assert "racecheck gpu_test_kernel_one: FAILED, exit 9" in capsys.readouterr().out


def test_nothing_runs_after_a_build_that_failed(tools, bin_dir, tmp_path):
    program(tools / "cmake", "echo 'error: no such compiler'; exit 1\n")
    code, record = start(tmp_path)
    assert code == 1 and list(record["pieces"]) == ["build"]


def test_without_a_device_nothing_is_to_be_committed(tools, bin_dir, tmp_path, capsys):
    program(tools / "nvidia-smi", "echo 'NVIDIA-SMI has failed' ; exit 9\n")
    program(bin_dir / "bench_kernels", "echo 'bench_kernels: no usable device: error'; exit 1\n")
    code, record = start(tmp_path, "kernels", "--save")
    said = capsys.readouterr().out
    assert code == 1 and record["device"] == {}
    assert "shows no device" in said and "no usable device" in said and "nothing to commit" in said
    assert not list((tmp_path / "results").iterdir())


def test_the_record_is_saved_under_the_devices_name(tools, bin_dir, tmp_path, capsys):
    program(bin_dir / "bench_kernels", "exit 0\n")
    code, record = start(tmp_path, "kernels", "--save")
    saved = tmp_path / "results" / "gpu_h100_80gb_hbm3.json"
    assert code == 0 and json.loads(saved.read_text()) == record
    assert record["device"]["driver_version"] == "580.1" and re.match("[0-9a-f]{12}$|$", record["commit"])
    assert f"to commit: {saved}" in capsys.readouterr().out


def test_libraries_that_are_nowhere_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "system_has_libraries", lambda: False)
    with pytest.raises(SystemExit) as stop:
        gpu.library_environment(tmp_path / "nowhere")
    assert "jansson" in str(stop.value) and "./dev gpu-pack" in str(stop.value)
    (tmp_path / "root").mkdir()
    env = gpu.library_environment(tmp_path / "root")
    assert env["PKG_CONFIG"] == str(tmp_path / "root/usr/bin/pkgconf") and not env["LD_LIBRARY_PATH"].endswith(":")


def test_the_table_puts_the_best_rival_and_the_ceiling_beside(capsys):
    rival = {"rival": "slow", "kernel": "down", "model": "24b-a2b", "rows": 64, "context": 0, "us": 30.0}
    gpu.report({"device": {"name": "H100"}, "commit": "abc", "pieces": {"kernels": {"status": "ok", "seconds": 3.0}},
                "kernels": [kernel_row(kernel="device_copy", gb_s=2000.0), kernel_row()],
                "steps": [step_row(), step_row(step="mixed", bad_logits=2),
                          {"step": "routing", "model": "24b-a2b", "streams": 8, "experts": 64, "layers": 38, "distinct_experts": 25.1,
                           "least_distinct": 22, "even_routing": 25.8}],
                "rivals": [rival, rival | {"rival": "quick", "us": 15.0}, rival | {"rival": "broken", "us": 1.0, "rows": 8},
                           {"rival": "absent", "kernel": "down", "model": "24b-a2b", "rows": 64, "context": 0, "failed": "ImportError: none"}]})
    said = capsys.readouterr().out
    line = next(x for x in said.splitlines() if x.startswith("down"))
    assert "50%" in line and "quick 15.0 us: 1.50x" in line
    assert "75%" in next(x for x in said.splitlines() if x.startswith("step decode"))
    assert "2 BAD LOGITS" in said and "25.1 of 64 experts" in said and "ImportError: none" in said


def test_an_empty_record_can_be_shown(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"pieces": {}, "kernels": [], "steps": [], "rivals": [], "device": {}}))
    done = subprocess.run([sys.executable, SCRIPT, "report", path], capture_output=True, text=True)
    assert done.returncode == 0 and "no device" in done.stdout
