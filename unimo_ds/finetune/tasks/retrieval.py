"""Image-text retrieval (Flickr30k, COCO): `train/`, `dev/`, `test/`, data folders of pairs made by `unimo prepare import` from
the collection's official captions (`--format karpathy`, `--format coco`, or a table).

Two losses, summed: pre-training's contrastive loss on the single encodings of all pairs of a step (`contrast.py`; this
project's addition, as in ALBEF and BLIP), and choosing a pair among jointly encoded negatives. The joint score is a linear map
of the product of both pooled vectors, initialised to measure their similarity (this project's choice). The release's recipe
has only the joint loss (`contrastive_weight=0`, `loss=circle`, `hard_share=0`, each prefixed with `finetune.retrieval.`):
10 other images and 10 other captions for each pair, circle loss with margin 0.2, 40 epochs, rate 5e-6, a tenth of
it after 24 and 32 epochs, 4 (base) or 2 (large) pairs on each of 16 V100, decay 0.1. Published on Flickr30k, R@1/5/10: image
retrieval 74.66/93.40/96.08 (base), 78.04/94.24/97.12 (large), text retrieval 89.70/98.40/99.10 and 89.40/98.90/99.80.

Letters: E examples (captions), I images, C captions, N negatives of one kind, S sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.inputs import text_key
from unimo_ds.data.schema import Example, Kind
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.evaluation.encode import encode
from unimo_ds.evaluation.pair_reader import PairReader
from unimo_ds.evaluation.pairs import evenly
from unimo_ds.finetune import images, ranking, right_answers
from unimo_ds.finetune.batch import TaskBatch, TaskExample
from unimo_ds.finetune.hard_negatives import Nearest, nearest
from unimo_ds.finetune.model import ProductHead, TaskOutput
from unimo_ds.finetune.predict import TaskEngine
from unimo_ds.finetune.reads import HEAD, RETRIEVAL
from unimo_ds.finetune.right_answers import RightAnswers
from unimo_ds.finetune.task import Evaluation, Examples, Recipe, Size, Task
from unimo_ds.finetune_config import FinetuneConfig, RetrievalConfig
from unimo_ds.losses.circle import choice_loss, circle_loss
from unimo_ds.utils.agreement import failing_together
from unimo_ds.utils.communicator import Communicator
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.seed import generator, mix

_NEGATIVES, _ALONE = 0x6E656761, 0x616C6F6E
_START_PAIRS = 256
"""Pairs from which the usual size of pooled vectors is estimated."""


class RetrievalExamples:
    """One example per caption: the pair, its caption with other images, its image with other captions, in that order."""

    target_size = 1

    def __init__(
        self,
        pairs: PairReader,
        settings: RetrievalConfig,
        answers: RightAnswers | None = None,
        nearest_ones: Nearest | None = None,
    ) -> None:
        """answers: pairs that must not be negatives; None: only a caption's own image. nearest_ones: source of a share of the
        negatives; None: all are drawn from everything."""
        self.pairs, self.settings, self._nearest = pairs, settings, nearest_ones
        self._answers = right_answers.own_alone(pairs) if answers is None else answers
        self.feature_size = pairs.corpus.feature_size
        self.fingerprint = f"{pairs.corpus.fingerprint}/{pairs.num_images}"

    def __len__(self) -> int:
        return self.pairs.num_texts

    def key(self, index: int) -> str:
        return self.pairs.key(index)

    def select(self, indices: Sequence[int]) -> RetrievalExamples:
        return RetrievalExamples(self.pairs.select(indices), self.settings)

    def lengths(self, index: int, seed: int) -> list[int]:
        pairs = self.pairs
        joint = [pairs.joint_length(image, caption) for image, caption in self._visit(index, seed)]
        if not self.settings.contrastive_weight:
            return joint
        own = int(pairs.image_of_C[index])
        return [int(pairs.image_lengths_I[own]), int(pairs.text_lengths_C[index]), *joint]

    def make(self, index: int, seed: int) -> TaskExample:
        sequences = [
            self.pairs.joint_sequence(image, caption, seed=mix(seed, number))
            for number, (image, caption) in enumerate(self._visit(index, seed))
        ]
        pair = self._alone(index, seed) if self.settings.contrastive_weight else None
        return TaskExample(self.key(index), tuple(sequences), np.zeros(1, np.float32), pair)

    def with_answers(self, answers: RightAnswers, nearest_ones: Nearest | None = None) -> RetrievalExamples:
        return RetrievalExamples(self.pairs, self.settings, answers, nearest_ones)

    def _alone(self, index: int, seed: int) -> Example:
        """The pair as one encoding of its image and one of its caption."""
        image = int(self.pairs.image_of_C[index])
        return Example(
            key=self.key(index),
            kind=Kind.PAIR,
            position=index,
            sequences=(
                self.pairs.image_sequence(image, seed=mix(seed, 0, _ALONE)),
                self.pairs.text_sequence(index, seed=mix(seed, 1, _ALONE)),
            ),
            text_key=text_key(self.pairs.text(index)),
            image_key=image,
        )

    def _visit(self, index: int, seed: int) -> list[tuple[int, int]]:
        """(image, caption) of each joint sequence."""
        pairs, settings = self.pairs, self.settings
        if not settings.trains_jointly:
            return []
        own = int(pairs.image_of_C[index])
        random = generator(seed, _NEGATIVES)
        near = self._nearest
        other_images = _draw(
            random,
            settings.negative_images,
            pairs.num_images,
            forbidden=self._answers.images.of(index),
            hard=None if near is None else near.images_CK[index, : settings.hard_pool],
            hard_share=settings.hard_share,
        )
        other_captions = _draw(
            random,
            settings.negative_captions,
            pairs.num_texts,
            forbidden=self._answers.captions.of(own),
            hard=None if near is None else near.captions_IK[own, : settings.hard_pool],
            hard_share=settings.hard_share,
        )
        return [
            (own, index),
            *((image, index) for image in other_images),
            *((own, caption) for caption in other_captions),
        ]


def _draw(
    random: np.random.Generator,
    number: int,
    total: int,
    *,
    forbidden: NDArray[np.int64],
    hard: NDArray[np.int64] | None,
    hard_share: float,
) -> list[int]:
    """`number` numbers below `total`, none of them in `forbidden` (ascending): a share from `hard`, the rest from all (perhaps
    hard ones again); without repetition within each kind if there are enough."""
    drawn: list[int] = []
    hard = None if hard is None else hard[hard >= 0]
    if hard is not None and len(hard):
        wanted = min(round(hard_share * number), len(hard))
        drawn = random.choice(hard, wanted, replace=False).tolist()
    left, rest = number - len(drawn), total - len(forbidden)
    found = random.choice(rest, left, replace=left > rest)
    # `found` counts only what is allowed: each number is shifted by the forbidden ones before it.
    before = np.searchsorted(forbidden - np.arange(len(forbidden)), found, side="right")
    others: list[int] = (found + before).tolist()
    return drawn + others


def _read_answers(pairs: PairReader, settings: RetrievalConfig, communicator: Communicator) -> RightAnswers:
    """From the texts of all captions, read by rank 0. A collective.

    Raises:
        UserError: an unreadable caption, one for which every image is right, or an image for which every caption is.
    """
    found = None
    with failing_together(communicator):
        if communicator.rank == 0:
            found = right_answers.of_texts(pairs.text_keys(), pairs.image_of_C)
            if settings.negative_images and found.images.most() == pairs.num_images:
                raise UserError(
                    f"{pairs.corpus.location} has no negatives: one caption is that of all images; give other images too"
                )
            if settings.negative_captions and found.captions.most() == pairs.num_texts:
                raise UserError(
                    f"{pairs.corpus.location} has no negatives: one image has all captions; give other images too"
                )
    of_rank_0: RightAnswers = communicator.broadcast_object(found)
    return of_rank_0


class RetrievalTask(Task):
    name, title, best_metric = "retrieval", "Flickr30k retrieval", "combined/mean_recall"
    reads = (*HEAD, *RETRIEVAL)

    def recipe(self, size: Size) -> Recipe:
        return Recipe(
            FinetuneConfig("retrieval", size, epochs=40, warmup_share=0.0, num_outputs=1),
            learning_rate=5e-6,
            global_examples=64 if size == "base" else 32,
            weight_decay=0.1,
            schedule="drops",
        )

    def find_images(self, data: Path, split: str) -> Corpus:
        return images.find_split(data, split)

    def open(
        self, data: Path, split: str, *, tokenizer: Tokenizer, config: RunConfig, assets: Mapping[str, Any]
    ) -> RetrievalExamples:
        pairs = images.open_pairs(data, split, config, tokenizer=tokenizer)
        if split == "train" and pairs.num_images < 2:
            raise UserError(
                f"{pairs.corpus.location} has one image alone, so there are no negatives; give at least two"
            )
        if split == "train" and config.finetuning.max_examples == 1:
            raise UserError(
                "finetune.max_examples=1 leaves one image alone, so there are no negatives; give at least 2"
            )
        return RetrievalExamples(pairs, config.finetuning.retrieval)

    def prepare_training(self, examples: Examples, engine: TaskEngine, config: RunConfig) -> Examples:
        """Adds hard negatives of the starting model, and a head that scores as pre-training did.

        A fresh head would undo in its first steps what the body knows (docs/experiments.md). With all weights equal, the score
        is the product of both pooled vectors, scaled to the size of their cosine; divided by the temperature if it is a logit.
        """
        assert isinstance(examples, RetrievalExamples)
        settings, pairs = examples.settings, examples.pairs
        if not settings.trains_jointly:
            return examples
        captions = evenly(len(examples), _START_PAIRS).tolist()
        chosen = [(int(pairs.image_of_C[caption]), caption) for caption in captions]
        pooled = encode(
            engine,
            np.array([pairs.joint_length(*one) for one in chosen]),
            lambda row: pairs.joint_sequence(*chosen[row]),
            micro_batch_tokens=config.batch.micro_batch_tokens,
            feature_size=examples.feature_size,
        )
        size = float((pooled.texts_nD.norm(dim=1) * pooled.images_nD.norm(dim=1)).mean())
        if size > 0:  # else the body knows nothing, and the fresh head stays
            with torch.no_grad():
                weight = engine.module.get_parameter("head.scores.output.weight")
                weight.fill_(ranking.score_of_cosine(engine, settings) / size)
        answers = _read_answers(pairs, settings, engine.communicator)
        if not settings.hard_share:
            return examples.with_answers(answers)
        return examples.with_answers(answers, nearest(engine, pairs, answers, number=settings.hard_pool))

    def make_head(self, config: RunConfig) -> nn.Module:
        return ProductHead(config, num_outputs=1)

    def loss_sum(self, output: TaskOutput, batch: TaskBatch, settings: FinetuneConfig) -> torch.Tensor:
        """The mean of the losses against other images and against other captions, summed over pairs."""
        retrieval_settings = settings.retrieval
        if not retrieval_settings.trains_jointly:
            return output.scores.float().sum()  # a sum over no rows
        num_images, num_captions = retrieval_settings.negative_images, retrieval_settings.negative_captions
        scores_EN = output.scores.float().view(len(batch.targets), 1 + num_images + num_captions)
        positive_E, by_image_EN, by_caption_EN = torch.split(scores_EN, [1, num_images, num_captions], dim=1)
        losses_E = torch.zeros_like(positive_E[:, 0])
        for negative_EN in (by_image_EN, by_caption_EN):
            if not negative_EN.shape[1]:
                continue
            if retrieval_settings.loss == "circle":
                losses_E = losses_E + circle_loss(
                    positive_E[:, 0], negative_EN, margin=retrieval_settings.margin, scale=retrieval_settings.scale
                )
            else:
                losses_E = losses_E + choice_loss(positive_E[:, 0], negative_EN)
        return losses_E.sum() / 2

    def evaluate(
        self, engine: TaskEngine, examples: Examples, *, config: RunConfig, tokenizer: Tokenizer, quick: bool = False
    ) -> Evaluation:
        """By single encodings, by joint ones, and by both; see `ranking.py`."""
        assert isinstance(examples, RetrievalExamples)
        return ranking.measure(engine, examples.pairs, config, quick=quick)


TASK = RetrievalTask()
