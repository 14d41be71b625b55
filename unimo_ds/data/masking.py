"""Masked language (paper section 2.3): the words of a text, and which of them are hidden.

Letters: n text tokens without specials, w words. Words are given by `Vocabulary.starts_word`: a piece that starts with white
space and the pieces that continue it. Words are never cut, specials never chosen.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from unimo_ds.config import MaskingConfig
from unimo_ds.data.draws import Uniforms, ranges

Tokens = NDArray[np.int32]


class WordTable(Protocol):
    """The part of a tokenizer used here."""

    mask_id: int

    @property
    def starts_word(self) -> NDArray[np.bool_]: ...

    @property
    def special(self) -> NDArray[np.bool_]: ...

    @property
    def num_bytes(self) -> NDArray[np.int32]: ...


@dataclass(frozen=True)
class Vocabulary:
    """Tables over token ids that masking uses."""

    starts_word: NDArray[np.bool_]
    """[V] True if a token starts a new word."""
    special: NDArray[np.bool_]
    """[V] True for tokens that are never masked, predicted or drawn as replacements."""
    ordinary: Tokens
    """The other ids: candidates for random replacement."""
    mask_id: int
    num_bytes: NDArray[np.int32]
    """[V] bytes of text of each token."""

    @classmethod
    def of(cls, tokenizer: WordTable) -> Vocabulary:
        special = np.asarray(tokenizer.special, bool)
        return cls(
            starts_word=np.asarray(tokenizer.starts_word, bool),
            special=special,
            ordinary=np.flatnonzero(~special).astype(np.int32),
            mask_id=tokenizer.mask_id,
            num_bytes=np.asarray(tokenizer.num_bytes, np.int32),
        )


class Words(NamedTuple):
    """Positions of the words of a text. A phrase, if given, counts as one word."""

    bounds: list[int]
    """[w + 1] offset of each word's first token, and n at the end."""
    is_special: list[bool] | None
    """[w] True for words that are specials; None if none is."""
    phrases: frozenset[int] = frozenset()
    """Numbers of the words that are phrases of several words."""


LONGEST_WORD = 8
"""Tokens. Links, numbers and scripts without spaces would otherwise be one word each, masked whole without any context."""


def words_of(tokens: Tokens, vocabulary: Vocabulary, phrases: Sequence[tuple[int, int]] = ()) -> Words:
    """The words of a text [n]. A special is a word of its own, and a word longer than LONGEST_WORD is split.

    phrases: byte ranges [start, end) whose words are joined, sorted and disjoint; phrases of more than LONGEST_WORD tokens, or
    cut by the end of the text, stay single words.
    """
    if not len(tokens):
        return Words([0], None)
    is_start, is_special = vocabulary.starts_word[tokens], vocabulary.special[tokens]
    is_start[0] = True
    any_special = bool(is_special.any())
    if any_special:
        is_start |= is_special
        is_start[1:] |= is_special[:-1]
    starts = is_start.nonzero()[0]
    lengths = np.diff(starts, append=len(tokens))
    if lengths.max() > LONGEST_WORD:
        parts = -(-lengths // LONGEST_WORD)
        starts = ranges(np.zeros(len(starts), np.int64), parts) * LONGEST_WORD + np.repeat(starts, parts)
    words = Words([*starts.tolist(), len(tokens)], is_special[starts].tolist() if any_special else None)
    if not phrases or any_special:
        return words
    return _joined(words, np.cumsum(vocabulary.num_bytes[tokens]), phrases)


def _joined(words: Words, ends: NDArray[np.int32], phrases: Sequence[tuple[int, int]]) -> Words:
    """The words, with those of each phrase joined. ends: [n] end of each token, in bytes."""
    bounds = words.bounds
    byte_of = [0, *ends[np.array(bounds[1:]) - 1].tolist()]
    kept: list[int] = []
    joined: set[int] = set()
    word = 0
    for start, end in phrases:
        first = bisect.bisect_right(byte_of, start) - 1
        last = bisect.bisect_left(byte_of, end)
        if first < word or last >= len(bounds) or last - first < 2 or bounds[last] - bounds[first] > LONGEST_WORD:
            continue
        kept += bounds[word : first + 1]
        joined.add(len(kept) - 1)
        word = last
    return Words(kept + bounds[word:], None, frozenset(joined))


def budget(num_tokens: int, share: float) -> int:
    """How many of the tokens an objective takes: the share, rounded up. 0.15 of 20 is 3 despite binary rounding."""
    return math.ceil(share * num_tokens - 1e-9)


@functools.lru_cache(maxsize=8)
def _span_length_steps(probability: float, longest: int) -> list[float]:
    weights = probability * (1 - probability) ** np.arange(longest + 1)
    steps: list[float] = (np.cumsum(weights)[:-1] / weights.sum()).tolist()
    return steps


def span_length(number: float, *, probability: float, longest: int) -> int:
    """Span length in words for a number in [0, 1): k in 0..longest with weight p (1 - p)^k; mean 2.97 at 0.2 and 10.

    Length 0 still masks one word.
    """
    return bisect.bisect_right(_span_length_steps(probability, longest), number)


def choose_spans(words: Words, *, masking: MaskingConfig, draws: Uniforms) -> list[int]:
    """Tokens to predict, as sorted offsets: whole words in spans, until `masking.language_share` of the tokens is reached.

    The first unit is always taken, and the last word is taken whole. A phrase larger than what is left of the share is taken
    with probability left / size, and otherwise ends the search, so that phrases add little. Spans start at the word of a token
    drawn uniformly (as in the released sampler) and end early at a word already taken.
    """
    bounds = words.bounds
    num_tokens, num_words = bounds[-1], len(bounds) - 1
    wanted = budget(num_tokens, masking.language_share)
    is_taken = [False] * num_words
    if words.is_special is not None:
        is_taken = list(words.is_special)
        sizes = zip(itertools.pairwise(bounds), is_taken, strict=True)
        wanted = min(wanted, sum(end - start for (start, end), taken in sizes if not taken))
    chosen: list[int] = []
    while len(chosen) < wanted:
        word = bisect.bisect_right(bounds, draws.below(num_tokens)) - 1
        length = span_length(next(draws), probability=masking.span_probability, longest=masking.max_span_words)
        for taken in range(word, min(word + max(length, 1), num_words)):
            if is_taken[taken] or len(chosen) >= wanted:
                break
            left, size = wanted - len(chosen), bounds[taken + 1] - bounds[taken]
            if taken in words.phrases and chosen and size > left and next(draws) * size >= left:
                return sorted(chosen)
            is_taken[taken] = True
            chosen.extend(range(bounds[taken], bounds[taken + 1]))
    chosen.sort()
    return chosen


def mask_tokens(
    tokens: Tokens,
    *,
    vocabulary: Vocabulary,
    masking: MaskingConfig,
    draws: Uniforms,
    phrases: Sequence[tuple[int, int]] = (),
) -> tuple[Tokens, Tokens]:
    """Masked-language corruption of a text (paper 2.3, bidirectional prediction).

    tokens: [n] without specials. phrases: see `words_of`. Returns the corrupted tokens [n] and the sorted offsets [m] to
    predict. Of these, each by itself becomes [MASK] or a random token, with the configured shares, or stays.
    """
    chosen = choose_spans(words_of(tokens, vocabulary, phrases), masking=masking, draws=draws)
    corrupted = tokens.copy()
    for offset in chosen:
        fate = next(draws)
        if fate < masking.mask_token_share:
            corrupted[offset] = vocabulary.mask_id
        elif fate < masking.mask_token_share + masking.random_token_share:
            corrupted[offset] = vocabulary.ordinary[draws.below(len(vocabulary.ordinary))]
    return corrupted, np.array(chosen, np.int32)
