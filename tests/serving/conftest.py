"""A tiny model with an extractor, photographs, and an index of them, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.prepare.raw import picture
from tests.huggingface import small
from unimo_ds import cli

TEXTS = ("a red ball", "two dogs", "the boat is blue")


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence that a command says of bad input."""
    capsys.readouterr()
    assert cli.main(list(words)) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_run(tmp_path_factory.mktemp("served") / "run")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "deep").mkdir()
    for number in range(7):
        picture(number).save(folder / ("deep" if number % 2 else ".") / f"{number}.png")
    (folder / "notes.txt").write_text("no photograph")
    return folder


@pytest.fixture(scope="session")
def index(run: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indices") / "index"
    texts = folder.with_name("texts.txt")
    texts.write_text("\n\n".join(TEXTS) + "\n")
    words = ["search", "build", "--checkpoint", str(run), "--images", str(photographs)]
    assert cli.main([*words, "--texts", str(texts), "--output", str(folder)]) == 0
    return folder
