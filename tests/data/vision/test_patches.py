"""Regions that are patches of the stored JPEG: what they are, how they are stored, and that they are read like any others."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data import corpora, patched
from tests.data.patched import GRID, jpeg_of
from tests.data.prepare.raw import picture
from tests.data.shard_folders import make_image
from tests.data.test_loader import global_step
from unimo_ds.config import to_dict
from unimo_ds.data.corpus import Corpus, CorruptSample
from unimo_ds.data.corpus_check import check_corpus
from unimo_ds.data.loader import StepLoader
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.schema import Caption, Kind, PatchGrid, Regions, Sample
from unimo_ds.data.storage import manifest, members, shards
from unimo_ds.data.viewing.inspect_order import inspect_order
from unimo_ds.data.vision import images, patches
from unimo_ds.data.vision.patch_extractor import PatchExtractor
from unimo_ds.engine.run_directory import differing_keys
from unimo_ds.utils.errors import UserError

ARRAYS = ("boxes", "features", "class_ids", "class_probabilities", "tags")


def assert_same_regions(found: Regions | None, expected: Regions) -> None:
    assert found is not None
    assert found.patches == expected.patches
    for name in ARRAYS:
        actual, wanted = getattr(found, name), getattr(expected, name)
        assert actual.dtype == wanted.dtype
        assert not actual.flags.writeable
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("grid", [GRID, PatchGrid(), PatchGrid(1, 1, 7), PatchGrid(3, 1, 1)])
def test_patches_are_the_pixels_of_the_scaled_image(grid: PatchGrid) -> None:
    image = picture(3)
    found = patches.cut(image, grid)
    scaled = image.resize((grid.columns * grid.side, grid.rows * grid.side), Image.Resampling.BILINEAR)
    for number in range(grid.num_patches):
        row, column = divmod(number, grid.columns)
        box = (column * grid.side, row * grid.side, (column + 1) * grid.side, (row + 1) * grid.side)
        pixels = np.asarray(scaled.crop(box)).astype(np.float64) / 127.5 - 1  # [row, column, channel]
        np.testing.assert_array_equal(found.features[number], pixels.ravel().astype(np.float16))
        width, height = scaled.size
        expected = np.array(box) / (width, height, width, height)
        np.testing.assert_allclose(found.boxes[number], expected, rtol=1e-6)
    assert found.tags is not None
    assert found.tags.tolist() == [[number] for number in range(grid.num_patches)]
    assert (found.class_ids == 0).all()
    assert (found.class_probabilities == 1).all()
    members.check_values(dataclasses.replace(found, patches=None))
    assert_same_regions(patches.cut(image.convert("RGBA"), grid), found)


def test_every_pixel_value_is_the_nearest_half() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    found = patches.cut(ramp, PatchGrid(1, 1, 16)).features.reshape(256, 3)
    expected = (np.arange(256) / 127.5 - 1).astype(np.float16)
    np.testing.assert_array_equal(found, np.repeat(expected[:, None], 3, axis=1))
    assert found.min() == -1
    assert found.max() == 1


def test_a_jpeg_is_cut_alike_wherever_it_is_read() -> None:
    """Large ones are decoded at a fraction of their size: by the shard's reader, and by whoever has the extractor."""
    extractor = PatchExtractor(GRID)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    for size in ((80, 60), (160, 1200), (1200, 160), (2000, 1500)):
        for mode in ("RGB", "L", "CMYK"):
            buffer = io.BytesIO()
            picture(1, width=size[0], height=size[1]).convert(mode).save(buffer, format="JPEG", exif=exif)
            (expected,) = extractor.extract([images.decode(buffer.getvalue(), shrink_to=extractor.working_side)])
            for data in (buffer.getvalue(), memoryview(buffer.getvalue())):
                assert_same_regions(patches.of_jpeg(data, GRID), expected)
            whole = patches.cut(images.decode(buffer.getvalue()), GRID)
            np.testing.assert_allclose(whole.features, expected.features, atol=0.25)


def stored(jpeg: bytes, *, grid: PatchGrid = GRID) -> dict[int, bytes]:
    sample = Sample("", Kind.PAIR, "photos", patches.uncut(grid), captions=(Caption("a dog"),))
    content = members.encode_sample(sample, jpeg=jpeg, details={"file": "a.jpg"})
    return {members.EXTENSIONS.index(name): part for name, part in content.items()}


def test_a_sample_is_its_json_and_its_jpeg() -> None:
    jpeg = jpeg_of(0)
    content = stored(jpeg)
    assert content.keys() == {members.JSON, members.JPEG}
    assert content[members.JPEG] == jpeg
    assert json.loads(content[members.JSON])["patches"] == [2, 3, 4]
    found = members.decode_sample("a.tar:b", content)
    assert_same_regions(found.regions, patches.of_jpeg(jpeg, GRID))
    columns = {members.EXTENSIONS.index(name): part for name, part in members.encode_sample(found, jpeg=jpeg).items()}
    assert members.decode_sample("a.tar:b", columns).captions == found.captions
    others = members.encode_sample(make_image(0), jpeg=jpeg)
    assert b"patches" not in others["json"]
    assert len(others) == 6


def test_who_wants_texts_looks_at_no_jpeg() -> None:
    found = members.decode_sample("a.tar:b", {**stored(jpeg_of(0)), members.JPEG: b"no image"}, pixels=False)
    assert found.captions == (Caption("a dog"),)
    assert_same_regions(found.regions, patches.uncut(GRID))
    assert found.regions is not None
    assert found.regions.features.shape == (6, 48)
    assert not found.regions.features.any()
    assert found.regions.features.strides == (0, 0)


def with_patches(numbers: object) -> dict[int, bytes]:
    content = stored(jpeg_of(0))
    record = {**json.loads(content[members.JSON]), "patches": numbers}
    return {**content, members.JSON: json.dumps(record).encode()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({members.JSON: stored(jpeg_of(0))[members.JSON]}, "its .jpg is missing"),
        ({**stored(jpeg_of(0)), members.JPEG: jpeg_of(0)[:900]}, r"its .jpg cannot be decoded: OSError"),
        ({**stored(jpeg_of(0)), members.JPEG: b""}, "neither JPEG, PNG nor WebP"),
        ({**stored(jpeg_of(0)), members.BOXES: b""}, r"patches of its .jpg, and it has .boxes.npy"),
        *((with_patches(numbers), r"are not \[rows, columns") for numbers in ([], [2, 3], [2, 3, 4, 5], 14, None, {})),
        *((with_patches(n), r"are not \[rows, columns") for n in ([0, 1, 1], [-2, -3, 4], [2, 3, 4.0], [True, 3, 4])),
        (with_patches([33, 32, 4]), r"33 x 32 patches of 48 numbers are beyond \(1024, 16384\)"),
        (with_patches([1, 1, 74]), "1 x 1 patches of 16428 numbers are beyond"),
        (with_patches([10**30, 1, 1]), "are beyond"),
        (
            {members.JSON: b'{"kind": "text", "source": "x", "text": "x", "patches": [1, 1, 1]}'},
            "a text sample has an image",
        ),
    ],
)
def test_what_is_no_sample_is_refused(content: dict[int, bytes], message: str) -> None:
    with pytest.raises(members.DecodeError, match=message):
        members.decode_sample("a.tar:b", content)


def test_a_sample_that_readers_would_refuse_is_not_written(tmp_path: Path) -> None:
    sample = Sample("x", Kind.IMAGE, "photos", patches.uncut(GRID))
    large = dataclasses.replace(sample, regions=patches.uncut(PatchGrid(40, 40, 1)))
    for bad, jpeg, message in ((sample, None, "jpg is missing"), (large, jpeg_of(1), "beyond")):
        with pytest.raises(UserError, match=f"cannot store x: .*{message}"):
            shards.write_shards(tmp_path, "bad", [shards.StoredSample(bad, jpeg)])
    assert list(tmp_path.glob("*.tar")) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patched.write_folder(tmp_path_factory.mktemp("patched"))


def test_a_folder_is_read_as_its_jpegs_are_cut(folder: Path) -> None:
    assert verify(folder) == []
    corpus = Corpus.open(folder)
    sizes = corpus.feature_size, corpus.num_region_classes, corpus.classes_per_region, corpus.region_tag_sizes
    assert sizes == (48, 1, 1, (6,))
    corpus.expect(range(len(corpus)))
    assert corpus.bytes_read == 0
    for number in range(len(corpus)):
        found, jpeg = corpus.read(number), corpus.read_jpeg(number)
        if found.kind is Kind.TEXT:
            assert (found.regions, jpeg, corpus.num_regions[number]) == (None, None, 0)
        else:
            assert jpeg is not None
            assert corpus.num_regions[number] == 6
            assert_same_regions(found.regions, patches.of_jpeg(jpeg, GRID))
    read = [one for path in shards.shard_files(folder) for one in shards.read_shard(path)]
    assert len(read) == len(corpus)
    for number, one in enumerate(read):
        assert one.jpeg == corpus.read_jpeg(number)
        if one.jpeg is not None:
            assert_same_regions(one.sample.regions, patches.of_jpeg(one.jpeg, GRID))


def test_a_stock_pipeline_decodes_the_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_SECURE", "1")
    import webdataset

    corpus = Corpus.open(folder)
    paths = [str(path) for path in shards.shard_files(folder) if path.name.startswith("image")]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil"))
    assert len(samples) == 12
    for number, sample in enumerate(samples):
        assert {name for name in sample if not name.startswith("__")} == {"json", "jpg"}
        assert sample["json"]["patches"] == [2, 3, 4]
        expected = images.decode(corpus.read_jpeg(number) or b"")
        np.testing.assert_array_equal(np.asarray(sample["jpg"]), np.asarray(expected))


def test_steps_do_not_depend_on_ranks_workers_or_the_start(folder: Path) -> None:
    corpus = Corpus.open(folder)
    config = patched.config_for(corpus)
    check_corpus(corpus, config)
    here = [global_step([batch]) for batch in StepLoader(corpus, config, 0, 1, 0, 3)]
    in_workers = StepLoader(Corpus.open(folder), patched.config_for(corpus, num_workers=2), 0, 1, 0, 3)
    assert [global_step([batch]) for batch in in_workers] == here
    for world_size in (2, 3):
        several = patched.config_for(corpus, micro_batch_tokens=700)
        loaders = [StepLoader(Corpus.open(folder), several, rank, world_size, 0, 3) for rank in range(world_size)]
        assert [global_step(list(ranks)) for ranks in zip(*loaders, strict=True)] == here
    assert [global_step([batch]) for batch in StepLoader(Corpus.open(folder), config, 0, 1, 2, 3)] == here[2:]


def test_batches_hold_the_pixels_and_their_places(folder: Path) -> None:
    corpus = Corpus.open(folder)
    (batch,) = StepLoader(corpus, patched.config_for(corpus), 0, 1, 0, 1)
    (micro,) = batch.micro_batches
    assert not batch.bad_samples
    assert micro.region_features.shape[1] == 48
    assert set(micro.region_tags.unique().tolist()) == {-1, *range(6)}
    # Hidden patches are targets; the others stand in the batch as they were cut.
    assert len(micro.masked_region_features) > 0
    assert set(micro.masked_region_class_ids.unique().tolist()) == {0}
    numbers = [number for number in range(len(corpus)) if corpus.key(number) in micro.keys]
    cut = [found.features for number in numbers if (found := corpus.read(number).regions) is not None]
    rows = {row.tobytes() for features in cut for row in features}
    assert {row.tobytes() for row in micro.masked_region_features.numpy()} <= rows
    shown = micro.region_features[(micro.region_tags[:, 0] >= 0) & (micro.region_features != 0).any(1)]
    assert sum(row.tobytes() in rows for row in shown.numpy()) > len(cut)
    assert torch.isfinite(micro.region_features).all()


def test_a_jpeg_that_breaks_off_is_named_and_replaced(tmp_path: Path) -> None:
    """Its checksum is right, so that only decoding can tell."""
    folder = patched.write_folder(tmp_path)
    corpus = Corpus.open(folder)
    config = patched.config_for(corpus)
    (first,) = inspect_order(corpus, config, steps=range(1), world_size=1)["steps"]
    victim = next(key for key in first["global_batch"] if key.startswith("pair"))
    patched.spoil(folder, victim)
    (problem,) = verify(folder)
    assert problem.file == victim.partition(":")[0]
    assert f"at or behind sample '{victim.partition(':')[2]}': its .jpg cannot be decoded" in problem.reason
    spoilt = Corpus.open(folder)
    number = [spoilt.key(i) for i in range(len(spoilt))].index(victim)
    with pytest.raises(CorruptSample, match="cannot be decoded"):
        spoilt.read(number)
    for num_workers in (0, 1):
        loader = StepLoader(spoilt, patched.config_for(spoilt, num_workers=num_workers), 0, 1, 0, 1)
        (batch,) = loader
        (bad,) = batch.bad_samples
        assert (bad.key, bad.substitute[:4]) == (victim, "pair")
        assert "cannot be decoded" in bad.reason
        keys = [key for micro in batch.micro_batches for key in micro.keys]
        assert keys == [bad.substitute if key == victim else key for key in first["global_batch"]]


def test_a_flipped_byte_of_a_jpeg_is_named_and_never_read(tmp_path: Path) -> None:
    folder = patched.write_folder(tmp_path)
    path = folder / "image-000001.tar"
    jpeg = Corpus.open(folder).read_jpeg(11) or b""
    content = bytearray(path.read_bytes())
    content[content.index(jpeg) + len(jpeg) // 2] ^= 1
    path.write_bytes(content)
    named = [problem for problem in verify(folder) if problem.sample is not None]
    assert [(one.sample, one.reason) for one in named] == [("image-000001-000001", "its .jpg is damaged (checksum)")]
    corpus = Corpus.open(folder)
    with pytest.raises(CorruptSample, match=r"its .jpg is damaged \(checksum\)"):
        corpus.read(11)
    corpus.read(10)


def test_another_grid_than_the_manifests_is_refused(tmp_path: Path) -> None:
    folder = patched.write_folder(tmp_path)
    whole = manifest.load_manifest(folder)
    manifest.write_manifest(folder, dataclasses.replace(whole, feature_size=12))
    with pytest.raises(CorruptSample, match="have not 12 features"):
        Corpus.open(folder).read(0)


def test_pixels_are_normalised_within_each_patch() -> None:
    """By the formula of masked autoencoders; a patch of one colour says nothing."""
    random = np.random.default_rng(3)
    pixels = (random.random((5, 48)) * np.array([[2.0], [0.5], [0.02], [0.0], [1.0]]) - 0.7).astype(np.float16)
    wide = pixels.astype(np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True, ddof=1) + 1e-6)
    found = patches.normalised(pixels)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[[0, 1, 4]].astype(np.float64).std(1, ddof=1), 1, rtol=1e-3)
    assert not found[3].any()
    assert patches.normalised(np.zeros((0, 48), np.float16)).shape == (0, 48)


def test_normalised_pixels_are_of_patches_alone(folder: Path) -> None:
    """And no news to runs of before, where they are off."""
    config = corpora.make_config()
    masking = dataclasses.replace(config.masking, normalised_pixels=True)
    with pytest.raises(UserError, match=r"masking\.normalised_pixels=true is for patches .* --extractor patches"):
        check_corpus(corpora.make_corpus(), dataclasses.replace(config, masking=masking))
    corpus = Corpus.open(folder)
    plain = patched.config_for(corpus)
    normalised = dataclasses.replace(plain, masking=masking)
    check_corpus(corpus, normalised)
    before = to_dict(plain)
    del before["masking"]["normalised_pixels"]
    assert differing_keys(before, to_dict(plain)) == []
    assert differing_keys(before, to_dict(normalised)) == ["masking.normalised_pixels"]
