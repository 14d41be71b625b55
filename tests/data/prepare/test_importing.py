"""`unimo prepare import` and its companions: complete folders from raw corpora, nothing dropped in silence."""

import io
import json
import os
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.prepare.raw import captions, picture, small_extractor, write_photographs, write_tar
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.prepare import importing, journal
from unimo_ds.data.prepare.command import main
from unimo_ds.data.prepare.journal import alone_in
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.schema import Kind, TextRole
from unimo_ds.data.storage.manifest import load_manifest
from unimo_ds.data.storage.shards import index_path
from unimo_ds.data.vision import extractors, grid, images


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos.tar, captions.tsv, lines.txt and extractor.safetensors."""
    folder = tmp_path_factory.mktemp("raw")
    write_photographs(folder, 24)
    (folder / "lines.txt").write_text(
        " = Dogs = \n\nA dog runs over the grass . It is black .\nA cat sleeps .\n\nThe end .\n", encoding="utf-8"
    )
    small_extractor(folder)
    return folder


def _import(raw: Path, output: Path, *options: str, kind: str = "pairs") -> int:
    inputs = {
        "pairs": ["--images", str(raw / "photos.tar"), "--captions", str(raw / "captions.tsv")],
        "images": ["--images", str(raw / "photos.tar")],
        "texts": ["--input", str(raw / "lines.txt")],
    }[kind]
    if kind != "texts" and not {"--like", "--extractor"} & set(options):
        options = ("--extractor", str(raw / "extractor.safetensors"), *options)
    return main(["import", "--kind", kind, "--output", str(output), "--vocabulary-size", "400", *inputs, *options])


@pytest.fixture(scope="module")
def folder(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, images and texts in one folder."""
    output = tmp_path_factory.mktemp("data")
    assert _import(raw, output, "--source", "pairs", "--keep-images") == 0
    assert _import(raw, output, "--source", "pictures", kind="images") == 0
    assert _import(raw, output, kind="texts") == 0
    return output


def test_three_imports_make_one_good_folder(folder: Path) -> None:
    assert verify(folder) == []
    assert main(["verify", str(folder)]) == 0
    corpus = Corpus.open(folder)
    assert Counter(corpus.kinds.tolist()) == {Kind.PAIR: 24, Kind.IMAGE: 24, Kind.TEXT: 4}
    assert corpus.source_names == ("lines", "pairs", "pictures")
    assert (corpus.feature_size, corpus.num_region_classes) == (24, 10)


def test_samples_are_what_was_given(raw: Path, folder: Path) -> None:
    corpus = Corpus.open(folder)
    extractor = extractors.load(raw)
    pairs = np.flatnonzero(corpus.kinds == Kind.PAIR)
    for number, sample in enumerate(pairs):
        stored = corpus.read(int(sample))
        assert [caption.text for caption in stored.captions] == captions(number)
        jpeg = corpus.read_jpeg(int(sample))
        assert jpeg == images.encode_jpeg(picture(number))
        assert corpus.details(int(sample)) == {"file": f"{number:03d}.jpg", "size": [80, 60]}
        (expected,) = extractor.extract([images.decode(jpeg)])
        np.testing.assert_allclose(stored.regions.features.astype(float), expected.features.astype(float), atol=2e-3)
    texts = [corpus.read(int(i)).text for i in np.flatnonzero(corpus.kinds == Kind.TEXT)]
    assert texts == ["= Dogs =", "A dog runs over the grass . It is black .", "A cat sleeps .", "The end ."]
    assert corpus.read_jpeg(int(np.flatnonzero(corpus.kinds == Kind.IMAGE)[0])) is None


def test_extractor_and_tokenizer_are_learned_where_none_is_given(raw: Path, tmp_path: Path) -> None:
    photos, tsv = raw / "photos.tar", raw / "captions.tsv"
    arguments = ["--images", str(photos), "--captions", str(tsv), "--output", str(tmp_path / "data")]
    assert main(["import", "--kind", "pairs", *arguments]) == 0
    corpus = Corpus.open(tmp_path / "data")
    assert corpus.feature_size == grid.GridSettings().feature_size
    assert tokenizers.load(corpus.tokenizer_path).fingerprint == corpus.manifest.tokenizer.fingerprint
    assert verify(tmp_path / "data") == []


def test_like_takes_tokenizer_and_extractor(raw: Path, folder: Path, tmp_path: Path) -> None:
    assert _import(raw, tmp_path, "--like", str(folder)) == 0
    one, other = load_manifest(folder), load_manifest(tmp_path)
    assert one.tokenizer == other.tokenizer
    assert one.extractor == other.extractor


def test_paragraphs_and_columns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\nthree\n", encoding="utf-8")
    (tmp_path / "b.tsv").write_text("sentence\tlabel\na dog runs\t1\na cat\t0\n\t1\n", encoding="utf-8")
    shared = ["import", "--kind", "texts", "--output", str(tmp_path / "out"), "--vocabulary-size", "300"]
    assert main([*shared, "--input", str(tmp_path / "a.txt"), "--paragraphs"]) == 0
    assert main([*shared, "--input", str(tmp_path / "b.tsv"), "--column", "sentence"]) == 0
    corpus = Corpus.open(tmp_path / "out")
    assert [corpus.read(i).text for i in range(len(corpus))] == ["one two", "three", "a dog runs", "a cat"]
    assert main([*shared, "--input", str(tmp_path / "b.tsv"), "--column", "sentense"]) == 2


def test_a_long_document_becomes_several_texts(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("The dog runs over the grass . " * 300, encoding="utf-8")
    arguments = ["--input", str(tmp_path / "long.txt"), "--output", str(tmp_path / "out"), "--vocabulary-size", "300"]
    assert main(["import", "--kind", "texts", *arguments]) == 0
    corpus = Corpus.open(tmp_path / "out")
    assert len(corpus) > 3
    assert corpus.text_tokens.max() <= 510
    assert " ".join(corpus.read(i).text for i in range(len(corpus))).count("dog") == 300


def test_whatever_is_skipped_is_counted_and_named(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = images.encode_jpeg(picture(0))
    png = io.BytesIO()
    picture(1).save(png, format="PNG")
    tar = write_tar(
        tmp_path / "photos.tar",
        {
            "sub/good.jpg": good,
            "second.png": png.getvalue(),
            "cut.jpg": good[: len(good) // 2],
            "silent.jpg": good,
            "../outside.jpg": good,
            "/absolute.jpg": good,
            "notes.txt": b"not an image",
            "old.gif": b"GIF89a",
        },
    )
    with tarfile.open(tar, "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    tsv = tmp_path / "captions.tsv"
    tsv.write_bytes(
        b"good.jpg\tA red dog .\r\nsecond.png\t a green dog \ncut.jpg\ta cat\nlink.jpg\ta link\nlost.jpg\ta bird\n"
        b"good.jpg\t  \nno tab here\ngood.jpg\tbad \xff byte\n\n"
    )
    output = tmp_path / "data"
    extractor = str(raw / "extractor.safetensors")
    arguments = ["--images", str(tar), "--captions", str(tsv), "--output", str(output), "--extractor", extractor]
    assert main(["import", "--kind", "pairs", "--keep-images", "--vocabulary-size", "300", *arguments]) == 0
    corpus = Corpus.open(output)
    assert [[one.text for one in corpus.read(i).captions] for i in range(len(corpus))] == [
        ["A red dog ."],
        ["a green dog"],
    ]
    assert images.is_jpeg(corpus.read_jpeg(1) or b"")
    report = json.loads((output / "report-photos.json").read_text(encoding="utf-8"))
    assert report["skipped"] == {
        "a line that is not file<TAB>caption": ["captions.tsv:7"],
        "a line that is not UTF-8": ["captions.tsv:8"],
        "an empty caption": ["captions.tsv:6"],
        "a tar member that points outside": ["../outside.jpg", "/absolute.jpg"],
        "not a regular file": ["link.jpg"],
        "an image that is neither JPEG, PNG nor WebP": ["old.gif"],
        "an image without a caption": ["silent.jpg"],
        "a caption whose image is missing": ["link.jpg", "lost.jpg"],
        "an image that cannot be decoded": [report["skipped"]["an image that cannot be decoded"][0]],
    }
    assert report["skipped"]["an image that cannot be decoded"][0].startswith("cut.jpg: ")
    printed = capsys.readouterr().out
    assert "an image that cannot be decoded: 1 (cut.jpg" in printed
    assert not (tmp_path / "outside.jpg").exists()


def test_images_come_from_a_folder_too_and_may_be_left_out(raw: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    for i in range(3):
        picture(i).save(photos / "deep" / f"{i}.jpg")
    Image.new("L", (3000, 2000)).save(photos / "large.png")
    (photos / "away.jpg").symlink_to("/etc/hostname")
    (tmp_path / "skip.tsv").write_text("1.jpg\tanything\n", encoding="utf-8")
    arguments = ["--images", str(photos), "--output", str(tmp_path / "data"), "--skip", str(tmp_path / "skip.tsv")]
    assert main(["import", "--kind", "images", *arguments, "--extractor", str(raw), "--vocabulary-size", "300"]) == 0
    corpus = Corpus.open(tmp_path / "data")
    assert [corpus.details(i)["file"] for i in range(len(corpus))] == ["deep/0.jpg", "deep/2.jpg", "large.png"]


def test_odd_names_are_taken_and_links_to_folders_named(raw: Path, tmp_path: Path, capsys) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    picture(0).save(photos / "deep" / "0.jpg")
    (photos / "deep.jpg").write_bytes((photos / "deep" / "0.jpg").read_bytes())
    (photos / "linked").symlink_to(photos / "deep")
    for name, content in ((b"caf\xe9.jpg", (photos / "deep.jpg").read_bytes()), (b"cut\xe9.jpg", b"nothing")):
        Path(os.fsdecode(os.fsencode(photos) + b"/" + name)).write_bytes(content)
    arguments = ["--images", str(photos), "--output", str(tmp_path / "data"), "--extractor", str(raw)]
    assert main(["import", "--kind", "images", "--vocabulary-size", "300", *arguments]) == 0
    said = capsys.readouterr().out
    assert "not followed: 1 (linked)" in said
    assert r"(cut\udce9.jpg: " in said
    corpus = Corpus.open(tmp_path / "data")
    names = [corpus.details(i)["file"] for i in range(len(corpus))]
    assert names == [r"caf\udce9.jpg", "deep/0.jpg", "deep.jpg"]


def test_an_import_that_was_given_up_enters_nothing(raw: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    assert _import(raw, tmp_path, kind="texts") == 0

    # Killed when its shards are made, before the folder is finished.
    monkeypatch.setattr(importing, "write_report", _stop)
    with pytest.raises(KeyboardInterrupt):
        _import(raw, tmp_path, "--source", "half")
    monkeypatch.undo()
    assert _import(raw, tmp_path, "--source", "more", kind="texts") == 0
    assert main(["phrases", str(tmp_path), "--workers", "1"]) == 0
    assert [entry.file for entry in load_manifest(tmp_path).shards] == ["lines-000000.tar", "more-000000.tar"]
    capsys.readouterr()
    assert main(["verify", str(tmp_path), "--workers", "1"]) == 1
    assert "the import of half was not finished" in capsys.readouterr().out
    assert _import(raw, tmp_path, "--source", "half") == 0
    assert verify(tmp_path) == []
    assert load_manifest(tmp_path).totals == {"pair": 24, "text": 8}


def test_an_import_that_was_overtaken_takes_what_the_folder_has_now(raw: Path, tmp_path: Path, monkeypatch) -> None:
    """It was killed with a tokenizer and an extractor of its own; then another import gave the folder others."""
    output = tmp_path / "data"
    command = ["import", "--kind", "images", "--images", str(raw / "photos.tar"), "--output", str(output), "--source"]
    killed = [*command, "killed", "--workers", "1"]
    assert _import(raw, tmp_path / "other", kind="texts") == 0
    with monkeypatch.context() as patch:
        patch.setattr(importing, "write_report", _stop)
        with pytest.raises(KeyboardInterrupt):
            main(killed)
    assert main([*command, "other", "--tokenizer", str(tmp_path / "other"), "--extractor", str(raw)]) == 0
    other = load_manifest(output)
    assert main(killed) == 0
    found = load_manifest(output)
    assert (found.tokenizer, found.extractor, found.totals) == (other.tokenizer, other.extractor, {"image": 48})
    corpus = Corpus.open(output)
    first, second = (corpus.read(number).regions for number in (0, 24))
    assert first is not None
    assert second is not None
    assert first.features.tobytes() == second.features.tobytes()


def test_an_import_that_was_done_but_for_its_journal_takes_nothing_back(raw: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(importing.Journal, "forget", _stop)
        with pytest.raises(KeyboardInterrupt):
            _import(raw, tmp_path / "data", "--keep-images")
    settings = grid.GridSettings(feature_size=16, num_patches=16)
    grid.fit([picture(40)], seed=5, settings=settings).save(tmp_path)
    assert main(["regions", str(tmp_path / "data"), "--extractor", str(tmp_path), "--workers", "1"]) == 0
    renewed = load_manifest(tmp_path / "data")
    assert _import(raw, tmp_path / "data", "--keep-images") == 0
    assert load_manifest(tmp_path / "data").extractor == renewed.extractor
    assert extractors.load(tmp_path / "data").feature_size == 16


def _stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["mark", "entries"])
def test_a_kill_at_the_very_end_of_an_import_undoes_nothing(
    raw: Path, tmp_path: Path, monkeypatch, capsys, moment: str
) -> None:
    """Between the manifest and the end of the journal: its mark is still there, or gone without the rest."""
    if moment == "mark":
        monkeypatch.setattr(importing.Journal, "forget", _stop)
    else:
        monkeypatch.setattr(journal.shutil, "rmtree", _stop)
    with pytest.raises(KeyboardInterrupt):
        _import(raw, tmp_path)
    monkeypatch.undo()
    made = load_manifest(tmp_path).shards
    assert _import(raw, tmp_path, kind="texts") == 0
    assert load_manifest(tmp_path).shards[-len(made) :] == made
    assert verify(tmp_path) == []
    assert _import(raw, tmp_path) == 0
    assert list((tmp_path / ".prepare").glob("*")) == []


def test_a_kill_while_shards_are_replaced_leaves_no_old_one(raw: Path, tmp_path: Path, monkeypatch) -> None:
    assert _import(raw, tmp_path, "--source", "lines", kind="texts") == 0
    old = tmp_path / "lines-000001.tar"  # as if the first import had made more shards than the second
    shutil.copy(tmp_path / "lines-000000.tar", old)
    shutil.copy(index_path(tmp_path / "lines-000000.tar"), index_path(old))
    assert main(["pack", str(tmp_path)]) == 0

    unlink = Path.unlink

    def stop_at_tars(path: Path, **options: bool) -> None:
        if path.suffix == ".tar":
            raise KeyboardInterrupt
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", stop_at_tars)
    with pytest.raises(KeyboardInterrupt):
        _import(raw, tmp_path, "--source", "lines", "--paragraphs", "--replace", kind="texts")
    monkeypatch.undo()
    assert _import(raw, tmp_path, "--source", "other", kind="texts") == 0
    assert [entry.file for entry in load_manifest(tmp_path).shards] == ["other-000000.tar"]
    assert _import(raw, tmp_path, "--source", "lines", "--paragraphs", "--replace", kind="texts") == 0
    assert not old.exists()
    assert verify(tmp_path) == []


def test_one_stage_at_a_time_works_in_a_folder(raw: Path, tmp_path: Path, capsys) -> None:
    with alone_in(tmp_path / "data", make=True):
        for again in (["--source", "one"], ["--source", "two"]):
            assert _import(raw, tmp_path / "data", *again, kind="texts") == 2
            assert "another `unimo prepare` is at work in" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert _import(raw, tmp_path / "data", kind="texts") == 0


def test_an_import_is_not_lost_or_doubled_by_accident(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _import(raw, tmp_path, kind="texts") == 0
    before = load_manifest(tmp_path)
    assert _import(raw, tmp_path, kind="texts") == 0
    assert "already imported" in capsys.readouterr().out
    assert _import(raw, tmp_path, "--paragraphs", kind="texts") == 2
    assert "already holds shards named lines" in capsys.readouterr().err
    assert _import(raw, tmp_path, "--replace", kind="texts") == 0
    assert load_manifest(tmp_path).shards == before.shards


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "texts", "--input", "lost.txt"], "does not exist"),
        (["--kind", "images", "--images", "lines.txt"], "neither a folder nor a tar"),
        (["--kind", "pairs", "--images", "photos.tar", "--captions", "lines.txt"], "no line of the form"),
        (["--kind", "texts", "--input", "lines.txt", "--vocabulary-size", "100"], "at least 261"),
        (["--kind", "texts", "--input", "lines.txt", "--vocabulary-size", str(2**63)], "at most 16777216"),
        (["--kind", "images", "--images", "photos.tar", "--like", "."], "no manifest"),
        (["--kind", "images", "--images", "photos.tar", "--extractor", "lines.txt"], "region extractor"),
        (["--kind", "images", "--images", "cut.tar"], "damaged or cut"),
        (["--kind", "images", "--images", "header.tar"], "damaged or cut: no header at byte"),
        (["--kind", "texts", "--input", "photos.tar"], "is not UTF-8 text"),
        (["--kind", "texts", "--input", "empty.txt"], "nothing to import"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], message: str, raw: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (raw / "photos.tar").read_bytes()
    (raw / "cut.tar").write_bytes(content[: len(content) // 2 + 700])
    with tarfile.open(raw / "photos.tar") as archive:
        second = archive.getmembers()[1].offset
    (raw / "header.tar").write_bytes(content[:second] + b"?" + content[second + 1 :])
    (raw / "empty.txt").write_text("\n\n", encoding="utf-8")
    monkeypatch.chdir(raw)
    assert main(["import", *arguments, "--output", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_refused_import_leaves_no_journal(raw: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    before = sorted(path.name for path in (tmp_path / "data").iterdir())
    grid.fit([picture(40)], seed=5, settings=grid.GridSettings(feature_size=24, num_patches=16)).save(tmp_path)
    refused = ("--source", "more", "--extractor", str(tmp_path))
    assert _import(raw, tmp_path / "data", *refused, kind="images") == 2
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == before


def test_a_refusal_leaves_an_interrupted_import_its_state(raw: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(importing, "write_report", _stop)
    with pytest.raises(KeyboardInterrupt):
        _import(raw, tmp_path)
    monkeypatch.undo()
    shard = tmp_path / "photos-000000.tar"
    made, tokenizer = shard.stat(), journal.import_journal(tmp_path, "photos").path / tokenizers.TOKENIZER_FILE
    content = tokenizer.read_bytes()
    tokenizer.write_bytes(content[:100])
    assert _import(raw, tmp_path) == 2
    tokenizer.write_bytes(content)
    assert _import(raw, tmp_path) == 0
    assert shard.stat() == made
    assert verify(tmp_path) == []


def test_another_tokenizer_or_extractor_is_refused(raw: Path, folder: Path, tmp_path: Path, capsys) -> None:
    tokenizers.train(["other words"] * 9, vocabulary_size=270, output=tmp_path)
    grid.fit([picture(40)], seed=5, settings=grid.GridSettings(feature_size=24, num_patches=16)).save(tmp_path)
    for option in ("--tokenizer", "--extractor"):
        assert _import(raw, folder, "--source", "more", option, str(tmp_path), kind="images") == 2
        assert "was made with" in capsys.readouterr().err


def test_tokenizer_stage_reads_captions_and_texts(raw: Path, tmp_path: Path) -> None:
    files = [str(raw / "captions.tsv"), str(raw / "lines.txt")]
    assert main(["tokenizer", *files, "--output", str(tmp_path), "--vocabulary-size", "320"]) == 0
    made = tokenizers.load(tmp_path)
    assert "Ġhorse" in made.pieces or "Ġdog" in made.pieces
    assert not any("jpg" in piece for piece in made.pieces)


def test_regions_and_pack_renew_a_folder(raw: Path, tmp_path: Path, capsys) -> None:
    assert _import(raw, tmp_path, "--keep-images") == 0
    before = Corpus.open(tmp_path)
    small = grid.GridSettings(feature_size=16, num_classes=8, image_side=48, num_patches=16)
    other = grid.fit([picture(i) for i in range(30, 40)], seed=3, settings=small)
    other.save(tmp_path.parent)
    assert main(["regions", str(tmp_path), "--extractor", str(tmp_path.parent)]) == 0
    after = Corpus.open(tmp_path)
    assert (after.feature_size, after.num_region_classes) == (16, 8)
    assert after.manifest.extractor.fingerprint == other.fingerprint
    assert [after.key(i) for i in range(24)] == [before.key(i) for i in range(24)]
    tokenizers.train(["another dog"] * 4, vocabulary_size=261, output=tmp_path.parent)
    assert main(["pack", str(tmp_path), "--tokenizer", str(tmp_path.parent)]) == 0
    packed = Corpus.open(tmp_path)
    assert packed.text_tokens.sum() > after.text_tokens.sum()
    assert verify(tmp_path) == []
    assert _import(raw, tmp_path / "bare") == 0
    assert main(["regions", str(tmp_path / "bare")]) == 2
    assert "--keep-images" in capsys.readouterr().err


def test_all_stages_at_once(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, tsv, lines = (str(raw / name) for name in ("photos.tar", "captions.tsv", "lines.txt"))
    arguments = ["all", "--images", photos, "--captions", tsv, "--texts", lines, "--image-only", photos]
    arguments += ["--output", str(tmp_path / "data"), "--vocabulary-size", "400", "--extractor", str(raw)]
    assert main(arguments) == 0
    corpus = Corpus.open(tmp_path / "data")
    assert Counter(corpus.kinds.tolist()) == {Kind.PAIR: 24, Kind.IMAGE: 24, Kind.TEXT: 4}
    assert (corpus.text_role == TextRole.NEGATIVE).any()
    assert len(corpus.related_image_index) > 0
    assert main(["verify", str(tmp_path / "data")]) == 0
    assert main(arguments) == 0
    assert "finished already" in capsys.readouterr().out


def test_retrieval_makes_do_with_images_or_with_fragments(raw: Path, tmp_path: Path, capsys) -> None:
    assert _import(raw, tmp_path / "data", "--source", "pairs") == 0
    assert main(["retrieve", str(tmp_path / "data"), "--workers", "1"]) == 2
    assert "no texts and no images" in capsys.readouterr().err
    assert _import(raw, tmp_path / "data", "--source", "pictures", kind="images") == 0
    assert main(["retrieve", str(tmp_path / "data"), "--number", "3", "--workers", "1"]) == 0
    (tmp_path / "lines.txt").write_text("too short\nthe of and\n", encoding="utf-8")
    assert _import(tmp_path, tmp_path / "data", kind="texts") == 0
    assert main(["retrieve", str(tmp_path / "data"), "--number", "3", "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "sentences searched: 0\nimages searched: 24\npairs: 24\nrelated texts: 0\nrelated images: 72\n" in said
    assert verify(tmp_path / "data") == []


def test_a_killed_import_is_done_again(raw: Path, tmp_path: Path) -> None:
    assert _import(raw, tmp_path / "whole", "--source", "lines", kind="texts") == 0
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "lines-000000.tar").write_bytes(b"the shard of an import that never wrote its manifest")
    (tmp_path / "killed" / ".lines-000001.tar.77.partial").write_bytes(b"scraps")
    assert _import(raw, tmp_path / "killed", kind="texts") == 0
    assert load_manifest(tmp_path / "killed").shards == load_manifest(tmp_path / "whole").shards
    assert not list((tmp_path / "killed").glob(".*"))


def test_verify_names_a_flipped_byte(raw: Path, tmp_path: Path, capsys) -> None:
    assert _import(raw, tmp_path, kind="texts") == 0
    (shard,) = tmp_path.glob("*.tar")
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    assert main(["verify", str(tmp_path)]) == 1
    assert shard.name in capsys.readouterr().out
    for stage in (["phrases"], ["pack"]):
        assert main([*stage, str(tmp_path)]) == 2
        assert f"shard {shard} is damaged" in capsys.readouterr().err
    assert shard.read_bytes() == content
    # What still reads as a sample is not written again under a new checksum.
    content[600] ^= 1
    content[content.index(b"A cat") + 2] ^= 1
    shard.write_bytes(content)
    assert main(["phrases", str(tmp_path)]) == 2
    assert "is not what it was when it was indexed" in capsys.readouterr().err
    assert shard.read_bytes() == content


@pytest.mark.parametrize(
    "stage", ["import", "tokenizer", "phrases", "rewrite", "retrieve", "regions", "pack", "verify", "all", "demo"]
)
def test_every_stage_has_help_with_an_example(stage: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main([stage, "--help"])
    assert stop.value.code == 0
    assert "example:\n  unimo prepare" in capsys.readouterr().out
