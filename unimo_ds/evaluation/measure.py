"""Zero-shot measurements on pairs: retrieval by single encodings, joint re-ranking, and captions against their rewrites.

Letters: I images, C captions, N negative rewrites, K candidates, D size of a pooled vector. These functions are collectives;
every rank gets the same results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from unimo_ds.data.schema import Level, SequenceInput
from unimo_ds.evaluation import retrieval, rewrites
from unimo_ds.evaluation.encode import Evaluable, Pooled, encode
from unimo_ds.evaluation.pair_reader import PairReader
from unimo_ds.evaluation.pairs import PairTexts

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class SingleEncodings:
    """Single encodings of every image and every caption."""

    images_ID: torch.Tensor
    captions_CD: torch.Tensor
    scores_CI: retrieval.Scores
    """Cosines."""


def encode_single(engine: Evaluable, reader: PairReader) -> SingleEncodings:
    """Pooled vectors of all images and captions, and every cosine between them."""
    images, captions = encode_images(engine, reader), encode_texts(engine, reader)
    return SingleEncodings(images, captions, retrieval.cosine_scores(captions, images))


def encode_images(engine: Evaluable, reader: PairReader) -> torch.Tensor:
    """[I, D] pooled vectors of images, from single encodings."""
    return _encode(engine, reader, reader.image_lengths_I, reader.image_sequence).images_nD


def encode_texts(engine: Evaluable, reader: PairReader) -> torch.Tensor:
    """[C, D] pooled vectors of texts, from single encodings."""
    return _encode(engine, reader, reader.text_lengths_C, reader.text_sequence).texts_nD


def score_joint(engine: Evaluable, reader: PairReader, images_Q: Integers, texts_Q: Integers) -> retrieval.Scores:
    """[Q] cosine of the pooled [IMG] and [CLS] of each (image, text) encoded as one sequence."""
    lengths = reader.image_lengths_I[images_Q] + reader.text_lengths_C[texts_Q]

    def make(index: int) -> tuple[SequenceInput, ...]:
        return reader.joint_sequences(int(images_Q[index]), int(texts_Q[index]))

    pooled = _encode(engine, reader, lengths, make)
    return retrieval.paired_cosines(pooled.texts_nD, pooled.images_nD)


def _encode(
    engine: Evaluable,
    reader: PairReader,
    lengths: Integers,
    make: Callable[[int], SequenceInput | tuple[SequenceInput, ...]],
) -> Pooled:
    feature_size = reader.corpus.feature_size
    return encode(engine, lengths, make, micro_batch_tokens=reader.micro_batch_tokens, feature_size=feature_size)


def measure_retrieval(single: SingleEncodings, reader: PairReader) -> retrieval.Retrieval:
    """All captions against all images, by single encodings."""
    return retrieval.from_scores(single.scores_CI, reader.image_of_C)


def measure_reranked(
    engine: Evaluable, reader: PairReader, single: SingleEncodings, *, num_candidates: int
) -> retrieval.Retrieval:
    """Retrieval in which the best `num_candidates` by single encodings are reordered by the sum of single and joint score.

    Both are cosines. With the two-logarithm form the joint score was trained only on rewrites of a caption, never on other
    pairs, and ranks those worse than single encodings do; in the sum it settles what they leave open (docs/experiments.md).
    """
    scores_CI, image_of_C = single.scores_CI, reader.image_of_C
    images_CK = retrieval.best_candidates(scores_CI, num_candidates)
    captions_IK = retrieval.best_candidates(scores_CI.T, num_candidates)
    # Sorted by image, which is the larger thing to read.
    images_Q, captions_Q = np.nonzero(retrieval.wanted_combinations(scores_CI, num_candidates).T)
    joint_Q = score_joint(engine, reader, images_Q, captions_Q)
    sum_CI = np.full_like(scores_CI, np.nan)
    sum_CI[captions_Q, images_Q] = joint_Q + scores_CI[captions_Q, images_Q]
    return retrieval.from_ranks(
        retrieval.reranked(
            retrieval.text_to_image_ranks(scores_CI, image_of_C),
            images_CK,
            np.take_along_axis(sum_CI, images_CK, axis=1),
            images_CK == image_of_C[:, None],
        ),
        retrieval.reranked(
            retrieval.image_to_text_ranks(scores_CI, image_of_C),
            captions_IK,
            np.take_along_axis(sum_CI.T, captions_IK, axis=1),
            image_of_C[captions_IK] == np.arange(len(captions_IK))[:, None],
        ),
    )


@dataclass(frozen=True)
class RewriteAccuracies:
    joint: dict[Level, rewrites.LevelAccuracy]
    """Image and text in one sequence."""
    single: dict[Level, rewrites.LevelAccuracy]
    """Single encodings of both."""

    def metrics(self, prefix: str) -> dict[str, float]:
        joint = rewrites.metrics(self.joint, f"{prefix}/joint")
        return joint | rewrites.metrics(self.single, f"{prefix}/single")


def measure_rewrites(
    engine: Evaluable,
    reader: PairReader,
    single: SingleEncodings,
    *,
    captions_per_image: int = 0,
    per_level: int = 0,
) -> RewriteAccuracies:
    """Captions against their negative rewrites, by joint and by single encodings.

    captions_per_image, per_level: use only the first captions of an image, and the first rewrites of a level; 0: all.
    """
    captions = reader.texts
    negatives = first_negatives(reader.negatives, captions_per_image=captions_per_image, per_level=per_level)
    rewritten = reader.with_texts(negatives)
    caption_of_N = find_captions(captions, negatives)
    # Captions without rewrites are not compared, so their joint encoding would be wasted.
    asked, caption_of_N = np.unique(caption_of_N, return_inverse=True)
    true_joint = score_joint(engine, reader, captions.image_n[asked], asked)
    negative_joint = score_joint(engine, rewritten, negatives.image_n, np.arange(len(negatives)))
    negative_texts = encode_texts(engine, rewritten)
    own_images = single.images_ID[torch.from_numpy(negatives.image_n).to(single.images_ID.device)]
    # If no pair has rewrites, nothing is encoded, and the empty result lacks the vectors' size.
    negative_single = retrieval.paired_cosines(negative_texts.reshape(own_images.shape), own_images)
    # The same function as for the rewrites' scores, so that equal vectors give equal bits and a tie is a tie.
    asked_rows = torch.from_numpy(asked).to(single.images_ID.device)
    asked_images = torch.from_numpy(captions.image_n[asked]).to(single.images_ID.device)
    true_single = retrieval.paired_cosines(single.captions_CD[asked_rows], single.images_ID[asked_images])
    return RewriteAccuracies(
        joint=rewrites.accuracies_by_level(true_joint, negative_joint, caption_of_N, negatives.level_n),
        single=rewrites.accuracies_by_level(true_single, negative_single, caption_of_N, negatives.level_n),
    )


def first_negatives(negatives: PairTexts, *, captions_per_image: int, per_level: int) -> PairTexts:
    """The first rewrites of each level of the first captions of each image; 0 means all."""
    keep = np.ones(len(negatives), bool)
    if captions_per_image:
        keep &= negatives.caption_n < captions_per_image
    if per_level:
        groups = np.stack([negatives.image_n, negatives.caption_n, negatives.level_n])
        _, group_n = np.unique(groups, axis=1, return_inverse=True)
        group_n = group_n.ravel()
        order = np.argsort(group_n, kind="stable")
        sizes = np.bincount(group_n) if len(group_n) else np.zeros(0, np.int64)
        place_n = np.empty(len(negatives), np.int64)
        place_n[order] = np.arange(len(negatives)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        keep &= place_n < per_level
    columns = {item.name: getattr(negatives, item.name)[keep] for item in dataclasses.fields(negatives)}
    return PairTexts(**columns)


def find_captions(captions: PairTexts, rewritten: PairTexts) -> Integers:
    """[N] row in `captions` of the caption that each rewrite was made from."""
    most = 1 + max(captions.caption_n.max(initial=0), rewritten.caption_n.max(initial=0))
    keys = captions.image_n * most + captions.caption_n
    order = np.argsort(keys)
    found: Integers = order[np.searchsorted(keys[order], rewritten.image_n * most + rewritten.caption_n)]
    return found
