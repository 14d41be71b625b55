"""The complete configuration of a run: frozen dataclasses that define every number and its bounds in one place.

A recipe (`unimo_ds/recipes/`) is a function that returns a `RunConfig`; `overrides.py` changes fields of it. Settings only of
DeepSpeed (ZeRO stage, offload, buckets, precision) are in `ds_configs/*.json`, never here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.utils import strict_json
from unimo_ds.utils.intervals import Count, CountOrZero, Dropout, Interval, NonNegative, Positive, Share

T = TypeVar("T")
Drawn = Annotated[int, Interval(0, 1000)]
"""Number of a pair's rewrites of one kind or related items; folders hold far fewer, and steps are planned for all."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the Transformer (reference: UNIMO's released unimo_base_en.json and unimo_large_en.json)."""

    num_layers: Count = 12
    hidden_size: Count = 768
    num_heads: Count = 12
    feed_forward_size: Count = 3072
    vocabulary_size: CountOrZero = 50265
    max_positions: Annotated[int, Interval(3)] = 514
    """Rows of the learned position table; ids start at 2, so 512 are usable."""
    region_feature_size: CountOrZero = 2048
    num_region_classes: CountOrZero = 1601
    num_image_layers: CountOrZero = 0
    """Layers of a Vision Transformer over the patches of an image (`prepare import --extractor patches`), trained with the rest
    and with the same layer sizes; its outputs replace region features. 0: none."""
    region_tag_sizes: tuple[int, ...] = ()
    """Number of values of each region tag of the extractor (`Regions.tags`); each has an embedding table. Empty: no tags."""
    patch_columns: CountOrZero = 0
    """Patches per row of an image if image layers read patches, which are numbered row by row; 0: as many as per column."""
    hidden_dropout: Dropout = 0.1
    attention_dropout: Dropout = 0.1
    layer_norm_epsilon: Annotated[float, Interval(0, 1)] = 1e-5
    initializer_range: Positive = 0.02
    initialize_from: str | None = None
    """Local Hugging Face folder of RoBERTa or UNIMO weights (safetensors; `unimo export`, `convert`); None: from scratch."""
    initialize_images_from: str | None = None
    """Local Hugging Face folder of a Vision Transformer to initialize the image layers; None: from scratch."""

    @property
    def num_patches(self) -> int:
        """Most patches of an image if image layers read patches; else 0."""
        return self.region_tag_sizes[0] if self.num_image_layers and self.region_tag_sizes else 0

    @property
    def patch_side(self) -> int:
        """Side of such a patch in pixels; a pixel has three numbers."""
        return math.isqrt(self.region_feature_size // 3)

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """Rows and columns of these patches; None: there are none, or they form no square and `patch_columns` is 0."""
        if not self.num_patches:
            return None
        columns = self.patch_columns or math.isqrt(self.num_patches)
        rows, rest = divmod(self.num_patches, columns)
        return None if rest or not (self.patch_columns or rows == columns) else (rows, columns)


@dataclass(frozen=True)
class KindWeights:
    """Ratio of the three kinds in the global stream (paper: 1 : 1 : 5). A kind of weight 0 is not used."""

    image: NonNegative = 1.0
    text: NonNegative = 1.0
    pair: NonNegative = 5.0


@dataclass(frozen=True)
class DataConfig:
    path: str = ""
    """Folder (or fsspec URL) with manifest.json and the shards; several are written A::B."""
    held_out_path: str | None = None
    """Folders of held-out shards for evaluation during training, in the same form; None: no evaluation."""
    made_with: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the tokenizer and the region extractor, read from the training data: all inputs of the model must be
    made with the same. Empty: unknown."""
    kind_weights: KindWeights = field(default_factory=KindWeights)
    source_weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of each corpus within its kind, 0 to skip it; if a kind has no weights, sources count by their samples."""
    folder_weights: tuple[float, ...] = ()
    """Weight of each folder of `path`, in that order, within each kind, 0 to ignore it; sources then share within their
    folder. Empty: a source counts as one, even if several folders hold it."""
    shuffle_window_shards: Count = 8
    """Shards whose samples are shuffled together; limits the cache, and keeps reads mostly sequential."""
    max_text_tokens: Annotated[int, Interval(3)] = 512
    """Longest text, including [CLS] and [SEP]."""
    max_regions: Annotated[int, Interval(1, 2**31 - 1)] = 100
    smallest_crop: Annotated[float, Interval(0.01, 1)] = 1.0
    """If regions are patches: least fraction of an image's area in the random crop of a visit; 1: always the whole image."""
    num_workers: Annotated[int, Interval(0, 1024)] = 1
    """Loader processes per rank; 0 reads in the training process."""
    prefetch_steps: Annotated[int, Interval(1, 1000)] = 2
    max_bad_share: Share = 0.001
    """Fraction of samples that may be unreadable before the run stops and names their shards."""
    cache_dir: str | None = None
    """Local cache for remote shards, and for the joined indices of a large corpus; None: `cache` in the run directory."""
    cache_bytes: CountOrZero = 50 * 2**30
    """Total for all remote folders."""


@dataclass(frozen=True)
class BatchConfig:
    global_samples: Annotated[int, Interval(1, 1_000_000)] = 1024
    """Samples (images, texts and pairs together) in one optimizer step over all ranks; each rank plans the whole step."""
    micro_batch_tokens: Count = 16384
    """Stream positions of one rank in one micro-step: the memory budget."""


@dataclass(frozen=True)
class MaskingConfig:
    """Corruption of inputs (paper sections 2.2 and 2.3)."""

    language_share: Share = 0.15
    span_probability: Annotated[float, Interval(0.001, 1)] = 0.2
    """p of the geometric span length, in whole words."""
    max_span_words: Annotated[int, Interval(1, 100_000)] = 10
    """Bounded, since a table holds the probability of each length."""
    mask_token_share: Share = 0.8
    random_token_share: Share = 0.1
    phrases: bool = True
    """Whether names and other phrases stored with a text (`unimo prepare phrases`) are masked like one word."""
    sequence_to_sequence_share: Share = 0.5
    """Probability that a text or caption has the sequence-to-sequence objective instead of the masked one."""
    fragment_share: Annotated[float, Interval(0.001, 1)] = 0.25
    min_fragment_tokens: Count = 4
    max_fragment_tokens: int = 32
    region_share: Share = 0.15
    """Fraction of regions that are anchors, at least one per image (0: none); overlapping ones are masked as well."""
    region_overlap: Share = 0.3
    """Regions whose intersection over union with a masked anchor exceeds this are masked too."""
    normalised_pixels: bool = False
    """If regions are patches: whether pixels of masked patches are normalised to mean 0 and deviation 1 before they are
    predicted (masked autoencoders)."""


@dataclass(frozen=True)
class ContrastConfig:
    """Cross-modal contrastive learning (paper section 2.1): what is drawn per pair and step, and how it is scored."""

    enabled: bool = True
    form: Literal["one_log", "two_logs", "log_each"] = "two_logs"
    positives: Drawn = 1
    """Positive rewrites drawn per pair and step."""
    sentence_negatives: Drawn = 1
    phrase_negatives: Drawn = 1
    word_negatives: Drawn = 1
    """Negative rewrites of each level drawn per pair and step."""
    rewrites: Literal["joint", "single", "both"] = "joint"
    """How rewrites are encoded: joint, with the image (the paper's way; one pass over the image each); single, without it,
    scored against the image's single encoding; or both."""
    joint_encoding: Literal["exact", "shared_image"] = "exact"
    """exact: every text of a pair is encoded with the image, and both attend to each other. shared_image: the image is encoded
    once, and each text attends to it; the image attends to no text, so its vector is the same in all scores (choice 6b)."""
    related_images: Drawn = 1
    related_texts: Drawn = 1
    """Retrieved items drawn per pair and step; always encoded singly."""
    in_batch: bool = True
    exchange: Literal["gather", "ring"] = "gather"
    """How ranks exchange images and texts. gather: all at once on every rank; ring: texts of one rank at a time, which
    computes every score once instead of twice and never holds more than two ranks' texts."""
    group_pairs: CountOrZero = 0
    """Number of consecutive pairs of the global batch that are each other's negatives; 0: all pairs of the step."""
    temperature: float = 0.07
    min_temperature: Positive = 0.001
    max_temperature: float = 0.5

    @property
    def encodes_jointly(self) -> bool:
        """Whether pairs are encoded jointly: for rewrites, or as an additional positive of `one_log`.

        In other forms, a joint pair without joint rewrites would be the only term of its logarithm: a loss of 0.
        """
        wanted = self.positives + self.sentence_negatives + self.phrase_negatives + self.word_negatives
        return self.rewrites != "single" and (wanted > 0 or self.form == "one_log")

    @property
    def encodes_rewrites_alone(self) -> bool:
        return self.rewrites != "joint"


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses in the sum (the paper states none: 1 each). With a weight of 0, an objective with its own head is
    left out, head included; make that the default of a new one, so that earlier runs do not change."""

    masked_language: NonNegative = 1.0
    sequence_to_sequence: NonNegative = 1.0
    region_regression: NonNegative = 1.0
    region_classification: NonNegative = 1.0
    contrastive: NonNegative = 1.0


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "deepspeed_adam", "apex_adam", "apex_lamb"] = "adamw"
    """adamw: torch's, fused; deepspeed_adam: DeepSpeed's fused or CPU Adam; apex_*: NVIDIA apex, if installed."""
    peak_learning_rate: NonNegative = 5e-5
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    """Factor on the scheduled rate by part of the model, a prefix of parameter names (`image_transformer`, `layers.0`); the
    longest match counts. 0 freezes: no gradient, no moments. The language head's output matrix belongs to `text_embedding`."""
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: NonNegative = 1e-6
    weight_decay: NonNegative = 0.01
    clip_norm: NonNegative = 1.0
    """Limit on the global gradient norm; 0: no clipping."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up to the peak rate, then a decay that ends at `total_steps`."""

    total_steps: Count = 500_000
    warmup_steps: CountOrZero = 24_000
    form: Literal["linear", "linear_from_start", "drops", "cosine", "stable"] = "linear"
    """linear: to zero from the end of the warm-up; linear_from_start: the line to zero starts at step 0, so the rate drops a
    little at the end of the warm-up (UNIMO's fine-tuning); drops: to a tenth at 0.6 and again at 0.8 of the steps;
    cosine: half a wave to zero from the end of the warm-up (CLIP); stable: constant, then linear to zero over `decay_share`."""
    decay_share: Share = 0.2
    """Fraction of all steps, at the end, over which `stable` falls to zero, at most those after the warm-up; 0: it stays
    constant. Other forms ignore it."""


@dataclass(frozen=True)
class EngineConfig:
    deepspeed_config: str = "zero1_bf16"
    """Name of a file in ds_configs/ (without .json) or a path to one."""
    activation_checkpointing: bool = False
    attention: str = "auto"
    """Path of the packed attention op: auto, reference, or the name of a native path."""
    contrastive: str = "auto"
    """Path of the contrastive loss: auto, tiled (plain PyTorch), or native (the CUDA kernels; unit vectors in fp16)."""
    max_skipped_steps: Count = 10
    """Consecutive steps without a finite loss and gradient before the run stops."""
    hang_minutes: Annotated[float, Interval(0, 525_600)] = 15.0
    """After so long without progress (a step, a save, a micro-batch of an evaluation) every rank prints its stack on stderr and
    exits; 0: never."""
    threads: Annotated[int, Interval(0, 4096)] = 0
    """torch threads per rank; 0: one on a GPU, unless the optimizer is offloaded, else as set by OMP_NUM_THREADS."""
    check_memory: bool = True
    """Refuse to train on CPUs if `unimo plan` needs more memory than the machine, or this job or container, has."""
    deterministic: bool = False
    """Bit-identical results for the same inputs on a GPU, by slower deterministic operators; one that has no such form ends
    the run."""


@dataclass(frozen=True)
class SpikeConfig:
    """What counts as a spike of the loss or the gradient norm, and how the run reacts: it skips updates, then rolls back
    and skips these batches, then stops with a reason."""

    deviations: Annotated[float, Interval(1)] = 6.0
    """A spike is more than this many standard deviations (but at least a fifth of the mean) above the running mean."""
    ratio: Annotated[float, Interval(1)] = 10.0
    """A value above this multiple of the running mean is a spike, however noisy the values are."""
    warm_up_steps: Annotated[int, Interval(2)] = 50
    """First steps, in which nothing is a spike: values change quickly at the start."""
    skip_update: bool = True
    """Drop the update of a step whose loss is a spike. If only the gradient norm is one, update: clipping bounds it."""
    most_in_a_row: CountOrZero = 10
    """After so many steps in a row with a spike, go back to the newest good checkpoint before the first of them and skip
    their batches; 0: never."""
    max_rollbacks: CountOrZero = 3
    """Rollbacks in the whole run; instead of a further one the run stops."""


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: Count = 1000
    in_background: bool = True
    """Copy the state to host memory (12 bytes per parameter on rank 0's machine) and write it while training continues."""
    keep_last: Count = 3
    keep_every: CountOrZero = 0
    """Keep every checkpoint whose step is a multiple of this permanently; 0: none."""


@dataclass(frozen=True)
class EvaluationConfig:
    every_steps: CountOrZero = 1000
    """0: never during training."""
    at_start: bool = True
    """Also evaluate before the first step."""
    num_pairs: Count = 500
    """Held-out pairs used for retrieval, rewrite accuracy and held-out losses during training."""


@dataclass(frozen=True)
class LoggingConfig:
    every_steps: Count = 10
    trace_steps: tuple[int, int] = (0, 0)
    """First and last step that rank 0 records with torch's profiler, into RUN/traces; 0,0: none."""
    num_pictures: CountOrZero = 8
    """Held-out captions whose retrieved images go to TensorBoard."""
    num_embeddings: CountOrZero = 200
    trackers: tuple[Literal["wandb", "trackio"], ...] = ()
    """Also send numbers and pictures to these trackers; each needs its own library (engine/trackers)."""
    project: str = "unimo_ds"
    """Project of the run in trackers; W&B's WANDB_PROJECT takes precedence."""


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run. Every checkpoint stores their hash."""

    recipe: str
    seed: Annotated[int, Interval(0, 2**63 - 1)] = 0
    run_dir: str = "runs/run"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    losses: LossWeights = field(default_factory=LossWeights)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    spikes: SpikeConfig = field(default_factory=SpikeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    finetune: FinetuneConfig | None = None
    """Settings of a fine-tuning; None: the run pre-trains."""

    @property
    def finetuning(self) -> FinetuneConfig:
        """`finetune` of a run that has it."""
        assert self.finetune is not None
        return self.finetune


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain nested dictionaries for JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(kind: type[T], values: Any, *, where: str = "configuration") -> T:
    """The dataclass from the form of `to_dict`; missing keys take their defaults, unknown ones are errors.

    Raises:
        UserError: a key that `kind` does not have (names the nearest one), or a value of another type (names its place).
    """
    found: T = strict_json.typed(kind, values, where=where)
    return found


def fingerprint(config: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the configuration's canonical JSON."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]
