"""Tokens that may not be generated: specials, an end token too early, and those that would repeat a word n-gram.

UNIMO's summaries block n-grams of whole words, however they are split into pieces; transformers' `no_repeat_ngram_size` counts
pieces, so it also forbids a second occurrence of a name of three pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor


def split_words(tokens: Sequence[int], starts_word: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """The pieces of each word. The first token always starts a word."""
    words: list[list[int]] = []
    for token in tokens:
        if not words or starts_word[token]:
            words.append([])
        words[-1].append(token)
    return [tuple(word) for word in words]


def repeating_tokens(tokens: Sequence[int], starts_word: NDArray[np.bool_], *, size: int) -> set[int]:
    """Tokens that, appended to `tokens`, would repeat a word n-gram of `size`.

    A token is forbidden only if it makes the last word equal to a complete earlier word; a longer word that starts with that
    word can still be generated if its pieces differ before the last one.
    """
    words = split_words(tokens, starts_word)
    forbidden: set[int] = set()
    for first in range(len(words) - size + 1):
        *before, last = words[first : first + size]
        # The last word of `tokens` may be complete (the next token starts a word) or continue with the next token.
        is_begun = len(last) == 1 and bool(starts_word[last[0]])
        if is_begun and words[len(words) - size + 1 :] == before:
            forbidden.add(last[0])
        is_earlier = len(last) > 1 and first + size < len(words)
        if is_earlier and words[len(words) - size :] == [*before, last[:-1]]:
            forbidden.add(last[-1])
    return forbidden


class Forbidden(LogitsProcessor):  # type: ignore[misc]
    """Forbids some tokens always, and the end token before `min_tokens` tokens, [CLS] not counted.

    transformers' own processors for this compare every score of every row with the list: a sixth of a small model's time.
    """

    def __init__(self, tokens: Sequence[int], *, end_id: int, min_tokens: int) -> None:
        self.always = torch.tensor(tokens, dtype=torch.int64)
        self.early = torch.tensor([*tokens, end_id], dtype=torch.int64)
        self.min_tokens = min_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids: [R, t]. scores: [R, V], changed in place: generation passes a copy."""
        numbers = self.early if input_ids.shape[1] - 1 < self.min_tokens else self.always
        return scores.index_fill_(1, numbers.to(scores.device), -torch.inf)


class NoRepeatedWords(LogitsProcessor):  # type: ignore[misc]
    """Forbids `repeating_tokens` in every row. The first id of a row is [CLS], not a word."""

    def __init__(self, size: int, starts_word: NDArray[np.bool_]) -> None:
        """
        Raises:
            ValueError: a size below 1.
        """
        if size < 1:
            raise ValueError(f"n-grams of {size} words cannot repeat")
        self.size, self.starts_word = size, starts_word

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids: [R, t]. scores: [R, V]."""
        scores = scores.clone()
        for row, tokens in enumerate(input_ids[:, 1:].tolist()):
            forbidden = repeating_tokens(tokens, self.starts_word, size=self.size)
            if forbidden:
                scores[row, list(forbidden)] = -torch.inf
        return scores
