#!/usr/bin/env python3
"""Writes kernels/common/wgmma_device.inc, or with --check says whether it is up to date.

An inline-assembly wgmma names each accumulator register, up to 128 of them, so one function a width cannot be written by
hand without slips, and no loop of C++ can write it.
"""
import pathlib
import sys
import textwrap

TARGET = pathlib.Path(__file__).with_name("wgmma_device.inc")
WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def wrapped(items, indent, first=""):
    """Comma-separated items in lines of at most 120 columns."""
    return textwrap.fill(first + ", ".join(items), 120, initial_indent=indent, subsequent_indent=indent + "  ",
                         break_long_words=False, break_on_hyphens=False)


def quoted(text, indent):
    """The text as adjacent string literals."""
    return "\n".join(f'{indent}"{line}"' for line in textwrap.wrap(text, 100, drop_whitespace=False, break_on_hyphens=False))


def function(name, n, a_in_registers, b_is_mn_major):
    n_acc = n // 2
    n_a = 4 if a_in_registers else 1
    numbers = [f"%{i}" for i in range(n_acc + n_a)]
    acc, a = numbers[:n_acc], numbers[n_acc:]
    b, scale = f"%{n_acc + n_a}", f"%{n_acc + n_a + 1}"
    a_text = "{" + ", ".join(a) + "}" if a_in_registers else a[0]
    majors = f"{int(b_is_mn_major)}" if a_in_registers else "0, 0"
    a_parameter = "const uint32_t (&a)[4]" if a_in_registers else "uint64_t desc_a"
    a_inputs = [f'"r"(a[{i}])' for i in range(4)] if a_in_registers else ['"l"(desc_a)']
    text = f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{', '.join(acc)}}}, {a_text}, {b}, p, 1, 1, {majors};"
    return "\n".join([
        "template <>",
        f"HRK_PRIM void {name}<{n}>(float (&acc)[{n_acc}], {a_parameter}, uint64_t desc_b, int scale_d)",
        "{",
        f'    asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, {scale}, 0;\\n"',
        quoted(text, " " * 17),
        '                 "\\n}"',
        wrapped([f'"+f"(acc[{i}])' for i in range(n_acc)], " " * 17, ": "),
        wrapped([*a_inputs, '"l"(desc_b)', '"r"(scale_d)'], " " * 17, ": ") + ");",
        "}",
    ])


def generated():
    parts = ["// Written by make_wgmma.py; do not edit. wgmma m64nNk16, bf16 operands, fp32 accumulators; included by prim_device.h."]
    for n in WIDTHS:
        parts.append(function("wgmma_bf16", n, False, False))
        parts.append(function("wgmma_bf16_ra", n, True, False))
        if n <= 64:  # an MN-major tile (prim.h) is 64 wide
            parts.append(function("wgmma_bf16_tb", n, True, True))
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if TARGET.read_text() != generated():
            sys.exit(f"{TARGET} is out of date: run {pathlib.Path(__file__).name}")
    else:
        TARGET.write_text(generated())
