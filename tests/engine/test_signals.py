"""Requests to stop are remembered, agreed on, and turned into an exit status."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from unimo_ds.engine.signals import StopRequests
from unimo_ds.utils.communicator import SingleProcess
from unimo_ds.utils.errors import EXIT_INTERRUPTED, EXIT_REQUEUE


@pytest.fixture
def requests(tmp_path: Path) -> Iterator[StopRequests]:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    made = StopRequests(tmp_path, SingleProcess())
    made.install()
    yield made
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, EXIT_REQUEUE), (signal.SIGUSR1, EXIT_REQUEUE), (signal.SIGINT, EXIT_INTERRUPTED)],
)
def test_signals(requests: StopRequests, number: signal.Signals, status: int) -> None:
    assert requests.check() is None
    os.kill(os.getpid(), number)
    stop = requests.check()
    assert stop is not None
    assert (stop.reason, stop.exit_status) == (number.name, status)


def test_a_second_interrupt_ends_at_once(requests: StopRequests) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_between_two_loops_reaches_the_second(requests: StopRequests, tmp_path: Path) -> None:
    """The seeds of a fine-tuning are loops of one process; measuring the best checkpoint between them takes minutes."""
    os.kill(os.getpid(), signal.SIGUSR1)
    following = StopRequests(tmp_path, SingleProcess())
    following.install()
    stop = following.check()
    assert stop is not None
    assert stop.exit_status == EXIT_REQUEUE


def test_stop_file(requests: StopRequests, tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    stop = requests.check()
    assert stop is not None
    assert stop.exit_status == 0
    assert "stop" in stop.reason
