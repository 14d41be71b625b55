"""Scenes in words: what is said about a scene (`describe`) and how it is worded (`render`).

Meaning and wording are separate. `render` is a pure function of both, and each choice of words has its own slot in the wording:
if one attribute of a description changes and the wording stays, one word of the text changes. Rewrites depend on this.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from unimo_ds.data.prepare.scenes.model import Scene
from unimo_ds.data.prepare.scenes.truth import (
    CLEARLY_TRUE,
    INVERSE,
    PLACE_MARGIN,
    PLACES,
    RELATIONS,
    Description,
    Mention,
    Placement,
    Relation,
    placed,
    related,
)

# Synonyms. Opposite relations list theirs in the same order, so that their texts differ in one word.
WORDS = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "purple": ("purple", "violet"),
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "ring": ("ring", "hoop"),
    "crescent": ("crescent", "moon"),
    "left of": ("to the left of", "left of", "on the left side of"),
    "right of": ("to the right of", "right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
    "left": ("on the left", "at the left edge"),
    "right": ("on the right", "at the right edge"),
    "top": ("at the top", "at the upper end"),
    "bottom": ("at the bottom", "at the lower end"),
    "middle": ("in the middle", "at the very centre"),
}
COUNT_WORDS = {2: "two", 3: "three", 4: "four"}

RELATION_FORMS = (
    "{subject} is {relation} {object}",
    "{subject} {relation} {object}",
    "there is {subject} {relation} {object}",
    "{relation} {object} there is {subject}",
    "{subject} sits {relation} {object}",
    "you can see {subject} {relation} {object}",
)
PLACEMENT_FORMS = ("{subject} is {place}", "{place} there is {subject}", "{subject} lies {place}")
JOINTS = (" and ", ", and ", ", while ", ", ")
LIST_FORMS = (" with {things}", ", together with {things}", " and also {things}", ", plus {things}")
COUNT_FORMS = ("{count} shapes: ", "a picture of {count} things: ", "{count} things, ", "here are {count} shapes: ")
GROUND_FORMS = ("on {ground} {text}", "on the {ground}, {text}", "{text}, on {ground}", "{text}, all on the {ground}")

# First slots in a wording: three slots for each mention (size, colour, shape), then these.
_RELATION_SLOT, _FORM_SLOT, _PLACE_SLOT, _JOINT_SLOT = 12, 16, 20, 24
_LIST_SLOT, _COUNT_SLOT, _GROUND_SLOT = 28, 29, 30
NUM_SLOTS = 31

Wording = tuple[float, ...]
"""`NUM_SLOTS` numbers in [0, 1), each choosing among the synonyms or forms of its slot."""

COLOUR_SHARE, SIZE_SHARE, GROUND_SHARE, COUNT_SHARE = 0.95, 0.4, 0.45, 0.2
ALL_THINGS_SHARE = 0.8
"""Fraction of captions that mention every thing in the scene; the others omit one."""


@dataclass(frozen=True)
class SceneCaption:
    """A caption with its meaning, from which rewrites are made."""

    text: str
    description: Description
    wording: Wording


def make_caption(description: Description, wording: Wording) -> SceneCaption:
    return SceneCaption(render(description, wording), description, wording)


def sample_wording(randomness: random.Random) -> Wording:
    return tuple(randomness.random() for _ in range(NUM_SLOTS))


def sample_caption(
    scene: Scene, randomness: random.Random, *, max_words: int = 25, all_things: bool = False
) -> SceneCaption:
    """A true caption of the scene, 8 to `max_words` words long.

    all_things: mention every thing.
    """
    while True:
        caption = make_caption(describe(scene, randomness, all_things=all_things), sample_wording(randomness))
        if 8 <= caption.text.count(" ") + 1 <= max_words:
            return caption


def describe(scene: Scene, randomness: random.Random, *, all_things: bool = False) -> Description:
    """A true description of the scene: some of its things, their attributes, relations and places, the ground, their number."""
    count = len(scene.things)
    said = count if count == 2 or all_things or randomness.random() < ALL_THINGS_SHARE else count - 1
    things = randomness.sample(scene.things, said)
    shapes = [thing.shape for thing in scene.things]
    mentions = tuple(
        Mention(
            thing.shape,
            # A colour may be omitted only if the shape is unique.
            thing.colour if shapes.count(thing.shape) > 1 or randomness.random() < COLOUR_SHARE else None,
            thing.size if randomness.random() < SIZE_SHARE else None,
        )
        for thing in things
    )
    relations: list[Relation] = []
    placements: list[Placement] = []
    for at in range(1, said):
        before = randomness.randrange(at)
        true_relations = [
            name for name in RELATIONS if related(things[before], name, things[at], distance=CLEARLY_TRUE)
        ]
        chance = randomness.random()
        if at == 1 or chance < 0.45:
            name = randomness.choice(true_relations)
            relation = Relation(before, name, at)
            relations.append(relation if randomness.random() < 0.5 else inverse(relation))
        elif chance < 0.7:
            true_places = [place for place in PLACES if placed(things[at], place, margin=PLACE_MARGIN)]
            if true_places:
                placements.append(Placement(at, randomness.choice(true_places)))
    return Description(
        mentions,
        tuple(relations),
        tuple(placements),
        scene.ground if randomness.random() < GROUND_SHARE else None,
        count if randomness.random() < COUNT_SHARE else None,
    )


def inverse(relation: Relation) -> Relation:
    """The same fact with subject and object exchanged."""
    return Relation(relation.object, INVERSE[relation.name], relation.subject)


def render(description: Description, wording: Wording) -> str:
    """The description in words: lower case, no full stop."""
    known: set[int] = set()
    clauses: list[str] = []

    def name(at: int) -> str:
        first_time = at not in known
        known.add(at)
        return _indefinite(description, at, wording) if first_time else _definite(description, at, wording)

    for number, relation in enumerate(description.relations):
        # Only the first clause varies in form: forms without a verb are hard to join.
        form = _pick(RELATION_FORMS, wording[_FORM_SLOT]) if not clauses else RELATION_FORMS[0]
        words = {"relation": _word(relation.name, wording[_RELATION_SLOT + number])}
        # Name things in the order of the form, since the first mention takes "a", later ones "the".
        order = sorted(("subject", "object"), key=form.index)
        words |= {role: name(getattr(relation, role)) for role in order}
        clauses.append(form.format(**words))
    for number, placement in enumerate(description.placements):
        form = _pick(PLACEMENT_FORMS, wording[_PLACE_SLOT + number])
        place = _word(placement.place, wording[_PLACE_SLOT + number] * 7 % 1)
        clauses.append(form.format(subject=name(placement.subject), place=place))
    text = clauses[0] if clauses else ""
    for number, clause in enumerate(clauses[1:]):
        text += _pick(JOINTS, wording[_JOINT_SLOT + number]) + clause
    rest = [name(at) for at in range(len(description.mentions)) if at not in known]
    if rest:
        things = " and ".join([", ".join(rest[:-1]), rest[-1]]) if len(rest) > 1 else rest[0]
        text = text + _pick(LIST_FORMS, wording[_LIST_SLOT]).format(things=things) if text else things
    if description.count is not None:
        text = _pick(COUNT_FORMS, wording[_COUNT_SLOT]).format(count=COUNT_WORDS[description.count]) + text
    if description.ground is not None:
        text = _pick(GROUND_FORMS, wording[_GROUND_SLOT]).format(ground=description.ground, text=text)
    return text


def _pick(choices: tuple[str, ...], chance: float) -> str:
    return choices[int(chance * len(choices))]


def _word(concept: str, chance: float) -> str:
    return _pick(WORDS.get(concept, (concept,)), chance)


def _spoken(mention: Mention, at: int, wording: Wording, *, size: bool, colour: bool) -> str:
    words = []
    if size and mention.size is not None:
        words.append(_word(mention.size, wording[3 * at]))
    if colour and mention.colour is not None:
        words.append(_word(mention.colour, wording[3 * at + 1]))
    return " ".join([*words, _word(mention.shape, wording[3 * at + 2])])


def _indefinite(description: Description, at: int, wording: Wording) -> str:
    spoken = _spoken(description.mentions[at], at, wording, size=True, colour=True)
    return f"an {spoken}" if spoken[0] in "aeiou" else f"a {spoken}"


def _definite(description: Description, at: int, wording: Wording) -> str:
    """The shortest name that distinguishes this mention: `the star`, or `the red star`, or with size too."""
    mention = description.mentions[at]
    others = [other for number, other in enumerate(description.mentions) if number != at]
    colour = any(other.shape == mention.shape for other in others)
    size = colour and any((other.shape, other.colour) == (mention.shape, mention.colour) for other in others)
    return f"the {_spoken(mention, at, wording, size=size, colour=colour)}"


def sample_text(scene: Scene, randomness: random.Random) -> str:
    """One or two sentences about a scene, for the text-only part: longer than captions, some with an inferred fact."""
    caption = sample_caption(scene, randomness, all_things=True)
    chance = randomness.random()
    if chance < 0.5:
        return caption.text
    if chance < 0.7:
        relation = inverse(caption.description.relations[0])
        names = [_definite(caption.description, at, caption.wording) for at in (relation.subject, relation.object)]
        words = _word(relation.name, randomness.random())
        return f"{caption.text}. so {names[0]} is {words} {names[1]}"
    return f"{caption.text}. {sample_caption(scene, randomness, max_words=18).text}"
