"""A small corpus in memory with the attributes of `corpus.Corpus`, and a tokenizer of whole words, for tests of the pipeline."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from unimo_ds.config import (
    BatchConfig,
    ContrastConfig,
    DataConfig,
    KindWeights,
    MaskingConfig,
    ModelConfig,
    RunConfig,
)
from unimo_ds.data.corpus import CorruptSample
from unimo_ds.data.schema import Caption, Kind, Level, Regions, Rewrite, Sample
from unimo_ds.data.selection import CorpusIndex, select_step
from unimo_ds.data.step_selection import Selection
from unimo_ds.data.storage.members import texts_of
from unimo_ds.data.vision import region_tags

FEATURES, CLASSES, STORED_CLASSES, VOCABULARY = 12, 9, 2, 500


class WordTokenizer:
    """Four letters a token; even ids begin a word, odd ones continue it. Ids below 4 and the last are special."""

    vocabulary_size = VOCABULARY
    mask_id = VOCABULARY - 1
    special = np.isin(np.arange(VOCABULARY), [0, 1, 2, 3, VOCABULARY - 1])
    starts_word = np.arange(VOCABULARY) % 2 == 0
    num_bytes = np.full(VOCABULARY, 4)
    fingerprint = "words"

    def encode(self, text: str) -> np.ndarray:
        ids = []
        for word in text.split():
            for start in range(0, len(word), 4):
                ids.append(4 + zlib.crc32(word[start : start + 4].encode()) % 240 * 2 + (start > 0))
        return np.array(ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]


def make_regions(random: np.random.Generator, count: int, *, features: int = FEATURES) -> Regions:
    corner = random.random((count, 2)) * 0.7
    size = random.random((count, 2)) * 0.3
    return Regions(
        boxes=np.concatenate([corner, corner + size], 1).astype(np.float32),
        # No value is zero, so that a zeroed row is seen.
        features=(random.random((count, features)) + 0.5).astype(np.float16),
        class_ids=random.integers(0, CLASSES, (count, STORED_CLASSES)).astype(np.int32),
        class_probabilities=random.random((count, STORED_CLASSES)).astype(np.float16),
    )


def make_text(random: np.random.Generator, words: int) -> str:
    return " ".join("".join(random.choice(list("abcdefghij"), random.integers(1, 9))) for _ in range(words))


def make_pair(random: np.random.Generator, key: str, related_images: Sequence[tuple[str, int]]) -> Sample:
    def rewrite(level: Level) -> Rewrite:
        return Rewrite(make_text(random, int(random.integers(3, 12))), level)

    captions = tuple(
        Caption(
            text=make_text(random, int(random.integers(3, 12))),
            positives=tuple(rewrite(Level.NONE) for _ in range(random.integers(0, 3))),
            negatives=tuple(
                rewrite(level)
                for _ in range(random.integers(0, 4))
                for level in (Level.SENTENCE, Level.WORD, Level.PHRASE)
            ),
        )
        for _ in range(random.integers(1, 4))
    )
    return Sample(
        key=key,
        kind=Kind.PAIR,
        source="pairs",
        regions=make_regions(random, int(random.integers(1, 9))),
        captions=captions,
        related_texts=tuple(make_text(random, 6) for _ in range(random.integers(0, 3))),
        related_images=tuple(related_images),
    )


class MemoryCorpus:
    """Everything in memory; `broken` names samples that read as damaged."""

    def __init__(self, samples: Sequence[Sample], tokenizer: WordTokenizer, *, broken: Sequence[int] = ()) -> None:
        self.samples = list(samples)
        self.broken = set(broken)
        self.num_samples = len(self.samples)
        self.bytes_read = 0
        self.num_reads = 0
        self.vocabulary_size = tokenizer.vocabulary_size
        self.feature_size, self.num_region_classes, self.classes_per_region = FEATURES, CLASSES, STORED_CLASSES
        self.region_tag_sizes = region_tags.common(
            region_tags.sizes_of(s.regions) for s in samples if s.regions is not None
        )
        self.patch_grid = None
        self.has_stored_regions = any(sample.regions is not None for sample in samples)
        shards = list(dict.fromkeys(sample.key.partition(":")[0] for sample in samples))
        first = {shard: next(i for i, s in enumerate(samples) if s.key.startswith(f"{shard}:")) for shard in shards}
        self.kinds = np.array([sample.kind for sample in samples], np.uint8)
        self.source_names = tuple(sorted({sample.source for sample in samples}))
        self.source_ids = np.array([self.source_names.index(sample.source) for sample in samples], np.int32)
        self.shard_of = np.array([shards.index(sample.key.partition(":")[0]) for sample in samples], np.int32)
        self.folder_of_shard, self.folder_names = np.zeros(len(shards), np.int32), ("memory",)
        self.num_regions = np.array([0 if s.regions is None else len(s.regions.boxes) for s in samples], np.int32)
        texts = [texts_of(sample) for sample in samples]
        flat = [text for own in texts for text in own]
        self.text_start = np.cumsum([0, *map(len, texts)]).astype(np.int64)
        self.text_role = np.array([text.role for text in flat], np.uint8)
        self.text_level = np.array([text.level for text in flat], np.uint8)
        self.text_caption = np.array([text.caption for text in flat], np.int32)
        self.text_tokens = np.array([len(tokenizer.encode(text.text)) for text in flat], np.int32)
        related = [[first[shard] + index for shard, index in sample.related_images] for sample in samples]
        self.related_image_start = np.cumsum([0, *map(len, related)]).astype(np.int64)
        self.related_image_index = np.array([index for own in related for index in own], np.int64)

    def key(self, sample: int) -> str:
        return self.samples[sample].key

    def expect(self, samples: Iterable[int]) -> None:
        """It is all there."""

    def read(self, sample: int) -> Sample:
        if sample in self.broken:
            raise CorruptSample(self.key(sample), "damaged for the test")
        self.num_reads += 1
        self.bytes_read += 100
        return self.samples[sample]


def make_samples(
    *, images: int = 30, texts: int = 40, pairs: int = 60, shard_size: int = 10, seed: int = 0
) -> list[Sample]:
    """Images, texts (one much longer than the others) and pairs, in shards of one kind."""
    random = np.random.default_rng(seed)
    samples = [
        Sample(f"image-{i // shard_size}.tar:{i:05}", Kind.IMAGE, "photos", make_regions(random, 1 + i % 7))
        for i in range(images)
    ]
    samples += [
        Sample(
            f"text-{i // shard_size}.tar:{i:05}",
            Kind.TEXT,
            "books" if i % 2 else "news",
            text=make_text(random, 90 if i == 3 else int(random.integers(2, 30))),
        )
        for i in range(texts)
    ]
    for i in range(pairs):
        chosen = random.choice(images, random.integers(0, 4), replace=False).tolist() if images > 4 else []
        references = [(f"image-{image // shard_size}.tar", image % shard_size) for image in chosen]
        samples.append(make_pair(random, f"pair-{i // shard_size}.tar:{i:05}", references))
    return samples


def make_corpus(*, broken: Sequence[int] = (), **sizes: int) -> MemoryCorpus:
    return MemoryCorpus(make_samples(**sizes), WordTokenizer(), broken=broken)


def make_config(
    *,
    contrast: ContrastConfig | None = None,
    global_samples: int = 14,
    micro_batch_tokens: int = 4000,
    num_workers: int = 0,
    max_text_tokens: int = 64,
    max_regions: int = 6,
    kind_weights: KindWeights | None = None,
    masking: MaskingConfig | None = None,
    seed: int = 3,
) -> RunConfig:
    return RunConfig(
        recipe="test",
        seed=seed,
        model=ModelConfig(
            hidden_size=32,
            num_heads=2,
            vocabulary_size=VOCABULARY,
            max_positions=66,
            region_feature_size=FEATURES,
            num_region_classes=CLASSES,
        ),
        data=DataConfig(
            path="memory",
            kind_weights=kind_weights or KindWeights(),
            shuffle_window_shards=2,
            max_text_tokens=max_text_tokens,
            max_regions=max_regions,
            num_workers=num_workers,
        ),
        batch=BatchConfig(global_samples=global_samples, micro_batch_tokens=micro_batch_tokens),
        masking=masking or MaskingConfig(),
        contrast=contrast or ContrastConfig(positives=2, word_negatives=2, related_images=2, related_texts=1),
    )


def select(corpus: CorpusIndex, sample: int, position: int, config: RunConfig) -> Selection:
    """The visit of one sample at this position, alone in its step."""
    return select_step(corpus, np.array([sample]), np.array([position]), config)[0]
