"""Texts in batches of about one length, so that little is padded; the results in the order of the texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unimo_ds.data.prepare.translation.protocol import one_line


def in_batches(texts: Sequence[str], size: int, function: Callable[[list[str]], list[list[str]]]) -> list[list[str]]:
    """`function` of every text, `size` at a time, longest first (what does not fit into memory fails at once)."""
    lines = [one_line(text) for text in texts]
    order = sorted((i for i, line in enumerate(lines) if line), key=lambda i: (-len(lines[i]), i))
    found: list[list[str]] = [[] for _ in texts]
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        for i, result in zip(numbers, function([lines[i] for i in numbers]), strict=True):
            found[i] = [text for text in result if text]
    return found
