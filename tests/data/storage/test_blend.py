"""Folders in several places are read as one folder that holds their shards would be, or refused with what sets them apart."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.data.corpora import STORED_CLASSES, make_config, make_samples
from tests.data.shard_folders import assert_same_sample
from unimo_ds.config import KindWeights, RunConfig
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.corpus import Corpus, CorruptSample
from unimo_ds.data.corpus_check import check_corpus, check_made_alike
from unimo_ds.data.loader import BadSampleLimit, StepLoader
from unimo_ds.data.schema import BadSample, Kind, Sample, StepBatch
from unimo_ds.data.step_plan import order_of
from unimo_ds.data.storage import cache, manifest, shards
from unimo_ds.data.storage.blend import still_there
from unimo_ds.data.storage.folder import finish_folder
from unimo_ds.data.storage.manifest import ExtractorEntry
from unimo_ds.data.storage.members import texts_of
from unimo_ds.data.viewing.inspect_order import inspect_order
from unimo_ds.data.viewing.sample_page import sample_number, sample_page
from unimo_ds.utils.errors import UserError

FACTS = (
    *("kinds", "source_ids", "num_regions", "shard_of", "shard_start", "text_start", "text_role", "text_level"),
    *("text_caption", "text_tokens", "related_image_start", "related_image_index"),
)
OF_ALL = ("source_names", "feature_size", "classes_per_region", "num_region_classes", "vocabulary_size", "fingerprint")


def write_shards(folder: Path, samples: list[Sample], *, prefix: str = "") -> None:
    """Shards of ten, of one kind each; equal names in equal folders unless they have a prefix."""
    stored = []
    for number, sample in enumerate(samples):
        related = tuple((f"{prefix}image-{int(shard[6:-4]):06}.tar", index) for shard, index in sample.related_images)
        renamed = dataclasses.replace(sample, related_images=related)
        stored.append(shards.StoredSample(renamed, details={"file": f"{prefix}{number}.jpg"}))
    for kind in Kind:
        own = (one for one in stored if one.sample.kind is kind)
        shards.write_shards(folder, f"{prefix}{kind.name.lower()}", own, max_samples=10)


def finish(folder: Path, tokenizer: tokenizers.Tokenizer, *, extractor: str = "random", classes: int = 9) -> Path:
    tokenizer.save(folder)
    finish_folder(
        folder,
        tokenizer=tokenizer,
        extractor=ExtractorEntry(extractor),
        num_region_classes=classes,
        command="make test data",
    )
    return folder


@dataclasses.dataclass(frozen=True)
class Folders:
    one: Path
    other: Path
    both: Path
    """Holds the shards of both."""

    @property
    def blend(self) -> str:
        return f"{self.one}::{self.other}"


ONE = make_samples(images=12, texts=12, pairs=20, seed=0)
OTHER = make_samples(images=5, texts=31, pairs=17, seed=1)


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    texts = [text.text for sample in ONE for text in texts_of(sample)]
    return tokenizers.train(texts, vocabulary_size=300)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: tokenizers.Tokenizer) -> Folders:
    """Names of the one's shards sort before those of the other's."""
    root = tmp_path_factory.mktemp("blend")
    made = Folders(root / "one", root / "other", root / "both")
    write_shards(made.one, ONE, prefix="a-")
    write_shards(made.other, OTHER, prefix="b-")
    made.both.mkdir()
    for shard in (*made.one.glob("*.tar"), *made.other.glob("*.tar")):
        os.link(shard, made.both / shard.name)
    for folder in (made.one, made.other, made.both):
        finish(folder, tokenizer)
    return made


@pytest.fixture(scope="module")
def namesakes(tmp_path_factory: pytest.TempPathFactory, tokenizer: tokenizers.Tokenizer) -> Folders:
    """The same samples in folders whose shards have equal names."""
    root = tmp_path_factory.mktemp("namesakes")
    write_shards(root / "one", ONE)
    write_shards(root / "other", OTHER)
    return Folders(finish(root / "one", tokenizer), finish(root / "other", tokenizer), root)


def config_for(corpus: Corpus, **changes: int) -> RunConfig:
    config = make_config(**changes)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocabulary_size=corpus.vocabulary_size))


def content(batches: list[StepBatch]) -> list[tuple]:
    return [
        (micro.token_ids.tolist(), micro.region_features.tolist(), micro.sequence_seeds.tolist())
        for batch in batches
        for micro in batch.micro_batches
    ]


def test_two_folders_are_read_as_the_one_that_holds_both(folders: Folders) -> None:
    blend, both = Corpus.open(folders.blend), Corpus.open(folders.both)
    for name in FACTS:
        found, expected = getattr(blend, name), getattr(both, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, err_msg=name)
    assert [getattr(blend, name) for name in OF_ALL] == [getattr(both, name) for name in OF_ALL]
    assert blend.classes_per_region == STORED_CLASSES
    for number in range(len(both)):
        assert_same_sample(blend.read(number), both.read(number))
        assert blend.read_jpeg(number) == both.read_jpeg(number)
        assert blend.details(number) == both.details(number)
    config = config_for(both)
    check_corpus(blend, config)
    assert content(list(StepLoader(blend, config, 0, 1, 0, 9))) == content(list(StepLoader(both, config, 0, 1, 0, 9)))


@pytest.mark.parametrize("which", ["one", "other", "both"])
def test_a_folder_alone_is_what_its_manifest_says(folders: Folders, which: str) -> None:
    """What a run records of it, and how it names samples, is as before there were blends."""
    folder = getattr(folders, which)
    corpus, known = Corpus.open(folder), manifest.load_manifest(folder)
    assert corpus.manifest == known
    assert corpus.fingerprint == known.fingerprint
    assert [corpus.key(int(first)) for first in corpus.shard_start[:-1]] == [
        f"{entry.file}:{entry.file[:-4]}-000000" for entry in known.shards
    ]


def test_the_facts_of_each_folder_come_in_turn(namesakes: Folders) -> None:
    blend, one, other = (Corpus.open(place) for place in (namesakes.blend, namesakes.one, namesakes.other))
    assert len(blend) == len(one) + len(other)
    for name in ("kinds", "num_regions", "text_role", "text_level", "text_caption", "text_tokens"):
        joined = np.concatenate([getattr(one, name), getattr(other, name)])
        np.testing.assert_array_equal(getattr(blend, name), joined)
    assert set(blend.source_names) == {"photos", "books", "news", "pairs"}, "a source of both is one"
    # Images that pairs are related to lie in the pair's own folder, though the other one has a shard of that name.
    shifted = np.concatenate([one.related_image_index, other.related_image_index + len(one)])
    np.testing.assert_array_equal(blend.related_image_index, shifted)
    keys = [blend.key(number) for number in range(len(blend))]
    assert len(set(keys)) == len(blend)
    assert keys[0] == f"{namesakes.one}/{one.key(0)}"
    assert keys[-1] == f"{namesakes.other}/{other.key(len(other) - 1)}"
    assert [blend.read(number).key for number in range(len(blend))] == keys
    assert [sample_number(blend, key) for key in keys] == list(range(len(blend)))


def test_related_images_are_shown_from_the_pairs_own_folder(namesakes: Folders) -> None:
    blend, other = Corpus.open(namesakes.blend), Corpus.open(namesakes.other)
    offset = len(blend) - len(other)
    number = int(np.flatnonzero(np.diff(other.related_image_start) > 1)[0])
    assert sample_page(blend, offset + number).replace(f"{namesakes.other}/", "") == sample_page(other, number)


def test_the_order_is_the_same_for_all_ranks_and_workers_and_from_any_step(namesakes: Folders) -> None:
    blend = Corpus.open(namesakes.blend)
    config = config_for(blend)
    told = inspect_order(blend, config, steps=range(12), world_size=1)["steps"]
    batches = [step["global_batch"] for step in told]
    for world_size, num_workers in ((1, 2), (3, 0)):
        again = inspect_order(
            Corpus.open(namesakes.blend), config, steps=range(7, 12), world_size=world_size, num_workers=num_workers
        )
        assert [step["global_batch"] for step in again["steps"]] == batches[7:]
    assert {Path(key).parent for batch in batches for key in batch} == {namesakes.one, namesakes.other}
    here = list(StepLoader(blend, config, 0, 1, 0, 6))
    resumed = StepLoader(pickle.loads(pickle.dumps(blend)), config_for(blend, num_workers=2), 0, 1, 3, 6)  # noqa: S301
    assert content(list(resumed)) == content(here[3:])
    split = [next(iter(StepLoader(blend, config, rank, 2, 3, 4))) for rank in range(2)]
    assert sorted(key for batch in split for micro in batch.micro_batches for key in micro.keys) == sorted(batches[3])


def test_a_source_in_two_folders_has_one_weight(namesakes: Folders) -> None:
    blend = Corpus.open(namesakes.blend)
    config = make_config(kind_weights=KindWeights(image=0, text=1, pair=0))
    data = dataclasses.replace(config.data, source_weights={"books": 3.0, "news": 1.0})
    samples = order_of(blend, dataclasses.replace(config, data=data)).samples_at(np.arange(4 * 43))
    books = samples[blend.source_ids[samples] == blend.source_names.index("books")]
    assert len(books) == 3 * 43
    # 6 books in the one and 15 in the other, each seen once an epoch.
    assert sorted(np.unique(books[:21], return_counts=True)[1]) == [1] * 21
    assert (books[:21] < 44).sum() == 6


def weighed(corpus: Corpus, *weights: float, **kinds: float) -> RunConfig:
    config = config_for(corpus)
    data = dataclasses.replace(config.data, folder_weights=weights)
    if kinds:
        data = dataclasses.replace(data, kind_weights=KindWeights(**{"image": 0, "text": 0, "pair": 0, **kinds}))
    return dataclasses.replace(config, data=data)


def test_folders_are_seen_by_their_weights(namesakes: Folders) -> None:
    """12 texts in the one and 31 in the other, of the same two sources."""
    blend = Corpus.open(namesakes.blend)
    samples = order_of(blend, weighed(blend, 3, 1, text=1)).samples_at(np.arange(8 * 31))
    other = samples[blend.folder_of_shard[blend.shard_of[samples]] == 1]
    assert np.unique(other, return_counts=True)[1].tolist() == [2] * 31
    assert len(np.unique(samples)) == 12 + 31
    alone = Corpus.open(namesakes.one)
    left_out = order_of(blend, weighed(blend, 1, 0)).samples_at(np.arange(300))
    assert left_out.tolist() == order_of(alone, config_for(alone)).samples_at(np.arange(300)).tolist()


def test_weighed_folders_may_lie_elsewhere(namesakes: Folders, tmp_path: Path) -> None:
    moved = [shutil.copytree(folder, tmp_path / f"x{folder.name}") for folder in (namesakes.other, namesakes.one)]
    before, after = Corpus.open(namesakes.blend), Corpus.open(f"{moved[1]}::{moved[0]}")
    batches = [list(StepLoader(one, weighed(one, 1, 4), 0, 1, 3, 6)) for one in (before, after)]
    assert content(batches[0]) == content(batches[1])
    told = [inspect_order(one, weighed(one, 1, 4), steps=range(3), world_size=1)["steps"] for one in (before, after)]
    keys = [[key for step in steps for key in step["global_batch"]] for steps in told]
    assert keys[1] == [
        key.replace(f"{namesakes.one}/", f"{moved[1]}/").replace(f"{namesakes.other}/", f"{moved[0]}/")
        for key in keys[0]
    ]
    assert before.fingerprint == after.fingerprint


def test_a_damaged_sample_is_replaced_from_its_own_folder(namesakes: Folders, tmp_path: Path) -> None:
    damaged = shutil.copytree(namesakes.other, tmp_path / "damaged")
    shard = damaged / "text-000000.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    blend = Corpus.open(f"{namesakes.one}::{damaged}")
    bad = [one for batch in StepLoader(blend, weighed(blend, 1, 1), 0, 1, 0, 12) for one in batch.bad_samples]
    assert len(bad) > 3
    assert {Path(one.substitute).parent for one in bad} == {damaged}


def test_each_folder_has_a_weight_or_none(namesakes: Folders) -> None:
    blend = Corpus.open(namesakes.blend)
    for weights in ((1.0,), (1.0, 0.5, 2.0)):
        with pytest.raises(UserError) as refused:
            check_corpus(blend, weighed(blend, *weights))
        assert str(refused.value) == (
            f"data.folder_weights={','.join(f'{weight:g}' for weight in weights)} is not one weight for each data folder, "
            f"which are, in this order, {namesakes.one}, {namesakes.other}"
        )


def test_what_was_recorded_tells_other_folders_and_another_order(
    folders: Folders, namesakes: Folders, tmp_path: Path
) -> None:
    """Where they lie is not part of it."""
    recorded = Corpus.open(namesakes.blend).fingerprint
    moved = [shutil.copytree(folder, tmp_path / folder.name) for folder in (namesakes.one, namesakes.other)]
    assert Corpus.open(f"{moved[0]}::{moved[1]}").fingerprint == recorded
    for others in (f"{moved[1]}::{moved[0]}", str(moved[0]), f"{moved[0]}::{folders.other}"):
        assert Corpus.open(others).fingerprint != recorded


def test_a_damaged_sample_is_named_with_its_folder(namesakes: Folders, tmp_path: Path) -> None:
    damaged = shutil.copytree(namesakes.other, tmp_path / "damaged")
    blend = Corpus.open(f"{namesakes.one}::{damaged}")
    last = len(blend) - 1
    shard = damaged / "text-000003.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(CorruptSample, match=rf"^sample {damaged}/text-000003\.tar:text-000003-000000 cannot be read"):
        blend.read(last)
    limit = BadSampleLimit(0.0)
    bad = BadSample("https://host:80/train/text-000003.tar:text-000003-000000", "cut", substitute="nothing")
    with pytest.raises(UserError, match=r"could not be read in https://host:80/train/text-000003\.tar, more than"):
        limit.add([bad], num_bad=1, num_samples=1)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"extractor": "another"}, "region extractor random and another"),
        ({"classes": 12}, "number of region classes 9 and 12"),
    ],
)
def test_folders_that_were_made_with_other_means_are_refused(
    folders: Folders, tmp_path: Path, tokenizer: tokenizers.Tokenizer, changes: dict, difference: str
) -> None:
    write_shards(tmp_path, OTHER)
    finish(tmp_path, tokenizer, **changes)
    with pytest.raises(UserError) as refused:
        Corpus.open(f"{folders.one}::{tmp_path}")
    assert str(refused.value) == (
        f"data folders {folders.one} and {tmp_path} do not fit together: {difference}; prepare {tmp_path} with "
        f"`--like {folders.one}` (features of one detector: with the same --feature-name)"
    )


def test_another_tokenizer_is_refused(folders: Folders, tmp_path: Path) -> None:
    write_shards(tmp_path, OTHER)
    texts = [text.text for sample in OTHER for text in texts_of(sample)]
    for size, difference in ((300, "tokenizer [0-9a-f]+ and [0-9a-f]+"), (280, "vocabulary of 300 and 280")):
        finish(tmp_path, tokenizers.train(texts, vocabulary_size=size))
        with pytest.raises(
            UserError, match=rf"{folders.one} and {tmp_path} do not fit together: {difference}; .*--like"
        ):
            Corpus.open(f"{folders.one}::{tmp_path}")


def test_features_of_another_size_are_refused(
    folders: Folders, tmp_path: Path, tokenizer: tokenizers.Tokenizer
) -> None:
    regions = OTHER[0].regions
    assert regions is not None
    shorter = dataclasses.replace(regions, features=regions.features[:, :8])
    write_shards(tmp_path, [dataclasses.replace(OTHER[0], regions=shorter)])
    finish(tmp_path, tokenizer)
    with pytest.raises(UserError, match=r"region features of size 12 and 8; prepare .* with `--like"):
        Corpus.open(f"{folders.one}::{tmp_path}")


def test_texts_alone_fit_beside_regions(folders: Folders, tmp_path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """On either side; regions, their extractor and its file come from the folder that has them."""
    write_shards(tmp_path, [sample for sample in OTHER if sample.kind is Kind.TEXT])
    tokenizer.save(tmp_path)
    finish_folder(tmp_path, tokenizer=tokenizer, command="make test data")
    pictured = Corpus.open(folders.one)
    for place in (f"{folders.one}::{tmp_path}", f"{tmp_path}::{folders.one}"):
        blend = Corpus.open(place)
        assert blend.manifest.extractor == pictured.manifest.extractor
        assert (blend.feature_size, blend.num_region_classes) == (pictured.feature_size, pictured.num_region_classes)
        assert blend.tokenizer_path == pictured.tokenizer_path
        check_made_alike(pictured, place, parts=("tokenizer", "extractor"))


def test_a_folder_counts_once(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"data folder {folders.one} is named twice; name each data folder once"):
        Corpus.open(f"{folders.one}::{folders.other}::file://{folders.one}")
    (tmp_path / "link").symlink_to(folders.one)
    for again in (tmp_path / "link", f"{folders.one}/", folders.both):
        with pytest.raises(UserError, match=r"and .* hold the same samples \(shard a-image-000000\.tar\); name each"):
            Corpus.open(f"{folders.one}::{again}")


def test_a_folder_that_is_not_there_is_named(folders: Folders) -> None:
    with pytest.raises(UserError, match="no data folder at nowhere"):
        Corpus.open(f"{folders.one}::nowhere")
    with pytest.raises(UserError, match="has an empty name in it"):
        Corpus.open(f"{folders.one}::")


def test_held_out_data_is_compared_with_every_folder(
    folders: Folders, tmp_path: Path, tokenizer: tokenizers.Tokenizer
) -> None:
    write_shards(tmp_path, OTHER)
    finish(tmp_path, tokenizer, extractor="another")
    with pytest.raises(
        UserError, match=rf"another extractor than the training data {folders.other}; .*--like {folders.other}"
    ):
        check_made_alike(Corpus.open(tmp_path), f"gone::{folders.other}", parts=("extractor",))
    check_made_alike(Corpus.open(folders.blend), folders.blend, parts=("tokenizer", "extractor"))


def test_means_are_found_while_one_folder_is_there(folders: Folders) -> None:
    assert still_there(f"gone::{folders.other}").tokenizer_path == folders.other / "tokenizer.json"
    with pytest.raises(UserError, match="no data folder at gone;"):
        still_there("gone::away")


@pytest.fixture
def urls(namesakes: Folders) -> Iterator[list[str]]:
    files = fsspec.filesystem("memory")
    for folder in (namesakes.one, namesakes.other):
        for path in folder.iterdir():
            files.pipe_file(f"/{folder.name}/{path.name}", path.read_bytes())
    yield ["memory://one", "memory://other"]
    files.rm("/one", recursive=True)
    files.rm("/other", recursive=True)


def test_a_folder_beside_a_url(namesakes: Folders, urls: list[str], tmp_path: Path) -> None:
    local = Corpus.open(namesakes.blend)
    mixed = Corpus.open(f"{namesakes.one}::{urls[1]}", cache_dir=str(tmp_path))
    assert mixed.fingerprint == local.fingerprint
    for number in range(len(local)):
        assert_same_sample(mixed.read(number), local.read(number))
    assert mixed.key(len(mixed) - 1).startswith("memory://other/text-")


def test_one_bound_holds_for_the_copies_of_all_remote_folders(urls: list[str], tmp_path: Path) -> None:
    place = "::".join(urls)
    largest = max(entry.bytes for entry in Corpus.open(place, cache_dir=str(tmp_path)).manifest.shards)
    blend = Corpus.open(place, cache_dir=str(tmp_path), cache_bytes=3 * largest)
    seen = set()
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in np.random.default_rng(0).permutation(len(blend)).tolist():
        blend.read(number)
        copies = list(tmp_path.glob("*/*.tar"))
        assert sum(path.stat().st_size for path in copies) <= 3 * largest
        seen |= {path.parent for path in copies}
        # A copy that was dropped while it is open still takes its place on the disk.
        assert len(os.listdir("/proc/self/fd")) <= descriptors + cache.RemoteStorage.most_open
    assert len(seen) == 2, "both have used it"
