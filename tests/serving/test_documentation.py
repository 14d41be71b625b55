"""Every `unimo` command of docs/using.md, run in order, and its Python and the README's."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation import small as pairs
from tests.huggingface import small
from tests.models.test_paddle import model_of, release
from tests.serving.test_foils import SUGARCREPE
from unimo_ds import cli
from unimo_ds.finetune import model as task_models
from unimo_ds.finetune_config import FinetuneConfig, GenerationConfig

README = Path(__file__).parents[2] / "README.md"
PAGE = README.parent / "docs" / "using.md"


def blocks(language: str, page: Path = PAGE) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture
def folder(run: Path, photographs: Path, tmp_path: Path) -> Path:
    """What the page's commands name."""
    shutil.copytree(run, tmp_path / "runs" / "photos")
    chosen = GenerationConfig(beams=3, min_tokens=2, max_tokens=9)
    config = dataclasses.replace(small.run_config(), finetune=FinetuneConfig("captioning", generation=chosen))
    small.write_run(
        tmp_path / "runs" / "captions" / "seed-0", task_models.TaskModel(config, task_models.NoHead()), config
    )
    (tmp_path / "photos").mkdir()
    for name in ("red_ball", "boat"):
        (tmp_path / "classes" / name).mkdir(parents=True)
    for number, path in enumerate(sorted(photographs.rglob("*.png"))):
        shutil.copy(path, tmp_path / "photos")
        shutil.copy(path, tmp_path / "classes" / ("red_ball", "boat")[number % 2])
    shutil.copytree(tmp_path / "photos", tmp_path / "coco" / "val2017")
    (tmp_path / "sugar-crepe" / "data").mkdir(parents=True)
    (tmp_path / "sugar-crepe" / "data" / "swap_att.json").write_text(json.dumps(SUGARCREPE))
    (tmp_path / "articles.txt").write_text("a man rides a brown horse\n")
    released = model_of(1, vocabulary_size=small.make_tokenizer().vocabulary_size)
    (tmp_path / "unimo_base_en").mkdir()
    release(tmp_path / "unimo_base_en" / "params", released)
    small.make_tokenizer().save(tmp_path / "roberta-base")
    return tmp_path


def test_every_command_of_the_page_works(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(folder)
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("unimo ")]
    assert len(lines) > 10
    for line in lines:
        words = shlex.split(line)[1:]
        if words[:2] == ["search", "page"]:  # tests/serving/test_page.py
            assert cli.main(["search", "page", "--index", "none"]) == 2
            continue
        if words[0] == "finetune":  # tests/finetune; its result is in the folder
            continue
        if "data/held_out" in words:  # another model's data: tests/test_cli.py
            held_out = pairs.write_corpus(folder / "data" / "held_out", num_pairs=3)
            assert held_out.is_dir()
            assert cli.main(words) == 2
            assert "the model one of" in capsys.readouterr().err
            continue
        assert cli.main(words) == 0, f"{line}: {capsys.readouterr().err}"
        assert capsys.readouterr().out.strip() or "generate" in words, line
    (python,) = blocks("python")
    known: dict = {}
    exec(compile(python, str(PAGE), "exec"), known)
    shutil.copy(folder / "photos" / "0.png", "photo.jpg")
    (python,) = blocks("python", README)
    exec(compile(python, str(README), "exec"), {})
    cosines, probabilities = known["cosines"], known["probabilities"]
    assert cosines.shape == probabilities.shape == (1, 2)
    assert cosines.abs().max() <= 1.0001
    assert probabilities.sum() == pytest.approx(1)
    assert (probabilities.argmax() == cosines.argmax()).item()
    vectors = np.load("photos.npy")
    assert len(vectors) == len(list((folder / "photos").iterdir())) > 1
    np.testing.assert_allclose(vectors[0] @ known["texts"].T.numpy(), cosines.numpy()[0], atol=1e-5)
