"""Several texts as one input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unimo_ds.data.masking import Tokens
from unimo_ds.data.schema import CLS, SEP


def join_texts(texts: Sequence[Tokens], *, max_text_tokens: int) -> Tokens:
    """[CLS] A [SEP] (B [SEP] ...); tokens are cut off the end of the longest text until all fit."""
    kept = [len(text) for text in texts]
    room = max_text_tokens - 1 - len(texts)
    for _ in range(max(0, sum(kept) - room)):
        kept[kept.index(max(kept))] -= 1
    parts: list[Any] = [[CLS]]
    for text, length in zip(texts, kept, strict=True):
        parts += [text[:length], [SEP]]
    return np.concatenate(parts).astype(np.int32)
