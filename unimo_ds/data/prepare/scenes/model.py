"""Scenes of the demo corpus: two to four coloured shapes on one ground, and near-duplicates of a scene.

A scene is meaning, not pixels: `drawing` draws it, `grammar` describes it, `truth` decides what is true of it.
Things are in different cells of a 3 x 3 grid, with a little jitter, so that every relation is either clear or clearly absent.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES = ("small", "large")
GROUNDS = ("sand", "snow", "grass", "slate")

RADII = {"small": 0.08, "large": 0.135}
"""Half the width of a thing as a fraction of the picture's width."""
CELL_CENTRES = (1 / 6, 1 / 2, 5 / 6)
JITTER = 0.025
"""Largest offset from a cell's centre; small enough that large things in neighbouring cells do not touch."""

NUM_THINGS_WEIGHTS = {2: 0.3, 3: 0.4, 4: 0.3}
SHARED_ATTRIBUTE_SHARE = 0.35
"""Fraction of scenes in which two things share a colour or shape: for these a bag of words is not enough."""


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    size: str
    x: float
    """Centre, from the left, as a fraction of the picture's width."""
    y: float
    """Centre, from the top, as a fraction of the picture's height."""

    @property
    def label(self) -> tuple[str, str]:
        return self.colour, self.shape

    @property
    def cell(self) -> tuple[int, int]:
        """Column and row in the 3 x 3 grid."""
        return min(int(self.x * 3), 2), min(int(self.y * 3), 2)


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    """No two have the same colour and shape, no two are in the same cell."""
    ground: str
    drawing_seed: int
    """Determines what no caption mentions: shades, small rotations and the ground's texture."""

    @property
    def labels(self) -> frozenset[tuple[str, str]]:
        return frozenset(thing.label for thing in self.things)

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal exactly if two scenes look the same up to jitter and shade."""
        return self.ground, frozenset((thing.shape, thing.colour, thing.size, thing.cell) for thing in self.things)


def sample_scene(randomness: random.Random) -> Scene:
    """A scene sampled from the demo's distribution."""
    (count,) = randomness.choices(tuple(NUM_THINGS_WEIGHTS), tuple(NUM_THINGS_WEIGHTS.values()))
    labels: list[tuple[str, str]] = []
    while len(labels) < count:
        colour, shape = randomness.choice(COLOURS), randomness.choice(SHAPES)
        if len(labels) == 1 and randomness.random() < SHARED_ATTRIBUTE_SHARE:
            if randomness.random() < 0.5:
                colour = labels[0][0]
            else:
                shape = labels[0][1]
        if (colour, shape) not in labels:
            labels.append((colour, shape))
    cells = randomness.sample(range(9), count)
    things = tuple(
        Thing(shape, colour, randomness.choice(SIZES), *_place(cell, randomness))
        for (colour, shape), cell in zip(labels, cells, strict=True)
    )
    return Scene(things, randomness.choice(GROUNDS), randomness.getrandbits(48))


def near_duplicate(scene: Scene, randomness: random.Random) -> Scene:
    """A scene that differs from `scene` in one colour, shape or size, in the ground, or by two things swapping places."""
    while True:
        change = randomness.choice(("colour", "shape", "size", "swap", "swap", "ground"))
        things = list(scene.things)
        at = randomness.randrange(len(things))
        ground = scene.ground
        if change == "colour":
            things[at] = replace(things[at], colour=another(COLOURS, things[at].colour, randomness))
        elif change == "shape":
            things[at] = replace(things[at], shape=another(SHAPES, things[at].shape, randomness))
        elif change == "size":
            things[at] = replace(things[at], size=another(SIZES, things[at].size, randomness))
        elif change == "ground":
            ground = another(GROUNDS, ground, randomness)
        else:
            other = (at + randomness.randrange(1, len(things))) % len(things)
            first, second = things[at], things[other]
            things[at], things[other] = (
                replace(first, x=second.x, y=second.y),
                replace(second, x=first.x, y=first.y),
            )
        if len({thing.label for thing in things}) == len(things):
            return Scene(tuple(things), ground, randomness.getrandbits(48))


def relative(scene: Scene, randomness: random.Random) -> Scene:
    """A scene that shares all but one thing with `scene`, rearranged: retrieval should find it as related."""
    count = len(scene.things)
    kept = randomness.sample(scene.things, max(2, count - 1))
    cells = randomness.sample(range(9), len(kept) + 1)
    things = [
        replace(thing, size=randomness.choice(SIZES), x=x, y=y)
        for thing, (x, y) in zip(kept, (_place(cell, randomness) for cell in cells[:-1]), strict=True)
    ]
    label = (randomness.choice(COLOURS), randomness.choice(SHAPES))
    if label not in {thing.label for thing in things} and len(things) < 4:
        things.append(Thing(label[1], label[0], randomness.choice(SIZES), *_place(cells[-1], randomness)))
    return Scene(tuple(things), randomness.choice(GROUNDS), randomness.getrandbits(48))


def another(choices: tuple[str, ...], current: str | None, randomness: random.Random) -> str:
    """One of `choices` other than `current`."""
    return randomness.choice([choice for choice in choices if choice != current])


def _place(cell: int, randomness: random.Random) -> tuple[float, float]:
    """A jittered centre within cell 0..8."""
    return (
        CELL_CENTRES[cell % 3] + randomness.uniform(-JITTER, JITTER),
        CELL_CENTRES[cell // 3] + randomness.uniform(-JITTER, JITTER),
    )
