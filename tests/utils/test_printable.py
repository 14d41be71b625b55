"""What others wrote is shown without moving a terminal's cursor, and without failing on what is not Unicode."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from unimo_ds import cli
from unimo_ds.utils.printable import for_terminal

_EVIL = "a\x1b]0;title\x07\x1b[2K\x9b31m\r.bmp"
_SHOWN = r"a\x1b]0;title\x07\x1b[2K\x9b31m\x0d.bmp"


def test_controls_are_escaped_and_texts_are_not() -> None:
    assert for_terminal(_EVIL) == _SHOWN
    assert for_terminal("zwei\tHunde\nim \U0001f600 雪\udcff") == "zwei\tHunde\nim \U0001f600 雪\\udcff"


def test_names_in_a_tar_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(_EVIL))
    command = [sys.executable, "-m", "unimo_ds", "prepare", "import", "--kind", "images", "--images", str(path)]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "data")], capture_output=True, encoding="utf-8", check=False
    )
    said = done.stdout + done.stderr
    assert _SHOWN in said, said
    assert not set(said) & set("\x1b\x07\x9b\r")


def test_what_is_wrong_is_told_in_plain_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "\x1b[31mdata"]) == 2
    assert "\\x1b[31mdata" in capsys.readouterr().err
