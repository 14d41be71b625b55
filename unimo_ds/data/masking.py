"""Corruption of inputs (paper sections 2.2 and 2.3; details in docs/choices.md), as pure functions of their arguments.

Letters: n text tokens without specials, w words, R regions. A word is what `Vocabulary.starts_word` says: a piece that begins
with white space and the pieces that continue it. Words are never cut, specials never chosen.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unimo_ds.config import MaskingConfig
from unimo_ds.data.draws import Integers, mix_many
from unimo_ds.data.schema import CLS, FIRST_POSITION, SEP

Tokens = NDArray[np.int32]

_FRAGMENT = 0x66726167
"""Keeps the keys of fragment lengths apart from a sequence's other draws."""


class WordTable(Protocol):
    """What is asked of a tokenizer here."""

    mask_id: int

    @property
    def starts_word(self) -> NDArray[np.bool_]: ...

    @property
    def special(self) -> NDArray[np.bool_]: ...


@dataclass(frozen=True)
class Vocabulary:
    """Tables over token ids that masking looks things up in."""

    starts_word: NDArray[np.bool_]
    """[V] True where a token begins a new word."""
    special: NDArray[np.bool_]
    """[V] True for tokens that are never masked, predicted or drawn as replacements."""
    ordinary: Tokens
    """The other ids: candidates of random replacement."""
    mask_id: int

    @classmethod
    def of(cls, tokenizer: WordTable) -> Vocabulary:
        special = np.asarray(tokenizer.special, bool)
        return cls(
            starts_word=np.asarray(tokenizer.starts_word, bool),
            special=special,
            ordinary=np.flatnonzero(~special).astype(np.int32),
            mask_id=tokenizer.mask_id,
        )


def word_bounds(tokens: Tokens, vocabulary: Vocabulary) -> list[int]:
    """Offsets at which words start, and n at the end: w + 1 numbers. A special is a word of its own."""
    if not len(tokens):
        return [0]
    is_start = vocabulary.starts_word[tokens]
    is_special = vocabulary.special[tokens]
    if is_special.any():
        is_start |= is_special
        is_start[1:] |= is_special[:-1]
    is_start[0] = True
    bounds: list[int] = np.flatnonzero(is_start).tolist()
    bounds.append(len(tokens))
    return bounds


def budget(num_tokens: int, share: float) -> int:
    """How many of the tokens an objective takes: the share, rounded up. 0.15 of 20 is 3, whatever binary fractions say."""
    return math.ceil(share * num_tokens - 1e-9)


@functools.lru_cache(maxsize=8)
def _span_length_steps(probability: float, longest: int) -> NDArray[np.float64]:
    weights = probability * (1 - probability) ** np.arange(longest + 1)
    steps: NDArray[np.float64] = np.cumsum(weights)[:-1] / weights.sum()
    return steps


def draw_span_lengths(random: np.random.Generator, count: int, *, probability: float, longest: int) -> Integers:
    """Span lengths in words: 0..longest with weight p (1 - p)^k (mean 2.97 at 0.2 and 10); a 0 still masks one word."""
    steps = _span_length_steps(probability, longest)
    return np.searchsorted(steps, random.random(count), side="right")


def choose_spans(
    bounds: Sequence[int], is_maskable: Sequence[bool], *, masking: MaskingConfig, random: np.random.Generator
) -> list[int]:
    """Tokens to predict, as sorted offsets: whole words in spans, until `masking.language_share` of the tokens is reached.

    bounds: from `word_bounds`. is_maskable: [w], False for words that are specials.
    Span starts are uniform over tokens (as in the released sampler), a span ends early at a word already taken.
    """
    num_tokens, num_words = bounds[-1], len(bounds) - 1
    wanted = budget(num_tokens, masking.language_share)
    if not all(is_maskable):
        sizes = zip(itertools.pairwise(bounds), is_maskable, strict=True)
        wanted = min(wanted, sum(end - start for (start, end), yes in sizes if yes))
    if wanted <= 0:
        return []
    word_of = np.repeat(np.arange(num_words), np.diff(bounds))
    is_taken = [not maskable for maskable in is_maskable]
    chosen: list[int] = []
    while True:
        # Usually one round is enough: drawn spans hold about three words each.
        words = word_of[random.integers(0, num_tokens, wanted + 4)].tolist()
        lengths = draw_span_lengths(
            random, len(words), probability=masking.span_probability, longest=masking.max_span_words
        )
        for word, length in zip(words, lengths.tolist(), strict=True):
            for taken in range(word, min(word + max(length, 1), num_words)):
                if is_taken[taken]:
                    break
                is_taken[taken] = True
                chosen.extend(range(bounds[taken], bounds[taken + 1]))
                if len(chosen) >= wanted:
                    return sorted(chosen)


def mask_tokens(
    tokens: Tokens, *, vocabulary: Vocabulary, masking: MaskingConfig, random: np.random.Generator
) -> tuple[Tokens, Tokens]:
    """Masked-language corruption of a text (paper 2.3, bidirectional prediction).

    tokens: [n] without specials. Returns the corrupted tokens [n] and the sorted offsets [m] to predict; of these, a share
    becomes [MASK], a share a random token, and the rest stays, each token on its own.
    """
    bounds = word_bounds(tokens, vocabulary)
    is_maskable = (~vocabulary.special[tokens[bounds[:-1]]]).tolist()
    chosen = np.array(choose_spans(bounds, is_maskable, masking=masking, random=random), np.int32)
    corrupted = tokens.copy()
    fate = random.random(len(chosen))
    becomes_random = fate < masking.mask_token_share + masking.random_token_share
    becomes_mask = fate < masking.mask_token_share
    replacements = vocabulary.ordinary[random.integers(0, len(vocabulary.ordinary), len(chosen))]
    corrupted[chosen[becomes_random]] = replacements[becomes_random]
    corrupted[chosen[becomes_mask]] = vocabulary.mask_id
    return corrupted, chosen


def fragment_lengths(num_tokens: Integers, keys: Integers, *, masking: MaskingConfig) -> tuple[Integers, Integers]:
    """Lengths of the fragments that become the target of sequence-to-sequence texts, for many texts at once.

    num_tokens: [b] tokens of each text, without specials. keys: [b] random key of each.
    Returns the text of each fragment and its length, [k] each, ordered by text. Lengths are uniform between the two limits of
    `masking`; those of a text add up to exactly its budget, and only a text too short for one whole fragment gets a shorter one.
    They need the index alone, so a sequence's length is known before it is read.
    """
    shortest, longest = masking.min_fragment_tokens, masking.max_fragment_tokens
    left = np.ceil(masking.fragment_share * num_tokens - 1e-9).astype(np.int64)
    texts, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    turn = 0
    while (active := np.flatnonzero(left > 0)).size:
        drawn = shortest + mix_many(keys[active], _FRAGMENT, turn) % (longest - shortest + 1)
        drawn = np.minimum(drawn, left[active])
        rest = left[active] - drawn
        # What is left must hold a whole fragment: take it all now, or leave a little more.
        too_little = (rest > 0) & (rest < shortest)
        drawn = np.where(too_little, np.where(left[active] <= longest, left[active], left[active] - shortest), drawn)
        texts.append(active)
        lengths.append(drawn)
        left[active] -= drawn
        turn += 1
    text = np.concatenate(texts)
    order = np.argsort(text, kind="stable")
    return text[order], np.concatenate(lengths)[order]


def cut_fragments(
    bounds: Sequence[int], lengths: Sequence[int], *, random: np.random.Generator
) -> list[tuple[int, int]]:
    """Where fragments of about these lengths lie: disjoint (start, end) offsets in order, all at word bounds, at least one.

    Places are uniform among all ways to lay the fragments out; both ends then move back to the start of their word, so the
    expected share stays. A fragment that thereby vanishes is left out.
    """
    num_tokens = bounds[-1]
    order = random.permutation(len(lengths))
    sizes = np.asarray(lengths)[order]
    before = np.cumsum(sizes) - sizes
    starts = np.sort(random.integers(0, num_tokens - sizes.sum() + 1, len(sizes))) + before
    ends = starts + sizes
    table = np.asarray(bounds)
    first = table[np.searchsorted(table, starts, side="right") - 1].tolist()
    last = table[np.searchsorted(table, ends, side="right") - 1].tolist()
    fragments = [(start, end) for start, end in zip(first, last, strict=True) if end > start]
    if fragments:
        return fragments
    word = int(np.searchsorted(table, starts[0], side="right")) - 1
    return [(bounds[word], bounds[word + 1])]


@dataclass(frozen=True)
class SequenceToSequence:
    """A text cut into source and target (paper 2.3): [CLS] source [SEP], then [CLS] fragment [SEP] for each fragment."""

    token_ids: Tokens
    """[n + 2 + 2 k]"""
    positions: Tokens
    """Same shape: learned-position ids; they start anew with the source and with each fragment."""
    source_length: int
    """Tokens of the source, its specials included: the part that sees itself whole and nothing later."""
    predicts_at: Tokens
    """[t] offsets whose hidden state predicts the next token of a fragment, its [SEP] included."""
    targets: Tokens
    """[t]"""


def sequence_to_sequence(tokens: Tokens, fragments: Sequence[tuple[int, int]]) -> SequenceToSequence:
    """The text with its fragments moved behind it.

    tokens: [n] without specials. fragments: from `cut_fragments`.
    """
    cls, sep = np.array([CLS], np.int32), np.array([SEP], np.int32)
    kept, targets, ends = [], [], 0
    for start, end in fragments:
        kept.append(tokens[ends:start])
        targets.append(tokens[start:end])
        ends = end
    kept.append(tokens[ends:])
    pieces: list[Tokens] = [cls, *kept, sep]
    source_length = 2 + sum(len(piece) for piece in kept)
    sizes = [source_length]
    for target in targets:
        pieces += [cls, target, sep]
        sizes.append(len(target) + 2)
    token_ids = np.concatenate(pieces)
    starts = np.cumsum(sizes) - sizes
    positions = np.arange(len(token_ids)) - np.repeat(starts, sizes) + FIRST_POSITION
    predicts = np.ones(len(token_ids), bool)
    predicts[:source_length] = False
    # The closing [SEP] of a fragment predicts nothing.
    predicts[np.cumsum(sizes) - 1] = False
    at = np.flatnonzero(predicts)
    return SequenceToSequence(
        token_ids=token_ids,
        positions=positions.astype(np.int32),
        source_length=source_length,
        predicts_at=at.astype(np.int32),
        targets=token_ids[at + 1],
    )


def mask_regions(
    boxes: NDArray[np.float32], *, masking: MaskingConfig, random: np.random.Generator
) -> NDArray[np.bool_]:
    """Regions to mask: random anchors, and every region that overlaps an anchor (paper 2.2).

    boxes: [R, 4]. Returns [R] bool. Anchors number `region_share` of R, rounded up or down by chance so that the mean is
    exact, but at least one; overlap is intersection over union above `region_overlap`.
    """
    num_regions = len(boxes)
    if not num_regions:
        return np.zeros(0, bool)
    draws = random.random(num_regions + 1)
    num_anchors = max(1, int(masking.region_share * num_regions + draws[-1]))
    anchors = np.argsort(draws[:-1])[:num_anchors]
    masked: NDArray[np.bool_] = np.any(overlap(boxes[anchors], boxes) > masking.region_overlap, axis=0)
    masked[anchors] = True
    return masked


def overlap(ones: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of boxes [a, 4] with boxes [b, 4]: [a, b]; 0 where both are empty."""
    low = np.maximum(ones[:, None, :2], others[None, :, :2])
    high = np.minimum(ones[:, None, 2:], others[None, :, 2:])
    sides = np.maximum(high - low, 0)
    shared = sides[..., 0] * sides[..., 1]
    union = _areas(ones)[:, None] + _areas(others)[None, :] - shared
    result: NDArray[np.float32] = shared / np.maximum(union, np.float32(1e-12))
    return result


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return result
