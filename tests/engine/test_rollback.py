"""Which steps are left after rollbacks, and what of one survives an interruption."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimo_ds.engine import checkpoint_folder, rollback
from unimo_ds.engine.rollback import Rollback, spans
from unimo_ds.utils.errors import UserError


@given(
    st.integers(0, 30),
    st.integers(0, 30),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), max_size=4),
)
def test_every_step_is_taken_unless_it_was_passed_over(start: int, length: int, cuts: list[tuple[int, int]]) -> None:
    rollbacks = [Rollback(first, first + size, "") for first, size in cuts]
    passed_over = {step for first, size in cuts for step in range(first, first + size)}
    found = spans(start, start + length, rollbacks)
    assert [step for span in found for step in span] == [
        step for step in range(start, start + length) if step not in passed_over
    ]
    assert all(len(span) for span in found)


def make_checkpoints(run_dir: Path, *steps: int) -> Path:
    folder = run_dir / checkpoint_folder.FOLDER
    for step in steps:
        (folder / f"step-{step}").mkdir(parents=True)
        (folder / f"step-{step}" / checkpoint_folder.MANIFEST).write_text("{}")
    checkpoint_folder.point(folder, checkpoint_folder.LATEST, f"step-{steps[-1]}")
    checkpoint_folder.point(folder, checkpoint_folder.BEST, f"step-{steps[-1]}")
    return folder


def test_an_interrupted_rollback_is_finished_by_the_next_start(tmp_path: Path) -> None:
    folder = make_checkpoints(tmp_path, 10, 20, 30)
    one = Rollback(24, 31, "spikes", ((24, [["a"], ["b"]]),))
    rollback.begin(tmp_path, one)
    assert checkpoint_folder.completed_steps(tmp_path) == [10, 20, 30], "killed here"
    rollback.finish(tmp_path)
    assert checkpoint_folder.completed_steps(tmp_path) == [10, 20]
    assert (folder / "latest").read_text() == "step-20\n"
    assert not (folder / "best").exists()
    (read,) = rollback.read(tmp_path)
    assert read.is_done
    assert dataclasses.replace(read, is_done=False, samples=one.samples) == one
    make_checkpoints(tmp_path, 40)
    rollback.finish(tmp_path)
    assert checkpoint_folder.completed_steps(tmp_path) == [10, 20, 40], "what came later stays"


def test_an_older_version_of_an_undone_step_does_not_come_back(tmp_path: Path) -> None:
    """Step 30 was saved twice, and the first version could not be deleted."""
    folder = make_checkpoints(tmp_path, 10, 30)
    shutil.copytree(folder / "step-30", folder / ".old-step-30")
    rollback.begin(tmp_path, Rollback(24, 31, "spikes"))
    rollback.finish(tmp_path)
    checkpoint_folder.choose(folder, lambda _: None)
    assert checkpoint_folder.completed_steps(tmp_path) == [10]


def test_a_checkpoint_of_the_very_step_is_from_before_it(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 10, 24)
    rollback.begin(tmp_path, Rollback(24, 31, ""))
    rollback.finish(tmp_path)
    assert checkpoint_folder.completed_steps(tmp_path) == [10, 24]


def save(folder: Path, step: int, *, best: int) -> None:
    """A checkpoint that knows the best one, with two kept."""
    temporary = checkpoint_folder.begin(folder, step, 0)
    entries = {}
    for name in checkpoint_folder.FILES.values():
        (temporary / name).touch()
        entries[name] = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    checkpoint_folder.complete(temporary, entries, {"progress": {"best": {"step": best}}}, is_best=best == step)
    checkpoint_folder.prune(folder, keep_last=2, keep_every=0, newest=step)


def test_after_a_rollback_the_best_checkpoint_is_one_that_exists(tmp_path: Path) -> None:
    """Step 4 was better and is undone. What was best before it is pointed to, or, where it was pruned meanwhile, forgotten:
    else nothing below its value could become the best again, and the run would end without one."""
    folder = tmp_path / checkpoint_folder.FOLDER
    for step, best in ((1, 1), (2, 1), (4, 4)):
        save(folder, step, best=best)
    checkpoint_folder.remove_after(folder, 3)
    assert checkpoint_folder.choose(folder, print) == ("step-2", "", {"progress": {"best": None}})

    for step, best in ((3, 3), (4, 4)):
        save(folder, step, best=best)
    checkpoint_folder.remove_after(folder, 3)
    assert checkpoint_folder.choose(folder, print) == ("step-3", "", {"progress": {"best": {"step": 3}}})
    assert (folder / "best").read_text() == "step-3\n"

    (folder / "step-3" / checkpoint_folder.MANIFEST).rename(folder / "step-3" / "lost")
    save(folder, 5, best=3)
    assert checkpoint_folder.choose(folder, print)[2] == {"progress": {"best": None}}
    assert not (folder / "best").exists()


def test_no_file_and_a_damaged_one(tmp_path: Path) -> None:
    assert rollback.read(tmp_path) == ()
    for damaged in (
        '[{"first": 1}]',
        '[{"first": 5, "stop": 3, "reason": ""}]',
        '[{"first": -1, "stop": 3, "reason": ""}]',
    ):
        (tmp_path / rollback.FILE).write_text(damaged)
        with pytest.raises(UserError, match="delete it to read all batches again"):
            rollback.read(tmp_path)
