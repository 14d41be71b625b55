"""Long documents in pieces that fit the model, without losing a character."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from unimo_ds.data.prepare.sources import cut_text
from unimo_ds.data.tokenizer import Tokenizer

MAX_TEXT_TOKENS = 510
"""512 positions less [CLS] and [SEP]."""
_BATCH = 1024


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
    for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
        if len(ids) <= max_tokens:
            yield text
        else:
            yield from cut(text, tokenizer, max_tokens=max_tokens)


def cut(text: str, tokenizer: Tokenizer, *, max_tokens: int) -> Iterator[str]:
    """Pieces of at most `max_tokens` tokens."""
    # A token is at most a few dozen characters in any text worth keeping; encoding a bounded window keeps long documents linear.
    window = 16 * max_tokens
    rest = text.strip()
    while rest:
        offsets = tokenizer.inner.encode(rest[:window], add_special_tokens=False).offsets
        if len(offsets) <= max_tokens and len(rest) <= window:
            yield rest
            return
        allowed = min(max_tokens, len(offsets) - 1)
        while True:
            end = cut_text(rest[:window], offsets, max_tokens=allowed)
            piece = rest[:end].rstrip()
            # A piece alone may split into a token or two more than it had within the text.
            if allowed == 1 or len(tokenizer.encode(piece)) <= max_tokens:
                break
            allowed -= 1
        if piece:
            yield piece
        rest = rest[end:].lstrip()
