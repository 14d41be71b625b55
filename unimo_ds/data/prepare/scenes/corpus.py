"""The demo corpus before it is written: scenes of each part, captions with rewrites, and related items.

Everything is a pure function of the seed: each scene has its own random generator, keyed by (seed, part, number).
"""

from __future__ import annotations

import enum
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.prepare.scenes.grammar import SceneCaption, sample_caption
from unimo_ds.data.prepare.scenes.model import COLOURS, SHAPES, Scene, near_duplicate, relative, sample_scene
from unimo_ds.data.prepare.scenes.rewrites import (
    phrase_negatives,
    positive_rewrites,
    sentence_negatives,
    word_negatives,
)
from unimo_ds.data.prepare.scenes.truth import is_false
from unimo_ds.data.schema import Caption
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.seed import mix

NEAR_DUPLICATE_SHARE = 0.2
"""Fraction of scenes that are near-duplicates of the previous scene; twice as many scenes have one."""
RELATIVE_SHARE = 0.5
"""Fraction of single-modal scenes derived from the scene of a random pair, so that related items exist."""
NUM_RELATED = 4
SMALLEST_OVERLAP = 2
"""Number of things, by colour and shape, that a related scene must share with the pair's."""

_NUM_SIMILAR = 10
_ATTEMPTS = 400
_ROWS_AT_ONCE = 1024


class Part(enum.IntEnum):
    """Keys of the random generators; changing a value changes the corpus."""

    PAIRS = 1
    IMAGES = 2
    TEXTS = 3
    HELD_OUT = 4


@dataclass(frozen=True)
class ScenePair:
    scene: Scene
    captions: tuple[SceneCaption, ...]


def randomness_of(seed: int, part: Part, number: int, purpose: int = 0) -> random.Random:
    """The random generator of one item of a part."""
    return random.Random(mix(seed, part, number, purpose))


def sample_scenes(count: int, *, seed: int, part: Part, avoid: Collection[tuple[object, ...]]) -> list[Scene]:
    """`count` different scenes, some of them near-duplicates of the previous one.

    avoid: signatures of scenes that must not appear.
    """
    scenes: list[Scene] = []
    seen = set(avoid)
    for number in range(count):
        randomness = randomness_of(seed, part, number)
        is_near = bool(scenes) and randomness.random() < NEAR_DUPLICATE_SHARE
        while True:
            scene = near_duplicate(scenes[-1], randomness) if is_near else sample_scene(randomness)
            if scene.signature not in seen:
                break
            is_near = False  # near-duplicates of a scene may run out, independent scenes do not
        seen.add(scene.signature)
        scenes.append(scene)
    return scenes


def sample_relatives(
    count: int, *, of: Sequence[Scene], seed: int, part: Part, avoid: Collection[tuple[object, ...]]
) -> list[Scene]:
    """`count` scenes for a single-modal part: independent ones, and ones that share all but one thing with a scene of `of`."""
    scenes: list[Scene] = []
    seen = set(avoid)
    for number in range(count):
        randomness = randomness_of(seed, part, number)
        is_relative = bool(of) and randomness.random() < RELATIVE_SHARE
        while True:
            scene = relative(randomness.choice(of), randomness) if is_relative else sample_scene(randomness)
            if scene.signature not in seen:
                break
        seen.add(scene.signature)
        scenes.append(scene)
    return scenes


def caption_pairs(scenes: Sequence[Scene], *, captions_per_pair: int, seed: int, part: Part) -> list[ScenePair]:
    """Captions for each scene, false of its neighbours in the list: so captions name what distinguishes near-duplicates."""
    pairs = []
    for number, scene in enumerate(scenes):
        randomness = randomness_of(seed, part, number, 1)
        neighbours = [scenes[at] for at in (number - 1, number + 1) if 0 <= at < len(scenes)]
        captions: list[SceneCaption] = []
        while len(captions) < captions_per_pair:
            caption = _telling_caption(scene, neighbours, randomness)
            if all(caption.text != other.text for other in captions):
                captions.append(caption)
        pairs.append(ScenePair(scene, tuple(captions)))
    return pairs


def identify_pairs(pairs: Sequence[ScenePair], *, seed: int, part: Part) -> list[ScenePair]:
    """The same pairs with captions replaced until each is false of every other scene, so that retrieval has one right answer.

    Raises:
        UserError: no caption distinguishes a scene from all others.
    """
    labels = label_table([pair.scene for pair in pairs])
    overlap = labels @ labels.T
    result = []
    for number, pair in enumerate(pairs):
        # A caption names at least two things, mostly by colour and shape: try scenes that share many things first.
        order = np.argsort(-overlap[number], kind="stable")
        others = [pairs[at].scene for at in order if at != number]
        randomness = randomness_of(seed, part, number, 2)
        captions = []
        for caption in pair.captions:
            if not _is_false_everywhere(caption, others):
                caption = _telling_caption(pair.scene, others, randomness)
                if not _is_false_everywhere(caption, others):
                    raise UserError(
                        f"no caption tells scene {number} of part {part.name} from all others; draw fewer, or by another --seed"
                    )
            captions.append(caption)
        result.append(ScenePair(pair.scene, tuple(captions)))
    return result


def rewrite_captions(pairs: Sequence[ScenePair], *, seed: int, part: Part) -> Iterator[tuple[Caption, ...]]:
    """Captions of each pair with positive rewrites, and negatives at three levels."""
    scenes = [pair.scene for pair in pairs]
    similar = most_similar(scenes, scenes, count=_NUM_SIMILAR + 1)
    for number, pair in enumerate(pairs):
        randomness = randomness_of(seed, part, number, 3)
        captions = []
        others = [int(at) for at in similar[number] if at != number]
        for caption in pair.captions:
            candidates = [
                (randomness.choice(pairs[at].captions), f"a similar scene ({part.name.lower()} {at})") for at in others
            ]
            captions.append(
                Caption(
                    caption.text,
                    positives=positive_rewrites(caption, randomness),
                    negatives=(
                        *sentence_negatives(caption, pair.scene, candidates),
                        *phrase_negatives(caption, pair.scene, randomness),
                        *word_negatives(caption, pair.scene, randomness),
                    ),
                )
            )
        yield tuple(captions)


def related_to(scenes: Sequence[Scene], pool: Sequence[Scene]) -> list[list[int]]:
    """For each scene, up to NUM_RELATED of the most similar scenes in the pool that share at least SMALLEST_OVERLAP things."""
    if not pool:
        return [[] for _ in scenes]
    nearest = most_similar(scenes, pool, count=NUM_RELATED)
    shared = np.einsum("nl,nkl->nk", label_table(scenes), label_table(pool)[nearest])
    return [
        [int(at) for at, overlap in zip(row, counts, strict=True) if overlap >= SMALLEST_OVERLAP]
        for row, counts in zip(nearest, shared, strict=True)
    ]


def label_table(scenes: Sequence[Scene]) -> NDArray[np.float32]:
    """[scenes, colours x shapes] 1 if the scene has such a thing."""
    table = np.zeros((len(scenes), len(COLOURS) * len(SHAPES)), np.float32)
    for row, scene in enumerate(scenes):
        for colour, shape in scene.labels:
            table[row, COLOURS.index(colour) * len(SHAPES) + SHAPES.index(shape)] = 1.0
    return table


def most_similar(scenes: Sequence[Scene], pool: Sequence[Scene], *, count: int) -> NDArray[np.int64]:
    """The scenes of `pool` most similar to each scene: [scenes, min(count, pool)] indices, most similar first.

    Ten points for a common thing, three for a common colour or shape, minus the difference in number of things. Ties go to the
    next scene in cyclic order, so that no scene is everybody's neighbour.
    """
    count = min(count, len(pool))
    labels, pool_labels = label_table(scenes), label_table(pool)
    sizes, pool_sizes = labels.sum(axis=1), pool_labels.sum(axis=1)
    by_colour = labels.reshape(-1, len(COLOURS), len(SHAPES)).max(axis=2)
    pool_by_colour = pool_labels.reshape(-1, len(COLOURS), len(SHAPES)).max(axis=2)
    by_shape = labels.reshape(-1, len(COLOURS), len(SHAPES)).max(axis=1)
    pool_by_shape = pool_labels.reshape(-1, len(COLOURS), len(SHAPES)).max(axis=1)
    best = []
    for start in range(0, len(scenes), _ROWS_AT_ONCE):  # in blocks of rows, to bound memory
        rows = slice(start, start + _ROWS_AT_ONCE)
        # Small integers: exact in any order of summation.
        points = 10 * (labels[rows] @ pool_labels.T)
        points += 3 * (by_colour[rows] @ pool_by_colour.T) + 3 * (by_shape[rows] @ pool_by_shape.T)
        points -= np.abs(sizes[rows, None] - pool_sizes)
        turn = (np.arange(len(pool)) - np.arange(len(scenes))[rows, None]) % len(pool)
        scores = points.astype(np.float64) - turn / len(pool)
        part = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1)
        best.append(np.take_along_axis(part, order, axis=1))
    return np.concatenate(best)


def _telling_caption(scene: Scene, others: Sequence[Scene], randomness: random.Random) -> SceneCaption:
    """A caption of the scene that is false of all others; any caption if many attempts found none."""
    for attempt in range(_ATTEMPTS):
        caption = sample_caption(scene, randomness, all_things=attempt > _ATTEMPTS // 8)
        if _is_false_everywhere(caption, others):
            break
    return caption


def _is_false_everywhere(caption: SceneCaption, scenes: Sequence[Scene]) -> bool:
    return all(is_false(caption.description, scene) for scene in scenes)
