"""Who is told to stop while starting, or loses its launcher there, is gone at once: no rank waits for one that never comes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.launching import deepspeed, processes_of_rank, started, torchrun
from tests.distributed.test_train import TRAIN, arguments, is_running
from tests.runs import steps_so_far
from unimo_ds.data.prepare.scenes.writing import write_demo_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "demo"
    write_demo_corpus(folder, num_pairs=40, num_images=10, num_texts=10, num_held_out=4)
    return folder


def wait_for(condition: Callable[[], object], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def watches(process: int) -> bool:
    """Whether it has come as far as its first lines: SIGUSR1 is caught."""
    with contextlib.suppress(OSError):
        (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
        return bool(int(caught, 16) >> (signal.SIGUSR1 - 1) & 1)
    return False


def test_a_rank_whose_launcher_is_killed_leaves_the_rendezvous(corpus: Path, tmp_path: Path) -> None:
    """Rank 0 is stopped before it opens the rendezvous; this test opens it instead, and never answers."""
    command = [*deepspeed(2), str(TRAIN), *arguments(corpus, tmp_path / "run")]
    port = int(command[command.index("--master_port") + 1])
    with started(command) as family:
        wait_for(lambda: all(processes_of_rank(family.pid, rank) for rank in (0, 1)), seconds=120)
        (first,), (second,) = (processes_of_rank(family.pid, rank) for rank in (0, 1))
        os.kill(first, signal.SIGSTOP)
        with socket.create_server(("127.0.0.1", port)) as rendezvous:
            rendezvous.settimeout(120)
            for _ in range(2):  # a look whether it is open, and torch's own connection
                rendezvous.accept()
            os.kill(family.pid, signal.SIGKILL)
            wait_for(lambda: not is_running(second), seconds=30)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [((), "port {port} of this machine is taken"), (("--recipe", "dmo"), "unknown recipe 'dmo'; did you mean 'demo'?")],
    ids=["good input", "bad input, which is told first"],
)
def test_a_port_that_another_run_holds_is_told_in_one_sentence(
    corpus: Path, tmp_path: Path, more: tuple[str, ...], sentence: str
) -> None:
    command = [*deepspeed(2), str(TRAIN), *arguments(corpus, tmp_path / "run"), *more]
    port = command[command.index("--master_port") + 1]
    with socket.create_server(("0.0.0.0", int(port))), started(command) as family:
        said, _ = family.communicate(timeout=120)
        assert family.returncode == 2, said
    assert said.count(f"error: {sentence.format(port=port)}") == said.count("error: ") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("launcher", [deepspeed, torchrun])
def test_nobody_trains_on_whose_launcher_was_killed_while_importing(
    launcher: Callable[[int], list[str]], corpus: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    flags = arguments(corpus, run_dir, schedule__total_steps=10_000, data__num_workers=0)
    with started([*launcher(2), str(TRAIN), *flags]) as family:
        wait_for(lambda: all(any(map(watches, processes_of_rank(family.pid, rank))) for rank in (0, 1)), seconds=120)
        ranks = [process for rank in (0, 1) for process in processes_of_rank(family.pid, rank)]
        os.kill(family.pid, signal.SIGKILL)
        wait_for(lambda: not any(map(is_running, ranks)), seconds=30)
    assert steps_so_far(run_dir) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("command", [["unimo_ds.train"], ["unimo_ds", "finetune", "sst2"]], ids=" ".join)
def test_a_signal_before_the_first_step_is_a_request_to_start_again(
    command: list[str], number: signal.Signals, tmp_path: Path
) -> None:
    """75, which Slurm's scripts requeue; not the signal's own death."""
    with started([sys.executable, "-m", *command, "--data", str(tmp_path), "--checkpoint", str(tmp_path)]) as family:
        wait_for(lambda: watches(family.pid), seconds=120)
        family.send_signal(number)
        output, _ = family.communicate(timeout=30)
    assert family.returncode == 75
    assert f"stopped before the first step ({number.name}); the same command starts again" in output
