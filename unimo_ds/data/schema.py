"""What flows through the system, one dataclass per stage:

    Sample (as stored) --examples.py--> Example (corrupted, tokenised sequences) --packing.py--> PackedBatch (one stream)

Letters: T stream positions, S sequences, N_* items of a kind, R regions, F region feature size, K stored classes per region,
G tags, P pairs, Q private scores of the pairs: with themselves, their rewrites and their related items.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from unimo_ds.data.limits import MAX_FEATURE_SIZE, MAX_REGIONS
from unimo_ds.utils.moving import moved

SCHEMA_VERSION = 1


# RoBERTa's (fairseq's) id order, which every tokenizer of this project keeps.
CLS, PAD, SEP, UNK = 0, 1, 2, 3
NUM_TEXT_SPECIALS = 2
"""[CLS] and [SEP]."""
FIRST_POSITION = 2
"""Learned text positions start here, as in RoBERTa."""
NO_TAG = -1
"""Tag of a token or region without an embedding for it: [IMG], and generated tokens, since decoding has no tags."""


class Kind(enum.IntEnum):
    IMAGE = 0
    TEXT = 1
    PAIR = 2


class TextRole(enum.IntEnum):
    """What a stored text is to its sample."""

    TEXT = 0
    """The text of a text sample, or a caption of a pair."""
    POSITIVE = 1
    NEGATIVE = 2
    RELATED = 3


class Level(enum.IntEnum):
    """How a negative rewrite was made (paper section 2.1); NONE for everything else."""

    NONE = 0
    SENTENCE = 1
    PHRASE = 2
    WORD = 3


class Rewrite(NamedTuple):
    text: str
    level: Level
    """NONE for a positive."""
    origin: str = ""
    """What made it: tool, pivot language, or the words changed ("red>blue")."""


Spans = tuple[tuple[int, int], ...]
"""Character ranges [start, end) of a text, sorted and disjoint."""


@dataclass(frozen=True)
class Caption:
    text: str
    positives: tuple[Rewrite, ...] = ()
    negatives: tuple[Rewrite, ...] = ()
    phrases: Spans = ()
    """Names and other phrases that are masked as a whole (paper section 2.3)."""


@dataclass(frozen=True)
class PatchGrid:
    """How an image is cut into patches of its pixels (`patches.cut`)."""

    rows: int = 14
    columns: int = 14
    side: int = 16
    """Of a patch, in pixels."""

    @property
    def num_patches(self) -> int:
        return self.rows * self.columns

    @property
    def feature_size(self) -> int:
        return self.side * self.side * 3

    @property
    def working_side(self) -> int:
        """Pixels of an image's shorter side; a larger image adds nothing."""
        return max(self.rows, self.columns) * self.side

    @property
    def problem(self) -> str:
        """Why images may not be cut in this way; empty if they may."""
        if min(self.rows, self.columns, self.side) < 1:
            return f"patches {[self.rows, self.columns, self.side]} are not [rows, columns, pixels on a side]"
        if self.num_patches > MAX_REGIONS or self.feature_size > MAX_FEATURE_SIZE:
            sizes = f"{self.rows} x {self.columns} patches of {self.feature_size} numbers"
            return f"{sizes} are beyond ({MAX_REGIONS}, {MAX_FEATURE_SIZE})"
        return ""


@dataclass(frozen=True)
class Regions:
    """Region inputs of one image, as an extractor makes them and shards store them."""

    boxes: NDArray[np.float32]
    """[R, 4] x1, y1, x2, y2 as fractions of width and height, within [0, 1]."""
    features: NDArray[np.float16]
    """[R, F]"""
    class_ids: NDArray[np.int32]
    """[R, K] most likely classes of each region."""
    class_probabilities: NDArray[np.float16]
    """[R, K] their probabilities; the rest of the distribution is not stored."""
    tags: NDArray[np.int32] | None = None
    """[R, G] indices, from 0, of further embeddings of each region: its frame in a clip, its camera, its object's word; `NO_TAG`
    where it has none."""
    patches: PatchGrid | None = None
    """The regions are these patches of the sample's JPEG, cut whenever it is read: a shard stores only the JPEG."""


@dataclass(frozen=True)
class Sample:
    """One stored sample. A pair is an image with one or more captions; one caption is drawn at each visit."""

    key: str
    """`shard-name:member-base`, unique in a data folder."""
    kind: Kind
    source: str
    regions: Regions | None = None
    """None for a text."""
    text: str | None = None
    """Text samples only."""
    phrases: Spans = ()
    """Text samples only: as a caption's."""
    captions: tuple[Caption, ...] = ()
    """Pairs only."""
    related_texts: tuple[str, ...] = ()
    related_images: tuple[tuple[str, int], ...] = ()
    """Pairs only: (shard file name, index within the shard) of image samples."""


class SequenceRole(enum.IntEnum):
    """Why a sequence is in the stream. CORRUPTED carries the masked and generative losses; the others are clean, for CMCL:
    image and text in one sequence (JOINT), or one of them alone (SINGLE; RELATED: a retrieved one). POSITIVE and NEGATIVE hold a
    rewrite of the caption, PAIR the caption itself."""

    CORRUPTED = 0
    JOINT_PAIR = 1
    JOINT_POSITIVE = 2
    JOINT_NEGATIVE = 3
    SINGLE_IMAGE = 4
    SINGLE_TEXT = 5
    RELATED_IMAGE = 6
    RELATED_TEXT = 7
    SINGLE_POSITIVE = 8
    SINGLE_NEGATIVE = 9


JOINT_ROLES = (SequenceRole.JOINT_PAIR, SequenceRole.JOINT_POSITIVE, SequenceRole.JOINT_NEGATIVE)


class LanguageObjective(enum.IntEnum):
    MASKED = 0
    SEQUENCE_TO_SEQUENCE = 1


@dataclass(frozen=True)
class SequenceInput:
    """One encoder input: [IMG] regions first (if any), then text tokens (if any). Offsets count from its first position."""

    role: SequenceRole
    seed: int
    """63-bit key of its dropout masks: a pure function of (run seed, sample position, role, ordinal)."""
    level: Level = Level.NONE
    item_key: int = 0
    """63-bit identity of a related item or a positive rewrite encoded alone: never a negative of a pair that has it as well."""
    region_features: NDArray[np.float16] | None = None
    """[1 + R, F], row 0 the global [IMG] input: the mean of the (unmasked) regions' features. Masked rows are zero."""
    region_boxes: NDArray[np.float32] | None = None
    """[1 + R, 5] x1, y1, x2, y2, area as fractions; row 0 is (0, 0, 1, 1, 1)."""
    region_tags: NDArray[np.int32] | None = None
    """[1 + R, G] indices of further embeddings of each region, in data that have some; row 0 is `NO_TAG`. A masked region keeps
    its tags as it keeps its box: they say which region is to be predicted."""
    token_ids: NDArray[np.int32] | None = None
    """[n], [CLS] first."""
    token_positions: NDArray[np.int32] | None = None
    """[n] learned-position ids."""
    token_tags: NDArray[np.int32] | None = None
    """[G, n] indices of further embeddings of each token, for tasks that have some."""
    shares_prefix_at: int = 0
    """Distance, in sequences, to the one whose prefix this one sees before its own positions; 0: none."""
    prefix_length: int = 0
    """Positions that see each other and nothing later; the whole length where attention is bidirectional."""
    language_objective: LanguageObjective = LanguageObjective.MASKED
    language_at: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """[m] offsets whose hidden state predicts a token."""
    language_targets: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """[m]"""
    masked_region_at: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """[r] offsets of masked regions."""
    masked_region_features: NDArray[np.float16] | None = None
    """[r, F] the original features, or the targets made from them (`MaskingConfig.normalised_pixels`)."""
    masked_region_class_ids: NDArray[np.int32] | None = None
    """[r, K]"""
    masked_region_class_probabilities: NDArray[np.float16] | None = None
    """[r, K]"""

    @property
    def num_regions(self) -> int:
        """Image positions, [IMG] included."""
        return 0 if self.region_features is None else len(self.region_features)

    @property
    def num_tokens(self) -> int:
        return 0 if self.token_ids is None else len(self.token_ids)

    @property
    def length(self) -> int:
        return self.num_regions + self.num_tokens


@dataclass(frozen=True)
class Example:
    """One sample as it enters one step: its sequences, corrupted first."""

    key: str
    kind: Kind
    position: int
    """Position in the global sample sequence."""
    sequences: tuple[SequenceInput, ...]
    text_key: int = 0
    """Pairs: 63-bit hash of the drawn caption; equal captions are never each other's negatives."""
    image_key: int = 0
    """Pairs: number of the sample; related images are identified in the same way."""


@dataclass(frozen=True)
class ContrastTable:
    """Which images and texts are scored against each other, for the pairs of one micro-batch. Always on the host. Image and text
    vectors are rows of the batch's pooled [IMG] and [CLS] outputs."""

    pair_position: torch.Tensor
    """[P] int64, position of the pair in the global sample sequence (orders pairs across ranks and micro-batches)."""
    pair_group: torch.Tensor
    """[P] int64, number of the contrastive group within the step: only pairs of one group are each other's negatives."""
    pair_image: torch.Tensor
    """[P] int64, row of the image encoded alone."""
    pair_text: torch.Tensor
    """[P] int64, row of the caption encoded alone."""
    pair_image_key: torch.Tensor
    """[P] int64, as `Example.image_key`."""
    pair_text_key: torch.Tensor
    """[P] int64, as `Example.text_key`."""
    score_pair: torch.Tensor
    """[Q] int64, index into this table's pairs."""
    score_image: torch.Tensor
    """[Q] int64, row of the pooled images."""
    score_text: torch.Tensor
    """[Q] int64, row of the pooled texts."""
    score_role: torch.Tensor
    """[Q] int64, SequenceRole of what makes the score: JOINT_*, RELATED_*, or SINGLE_IMAGE for the pair's own single score,
    SINGLE_POSITIVE and SINGLE_NEGATIVE for rewrites encoded alone."""
    score_level: torch.Tensor
    """[Q] int64, Level of a negative rewrite."""
    score_key: torch.Tensor
    """[Q] int64, identity of a related item or a positive rewrite encoded alone (0 for the other roles)."""


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch of one rank: one stream without padding. Any count may be zero."""

    sequence_starts: torch.Tensor
    """[S + 1] int32, offsets of the sequences in the stream (`cu_seqlens` of FlashAttention)."""
    prefix_lengths: torch.Tensor
    """[S] int32: the first p positions of a sequence see each other and nothing later; position i >= p sees 0..i."""
    sequence_seeds: torch.Tensor
    """[S] int64, key of every dropout mask."""
    prefix_of: torch.Tensor
    """[S] int32, the sequence whose prefix this one sees before its own positions, -1: none."""
    position_sequence: torch.Tensor
    """[T] int32, the sequence of each stream position."""
    position_offset: torch.Tensor
    """[T] int32, its offset within that sequence."""
    position_keys: torch.Tensor
    """[T] int32, the part of every dropout mask's key that does not depend on the site (`seed.position_keys`)."""
    token_ids: torch.Tensor
    """[N_text] int32"""
    token_at: torch.Tensor
    """[N_text] int64, stream positions."""
    token_positions: torch.Tensor
    """[N_text] int32, learned-position ids."""
    region_features: torch.Tensor
    """[N_rows, F] float16, [IMG] rows included. An image shown in several sequences is stored, transferred and projected once."""
    region_boxes: torch.Tensor
    """[N_rows, 5] float32"""
    region_row: torch.Tensor
    """[N_regions] int64, the row shown at each image position of the stream."""
    region_at: torch.Tensor
    """[N_regions] int64, stream positions."""
    language_at: torch.Tensor
    """[N_language] int64, stream positions that predict a token."""
    language_targets: torch.Tensor
    """[N_language] int64"""
    language_objectives: torch.Tensor
    """[N_language] int64, LanguageObjective"""
    masked_region_at: torch.Tensor
    """[N_masked] int64, stream positions."""
    masked_region_features: torch.Tensor
    """[N_masked, F] float16"""
    masked_region_class_ids: torch.Tensor
    """[N_masked, K] int64"""
    masked_region_class_probabilities: torch.Tensor
    """[N_masked, K] float32"""
    pooled_image_at: torch.Tensor
    """[N_pooled_images] int64, stream positions of [IMG] whose pooled vector is wanted."""
    pooled_text_at: torch.Tensor
    """[N_pooled_texts] int64, stream positions of [CLS] whose pooled vector is wanted."""
    contrast: ContrastTable
    longest: int
    """Length of the longest sequence (known on the host, so that no kernel launch waits for the device)."""
    shares_prefixes: bool = False
    """Whether any of `prefix_of` names a sequence (known on the host for the same reason)."""
    keys: tuple[str, ...] = ()
    """Keys of the samples inside, for logs."""
    token_tags: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    """[G, N_text] int64, indices of further embeddings of each token; [0, 0] where there are none."""
    region_tags: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    """[N_rows, G] int64, indices of further embeddings of each region; G is 0 where there are none."""
    image_starts: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int32))
    """[N_images + 1] int32, offsets of the images among the rows."""
    longest_image: int = 0
    """Rows of the longest image, known on the host."""

    @property
    def num_positions(self) -> int:
        return int(self.position_sequence.shape[0])

    @property
    def num_sequences(self) -> int:
        return int(self.prefix_lengths.shape[0])

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`; copies are asynchronous where memory is pinned. Only its own tensors are there: `contrast`
        stays on the host."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        own = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        there: dict[str, Any] = dict(zip(own, moved(tuple(own.values()), device), strict=True))
        return dataclasses.replace(self, **there)


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read, and what took its place."""

    key: str
    reason: str
    substitute: str


@dataclass(frozen=True)
class StepBatch:
    """Everything one rank reads for one optimizer step."""

    step: int
    micro_batches: tuple[PackedBatch, ...]
    """The same number on every rank; some may be empty."""
    num_samples: int
    """Samples in the global batch."""
    bad_samples: tuple[BadSample, ...] = ()
    bytes_read: int = 0
