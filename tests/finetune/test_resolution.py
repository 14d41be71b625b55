"""From pixels at one resolution to another, as a user does it: a pre-training, and all that begins with its checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from tests.data.prepare.raw import picture, write_photographs
from tests.distributed.launching import launch
from tests.runs import logged
from unimo_ds import cli, train
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.prepare.command import main as prepare
from unimo_ds.data.schema import PatchGrid
from unimo_ds.data.vision import extractors
from unimo_ds.data.vision.patch_extractor import PatchExtractor
from unimo_ds.evaluation import checkpoint
from unimo_ds.models.positions import resized

TRAIN = Path(train.__file__)
MAIN = TRAIN.with_name("__main__.py")
SIDE = 8
OLD, NEW = PatchGrid(2, 3, SIDE), PatchGrid(3, 5, SIDE)
"""Neither is a square, and both have rows of their own lengths."""
NUMBER = 12
TABLE = "image_transformer.tags.0.weight"
SMALL = (
    *(
        "num_layers=1",
        "hidden_size=32",
        "num_heads=2",
        "feed_forward_size=64",
        "num_image_layers=1",
        "max_positions=66",
    ),
)
PRETRAINING = (
    *(f"model.{one}" for one in SMALL),
    *("data.max_text_tokens=64", "data.num_workers=0", "data.kind_weights.text=0", "data.kind_weights.image=0"),
    *(
        "losses.region_classification=0",
        "masking.normalised_pixels=true",
        "batch.global_samples=8",
        "schedule.warmup_steps=0",
        "schedule.total_steps=3",
    ),
    *("logging.every_steps=1", "evaluation.num_pairs=6", "evaluation.every_steps=3", "checkpoint.every_steps=3"),
)
FINETUNING = (
    *(
        "batch.global_samples=8",
        "finetune.epochs=1",
        "finetune.max_examples=16",
        "finetune.retrieval.negative_images=1",
    ),
    *("finetune.retrieval.negative_captions=1", "logging.every_steps=1"),
)


def changes(*settings: str) -> list[str]:
    return [part for one in settings for part in ("--set", one)]


def import_pairs(folder: Path, grid: PatchGrid, *, like: Path | None = None, splits: tuple[str, ...]) -> Path:
    """Data folders of the photographs beside `folder`, cut by the grid."""
    extractor = PatchExtractor(grid).save(folder / "extractor")
    for split in splits:
        inputs = ["--images", str(folder.parent / "photos.tar"), "--captions", str(folder.parent / "captions.tsv")]
        tokens = ["--vocabulary-size", "300"] if like is None else ["--like", str(like)]
        words = ["import", "--kind", "pairs", *inputs, "--output", str(folder / split), "--workers", "1"]
        assert prepare([*words, *tokens, "--extractor", str(extractor)]) == 0
        like = like or folder / split
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs at two resolutions, and a model that was pre-trained at the first."""
    place = tmp_path_factory.mktemp("resolution")
    write_photographs(place, NUMBER)
    import_pairs(place / "old", OLD, splits=("train", "held_out"))
    import_pairs(place / "new", NEW, like=place / "old" / "train", splits=("train", "dev", "held_out"))
    data = ["--recipe", "demo", "--data", str(place / "old"), "--run-dir", str(place / "run")]
    launch(TRAIN, [*data, *changes(*PRETRAINING)], processes=1)
    return place


@pytest.fixture(scope="module")
def tuned(place: Path) -> Path:
    """The run of a retrieval that was tuned at the second."""
    said = launch(MAIN, [*finetune(place), *changes(*FINETUNING)], processes=1)
    assert "note: images of 3 x 5 patches, the model was trained on 2 x 3: positions are interpolated" in said
    return place / "tuned" / "seed-0"


def finetune(place: Path, *, data: str = "new", run: str = "tuned") -> list[str]:
    start = ["--checkpoint", str(place / "run"), "--run-dir", str(place / run)]
    return ["finetune", "retrieval", "--data", str(place / data), *start]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.read_weights(checkpoint.find(run).weights))


def test_a_run_from_pixels_knows_how_its_patches_lie(place: Path) -> None:
    assert Corpus.open(place / "old" / "train").patch_grid == OLD
    model = checkpoint.read_config(place / "run" / "config.json").model
    assert (model.region_tag_sizes, model.patch_grid, model.patch_side) == ((6,), (2, 3), SIDE)


def test_normalised_pixels_are_what_a_run_predicts_and_measures(place: Path) -> None:
    """Their mean square is 1, and a fresh model predicts nearly 0."""
    steps = logged(place / "run")
    assert steps[1]["loss/region_regression"] == pytest.approx(1, abs=0.05)
    assert steps[0]["held_out/loss/region_regression"] == pytest.approx(1, abs=0.05)


def test_fine_tuning_measurement_and_export_at_the_new_resolution(
    place: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = checkpoint.read_config(tuned / "config.json")
    assert (config.model.region_tag_sizes, config.model.patch_grid) == ((15,), (3, 5))
    assert config.data.made_with["extractor"] == PatchExtractor(NEW).fingerprint
    assert weights_of(tuned)[TABLE].shape == (16, 32)
    result = json.loads((tuned / "result.json").read_text())
    best = ["--checkpoint", str(tuned / "checkpoints" / "best")]
    evaluate = ["evaluate", "retrieval", *best, "--json", str(tmp_path / "found.json")]
    assert cli.main([*evaluate, "--data", str(place / "new")]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["metrics"] == result["metrics"]
    # It is a model of the new resolution now.
    assert cli.main([*evaluate, "--data", str(place / "old"), "--split", "train"]) == 2
    assert "train has images of 2 x 3 patches, the model reads 3 x 5; prepare them" in capsys.readouterr().err

    (place / "new").rename(place / "gone")  # its extractor is not needed: the model says how it wants images cut
    try:
        assert cli.main(["export", *best, "--to", str(tmp_path / "exported")]) == 0
    finally:
        (place / "gone").rename(place / "new")
    own = extractors.load(tmp_path / "exported")
    assert isinstance(own, PatchExtractor)
    assert own.grid == NEW
    evaluate[evaluate.index(best[1])] = str(tmp_path / "exported")
    assert cli.main([*evaluate, "--data", str(place / "new")]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["metrics"] == result["metrics"]


def test_training_begins_with_the_interpolated_positions(place: Path) -> None:
    """A rate of zero leaves them as they are."""
    still = changes(*FINETUNING, "optimizer.peak_learning_rate=0", "finetune.retrieval.negative_images=0")
    launch(MAIN, [*finetune(place, run="still"), *still], processes=1)
    before, after = weights_of(place / "run"), weights_of(place / "still" / "seed-0")
    expected = torch.cat((resized(before[TABLE][:-1], (2, 3), (3, 5)), torch.zeros(1, 32)))
    assert torch.equal(after.pop(TABLE), expected)
    assert all(torch.equal(after[name], value) for name, value in before.items() if name != TABLE)


def test_a_task_whose_photographs_lie_apart(place: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(place / "new" / "train")
    lines = [{"gold_label": "neutral", "Flickr30K_ID": f"{n:03}", "sentence2": "a dog"} for n in range(4)]
    for split in ("train", "dev"):
        (tmp_path / f"snli_ve_{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    start = ["--checkpoint", str(place / "run"), "--run-dir", str(tmp_path / "run")]
    settings = changes("finetune.epochs=1", "finetune.adversarial.steps=0")
    launch(MAIN, ["finetune", "snli-ve", "--data", str(tmp_path), *start, *settings], processes=1)
    assert checkpoint.read_config(tmp_path / "run" / "seed-0" / "config.json").model.patch_grid == (3, 5)


def test_zero_shot_measurement_tells_what_it_did(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "found.json"
    command = ["evaluate", "zero-shot", "--checkpoint", str(place / "run"), "--json", str(target)]
    assert cli.main([*command, "--data", str(place / "old" / "held_out")]) == 0
    own = json.loads(target.read_text())
    assert own["notes"] == {}
    assert cli.main([*command, "--data", str(place / "new" / "held_out")]) == 0
    found = json.loads(target.read_text())
    assert found["metrics"].keys() == own["metrics"].keys()
    assert found["metrics"] != own["metrics"]
    assert found["notes"]["resolution"].startswith("images of 3 x 5 patches, the model was trained on 2 x 3")
    assert "positions are interpolated" in capsys.readouterr().out


def test_pre_training_goes_on_at_the_new_resolution(place: Path, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    assert cli.main(["export", "--checkpoint", str(place / "run"), "--to", str(exported)]) == 0
    assert AutoModel.from_pretrained(exported).config.patch_columns == 3
    data = ["--recipe", "demo", "--data", str(place / "new"), "--run-dir", str(tmp_path / "more")]
    still = ("optimizer.peak_learning_rate=0", f"model.initialize_from={exported}")
    said = launch(TRAIN, [*data, *changes(*PRETRAINING, *still)], processes=1)
    assert "note: images of 3 x 5 patches, the model was trained on 2 x 3: positions are interpolated" in said
    assert torch.equal(
        weights_of(tmp_path / "more")[TABLE][:-1], resized(weights_of(place / "run")[TABLE][:-1], (2, 3), (3, 5))
    )
    again = tmp_path / "again"
    assert cli.main(["export", "--checkpoint", str(tmp_path / "more"), "--to", str(again)]) == 0
    inputs = AutoProcessor.from_pretrained(again)(images=[picture(1)])
    assert inputs["region_features"].shape == (1, 1 + NEW.num_patches, NEW.feature_size)
    assert AutoModel.from_pretrained(again).get_image_features(**inputs).shape == (1, 32)


def test_another_patch_side_is_refused_by_one_sentence(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_pairs(place / "coarse", PatchGrid(2, 2, 16), like=place / "old" / "train", splits=("train", "dev"))
    said = "train has patches of 16 x 16 pixels, the model reads 8 x 8; import the images with --patch-side 8"
    capsys.readouterr()
    assert cli.main([*finetune(place, data="coarse", run="refused"), *changes(*FINETUNING)]) == 2
    evaluate = ["evaluate", "retrieval", "--checkpoint", str(place / "run")]
    assert cli.main([*evaluate, "--data", str(place / "coarse" / "train")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert all(said in line for line in errors)
    exported = tmp_path / "exported"
    assert cli.main(["export", "--checkpoint", str(place / "run"), "--to", str(exported)]) == 0
    data = ["--recipe", "demo", "--data", str(place / "coarse"), "--run-dir", str(tmp_path / "more")]
    with pytest.raises(
        AssertionError, match=r"exported reads patches of 8 x 8 pixels, the data have 16 x 16; import them"
    ):
        launch(TRAIN, [*data, *changes(*PRETRAINING, f"model.initialize_from={exported}")], processes=1)


def test_data_that_are_cut_in_two_ways_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many patches in rows of another length are other patches, too."""
    import_pairs(place / "turned", PatchGrid(3, 2, SIDE), like=place / "old" / "train", splits=("train",))
    data = ["--recipe", "demo", "--data", str(place / "old" / "train"), "--run-dir", str(place / "refused")]
    held_out = f"data.held_out_path={place / 'turned' / 'train'}"
    with pytest.raises(AssertionError, match=r"train has images of 3 x 2 patches, the model reads 2 x 3; prepare them"):
        launch(TRAIN, [*data, *changes(*PRETRAINING, held_out)], processes=1)
    (place / "turned" / "dev").symlink_to(place / "old" / "held_out")
    assert cli.main([*finetune(place, data="turned", run="refused"), *changes(*FINETUNING)]) == 2
    assert "dev has images of 2 x 3 patches, the model reads 3 x 2; prepare them" in capsys.readouterr().err
    plan = ["plan", "--recipe", "demo", "--data", str(place / "turned" / "train"), *changes(*PRETRAINING)]
    assert cli.main([*plan, *changes("model.region_tag_sizes=6", "model.patch_columns=3")]) == 2
    assert "set model.region_tag_sizes=6 and model.patch_columns=2" in capsys.readouterr().err
    assert cli.main(plan) == 0


@pytest.fixture
def older(place: Path, tmp_path: Path) -> Path:
    """The pre-training as a version wrote it that did not say how patches lie."""
    run = tmp_path / "older"
    shutil.copytree(place / "run", run)
    config = json.loads((run / "config.json").read_text())
    del config["model"]["patch_columns"]
    (run / "config.json").write_text(json.dumps(config))
    step = run / "checkpoints" / "step-3"
    state, manifest = (json.loads((step / name).read_text()) for name in ("state.json", "manifest.json"))
    del state["model"]["patch_columns"]
    content = json.dumps(state).encode()
    (step / "state.json").write_bytes(content)
    manifest["files"]["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (step / "manifest.json").write_text(json.dumps(manifest))
    return run


def test_a_fine_tuning_at_the_old_resolution_is_what_it_was(place: Path, older: Path) -> None:
    (place / "old" / "dev").symlink_to(place / "old" / "held_out")
    tuned = []
    for name, start in (("same", place / "run"), ("same-of-older", older)):
        command = finetune(place, data="old", run=name)
        command[command.index(str(place / "run"))] = str(start)
        assert "note: " not in launch(MAIN, [*command, *changes(*FINETUNING)], processes=1)
        tuned.append(weights_of(place / name / "seed-0"))
    assert all(torch.equal(tuned[0][name], value) for name, value in tuned[1].items())


def test_a_run_of_before_goes_on(place: Path, older: Path) -> None:
    data = ["--recipe", "demo", "--data", str(place / "old"), "--run-dir", str(older)]
    said = launch(TRAIN, [*data, *changes(*PRETRAINING, "schedule.total_steps=4")], processes=1)
    assert "resuming from" in said
    assert checkpoint.find(older).name == "step-4"
