"""Ranks that are done end with their status, whatever threads of gloo are about."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.distributed.launching import mpirun, started, torchrun

SLOW_THREADS = r"""
#include <cstdlib>
#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

// std::condition_variable::notify_all, after which every thread but the first sleeps.
extern "C" void _ZNSt18condition_variable10notify_allEv(void* self) {
  static auto notify = reinterpret_cast<void (*)(void*)>(dlsym(RTLD_NEXT, "_ZNSt18condition_variable10notify_allEv"));
  notify(self);
  const char* slow = getenv("SLOW_MICROSECONDS");
  if (slow && syscall(SYS_gettid) != getpid()) usleep(atoi(slow));
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
@pytest.mark.parametrize("status", [0, 75])
def test_a_thread_that_drops_a_tensor_late_aborts_nothing(tmp_path: Path, status: int) -> None:
    source, library = tmp_path / "slow.cpp", tmp_path / "slow.so"
    source.write_text(SLOW_THREADS)
    subprocess.run(["g++", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    worker = [str(Path(__file__).with_name("ending_worker.py")), str(status)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "LD_PRELOAD", str(library))
        with started([*torchrun(2), *worker]) as family:
            output, _ = family.communicate(timeout=120)
    assert "terminate called" not in output, output
    assert (family.returncode != 0) == (status != 0), output
    assert status == 0 or f"exitcode  : {status} " in output, output


def test_mpirun_takes_no_end_for_a_crash() -> None:
    """It wants MPI left by all that have joined it, as ranks on several machines have."""
    with started([*mpirun(2), str(Path(__file__).with_name("ending_worker.py")), "0", "with MPI"]) as family:
        output, _ = family.communicate(timeout=120)
    assert family.returncode == 0, output
