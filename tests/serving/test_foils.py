"""Captions against foils, by the files that the benchmarks' authors publish."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.prepare.raw import picture
from tests.huggingface import small
from tests.serving.conftest import refusal
from unimo_ds import cli
from unimo_ds.config import ContrastConfig
from unimo_ds.data.inputs import image_input
from unimo_ds.serving import foil_files
from unimo_ds.serving.foil_files import FOIL, Item
from unimo_ds.serving.foils import Right, judge, locate, metrics
from unimo_ds.serving.model import ServedModel

SUGARCREPE = {
    "0": {"filename": "0.png", "caption": "a red ball", "negative_caption": "a blue ball"},
    "1": {"filename": "1.png", "caption": "two dogs in the snow", "negative_caption": "snow in the two dogs"},
    "7": {"filename": "0.png", "caption": "the boat is blue", "negative_caption": "the boat is red"},
}
PLUS = [{"id": 5, "filename": "2.png", "caption": "a", "caption2": "the", "negative_caption": "dogs"}]
VALSE = {
    "sure": {
        "image_file": "3.png",
        "caption": "a man",
        "foil": "a horse",
        "mturk": {"caption": 2, "foil": 1, "other": 0},
    },
    "doubtful": {"image_file": "no.png", "caption": "a", "foil": "b", "mturk": {"caption": 1, "foil": 1, "other": 1}},
}
WINOGROUND = {
    "id": 0,
    "image_0": "4",
    "image_1": "5",
    "caption_0": "a man rides a horse",
    "caption_1": "a horse rides a man",
}
LINES = [
    {"image": "deep/3.png", "captions": ["a red ball", "the red ball"], "foils": ["two dogs"], "category": "ours"},
    {"image": "6.png", "captions": "the boat", "foils": ["a boat", "two boats"]},
]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder for each benchmark."""
    for name in foil_files.FORMATS:
        (tmp_path / name).mkdir()
    (tmp_path / "sugarcrepe" / "swap_att.json").write_text(json.dumps(SUGARCREPE))
    (tmp_path / "sugarcrepe" / "plus.json").write_text(json.dumps(PLUS))
    (tmp_path / "valse" / "plurals.json").write_text(json.dumps(VALSE))
    (tmp_path / "winoground" / "examples.jsonl").write_text(json.dumps(WINOGROUND) + "\n")
    (tmp_path / "lines" / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path


@pytest.fixture(scope="module")
def joint_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that shares an image among the texts it is encoded with."""
    config = small.run_config(contrast=ContrastConfig(joint_encoding="shared_image"))
    return small.write_run(tmp_path_factory.mktemp("shared") / "run", config=config)


def test_an_item_is_right_as_winoground_counts_it():
    assert judge(np.array([[0.9, 0.1], [0.2, 0.8]], np.float32), (0, 1)) == Right(text=True, image=True)
    # Each image chooses its caption, but the second caption prefers the first image.
    assert judge(np.array([[0.9, 0.85], [0.2, 0.8]], np.float32), (0, 1)) == Right(text=True, image=False)
    assert judge(np.array([[0.5, 0.6], [0.2, 0.8]], np.float32), (0, 1)) == Right(text=False, image=True)
    assert judge(np.array([[0.5, 0.5]], np.float32), (0, FOIL)).text is False
    # Every true caption has to outrank every foil.
    assert judge(np.array([[0.9, 0.4, 0.5]], np.float32), (0, 0, FOIL)).text is False
    assert judge(np.array([[0.9, 0.6, 0.5]], np.float32), (0, 0, FOIL)).text is True


def test_shares_are_of_categories_and_their_mean_counts_each_once():
    items = [Item(category, ("x",), ("a", "b"), (0, FOIL)) for category in ("add", "add", "add", "swap")]
    right = [Right(text=text, image=True) for text in (True, False, False, True)]
    assert metrics(items, right, "single") == {
        "single/text/add": pytest.approx(1 / 3),
        "single/text/swap": 1.0,
        "single/text/mean": pytest.approx(2 / 3),
    }


def test_official_files_are_read(files: Path):
    plus, first, *_ = foil_files.read("sugarcrepe", files / "sugarcrepe")
    assert plus == Item("plus", ("2.png",), ("a", "the", "dogs"), (0, 0, FOIL))
    assert first == Item("swap_att", ("0.png",), ("a red ball", "a blue ball"), (0, FOIL))
    assert foil_files.read("valse", files / "valse") == [Item("plurals", ("3.png",), ("a man", "a horse"), (0, FOIL))]
    (pair,) = foil_files.read("winoground", files / "winoground")
    assert pair == Item("winoground", ("4", "5"), ("a man rides a horse", "a horse rides a man"), (0, 1))
    mine = foil_files.read("lines", files / "lines")
    assert [(item.category, item.image_of_text) for item in mine] == [("ours", (0, 0, FOIL)), ("mine", (0, FOIL, FOIL))]


def test_images_are_found_by_path_name_and_stem(photographs: Path):
    found = locate(["deep/3.png", "COCO/4.png", "5", "gone.jpg"], [photographs, photographs / "deep"])
    assert found == {
        "deep/3.png": photographs / "deep" / "3.png",
        "COCO/4.png": photographs / "4.png",
        "5": photographs / "deep" / "5.png",
    }


def test_a_name_that_two_images_have_finds_neither(photographs: Path, tmp_path: Path):
    picture(0).save(tmp_path / "4.png")
    assert locate(["4.png", "5"], [photographs, tmp_path]) == {"5": photographs / "deep" / "5.png"}


def test_a_path_counts_before_the_names_of_other_files(tmp_path: Path):
    for name in ("0.png", "small/0.png", "1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(0).save(tmp_path / name)
    names = ["0.png", "small/0.png", "1.png"]
    assert locate(names, [tmp_path]) == {name: tmp_path / name for name in names}


def test_a_folder_named_in_two_ways_is_one(photographs: Path):
    again = photographs / "deep" / ".."
    assert locate(["4.png"], [photographs, again]) == {"4.png": photographs / "4.png"}


@pytest.mark.parametrize("shares_images", [False, True])
def test_the_command_measures_what_the_vectors_say(
    shares_images: bool, run: Path, joint_run: Path, files: Path, photographs: Path, tmp_path: Path
):
    checkpoint, out = joint_run if shares_images else run, tmp_path / "out.json"
    words = ["evaluate", "foils", "--checkpoint", str(checkpoint), "--benchmark", "sugarcrepe"]
    words += ["--data", str(files / "sugarcrepe"), "--images", str(photographs), "--json", str(out)]
    assert cli.main(words) == 0
    result = json.loads(out.read_text())
    assert result["items_of_category"] == {"swap_att": 3, "plus": 1}

    model = ServedModel.open(checkpoint)
    single, joint = [], []
    for entry in SUGARCREPE.values():
        image = picture(int(entry["filename"][0]))
        texts = [entry["caption"], entry["negative_caption"]]
        scores = model.text_vectors(texts) @ model.image_vectors([image])[0]
        single.append(scores[0] > scores[1])
        shown = image_input(model.regions([image])[0], max_regions=model.source.config.data.max_regions)
        true, false = (model.joint_scores([(shown, text)])[0] for text in texts)
        joint.append(true > false)
    assert result["metrics"]["single/text/swap_att"] == pytest.approx(np.mean(single))
    assert result["metrics"]["joint/text/swap_att"] == pytest.approx(np.mean(joint))


def test_two_images_with_two_captions(run: Path, files: Path, photographs: Path, capsys: pytest.CaptureFixture[str]):
    words = ["evaluate", "foils", "--checkpoint", str(run), "--benchmark", "winoground"]
    assert cli.main([*words, "--data", str(files / "winoground"), "--images", str(photographs)]) == 0
    printed = capsys.readouterr().out
    for asked in ("single/text", "single/image", "single/group", "joint/group"):
        assert f"{asked}/winoground" in printed


def test_a_model_that_never_saw_pairs_together_is_measured_by_single_encodings_alone(
    files: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = small.run_config(contrast=dataclasses.replace(ContrastConfig(), rewrites="single"))
    alone = small.write_run(tmp_path / "alone", config=config)
    words = ["evaluate", "foils", "--checkpoint", str(alone), "--benchmark", "lines"]
    assert cli.main([*words, "--data", str(files / "lines"), "--images", str(photographs)]) == 0
    printed = capsys.readouterr().out
    assert "single/text/ours" in printed
    assert "joint/" not in printed


def test_what_cannot_be_measured_is_named(
    run: Path, files: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
):
    def refused(benchmark: str, data: Path, *more: str) -> str:
        words = ["evaluate", "foils", "--checkpoint", str(run), "--benchmark", benchmark, "--data", str(data)]
        return refusal(capsys, *words, "--images", str(photographs), *more)

    assert "has none of *.json" in refused("sugarcrepe", files / "lines")
    assert "there is no folder" in refused("winoground", files / "none")
    (files / "sugarcrepe" / "swap_att.json").write_text(json.dumps({"3": {"filename": "0.png", "caption": "a ball"}}))
    assert "swap_att.json: 3 has null where a text belongs" in refused("sugarcrepe", files / "sugarcrepe")
    (files / "sugarcrepe" / "swap_att.json").write_text(
        json.dumps({**SUGARCREPE, "9": {**SUGARCREPE["0"], "filename": "9.png"}})
    )
    assert "1 of 5 items show an image that is not in" in refused("sugarcrepe", files / "sugarcrepe")
    assert "--prompt is an option of classification" in refused("lines", files / "lines", "--prompt", "{}")
    words = ["evaluate", "foils", "--checkpoint", str(run), "--data", str(files / "lines")]
    assert "--benchmark" in refusal(capsys, *words)

    words += ["--benchmark", "sugarcrepe", "--images", str(photographs), "--skip-missing"]
    words[words.index(str(files / "lines"))] = str(files / "sugarcrepe")
    assert cli.main(words) == 0
    assert "4 items, 1 left out for missing images" in capsys.readouterr().out
