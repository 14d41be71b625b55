"""The settings that fine-tuning adds to a run's configuration; imports as little as `config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from unimo_ds.utils.intervals import Count, CountOrZero, Dropout, Interval, NonNegative, Share


@dataclass(frozen=True)
class AdversarialConfig:
    """Adversarial training as in VILLA: noise on text embeddings and region features, optimised by gradient ascent."""

    steps: Annotated[int, Interval(0, 1000)] = 0
    """Ascent steps per optimizer step; 0: plain training."""
    initial_magnitude: NonNegative = 0.4
    """Magnitude of a sequence's initial noise, divided by the square root of its number of elements."""
    step_size: NonNegative = 0.05
    limit: NonNegative = 0.4
    """Largest L2 norm of a sequence's noise; 0: no limit."""
    divergence_weight: NonNegative = 1.0
    """Weight of the symmetric Kullback-Leibler divergence between the noisy and the clean output."""


@dataclass(frozen=True)
class GenerationConfig:
    """Decoding in tasks that generate text."""

    beams: Annotated[int, Interval(1, 10_000)] = 5
    length_penalty: Annotated[float, Interval(-2, 10)] = 0.6
    """Exponent a: the summed log-probability of t tokens is divided by ((5 + t) / 6) ** a."""
    min_tokens: CountOrZero = 5
    max_tokens: Count = 32
    block_trigrams: bool = False


@dataclass(frozen=True)
class RetrievalConfig:
    """Losses of image-text retrieval: contrastive over the step's single encodings, and on joint encodings."""

    contrastive_weight: NonNegative = 1.0
    """Weight of pre-training's contrastive loss between the single encodings of the step's pairs; 0: only joint encodings, as
    in the paper (with the circle loss)."""
    loss: Literal["plain", "circle"] = "plain"
    """Loss of joint encodings. plain: cross-entropy of the pair among its negatives, with scores as logits as in the
    contrastive loss, so that both add up; circle: the paper's."""
    negative_images: Annotated[int, Interval(0, 1000)] = 10
    negative_captions: Annotated[int, Interval(0, 1000)] = 10
    """Drawn for each pair and visit, and encoded jointly with the pair's caption or image; if both are 0, only single
    encodings are trained."""
    hard_share: Share = 1.0
    """Fraction of negatives drawn from the nearest ones by the starting model's single encodings."""
    hard_pool: Count = 200
    """Number of nearest ones of each image and caption from which hard negatives are drawn."""
    margin: float = 0.2
    scale: float = 1.0
    rerank: CountOrZero = 0
    """Evaluation: encode jointly only this many best candidates per query by the model's own single encodings; 0: all."""

    @property
    def trains_jointly(self) -> bool:
        return self.negative_images + self.negative_captions > 0


@dataclass(frozen=True)
class CaptioningConfig:
    """Names of detected objects, an optional input of a captioning model beside the regions."""

    object_names: str = ""
    """File with the detector's class names, one per line in the order of class ids (Visual Genome's `objects_vocab.txt`).
    Empty: no names as input."""
    min_confidence: Share = 0.35
    """Objects with lower confidence are not named."""
    max_object_tokens: Annotated[int, Interval(3)] = 100


@dataclass(frozen=True)
class FinetuneConfig:
    """The task, the starting weights, and the recipe's settings beyond a `RunConfig`."""

    task: str
    size: Literal["base", "large"] = "base"
    """Model size whose hyper-parameters of the paper the recipe uses."""
    start: str = ""
    """Origin of the starting weights; empty: random weights."""
    epochs: NonNegative = 10.0
    warmup_share: Share = 0.06
    head_dropout: Dropout = 0.1
    label_smoothing: Annotated[float, Interval(0, 0.99)] = 0.0
    max_target_tokens: CountOrZero = 0
    """Longest target text in training, including the end token; 0: the task generates no text."""
    num_outputs: int = 0
    """Outputs of the head if the training data decide (answers of VQA); a task with labels uses their number."""
    max_examples: CountOrZero = 0
    """Use N training examples, evenly spread (for learning curves); in captioning, N images with all captions; 0: all."""
    max_evaluated: CountOrZero = 0
    """Evaluate on N examples during training, chosen the same way; 0: all."""
    answer_min_count: Count = 9
    """VQA answers that occur less often in the training set are not in the answer vocabulary."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    captioning: CaptioningConfig = field(default_factory=CaptioningConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
