"""Translators, and two of them as a way there and back: a caption comes back in other words (UNIMO, section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from unimo_ds.utils.batched import batched


class Translator(Protocol):
    """Translates one way. Deterministic: equal lists of texts give equal translations."""

    def translate(self, texts: Sequence[str], *, number: int = 1) -> list[list[str]]:
        """Of each text up to `number` translations, the best first; none where it could not be translated.

        A text is one line; what comes back has no line breaks either.
        """
        ...


@dataclass(frozen=True)
class Pivot:
    """Another language, there and back."""

    name: str
    """Tool and language or models, kept with every positive ("marian opus-mt-en-de")."""
    there: Translator
    back: Translator
    is_trusted: bool
    """Whether its translations mean what the text means as a rule; of others only what is checked closely is taken."""

    def around(self, texts: Sequence[str], *, number: int = 1) -> list[list[str]]:
        """Of each text up to `number` versions that have been there (the best translation) and back."""
        there = self.there.translate(texts)
        met = [i for i, found in enumerate(there) if found]
        returned = self.back.translate([there[i][0] for i in met], number=number) if met else []
        versions: list[list[str]] = [[] for _ in texts]
        for i, found in zip(met, returned, strict=True):
            versions[i] = found
        return versions


def one_line(text: str) -> str:
    """The text without line breaks and doubled spaces."""
    return " ".join(text.split())


def in_batches(texts: Sequence[str], size: int, function: Callable[[list[str]], list[list[str]]]) -> list[list[str]]:
    """`function` of every text, in the order of the texts.

    It is given `size` at a time, of about one length, so that little is padded, the longest first: what does not fit into memory
    fails at once.
    """
    lines = [one_line(text) for text in texts]
    order = sorted((i for i, line in enumerate(lines) if line), key=lambda i: (-len(lines[i]), i))
    found: list[list[str]] = [[] for _ in texts]
    for numbers in batched(order, size):
        for i, result in zip(numbers, function([lines[i] for i in numbers]), strict=True):
            found[i] = [text for text in result if text]
    return found
