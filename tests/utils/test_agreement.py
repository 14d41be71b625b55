"""Bad input that any rank finds ends all, and is told once, before any of them is gone."""

from __future__ import annotations

from typing import Any

import pytest

from unimo_ds.utils.agreement import fail_together, failing_together, rank_0_first
from unimo_ds.utils.communicator import SingleProcess
from unimo_ds.utils.errors import ToldError, UserError, run_command


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


def test_rank_0_makes_it_before_the_others_begin() -> None:
    def events(rank: int) -> list[str]:
        happened: list[str] = []

        class Recording(Group):
            def all_gather_object(self, value: Any) -> list[Any]:
                happened.append("meets the others")
                return super().all_gather_object(value)

        def make() -> int:
            happened.append("makes it")
            return 7

        assert rank_0_first(Recording(rank, ["", ""]), make) == 7
        return happened

    assert events(0) == ["makes it", "meets the others", "meets the others"]
    assert events(1) == ["meets the others", "makes it", "meets the others"]
    with pytest.raises(ToldError, match=r"^no data$"):
        rank_0_first(Group(1, ["no data", ""]), lambda: 7)
