"""The kernels' sources on emulated thread blocks, under sanitizers and three schedules, against fp64."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("architecture", ["sm_70", "sm_80"])
def test_random_streams_equal_fp64_under_sanitizers(architecture):
    command = [sys.executable, "-m", "unimo_ds", "kernels", "check", "--arch", architecture, "--cases", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 cases, 0 failed" in done.stdout
