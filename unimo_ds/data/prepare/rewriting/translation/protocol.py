"""Translators, and pairs of them for back-translation: a caption comes back in other words (UNIMO, section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from unimo_ds.utils.batched import batched


class Translator(Protocol):
    """Translates in one direction. Deterministic: equal lists of texts give equal translations."""

    def translate(self, texts: Sequence[str], *, number: int = 1) -> list[list[str]]:
        """Up to `number` translations per text, best first; none if it could not be translated.

        Texts and translations are single lines.
        """
        ...


@dataclass(frozen=True)
class Pivot:
    """Translation into another language and back."""

    name: str
    """Tool and language or models, stored with every positive ("marian opus-mt-en-de")."""
    there: Translator
    back: Translator
    is_trusted: bool
    """Whether its translations usually preserve the meaning; others undergo closer checks."""

    def around(self, texts: Sequence[str], *, number: int = 1) -> list[list[str]]:
        """Up to `number` back-translations per text, all from its best translation there."""
        there = self.there.translate(texts)
        met = [i for i, found in enumerate(there) if found]
        returned = self.back.translate([there[i][0] for i in met], number=number) if met else []
        versions: list[list[str]] = [[] for _ in texts]
        for i, found in zip(met, returned, strict=True):
            versions[i] = found
        return versions


def one_line(text: str) -> str:
    """The text without line breaks and repeated spaces."""
    return " ".join(text.split())


def in_batches(texts: Sequence[str], size: int, function: Callable[[list[str]], list[list[str]]]) -> list[list[str]]:
    """Results of `function` for all texts, in their order.

    It gets `size` texts at a time, of similar length to need little padding, and the longest first: if memory does not suffice,
    it fails at once.
    """
    lines = [one_line(text) for text in texts]
    order = sorted((i for i, line in enumerate(lines) if line), key=lambda i: (-len(lines[i]), i))
    found: list[list[str]] = [[] for _ in texts]
    for numbers in batched(order, size):
        for i, result in zip(numbers, function([lines[i] for i in numbers]), strict=True):
            found[i] = [text for text in result if text]
    return found
