"""Sequence-to-sequence learning (paper section 2.3): fragments of a text move after it and are generated from the rest.

Letters: n text tokens without specials, b texts, k fragments. Words are never cut.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unimo_ds.config import MaskingConfig
from unimo_ds.data.draws import Integers, Uniforms, mix_many
from unimo_ds.data.masking import Tokens
from unimo_ds.data.schema import CLS, FIRST_POSITION, SEP

_LENGTHS = 0x66726167
"""Makes the keys of fragment lengths differ from those of a sequence's other draws."""


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
        drawn = shortest + mix_many(keys[active], _LENGTHS, turn) % (longest - shortest + 1)
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
