"""Drawings show the scene: colours where things are, ground elsewhere, boxes that fit."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from unimo_ds.data.prepare.scenes.drawing import COLOUR_VALUES, PICTURE_SIZE, boxes_of, draw, draw_jpeg
from unimo_ds.data.prepare.scenes.model import COLOURS, SHAPES, Scene, Thing, sample_scene

SCENES = [sample_scene(random.Random(number)) for number in range(40)]


def changed_pixels(scene: Scene) -> np.ndarray:
    """[H, W] True where the things changed the bare ground."""
    bare = np.asarray(draw(replace(scene, things=())), np.int32)
    return (np.abs(np.asarray(draw(scene), np.int32) - bare) > 6).any(axis=-1)


def test_a_drawing_is_a_function_of_its_scene() -> None:
    assert draw_jpeg(SCENES[0]) == draw_jpeg(SCENES[0])
    assert draw_jpeg(SCENES[0]) != draw_jpeg(replace(SCENES[0], drawing_seed=1))


def test_a_jpeg_is_a_small_rgb_picture() -> None:
    with Image.open(io.BytesIO(draw_jpeg(SCENES[0]))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (PICTURE_SIZE, PICTURE_SIZE))


def test_boxes_enclose_what_was_drawn_and_little_else() -> None:
    margin = 3  # outline and rotation reach a little beyond the upright box
    for scene in SCENES:
        changed = changed_pixels(scene)
        boxes = boxes_of(scene)
        assert boxes.shape == (len(scene.things), 4)
        assert ((boxes >= 0) & (boxes <= 1)).all()
        for box in (boxes * PICTURE_SIZE).round().astype(int):
            left, top, right, bottom = box
            inside = changed[max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin]
            rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
            assert rows[-1] - rows[0] >= 0.8 * (bottom - top)
            assert columns[-1] - columns[0] >= 0.8 * (right - left)
            changed[max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin] = False
        assert not changed.any()


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"ring", "crescent"}))
@pytest.mark.parametrize("colour", COLOURS)
def test_things_have_their_colour(shape: str, colour: str) -> None:
    scene = Scene((Thing(shape, colour, "small", 0.5, 0.5),), "slate", drawing_seed=4)
    seen = np.asarray(draw(scene), np.int32)[PICTURE_SIZE // 2, PICTURE_SIZE // 2]
    distances = {name: np.abs(seen - value).sum() for name, value in COLOUR_VALUES.items()}
    assert min(distances, key=distances.__getitem__) == colour


def test_a_ring_shows_the_ground_through_its_hole() -> None:
    scene = Scene((Thing("ring", "red", "large", 0.5, 0.5),), "snow", drawing_seed=4)
    assert not changed_pixels(scene)[PICTURE_SIZE // 2, PICTURE_SIZE // 2]
    assert changed_pixels(scene).sum() > 300


def test_all_shapes_differ() -> None:
    silhouettes = [
        changed_pixels(Scene((Thing(shape, "red", "large", 0.5, 0.5),), "snow", drawing_seed=4)) for shape in SHAPES
    ]
    for number, first in enumerate(silhouettes):
        for second in silhouettes[:number]:
            assert (first != second).sum() > 0.08 * max(first.sum(), second.sum())
