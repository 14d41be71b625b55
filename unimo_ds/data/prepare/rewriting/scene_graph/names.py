"""Names of people, places and works, recognised by their capitals."""

from __future__ import annotations

import re

from unimo_ds.data.prepare.rewriting.word_classes import FUNCTION_WORDS

_WORD = re.compile(r"[^\W\d_][\w'’.-]*[^\W_]|[^\W\d_]")
_INSIDE = frozenset(("of", "the", "de", "la", "von", "van", "der", "del", "di", "and", "&"))
"""Small words within a name: "Bank of England"."""
_MOST_CAPITALS = 0.75
_SENTENCE_END = re.compile(r"[.!?:;\"“”()\n]\s*$")


def names_in(text: str) -> tuple[tuple[int, int], ...]:
    """Characters [start, end) of each name: adjacent capitalised words, including small words between them.

    The first word of a sentence belongs to a name only if a capitalised word follows directly and it is not a function word. In
    a text with capitals everywhere no names are found.
    """
    words = list(_WORD.finditer(text))
    capital = [match.group()[0].isupper() for match in words]
    if not words or _is_everywhere(capital):
        return ()
    found = []
    i = 0
    while i < len(words):
        if not capital[i] or (_opens_sentence(text, words[i].start()) and not _goes_on(text, words, capital, i)):
            i += 1
            continue
        last = i
        j = i + 1
        while j < len(words) and _side_by_side(text, words, j):
            if capital[j]:
                last = j
            elif words[j].group() not in _INSIDE or j - last > 2:
                break
            j += 1
        if words[i].group().lower() not in FUNCTION_WORDS or last > i:
            found.append((words[i].start(), words[last].end()))
        i = last + 1
    return tuple(found)


def is_by_place(text: str, start: int) -> bool:
    """Whether a capital at `start` is due to its place: it starts a sentence, or capitals are everywhere."""
    return _opens_sentence(text, start) or _is_everywhere([word[0].isupper() for word in _WORD.findall(text)])


def _is_everywhere(capital: list[bool]) -> bool:
    return sum(capital) > _MOST_CAPITALS * len(capital)


def _side_by_side(text: str, words: list[re.Match[str]], j: int) -> bool:
    """Whether word j directly follows the previous word, or an initial such as "J."."""
    between = text[words[j - 1].end() : words[j].start()]
    return between == " " or (between == ". " and len(words[j - 1].group()) == 1)


def _opens_sentence(text: str, start: int) -> bool:
    before = text[:start].rstrip(" '\"“‘(")
    return not before or bool(_SENTENCE_END.search(before))


def _goes_on(text: str, words: list[re.Match[str]], capital: list[bool], i: int) -> bool:
    return (
        words[i].group().lower() not in FUNCTION_WORDS
        and i + 1 < len(words)
        and capital[i + 1]
        and text[words[i].end() : words[i + 1].start()] == " "
    )
