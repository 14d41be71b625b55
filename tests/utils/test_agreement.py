"""Bad input that any rank finds ends all, and is told once, before any of them is gone."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unimo_ds.utils import agreement
from unimo_ds.utils.agreement import fail_together, failing_together, rank_0_first
from unimo_ds.utils.communicator import ProcessGroup, SingleProcess
from unimo_ds.utils.errors import ToldError, UserError
from unimo_ds.utils.running import run_command


class Group(SingleProcess):
    """A rank of a group whose other ranks have the given problems."""

    def __init__(self, rank: int, problems: list[str]) -> None:
        self.rank, self.world_size, self.problems = rank, len(problems), problems

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value if rank == self.rank else (text, f"node{rank}") for rank, text in enumerate(self.problems)]


def message(rank: int, problems: list[str]) -> str:
    with pytest.raises(ToldError) as caught:
        fail_together(Group(rank, problems), problems[rank])
    return str(caught.value)


def test_each_sentence_is_told_once_and_those_of_one_rank_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    fail_together(Group(1, ["", ""]), "")
    assert message(1, ["a", "a"]) == "a"
    assert message(0, ["", "", "b"]) == "rank 2 on node2: b"
    assert message(0, ["a", "a", "b", "b"]) == "a; rank 2 on node2: b"
    assert capsys.readouterr().err == "error: rank 2 on node2: b\nerror: a; rank 2 on node2: b\n", "by rank 0"


def test_a_command_says_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    def command(rank: int, problems: list[str]) -> None:
        with failing_together(Group(rank, problems)):
            if problems[rank]:
                raise UserError(problems[rank])

    assert [run_command(lambda rank=rank: command(rank, ["", "a"])) for rank in range(2)] == [2, 2]
    assert capsys.readouterr().err.count("error: ") == 1


def test_one_process_raises_and_lets_the_command_tell(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^a$"), failing_together(SingleProcess()):
        raise UserError("a")
    assert capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError), failing_together(SingleProcess()):
        1 / 0  # noqa: B018


class Recording(Group):
    """What it does is written into `happened`; the others are done with whatever they do."""

    def __init__(self, rank: int, problems: list[str]) -> None:
        super().__init__(rank, problems)
        self.happened: list[str] = []

    def all_gather_object(self, value: Any) -> list[Any]:
        if isinstance(value, bool):
            self.happened.append("done" if value else "at work")
            return [value, True]
        self.happened.append("meets the others")
        return super().all_gather_object(value)


def test_rank_0_makes_it_before_the_others_begin() -> None:
    def events(rank: int) -> list[str]:
        group = Recording(rank, ["", ""])

        def make() -> int:
            group.happened.append("makes it")
            return 7

        assert rank_0_first(group, make) == 7
        return group.happened

    turn, waiting = ["makes it", "done", "meets the others"], ["done", "meets the others"]
    assert events(0) == [*turn, *waiting]
    assert events(1) == [*waiting, *turn]
    with pytest.raises(ToldError, match=r"^no data$"):
        rank_0_first(Recording(1, ["no data", ""]), lambda: 7)
    with pytest.raises(ZeroDivisionError):
        rank_0_first(Recording(0, ["", ""]), lambda: 1 // 0)


def busy(seconds: float, clock: Callable[[], float] = time.thread_time) -> None:
    until = clock() + seconds
    while clock() < until:
        pass


def test_a_rank_at_work_meets_the_others_and_one_that_stands_still_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(agreement, "_SIGN_OF_LIFE_SECONDS", 0.1)
    working, standing = Recording(0, ["", ""]), Recording(0, ["", ""])
    rank_0_first(working, lambda: busy(1.0))
    assert 2 <= working.happened.count("at work") <= 12
    rank_0_first(standing, lambda: time.sleep(1.0))
    assert standing.happened.count("at work") <= 1


def _slow_rank(rank: int, file: str, found: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    """In a group whose collectives give up after four seconds."""
    agreement._PAUSE_SECONDS, agreement._SIGN_OF_LIFE_SECONDS = 0.1, 0.1
    torch.distributed.init_process_group(
        "gloo", f"file://{file}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=4)
    )
    group = ProcessGroup()
    rank_0_first(group, lambda: busy(6.0, time.monotonic) if rank == 0 else None)
    found.put((rank, "waited"))
    try:
        rank_0_first(group, lambda: time.sleep(60.0) if rank == 0 else None)
    except RuntimeError:
        found.put((rank, "gave up"))
    found.close()
    found.join_thread()
    os._exit(0)  # without leaving a group that is broken


def test_work_may_take_longer_than_a_collective_waits_but_a_standstill_may_not(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    ranks = [context.Process(target=_slow_rank, args=(rank, str(tmp_path / "meet"), found)) for rank in range(2)]
    for one in ranks:
        one.start()
    try:
        assert {found.get(timeout=120) for _ in ranks} == {(0, "waited"), (1, "waited")}
        given_up = found.get(timeout=60)
        # Once rank 1 has gone, rank 0 may be told first.
        assert (1, "gave up") in (given_up, given_up if given_up[0] == 1 else found.get(timeout=30))
    finally:
        for one in ranks:
            one.kill()
