"""Notes of a stage that somebody has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from unimo_ds.data.prepare.journal import Journal


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
