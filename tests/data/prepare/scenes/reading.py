"""An independent reader of captions: from words alone to facts, and from facts to true or false.

It shares no code with the grammar, the truth checker or the rewrites, so that it can testify against them.
"""

from __future__ import annotations

import itertools
import re

from unimo_ds.data.prepare.scenes.model import Scene

SHAPES = {
    **{name: name for name in ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent")},
    "disc": "circle",
    "box": "square",
    "hoop": "ring",
    "moon": "crescent",
}
COLOURS = {
    **{name: name for name in ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")},
    "violet": "purple",
}
SIZES = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large", "huge": "large"}
RELATIONS = {
    **dict.fromkeys(("to the left of", "left of", "on the left side of"), "L"),
    **dict.fromkeys(("to the right of", "right of", "on the right side of"), "R"),
    **dict.fromkeys(("above", "over", "higher than"), "A"),
    **dict.fromkeys(("below", "under", "lower than"), "B"),
}
PLACES = {
    **dict.fromkeys(("on the left", "at the left edge"), lambda x, y: x < 0.33),
    **dict.fromkeys(("on the right", "at the right edge"), lambda x, y: x > 0.66),
    **dict.fromkeys(("at the top", "at the upper end"), lambda x, y: y < 0.33),
    **dict.fromkeys(("at the bottom", "at the lower end"), lambda x, y: y > 0.66),
    **dict.fromkeys(("in the middle", "at the very centre"), lambda x, y: 0.33 < x < 0.66 and 0.33 < y < 0.66),
}


def _any_of(table: dict) -> str:
    return "(?:" + "|".join(sorted(table, key=len, reverse=True)) + ")"


_NAME = re.compile(rf"\b(a|an|the) (?:({_any_of(SIZES)}) )?(?:({_any_of(COLOURS)}) )?({_any_of(SHAPES)})\b")
_RELATION_BEFORE = re.compile(rf"({_any_of(RELATIONS)}) #(\d+) there is #(\d+)")
_RELATION_BETWEEN = re.compile(rf"#(\d+) (?:is |sits )?({_any_of(RELATIONS)}) #(\d+)")
_PLACE_BEFORE = re.compile(rf"({_any_of(PLACES)}) there is #(\d+)")
_PLACE_BEHIND = re.compile(rf"#(\d+) (?:is|lies) ({_any_of(PLACES)})(?! side of)")
_GROUND = re.compile(r"\bon (?:the )?(sand|snow|grass|slate)\b")
_COUNT = re.compile(r"\b(two|three|four) (?:shapes|things)\b")


def is_true_of(text: str, scene: Scene) -> bool:
    """Whether the words hold of the scene, by the plain order of coordinates."""
    ground = _GROUND.search(text)
    if ground and ground[1] != scene.ground:
        return False
    count = _COUNT.search(text)
    if count and {"two": 2, "three": 3, "four": 4}[count[1]] != len(scene.things):
        return False
    mentions: list[tuple] = []

    def number(match: re.Match) -> str:
        article, size, colour, shape = match.groups()
        meaning = (SIZES.get(size), COLOURS.get(colour), SHAPES[shape])
        if article == "the":
            known = [
                at
                for at, mention in enumerate(mentions)
                if all(part in (None, whole) for part, whole in zip(meaning, mention, strict=True))
            ]
            assert len(known) == 1, f"{match[0]!r} names {len(known)} things in {text!r}"
            return f"#{known[0]}"
        mentions.append(meaning)
        return f"#{len(mentions) - 1}"

    numbered = _NAME.sub(number, text)
    relations = [(int(m[1]), RELATIONS[m[2]], int(m[3])) for m in _RELATION_BETWEEN.finditer(numbered)]
    relations += [(int(m[3]), RELATIONS[m[1]], int(m[2])) for m in _RELATION_BEFORE.finditer(numbered)]
    places = [(int(m[2]), PLACES[m[1]]) for m in _PLACE_BEFORE.finditer(numbered)]
    places += [(int(m[1]), PLACES[m[2]]) for m in _PLACE_BEHIND.finditer(numbered)]
    # No relation may be left unread.
    said = len(re.findall(rf"\b{_any_of(RELATIONS)} #", numbered))
    assert said == len(relations), f"{said} relations said, {len(relations)} read: {text!r}"
    for things in itertools.permutations(scene.things, len(mentions)):
        fits = all(
            size in (None, thing.size) and colour in (None, thing.colour) and shape == thing.shape
            for (size, colour, shape), thing in zip(mentions, things, strict=True)
        )
        if not fits:
            continue
        if all(_ordered(things[a], name, things[b]) for a, name, b in relations) and all(
            test(things[at].x, things[at].y) for at, test in places
        ):
            return True
    return False


def _ordered(first, name: str, second) -> bool:
    return {
        "L": first.x < second.x,
        "R": first.x > second.x,
        "A": first.y < second.y,
        "B": first.y > second.y,
    }[name]
