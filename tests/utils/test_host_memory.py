"""Large buffers are reused without page faults once the C library is told to keep them."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import torch
from unimo_ds.utils.host_memory import keep_freed_buffers

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(4 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
assert keep_freed_buffers()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_buffers_are_reused():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    before, after = map(int, result.stdout.split())
    assert before > 10_000  # 20 buffers of 16 MB, many of them mapped anew with a fault for each 4 kB
    assert after < before / 20


RETURNING = """
import torch
from unimo_ds.utils.host_memory import keep_freed_buffers, return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

keep_freed_buffers()
buffers = [torch.zeros(4 << 20) for _ in range(20)]
last = torch.zeros(1 << 20)
del buffers
before = resident()
return_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_freed_memory_goes_back_when_asked():
    result = subprocess.run([sys.executable, "-c", RETURNING], capture_output=True, text=True, timeout=60, check=True)
    assert int(result.stdout) > 200 << 20  # 20 buffers of 16 MB lay free below one that is in use
