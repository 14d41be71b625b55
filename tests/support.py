"""Small inputs that many tests share: examples of every kind, made from a seed, and a model to fit them."""

from __future__ import annotations

import dataclasses

import numpy as np

from unimo_ds.config import ModelConfig
from unimo_ds.data.schema import (
    CLS,
    FIRST_POSITION,
    NO_TAG,
    SEP,
    Example,
    Kind,
    LanguageObjective,
    Level,
    SequenceInput,
    SequenceRole,
)
from unimo_ds.utils.seed import generator, mix

FEATURES, CLASSES, STORED_CLASSES, VOCABULARY = 12, 7, 2, 50
REGION_TAG_SIZES = (4, 5)


def model_config(**changes) -> ModelConfig:
    """Two layers of two heads; dropout on unless changed."""
    sizes = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "feed_forward_size": 64,
        "vocabulary_size": VOCABULARY,
        "max_positions": 66,
        "region_feature_size": FEATURES,
        "num_region_classes": CLASSES,
    }
    return ModelConfig(**{**sizes, **changes})


def tokens(random: np.random.Generator, count: int) -> np.ndarray:
    return np.concatenate(([CLS], random.integers(4, VOCABULARY - 1, count), [SEP])).astype(np.int32)


def regions(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [1 + count, F] float16 and boxes [1 + count, 5], the global input first."""
    features = random.standard_normal((count, FEATURES)).astype(np.float16)
    corner = random.random((count, 2)) * 0.5
    size = random.random((count, 2)) * 0.5
    boxes = np.concatenate((corner, corner + size, size.prod(1, keepdims=True)), 1)
    features = np.concatenate((features.mean(0, keepdims=True), features))
    return features.astype(np.float16), np.concatenate(([[0, 0, 1, 1, 1]], boxes)).astype(np.float32)


def region_tags(boxes: np.ndarray) -> np.ndarray:
    """[1 + R, 2] tags within `REGION_TAG_SIZES` that follow from `regions`' boxes; some regions have none, nor has [IMG]."""
    return (boxes[:, :2] * (2 * (np.array(REGION_TAG_SIZES) + 1))).astype(np.int32) + NO_TAG


def tagged(example: Example) -> Example:
    """The same with tags of its regions."""
    sequences = [
        one if one.region_boxes is None else dataclasses.replace(one, region_tags=region_tags(one.region_boxes))
        for one in example.sequences
    ]
    return dataclasses.replace(example, sequences=tuple(sequences))


def sequence(
    role: SequenceRole,
    seed: int,
    *,
    image: tuple[np.ndarray, np.ndarray] | None = None,
    text: np.ndarray | None = None,
    level: Level = Level.NONE,
    corrupt: bool = False,
    generative: bool = False,
) -> SequenceInput:
    """One input; `corrupt` adds targets of every objective that its parts allow, `generative` a causal second half."""
    random = generator(seed, 1)
    num_regions = 0 if image is None else len(image[0])
    num_tokens = 0 if text is None else len(text)
    length = num_regions + num_tokens
    fields = {"prefix_length": length}
    if corrupt and text is not None:
        half = num_tokens // 2
        at = np.arange(half, num_tokens - 1) if generative else np.arange(1, num_tokens, 3)
        fields.update(
            prefix_length=num_regions + half if generative else length,
            language_objective=LanguageObjective.SEQUENCE_TO_SEQUENCE if generative else LanguageObjective.MASKED,
            language_at=(at + num_regions).astype(np.int32),
            language_targets=random.integers(4, VOCABULARY, len(at)).astype(np.int32),
        )
    if corrupt and image is not None:
        at = np.arange(1, num_regions, 2).astype(np.int32)
        fields.update(
            masked_region_at=at,
            masked_region_features=random.standard_normal((len(at), FEATURES)).astype(np.float16),
            masked_region_class_ids=random.integers(0, CLASSES, (len(at), STORED_CLASSES)).astype(np.int32),
            masked_region_class_probabilities=random.random((len(at), STORED_CLASSES)).astype(np.float16) + 0.1,
        )
    return SequenceInput(
        role=role,
        seed=seed,
        level=level,
        item_key=seed if role.name.startswith("RELATED") or role is SequenceRole.SINGLE_POSITIVE else 0,
        region_features=None if image is None else image[0],
        region_boxes=None if image is None else image[1],
        token_ids=text,
        token_positions=None if text is None else (np.arange(num_tokens) + FIRST_POSITION).astype(np.int32),
        **fields,
    )


def example(position: int, *, seed: int = 0, kind: Kind | None = None) -> Example:
    """The example at a global position: images, texts and pairs in turn (1 : 1 : 3) unless `kind` says which."""
    random = generator(seed, position)
    kind = (Kind.IMAGE, Kind.TEXT, Kind.PAIR, Kind.PAIR, Kind.PAIR)[position % 5] if kind is None else kind
    image, text = regions(random, int(random.integers(2, 6))), tokens(random, int(random.integers(3, 12)))
    made: list[SequenceInput] = []

    def add(role: SequenceRole, **arguments) -> None:
        made.append(sequence(role, mix(seed, position, len(made)), **arguments))

    add(
        SequenceRole.CORRUPTED,
        image=None if kind == Kind.TEXT else image,
        text=None if kind == Kind.IMAGE else text,
        corrupt=True,
        generative=position % 2 == 0,
    )
    if kind == Kind.PAIR:
        add(SequenceRole.SINGLE_IMAGE, image=image)
        add(SequenceRole.SINGLE_TEXT, text=text)
        add(SequenceRole.JOINT_PAIR, image=image, text=text)
        add(SequenceRole.JOINT_POSITIVE, image=image, text=tokens(random, 5))
        for level in (Level.SENTENCE, Level.WORD):
            add(SequenceRole.JOINT_NEGATIVE, image=image, text=tokens(random, 6), level=level)
        add(SequenceRole.RELATED_IMAGE, image=regions(random, 3))
        add(SequenceRole.RELATED_TEXT, text=tokens(random, 4))
        add(SequenceRole.SINGLE_POSITIVE, text=tokens(random, 5))
        add(SequenceRole.SINGLE_NEGATIVE, text=tokens(random, 6), level=Level.PHRASE)
    return Example(
        key=f"shard:{position}",
        kind=kind,
        position=position,
        sequences=tuple(made),
        text_key=1000 + position,
        image_key=2000 + position,
    )
