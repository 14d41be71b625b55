"""The report of who waits for whom, and of who is slow, from what the ranks said (hangs of real ranks: tests/distributed)."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.distributed import TCPStore

from unimo_ds.engine.stragglers import SlowRanks, Stopwatch, slowest
from unimo_ds.engine.watchdog import Position, Watchdog, _place, who_waits_for_whom
from unimo_ds.utils.communicator import SingleProcess


def position(rank: int, place: str, collective: str = "") -> Position:
    return Position(rank=rank, host=f"gpu{rank}", process=100 + rank, place=place, collective=collective, turn=7)


def test_the_rank_outside_the_collective_is_waited_for() -> None:
    waiting = [position(rank, "engine/step.py:63 train_step", "all_reduce") for rank in (0, 2, 3)]
    text = who_waits_for_whom([waiting[0], position(1, "data/loader.py:92 __iter__"), *waiting[1:]])
    assert "rank 1 (gpu1, process 101) at data/loader.py:92 __iter__, in no collective" in text
    assert "ranks 0, 2, 3 in all_reduce at engine/step.py:63 train_step" in text
    assert text.endswith("ranks 0, 2, 3 wait for rank 1")


def test_a_rank_that_says_nothing_is_waited_for() -> None:
    text = who_waits_for_whom([position(0, "a", "all_gather"), None])
    assert "rank 1 said nothing" in text
    assert text.endswith("rank 0 waits for rank 1")


def test_nobody_to_blame() -> None:
    same = [position(rank, "a", "all_reduce") for rank in range(2)]
    assert "a connection between them is dead" in who_waits_for_whom(same)
    assert "different collectives" in who_waits_for_whom([same[0], position(1, "b", "all_gather")])


@pytest.mark.parametrize("turns", [(5, 6), (6, 7), (7, 7)])
def test_one_rank_tells_though_the_one_that_stopped_is_a_turn_behind(
    turns: tuple[int, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    for turn in turns:
        watchdog = Watchdog(SingleProcess(), minutes=15.0)
        watchdog._turn = turn
        watchdog._tell(1.0)
    assert capsys.readouterr().out.count("no progress for 1 s") == 1


WATCHED = """
import sys, time
from unimo_ds.engine.watchdog import Watchdog
from unimo_ds.utils import heartbeat
from unimo_ds.utils.communicator import SingleProcess
watchdog = Watchdog(SingleProcess(), minutes=1.5 / 60)
watchdog.alive()
with heartbeat.heard_by(watchdog.working):
    for _ in range(10):
        time.sleep(0.3)
        if sys.argv[1] == "beats":
            heartbeat.beat()
watchdog.stop()
print("whole")
"""


@pytest.mark.parametrize(("kind", "status"), [("beats", 0), ("hangs", 1)])
def test_an_evaluation_may_last_longer_than_the_limit_if_it_goes_on(kind: str, status: int) -> None:
    command = [sys.executable, "-c", WATCHED, kind]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert found.returncode == status, found.stderr
    assert ("whole" in found.stdout) == (status == 0)


def test_a_threads_place_names_its_line_and_the_packages() -> None:
    started, ended = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        ended.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait()
    place, collective = _place(thread.ident)
    ended.set()
    thread.join()
    assert place.startswith("threading.py:")
    assert collective == ""
    assert _place(None) == ("nowhere", "")


def test_the_slowest_rank_by_its_own_work() -> None:
    found = slowest([0.0, 0.0, 1.0, 0.0], [0.5, 0.55, 0.5, 0.45], step_seconds=2.0)
    assert (found.rank, found.is_slow, found.data_seconds) == (2, True, 1.0)
    assert found.ratio == pytest.approx(3.0)
    assert not slowest([0.0, 0.0], [0.5, 0.6], step_seconds=2.0).is_slow, "a little slower"
    assert not slowest([0.0, 0.0], [0.03, 0.09], step_seconds=2.0).is_slow, "not worth a word"


class Two(SingleProcess):
    """This rank and one that waits for data for most of a step."""

    world_size = 2

    def all_gather_object(self, value: object) -> list[object]:
        return [value, "gpu07"]

    def all_gather_rows(self, rows: torch.Tensor, counts: object) -> torch.Tensor:
        return torch.cat((rows, torch.tensor([[0.7, 0.2]])))


def test_a_word_is_said_when_a_rank_stays_slow() -> None:
    speed = {"speed/seconds_per_step": 1.0, "speed/data_wait_share": 0.0, "speed/forward_seconds": 0.2}
    ranks = SlowRanks(Two())
    numbers, text = ranks.compare(speed)
    assert numbers == {"speed/slowest_rank": 1.0, "speed/slowest_rank_ratio": pytest.approx(4.5)}
    assert text == ""
    _, text = ranks.compare(speed)
    assert "rank 1 on gpu07 is slow and the others wait for it: 0.900 s" in text
    assert SlowRanks(SingleProcess()).compare(speed) == ({}, "")


def test_a_stopwatch_adds_up_and_starts_again() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch:
            time.sleep(0.02)
    time.sleep(0.02)
    assert 0.04 <= watch.read() < 1.0
    assert watch.read() == 0.0
