"""Retrieval by a fine-tuned model's scores of captions and images: from single encodings, joint encodings, and both together.

    single/...     cosines between single encodings of captions and images
    (no prefix)    the paper's protocol: every caption encoded jointly with every image, ranked by the head's score
    joint/...      the same score, with only the best candidates by single encodings encoded jointly
    combined/...   the sum of both, by which BLIP ranks candidates

Letters: C captions, I images, Q (image, caption) combinations, D size of a pooled vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimo_ds.config import RunConfig
from unimo_ds.evaluation import retrieval
from unimo_ds.evaluation.measure import encode_single
from unimo_ds.evaluation.pair_reader import PairReader
from unimo_ds.finetune import predict
from unimo_ds.finetune.batch import TaskExample
from unimo_ds.finetune.model import TaskModel
from unimo_ds.finetune.predict import TaskEngine
from unimo_ds.finetune.task import Evaluation
from unimo_ds.finetune_config import RetrievalConfig

_QUICK_CANDIDATES = 32
"""Per query, during training: Flickr30k's whole development split is 5 million sequences, one of its epochs 3 million."""


def measure(engine: TaskEngine, pairs: PairReader, config: RunConfig, *, quick: bool = False) -> Evaluation:
    """All captions against all images. A collective.

    quick: encode only some candidates of each query jointly, unless `finetune.retrieval.rerank` sets how many.
    """
    settings = config.finetuning.retrieval
    single_CI = encode_single(engine, pairs).scores_CI
    scores = {"single/": single_CI, "combined/": single_CI}
    notes = {"combined": "single encodings alone: nothing was trained jointly (no negatives)"}
    if settings.trains_jointly:
        candidates = settings.rerank or (_QUICK_CANDIDATES if quick else 0)
        wanted_CI = np.ones(single_CI.shape, bool)
        if is_some := 0 < candidates < max(single_CI.shape):
            wanted_CI = retrieval.wanted_combinations(single_CI, candidates)
        joint_CI = _joint_scores(engine, pairs, wanted_CI)
        combined_CI = joint_CI + single_CI * np.float32(score_of_cosine(engine, settings))
        scores = {"joint/" if is_some else "": joint_CI, "single/": single_CI, "combined/": combined_CI}
        notes = {"candidates": f"the best {candidates} of each query under single encodings"} if is_some else {}
    metrics: dict[str, float] = {}
    for prefix, scores_CI in scores.items():
        metrics |= _metrics(scores_CI, pairs, prefix)
    best_C = scores["combined/"].argmax(1)
    predictions = [
        {"key": pairs.key(caption), "image": pairs.image_key(int(best))} for caption, best in enumerate(best_C)
    ]
    return Evaluation(metrics, predictions, notes)


def score_of_cosine(engine: TaskEngine, settings: RetrievalConfig) -> float:
    """The joint score that a cosine of 1 is worth: pre-training's logit if they are logits, 1 if the loss has margins.

    Two logits add up well whether both were trained or only the joint one. The circle loss's scores are not logits, and no
    fixed weight suits them (docs/experiments.md).
    """
    if settings.loss == "circle":
        return 1.0
    assert isinstance(engine.module, TaskModel)
    return 1 / float(engine.module.temperature().detach())


def _metrics(scores_CI: retrieval.Scores, pairs: PairReader, prefix: str) -> dict[str, float]:
    """Under the paper's names, after `prefix`; median ranks only for the paper's own protocol."""
    measured = retrieval.from_scores(scores_CI, pairs.image_of_C).metrics("retrieval")
    named = {name.removeprefix("retrieval/"): value for name, value in measured.items()}
    return {prefix + name: value for name, value in named.items() if not (prefix and name.endswith("rank"))}


def _joint_scores(engine: TaskEngine, pairs: PairReader, wanted_CI: NDArray[np.bool_]) -> retrieval.Scores:
    """[C, I] the head's scores of the wanted combinations."""
    images_Q, captions_Q = np.nonzero(wanted_CI.T)
    if not wanted_CI.all():
        # Every rank must encode the same ones, and other processors may round single scores differently.
        images_Q, captions_Q = engine.communicator.broadcast_object((images_Q, captions_Q))
    combinations = _Combinations(pairs, images_Q, captions_Q)
    found_Q1 = predict.scores(engine, combinations, micro_batch_tokens=pairs.micro_batch_tokens)
    # What is not encoded ranks behind everything that is: it gets the worst score, so that a right answer cannot win by it.
    scores_CI = np.full(wanted_CI.shape, -np.inf, np.float32)
    scores_CI[captions_Q, images_Q] = found_Q1[:, 0]
    return scores_CI


@dataclass(frozen=True)
class _Combinations:
    """`predict.Scorable` of (image, caption) combinations."""

    pairs: PairReader
    images_Q: NDArray[np.int64]
    captions_Q: NDArray[np.int64]
    target_size: int = 1

    @property
    def feature_size(self) -> int:
        return self.pairs.corpus.feature_size

    def __len__(self) -> int:
        return len(self.images_Q)

    def lengths(self, index: int, seed: int) -> list[int]:
        return [self.pairs.joint_length(int(self.images_Q[index]), int(self.captions_Q[index]))]

    def make(self, index: int, seed: int) -> TaskExample:
        sequence = self.pairs.joint_sequence(int(self.images_Q[index]), int(self.captions_Q[index]))
        return TaskExample("", (sequence,), np.zeros(1, np.float32))
