"""Files written in a folder of many users: what somebody has laid under the name of a partial file is not followed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.shard_folders import make_text
from unimo_ds.data.storage.shards import StoredSample, write_shards
from unimo_ds.utils.whole_file import replace_file, write_whole


@pytest.mark.parametrize(
    ("write", "partial", "name"),
    [
        (lambda folder: write_whole(folder / "a.json", b"new"), ".a.json.PID.partial", "a.json"),
        (
            lambda folder: write_shards(folder, "a", [StoredSample(make_text(1))]),
            ".a-000000.tar.PID.partial",
            "a-000000.tar",
        ),
        (lambda folder: replace_file(folder / "latest", "step-1"), ".latest", "latest"),
    ],
)
def test_a_link_laid_by_others_is_not_written_through(
    write: Callable[[Path], object], partial: str, name: str, tmp_path: Path
) -> None:
    own, shared = tmp_path / "own", tmp_path / "shared"
    own.write_text("precious")
    shared.mkdir()
    (shared / partial.replace("PID", str(os.getpid()))).symlink_to(own)
    write(shared)
    assert own.read_text() == "precious"
    assert os.listdir(shared) == [name]
    assert not (shared / name).is_symlink()
