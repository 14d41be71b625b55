"""`unimo prepare regions` and imports with a detector: same bytes for any number of workers, and after any kill."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.data.prepare.raw import picture, write_photographs, write_tar
from tests.data.prepare.raw import small_extractor as small_grid
from tests.data.prepare.test_scale import run_and_kill, shard_bytes
from tests.data.vision.detectors.networks import SMALL, as_in_caffe, random_network, small_extractor
from unimo_ds.data.prepare import stages
from unimo_ds.data.prepare.command import main
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.prepare.workers import Workers, one_thread
from unimo_ds.data.storage import shards
from unimo_ds.data.storage.manifest import load_manifest
from unimo_ds.data.vision import extractors, images
from unimo_ds.data.vision.detectors import detector
from unimo_ds.data.vision.grid import fit
from unimo_ds.data.vision.images import encode_jpeg
from unimo_ds.utils import machine

NUM_SOURCES = 4


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, a grid, a detector's file and its weights."""
    folder = tmp_path_factory.mktemp("raw")
    write_photographs(folder, 6)
    (folder / "grid").mkdir()
    small_grid(folder / "grid")
    (folder / "detector").mkdir()
    small_extractor().save(folder / "detector")
    state = as_in_caffe(random_network(SMALL).state_dict())
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs and three sources of images, a shard each, with regions of a grid."""
    output = tmp_path_factory.mktemp("data") / "grid"
    shared = ["--output", str(output), "--extractor", str(raw / "grid"), "--keep-images", "--workers", "1"]
    pairs = ["--images", str(raw / "photos.tar"), "--captions", str(raw / "captions.tsv"), "--vocabulary-size", "300"]
    assert main(["import", "--kind", "pairs", *pairs, *shared]) == 0
    for number in range(1, NUM_SOURCES):
        tar = raw / f"more{number}.tar"
        write_tar(tar, {f"{i:03d}.jpg": encode_jpeg(picture(i)) for i in range(10 * number, 10 * number + 3)})
        assert main(["import", "--kind", "images", "--images", str(tar), *shared]) == 0
    return output


@pytest.fixture(scope="module")
def detected(raw: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder with regions of the detector, made by one process without disturbance."""
    output = tmp_path_factory.mktemp("data") / "detected"
    shutil.copytree(folder, output)
    assert main(["regions", str(output), "--extractor", str(raw / "detector"), "--workers", "1"]) == 0
    return output


def test_regions_are_those_of_the_detector(raw: Path, folder: Path, detected: Path) -> None:
    assert verify(detected) == []
    listed = load_manifest(detected)
    extractor = extractors.load(raw / "detector")
    assert listed.extractor is not None
    assert (listed.extractor.fingerprint, listed.extractor.file) == (extractor.fingerprint, "extractor.safetensors")
    assert (listed.feature_size, listed.num_region_classes) == (extractor.feature_size, extractor.num_classes)
    assert listed.totals == load_manifest(folder).totals
    stored = list(shards.read_shard(detected / listed.shards[0].file))
    for one in stored[:2]:
        (expected,) = extractor.extract([images.decode(one.jpeg or b"")])
        assert one.sample.regions is not None
        np.testing.assert_allclose(one.sample.regions.boxes, expected.boxes, atol=1e-5)
    # New images of the same kind: the folder itself knows its detector.
    assert extractors.load(detected).fingerprint == extractor.fingerprint


def test_a_finished_stage_is_left_alone(raw: Path, detected: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in detected.iterdir()}
    assert main(["regions", str(detected), "--extractor", str(raw / "detector"), "--workers", "1"]) == 0
    assert "already made" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in detected.iterdir()} == before


def test_worker_processes_make_the_same_bytes(raw: Path, folder: Path, detected: Path, tmp_path: Path) -> None:
    output = tmp_path / "two"
    shutil.copytree(folder, output)
    assert main(["regions", str(output), "--extractor", str(raw / "detector"), "--workers", "2"]) == 0
    assert shard_bytes(output) == shard_bytes(detected)


def test_killed_at_many_moments_and_continued(raw: Path, folder: Path, detected: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    shutil.copytree(folder, output)
    arguments = ["regions", str(output), "--extractor", str(raw / "detector"), "--workers", "1"]
    kills = 0
    for _ in range(40):
        # Counted from what is there: every run gets a little further than the one before.
        if not run_and_kill(arguments, output, after=len(list(output.rglob("*"))) + 2):
            break
        kills += 1
    assert kills >= 2
    assert main(arguments) == 0
    assert shard_bytes(output) == shard_bytes(detected)
    assert verify(output) == []
    assert not list(output.glob("**/*.partial"))


@pytest.mark.parametrize("at", ["rewrite", "build_index", "write_json"])
def test_nothing_else_is_done_to_a_folder_with_regions_of_two_extractors(
    raw: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at: str,
) -> None:
    """The regions stage is stopped within its second shard: before it is written, before it is indexed, before its entry."""
    output = tmp_path / "halves"
    shutil.copytree(folder, output)
    place = stages if at == "write_json" else stages.index
    calls, real = [], getattr(place, at)

    def stop_at_the_second(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*arguments, **options)

    other = tmp_path / "other"  # of the same sizes
    fit([picture(i) for i in range(50, 60)], seed=9, settings=extractors.load(raw / "grid").settings).save(other)
    regions = ["regions", str(output), "--extractor", str(other), "--workers", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(place, at, stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            main(regions)
    before = shard_bytes(output)
    more = ["--kind", "images", "--images", str(raw / "more1.tar"), "--source", "again", "--output", str(output)]
    for command in (["phrases", str(output)], ["import", *more, "--workers", "1"], ["pack", str(output)]):
        capsys.readouterr()
        assert main(command) == 2
        assert "`unimo prepare regions` was begun there and not finished" in capsys.readouterr().err
    assert shard_bytes(output) == before
    assert main(regions) == 0
    assert main(["phrases", str(output), "--workers", "1"]) == 0
    assert verify(output) == []


def test_a_stage_that_changed_nothing_is_not_taken_for_the_one_that_did(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`regions` is stopped before its first shard is written, then `phrases` after that."""
    output = tmp_path / "twice"
    shutil.copytree(folder, output)
    regions, phrase = (["regions", str(output), "--workers", "1"], ["phrases", str(output), "--workers", "1"])

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    for command, place, at in ((regions, stages.index, "rewrite"), (phrase, stages, "write_json")):
        with monkeypatch.context() as patched:
            patched.setattr(place, at, stop)
            with pytest.raises(KeyboardInterrupt):
                main(command)
    assert main(regions) == 2
    assert "`unimo prepare phrases` was begun there and not finished" in capsys.readouterr().err
    assert main(phrase) == main(regions) == 0
    assert verify(output) == []


def test_a_stage_is_not_done_where_it_was_begun_with_other_options(
    raw: Path, folder: Path, detected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "back"
    shutil.copytree(detected, output)

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            main(["regions", str(output), "--extractor", str(raw / "grid"), "--workers", "1"])
    assert shard_bytes(output) != shard_bytes(detected)
    assert main(["regions", str(output), "--extractor", str(raw / "detector"), "--workers", "1"]) == 0
    assert shard_bytes(output) == shard_bytes(detected)
    assert verify(output) == []


def test_a_shard_that_was_replaced_is_not_passed_for_the_old_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "replaced"
    shutil.copytree(folder, output)
    one, other = (output / f"more{number}-000000.tar" for number in (1, 2))
    for path in (one, shards.index_path(one)):
        path.unlink()
    shutil.copy(other, one)
    shutil.copy(shards.index_path(other), shards.index_path(one))
    assert main(["phrases", str(output), "--workers", "1"]) == 2
    assert "more1-000000.tar was changed since its manifest was written" in capsys.readouterr().err


@pytest.mark.parametrize(("gpus", "number"), [(0, 1), (3, 3)])
def test_a_detector_gets_a_worker_per_gpu_or_one_alone(
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gpus: int,
    number: int,
) -> None:
    """Where a plan's file names the detector, too; the stages after the import keep a worker per core."""
    monkeypatch.setattr(machine, "num_gpus", lambda: gpus)
    monkeypatch.setattr(detector, "worker_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(7)))
    numbers: dict[str, int] = {}

    def run(workers: Workers, function: Callable[..., object], tasks: Sequence[tuple], *, label: str, **_: object):
        numbers[label] = workers.number
        return ((i, one_thread(function, *arguments)) for i, arguments in enumerate(tasks))

    monkeypatch.setattr(Workers, "run", run)
    tar = write_tar(tmp_path / "one.tar", {"000.jpg": encode_jpeg(picture(0))})
    (tmp_path / "captions.tsv").write_text("000.jpg\ta dog in the snow\n")
    (tmp_path / "corpus.toml").write_text(
        f"output = 'data'\nvocabulary_size = 300\nextractor = '{raw / 'detector'}'\n"
        f"rewrite = false\nretrieve = false\n"
        f"[[import]]\nkind = 'pairs'\nimages = '{tar}'\ncaptions = 'captions.tsv'\n"
    )
    command = ["all", "--config", str(tmp_path / "corpus.toml")]
    assert main(command) == 0
    assert (numbers["importing 0_one"], numbers["looking for phrases"]) == (number, 7)
    assert f"{number} worker" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "data")
    assert main([*command, "--workers", "5"]) == 0
    assert set(numbers.values()) == {5}


def test_weights_are_enough(raw: Path, folder: Path, tmp_path: Path) -> None:
    """A detector by name and weights, in the stage and in an import; both make the same regions."""
    named = ["--extractor", "bottom-up", "--weights", str(raw / "weights.safetensors"), "--workers", "1"]
    tar = write_tar(tmp_path / "one.tar", {"000.jpg": encode_jpeg(picture(0))})
    output = tmp_path / "imported"
    arguments = ["import", "--kind", "images", "--images", str(tar), "--output", str(output), "--keep-images"]
    assert main([*arguments, "--tokenizer", str(folder / "tokenizer.json"), *named]) == 0
    listed = load_manifest(output)
    assert (listed.feature_size, listed.num_region_classes) == (SMALL.feature_size, SMALL.num_classes)
    before = shard_bytes(output)
    assert main(["regions", str(output), "--workers", "1"]) == 0
    assert shard_bytes(output) == before
    assert main(["regions", str(output), "--extractor", "grid", "--workers", "1"]) == 0
    assert load_manifest(output).feature_size == 384


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--extractor", "bottom-up"], "needs its weights; name their file with --weights"),
        (["--extractor", "bottom-up", "--weights", "lost.pth"], "there are no weights at lost.pth"),
        (["--weights", "lost.pth"], "needs --extractor"),
        (["--extractor", "grid", "--weights", "lost.pth"], "leave --weights out"),
        (["--extractor", "bottomup", "--weights", "lost.pth"], "did you mean 'bottom-up'"),
    ],
)
def test_wrong_options_are_one_sentence(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = shard_bytes(folder)
    assert main(["regions", str(folder), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert shard_bytes(folder) == before
