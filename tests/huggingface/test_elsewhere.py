"""A run whose paths are relative is used from another folder, after a move, and where its data is gone."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from tests.data.prepare.raw import picture
from tests.huggingface import small
from unimo_ds import cli
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.export import source
from unimo_ds.finetune.start import read_start
from unimo_ds.utils.errors import UserError


def prepare(data: Path, made_with: Path) -> None:
    (data.parent / "images").mkdir(parents=True)
    picture(3).save(data.parent / "images" / "3.png")
    words = ["--kind", "images", "--images", str(data.parent / "images"), "--output", str(data), "--workers", "1"]
    assert cli.main(["prepare", "import", *words, "--tokenizer", str(made_with), "--extractor", str(made_with)]) == 0


def make_project(folder: Path) -> Path:
    """Its run, which has neither tokenizer nor extractor beside it: both lie in `data/train`, a path from the folder."""
    fingerprints = {"tokenizer": small.make_tokenizer().fingerprint, "extractor": small.make_extractor().fingerprint}
    config = small.run_config()
    data = dataclasses.replace(config.data, path="data/train", made_with=fingerprints)
    run = small.write_run(folder / "runs" / "one", config=dataclasses.replace(config, data=data))
    prepare(folder / "data" / "train", run)
    (run / "tokenizer.json").unlink()
    (run / "extractor.safetensors").unlink()
    (run / "environment.json").write_text(json.dumps({"directory": str(folder)}))
    return run


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another project of the same names, and the folder in which commands are run: its tokenizer is of the same size."""
    others = tmp_path / "others"
    others.mkdir()
    words = ("quick foxes jump over lazy hounds", "grey cats sleep on warm stones", "she reads long letters at noon")
    tokenizers.train(words, vocabulary_size=small.make_tokenizer().vocabulary_size).save(others)
    small.make_extractor().save(others)
    prepare(tmp_path / "elsewhere" / "data" / "train", others)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def test_a_runs_relative_data_is_found_from_any_folder(tmp_path: Path, elsewhere: Path):
    found = source.load(make_project(tmp_path / "project"))
    assert found.tokenizer.fingerprint == small.make_tokenizer().fingerprint
    assert found.extractor is not None
    assert found.extractor.fingerprint == small.make_extractor().fingerprint


def test_a_project_that_was_moved_is_used_from_within(tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    make_project(tmp_path / "project")
    moved = (tmp_path / "project").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"data/train has another tokenizer .* than the model"):
        source.load(moved / "runs" / "one")
    monkeypatch.chdir(moved)
    assert source.load(moved / "runs" / "one").extractor is not None


def test_data_that_is_gone_costs_one_option_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_project(tmp_path / "project")
    moved = (tmp_path / "project" / "data").rename(tmp_path / "moved")
    export = ["export", "--checkpoint", str(run), "--to"]
    capsys.readouterr()
    assert cli.main([*export, str(tmp_path / "a")]) == 2
    assert (
        "not at data/train any more; give the folder that has its own: --tokenizer DATA/train"
        in capsys.readouterr().err
    )
    train = str(moved / "train")
    assert cli.main([*export, str(tmp_path / "b"), "--tokenizer", train]) == 0
    assert "takes regions, no photographs; --extractor DATA/train adds one" in capsys.readouterr().out
    assert cli.main([*export, str(tmp_path / "c"), "--tokenizer", train, "--extractor", train]) == 0
    assert "no region extractor" not in capsys.readouterr().out
    assert source.load(tmp_path / "c").extractor is not None


def test_another_tokenizer_of_the_same_size_is_refused(tmp_path: Path, elsewhere: Path):
    run, others, exported = make_project(tmp_path / "project"), tmp_path / "others", tmp_path / "exported"
    own, other = small.make_tokenizer(), tokenizers.load(others)
    assert own.vocabulary_size == other.vocabulary_size
    said = rf"the tokenizer {other.fingerprint} is not {own.fingerprint}, that of the model at .*--tokenizer"
    for load in (source.load, read_start):
        with pytest.raises(UserError, match=said):
            load(run, tokenizer=others)
    train = tmp_path / "project" / "data" / "train"
    assert cli.main(["export", "--checkpoint", str(run), "--to", str(exported), "--tokenizer", str(train)]) == 0
    (tmp_path / "project" / "data").rename(tmp_path / "moved")
    for load in (source.load, read_start):
        with pytest.raises(UserError, match=said):
            load(exported, tokenizer=others)
        assert load(exported, tokenizer=tmp_path / "moved" / "train").tokenizer.fingerprint == own.fingerprint


def test_others_may_read_an_export(tmp_path: Path):
    run, to = small.write_run(tmp_path / "run"), tmp_path / "exported"
    before = os.umask(0o027)
    try:
        assert cli.main(["export", "--checkpoint", str(run), "--to", str(to)]) == 0
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in to.iterdir()} == {0o640}
