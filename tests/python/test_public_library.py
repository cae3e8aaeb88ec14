"""What leaves the house: a header that stands alone in C and C++, and a library that exports its names and no others."""
import os
import re
import subprocess

import pytest


def header(source_dir):
    return source_dir / "csrc" / "include" / "headrace.h"


def library(build_dir):
    return build_dir / "lib" / "libheadrace.so.0"


@pytest.mark.parametrize("compiler", [["gcc", "-std=c17", "-xc"], ["clang-14", "-std=c17", "-xc"], ["clang-14", "-std=c++17", "-xc++"]])
def test_the_header_stands_alone(source_dir, compiler):
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    subprocess.run([*compiler, *flags, "-include", str(header(source_dir)), "/dev/null"], check=True)


def test_exactly_the_functions_of_the_header_are_exported(source_dir, build_dir):
    text = re.sub(r"/\*.*?\*/", "", header(source_dir).read_text(), flags=re.S)
    declared = set(re.findall(r"HEADRACE_API[^;]*?\b(headrace_\w+)\s*\(", text))
    listing = subprocess.run(["nm", "-D", "--defined-only", library(build_dir)], check=True, capture_output=True, text=True)
    exported = {line.split()[-1].split("@")[0] for line in listing.stdout.splitlines() if " A " not in line}
    assert len(declared) > 40
    assert exported == declared


def test_the_soname_carries_the_interface_version(build_dir):
    listing = subprocess.run(["readelf", "-d", library(build_dir)], check=True, capture_output=True, text=True)
    assert "Library soname: [libheadrace.so.0]" in listing.stdout


def test_an_installed_library_compiles_and_runs_the_example(source_dir, build_dir, tmp_path):
    prefix = tmp_path / "prefix"
    subprocess.run(["cmake", "--install", build_dir, "--prefix", prefix], check=True, capture_output=True)
    (pkg_config,) = prefix.rglob("headrace.pc")
    assert (prefix / "share" / "headrace" / "tiny" / "model.safetensors").is_file()
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "headrace"], check=True, capture_output=True, text=True,
                           env=os.environ | {"PKG_CONFIG_PATH": str(pkg_config.parent)}).stdout.split()
    (prefix / "bin").mkdir(exist_ok=True)
    program = prefix / "bin" / "chat"  # beside share/, so that "tiny" is the installed model
    lib = pkg_config.parent.parent
    subprocess.run(["gcc", source_dir / "csrc" / "api" / "example" / "chat.c", *flags,
                    f"-Wl,-rpath,{lib}", "-o", program], check=True)
    done = subprocess.run([program, "tiny", "Hello!"], check=True, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout == "Hello! How can I help you today?\n"


def test_the_example_stays_under_80_lines(source_dir):
    assert len((source_dir / "csrc" / "api" / "example" / "chat.c").read_text().splitlines()) < 80
