"""A small corpus of pairs with rewrites on disk, and a model that fits it."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from tests import support
from unimo_ds.config import BatchConfig, DataConfig, RunConfig
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.schema import Caption, Kind, Level, Regions, Rewrite, Sample
from unimo_ds.data.storage.folder import finish_folder
from unimo_ds.data.storage.shards import StoredSample, write_shards
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils.communicator import Communicator, SingleProcess
from unimo_ds.utils.seed import generator

FEATURES, CLASSES, STORED = 8, 6, 2
COLOURS, SHAPES = ("red", "blue", "green", "black"), ("ball", "box", "cone", "ring")


def regions(number: int) -> Regions:
    random = generator(7, number)
    count = int(random.integers(2, 6))
    corner, size = random.random((count, 2)) * 0.5, random.random((count, 2)) * 0.4 + 0.05
    return Regions(
        boxes=np.concatenate([corner, corner + size], 1).astype(np.float32),
        features=random.standard_normal((count, FEATURES)).astype(np.float16),
        class_ids=random.integers(0, CLASSES, (count, STORED)).astype(np.int32),
        class_probabilities=np.full((count, STORED), 0.4, np.float16),
    )


def pair(number: int) -> Sample:
    """One or two captions, each with up to one negative a level."""
    random = generator(8, number)
    colour, shape = COLOURS[number % 4], SHAPES[number // 4 % 4]
    captions = []
    for ordinal in range(1 + number % 2):
        text = f"a {colour} {shape} number {number}" + " is here" * int(random.integers(0, 4)) + " again" * ordinal
        captions.append(
            Caption(
                text,
                positives=(Rewrite(f"one {shape} that is {colour}", Level.NONE, "template"),),
                negatives=(
                    Rewrite(f"some other text {number}", Level.SENTENCE, "similar"),
                    Rewrite(text.replace(colour, "white"), Level.WORD, f"{colour}>white"),
                    Rewrite(text.replace(colour, "pink"), Level.WORD, f"{colour}>pink"),
                ),
            )
        )
    return Sample(key="", kind=Kind.PAIR, source="toys", regions=regions(number), captions=tuple(captions))


def jpeg(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (24, 16), (number * 9 % 256, 80, 160)).save(stream, "JPEG")
    return stream.getvalue()


def write_corpus(folder: Path, *, num_pairs: int, with_jpegs: bool = True, with_rewrites: bool = True) -> Path:
    """Pairs, with one text sample in front so that sample numbers and pair numbers differ."""
    pairs = [pair(number) for number in range(num_pairs)]
    texts = [rewrite.text for sample in pairs for caption in sample.captions for rewrite in caption.negatives]
    if not with_rewrites:
        pairs = [
            dataclasses.replace(sample, captions=tuple(Caption(caption.text) for caption in sample.captions))
            for sample in pairs
        ]
    tokenizer = tokenizers.train(texts, vocabulary_size=300, output=folder)
    text = StoredSample(Sample(key="", kind=Kind.TEXT, source="words", text="a lonely text"))
    stored = [StoredSample(sample, jpeg(number) if with_jpegs else None) for number, sample in enumerate(pairs)]
    write_shards(folder, "pairs", [text, *stored], max_samples=5)
    finish_folder(folder, tokenizer=tokenizer, num_region_classes=CLASSES, command="test")
    return folder


def run_config(folder: Path) -> RunConfig:
    corpus = Corpus.open(folder)
    return RunConfig(
        recipe="test",
        model=support.model_config(
            num_layers=1,
            feed_forward_size=48,
            vocabulary_size=corpus.vocabulary_size,
            region_feature_size=FEATURES,
            num_region_classes=CLASSES,
        ),
        data=DataConfig(path=str(folder), held_out_path=str(folder), max_text_tokens=64, max_regions=4),
        batch=BatchConfig(global_samples=4, micro_batch_tokens=96),
    )


@dataclasses.dataclass
class PlainEngine:
    """A model on the CPU and a communicator; counts forwards."""

    module: nn.Module
    communicator: Communicator = dataclasses.field(default_factory=SingleProcess)
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    forwards: int = 0

    def forward(self, batch):
        self.forwards += 1
        return self.module(batch)


def make_engine(config: RunConfig, communicator: Communicator | None = None) -> PlainEngine:
    return PlainEngine(Unimo(config.model, seed=3), communicator or SingleProcess())
