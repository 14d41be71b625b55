"""Rewrites of scene captions with known truth: positives are true, negatives at three levels are certainly false.

The levels are the paper's (UNIMO, section 2.1): sentence negatives are captions of similar scenes, phrase negatives exchange
noun phrases or their attributes, word negatives change one word. Phrase and word negatives keep the caption's wording, so that
only the picture distinguishes them from a true caption. Every negative is checked against the scene.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from unimo_ds.data.prepare.scenes.grammar import SceneCaption, inverse, render, sample_wording
from unimo_ds.data.prepare.scenes.model import COLOURS, GROUNDS, SHAPES, SIZES, Scene, another
from unimo_ds.data.prepare.scenes.truth import INVERSE, PLACES, Description, Mention, Relation, is_false
from unimo_ds.data.schema import Level, Rewrite

NUM_POSITIVES = 3
NUM_SENTENCE_NEGATIVES = 3
NUM_PHRASE_NEGATIVES = 3
NUM_WORD_NEGATIVES = 4

_ATTEMPTS_PER_REWRITE = 6
"""Candidates tried per wanted rewrite; if too few succeed, the caption has fewer rewrites."""

Item = TypeVar("Item")
Change = tuple[Description, str]
"""A changed description, and the change as text, `old>new`."""


def positive_rewrites(caption: SceneCaption, randomness: random.Random) -> tuple[Rewrite, ...]:
    """Paraphrases of the caption: synonyms, another order, relations inverted."""
    texts = [caption.text]
    for _ in range(NUM_POSITIVES * _ATTEMPTS_PER_REWRITE):
        text = render(_reorder(caption.description, randomness), sample_wording(randomness))
        if text not in texts:
            texts.append(text)
        if len(texts) > NUM_POSITIVES:
            break
    return tuple(Rewrite(text, Level.NONE, "paraphrase") for text in texts[1:])


def word_negatives(caption: SceneCaption, scene: Scene, randomness: random.Random) -> tuple[Rewrite, ...]:
    """False captions that differ from the caption in exactly one word (articles aside)."""
    changes = _word_changes(caption.description, randomness)
    return _false_rewrites(caption, scene, Level.WORD, changes, count=NUM_WORD_NEGATIVES)


def phrase_negatives(caption: SceneCaption, scene: Scene, randomness: random.Random) -> tuple[Rewrite, ...]:
    """False captions in which one noun phrase is replaced, or two exchange places or attributes."""
    changes = _phrase_changes(caption.description, randomness)
    return _false_rewrites(caption, scene, Level.PHRASE, changes, count=NUM_PHRASE_NEGATIVES)


def sentence_negatives(
    caption: SceneCaption, scene: Scene, candidates: Iterable[tuple[SceneCaption, str]]
) -> tuple[Rewrite, ...]:
    """Captions of other scenes that are false of this one.

    candidates: (caption, name of its scene), most similar first.
    """
    found: dict[str, Rewrite] = {}
    for candidate, owner in candidates:
        if len(found) == NUM_SENTENCE_NEGATIVES:
            break
        if candidate.text != caption.text and candidate.text not in found and is_false(candidate.description, scene):
            found[candidate.text] = Rewrite(candidate.text, Level.SENTENCE, f"caption of {owner}")
    return tuple(found.values())


def differing_words(first: str, second: str) -> int | None:
    """Number of words in which two captions differ, articles aside; None if their numbers of words differ."""
    first_words, second_words = (
        ["a" if word == "an" else word for word in text.replace(",", "").replace(":", "").split()]
        for text in (first, second)
    )
    if len(first_words) != len(second_words):
        return None
    return sum(one != other for one, other in zip(first_words, second_words, strict=True))


def _false_rewrites(
    caption: SceneCaption, scene: Scene, level: Level, changes: Iterator[Change], *, count: int
) -> tuple[Rewrite, ...]:
    found: dict[str, Rewrite] = {}
    for _, (description, origin) in zip(range(count * _ATTEMPTS_PER_REWRITE), changes, strict=False):
        if len(found) == count:
            break
        text = render(description, caption.wording)
        if level is Level.WORD and differing_words(caption.text, text) != 1:
            continue
        if text not in found and _is_sensible(description) and is_false(description, scene):
            found[text] = Rewrite(text, level, origin)
    return tuple(found.values())


def _is_sensible(description: Description) -> bool:
    """Whether this could be a true caption of some scene: no scene has two things of the same colour and shape.

    Without this rule, the text alone could reveal a negative.
    """
    mentions = description.mentions
    for at, mention in enumerate(mentions):
        for other in mentions[:at]:
            if mention.shape == other.shape and (
                mention.colour == other.colour or None in (mention.colour, other.colour)
            ):
                return False
    return description.count is None or description.count >= len(mentions)


def _word_changes(description: Description, randomness: random.Random) -> Iterator[Change]:
    """Endless changes of one attribute, relation, place, ground or number; each kind in the description is equally likely."""
    mentions = description.mentions
    indices: dict[str, list[int]] = {
        "shape": list(range(len(mentions))),
        "colour": [at for at, mention in enumerate(mentions) if mention.colour is not None],
        "size": [at for at, mention in enumerate(mentions) if mention.size is not None],
        "relation": list(range(len(description.relations))),
        "place": list(range(len(description.placements))),
        "ground": [] if description.ground is None else [0],
        "count": [] if description.count is None else [0],
    }
    kinds = [kind for kind, where in indices.items() if where]
    while True:
        kind = randomness.choice(kinds)
        yield _change_word(description, kind, randomness.choice(indices[kind]), randomness)


def _change_word(description: Description, kind: str, at: int, randomness: random.Random) -> Change:
    choices: dict[str, tuple[str, ...]] = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}
    if kind in choices:
        mention = description.mentions[at]
        value = another(choices[kind], getattr(mention, kind), randomness)
        changed = _with_mention(description, at, replace(mention, **{kind: value}))
        return changed, f"{getattr(mention, kind)}>{value}"
    if kind == "relation":
        relation = description.relations[at]
        turned = replace(relation, name=INVERSE[relation.name])
        changed = replace(description, relations=_with_item(description.relations, at, turned))
        return changed, f"{relation.name}>{turned.name}"
    if kind == "place":
        placement = description.placements[at]
        moved = replace(placement, place=another(PLACES, placement.place, randomness))
        changed = replace(description, placements=_with_item(description.placements, at, moved))
        return changed, f"{placement.place}>{moved.place}"
    if kind == "ground":
        ground = another(GROUNDS, description.ground, randomness)
        return replace(description, ground=ground), f"{description.ground}>{ground}"
    number = randomness.choice([number for number in (2, 3, 4) if number != description.count])
    return replace(description, count=number), f"{description.count}>{number}"


def _phrase_changes(description: Description, randomness: random.Random) -> Iterator[Change]:
    """Endless replacements of one noun phrase, and exchanges between two."""
    mentions = description.mentions
    while True:
        kind = randomness.choice(("replace", "exchange", "exchange colours", "exchange shapes"))
        at, other = randomness.sample(range(len(mentions)), 2)
        first, second = mentions[at], mentions[other]
        if kind == "replace":
            # At least the shape and any stated colour change; unstated attributes stay so, to keep the form.
            changed = replace(
                first,
                shape=another(SHAPES, first.shape, randomness),
                colour=None if first.colour is None else another(COLOURS, first.colour, randomness),
                size=None if first.size is None else randomness.choice(SIZES),
            )
            yield _with_mention(description, at, changed), f"{_spoken(first)}>{_spoken(changed)}"
            continue
        if kind == "exchange":
            pair = second, first
        elif kind == "exchange colours":
            pair = replace(first, colour=second.colour), replace(second, colour=first.colour)
        else:
            pair = replace(first, shape=second.shape), replace(second, shape=first.shape)
        exchanged = _with_mention(_with_mention(description, at, pair[0]), other, pair[1])
        yield exchanged, f"{_spoken(first)}, {_spoken(second)}>{_spoken(pair[0])}, {_spoken(pair[1])}"


def _reorder(description: Description, randomness: random.Random) -> Description:
    """The same meaning with relations in another order and some of them inverted."""
    relations: list[Relation] = [
        inverse(relation) if randomness.random() < 0.5 else relation for relation in description.relations
    ]
    randomness.shuffle(relations)
    return replace(description, relations=tuple(relations))


def _with_mention(description: Description, at: int, mention: Mention) -> Description:
    return replace(description, mentions=_with_item(description.mentions, at, mention))


def _with_item(items: tuple[Item, ...], at: int, item: Item) -> tuple[Item, ...]:
    return (*items[:at], item, *items[at + 1 :])


def _spoken(mention: Mention) -> str:
    return " ".join(word for word in (mention.size, mention.colour, mention.shape) if word is not None)
