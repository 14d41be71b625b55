"""Which model a folder stands for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.huggingface import small
from unimo_ds.evaluation import checkpoint
from unimo_ds.utils.errors import UserError


def test_a_fine_tuning_stands_for_the_best_checkpoint_of_its_only_seed(tmp_path: Path) -> None:
    seed = small.write_run(tmp_path / "captions" / "seed-0")
    checkpoints = seed / "checkpoints"
    assert checkpoint.find(tmp_path / "captions").weights.parent == checkpoints / "step-7"
    shutil.copytree(checkpoints / "step-7", checkpoints / "step-5")
    (checkpoints / "best").write_text("step-5\n")
    assert checkpoint.find(tmp_path / "captions").weights.parent == checkpoints / "step-5"
    assert checkpoint.find(seed).name == "step-7", "of a run itself the newest"
    shutil.copytree(seed, tmp_path / "captions" / "seed-1")
    with pytest.raises(
        UserError, match=r"captions holds 2 fine-tuned seeds; give one of them, such as .*seed-0/.*/best"
    ):
        checkpoint.find(tmp_path / "captions")
    with pytest.raises(UserError, match=r"is not a run, a checkpoint or an exported model: it has no config\.json"):
        checkpoint.find(tmp_path)
