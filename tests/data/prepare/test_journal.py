"""Notes of a stage that somebody has changed, and stages that begin in the same moment."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest

from unimo_ds.data.prepare.journal import Journal, alone_in
from unimo_ds.utils.errors import UserError


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"{}", b"\xff", b"[" * 100_000, b'{"fingerprint": "other"}'])
def test_notes_that_were_changed_are_no_work_to_go_on_with(tmp_path: Path, content: bytes) -> None:
    journal = Journal(tmp_path, "stage")
    assert not journal.begin("work")
    assert journal.begin("work")
    journal.write("task.json", [1])
    (journal.path / "begun.json").write_bytes(content)
    assert not journal.begin("work")
    assert journal.read("task.json") is None, "it is forgotten"
    assert journal.begin("work")


def test_of_stages_that_begin_in_the_same_moment_one_works_at_a_time(tmp_path: Path) -> None:
    """The folder is not there before, and goes with each of them: what is held must be what others will open."""
    inside, most, worked = 0, 0, [0] * 4
    counting, start = threading.Lock(), threading.Barrier(len(worked))

    def begin(stage: int) -> None:
        nonlocal inside, most
        start.wait()
        for _ in range(1000):
            with contextlib.suppress(UserError), alone_in(tmp_path / "new" / "data", make=True):
                with counting:
                    inside += 1
                    most = max(most, inside)
                worked[stage] += 1
                time.sleep(1e-4)
                with counting:
                    inside -= 1

    stages = [threading.Thread(target=begin, args=(number,)) for number in range(len(worked))]
    for one in stages:
        one.start()
    for one in stages:
        one.join()
    assert sum(worked)
    assert most == 1


@pytest.mark.parametrize("path", ["link", "link/data"])
def test_a_folder_behind_a_link_to_nowhere_is_left_to_the_stage(path: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with alone_in(tmp_path / path, make=True):
        assert not (tmp_path / path).exists()
    assert not (tmp_path / "nowhere").exists()
