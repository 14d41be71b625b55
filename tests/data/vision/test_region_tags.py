"""Tags of regions from a stored sample to a batch; data without any is stored, read and packed as it always was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.data import corpora
from tests.data.shard_folders import (
    assert_same_sample,
    finish,
    make_folder,
    make_image,
    make_pair,
    make_regions,
    make_text,
)
from tests.data.test_examples import build
from unimo_ds.config import ModelConfig, RunConfig, from_dict, to_dict
from unimo_ds.config_check import check_stored
from unimo_ds.data.corpus import Corpus, CorruptSample
from unimo_ds.data.corpus_check import check_corpus
from unimo_ds.data.inputs import image_input, prepare_sample
from unimo_ds.data.packing import pack
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.schema import NO_TAG, Sample, SequenceRole
from unimo_ds.data.storage import blend, index, manifest, members
from unimo_ds.data.storage.shards import StoredSample, index_path, write_shards
from unimo_ds.data.vision import region_tags
from unimo_ds.evaluation.held_out import check_fits
from unimo_ds.finetune.images import check_images
from unimo_ds.overrides import apply_overrides
from unimo_ds.utils.errors import UserError

SIZES = (5, 7)


def with_tags(sample: Sample, *, number: int = 0, sizes: tuple[int, ...] = SIZES) -> Sample:
    """The same with tags below `sizes`, the largest among them; every third region has none of the first."""
    assert sample.regions is not None
    tags = np.stack([(np.arange(len(sample.regions.boxes)) + number) % size for size in sizes], axis=1)
    tags[0] = np.array(sizes) - 1
    tags[1::3, 0] = NO_TAG
    regions = dataclasses.replace(sample.regions, tags=tags.astype(np.int32))
    return dataclasses.replace(sample, regions=regions)


def write_tagged(folder: Path, *, sizes: tuple[int, ...] = SIZES, prefix: str = "pairs") -> list[Sample]:
    """A finished folder of images, pairs and texts."""
    samples = [with_tags(make_image(number), number=number, sizes=sizes) for number in range(4)]
    pairs = [with_tags(make_pair(number), number=number, sizes=sizes) for number in range(5)]
    for name, several in (("images", samples), (prefix, pairs), ("texts", [make_text(sum(sizes))])):
        write_shards(folder, name, map(StoredSample, several), max_samples=3 if name == prefix else 100)
    finish(folder)
    return [*samples, *pairs]


def test_a_folder_of_tagged_regions_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = write_tagged(tmp_path)
    assert verify(tmp_path) == []
    corpus = Corpus.open(tmp_path)
    assert corpus.region_tag_sizes == manifest.load_manifest(tmp_path).region_tag_sizes == SIZES
    for number, expected in enumerate(written):
        found = corpus.read(number)
        assert_same_sample(found, expected)
        assert found.regions is not None
        assert expected.regions is not None
        assert found.regions.tags is not None
        assert found.regions.tags.dtype == np.int32
        np.testing.assert_array_equal(found.regions.tags, expected.regions.tags)


def test_data_without_tags_says_nothing_of_them(tmp_path: Path) -> None:
    """So its files have the bytes they had before there were tags, and files of then are read."""
    folder = make_folder(tmp_path / "plain")
    assert b"tag" not in (folder / manifest.MANIFEST_FILE).read_bytes()
    for shard in folder.glob("*.tar"):
        assert b"tag" not in index_path(shard).read_bytes()
    assert Corpus.open(folder).region_tag_sizes == ()
    sample = make_image(0)
    assert sample.regions is not None
    empty = dataclasses.replace(sample, regions=dataclasses.replace(sample.regions, tags=np.zeros((3, 0), np.int32)))
    assert members.encode_sample(empty) == members.encode_sample(sample)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (np.full((3, 1), -2), "a tag below -1"),
        (np.zeros((2, 1), np.int32), "shape"),
        (np.zeros(3, np.int32), "shape"),
        (np.zeros((3, 1)), "float64"),
    ],
)
def test_what_is_no_tag_is_not_stored(tags: np.ndarray, message: str) -> None:
    sample = make_image(0)
    assert sample.regions is not None
    wrong = dataclasses.replace(sample, regions=dataclasses.replace(sample.regions, tags=tags))
    with pytest.raises(members.DecodeError, match=message):
        members.encode_sample(wrong)


def test_all_regions_of_a_folder_have_the_same_tags(tmp_path: Path) -> None:
    write_shards(tmp_path / "within", "images", map(StoredSample, [make_image(0), with_tags(make_image(1))]))
    with pytest.raises(UserError, match=r"its regions have 2 tags where the shard's first have 0"):
        finish(tmp_path / "within")
    for name, sizes in (("one", (5,)), ("two", (5, 7))):
        write_shards(tmp_path / "between", name, [StoredSample(with_tags(make_image(1), sizes=sizes))])
    with pytest.raises(UserError, match=r"two-000000\.tar has .* 2 tags where one-000000\.tar has .* 1 tags"):
        finish(tmp_path / "between")
    images = [with_tags(make_image(1), sizes=sizes) for sizes in ((5, 7), (6, 3))]
    write_shards(tmp_path / "sizes", "images", map(StoredSample, images))
    assert finish(tmp_path / "sizes").region_tag_sizes == (6, 7)


def test_folders_of_one_run_have_the_same_tags_and_the_larger_sizes(tmp_path: Path) -> None:
    write_tagged(tmp_path / "a", sizes=(5, 7), prefix="pairs")
    write_tagged(tmp_path / "b", sizes=(6, 3), prefix="others")
    write_tagged(tmp_path / "c", sizes=(6,), prefix="fewer")
    with pytest.raises(UserError, match="tags of a region 2 and 1"):
        Corpus.open(f"{tmp_path / 'a'}::{tmp_path / 'c'}")
    write_shards(tmp_path / "texts", "more", [StoredSample(make_text(5))])
    finish(tmp_path / "texts")
    places = [tmp_path / name for name in ("texts", "b", "a")]
    folders = blend.open_folders("::".join(map(str, places)), cache_dir=None, cache_bytes=0)
    assert blend.joint_manifest(folders).region_tag_sizes == (6, 7)


def test_damage_to_what_is_said_of_tags_is_found(tmp_path: Path) -> None:
    write_tagged(tmp_path)
    whole = manifest.load_manifest(tmp_path)
    manifest.write_manifest(tmp_path, dataclasses.replace(whole, region_tag_sizes=(5, 3)))
    assert [str(one) for one in verify(tmp_path)] == [
        "manifest.json: says tags of (5, 3) values where the shards have (5, 7)"
    ]
    with pytest.raises(CorruptSample, match="other tags than the manifest says"):
        Corpus.open(tmp_path).read(0)
    manifest.write_manifest(tmp_path, dataclasses.replace(whole, region_tag_sizes=(5, -7)))
    with pytest.raises(UserError, match="negative"):
        manifest.load_manifest(tmp_path)
    one = index.of_shard(tmp_path / "images-000000.tar")
    for wrong in (("5",), (True,)):
        content = index.to_bytes(dataclasses.replace(one, region_tag_sizes=wrong))  # type: ignore[arg-type]
        with pytest.raises(UserError, match="values of other types"):
            index.from_bytes(content, where="index")


TAGGED = [with_tags(one, number=n) if one.regions is not None else one for n, one in enumerate(corpora.make_samples())]
CORPUS = corpora.MemoryCorpus(TAGGED, corpora.WordTokenizer())


def model_of(*sizes: int) -> RunConfig:
    config = corpora.make_config()
    return dataclasses.replace(config, model=dataclasses.replace(config.model, region_tag_sizes=sizes))


@pytest.mark.parametrize("sizes", [(), (5,), (5, 6), (5, 7, 1)])
def test_a_model_that_does_not_fit_the_tags_is_refused_before_the_run(sizes: tuple[int, ...]) -> None:
    listed = ",".join(map(str, sizes)) or "none"
    message = (
        rf"tags of 5,7 values, which does not fit model\.region_tag_sizes={listed}; set model\.region_tag_sizes=5,7"
    )
    with pytest.raises(UserError, match=message):
        check_corpus(CORPUS, model_of(*sizes))


def test_a_model_that_fits_is_taken_and_one_of_tags_wants_them(tmp_path: Path) -> None:
    check_corpus(CORPUS, model_of(*SIZES))
    check_corpus(CORPUS, model_of(100, 7))
    check_corpus(corpora.make_corpus(), model_of())
    with pytest.raises(UserError, match=r"no tags, .* set model\.region_tag_sizes=none"):
        check_corpus(corpora.make_corpus(), model_of(*SIZES))
    # Held-out data, and images of a task.
    corpus = Corpus.open(make_folder(tmp_path))
    sizes = ModelConfig(vocabulary_size=100, region_feature_size=8, region_tag_sizes=(3,))
    config = dataclasses.replace(model_of(), model=sizes)
    with pytest.raises(UserError, match="no tags"):
        check_fits(corpus, config)
    with pytest.raises(UserError, match="no tags"):
        check_images(corpus, config, tokenizer=None)


def test_the_setting_is_read_written_and_checked() -> None:
    config = corpora.make_config()
    for text, expected in (("8", (8,)), ("8,3", (8, 3)), ("(8,)", (8,)), ("none", ()), ("", ())):
        changed = apply_overrides(model_of(1), [f"model.region_tag_sizes={text}"])
        assert changed.model.region_tag_sizes == expected
        assert from_dict(RunConfig, json.loads(json.dumps(to_dict(changed)))) == changed
    for text, culprit in (("8,x", "x"), ("8,,3", ""), (",8", "")):
        with pytest.raises(UserError, match=rf"model\.region_tag_sizes takes int, not '{culprit}'"):
            apply_overrides(config, [f"model.region_tag_sizes={text}"])
    with pytest.raises(UserError, match=r"model\.region_tag_sizes=8,0 must each be at least 1"):
        check_stored(model_of(8, 0))


def test_inputs_keep_tags_and_the_whole_image_has_none() -> None:
    regions = dataclasses.replace(make_regions(0, num_regions=5), tags=np.arange(10, dtype=np.int32).reshape(5, 2))
    image = image_input(regions, max_regions=3)
    assert image.tags is not None
    assert image.tags.tolist() == [[NO_TAG, NO_TAG], [0, 1], [2, 3], [4, 5]]
    assert image.tags.dtype == np.int32


def test_every_sequence_shows_its_images_tags_masked_regions_too() -> None:
    config = corpora.make_config()
    examples, masked = [], 0
    for position, sample in enumerate(range(CORPUS.num_samples)):
        prepared = prepare_sample(CORPUS.read(sample), max_regions=config.data.max_regions)
        selection = corpora.select(CORPUS, sample, position, config)
        related = {one.image: CORPUS.samples[one.image].regions for one in selection.sequences if one.image >= 0}
        example, _ = build(sample, position, config, prepared, selection, CORPUS)
        examples.append(example)
        for sequence, planned in zip(example.sequences, selection.sequences, strict=True):
            if sequence.region_features is None:
                assert sequence.region_tags is None
                continue
            own = CORPUS.samples[sample].regions if sequence.role is SequenceRole.CORRUPTED else related[planned.image]
            assert own is not None
            assert own.tags is not None
            assert sequence.region_tags is not None
            np.testing.assert_array_equal(sequence.region_tags[1:], own.tags[: config.data.max_regions])
            assert (sequence.region_tags[0] == NO_TAG).all()
            masked += len(sequence.masked_region_at)
    assert masked > 0
    batch = pack(examples)
    assert batch.region_tags.shape == (len(batch.region_features), 2)
    expected = [one.region_tags for example in examples for one in example.sequences if one.region_tags is not None]
    np.testing.assert_array_equal(batch.region_tags[batch.region_row].numpy(), np.concatenate(expected))
    assert len(batch.region_row) > len(batch.region_tags)


def test_sizes_hold_every_number() -> None:
    sample = with_tags(make_image(0))
    assert sample.regions is not None
    assert region_tags.sizes_of(sample.regions) == SIZES
    assert region_tags.common([(3, 1), (2, 4)]) == (3, 4)
    assert region_tags.common([]) == ()
    extremes = np.array([[NO_TAG, 2**31 - 1]] * 3, np.int32)
    assert region_tags.sizes_of(dataclasses.replace(sample.regions, tags=extremes)) == (1, 2**31)
