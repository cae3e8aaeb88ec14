"""Includes point down, never up or sideways between siblings; headers stand alone; files stay one idea long."""
import pathlib
import re
import subprocess

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
CSRC = SOURCE / "csrc"

# Which rooms a room may include. headrace.h (include/) is everyone's.
ALLOWED = {
    "base": {"base"},
    "format": {"base", "format"},
    "model": {"base", "format", "model"},
    "text": {"base", "format", "text"},
    "convert": {"base", "format", "model", "text", "convert"},
    "backend": {"base", "format", "model", "backend"},
    "engine": {"base", "format", "model", "backend", "engine"},
    "api": {"base", "format", "model", "text", "convert", "backend", "engine", "api"},
    "server": {"base", "server"},
    "cli": {"base", "server", "cli"},
}


def sources():
    return [p for p in CSRC.rglob("*") if p.suffix in (".c", ".h", ".inc") and p.relative_to(CSRC).parts[0] in ALLOWED]


def test_includes_point_down():
    wrong = []
    for path in sources():
        room = path.relative_to(CSRC).parts[0]
        if "example" in path.parts:
            continue
        for target in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
            first = target.split("/")[0]
            if target == "hrk.h" and path.parent == CSRC / "backend" / "cuda":
                continue  # the one seam to the kernels
            if target != "headrace.h" and first not in ALLOWED[room]:
                wrong.append(f"{path.relative_to(SOURCE)} includes {target}")
    assert not wrong, "\n".join(wrong)


KERNEL_ROOMS = {"common", "io", "norm", "conv", "attention", "moe", "linear"}


def kernel_sources():
    return [p for p in (SOURCE / "kernels").rglob("*") if p.suffix in (".cu", ".h", ".inc")]


def test_kernels_know_nothing_of_the_host_code():
    wrong = []
    for path in kernel_sources():
        for target in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
            if target != "hrk.h" and target.split("/")[0] not in KERNEL_ROOMS:
                wrong.append(f"{path.relative_to(SOURCE)} includes {target}")
    assert not wrong, "\n".join(wrong)


def test_inline_assembly_stays_behind_the_seam():
    # prim.h promises that the emulation sees every instruction that C++ cannot spell.
    allowed = {"prim_device.h", "wgmma_device.inc"}
    wrong = [p.relative_to(SOURCE).as_posix() for p in kernel_sources() if p.name not in allowed and re.search(r"\basm\b\s*(volatile)?\s*\(", p.read_text())]
    assert not wrong, wrong


def test_libevent_is_known_to_one_file_only():
    users = [p.relative_to(SOURCE).as_posix() for p in sources() if re.search(r"#\s*include\s*<(event2/http|evhttp)", p.read_text())]
    assert len(users) <= 2, users


def cuda_flags(header):
    if not header.startswith("backend/cuda/"):
        return []
    include = subprocess.run(["sh", SOURCE / "tests/tools/cuda_path.sh", "include"], capture_output=True, text=True, check=True).stdout.strip()
    return [f"-I{SOURCE}/kernels", "-isystem", include]


@pytest.mark.parametrize("header", sorted(p.relative_to(CSRC).as_posix() for p in sources() if p.suffix == ".h"))
def test_header_compiles_alone(header, tmp_path):
    unit = tmp_path / "unit.c"
    unit.write_text(f'#include "{header}"\n')
    # A header of one instruction set is meant for files that are compiled for it.
    machine = {"avx2": ["-mavx2", "-mfma", "-mf16c"], "avx512": ["-march=cooperlake"]}
    flags = next((f for name, f in machine.items() if name in header), [])
    subprocess.run(["gcc", *flags, "-std=c17", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{CSRC}", f"-I{CSRC}/include", *cuda_flags(header), str(unit)],
                   check=True)


def test_every_file_says_why_it_exists():
    silent = [p.relative_to(SOURCE).as_posix() for p in sources() if not p.read_text().lstrip().startswith("/*")]
    assert not silent, silent


def test_files_hold_one_idea():
    long = {p.relative_to(SOURCE).as_posix(): n for p in sources() if (n := len(p.read_text().splitlines())) > 900}
    assert not long, long


def test_sources_are_formatted():
    files = subprocess.run(["git", "ls-files", "csrc/*.c", "csrc/*.h", "kernels/*.cu", "kernels/*.h", "tests/*.c", "tests/*.cc",
                            "tests/*.cu", "tests/*.h", "benchmarks/*.c"], cwd=SOURCE,
                           capture_output=True, text=True, check=True).stdout.split()
    result = subprocess.run(["clang-format-14", "--dry-run", "--Werror", *files], cwd=SOURCE, capture_output=True, text=True)
    assert result.returncode == 0, "run ./dev fmt:\n" + "\n".join(sorted({line.split(":")[0] for line in result.stderr.splitlines() if "error:" in line}))
