"""Which images a model of another resolution is made to fit, and which are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.data import patched
from tests.data.corpora import make_config
from tests.data.shard_folders import make_folder
from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.corpus_check import check_corpus
from unimo_ds.data.schema import PatchGrid
from unimo_ds.data.vision import resolution
from unimo_ds.data.vision.patch_extractor import PatchExtractor
from unimo_ds.evaluation.held_out import check_fits
from unimo_ds.finetune.images import check_images
from unimo_ds.utils.errors import UserError

GRID = patched.GRID


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus.open(patched.write_folder(tmp_path_factory.mktemp("patched")))


def model_of(corpus: Corpus, grid: PatchGrid, **made_with: str) -> RunConfig:
    """A model of image layers for images that are cut so."""
    config = patched.config_for(corpus)
    model = dataclasses.replace(
        config.model,
        num_image_layers=1,
        region_feature_size=grid.feature_size,
        region_tag_sizes=(grid.num_patches,),
        patch_columns=grid.columns,
    )
    data = dataclasses.replace(config.data, path="gone", made_with=made_with, max_regions=grid.num_patches)
    return dataclasses.replace(config, model=model, data=data)


def test_a_model_is_made_to_fit_more_and_other_rows(corpus: Corpus) -> None:
    assert corpus.patch_grid == GRID
    for trained in (PatchGrid(2, 2, 4), PatchGrid(3, 2, 4), PatchGrid(14, 14, 4)):
        config = model_of(corpus, trained, extractor=PatchExtractor(trained).fingerprint, tokenizer="t")
        found = resolution.fitted(config, corpus)
        assert resolution.grid_of(found) == GRID
        assert found.data.made_with == {"extractor": PatchExtractor(GRID).fingerprint, "tokenizer": "t"}
        assert found.data.max_regions == max(trained.num_patches, GRID.num_patches)
        assert resolution.fitted(found, corpus) is found
        check_images(corpus, found, tokenizer=None)
        of_before = model_of(corpus, trained)
        assert resolution.fitted(of_before, corpus).model == found.model
        for check in (lambda one: check_images(corpus, one, tokenizer=None), lambda one: check_fits(corpus, one)):
            for one in (config, of_before):
                with pytest.raises(UserError, match=rf"has images of 2 x 3 patches, the model reads {trained.rows} x "):
                    check(one)


@pytest.mark.parametrize("case", ["side", "made by another", "a larger table", "rows unknown", "no image layers"])
def test_what_is_no_other_resolution_stays_as_it_is(corpus: Corpus, case: str) -> None:
    config = model_of(corpus, PatchGrid(4, 4, 4 if case != "side" else 8))
    if case == "made by another":
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, made_with={"extractor": "1" * 16}))
    if case == "a larger table":  # trained on 3 x 3, with rows to spare
        made_with = {"extractor": PatchExtractor(PatchGrid(3, 3, 4)).fingerprint}
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, made_with=made_with))
    if case == "rows unknown":
        changes = {"region_tag_sizes": (12,), "patch_columns": 0}
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
    if case == "no image layers":
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_image_layers=0))
    assert resolution.fitted(config, corpus) is config
    if case in ("made by another", "a larger table"):
        with pytest.raises(UserError, match=r"was prepared with the extractor .* prepare it with `--like` that data"):
            check_images(corpus, config, tokenizer=None)
    if case == "side":
        with pytest.raises(UserError, match=r"patches of 4 x 4 pixels, the model reads 8 x 8; .* --patch-side 8"):
            check_images(corpus, config, tokenizer=None)


def test_a_training_reads_its_grid_and_no_other(corpus: Corpus) -> None:
    check_corpus(corpus, model_of(corpus, GRID))
    with pytest.raises(UserError, match=r"set model\.region_tag_sizes=6 and model\.patch_columns=3"):
        check_corpus(corpus, model_of(corpus, PatchGrid(3, 2, 4)))


def test_data_without_an_extractor_of_patches_have_no_grid(tmp_path: Path) -> None:
    corpus = Corpus.open(make_folder(tmp_path))
    assert (corpus.patch_grid, corpus.patch_columns) == (None, 0)
    assert make_config().model.patch_grid is None
