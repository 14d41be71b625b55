"""Every format that others use is read as it was written, and what is wrong in it is counted and named."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.data.prepare.foreign import write_json, write_lines, write_samples
from tests.data.prepare.raw import picture, small_extractor, write_tar
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.prepare import formats
from unimo_ds.data.prepare.command import main
from unimo_ds.data.prepare.readers import text_files
from unimo_ds.data.prepare.readers.names import read_exclusion
from unimo_ds.data.prepare.readers.protocol import Record
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.vision.images import encode_jpeg
from unimo_ds.utils.errors import UserError

JPEG = encode_jpeg(picture(0))


def read(settings: ImportSettings) -> tuple[list[Record], Report]:
    """All records, the parts having gone through JSON as they do between processes."""
    formats.check(settings)
    reader, report = formats.reader(settings), Report()
    parts = json.loads(json.dumps(list(reader.parts(report))))
    return [record for part in parts for record in reader.records(part, report)], report


def captions_of(folder: Path, name: str, images: dict[str, bytes], captions: list[Path], **options) -> tuple:
    tar = write_tar(folder / "images.tar", images)
    records, report = read(
        ImportSettings(None, folder / "out", format=name, images=(tar,), captions=tuple(captions), **options)
    )
    return {record.name: record.captions for record in records}, report


def test_coco_captions(tmp_path: Path) -> None:
    file = write_json(
        tmp_path / "captions_train2017.json",
        {
            "images": [
                {"id": 9, "file_name": "COCO_train2014_000000000009.jpg"},
                {"id": 25, "file_name": "000000000025.jpg"},
                {"id": 25, "file_name": "again.jpg"},
                {"id": 30, "file_name": "lost.jpg"},
                {"file_name": "nameless.jpg"},
            ],
            "annotations": [
                {"image_id": 9, "id": 1, "caption": "A red dog .\n"},
                {"image_id": 9, "id": 2, "caption": "a dog"},
                {"image_id": 25, "id": 3, "caption": "a cat"},
                {"image_id": 25, "id": 4, "caption": " "},
                {"image_id": 30, "id": 5, "caption": "a bird"},
                {"image_id": 77, "id": 6, "caption": "a ghost"},
            ],
        },
    )
    # The pictures are COCO 2017's, which leave the split out of the name.
    images = {
        "train2017/000000000009.jpg": JPEG,
        "train2017/000000000025.jpg": JPEG,
        "train2017/000000000031.jpg": JPEG,
    }
    found, report = captions_of(tmp_path, "coco", images, [file])
    assert found == {
        "train2017/000000000009.jpg": ("A red dog .", "a dog"),
        "train2017/000000000025.jpg": ("a cat",),
    }
    assert report.skipped == {
        "an empty caption": ["captions_train2017.json, annotation 4"],
        "an id that comes twice": ["captions_train2017.json, image 25"],
        "an image entry without id and file_name": ["captions_train2017.json, image None"],
        "a caption of an image that the file does not list": ["captions_train2017.json, image 77"],
        "an image without a caption": ["train2017/000000000031.jpg"],
        "a caption whose image is missing": ["lost.jpg"],
    }


def test_an_id_that_is_no_part_of_a_name_joins_no_other_image(tmp_path: Path) -> None:
    """A collection of one's own in COCO's form: ids are counted, names are hashes, and one image is missing."""
    content = {
        "images": [{"id": 1, "file_name": "aa7.jpg"}, {"id": 7, "file_name": "bb2.jpg"}],
        "annotations": [{"image_id": 1, "id": 1, "caption": "a dog"}, {"image_id": 7, "id": 2, "caption": "a cat"}],
    }
    images = {"aa7.jpg": JPEG, "cc7.jpg": JPEG, "dd1.jpg": JPEG}
    found, report = captions_of(tmp_path, "coco", images, [write_json(tmp_path / "own.json", content)])
    assert found == {"aa7.jpg": ("a dog",)}
    assert report.skipped == {
        "an image without a caption": ["cc7.jpg", "dd1.jpg"],
        "a caption whose image is missing": ["bb2.jpg"],
    }


def test_a_table_of_more_columns_is_refused(tmp_path: Path) -> None:
    """Not a caption with the rest of its line, or of the file, whose lines a lone CR may end."""
    table = write_lines(tmp_path / "wide.tsv", ["a.jpg\ta dog\t ", "a.jpg\tthe dog\t0.7", "b.jpg\t"])
    found, report = captions_of(tmp_path, "table", {"a.jpg": JPEG, "b.jpg": JPEG}, [table])
    assert found == {"a.jpg": ("a dog",)}
    assert report.skipped == {
        "a line that is not file<TAB>caption": ["wide.tsv:2"],
        "an empty caption": ["wide.tsv:3"],
        "an image without a caption": ["b.jpg"],
    }
    (tmp_path / "old.tsv").write_bytes(b"a.jpg\ta dog\rb.jpg\ta cat\r")
    with pytest.raises(UserError, match="no line of the form file<TAB>caption"):
        captions_of(tmp_path, "table", {"a.jpg": JPEG}, [tmp_path / "old.tsv"])


def test_captions_with_commas(tmp_path: Path) -> None:
    """Kaggle's Flickr8k: a header, quotes where a caption has commas; its lines are not those of the table with tabs."""
    rows = [
        "image,caption",
        'a.jpg,"A dog , running ."',
        "a.jpg,a dog",
        "b.jpg, ",
        "c.jpg,one,two",
        "",
        'b.jpg,"a',
        'cat"',
    ]
    file = write_lines(tmp_path / "captions.txt", rows)
    found, report = captions_of(tmp_path, "csv", {"a.jpg": JPEG, "b.jpg": JPEG}, [file])
    assert found == {"a.jpg": ("A dog , running .", "a dog"), "b.jpg": ("a\ncat",)}
    assert report.skipped == {
        "an empty caption": ["captions.txt:4"],
        "a row that is not file,caption": ["captions.txt:5"],
        "a caption whose image is missing": ["image"],
    }
    with pytest.raises(UserError, match=r"no line of the form file<TAB>caption; .* --format table, csv"):
        captions_of(tmp_path, "table", {"a.jpg": JPEG}, [file])
    endless = write_lines(tmp_path / "endless.csv", ['a.jpg,"a dog', *["b.jpg,a long caption of a cat"] * 5000])
    with pytest.raises(UserError, match=r"endless\.csv:\d+ cannot be read as CSV .* are its quotes closed"):
        captions_of(tmp_path, "csv", {"a.jpg": JPEG}, [endless])


@pytest.mark.parametrize("mark", [",", "\t", "|"])
def test_columns_of_a_table_with_a_header(mark: str, tmp_path: Path) -> None:
    """open_clip's filepath and title, and wider tables."""
    file = write_lines(tmp_path / "two.csv", [f"filepath{mark}title", f'photos/a.jpg{mark}"A dog , a cat"'])
    found, report = captions_of(tmp_path, "csv", {"a.jpg": JPEG}, [file])
    assert found == {"a.jpg": ("A dog , a cat",)}
    assert report.skipped == {"a caption whose image is missing": ["filepath"]}
    rows = [("file", " number", " title"), ("a.jpg", "0", " a dog"), ("a.jpg", "1"), ("b.jpg", "2", " a cat")]
    file = write_lines(tmp_path / "wide.csv", [mark.join(row) for row in rows])
    images = {"a.jpg": JPEG, "b.jpg": JPEG}
    found, report = captions_of(tmp_path, "csv", images, [file], column="title")
    assert found == {"a.jpg": ("a dog",), "b.jpg": ("a cat",)}
    assert report.skipped == {"a row that is not file,caption": ["wide.csv:3"]}
    rows = [("text", "size", "file"), ("a dog", "0", "a.jpg")]
    file = write_lines(tmp_path / "turned.csv", [mark.join(row) for row in rows])
    assert captions_of(tmp_path, "csv", images, [file], image_column="file")[0] == {"a.jpg": ("a dog",)}
    with pytest.raises(UserError, match=r"turned\.csv holds no row .* two of its header: --image-column, --column"):
        captions_of(tmp_path, "csv", images, [file])
    for option, name in (("column", "--column"), ("image_column", "--image-column")):
        with pytest.raises(UserError, match=f"no column 'x'; it has text, size, file: name one with {name}"):
            captions_of(tmp_path, "csv", images, [file], **{option: "x"})


def test_metadata_of_an_imagefolder(tmp_path: Path) -> None:
    lines = [
        '{"file_name": "a.jpg", "text": " a dog ", "caption": "the dog"}',
        '{"file_name": "deep/b.jpg", "text": ["a cat", "", "two cats"]}',
        "",
        '{"text": "a bird"}',
        "a.jpg,a dog",
        '{"file_name": "a.jpg", "text": 7}',
    ]
    images = {"a.jpg": JPEG, "deep/b.jpg": JPEG}
    file = write_lines(tmp_path / "metadata.jsonl", lines)
    found, report = captions_of(tmp_path, "imagefolder", images, [file])
    assert found == {"a.jpg": ("a dog",), "deep/b.jpg": ("a cat", "two cats")}
    assert report.skipped == {
        "an empty caption": ["metadata.jsonl:2"],
        "a line without file_name": ["metadata.jsonl:4"],
        "a line that is not JSON": ["metadata.jsonl:5"],
        "a caption that is not a text": ["metadata.jsonl:6"],
    }
    found, _ = captions_of(tmp_path, "imagefolder", images, [file], column="caption")
    assert found == {"a.jpg": ("the dog",)}
    with pytest.raises(UserError, match=r"other\.jsonl holds no JSON line with a file_name; is it a metadata\.jsonl"):
        captions_of(tmp_path, "imagefolder", images, [write_lines(tmp_path / "other.jsonl", lines[3:5])])


def test_annotations_of_lavis(tmp_path: Path) -> None:
    entries = [
        {"image": "val2014/a.jpg", "caption": "a dog", "image_id": "coco_1"},
        {"image": "val2014/b.jpg", "caption": ["a cat", "", "two cats"]},
        {"image": "val2014/a.jpg", "caption": "the dog "},
        {"caption": "a bird"},
        7,
    ]
    images = {"val2014/a.jpg": JPEG, "val2014/b.jpg": JPEG}
    found, report = captions_of(tmp_path, "lavis", images, [write_json(tmp_path / "train.json", entries)])
    assert found == {"val2014/a.jpg": ("a dog", "the dog"), "val2014/b.jpg": ("a cat", "two cats")}
    assert report.skipped == {
        "an empty caption": ["train.json, entry 1"],
        "an entry without image": ["train.json, entry 3", "train.json, entry 4"],
    }
    with pytest.raises(UserError, match="not an annotation file of LAVIS"):
        captions_of(tmp_path, "lavis", images, [write_json(tmp_path / "coco.json", {"annotations": entries})])


def test_a_folder_without_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    settings = ImportSettings("images", tmp_path / "out", images=(tmp_path / "empty",))
    assert read(settings)[1].skipped == {"a folder or tar without an image": [str(tmp_path / "empty")]}


def karpathy(folder: Path) -> Path:
    def image(name: str, number: int, split: str, *sentences: str) -> dict:
        return {
            "filepath": "val2014",
            "filename": name,
            "cocoid": number,
            "split": split,
            "sentences": [{"raw": sentence} for sentence in sentences],
        }

    images = [
        image("COCO_val2014_000000000001.jpg", 1, "train", "one", "uno"),
        image("COCO_val2014_000000000002.jpg", 2, "restval", "two"),
        image("COCO_val2014_000000000003.jpg", 3, "test", "three"),
        image("COCO_val2014_000000000004.jpg", 4, "val", "four"),
    ]
    return write_json(folder / "dataset_coco.json", {"dataset": "coco", "images": images})


def test_karpathy_splits(tmp_path: Path) -> None:
    file = karpathy(tmp_path)
    images = {f"val2014/COCO_val2014_{i:012d}.jpg": JPEG for i in (1, 2, 3, 4)}
    found, report = captions_of(tmp_path, "karpathy", images, [file])
    assert list(found.values()) == [("one", "uno"), ("two",)]
    assert report.counts == {"images of the split test left out": 1, "images of the split val left out": 1}
    found, _ = captions_of(tmp_path, "karpathy", images, [file], splits=("test",))
    assert list(found.values()) == [("three",)]
    with pytest.raises(UserError, match="no image has the split 'dev'; there are restval, test, train, val"):
        captions_of(tmp_path, "karpathy", images, [file], splits=("dev",))


def test_visual_genome_and_exclusion_by_coco_ids(tmp_path: Path) -> None:
    regions = [
        {"id": 11, "regions": [{"region_id": 1, "image_id": 11, "phrase": "a red hat"}, {"phrase": "a red hat"}]},
        {"id": 12, "regions": [{"image_id": 12, "phrase": "tall tree"}, {"image_id": 12, "phrase": ""}]},
        {"regions": [{"image_id": 13, "phrase": "grey sky"}]},
        {"id": 14},
    ]
    file = write_json(tmp_path / "region_descriptions.json", regions)
    about = write_json(tmp_path / "image_data.json", [{"image_id": 12, "coco_id": 4, "flickr_id": None}])
    images = {f"VG_100K/{i}.jpg": JPEG for i in (11, 12, 13)}
    found, report = captions_of(tmp_path, "visual-genome", images, [file])
    assert list(found.values()) == [("a red hat",), ("tall tree",), ("grey sky",)]
    assert set(report.skipped) == {"an empty caption", "an image entry without regions"}
    excluded = {"exclude": (karpathy(tmp_path),), "image_data": about}
    found, report = captions_of(tmp_path, "visual-genome", images, [file], **excluded)
    assert list(found) == ["VG_100K/11.jpg", "VG_100K/13.jpg"]
    assert report.counts == {"images excluded": 1}


def test_conceptual_captions_by_line_and_url(tmp_path: Path) -> None:
    urls = [f"http://example.org/{name}.jpg?size=2" for name in "abc"]
    table = tmp_path / "Train_GCC-training.tsv"
    table.write_bytes(b"".join(f"caption {i}\t{url}\n".encode() for i, url in enumerate(urls)) + b"no url\n\xff\tx\n")
    # Google's downloader leaves the suffix out.
    images = {f"0/{i}_{zlib.crc32(url.encode())}": JPEG for i, url in enumerate(urls)}
    found, report = captions_of(tmp_path, "conceptual-captions", images, [table], image_name="{line}_{crc32}")
    assert list(found.values()) == [("caption 0",), ("caption 1",), ("caption 2",)]
    assert report.skipped == {
        "a line without a URL": ["Train_GCC-training.tsv:4"],
        "a line that is not UTF-8": ["Train_GCC-training.tsv:5"],
    }
    table.write_bytes(table.read_bytes() + b"a text\thttp://[\n")
    found, report = captions_of(tmp_path, "conceptual-captions", {"b.jpg": JPEG}, [table])
    assert found == {"b.jpg": ("caption 1",)}
    assert report.skipped["a caption whose image is missing"] == ["a.jpg", "c.jpg", "http://["]
    with pytest.raises(UserError, match=re.escape("--image-name '{row}' is not a pattern of {url_file}")):
        captions_of(tmp_path, "conceptual-captions", images, [table], image_name="{row}")


def test_sbu_as_json_and_as_two_lists(tmp_path: Path) -> None:
    urls = ["http://static.example.com/1/7_a.jpg", "http://static.example.com/2/8_b.jpg"]
    file = write_json(tmp_path / "sbu.json", {"image_urls": urls, "captions": ["a boat", "a hill"], "user_ids": []})
    images = {"8_b.jpg": JPEG, "7_a.jpg": JPEG}
    expected = {"8_b.jpg": ("a hill",), "7_a.jpg": ("a boat",)}
    assert captions_of(tmp_path, "sbu", images, [file])[0] == expected
    lists = [write_lines(tmp_path / "urls.txt", urls), write_lines(tmp_path / "captions.txt", ["a boat", "a hill"])]
    assert captions_of(tmp_path, "sbu", images, lists)[0] == expected
    write_lines(tmp_path / "captions.txt", ["a boat"])
    with pytest.raises(UserError, match="must belong together"):
        captions_of(tmp_path, "sbu", images, lists)


def test_img2dataset_tars(tmp_path: Path) -> None:
    shards = tmp_path / "cc3m"
    shards.mkdir()
    about = {"caption": "from json", "url": "http://example.org/x.jpg", "key": "000000001", "exif": "{}"}
    write_samples(
        shards / "00000.tar",
        {
            "000000000": {"jpg": JPEG, "json": b"{}", "txt": "\ufeff a dog \n".encode()},
            "000000001": {"jpg": JPEG, "json": json.dumps(about).encode()},
            "000000002": {"json": b"{}", "txt": b"no image"},
            "000000003": {"jpg": JPEG, "txt": b" "},
            "000000004": {"jpg": JPEG, "json": b"{", "txt": b"bad"},
            "000000005": {"jpg": JPEG, "txt": "caf\xe9".encode("latin-1")},
            "000000006": {"jpg": JPEG, "json": b'{"caption": "\\ud800"}'},
            "000000007": {"jpg": JPEG, "json": b'{"caption": 7}'},
        },
    )
    write_samples(shards / "00001.tar", {"000010000": {"webp": b"w", "txt": b"a cat"}})
    records, report = read(ImportSettings(None, tmp_path / "out", format="webdataset", input=(shards,)))
    assert [(one.name, one.captions, one.image) for one in records] == [
        ("00000.tar/000000000", ("a dog",), JPEG),
        ("00000.tar/000000001", ("from json",), JPEG),
        ("00001.tar/000010000", ("a cat",), b"w"),
    ]
    assert records[1].details == {"key": "000000001", "url": "http://example.org/x.jpg"}
    assert report.skipped == {
        "a sample without a JPEG, PNG or WebP image": ["00000.tar/000000002"],
        "an empty caption": ["00000.tar/000000003"],
        "a sample whose .json cannot be parsed": ["00000.tar/000000004"],
        "a caption that is not UTF-8": ["00000.tar/000000005"],
        "a text that is not valid Unicode": ["00000.tar/000000006"],
        "a caption that is not a text": ["00000.tar/000000007"],
    }
    command = ["import", "--format", "webdataset", "--input", str(shards / "00000.tar"), "--vocabulary-size", "300"]
    assert (
        main([*command, "--output", str(tmp_path / "data"), "--workers", "1"]) == 0
    )  # a tokenizer is learned of the others
    assert Corpus.open(tmp_path / "data").manifest.totals == {"pair": 2}
    settings = ImportSettings("images", tmp_path / "out", format="webdataset", input=(shards,))
    assert [one.captions for one in read(settings)[0]] == [()] * 7


def test_what_is_no_caption_or_must_be_converted_is_said(tmp_path: Path) -> None:
    table = tmp_path / "captions.tsv"
    table.write_bytes("a.jpg\ta dog\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"captions.tsv is UTF-16, not UTF-8; convert it with `iconv"):
        captions_of(tmp_path, "table", {"a.jpg": JPEG}, [table])
    lines = [f"a.jpg\t{'a dog ' * 2000}", "a.jpg\ta cat"]
    found, report = captions_of(tmp_path, "table", {"a.jpg": JPEG}, [write_lines(table, lines)])
    assert found == {"a.jpg": ("a cat",)}
    assert report.skipped == {"a caption of more than 10000 characters": ["captions.tsv:1"]}
    (tmp_path / "photos.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(600))
    settings = ImportSettings("images", tmp_path / "out", images=(tmp_path / "photos.tar.zst",))
    with pytest.raises(UserError, match=r"photos.tar.zst is a compressed tar; unpack it .* unzstd"):
        read(settings)


def test_downloads_that_number_their_tars_alike_are_all_taken(tmp_path: Path) -> None:
    for corpus, caption in (("cc3m", b"a dog"), ("cc12m", b"a cat")):
        (tmp_path / corpus).mkdir()
        samples = {"000000000": {"jpg": JPEG, "txt": caption}}
        write_samples(tmp_path / corpus / "00000.tar", samples)
    inputs = (tmp_path / "cc3m", tmp_path / "cc12m", tmp_path / "cc3m" / "00000.tar")
    records, report = read(ImportSettings(None, tmp_path / "out", format="webdataset", input=inputs))
    assert [one.captions for one in records] == [("a dog",), ("a cat",)]
    assert report.skipped == {}
    for path, message in (
        (tmp_path / "cc3m" / "{00000..00001}.tar", "does not exist; the shell expands patterns only outside of quotes"),
        (tmp_path, "holds no .tar; make one of each folder of files: tar --sort=name"),
    ):
        with pytest.raises(UserError, match=message):
            read(ImportSettings(None, tmp_path / "out", format="webdataset", input=(path,)))


TEXTS = {
    "lines": (" one \n\ntwo\n", ["one", "two"]),
    "paragraphs": ("one\ntwo\n\n\nthree\n", ["one two", "three"]),
    "headings": (" = Dogs = \n\n one \n = = Breeds = = \n two . \n three \nx = y\n", ["one", "two . three x = y"]),
    "json-lines": ('{"text": "one"}\n{"text": 5}\n{\n{"text": "two\\nlines"}\n', ["one", "two\nlines"]),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("part_bytes", [1, 7, 2**20])
def test_texts_do_not_depend_on_where_parts_end(name: str, part_bytes: int, tmp_path: Path, monkeypatch) -> None:
    content, expected = TEXTS[name]
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    monkeypatch.setattr(text_files, "PART_BYTES", part_bytes)
    records, report = read(ImportSettings(None, tmp_path / "out", format=name, input=(tmp_path / "a.txt",)))
    assert [record.text for record in records] == expected
    if name == "json-lines":
        assert report.skipped == {
            "a line without a text 'text'": ["a.txt, byte 16"],
            "a line that is not JSON": ["a.txt, byte 28"],
        }


def test_parquet_by_row_groups(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"text": ["one", None, "two", " "], "id": [1, 2, 3, 4]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    settings = ImportSettings(None, tmp_path / "out", format="parquet", input=(tmp_path / "a.parquet",))
    records, report = read(settings)
    assert [record.text for record in records] == ["one", "two"]
    assert report.skipped == {"a row without a text": ["a.parquet, row group 0, row 1"]}
    # Of a row that is not UTF-8, nothing else is lost.
    mixed = pyarrow.array([b"one", b"caf\xe9", b"two"]).view(pyarrow.string())
    for column in (mixed, mixed.cast(pyarrow.large_string(), safe=False), mixed.dictionary_encode()):
        parquet.write_table(pyarrow.table({"text": column}), tmp_path / "d")
        records, report = read(ImportSettings(None, tmp_path, format="parquet", input=(tmp_path / "d",)))
        assert [(record.name, record.text) for record in records] == [
            ("d, row group 0, row 0", "one"),
            ("d, row group 0, row 2", "two"),
        ]
        assert report.skipped == {"a row that is not UTF-8": ["d, row group 0, row 1"]}
    # Damage costs a row group, not the rest of the file.
    parquet.write_table(
        pyarrow.table({"text": [f"text {i}" for i in range(4000)]}), tmp_path / "c", row_group_size=2000
    )
    content = bytearray((tmp_path / "c").read_bytes())
    content[100:2000] = bytes(1900)
    (tmp_path / "c").write_bytes(content)
    records, report = read(ImportSettings(None, tmp_path, format="parquet", input=(tmp_path / "c",)))
    assert [record.text for record in records][-2000:] == [f"text {i}" for i in range(2000, 4000)]
    assert sum(map(len, report.skipped.values())) == 1
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    for file, column, message in (
        ("a.parquet", "body", "no column 'body'; it has text, id"),
        ("b.parquet", None, "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            read(ImportSettings(None, tmp_path, format="parquet", input=(tmp_path / file,), column=column))


def test_images_in_parquet(tmp_path: Path) -> None:
    """As the Hub keeps data sets of images, and as img2dataset writes them with output_format=parquet."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"image": {"bytes": JPEG, "path": "a.jpg"}, "caption": ["a dog", " ", "the dog"]},
        {"image": {"bytes": None, "path": "b.jpg"}, "caption": ["a cat"]},
        {"image": {"bytes": JPEG, "path": "c.jpg"}, "caption": None},
        {"image": {"bytes": b"no image", "path": None}, "caption": ["a bird"]},
        {"image": {"bytes": JPEG, "path": "test.jpg"}, "caption": ["a cow"]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-0.parquet", row_group_size=4)
    names = write_lines(tmp_path / "test.txt", ["test.jpg"])
    records, report = read(
        ImportSettings("pairs", tmp_path / "out", format="parquet", input=(folder,), column="caption", exclude=(names,))
    )
    assert [(one.name, one.captions, one.image) for one in records] == [
        ("train-0.parquet, row group 0, row 0 (a.jpg)", ("a dog", "the dog"), JPEG),
        ("train-0.parquet, row group 0, row 3", ("a bird",), b"no image"),
    ]
    assert report.counts == {"images excluded": 1}
    assert report.skipped == {
        "an empty caption": [f"train-0.parquet, row group 0, row {row}" for row in ("0 (a.jpg)", "2 (c.jpg)")],
        "a row without an image's bytes": ["train-0.parquet, row group 0, row 1 (b.jpg)"],
    }
    records, _ = read(ImportSettings("images", tmp_path / "out", format="parquet", input=(folder,)))
    assert [record.captions for record in records] == [()] * 4
    # Large groups are read in parts of 1000 rows, each with its own images.
    many = pyarrow.table({"jpg": [b"%d" % i for i in range(2100)], "caption": [f"dog {i}" for i in range(2100)]})
    parquet.write_table(many, tmp_path / "many.parquet")
    settings = ImportSettings(
        "pairs",
        tmp_path / "out",
        format="parquet",
        input=(tmp_path / "many.parquet",),
        image_column="jpg",
        column="caption",
    )
    reader = formats.reader(settings)
    assert [len(part["items"]) for part in reader.parts(Report())] == [1000, 1000, 100]
    assert [text for part in reader.parts(Report()) for text in reader.texts(part)] == many["caption"].to_pylist()
    assert [(record.image, record.captions) for record in read(settings)[0]] == [
        (b"%d" % i, (f"dog {i}",)) for i in range(2100)
    ]
    (tmp_path / "empty").mkdir()
    for path, column, message in (
        (folder, None, "no column 'text'; it has image, caption: name one with --column"),
        (tmp_path / "many.parquet", "caption", "no column 'image'; it has jpg, caption: name one with --image-column"),
        (tmp_path / "empty", None, "holds no .parquet"),
    ):
        with pytest.raises(UserError, match=message):
            read(ImportSettings("pairs", tmp_path / "out", format="parquet", input=(path,), column=column))
    command = ["import", "--kind", "pairs", "--format", "parquet", "--column", "caption", "--vocabulary-size", "300"]
    assert main([*command, "--input", str(folder), "--output", str(tmp_path / "made"), "--workers", "1"]) == 0
    assert Corpus.open(tmp_path / "made").manifest.totals == {"pair": 2}


def test_exclusion_lists(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a/b.jpg\nCOCO_val2014_000000000042.jpg\n391895\n", encoding="utf-8")
    write_json(tmp_path / "ids.json", [7, "flickr/x.jpg"])
    held = read_exclusion((tmp_path / "names.txt", tmp_path / "ids.json"))
    wanted = {"a/b.jpg", "coco_val2014_000000000042.npz", "000000391895.jpg", "photo_7.jpg", "flickr/x.jpg"}
    others = {"other/b.jpg", "c.jpg", "000000391896.jpg", "x.jpg"}
    assert {name for name in wanted | others if held.holds(name)} == wanted
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="names no image"):
        read_exclusion((tmp_path / "empty.txt",))
    (tmp_path / "latin.txt").write_bytes(b"a.jpg\ncaf\xe9.jpg\n")
    with pytest.raises(UserError, match=r"latin\.txt:2 is not UTF-8"):
        read_exclusion((tmp_path / "latin.txt",))


def test_a_name_of_two_images_is_no_third_ones(tmp_path: Path) -> None:
    """x.jpg may mean either of the first two: its captions belong to neither of them, nor to the image before it."""
    names = (("a", "x.jpg"), ("b", "x.jpg"), (None, "last.jpg"), (None, "x.jpg"))
    listed = [
        {"filename": name, "filepath": folder, "split": "train", "sentences": [{"raw": f"{folder} {name}"}]}
        for folder, name in names
    ]
    file = write_json(tmp_path / "dataset.json", {"images": listed})
    found, _ = captions_of(tmp_path, "karpathy", {"a/x.jpg": JPEG, "b/x.jpg": JPEG, "last.jpg": JPEG}, [file])
    assert found == {"a/x.jpg": ("a x.jpg",), "b/x.jpg": ("b x.jpg",), "last.jpg": ("None last.jpg",)}


def test_values_of_a_wrong_type_are_named(tmp_path: Path) -> None:
    annotations = [{"id": 1, "image_id": [4], "caption": "a dog"}, {"id": 2, "image_id": 4, "caption": "a cat"}]
    content = {"images": [{"id": 4, "file_name": "a.jpg"}], "annotations": annotations}
    found, report = captions_of(tmp_path, "coco", {"a.jpg": JPEG}, [write_json(tmp_path / "coco.json", content)])
    assert found == {"a.jpg": ("a cat",)}
    assert report.skipped == {"a caption without an image_id": ["coco.json, annotation 1"]}
    sbu = {"image_urls": ["http://example.org/\ud800.jpg", "http://example.org/a.jpg"], "captions": ["a dog", "a cat"]}
    found, report = captions_of(tmp_path, "sbu", {"a.jpg": JPEG}, [write_json(tmp_path / "sbu.json", sbu)])
    assert found == {"a.jpg": ("a cat",)}
    assert report.skipped == {"a line without a URL": ["sbu.json, entry 0"]}


@pytest.mark.parametrize("content", ["[1, 2", '{"a": 1}', "[1 2]", "[1,]", "\udcff", "[" * 100_000])
def test_broken_arrays_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "regions.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=r"regions\.json"):
        captions_of(tmp_path, "visual-genome", {"a.jpg": JPEG}, [tmp_path / "regions.json"])


def test_a_name_that_fits_better_wins(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("a.jpg\ta dog\n5.png\ta cat\n", encoding="utf-8")
    images = {"a.png": JPEG, "x/a.jpg": JPEG, "5.png": JPEG}
    found, report = captions_of(tmp_path, "table", images, [tmp_path / "c.tsv"])
    assert found == {"x/a.jpg": ("a dog",), "5.png": ("a cat",)}
    assert report.skipped == {"an image that comes twice": ["a.png"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "cocoo"}, "no format 'cocoo'; did you mean 'coco'"),
        ({"format": "coco"}, "--format coco needs --captions"),
        ({"format": "coco", "captions": ("c",)}, "needs --images or --features"),
        ({"format": "webdataset", "input": ("c",), "images": ("c",)}, "no use for --images"),
        ({"format": "coco", "captions": ("c",), "images": ("c",), "image_name": "{line}"}, "no use for --image-name"),
        ({"format": "lines", "kind": "pairs"}, "gives texts, not --kind pairs"),
        ({"format": "coco", "captions": ("c",), "features": ("c",)}, "--features needs --features-format"),
        ({"format": "coco", "captions": ("c",), "images": ("c",), "features": ("c",)}, "name one of them"),
        ({}, "name a --format"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("", encoding="utf-8")
    options = {
        name: tuple(tmp_path / one for one in value) if isinstance(value, tuple) else value
        for name, value in options.items()
    }
    with pytest.raises(UserError, match=message):
        read(ImportSettings(**{"kind": None, "output": tmp_path / "out", **options}))


def test_formats_become_one_good_folder(tmp_path: Path) -> None:
    extractor, output = str(small_extractor(tmp_path)), str(tmp_path / "data")
    tar = write_tar(tmp_path / "photos.tar", {f"{i}.jpg": encode_jpeg(picture(i)) for i in range(1, 5)})
    common = ["--output", output, "--extractor", extractor, "--vocabulary-size", "300"]
    assert (
        main(["import", "--format", "karpathy", "--captions", str(karpathy(tmp_path)), "--images", str(tar), *common])
        == 0
    )
    samples = {f"{i:09d}": {"jpg": encode_jpeg(picture(i)), "txt": b"a dog"} for i in range(3)}
    shard = write_samples(tmp_path / "00000.tar", samples)
    assert main(["import", "--format", "webdataset", "--input", str(shard), "--keep-images", *common]) == 0
    assert verify(tmp_path / "data") == []
    corpus = Corpus.open(tmp_path / "data")
    captions = [[one.text for one in corpus.read(i).captions] for i in range(len(corpus))]
    assert captions == [["a dog"]] * 3 + [["one", "uno"], ["two"]]
    assert corpus.read_jpeg(0) == samples["000000000"]["jpg"]
    assert np.all(corpus.kinds == corpus.kinds[0])
