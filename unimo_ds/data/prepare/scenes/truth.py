"""What descriptions mean, and whether one is true or false of a scene.

A description is read existentially: it is true if its mentions can be matched with different things in the scene so that every
stated attribute, relation and place holds. Truth is three-valued: what is neither clearly true nor clearly false (such as two
things almost at the same height) may be neither stated nor denied. `is_true` and `is_false` test the two clear cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

from unimo_ds.data.prepare.scenes.model import Scene, Thing

RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PLACES = ("left", "right", "top", "bottom", "middle")

CLEARLY_TRUE = 0.15
"""Distance along an axis (fraction of the picture) from which a relation may be stated."""
CLEARLY_FALSE = 0.0
"""Distance along an axis below which a relation may be denied. In between it may be neither."""
PLACE_MARGIN = 0.05


@dataclass(frozen=True)
class Mention:
    """One thing as described; None: not stated."""

    shape: str
    colour: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Relation:
    subject: int
    """Index into the description's mentions."""
    name: str
    object: int


@dataclass(frozen=True)
class Placement:
    subject: int
    place: str


@dataclass(frozen=True)
class Description:
    """The meaning of a caption, without its wording."""

    mentions: tuple[Mention, ...]
    relations: tuple[Relation, ...] = ()
    placements: tuple[Placement, ...] = ()
    ground: str | None = None
    count: int | None = None
    """Number of things in the whole scene."""


def is_true(description: Description, scene: Scene) -> bool:
    """Whether this may be stated of the scene: it holds by a clear distance."""
    return _holds(description, scene, distance=CLEARLY_TRUE, margin=PLACE_MARGIN)


def is_false(description: Description, scene: Scene) -> bool:
    """Whether this may be denied of the scene: it does not hold even with lenient distances."""
    return not _holds(description, scene, distance=CLEARLY_FALSE, margin=-PLACE_MARGIN)


def related(first: Thing, name: str, second: Thing, *, distance: float) -> bool:
    """Whether `first` is `name` `second` by at least `distance` (a fraction of the picture)."""
    distances = {
        "left of": second.x - first.x,
        "right of": first.x - second.x,
        "above": second.y - first.y,
        "below": first.y - second.y,
    }
    return distances[name] >= distance


def placed(thing: Thing, place: str, *, margin: float) -> bool:
    """Whether the thing is in the named third of the picture, `margin` inside its border."""
    low, high = 1 / 3 - margin, 2 / 3 + margin
    stands = {
        "left": thing.x <= low,
        "right": thing.x >= high,
        "top": thing.y <= low,
        "bottom": thing.y >= high,
        "middle": all(1 / 3 + margin <= centre <= 2 / 3 - margin for centre in (thing.x, thing.y)),
    }
    return stands[place]


def _matches(mention: Mention, thing: Thing) -> bool:
    return (
        mention.shape == thing.shape and mention.colour in (None, thing.colour) and mention.size in (None, thing.size)
    )


def _holds(description: Description, scene: Scene, *, distance: float, margin: float) -> bool:
    if description.ground not in (None, scene.ground) or description.count not in (None, len(scene.things)):
        return False
    mentions = description.mentions
    if any(not any(_matches(mention, thing) for thing in scene.things) for mention in mentions):
        return False  # quickly settles most false descriptions, without matching
    return any(
        all(_matches(mention, thing) for mention, thing in zip(mentions, things, strict=True))
        and all(
            related(things[relation.subject], relation.name, things[relation.object], distance=distance)
            for relation in description.relations
        )
        and all(placed(things[item.subject], item.place, margin=margin) for item in description.placements)
        for things in permutations(scene.things, len(mentions))
    )
