"""Long documents in pieces that fit the model, without losing a character."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from unimo_ds.data.tokenizer import Tokenizer

MAX_TEXT_TOKENS = 510
"""512 positions less [CLS] and [SEP]."""
_BATCH = 1024
_SURELY_LONG = 2**20
"""Characters that are more than any text of so many tokens has."""
_SENTENCE_END = re.compile(r"[.!?;:]['\")\]]*\s")


def pieces(texts: Iterable[str], tokenizer: Tokenizer, *, max_tokens: int = MAX_TEXT_TOKENS) -> Iterator[str]:
    """Each text whole where it has at most `max_tokens` tokens, else in pieces cut at sentences or words.

    Only white space at the cuts is dropped.
    """
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield from _pieces_of_batch(batch, tokenizer, max_tokens)
            batch = []
    yield from _pieces_of_batch(batch, tokenizer, max_tokens)


def _pieces_of_batch(batch: list[str], tokenizer: Tokenizer, max_tokens: int) -> Iterator[str]:
    # A book on one line is never encoded as a whole.
    encoded = tokenizer.encode_batch([text if len(text) <= _SURELY_LONG else "" for text in batch])
    for text, ids in zip(batch, encoded, strict=True):
        if len(text) <= _SURELY_LONG and len(ids) <= max_tokens:
            yield text
        else:
            yield from cut(text, tokenizer, max_tokens=max_tokens)


def cut(text: str, tokenizer: Tokenizer, *, max_tokens: int) -> Iterator[str]:
    """Pieces of at most `max_tokens` tokens."""
    # A token is at most a few dozen characters in any text worth keeping; encoding a bounded window keeps long documents linear.
    size = 16 * max_tokens
    text = text.strip()
    start = 0
    while start < len(text):
        window = text[start : start + size]
        offsets = tokenizer.inner.encode(window, add_special_tokens=False).offsets
        if len(offsets) <= max_tokens and start + size >= len(text):
            yield window
            return
        allowed = min(max_tokens, len(offsets) - 1)
        while True:
            end = _end_of_piece(window, offsets, max_tokens=allowed)
            piece = window[:end].rstrip()
            # A piece alone may split into a token or two more than it had within the text.
            if allowed == 1 or len(tokenizer.encode(piece)) <= max_tokens:
                break
            allowed -= 1
        if piece:
            yield piece
        start += end
        while text[start : start + 1].isspace():
            start += 1


def _end_of_piece(text: str, offsets: Sequence[tuple[int, int]], *, max_tokens: int) -> int:
    """Where to end the first piece of a text of more than `max_tokens` tokens, as a character offset.

    offsets: [n] first and last character of each token. The piece ends behind a sentence where the later half of the window
    has one, else between words, else between characters.
    """
    window = max(offsets[max_tokens][0], 1)
    ends = [match.end() for match in _SENTENCE_END.finditer(text, 0, window)]
    if ends and ends[-1] > window // 2:
        return ends[-1]
    space = max(text.rfind(mark, 1, window + 1) for mark in " \t\n")
    return space if space > 0 else window
