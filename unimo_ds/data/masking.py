"""Corruption of inputs (paper sections 2.2 and 2.3; details in docs/choices.md), as pure functions of their arguments.

Letters: n text tokens without specials, w words, R regions. Words are given by `Vocabulary.starts_word`: a piece that starts
with white space and the pieces that continue it. Words are never cut, specials never chosen.
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
from unimo_ds.data.draws import Integers, Uniforms, mix_many, ranges, uniform
from unimo_ds.data.schema import CLS, FIRST_POSITION, SEP

Tokens = NDArray[np.int32]

_FRAGMENT, _REGION = 0x66726167, 0x72656769
"""Make the keys of fragment lengths and of regions differ from those of a sequence's other draws."""


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


def fragment_lengths(num_tokens: Integers, keys: Integers, *, masking: MaskingConfig) -> tuple[Integers, Integers]:
    """Lengths of the fragments that become targets of sequence-to-sequence texts, for many texts at once.

    num_tokens: [b] tokens of each text, without specials. keys: [b] random key of each.
    Returns the text of each fragment and its length, [k] each, ordered by text. Lengths are uniform between the two limits of
    `masking`; those of a text add up to exactly its budget, with a shorter one if needed (few tokens, limits close together).
    They depend only on the index, so a sequence's length is known before it is read.
    """
    shortest, longest = masking.min_fragment_tokens, masking.max_fragment_tokens
    left = np.ceil(masking.fragment_share * num_tokens - 1e-9).astype(np.int64)
    texts, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    turn = 0
    while (active := np.flatnonzero(left > 0)).size:
        drawn = shortest + mix_many(keys[active], _FRAGMENT, turn) % (longest - shortest + 1)
        drawn = np.minimum(drawn, left[active])
        rest = left[active] - drawn
        # The rest must hold a whole fragment: take all of it now, or leave a little more.
        too_little = (rest > 0) & (rest < shortest)
        drawn = np.where(too_little, np.where(left[active] <= longest, left[active], left[active] - shortest), drawn)
        texts.append(active)
        lengths.append(drawn)
        left[active] -= drawn
        turn += 1
    text = np.concatenate(texts)
    order = np.argsort(text, kind="stable")
    return text[order], np.concatenate(lengths)[order]


def cut_fragments(bounds: Sequence[int], lengths: Sequence[int], *, draws: Uniforms) -> list[tuple[int, int]]:
    """Positions of fragments of about these lengths: disjoint (start, end) offsets in order, all at word bounds, at least one.

    bounds: of words, see `Words`. Fragments' order and the numbers of other tokens before each are drawn independently, so
    adjacent fragments are rarer than among all layouts. Both ends then move back to the start of their word, which keeps the
    expected share. A fragment that becomes empty is left out.
    """
    num_kept = bounds[-1] - sum(lengths)
    sizes = [size for _, size in sorted((next(draws), size) for size in lengths)]
    gaps = sorted(draws.below(num_kept + 1) for _ in sizes)
    fragments, before = [], 0
    for gap, size in zip(gaps, sizes, strict=True):
        start, end = _word_start(bounds, before + gap), _word_start(bounds, before + gap + size)
        if end > start:
            fragments.append((start, end))
        before += size
    if fragments:
        return fragments
    word = bisect.bisect_right(bounds, gaps[0]) - 1
    return [(bounds[word], bounds[word + 1])]


def _word_start(bounds: Sequence[int], offset: int) -> int:
    """The last bound that is not after the offset."""
    return bounds[bisect.bisect_right(bounds, offset) - 1]


@dataclass(frozen=True)
class SequenceToSequence:
    """A text cut into source and target (paper 2.3): [CLS] source [SEP], then [CLS] fragment [SEP] for each fragment."""

    token_ids: Tokens
    """[n + 2 + 2 k]"""
    positions: Tokens
    """Same shape: learned-position ids; they restart with the source and each fragment."""
    source_length: int
    """Tokens of the source, including specials: they see each other and nothing later."""
    predicts_at: Tokens
    """[t] offsets whose hidden state predicts the next token of a fragment, including its [SEP]."""
    targets: Tokens
    """[t]"""


def sequence_to_sequence(tokens: Tokens, fragments: Sequence[tuple[int, int]]) -> SequenceToSequence:
    """The text with its fragments moved after it.

    tokens: [n] without specials. fragments: from `cut_fragments`.
    """
    plain: list[int] = tokens.tolist()
    source, target = [CLS], list[int]()
    target_positions: list[int] = []
    predicts_at: list[int] = []
    targets: list[int] = []
    num_taken = sum(end - start for start, end in fragments)
    source_length = len(plain) - num_taken + 2
    kept_to = 0
    for start, end in fragments:
        source += plain[kept_to:start]
        fragment = plain[start:end]
        first = source_length + len(target)
        predicts_at += range(first, first + len(fragment) + 1)
        targets += fragment
        targets.append(SEP)
        target += [CLS, *fragment, SEP]
        target_positions += range(FIRST_POSITION, FIRST_POSITION + len(fragment) + 2)
        kept_to = end
    source += plain[kept_to:]
    source.append(SEP)
    source_positions = range(FIRST_POSITION, FIRST_POSITION + source_length)
    return SequenceToSequence(
        token_ids=np.array(source + target, np.int32),
        positions=np.array([*source_positions, *target_positions], np.int32),
        source_length=source_length,
        predicts_at=np.array(predicts_at, np.int32),
        targets=np.array(targets, np.int32),
    )


def mask_regions(
    boxes: NDArray[np.float32], counts: Integers, keys: Integers, *, masking: MaskingConfig
) -> NDArray[np.bool_]:
    """Regions to mask: random anchors, and every region that overlaps an anchor (paper 2.2), for many images at once.

    boxes: [sum R, 4], image by image. counts: [b] regions of each image. keys: [b] random key of each.
    Returns [sum R] bool. The number of anchors is `region_share` of R, rounded up or down at random so that the mean is exact,
    but at least one unless the share is 0; overlap means intersection over union above `region_overlap`.
    """
    starts = np.cumsum(counts) - counts
    image_of = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(boxes)) - starts[image_of]
    # Anchors are the regions with the smallest random numbers in their image.
    order = np.lexsort((mix_many(keys[image_of], _REGION, within), image_of))
    num_anchors = masking.region_share * counts + uniform(mix_many(keys, _REGION, -1))
    num_anchors = np.maximum(num_anchors.astype(np.int64), 1 if masking.region_share else 0)
    anchors = order[within < num_anchors[image_of]]
    masked = np.zeros(len(boxes), bool)
    masked[anchors] = True
    image_of_anchor = image_of[anchors]
    others = ranges(starts[image_of_anchor], counts[image_of_anchor])
    # By coordinate, since vector instructions gain little on rows of four numbers.
    columns = np.ascontiguousarray(boxes.T)
    ones = columns.take(np.repeat(anchors, counts[image_of_anchor]), axis=1)
    overlaps = overlap(ones.T, columns.take(others, axis=1).T)
    masked[others[overlaps > masking.region_overlap]] = True
    return masked


def overlap(ones: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of boxes [..., 4] that broadcast: [...]; 0 if both are empty."""
    sides = np.minimum(ones[..., 2:], others[..., 2:]) - np.maximum(ones[..., :2], others[..., :2])
    sides = np.maximum(sides, 0)
    shared = sides[..., 0] * sides[..., 1]
    union = _areas(ones) + _areas(others) - shared
    result: NDArray[np.float32] = shared / np.maximum(union, np.float32(1e-12))
    return result


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return result
