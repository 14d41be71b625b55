"""Random crops of patches' images: what is drawn, that batches stay a function of the step, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.data import corpora, patched
from tests.data.patched import GRID
from tests.data.prepare.raw import picture
from tests.data.test_loader import global_step
from unimo_ds.config import KindWeights, RunConfig, to_dict
from unimo_ds.config_check import check_stored
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.corpus_check import check_corpus
from unimo_ds.data.loader import StepLoader
from unimo_ds.data.step_reader import StepReader
from unimo_ds.data.tokenizer import load
from unimo_ds.data.viewing.inspect_order import inspect_order
from unimo_ds.data.vision import crops, images, patches
from unimo_ds.data.vision.images import encode_jpeg
from unimo_ds.engine.run_directory import differing_keys
from unimo_ds.overrides import apply_overrides
from unimo_ds.utils.errors import UserError


@pytest.mark.parametrize("smallest", [0.01, 0.3, 0.9, 0.999999])
def test_crops_lie_within_their_bounds(smallest: float) -> None:
    drawn = np.array([crops.draw(key, smallest=smallest) for key in range(3000)])
    left, top, right, bottom = drawn.T
    width, height = right - left, bottom - top
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()
    area, ratio = width * height, width / height
    assert area.min() >= smallest - 1e-9
    assert ratio.min() >= 3 / 4 - 1e-9
    assert ratio.max() <= 4 / 3 + 1e-9
    # All of it is used, evenly, and neither form is preferred.
    assert area.mean() == pytest.approx((1 + smallest) / 2, abs=0.02)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.01)
    assert (left > 0).mean() > 0.4
    assert np.corrcoef(left, top)[0, 1] == pytest.approx(0, abs=0.5)
    assert len(np.unique(drawn[:, 0])) > 1000


def test_a_crop_is_a_function_of_its_key() -> None:
    """Written down once: another machine, or another version, draws the same."""
    expected = (0.0003465185665543968, 0.014958512869983204, 0.9991742732187071, 0.986085473448169)
    assert crops.draw(5, smallest=0.3) == expected


def test_a_crop_shows_its_part_as_if_it_were_all() -> None:
    jpeg = encode_jpeg(picture(1).resize((800, 600)))
    crop = (0.25, 0.5, 0.75, 1.0)
    part = images.decode(jpeg).crop((200, 300, 600, 600))
    found, expected = patches.of_jpeg(jpeg, GRID, crop), patches.cut(part, GRID)
    np.testing.assert_allclose(found.features, expected.features, atol=0.1)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    whole = patches.of_jpeg(jpeg, GRID)
    np.testing.assert_array_equal(patches.of_jpeg(jpeg, GRID, (0.0, 0.0, 1.0, 1.0)).features, whole.features)
    assert np.abs(found.features - whole.features).max() > 0.3
    # The smaller the part, the more of the file's pixels are decoded.
    tiny = patches.cut(images.decode(jpeg), GRID, (0.5, 0.5, 0.52, 0.52))
    np.testing.assert_array_equal(patches.of_jpeg(jpeg, GRID, (0.5, 0.5, 0.52, 0.52)).features, tiny.features)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patched.write_folder(tmp_path_factory.mktemp("patched"))


def cropping(corpus: Corpus, smallest: float = 0.3, **changes: int) -> RunConfig:
    config = patched.config_for(corpus, **changes)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, smallest_crop=smallest))


def test_cropped_steps_do_not_depend_on_ranks_workers_or_the_start(folder: Path) -> None:
    corpus = Corpus.open(folder)
    config = cropping(corpus)
    check_corpus(corpus, config)
    here = [global_step([batch]) for batch in StepLoader(corpus, config, 0, 1, 0, 4)]
    in_workers = StepLoader(Corpus.open(folder), cropping(corpus, num_workers=2), 0, 1, 0, 4)
    assert [global_step([batch]) for batch in in_workers] == here
    for world_size in (2, 3):
        several = cropping(corpus, micro_batch_tokens=700)
        loaders = [StepLoader(Corpus.open(folder), several, rank, world_size, 0, 4) for rank in range(world_size)]
        assert [global_step(list(ranks)) for ranks in zip(*loaders, strict=True)] == here
    assert [global_step([batch]) for batch in StepLoader(Corpus.open(folder), config, 0, 1, 3, 4)] == here[3:]
    whole = [global_step([batch]) for batch in StepLoader(corpus, cropping(corpus, 1.0), 0, 1, 0, 4)]
    for cropped, uncropped in zip(here, whole, strict=True):
        assert cropped.keys() == uncropped.keys()
        shows_image = [seed for seed, one in uncropped.items() if seed > 0 and one[3]]
        assert sum(cropped[seed][3] != uncropped[seed][3] for seed in shows_image) > len(shows_image) / 2
        assert all(cropped[seed][:3] == uncropped[seed][:3] for seed in uncropped if seed > 0)


def test_each_visit_shows_another_part_and_related_images_are_whole(folder: Path) -> None:
    """Of a reader that has met the samples before, too: what it keeps of them depends on no visit."""
    corpus = Corpus.open(folder)
    config = cropping(corpus)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, kind_weights=KindWeights(0, 0, 1)))
    reader = StepReader(corpus, load(folder), config, rank=0, world_size=1)
    whole = {}
    for number in range(len(corpus)):
        regions = corpus.read(number).regions
        if regions is not None:
            whole[corpus.key(number)] = {row.tobytes() for row in regions.features}
    images_of = {row for key, rows in whole.items() if key.startswith("image") for row in rows}
    pairs = {row for key, rows in whole.items() if key.startswith("pair") for row in rows}
    seen: list[bytes] = []
    for step in range(6):  # 20 pairs, 14 a step: each comes four times
        for micro in reader.read(step).micro_batches:
            rows = [row.tobytes() for row in micro.region_features[micro.region_tags[:, 0] >= 0].numpy() if row.any()]
            seen += [row for row in rows if row not in images_of]
            assert any(row in images_of for row in rows)
    assert not any(row in pairs for row in seen)
    assert len(set(seen)) > 2 * len([key for key in whole if key.startswith("pair")]) * GRID.num_patches
    first = global_step([reader.read(2)])
    assert global_step([StepReader(corpus, load(folder), config, rank=0, world_size=1).read(2)]) == first


def test_a_bad_image_is_replaced_in_cropped_steps_too(tmp_path: Path) -> None:
    folder = patched.write_folder(tmp_path)
    corpus = Corpus.open(folder)
    (first,) = inspect_order(corpus, cropping(corpus), steps=range(1), world_size=1)["steps"]
    victim = next(key for key in first["global_batch"] if key.startswith("pair"))
    patched.spoil(folder, victim)
    spoilt = Corpus.open(folder)
    (batch,) = StepLoader(spoilt, cropping(spoilt), 0, 1, 0, 1)
    (bad,) = batch.bad_samples
    assert bad.key == victim
    split = [next(iter(StepLoader(spoilt, cropping(spoilt), rank, 2, 0, 1))) for rank in range(2)]
    assert global_step(split) == global_step([batch])


def test_crops_of_other_regions_are_refused(folder: Path) -> None:
    config = corpora.make_config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, smallest_crop=0.5))
    with pytest.raises(UserError, match=r"data\.smallest_crop=0\.5 crops images, but .* --extractor patches"):
        check_corpus(corpora.make_corpus(), config)
    corpus = Corpus.open(folder)
    assert not corpus.has_stored_regions
    check_corpus(corpus, cropping(corpus))


def test_the_setting_is_bounded_and_no_news_to_older_runs() -> None:
    config = corpora.make_config()
    for text in ("0", "1.5", "-1"):
        with pytest.raises(UserError, match=r"data\.smallest_crop"):
            check_stored(apply_overrides(config, [f"data.smallest_crop={text}"]))
    after = to_dict(config)
    before = {**after, "data": {name: value for name, value in after["data"].items() if name != "smallest_crop"}}
    assert differing_keys(before, after) == []
    other = to_dict(apply_overrides(config, ["data.smallest_crop=0.5"]))
    assert differing_keys(before, other) == differing_keys(after, other) == ["data.smallest_crop"]
