"""The whole pipeline on real shards: import's writer, index, corpus, trained tokenizer, loader."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.data.corpora import make_config, make_samples
from tests.data.shard_folders import WordTokenizer as OneTokenAWord
from unimo_ds.config import RunConfig
from unimo_ds.data import step_reader
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.corpus_check import check_corpus
from unimo_ds.data.loader import StepLoader
from unimo_ds.data.schema import Kind, Sample, StepBatch
from unimo_ds.data.storage.folder import finish_folder
from unimo_ds.data.storage.manifest import ExtractorEntry
from unimo_ds.data.storage.members import texts_of
from unimo_ds.data.storage.shards import StoredSample, write_shards
from unimo_ds.data.viewing.inspect_order import inspect_order
from unimo_ds.utils.errors import UserError


def write_folder(folder: Path) -> Path:
    samples = make_samples(images=12, texts=12, pairs=20)
    tokenizer = tokenizers.train(
        [text.text for sample in samples for text in texts_of(sample)], vocabulary_size=300, output=folder
    )
    for kind in Kind:
        own = (StoredSample(with_real_shard_names(sample)) for sample in samples if sample.kind is kind)
        write_shards(folder, kind.name.lower(), own, max_samples=10)
    finish_folder(
        folder, tokenizer=tokenizer, extractor=ExtractorEntry("random"), num_region_classes=9, command="make test data"
    )
    return folder


def with_real_shard_names(sample: Sample) -> Sample:
    named = tuple((f"image-{int(shard[6:-4]):06}.tar", index) for shard, index in sample.related_images)
    return dataclasses.replace(sample, related_images=named)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("shards"))


def config_for(corpus: Corpus, **changes: int) -> RunConfig:
    config = make_config(**changes)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocabulary_size=corpus.vocabulary_size))


def content(batches: list[StepBatch]) -> list[tuple]:
    return [
        (micro.keys, micro.token_ids.tolist(), micro.region_features.tolist(), micro.sequence_seeds.tolist())
        for batch in batches
        for micro in batch.micro_batches
    ]


def test_steps_from_shards_are_what_was_promised(folder: Path) -> None:
    corpus = Corpus.open(folder)
    config = config_for(corpus)
    check_corpus(corpus, config)
    here = list(StepLoader(corpus, config, 0, 1, 0, 4))
    assert here[0].bytes_read > 0
    assert not any(batch.bad_samples for batch in here)
    told = inspect_order(corpus, config, steps=range(4), world_size=1)["steps"]
    assert [list(micro.keys) for batch in here for micro in batch.micro_batches] == [s["global_batch"] for s in told]
    in_workers = list(StepLoader(Corpus.open(folder), config_for(corpus, num_workers=2), 0, 1, 0, 4))
    assert content(in_workers) == content(here)
    resumed = list(StepLoader(Corpus.open(folder), config, 0, 1, 3, 4))
    assert content(resumed) == content(here[3:])


def test_a_flipped_byte_is_named_and_replaced(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    corpus = Corpus.open(folder)
    config = config_for(corpus)
    (first,) = inspect_order(corpus, config, steps=range(1), world_size=1)["steps"]
    victim = next(key for key in first["global_batch"] if key.startswith("pair"))
    shard = folder / victim.partition(":")[0]
    features = corpus.read([corpus.key(i) for i in range(len(corpus))].index(victim)).regions.features.tobytes()
    damaged = bytearray(shard.read_bytes())
    damaged[damaged.index(features) + 5] ^= 1
    shard.write_bytes(damaged)
    for num_workers in (0, 1):
        batches = list(StepLoader(Corpus.open(folder), config_for(corpus, num_workers=num_workers), 0, 1, 0, 1))
        (bad,) = batches[0].bad_samples
        assert bad.key == victim
        assert "checksum" in bad.reason
        assert bad.substitute.startswith("pair")
        keys = [key for micro in batches[0].micro_batches for key in micro.keys]
        expected = [bad.substitute if key == victim else key for key in first["global_batch"]]
        assert keys == expected
    split = [next(iter(StepLoader(Corpus.open(folder), config, rank, 2, 0, 1))) for rank in range(2)]
    assert [bad.substitute for batch in split for bad in batch.bad_samples] == [bad.substitute]
    assert sorted(key for batch in split for micro in batch.micro_batches for key in micro.keys) == sorted(expected)


def test_an_index_counted_by_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    finish_folder(
        folder,
        tokenizer=OneTokenAWord(),
        extractor=ExtractorEntry("random"),
        num_region_classes=9,
        command="make test data",
        reindex=True,
    )
    corpus = Corpus.open(folder)
    with pytest.raises(UserError, match="unimo prepare pack"):
        list(StepLoader(corpus, config_for(corpus), 0, 1, 0, 1))


def test_the_corpus_and_its_loader_keep_to_the_index(folder: Path) -> None:
    corpus = Corpus.open(folder)
    config = config_for(corpus, micro_batch_tokens=1500)
    for batch in StepLoader(corpus, config, 1, 3, 10**6, 10**6 + 3):
        assert all(micro.num_positions <= 1500 for micro in batch.micro_batches)
        for micro in batch.micro_batches:
            assert np.isin(micro.token_ids.numpy(), np.arange(corpus.vocabulary_size)).all()


@pytest.mark.parametrize("how", ["another file", "other bytes", "cut"])
def test_a_shard_that_changes_under_its_reader(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is right, what can no longer be read is named and replaced by what can; nothing in between."""
    monkeypatch.setattr(step_reader, "_SAMPLE_CACHE_BYTES", 0)
    folder = write_folder(tmp_path)
    config = config_for(Corpus.open(folder))
    expected = list(StepLoader(Corpus.open(folder), config, 0, 1, 0, 6))
    loader = iter(StepLoader(Corpus.open(folder), config, 0, 1, 0, 6))
    found = [next(loader), next(loader)]
    for shard in folder.glob("pair*.tar"):
        size = shard.stat().st_size
        if how == "another file":
            other = shard.with_name("other")
            other.write_bytes(bytes(size))
            other.rename(shard)
        elif how == "other bytes":
            shard.write_bytes(bytes(size))
        else:
            with shard.open("r+b") as file:
                file.truncate(size // 2)
    found += loader
    bad = [sample for batch in found for sample in batch.bad_samples]
    if how == "another file":
        assert content(found) == content(expected), "an open shard is read to its end"
        again = list(StepLoader(Corpus.open(folder), config, 0, 1, 2, 6))
        bad = [sample for batch in again for sample in batch.bad_samples]
    assert {sample.key[:4] for sample in bad} == {"pair"}
    assert all("checksum" in sample.reason or "cut" in sample.reason for sample in bad)
    assert content(found[:2]) == content(expected[:2])
    named = {sample.key for sample in bad}
    pairs = zip(expected, found, strict=True)
    for before, after in pairs if how == "cut" else ():
        read = {key for micro in after.micro_batches for key in micro.keys}
        assert {key for micro in before.micro_batches for key in micro.keys} - named <= read
