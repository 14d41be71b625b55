"""Chooses which back-translations of a caption become positives, and counts why others do not."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from unimo_ds.data.prepare.rewriting import word_classes
from unimo_ds.data.prepare.rewriting.scene_graph.rules import parse_caption
from unimo_ds.data.prepare.rewriting.translation.meaning import closeness, is_same_meaning
from unimo_ds.data.prepare.rewriting.translation.protocol import Pivot
from unimo_ds.data.prepare.rewriting.translation.wording import UsualPairs
from unimo_ds.data.schema import Level, Rewrite

MIN_CLOSENESS = 0.5
"""Fraction of content words that must be preserved (`meaning.closeness`)."""
_MIN_WORDS = 3
_MIN_LENGTH = 0.5
"""As a fraction of the caption's number of words."""


def back_translate(
    captions: Sequence[str],
    *,
    taken: Sequence[frozenset[str]],
    pivots: Sequence[Pivot],
    number: int,
    usual: UsualPairs,
) -> tuple[list[tuple[Rewrite, ...]], Counter[str]]:
    """Up to `number` positives for each caption, and numbers of versions kept or rejected, by reason.

    taken: normalised texts that are not allowed for each caption (the captions of its image). Versions are tried in turn over
    the pivots, best first.
    """
    found = [pivot.around(captions, number=number if pivot.is_trusted else 1) for pivot in pivots]
    counts: Counter[str] = Counter()
    kept: list[tuple[Rewrite, ...]] = []
    for i, caption in enumerate(captions):
        counts["not translated"] += sum(not of_pivot[i] for of_pivot in found)
        in_turn = itertools.zip_longest(*(of_pivot[i] for of_pivot in found))
        versions = [
            (pivot, text) for turn in in_turn for pivot, text in zip(pivots, turn, strict=True) if text is not None
        ]
        chosen: list[Rewrite] = []
        known = {*taken[i], word_classes.normal(caption)}
        for pivot, text in versions:
            reason = "spare" if len(chosen) == number else _fault(caption, text, known, pivot, usual)
            counts[reason or f"kept, {pivot.name}"] += 1
            if reason is None:
                known.add(word_classes.normal(text))
                chosen.append(Rewrite(text, Level.NONE, pivot.name))
        kept.append(tuple(chosen))
    return kept, counts


def _fault(caption: str, text: str, known: set[str], pivot: Pivot, usual: UsualPairs) -> str | None:
    """Why a version is not a positive; None: it is."""
    num_words, own_words = len(word_classes.words_of(text)), len(word_classes.words_of(caption))
    if word_classes.normal(text) in known:
        return "identical"
    if num_words < max(_MIN_WORDS, _MIN_LENGTH * own_words):
        return "too short"
    if closeness(caption, text) < MIN_CLOSENESS:
        return "too far"
    if not pivot.is_trusted:
        if not usual.allow(caption, text):
            return "unusual wording"
        if not is_same_meaning(parse_caption(caption), parse_caption(text)):
            return "meaning not kept"
    return None
