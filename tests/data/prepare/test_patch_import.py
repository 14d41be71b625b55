"""`--extractor patches`: photographs in, shards of JPEGs out, and every stage and command after it."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.prepare.raw import captions, picture, small_extractor, write_photographs, write_tar
from tests.data.prepare.test_scale import shard_bytes
from tests.data.vision.test_patches import assert_same_regions
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.prepare.command import main
from unimo_ds.data.prepare.corpus_plan import read_plan
from unimo_ds.data.prepare.settings import ImportSettings, fingerprint
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.schema import Kind, PatchGrid
from unimo_ds.data.storage import shards
from unimo_ds.data.storage.manifest import load_manifest
from unimo_ds.data.vision import extractors, images, patches
from unimo_ds.data.vision.images import encode_jpeg
from unimo_ds.data.vision.patch_extractor import PatchExtractor
from unimo_ds.huggingface.image_processing import UnimoImageProcessor
from unimo_ds.inspection import inspect_path
from unimo_ds.utils.errors import UserError

NUMBER = 8
PATCHES = ["--extractor", "patches", "--image-side", "32", "--patch-side", "16"]
GRID = PatchGrid(2, 2, 16)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs with captions, one of them cut off; and others, large and of other formats, without."""
    folder = tmp_path_factory.mktemp("raw")
    jpegs = {f"{i:03d}.jpg": encode_jpeg(picture(i)) for i in range(NUMBER)}
    write_tar(folder / "photos.tar", {**jpegs, "005.jpg": jpegs["005.jpg"][:900]})
    lines = [f"{i:03d}.jpg\t{text}" for i in range(NUMBER) for text in captions(i)]
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    large = encode_jpeg(picture(20, width=640, height=480))
    write_tar(folder / "others.tar", {"large.jpg": large, "drawn.png": png(21), "small.jpg": jpegs["001.jpg"]})
    (folder / "lines.txt").write_text("".join(f"{captions(i)[1]} , says line {i} .\n" for i in range(9)))
    return folder


def import_into(folder: Path, raw: Path, *options: str, kind: str = "pairs") -> int:
    inputs = {
        "pairs": ["--images", str(raw / "photos.tar"), "--captions", str(raw / "captions.tsv")],
        "images": ["--images", str(raw / "others.tar")],
        "texts": ["--input", str(raw / "lines.txt")],
    }[kind]
    shared = ["--vocabulary-size", "300", "--workers", "1", "--output", str(folder)]
    return main(["import", "--kind", kind, *inputs, *shared, *options])


@pytest.fixture(scope="module")
def folder(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("data") / "train"
    assert import_into(output, raw, *PATCHES) == 0
    assert import_into(output, raw, kind="images") == 0  # the folder knows how
    assert import_into(output, raw, kind="texts") == 0
    return output


def stored_in(folder: Path) -> list[shards.StoredSample]:
    return [one for path in shards.shard_files(folder) for one in shards.read_shard(path)]


def test_an_import_stores_the_jpegs_alone(raw: Path, folder: Path) -> None:
    assert verify(folder) == []
    corpus = Corpus.open(folder)
    assert (corpus.feature_size, corpus.num_region_classes, corpus.region_tag_sizes) == (768, 1, (4,))
    pairs, others = np.flatnonzero(corpus.kinds == Kind.PAIR), np.flatnonzero(corpus.kinds == Kind.IMAGE)
    assert (len(pairs), len(others)) == (NUMBER - 1, 3)
    report = json.loads((folder / "report-photos.json").read_text())
    (bad,) = report["skipped"]["an image that cannot be decoded"]
    assert bad.startswith("005.jpg: ")
    # As they came, whatever their size; what is no JPEG becomes one.
    by_name = {str(corpus.details(number)["file"]): corpus.read_jpeg(number) for number in others.tolist()}
    assert by_name["large.jpg"] == encode_jpeg(picture(20, width=640, height=480))
    assert images.decode(by_name["drawn.png"] or b"").size == (80, 60)
    assert images.is_jpeg(by_name["drawn.png"] or b"")
    for number in [*pairs.tolist(), *others.tolist()]:
        assert_same_regions(corpus.read(number).regions, patches.of_jpeg(corpus.read_jpeg(number) or b"", GRID))
    shown = inspect_path(folder, num_samples=1)["first_samples"][0]
    assert (shown["regions"], shown["first_boxes"][3:]) == ([4, 768], [])


def test_an_import_done_by_workers_and_done_already(raw: Path, folder: Path, tmp_path: Path, capsys) -> None:
    assert import_into(tmp_path, raw, *PATCHES, "--workers", "2", "--keep-images") == 0
    whole = {name: content for name, content in shard_bytes(folder).items() if name.startswith("photos")}
    assert shard_bytes(tmp_path) == whole
    assert import_into(folder, raw, *PATCHES) == 0
    assert "already imported" in capsys.readouterr().out


def test_held_out_data_and_new_images_are_cut_alike(raw: Path, folder: Path, tmp_path: Path) -> None:
    own = extractors.load(folder)
    assert isinstance(own, PatchExtractor)
    assert own.grid == GRID
    held_out = tmp_path / "held_out"
    assert import_into(held_out, raw, "--like", str(folder), "--source", "new", kind="images") == 0
    assert load_manifest(held_out).extractor == load_manifest(folder).extractor
    corpus = Corpus.open(f"{folder}::{held_out}")
    assert corpus.feature_size == 768
    # The processor of an export, on a photograph as transformers' users open it.
    UnimoImageProcessor(max_regions=4, extractor=own).save_pretrained(tmp_path / "export")
    processor = UnimoImageProcessor.from_pretrained(tmp_path / "export")
    found = processor(images.decode(encode_jpeg(picture(1))))
    expected = next(one for one in stored_in(held_out) if one.details["file"] == "small.jpg").sample.regions
    assert expected is not None
    np.testing.assert_array_equal(found["region_features"][0, 1:].numpy(), expected.features)
    assert found["region_tags"][0, :, 0].tolist() == [-1, 0, 1, 2, 3]
    assert found["region_features"].dtype == torch.float32


def test_stages_that_write_texts_carry_the_jpegs_over(raw: Path, tmp_path: Path) -> None:
    """They do not even look at them: a JPEG of which nothing can be decoded passes through."""
    folder = tmp_path / "data"
    assert import_into(folder, raw, *PATCHES) == 0
    assert import_into(folder, raw, kind="images") == 0
    assert import_into(folder, raw, kind="texts") == 0
    before = {one.sample.key: one.jpeg for one in stored_in(folder)}
    for stage in ("phrases", "rewrite", "retrieve"):
        assert main([stage, str(folder), "--workers", "1"]) == 0
        assert verify(folder) == []
    after = stored_in(folder)
    assert {one.sample.key: one.jpeg for one in after} == before
    pairs = [one.sample for one in after if one.sample.kind is Kind.PAIR]
    assert all(pair.related_texts and not pair.related_images for pair in pairs)
    assert any(caption.negatives for pair in pairs for caption in pair.captions)

    path = folder / "photos-000000.tar"
    shards.rewrite_shard(path, lambda _, stored: dataclasses.replace(stored, jpeg=b"\xff\xd8\xff no image"))
    carried = [one.jpeg for one in shards.read_shard(path, pixels=False)]
    assert set(carried) == {b"\xff\xd8\xff no image"}


def test_regions_to_patches_and_back(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Related images are found by regions that have classes; they stay when patches take their place."""
    small_extractor(tmp_path)
    folder, grid = tmp_path / "data", str(tmp_path / "extractor.safetensors")
    assert import_into(folder, raw, "--extractor", grid, "--keep-images") == 0
    assert import_into(folder, raw, "--keep-images", kind="images") == 0
    assert main(["regions", str(folder), "--workers", "1"]) == 0  # of the PNG's JPEG, too
    assert main(["retrieve", str(folder), "--number", "2", "--workers", "1"]) == 0
    before = shard_bytes(folder)
    related = [one.sample.related_images for one in stored_in(folder)]
    assert any(related)

    assert main(["regions", str(folder), *PATCHES, "--workers", "1"]) == 0
    assert verify(folder) == []
    assert extractors.load(folder).fingerprint == PatchExtractor(GRID).fingerprint
    whole = stored_in(folder)
    assert [one.sample.related_images for one in whole] == related
    for one in whole:
        assert_same_regions(one.sample.regions, patches.of_jpeg(one.jpeg or b"", GRID))
    assert sum(map(len, shard_bytes(folder).values())) < sum(map(len, before.values()))
    assert main(["regions", str(folder), *PATCHES, "--workers", "1"]) == 0
    assert "already made" in capsys.readouterr().out
    # There is nothing to search by now, unless there are texts.
    assert main(["retrieve", str(folder), "--number", "2", "--workers", "1"]) == 2
    assert "no texts and its images have no classes of regions" in capsys.readouterr().err
    assert import_into(folder, raw, kind="texts") == 0
    assert main(["retrieve", str(folder), "--number", "1", "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "images searched: 0" in said
    assert [one.sample.related_images for one in stored_in(folder) if one.sample.regions is not None] == related

    assert main(["regions", str(folder), "--extractor", grid, "--workers", "1"]) == 0
    after = shard_bytes(folder)
    names = [name for name in before if name.endswith(".tar") and "others" in name]
    assert {name: after[name] for name in names} == {name: before[name] for name in names}


def test_a_corpus_file_says_the_sizes(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.toml").write_text(
        "output = 'data'\nvocabulary_size = 300\nextractor = 'patches'\nimage_side = 48\npatch_side = 8\n"
        f"[[import]]\nkind = 'pairs'\nimages = '{raw / 'photos.tar'}'\ncaptions = '{raw / 'captions.tsv'}'\n"
        f"[[import]]\nkind = 'images'\nimages = '{raw / 'others.tar'}'\n"
    )
    assert main(["all", "--config", str(tmp_path / "corpus.toml"), "--workers", "1"]) == 0
    corpus = Corpus.open(tmp_path / "data")
    assert (corpus.num_regions.max(), corpus.feature_size, corpus.region_tag_sizes) == (36, 192, (36,))
    own = extractors.load(tmp_path / "data")
    assert isinstance(own, PatchExtractor)
    assert own.grid == PatchGrid(6, 6, 8)


def test_sizes_without_a_word_are_those_of_vit() -> None:
    (found,) = PatchExtractor(PatchGrid()).extract([picture(0)])
    made = extractors.ExtractorChoice(extractor=Path("patches")).made()
    assert isinstance(made, PatchExtractor)
    assert made.grid == PatchGrid(14, 14, 16)
    assert made.working_side == 224
    assert found.features.shape == (196, 768)
    large = extractors.ExtractorChoice(extractor=Path("patches"), image_side=384).made()
    assert isinstance(large, PatchExtractor)
    assert large.grid == PatchGrid(24, 24, 16)


def test_the_name_of_a_kind_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may be called so: that of the data, for instance, which the command has just made."""
    (tmp_path / "patches").mkdir()
    monkeypatch.chdir(tmp_path)
    assert isinstance(extractors.ExtractorChoice(extractor=Path("patches")).made(), PatchExtractor)
    with pytest.raises(UserError, match=r"no region extractor at \S*/patches/extractor.safetensors"):
        extractors.ExtractorChoice(extractor=tmp_path / "patches").made()
    imports = '[[import]]\ncaptions = "c.tsv"\nimages = "i.tar"\nkind = "pairs"\n'
    (tmp_path / "corpus.toml").write_text(f'output = "data"\nextractor = "patches"\n{imports}')
    assert read_plan(tmp_path / "corpus.toml").extractor == Path("patches")


def test_an_image_longer_than_a_jpeg_holds_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (70_000, 1)).save(photos / "long.png")
    picture(0).save(photos / "one.png")
    options = ["--extractor", "patches", "--image-side", "32", "--vocabulary-size", "300", "--workers", "1"]
    command = ["import", "--kind", "images", "--images", str(photos), "--output", str(tmp_path / "data"), *options]
    assert main(command) == 0
    assert "an image that cannot be stored: 1 (long.png: 70000 x 1 pixels, of which a JPEG" in capsys.readouterr().out
    assert load_manifest(tmp_path / "data").totals == {"image": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-side", "32"], "--image-side is a size of --extractor patches; add that, or leave --image-side out"),
        (["--extractor", "grid", "--patch-side", "8"], "--patch-side is a size of --extractor patches"),
        (["--extractor", "patches", "--image-side", "100"], "--image-side 100 is no multiple of --patch-side 16"),
        (["--extractor", "patches", "--patch-side", "0"], "--image-side 224 is no multiple of --patch-side 0"),
        (["--extractor", "patches", "--patch-side", "-16"], "is no multiple of --patch-side -16"),
        (["--extractor", "patches", "--patch-side", "4"], "56 x 56 patches of 48 numbers are beyond (1024, 16384)"),
        (["--extractor", "patches", "--patch-side", "112"], "beyond (1024, 16384)"),
    ],
)
def test_wrong_options_are_one_sentence(
    raw: Path, folder: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_into(tmp_path / "data", raw, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    inputs = ["--images", str(raw / "photos.tar"), "--captions", str(raw / "captions.tsv")]
    assert main(["all", *inputs, "--output", str(tmp_path / "data"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert main(["regions", str(folder), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_patches_have_no_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["regions", str(folder), "--extractor", "patches", "--weights", "x"]) == 2
    assert "--extractor patches has no weights; leave --weights out" in capsys.readouterr().err


def test_files_that_hold_no_grid_are_refused(tmp_path: Path) -> None:
    for grid, message in ((PatchGrid(0, 1, 1), "are not"), (PatchGrid(99, 99, 1), "beyond")):
        PatchExtractor(grid).save(tmp_path)
        with pytest.raises(extractors.UserError, match=message):
            extractors.load(tmp_path)


def test_imports_of_before_are_still_known() -> None:
    """Options that nobody gives leave the fingerprint of an import as it was."""
    settings = ImportSettings("pairs", Path("data"), images=(Path("a.tar"),), captions=(Path("a.tsv"),))
    assert fingerprint(settings) == "879b233038b63860"
    assert fingerprint(dataclasses.replace(settings, image_side=224)) != fingerprint(settings)


def test_photographs_of_other_modes(tmp_path: Path) -> None:
    members = {}
    for mode in ("L", "CMYK"):
        buffer = io.BytesIO()
        picture(1).convert(mode).save(buffer, format="JPEG")
        members[f"{mode}.jpg"] = buffer.getvalue()
    write_photographs(tmp_path, 1)
    tar = write_tar(tmp_path / "modes.tar", members)
    words = ["--vocabulary-size", "300", "--workers", "1", "--output", str(tmp_path / "data")]
    assert main(["import", "--kind", "images", "--images", str(tar), *words, *PATCHES]) == 0
    for one in stored_in(tmp_path / "data"):
        assert one.jpeg == members[str(one.details["file"])]
        with Image.open(io.BytesIO(one.jpeg)) as stored:
            assert_same_regions(one.sample.regions, patches.cut(stored, GRID))
