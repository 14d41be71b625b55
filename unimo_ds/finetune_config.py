"""The part of a run's configuration that fine-tuning adds to pre-training's; a leaf, like `config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from unimo_ds.utils.intervals import Count, CountOrZero, Dropout, Interval, NonNegative, Share


@dataclass(frozen=True)
class AdversarialConfig:
    """Adversarial training in the manner of VILLA: noise on text embeddings and region features, climbed for some steps."""

    steps: Annotated[int, Interval(0, 1000)] = 0
    """Ascents per optimizer step; 0: plain training."""
    initial_magnitude: NonNegative = 0.4
    """Of the first noise of a sequence, divided by the root of its number of elements."""
    step_size: NonNegative = 0.05
    limit: NonNegative = 0.4
    """Largest L2 norm of the noise of a sequence; 0: none."""
    divergence_weight: NonNegative = 1.0
    """Of the symmetric Kullback-Leibler divergence between the noisy and the clean output."""


@dataclass(frozen=True)
class GenerationConfig:
    """Decoding of the tasks that write."""

    beams: Annotated[int, Interval(1, 10_000)] = 5
    length_penalty: Annotated[float, Interval(-2, 10)] = 0.6
    """Exponent a of ((5 + t) / 6) ** a, by which the summed log-probability of t tokens is divided."""
    min_tokens: CountOrZero = 5
    max_tokens: Count = 32
    block_trigrams: bool = False


@dataclass(frozen=True)
class RetrievalConfig:
    """Losses of image-text retrieval: of single encodings, contrasted over the step, and of joint ones."""

    contrastive_weight: NonNegative = 1.0
    """Of pre-training's contrastive loss between the single encodings of the step's pairs; 0: joint encodings alone, as in the
    paper (with the circle loss)."""
    loss: Literal["plain", "circle"] = "plain"
    """Of joint encodings. plain: cross-entropy of the pair among its negatives, whose scores are logits as the contrastive loss's
    are, so that both add up; circle: the paper's."""
    negative_images: Annotated[int, Interval(0, 1000)] = 10
    negative_captions: Annotated[int, Interval(0, 1000)] = 10
    """Drawn for each pair and visit, and encoded jointly with the pair's caption or image; none of both: single encodings alone
    are trained."""
    hard_share: Share = 1.0
    """Share of the negatives that is drawn from the nearest ones under the starting model's single encodings."""
    hard_pool: Count = 200
    """How many nearest ones of each image and caption the hard negatives are drawn from."""
    margin: float = 0.2
    scale: float = 1.0
    rerank: CountOrZero = 0
    """Evaluation: encode jointly only the best of each query under the model's own single encodings; 0: everything."""

    @property
    def trains_jointly(self) -> bool:
        return self.negative_images + self.negative_captions > 0


@dataclass(frozen=True)
class CaptioningConfig:
    """Names of detected objects, which a captioning model may see beside the regions."""

    object_names: str = ""
    """File with the detector's class names, a line each in the order of their numbers (Visual Genome's `objects_vocab.txt`).
    Empty: the model sees no names."""
    min_confidence: Share = 0.35
    """Objects that the detector is less sure of are not named."""
    max_object_tokens: Annotated[int, Interval(3)] = 100


@dataclass(frozen=True)
class FinetuneConfig:
    """Which task, from which weights, and what its recipe says beyond a `RunConfig`."""

    task: str
    size: Literal["base", "large"] = "base"
    """Whose numbers of the paper the recipe takes."""
    start: str = ""
    """Where the starting weights came from; empty: fresh ones."""
    epochs: NonNegative = 10.0
    warmup_share: Share = 0.06
    head_dropout: Dropout = 0.1
    label_smoothing: Annotated[float, Interval(0, 0.99)] = 0.0
    max_target_tokens: CountOrZero = 0
    """Longest text to write in training, its end token included; 0: the task writes nothing."""
    num_outputs: int = 0
    """Rows of the head, where the training data decide them (answers of VQA); a task with labels counts those."""
    max_examples: CountOrZero = 0
    """Use so many training examples, evenly spread (for learning curves); of captions, their images with all captions; 0: all."""
    max_evaluated: CountOrZero = 0
    """Measure on so many examples during training, chosen likewise; 0: all."""
    answer_min_count: Count = 9
    """Answers of VQA that occur more rarely in the training set are outside of the vocabulary."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    captioning: CaptioningConfig = field(default_factory=CaptioningConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
