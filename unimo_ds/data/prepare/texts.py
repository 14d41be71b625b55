"""Splits long documents into pieces that fit the model, without losing text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.utils.batched import batched

MAX_TEXT_TOKENS = 510
"""512 positions less [CLS] and [SEP]."""
_BATCH = 1024
_SURELY_LONG = 2**20
"""Characters; a longer text surely has more than `max_tokens` tokens."""
_SENTENCE_END = re.compile(r"[.!?;:]['\")\]]*\s")


def pieces(texts: Iterable[str], tokenizer: Tokenizer, *, max_tokens: int = MAX_TEXT_TOKENS) -> Iterator[str]:
    """Each text as a whole if it has at most `max_tokens` tokens, otherwise in pieces, cut at sentences or words.

    Only white space at the cuts is dropped.
    """
    for batch in batched(texts, _BATCH):
        # Never encode a book on one line as a whole.
        encoded = tokenizer.encode_batch([text if len(text) <= _SURELY_LONG else "" for text in batch])
        for text, ids in zip(batch, encoded, strict=True):
            if len(text) <= _SURELY_LONG and len(ids) <= max_tokens:
                yield text
            else:
                yield from cut(text, tokenizer, max_tokens=max_tokens)


def cut(text: str, tokenizer: Tokenizer, *, max_tokens: int) -> Iterator[str]:
    """Pieces of at most `max_tokens` tokens."""
    # A token has at most a few dozen characters in any text worth keeping; encoding a bounded window keeps time linear.
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
            # Encoded alone, a piece may have one or two tokens more than within the text.
            if allowed == 1 or len(tokenizer.encode(piece)) <= max_tokens:
                break
            allowed -= 1
        if piece:
            yield piece
        start += end
        while text[start : start + 1].isspace():
            start += 1


def _end_of_piece(text: str, offsets: Sequence[tuple[int, int]], *, max_tokens: int) -> int:
    """End of the first piece, as a character offset, of a text with more than `max_tokens` tokens.

    offsets: [n] character range of each token. The piece ends after a sentence if one ends in the second half of the window,
    otherwise between words, otherwise between characters.
    """
    window = max(offsets[max_tokens][0], 1)
    ends = [match.end() for match in _SENTENCE_END.finditer(text, 0, window)]
    if ends and ends[-1] > window // 2:
        return ends[-1]
    space = max(text.rfind(mark, 1, window + 1) for mark in " \t\n")
    return space if space > 0 else window
