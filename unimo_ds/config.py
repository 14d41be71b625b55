"""The whole configuration of a run: frozen dataclasses, one home for every number and its bounds.

A recipe (`unimo_ds/recipes/`) is a function that returns a `RunConfig`; `overrides.py` changes fields of it. What belongs to
DeepSpeed alone (ZeRO stage, offload, buckets, precision) lives in `ds_configs/*.json`, never here.
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
"""Of a pair's rewrites of one kind, or of its related items: no folder holds nearly as many, and a step is planned for all."""


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
    """Layers of a Vision Transformer over the patches of an image (`prepare import --extractor patches`), trained with the rest,
    whose outputs take the place of region features; of the sizes of the others. 0: none."""
    region_tag_sizes: tuple[int, ...] = ()
    """Values of each tag that the extractor gives regions (`Regions.tags`): a table of embeddings each. Empty: none."""
    patch_columns: CountOrZero = 0
    """Patches in a row of an image, where image layers read patches, which are numbered row by row; 0: as many as in a column."""
    hidden_dropout: Dropout = 0.1
    attention_dropout: Dropout = 0.1
    layer_norm_epsilon: Annotated[float, Interval(0, 1)] = 1e-5
    initializer_range: Positive = 0.02
    initialize_from: str | None = None
    """Local Hugging Face folder of RoBERTa or UNIMO weights (safetensors; `unimo export`, `convert`); None: from scratch."""
    initialize_images_from: str | None = None
    """Local Hugging Face folder of a Vision Transformer that the image layers begin as; None: from scratch."""

    @property
    def num_patches(self) -> int:
        """Of an image, at most, where image layers read patches; else 0."""
        return self.region_tag_sizes[0] if self.num_image_layers and self.region_tag_sizes else 0

    @property
    def patch_side(self) -> int:
        """Pixels of such a patch on a side, three numbers each."""
        return math.isqrt(self.region_feature_size // 3)

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """Rows and columns of these patches; None: there are none, or they make no square and nothing says how they lie."""
        if not self.num_patches:
            return None
        columns = self.patch_columns or math.isqrt(self.num_patches)
        rows, rest = divmod(self.num_patches, columns)
        return None if rest or not (self.patch_columns or rows == columns) else (rows, columns)


@dataclass(frozen=True)
class KindWeights:
    """Ratio of the three kinds in the global stream (paper: 1 : 1 : 5). A kind of weight 0 is left out."""

    image: NonNegative = 1.0
    text: NonNegative = 1.0
    pair: NonNegative = 5.0


@dataclass(frozen=True)
class DataConfig:
    path: str = ""
    """Folder (or fsspec URL) that holds manifest.json and the shards; several are written A::B."""
    held_out_path: str | None = None
    """Folders of held-out shards for the evaluation during training, likewise; None: no evaluation."""
    made_with: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the tokenizer and the region extractor of the training data, taken from it: what the model is used with
    must be made by the same. Empty: not known."""
    kind_weights: KindWeights = field(default_factory=KindWeights)
    source_weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of each corpus within its kind, 0 to leave it out; where a kind has none, sources count by their samples."""
    folder_weights: tuple[float, ...] = ()
    """Weight of each folder of `path`, in its order, within each kind, 0 as if it were not named; sources then share within
    their folder. Empty: a source is one, in however many folders it lies."""
    shuffle_window_shards: Count = 8
    """Shards whose samples are shuffled together; bounds the cache, keeps reading mostly sequential."""
    max_text_tokens: Annotated[int, Interval(3)] = 512
    """Longest text, [CLS] and [SEP] included."""
    max_regions: Annotated[int, Interval(1, 2**31 - 1)] = 100
    smallest_crop: Annotated[float, Interval(0.01, 1)] = 1.0
    """Share of an image's area that a visit shows at least, at random, where regions are patches of it; 1: always all of it."""
    num_workers: Annotated[int, Interval(0, 1024)] = 1
    """Loader processes per rank; 0 reads in the training process."""
    prefetch_steps: Annotated[int, Interval(1, 1000)] = 2
    max_bad_share: Share = 0.001
    """Share of samples that may be unreadable before the run stops and names their shards."""
    cache_dir: str | None = None
    """Local cache for remote shards, and for the joined indices of a large corpus; None: a folder beside the run."""
    cache_bytes: CountOrZero = 50 * 2**30
    """Of all remote folders together."""


@dataclass(frozen=True)
class BatchConfig:
    global_samples: Annotated[int, Interval(1, 1_000_000)] = 1024
    """Samples (images, texts and pairs together) in one optimizer step over all ranks; each rank plans the step whole."""
    micro_batch_tokens: Count = 16384
    """Stream positions one rank holds in one micro-step: the memory budget."""


@dataclass(frozen=True)
class MaskingConfig:
    """Corruption of inputs (paper sections 2.2 and 2.3)."""

    language_share: Share = 0.15
    span_probability: Annotated[float, Interval(0.001, 1)] = 0.2
    """p of the geometric span length, in whole words."""
    max_span_words: Annotated[int, Interval(1, 100_000)] = 10
    """The chance of each length stands in a table."""
    mask_token_share: Share = 0.8
    random_token_share: Share = 0.1
    phrases: bool = True
    """Whether names and other phrases that are stored with a text (`unimo prepare phrases`) are masked as if one word."""
    sequence_to_sequence_share: Share = 0.5
    """Chance that a text or caption takes the sequence-to-sequence objective instead of the masked one."""
    fragment_share: Annotated[float, Interval(0.001, 1)] = 0.25
    min_fragment_tokens: Count = 4
    max_fragment_tokens: int = 32
    region_share: Share = 0.15
    """Of anchors, but at least one an image (0: none); what overlaps them comes on top."""
    region_overlap: Share = 0.3
    """Regions whose intersection over union with a masked anchor exceeds this are masked too."""
    normalised_pixels: bool = False
    """Whether a masked patch is predicted as its pixels with mean 0 and deviation 1 (masked autoencoders), not as they are; where
    regions are patches."""


@dataclass(frozen=True)
class ContrastConfig:
    """Cross-modal contrastive learning (paper section 2.1): what is drawn per pair and per step, and how it is scored."""

    enabled: bool = True
    form: Literal["one_log", "two_logs", "log_each"] = "two_logs"
    positives: Drawn = 1
    """Positive rewrites drawn per pair and step."""
    sentence_negatives: Drawn = 1
    phrase_negatives: Drawn = 1
    word_negatives: Drawn = 1
    """Negative rewrites of each level drawn per pair and step."""
    rewrites: Literal["joint", "single", "both"] = "joint"
    """How rewrites are encoded: joint, with the image (the paper's way, a pass over the image for each); single, alone, scored
    against the image alone; or both ways."""
    joint_encoding: Literal["exact", "shared_image"] = "exact"
    """exact: every text of a pair is encoded with the image, and both see each other. shared_image: the image is encoded once,
    alone, and each text sees it; the image sees no text, so its vector is the same in all scores (choice 6b)."""
    related_images: Drawn = 1
    related_texts: Drawn = 1
    """Retrieved items drawn per pair and step, encoded alone."""
    in_batch: bool = True
    exchange: Literal["gather", "ring"] = "gather"
    """How ranks see each other's images and texts: all at once on every rank; or in a ring, texts of one rank at a time, which
    makes every score once instead of twice and never holds more than two ranks' texts."""
    group_pairs: CountOrZero = 0
    """Pairs that are each other's negatives: consecutive pairs of the global batch; 0: all pairs of the step."""
    temperature: float = 0.07
    min_temperature: Positive = 0.001
    max_temperature: float = 0.5

    @property
    def encodes_jointly(self) -> bool:
        """Whether pairs are encoded jointly: for rewrites, or as one more positive of the single logarithm.

        Under two logarithms a joint pair without joint rewrites would stand alone in its own: a loss of 0.
        """
        wanted = self.positives + self.sentence_negatives + self.phrase_negatives + self.word_negatives
        return self.rewrites != "single" and (wanted > 0 or self.form == "one_log")

    @property
    def encodes_rewrites_alone(self) -> bool:
        return self.rewrites != "joint"


@dataclass(frozen=True)
class LossWeights:
    """Weights of the named losses in the sum (the paper states none: 1 each). An objective with a head of its own is left out,
    head and all, where its weight is 0: make that its default, and runs from before it stay what they are."""

    masked_language: NonNegative = 1.0
    sequence_to_sequence: NonNegative = 1.0
    region_regression: NonNegative = 1.0
    region_classification: NonNegative = 1.0
    contrastive: NonNegative = 1.0


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "deepspeed_adam", "apex_adam", "apex_lamb"] = "adamw"
    """adamw: torch's, fused; deepspeed_adam: DeepSpeed's fused or CPU Adam; apex_*: NVIDIA apex, where installed."""
    peak_learning_rate: NonNegative = 5e-5
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    """Factor on the scheduled rate by part of the model, as names of its parameters begin (`image_transformer`, `layers.0`); the
    longest one counts. 0 freezes: no gradient, no moments. The words that the language head predicts are `text_embedding`'s."""
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: NonNegative = 1e-6
    weight_decay: NonNegative = 0.01
    clip_norm: NonNegative = 1.0
    """Global gradient-norm limit; 0 switches clipping off."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up to the peak rate, then a decay that is over at `total_steps`."""

    total_steps: Count = 500_000
    warmup_steps: CountOrZero = 24_000
    form: Literal["linear", "linear_from_start", "drops", "cosine", "stable"] = "linear"
    """linear: from the end of the warm-up to zero; linear_from_start: the line to zero begins at step 0, so the rate falls a
    little where the warm-up ends (UNIMO's fine-tuning); drops: to a tenth at 0.6 and again at 0.8 of the steps;
    cosine: half a wave from the end of the warm-up to zero (CLIP); stable: constant, then a line to zero over `decay_share`."""
    decay_share: Share = 0.2
    """Share of all steps, at the end, over which `stable` falls to zero: no more than the warm-up leaves; 0: it never does. The
    other forms do not read it."""


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
    """A step, evaluation or save that takes longer ends every rank, with its stack on stderr; 0: never."""
    threads: Annotated[int, Interval(0, 4096)] = 0
    """torch threads per rank on CPU; 0: leave OMP_NUM_THREADS as it is."""
    check_memory: bool = True
    """Refuse to train on CPUs where `unimo plan`'s memory is more than the machine has, or gives this job or container."""
    deterministic: bool = False
    """Take the same bits from the same inputs on a GPU: operators that add in one order, slower; an operator without such a form
    ends the run."""


@dataclass(frozen=True)
class SpikeConfig:
    """What counts as a spike of the loss or the gradient norm, and how far the run goes to get over it: it skips updates, then
    rolls back and passes over these batches, then stops with a reason."""

    deviations: Annotated[float, Interval(1)] = 6.0
    """Standard deviations above the running mean (but at least a fifth of it) that make a spike."""
    ratio: Annotated[float, Interval(1)] = 10.0
    """Times the running mean that make one, however noisy the course."""
    warm_up_steps: Annotated[int, Interval(2)] = 50
    """Steps whose values are taken as they come: a run begins steeply."""
    skip_update: bool = True
    """Drop the update of a step whose loss is a spike. A spike of the gradient norm alone is trained on: clipping bounds it."""
    most_in_a_row: CountOrZero = 10
    """Steps in a row with a spike before the run goes back to its newest good checkpoint from before the first of them, and
    passes over their batches; 0: it never does."""
    max_rollbacks: CountOrZero = 3
    """Of a whole run; the next one stops it."""


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: Count = 1000
    in_background: bool = True
    """Copy the state to host memory (12 bytes a parameter on the first machine) and write it while training goes on."""
    keep_last: Count = 3
    keep_every: CountOrZero = 0
    """Keep every checkpoint whose step is a multiple of this for good; 0: none."""


@dataclass(frozen=True)
class EvaluationConfig:
    every_steps: CountOrZero = 1000
    """0: never during training."""
    at_start: bool = True
    """Measure before the first step as well."""
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
    """What else gets the numbers and pictures, each by a library of its own (engine/trackers)."""
    project: str = "unimo_ds"
    """What trackers file the run under; W&B's own WANDB_PROJECT comes first."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. Its hash goes into every checkpoint."""

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
    """What makes a run a fine-tuning; None: it pre-trains."""


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dictionaries, fit for JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(kind: type[T], values: Any, *, where: str = "configuration") -> T:
    """The dataclass from `to_dict`'s form; missing keys take their defaults, unknown ones are errors.

    Raises:
        UserError: a key that `kind` does not have, naming the nearest right one, or a value of another type, naming its place.
    """
    found: T = strict_json.typed(kind, values, where=where)
    return found


def fingerprint(config: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the configuration's canonical JSON."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]
