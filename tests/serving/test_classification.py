"""Zero-shot classification."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.prepare.raw import picture
from unimo_ds import cli
from unimo_ds.serving.classification import class_vectors, measure, open_classes
from unimo_ds.serving.model import ServedModel


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    for number in range(6):
        target = folder / ("red_ball" if number < 4 else "boat")
        target.mkdir(exist_ok=True)
        picture(number).save(target / f"{number}.png")
    return folder


def test_accuracy_is_counted_by_image_and_by_class():
    scores = np.array([[3, 2, 1], [1, 2, 3], [2, 2, 1], [0, 0, 9]], np.float32)
    found = measure(scores, [0, 0, 1, 2])
    assert found["accuracy"] == pytest.approx(2 / 4)
    assert found["accuracy_mean_of_classes"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert found["accuracy_top5"] == 1
    assert found["accuracy_chance"] == pytest.approx(1 / 3)


def test_the_command_measures_what_the_vectors_say(
    run: Path, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out.json"
    words = ["evaluate", "classification", "--checkpoint", str(run), "--data", str(classes), "--json", str(out)]
    assert cli.main([*words, "--prompt", "a {}", "the {} here"]) == 0
    assert "6 images of 2 classes" in capsys.readouterr().out
    result = json.loads(out.read_text())
    model = ServedModel.open(run)
    labelled = open_classes(classes)
    assert labelled.classes == ("boat", "red ball")
    texts = model.text_vectors(["a boat", "the boat here", "a red ball", "the red ball here"]).reshape(2, 2, -1).mean(1)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    images = model.image_vectors([picture(number) for number in (4, 5, 0, 1, 2, 3)])
    right = (images @ texts.T).argmax(1) == np.array([0, 0, 1, 1, 1, 1])
    assert result["metrics"]["accuracy"] == pytest.approx(right.mean())
    assert result["accuracy_of_class"] == {"boat": right[:2].mean(), "red ball": right[2:].mean()}


def test_bad_input_is_named(run: Path, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def refused(data: Path, *words: str) -> str:
        capsys.readouterr()
        assert cli.main(["evaluate", "classification", "--checkpoint", str(run), "--data", str(data), *words]) == 2
        return capsys.readouterr().err

    assert "no folder at" in refused(tmp_path / "none")
    assert "has 0 folders" in refused(tmp_path)
    assert "has no {} where the class goes" in refused(classes, "--prompt", "a photo")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert "no image" in refused(tmp_path)
    assert class_vectors(ServedModel.open(run), ["a", "b"], ["{}"]).shape == (2, 32)
