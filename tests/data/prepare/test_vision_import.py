"""A vision encoder out of a folder, by the commands: a corpus made with it, later imports, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.data import encoder_folders
from tests.data.encoder_folders import FAMILIES
from tests.data.prepare.raw import picture, small_extractor, write_photographs, write_tar
from tests.data.prepare.test_scale import shard_bytes
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.prepare.command import main
from unimo_ds.data.prepare.settings import ImportSettings, fingerprint
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.prepare.workers import one_thread
from unimo_ds.data.storage import shards
from unimo_ds.data.storage.manifest import load_manifest
from unimo_ds.data.vision import extractors, images, vision_encoder
from unimo_ds.data.vision.images import encode_jpeg


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of some families."""
    place = tmp_path_factory.mktemp("encoders")
    for name in ("clip", "siglip", "swin"):
        encoder_folders.write(place / name, encoder_folders.make(FAMILIES[name]))
    return place


def test_folders_that_cannot_be_used_are_one_sentence(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """By the command, which says nothing else and makes nothing."""
    photos, captions = write_photographs(tmp_path, 3)
    folder, good = tmp_path / "encoder", folders / "clip"
    output = tmp_path / "data"

    def refused(message: str, *options: str, weights: Path = folder) -> None:
        inputs = ["--images", str(photos), "--captions", str(captions), "--vocabulary-size", "300", "--workers", "1"]
        named = ["--extractor", "vision-encoder", "--weights", str(weights), *options]
        assert main(["import", "--kind", "pairs", *inputs, *named, "--output", str(output)]) == 2
        said = capfd.readouterr().err
        assert message in said
        assert said.count("\n") == 1
        assert not (output / "manifest.json").exists()

    def anew(without: str = "", **written: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder, ignore=shutil.ignore_patterns(without))
        for name, content in written.items():
            (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))

    refused("does not exist")
    refused("is no folder; name one that holds a vision encoder", weights=photos)
    anew("config.json")
    refused("has no config.json")
    anew("*.safetensors")
    refused("has no weights")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    refused("has its weights in pytorch_model.bin alone, a pickle")
    anew("*.safetensors")
    (folder / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes()[:5000])
    refused("cannot read the model in")
    config = json.loads((good / "config.json").read_text())
    anew(config="{")
    refused("cannot read the model in")
    anew(config={**config, "model_type": "unheard-of"})
    refused("cannot read the model in")
    anew(config={**config, "model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}})
    (folder / "own.py").write_text("raise SystemExit('code of a model must never run')\n")
    refused("cannot read the model in")
    anew(config={**config, "vision_config": {**config["vision_config"], "intermediate_size": 48}})
    refused("cannot read the model in")
    anew("preprocessor_config.json")
    refused("has no preprocessor_config.json")
    processor = json.loads((good / "preprocessor_config.json").read_text())
    anew(preprocessor_config="[")
    refused("is not JSON")
    anew(preprocessor_config={**processor, "image_mean": None})
    refused("where a list of 3 belongs")
    anew(preprocessor_config={**processor, "image_std": [0, 1, 1]})
    refused("a deviation that is none")
    anew(preprocessor_config={**processor, "include_top": True})
    refused("a way of its own (include_top)")
    anew(preprocessor_config={**processor, "size": 80})
    refused("does not take pictures of 80 x 80")
    assert (
        main(
            [
                "import",
                "--kind",
                "images",
                "--images",
                str(photos),
                "--extractor",
                "vision-encoder",
                "--output",
                str(output),
            ]
        )
        == 2
    )
    assert "needs its weights; name their folder with --weights" in capfd.readouterr().err


@pytest.fixture(scope="module")
def corpus(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a data folder of one file with two sources of images, regions by CLIP's tower; its raw files)"""
    raw = tmp_path_factory.mktemp("raw")
    write_photographs(raw, 8)
    write_tar(raw / "more.tar", {f"{i:03d}.jpg": encode_jpeg(picture(i)) for i in range(20, 23)})
    shutil.copytree(folders / "clip", raw / "clip")
    (raw / "corpus.toml").write_text(
        "output = 'data'\nvocabulary_size = 300\nkeep_images = true\nextractor = 'vision-encoder'\nweights = 'clip'\n"
        "rewrite = false\nretrieve = false\nphrases = false\n"
        "[[import]]\nkind = 'pairs'\nimages = 'photos.tar'\ncaptions = 'captions.tsv'\nsource = 'photos'\n"
        "[[import]]\nkind = 'images'\nimages = 'more.tar'\nsource = 'more'\n"
    )
    assert main(["all", "--config", str(raw / "corpus.toml"), "--workers", "1"]) == 0
    return raw / "data", raw


def test_a_corpus_is_made_with_what_its_first_import_shows(corpus: tuple[Path, Path], folders: Path) -> None:
    folder, _ = corpus
    assert verify(folder) == []
    listed = load_manifest(folder)
    assert listed.totals == {"pair": 8, "image": 3}
    assert (listed.feature_size, listed.num_region_classes) == (32, 400)
    extractor = extractors.load(folder)
    assert listed.extractor is not None
    assert listed.extractor.fingerprint == extractor.fingerprint
    photos, more = (
        [one for entry in listed.shards if source in entry.sources for one in shards.read_shard(folder / entry.file)]
        for source in ("photos", "more")
    )
    seen = [images.decode(one.jpeg or b"") for one in photos]
    expected = one_thread(lambda: vision_encoder.from_weights(folders / "clip").learn(seen, seed=0))
    assert expected.fingerprint == extractor.fingerprint
    for stored in (photos, more):
        found = one_thread(extractor.extract, [images.decode(one.jpeg or b"") for one in stored])
        for one, regions in zip(stored, found, strict=True):
            assert one.sample.regions is not None
            assert one.sample.regions.features.tobytes() == regions.features.tobytes()
            assert one.sample.regions.class_ids.tobytes() == regions.class_ids.tobytes()
    assert Corpus.open(folder).num_regions.tolist() == [53] * 11


def test_later_imports_need_no_weights_and_take_no_others(
    corpus: tuple[Path, Path], folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, raw = corpus
    folder = shutil.copytree(made, tmp_path / "data")
    fingerprint = extractors.load(folder).fingerprint
    tar = write_tar(tmp_path / "later.tar", {"1.jpg": encode_jpeg(picture(40))})
    command = ["import", "--kind", "images", "--images", str(tar), "--workers", "1"]
    named = ["--extractor", "vision-encoder", "--weights"]
    assert main([*command, "--output", str(folder)]) == 0
    assert main([*command, "--output", str(folder), "--source", "again", *named, str(raw / "clip")]) == 0
    assert main([*command, "--output", str(tmp_path / "other"), "--like", str(folder)]) == 0
    for place in (folder, tmp_path / "other"):
        assert verify(place) == []
        assert extractors.load(place).fingerprint == fingerprint
    capsys.readouterr()
    for options in ([*named, str(folders / "siglip")], ["--extractor", "grid"]):
        assert main([*command, "--output", str(folder), "--source", "third", *options]) == 2
        error = capsys.readouterr().err
        assert f"was made with region extractor {fingerprint}, which is not of the kind or weights" in error
        assert error.count("\n") == 1


def test_regions_are_made_again_from_stored_images(corpus: tuple[Path, Path], folders: Path, tmp_path: Path) -> None:
    made, _ = corpus
    folder = shutil.copytree(made, tmp_path / "data")
    before = shard_bytes(folder)
    assert main(["regions", str(folder), "--workers", "1"]) == 0
    assert shard_bytes(folder) == before
    command = ["regions", str(folder), "--extractor", "vision-encoder", "--weights", str(folders / "swin")]
    assert main([*command, "--workers", "1"]) == 0
    assert verify(folder) == []
    assert Corpus.open(folder).num_regions.tolist() == [20] * 11
    found = extractors.load(folder)
    assert vision_encoder.from_weights(folders / "swin").became(found)
    assert load_manifest(folder).num_region_classes == found.num_classes


def test_other_weights_in_the_same_place_are_another_import(
    corpus: tuple[Path, Path], folders: Path, tmp_path: Path
) -> None:
    def identity(folder: Path) -> str:
        return fingerprint(ImportSettings("images", tmp_path, extractor=Path("vision-encoder"), weights=folder))

    folder = shutil.copytree(folders / "clip", tmp_path / "encoder")
    before = identity(folder)
    assert identity(folder) == before
    (folder / "model.safetensors").write_bytes(b"other")
    assert identity(folder) != before


def test_a_grid_asked_for_by_name_is_learned_once(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "more.tar", {"9.jpg": encode_jpeg(picture(9))})
    _, captions = write_photographs(tmp_path, 4)
    grid = extractors.load(small_extractor(tmp_path))
    command = ["import", "--output", str(tmp_path / "data"), "--workers", "1", "--vocabulary-size", "300", "--images"]
    pairs = [str(tmp_path / "photos.tar"), "--kind", "pairs", "--captions", str(captions), "--extractor", str(tmp_path)]
    assert main([*command, *pairs]) == 0
    assert main([*command, str(tar), "--kind", "images", "--extractor", "grid"]) == 0
    assert extractors.load(tmp_path / "data").fingerprint == grid.fingerprint
    assert load_manifest(tmp_path / "data").totals == {"pair": 4, "image": 1}
