"""The kernels' sources on emulated thread blocks, under sanitizers and three schedules, against fp64; and that faults show."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from unimo_ds.ops.native import build, toolchain


@pytest.mark.parametrize("architecture", ["sm_70", "sm_80", "sm_90"])
def test_random_streams_equal_fp64_under_sanitizers(architecture):
    command = [sys.executable, "-m", "unimo_ds", "kernels", "check", "--arch", architecture, "--cases", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 cases, 0 failed" in done.stdout


FAULTS = {
    "a missing barrier": (
        "sm_70",
        "attention/forward.cuh",
        "        block_barrier();  // this stage",
        "        // this stage",
    ),
    "products nobody waits for": (
        "sm_90",
        "attention/hopper_backward_queries.cuh",
        "        group_wait<0>();\n        pin(slopes);",
        "        pin(slopes);",
    ),
    "a mask off by one": (
        "sm_70",
        "attention/geometry.cuh",
        "prefix > row ? prefix : row + 1",
        "prefix > row ? prefix : row + 2",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(tmp_path, fault):
    folder = tmp_path / "kernels"
    shutil.copytree(build.sources_folder(), folder)
    architecture, name, right, wrong = FAULTS[fault]
    source = folder / name
    assert right in source.read_text()
    source.write_text(source.read_text().replace(right, wrong))
    program = tmp_path / "check"
    command = toolchain.host_command(architecture, folder / "attention" / "host_check.cpp", program)
    build.compile_file([word if word != "-O2" else "-O1" for word in command])
    done = subprocess.run([program, "0", "6"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
