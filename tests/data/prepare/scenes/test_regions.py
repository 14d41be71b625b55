"""Exact regions: attributes can be learned from the features, classes are soft and mostly right, the seed alone decides."""

from __future__ import annotations

import random

import numpy as np
import pytest

from unimo_ds.data.prepare.scenes import regions as scene_regions
from unimo_ds.data.prepare.scenes.drawing import draw_jpeg
from unimo_ds.data.prepare.scenes.extraction import FittedExtractor, fit_extractor
from unimo_ds.data.prepare.scenes.model import COLOURS, SHAPES, SIZES, sample_scene

NUM_TRAINING, NUM_TEST = 500, 100


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(random.Random(number)) for number in range(NUM_TRAINING + NUM_TEST)]


@pytest.fixture(scope="module")
def extractor(scenes) -> FittedExtractor:
    return fit_extractor("exact", scenes[:NUM_TRAINING], seed=0)


@pytest.fixture(scope="module")
def regions(scenes, extractor):
    return extractor.regions(scenes, [draw_jpeg(scene) for scene in scenes])


def test_one_region_per_thing_and_four_quarters(scenes, regions) -> None:
    for scene, part in zip(scenes, regions, strict=True):
        number = len(scene.things) + 4
        assert part.boxes.shape == (number, 4)
        assert part.boxes.dtype == np.float32
        assert part.features.shape == (number, scene_regions.FEATURE_SIZE)
        assert part.features.dtype == np.float16
        assert part.class_ids.shape == part.class_probabilities.shape == (number, scene_regions.STORED_CLASSES)
        assert np.isfinite(part.features).all()
        assert (np.diff(part.class_probabilities.astype(float), axis=1) <= 0).all()
        assert (part.class_probabilities.astype(float).sum(axis=1) <= 1.001).all()


@pytest.mark.parametrize(
    ("attribute", "names", "least"), [("colour", COLOURS, 0.95), ("shape", SHAPES, 0.95), ("size", SIZES, 0.98)]
)
def test_a_linear_map_reads_attributes_of_unseen_things(scenes, regions, attribute, names, least) -> None:
    def table(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        features = [part.features[: len(scene.things)] for scene, part in zip(scenes, regions, strict=True)][start:stop]
        values = [names.index(getattr(thing, attribute)) for scene in scenes[start:stop] for thing in scene.things]
        rows = np.concatenate(features).astype(np.float64)
        return np.concatenate([rows, np.ones((len(rows), 1))], axis=1), np.array(values)

    rows, values = table(0, NUM_TRAINING)
    weights = np.linalg.solve(rows.T @ rows + np.eye(rows.shape[1]), rows.T @ np.eye(len(names))[values])
    rows, values = table(NUM_TRAINING, NUM_TRAINING + NUM_TEST)
    assert ((rows @ weights).argmax(axis=1) == values).mean() >= least


def test_classes_of_unseen_things_are_mostly_right_and_never_certain(scenes, regions) -> None:
    hits, confidences = [], []
    for scene, part in zip(scenes[NUM_TRAINING:], regions[NUM_TRAINING:], strict=True):
        for thing, ids, probabilities in zip(scene.things, part.class_ids, part.class_probabilities, strict=False):
            hits.append(scene_regions.CLASSES[ids[0]] == f"{thing.colour} {thing.shape}")
            confidences.append(float(probabilities[0]))
    assert np.mean(hits) > 0.8
    assert 0.3 < np.mean(confidences) < 0.9


def test_an_images_regions_do_not_depend_on_the_others(scenes, extractor, regions) -> None:
    for number in (0, 7, NUM_TRAINING):
        (alone,) = extractor.regions([scenes[number]], [draw_jpeg(scenes[number])])
        for name in ("boxes", "features", "class_ids", "class_probabilities"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(regions[number], name))


def test_another_seed_is_another_extractor(scenes, extractor) -> None:
    other = fit_extractor("exact", scenes[:100], seed=1)
    assert other.inner.fingerprint != extractor.inner.fingerprint
    assert other.inner.num_classes == extractor.inner.num_classes == len(COLOURS) * len(SHAPES) + 4
