"""Locates a parser's words in the caption, for parsers that give only words ("dog , sit next to , bench")."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unimo_ds.data.prepare.rewriting.scene_graph import wordnet
from unimo_ds.data.prepare.rewriting.scene_graph.tagging import Token

_GAP = 2
"""Caption words allowed between two of the parser's ("on their backs" for "on backs")."""


def find(
    tokens: Sequence[Token], words: Sequence[str], is_free: Callable[[int, int], bool], *, near: int = 0
) -> tuple[int, int] | None:
    """Tokens [start, end) that match the words in any inflection: the first free ones after `near`, preferably contiguous.

    None if the caption does not contain them.
    """
    if not words:
        return None
    for gap in (0, _GAP):
        found = [
            place for start in range(len(tokens)) if (place := _match(tokens, start, words, gap)) and is_free(*place)
        ]
        if found:
            return min(found, key=lambda place: (place[0] < near, abs(place[0] - near)))
    return None


def _match(tokens: Sequence[Token], start: int, words: Sequence[str], gap: int) -> tuple[int, int] | None:
    at = start
    for number, word in enumerate(words):
        limit = at + 1 + (gap if number else 0)
        while at < min(limit, len(tokens)) and not is_form(tokens[at].word, word):
            at += 1
        if at >= min(limit, len(tokens)):
            return None
        at += 1
    return start, at


def is_form(said: str, word: str) -> bool:
    """Whether both are forms of the same word."""
    if said == word:
        return True
    lexicon = wordnet.load()
    return any(set(lexicon.bases(said, part)) & set(lexicon.bases(word, part)) for part in ("n", "v", "a"))
