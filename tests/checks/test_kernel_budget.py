"""Every kernel compiles for sm_90a and keeps the budget of kernels/budget.json (tests/tools/kernel_budget.py says what that is)."""
import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tools"))
import kernel_budget  # noqa: E402


@pytest.fixture(scope="module")
def checked():
    return kernel_budget.check(os.cpu_count())


def test_every_kernel_keeps_its_budget(checked):
    found, faults = checked
    assert found
    assert not faults, "\n".join(faults)


def kernel(**changes):
    k = {"file": "linear/wgmma_linear.cu", "registers": 100, "static_shared": 0, "dynamic_shared": 90000, "threads": 256,
         "blocks_per_sm": 2, "instructions": 1000, "stack": 0, "spill": 0,
         "ops": ["HGMMA.64x64x16.F32.BF16", "UBLKCP", "LDGSTS.E.BYPASS.128", "SYNCS.ARRIVE", "ACQBULK"]}
    k.update(changes)
    return k


@pytest.mark.parametrize("change, said", [
    ({}, None),
    ({"registers": 101}, "registers 101"),
    ({"registers": 90}, None),
    ({"spill": 8}, "8 bytes of spills"),
    ({"stack": 16}, "16 bytes of stack"),
    ({"dynamic_shared": 120000}, "dynamic_shared 120000"),
    ({"blocks_per_sm": 1}, "1 blocks fit"),
    ({"instructions": 1400}, "1400 instructions"),
    ({"ops": ["UBLKCP", "LDGSTS", "SYNCS", "ACQBULK"]}, "no HGMMA"),
    ({"ops": kernel()["ops"] + ["LDL.64"]}, "has LDL"),
    ({"ops": kernel()["ops"] + ["HMMA.16816"]}, "has HMMA"),
])
def test_a_kernel_that_breaks_its_budget_is_named(change, said):
    faults = kernel_budget.faults_of("k<1>", kernel(**change), {"k<1>": kernel()})
    assert (faults == []) if said is None else (len(faults) == 1 and said in faults[0])


def test_a_kernel_without_a_line_is_named():
    assert "no line" in kernel_budget.faults_of("k<1>", kernel(), {})[0]


@pytest.mark.parametrize("registers, threads, shared, blocks", [
    (100, 256, 109000, 2), (168, 384, 182000, 1), (32, 128, 0, 16), (255, 128, 0, 2), (40, 1024, 40000, 1), (32, 1024, 0, 2),
])
def test_blocks_a_multiprocessor_follow_the_occupancy_rules(registers, threads, shared, blocks):
    assert kernel_budget.blocks_per_sm(registers, threads, shared) == blocks


def test_names_do_not_depend_on_the_compiler():
    names = ["_ZN35_GLOBAL__N__1328e742_4_p_cu__Z2goPf4kernILi128ELb1EEEvPf", "_ZN12_GLOBAL__N_14kernILi128ELb1EEEvPf"]
    assert set(kernel_budget.demangle(names).values()) == {"kern<128,1>"}
