"""Start real groups of processes from a test, and never leave one behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from unimo_ds.engine.launch import free_port


def launch(script: Path, arguments: list[str], *, processes: int, timeout: float = 240.0) -> str:
    """Run `script` in `processes` ranks under torchrun and return what they printed; fail with it if they do."""
    command = [
        sys.executable,
        *("-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(free_port())),
        str(script),
        *arguments,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    group = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    try:
        output, _ = group.communicate(timeout=timeout)
    finally:
        if group.poll() is None:
            os.killpg(group.pid, signal.SIGKILL)
            group.wait()
    assert group.returncode == 0, f"exit status {group.returncode}:\n{output[-6000:]}"
    return output
