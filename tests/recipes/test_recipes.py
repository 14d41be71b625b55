"""Every shipped recipe loads, is complete, survives JSON, and takes open sizes from the data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from unimo_ds import config, config_check, recipes
from unimo_ds.overrides import apply_overrides
from unimo_ds.train import read_configuration
from unimo_ds.utils.errors import UserError


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_loads_passes_the_checks_and_survives_json(name: str) -> None:
    recipe = recipes.load(name)
    config_check.check(recipe)
    assert recipe.recipe == name
    assert config.from_dict(config.RunConfig, config.to_dict(recipe)) == recipe
    assert recipe.model.hidden_size == 64 * recipe.model.num_heads, "heads are of size 64"


def test_a_recipe_for_gpus_says_that_there_is_none() -> None:
    assert "no GPU that torch can use, so the recipe single_gpu runs on the CPU" in recipes.device_note(
        "single_gpu", "cpu"
    )
    assert not any((recipes.device_note("single_gpu", "cuda"), recipes.device_note("small", "cpu")))


def test_run_directories_differ() -> None:
    assert len({recipes.load(name).run_dir for name in recipes.NAMES}) == len(recipes.NAMES)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'base_32xv100'"):
        recipes.load("base_32v100")


def test_paper_sizes() -> None:
    base, large = recipes.load("base_32xv100"), recipes.load("large_64xv100")
    assert (base.model.num_layers, base.model.hidden_size) == (12, 768)
    assert (large.model.num_layers, large.model.hidden_size, large.model.feed_forward_size) == (24, 1024, 4096)
    for recipe in (base, large):
        assert recipe.schedule.total_steps >= 500_000
        assert recipe.optimizer.peak_learning_rate == 5e-5
        assert (recipe.data.max_text_tokens, recipe.data.max_regions) == (512, 100)
        assert recipe.engine.deepspeed_config == "zero1_fp16"
        assert set(recipe.data.source_weights) == {"coco", "vg", "cc", "sbu", "books", "web", "openimages"}


def test_open_sizes_come_from_the_data_and_stated_ones_stay() -> None:
    corpus = SimpleNamespace(vocabulary_size=900, feature_size=48, num_region_classes=0)
    fitted = recipes.fit_to_data(recipes.load("demo"), corpus)
    assert (fitted.model.vocabulary_size, fitted.model.region_feature_size) == (900, 48)
    assert fitted.model.num_region_classes == 1, "texts alone still build a model"
    base = recipes.load("base_32xv100")
    assert recipes.fit_to_data(base, corpus) == base
    half = dataclasses.replace(base, model=dataclasses.replace(base.model, vocabulary_size=0))
    assert recipes.fit_to_data(half, corpus).model == dataclasses.replace(base.model, vocabulary_size=900)


def test_positions_of_patches_come_from_the_data() -> None:
    sizes = {"vocabulary_size": 900, "feature_size": 768, "num_region_classes": 1, "region_tag_sizes": (196,)}
    fitted = recipes.fit_to_data(recipes.load("base_pixels_32xv100"), SimpleNamespace(**sizes, patch_columns=28))
    assert (fitted.model.region_feature_size, fitted.model.region_tag_sizes, fitted.data.max_regions) == (
        768,
        (196,),
        196,
    )
    assert (fitted.model.patch_grid, fitted.model.patch_side) == ((7, 28), 16)
    config_check.check(fitted)
    for overrides, culprit in (
        (["data.max_regions=100"], r"data\.max_regions=100 would cut images of model\.region_tag_sizes=196 patches"),
        (["model.region_tag_sizes=none"], r"model\.num_image_layers=12 needs images as numbered patches"),
        (["model.patch_columns=5"], r"model\.patch_columns=5 does not divide the patches of an image.*=196; set it to"),
    ):
        with pytest.raises(UserError, match=culprit):
            config_check.check(apply_overrides(fitted, overrides))
    no_patches = SimpleNamespace(**{**sizes, "region_tag_sizes": ()}, patch_columns=0)
    with pytest.raises(UserError, match="needs images as numbered patches"):
        config_check.check(recipes.fit_to_data(recipes.load("base_pixels_32xv100"), no_patches))


def test_a_folder_of_weight_0_is_as_if_it_were_not_named(tmp_path: Path) -> None:
    """What is not there is not missed either."""

    def found(*weights: float, path: str = "a::b::c") -> tuple[str, tuple[float, ...]]:
        options = [
            "--set",
            f"data.folder_weights={','.join(map(str, weights)) or 'none'}",
            "--set",
            f"data.path={path}",
        ]
        data = read_configuration(options).data
        return data.path, data.folder_weights

    assert found(0, 2, 1) == ("b::c", (2, 1))
    assert found(0, 2, 0) == ("b", (2,))
    for untouched in ((), (3, 2, 1), (0, 0, 0), (1, 0)):
        assert found(*untouched) == ("a::b::c", untouched)
    assert found(-1, 0, 2) == ("a::c", (-1, 2)), "refused by its order"


def test_a_run_without_held_out_data_says_so(tmp_path: Path) -> None:
    for name in ("train", "held_out"):
        (tmp_path / name).mkdir()
    (tmp_path / "train" / "manifest.json").touch()
    small = recipes.load("small")
    run = recipes.with_data(small, str(tmp_path))
    assert recipes.held_out_note(run).startswith(
        "no held-out data, so nothing is measured during training; give --data a"
    )
    assert not recipes.held_out_note(apply_overrides(run, ["evaluation.every_steps=0"]))
    (tmp_path / "held_out" / "manifest.json").touch()
    assert not recipes.held_out_note(recipes.with_data(small, str(tmp_path)))


def test_the_default_recipe_does_not_begin_in_the_folder_of_another_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(recipes.load("small"))), encoding="utf-8")
    with pytest.raises(
        UserError, match="holds a run of recipe small; give all of its command again, with --recipe small"
    ):
        read_configuration(["--run-dir", str(tmp_path)])
    assert read_configuration(["--run-dir", str(tmp_path), "--recipe", "demo"]).recipe == "demo"
    for content in (json.dumps(config.to_dict(recipes.load("demo"))), "{", "{}"):
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
        assert read_configuration(["--run-dir", str(tmp_path)]).recipe == "demo"
    assert read_configuration(["--run-dir", str(tmp_path / "new")]).recipe == "demo"


def test_a_folder_of_two_is_training_and_held_out_data(tmp_path: Path) -> None:
    def found(path: Path | str) -> tuple[str, str | None]:
        data = recipes.with_data(recipes.load("demo"), str(path)).data
        return data.path, data.held_out_path

    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "manifest.json").touch()
    assert found(tmp_path / "train") == (str(tmp_path / "train"), None)
    assert found(tmp_path) == (str(tmp_path / "train"), None)
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out" / "manifest.json").touch()
    assert found(tmp_path) == (str(tmp_path / "train"), str(tmp_path / "held_out"))
    assert found(f"file://{tmp_path}") == found(tmp_path)
    three = f"{tmp_path}::{tmp_path / 'train'}::{tmp_path}"
    train, held_out = tmp_path / "train", tmp_path / "held_out"
    assert found(Path(three)) == (f"{train}::{train}::{train}", f"{held_out}::{held_out}"), (
        "what fits together is asked later"
    )
