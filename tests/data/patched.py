"""Data whose regions are patches of drawn photographs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.data.corpora import make_config, make_samples
from tests.data.prepare.raw import picture
from unimo_ds.config import RunConfig
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.schema import Kind, PatchGrid, Sample
from unimo_ds.data.storage import index
from unimo_ds.data.storage.folder import finish_folder
from unimo_ds.data.storage.manifest import ExtractorEntry
from unimo_ds.data.storage.members import texts_of
from unimo_ds.data.storage.shards import StoredSample, rewrite_shard, write_shards
from unimo_ds.data.vision import patches
from unimo_ds.data.vision.images import encode_jpeg
from unimo_ds.data.vision.patch_extractor import PatchExtractor

GRID = PatchGrid(rows=2, columns=3, side=4)


def jpeg_of(number: int) -> bytes:
    """A photograph, a function of its number; every third is many times larger than the grid."""
    scale = 5 if number % 3 == 0 else 1
    return encode_jpeg(picture(number).resize((80 * scale, 60 * scale)))


def write_folder(folder: Path, *, images: int = 12, texts: int = 12, pairs: int = 20) -> Path:
    """Images, pairs and texts, in shards of ten at most."""
    samples = make_samples(images=images, texts=texts, pairs=pairs)
    words = [text.text for sample in samples for text in texts_of(sample)]
    tokenizer = tokenizers.train(words, vocabulary_size=300, output=folder)
    for kind in Kind:
        stored = (
            StoredSample(sample) if sample.regions is None else StoredSample(_patched(sample), jpeg_of(number))
            for number, sample in enumerate(samples)
            if sample.kind is kind
        )
        write_shards(folder, kind.name.lower(), stored, max_samples=10)
    extractor = PatchExtractor(GRID)
    extractor.save(folder)
    finish_folder(
        folder,
        tokenizer=tokenizer,
        extractor=ExtractorEntry(extractor.fingerprint, "extractor.safetensors"),
        num_region_classes=1,
        command="make test data",
    )
    return folder


def _patched(sample: Sample) -> Sample:
    named = tuple((f"image-{int(shard[6:-4]):06}.tar", index) for shard, index in sample.related_images)
    return dataclasses.replace(sample, regions=patches.uncut(GRID), related_images=named)


def spoil(folder: Path, key: str) -> None:
    """Put a JPEG that breaks off in the middle into a sample, under right checksums, as another program may write it."""
    name, _, base = key.partition(":")

    def cut_off(_: int, stored: StoredSample) -> StoredSample:
        if not stored.sample.key.endswith(base):
            return stored
        assert stored.jpeg is not None
        return dataclasses.replace(stored, jpeg=stored.jpeg[: len(stored.jpeg) // 2])

    tokenizer = tokenizers.load(folder)
    rewrite_shard(folder / name, cut_off)
    index.build_index(folder / name, tokenizer, pixels=False)
    finish_folder(folder, tokenizer=tokenizer, command="spoil test data")


def config_for(corpus: Corpus, *, num_workers: int = 0, micro_batch_tokens: int = 4000) -> RunConfig:
    config = make_config(num_workers=num_workers, micro_batch_tokens=micro_batch_tokens)
    model = dataclasses.replace(
        config.model,
        vocabulary_size=corpus.vocabulary_size,
        region_feature_size=GRID.feature_size,
        num_region_classes=1,
        region_tag_sizes=(GRID.num_patches,),
    )
    return dataclasses.replace(config, model=model)
