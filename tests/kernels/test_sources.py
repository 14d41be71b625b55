"""The kernels' sources on emulated thread blocks, under sanitizers and three schedules, against fp64; and that faults show."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys

import pytest

from unimo_ds.ops.native import build, toolchain


@pytest.mark.parametrize(
    ("kernel", "architecture"),
    [
        *(("attention", name) for name in ("sm_70", "sm_80", "sm_90")),
        ("contrastive", "sm_70"),
        ("contrastive", "sm_80"),
        ("cross_entropy", "sm_80"),
        ("dropout_norm", "sm_70"),
        ("bias_gelu", "sm_80"),
    ],
)
def test_random_cases_equal_fp64_under_sanitizers(kernel, architecture):
    command = [sys.executable, "-m", "unimo_ds", "kernels", "check", "--kernel", kernel, "--arch", architecture]
    done = subprocess.run([*command, "--cases", "4"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 cases, 0 failed" in done.stdout


FAULTS = {
    "attention: a missing barrier": (
        "sm_70",
        "attention/forward.cuh",
        "        block_barrier();  // this stage",
        "        // this stage",
    ),
    "attention: products nobody waits for": (
        "sm_90",
        "attention/hopper_backward_queries.cuh",
        "        group_wait<0>();\n        pin(slopes);",
        "        pin(slopes);",
    ),
    "attention: score gradients written over values that others still read": (
        "sm_90",
        "attention/hopper_backward_whole.cuh",
        "    block_barrier();  // all have made",
        "    // all have made",
    ),
    "attention: a mask off by one": (
        "sm_70",
        "attention/geometry.cuh",
        "prefix > row ? prefix : row + 1",
        "prefix > row ? prefix : row + 2",
    ),
    "attention: dropout of a text that sees a shared prefix, at columns of its own": (
        "sm_70",
        "attention/backward_keys.cuh",
        "tile.shared + row",
        "row",
    ),
    "contrastive: a missing barrier": (
        "sm_70",
        "contrastive/statistics.cuh",
        "            block_barrier();\n            const int column",
        "            const int column",
    ),
    "contrastive: a rule without its conflict bit": (
        "sm_70",
        "contrastive/conflicts.cuh",
        " || keys.may_hold(key[2], 2u)",
        "",
    ),
    "cross_entropy: sums that do not follow a higher maximum": (
        "sm_80",
        "cross_entropy/cross_entropy.cuh",
        "parts[r].sum * exp2_approximate((parts[r].maximum - anchor) * kBitsPerNat) + sum",
        "parts[r].sum + sum",
    ),
}


FIRST_CASES = {"attention": "0", "contrastive": "8", "cross_entropy": "0"}
"""Of six that show every fault above."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(tmp_path, fault):
    folder = tmp_path / "kernels"
    shutil.copytree(build.sources_folder(), folder)
    architecture, name, right, wrong = FAULTS[fault]
    source = folder / name
    assert right in source.read_text()
    source.write_text(source.read_text().replace(right, wrong))
    program = tmp_path / "check"
    check = folder / fault.partition(":")[0] / "host_check.cpp"
    command = toolchain.host_command(architecture, check, program)
    build.compile_file([word if word != "-O2" else "-O1" for word in command])
    done = subprocess.run([program, FIRST_CASES[check.parent.name], "6"], capture_output=True, text=True, check=False)
    assert done.returncode in (1, -signal.SIGABRT), done.stdout + done.stderr
