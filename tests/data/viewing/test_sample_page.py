"""The page of a sample: everything of it is there, nothing of it is markup, and nothing is fetched."""

import base64
import dataclasses
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.data.shard_folders import finish, make_folder, make_image, make_pair, make_text
from tests.data.viewing.tags import Tags
from unimo_ds.cli import main
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.schema import Caption, Level, Rewrite, Sample
from unimo_ds.data.storage import manifest
from unimo_ds.data.storage.shards import StoredSample, write_shards
from unimo_ds.data.viewing.sample_page import sample_number, sample_page
from unimo_ds.data.vision.images import encode_jpeg

EVIL = '<script>alert("1")</script><img src=http://example.org/x.png>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pair = make_pair(2)
    evil = Caption(EVIL, (), (Rewrite(EVIL, Level.WORD, EVIL),))
    pair = Sample(**{**vars(pair), "captions": (*pair.captions, evil), "related_texts": (EVIL, "dogs are animals")})
    pairs = [
        StoredSample(pair, encode_jpeg(Image.new("RGB", (900, 600), "red")), {"file": EVIL}),
        StoredSample(make_pair(3), b"\xff\xd8 no picture", {"size": [40, 20]}),
    ]
    blue = encode_jpeg(Image.new("RGB", (300, 300), "blue"))
    write_shards(folder, "pairs", pairs)
    write_shards(folder, "images", [StoredSample(make_image(number), blue) for number in range(4)])
    write_shards(folder, "texts", [StoredSample(make_text(2))])
    finish(folder)
    return folder


def test_a_pair_is_shown_whole(folder: Path) -> None:
    corpus = Corpus.open(folder)
    number = sample_number(corpus, "pairs-000000.tar:pairs-000000-000000")
    page = Tags(sample_page(corpus, number))
    sample = corpus.read(number)
    for caption in sample.captions:
        assert caption.text in page.text
        assert all(
            one.text in page.text and one.origin in page.text for one in (*caption.positives, *caption.negatives)
        )
    assert all(text in page.text for text in sample.related_texts)
    boxes = [attributes for tag, attributes in page.tags if tag == "rect"]
    assert len(boxes) == len(sample.regions.boxes)
    assert float(boxes[0]["x"] or 0) == pytest.approx(float(sample.regions.boxes[0, 0]), abs=1e-4)
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))).size for one in pictures]
    assert sizes == [(640, 427), (160, 160)]
    without = Tags(sample_page(corpus, number + 1))
    assert "size: 40 x 20" in without.text
    assert "the picture cannot be decoded" in without.text


def test_nothing_of_a_sample_is_markup_and_nothing_is_fetched(folder: Path) -> None:
    corpus = Corpus.open(folder)
    for number in range(len(corpus)):
        text = sample_page(corpus, number)
        page = Tags(text)
        assert "script" not in {tag for tag, _ in page.tags}
        assert all(
            (attributes["src"] or "").startswith("data:image/jpeg") for tag, attributes in page.tags if tag == "img"
        )
        assert not any("href" in attributes for _, attributes in page.tags)
        assert not re.search(r"url\(|@import", text)


def test_the_command_writes_the_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", "sample", "--data", str(folder), "--sample", "5", "--html", str(page)]) == 0
    assert "cannot be decoded" in page.read_text(encoding="utf-8")
    (tmp_path / "train").symlink_to(folder)  # the folder above it is taken too, as in training
    assert main(["inspect", "sample", "--data", str(tmp_path), "--sample", "5", "--html", str(page)]) == 0
    for wanted in ("99", "pairs-000000.tar:nothing"):
        assert main(["inspect", "sample", "--data", str(folder), "--sample", wanted, "--html", str(page)]) == 2
        assert "there is no sample" in capsys.readouterr().err
    assert main(["inspect", "sample", "--data", str(folder)]) == 2


def test_a_damaged_sample_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "data")
    shard = folder / "pairs-000000.tar"
    damaged = bytearray(shard.read_bytes())
    damaged[damaged.index(b'"kind"')] ^= 1
    shard.write_bytes(damaged)
    number = [Corpus.open(folder).key(number) for number in range(12)].index("pairs-000000.tar:pairs-000000-000000")
    command = [
        "inspect",
        "sample",
        "--data",
        str(folder),
        "--sample",
        str(number),
        "--html",
        str(tmp_path / "page.html"),
    ]
    assert main(command) == 2
    assert "json is damaged (checksum); run `unimo prepare verify`" in capsys.readouterr().err


def test_notes_of_any_form_are_shown(tmp_path: Path) -> None:
    sizes = ([10**400, 1], [1, 10**400], [True, 2.5], [40, 20], "wide", {"w": [1]}, None)
    write_shards(tmp_path, "images", [StoredSample(make_image(3), details={"size": size}) for size in sizes])
    finish(tmp_path)
    corpus = Corpus.open(tmp_path)
    heights = [re.findall(r'class="blank" style="width:640px;height:(\d+)px', sample_page(corpus, i)) for i in range(7)]
    assert heights == [["640"]] * 3 + [["320"]] + [["640"]] * 3
    assert "the picture is not stored (import with --keep-images)" in sample_page(corpus, 0)


def test_a_command_that_is_not_unicode_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "data")
    known = manifest.load_manifest(folder)
    manifest.write_manifest(folder, dataclasses.replace(known, commands=("unimo prepare import --input \udcff",)))
    assert main(["inspect", str(folder)]) == 0
    assert "made by           unimo prepare import --input \\udcff\n" in capsys.readouterr().out
