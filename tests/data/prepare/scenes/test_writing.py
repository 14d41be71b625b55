"""The demo corpus on disk: complete, verifiable, the same for the same parameters, rebuilt where it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.prepare.scenes.reading import is_true_of
from tests.engine.disks import files_of_at_most
from unimo_ds.data import tokenizer
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.prepare.journal import alone_in
from unimo_ds.data.prepare.scenes import writing
from unimo_ds.data.prepare.scenes.model import Scene, Thing
from unimo_ds.data.prepare.scenes.writing import write_demo_corpus
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.schema import Kind
from unimo_ds.data.storage import shards
from unimo_ds.data.storage.manifest import load_manifest
from unimo_ds.data.vision import extractors
from unimo_ds.utils.errors import UserError

SIZES = {"num_pairs": 90, "num_images": 40, "num_texts": 30, "num_held_out": 20, "seed": 3}


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "corpus"
    write_demo_corpus(output, **SIZES)
    return output


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_both_folders_are_good_and_of_one_vocabulary(demo: Path) -> None:
    manifests = [load_manifest(demo / name) for name in ("train", "held_out")]
    assert [verify(demo / name) for name in ("train", "held_out")] == [[], []]
    assert manifests[0].totals == {"pair": 90, "image": 40, "text": 30}
    assert manifests[1].totals == {"pair": 20}
    for name in ("tokenizer", "extractor", "feature_size", "classes_per_region", "num_region_classes"):
        assert getattr(manifests[0], name) == getattr(manifests[1], name)
    assert manifests[0].tokenizer.vocabulary_size <= writing.VOCABULARY_SIZE
    assert manifests[0].extractor is not None
    assert manifests[0].commands == (
        "unimo prepare demo --pairs 90 --images 40 --texts 30 --held-out 20 --seed 3 --regions exact",
    )


def test_the_corpus_can_be_read(demo: Path) -> None:
    corpus = Corpus.open(demo / "train")
    assert np.bincount(corpus.kinds).tolist() == [40, 30, 90]
    pairs = [corpus.read(number) for number in np.flatnonzero(corpus.kinds == Kind.PAIR)]
    assert {len(pair.captions) for pair in pairs} == {2}
    assert any(pair.related_images for pair in pairs)
    assert any(pair.related_texts for pair in pairs)
    assert all(6 <= len(pair.regions.boxes) <= 8 for pair in pairs if pair.regions is not None)
    assert corpus.text_tokens[corpus.text_role == 0].mean() < 30
    held_out = Corpus.open(demo / "held_out")
    assert {len(held_out.read(number).captions) for number in range(held_out.num_samples)} == {1}


def test_stored_texts_are_true_and_false_of_the_stored_scene(demo: Path) -> None:
    """What the shards say, not what the generator meant."""
    for path in shards.shard_files(demo / "train"):
        if not path.name.startswith("pairs"):
            continue
        for stored in shards.read_shard(path):
            things = tuple(Thing(**thing) for thing in stored.details["things"])
            scene = Scene(things, stored.details["ground"], 0)
            for caption in stored.sample.captions:
                assert is_true_of(caption.text, scene)
                assert all(is_true_of(rewrite.text, scene) for rewrite in caption.positives)
                assert not any(is_true_of(rewrite.text, scene) for rewrite in caption.negatives)


def test_related_images_share_two_things(demo: Path) -> None:
    stored = {path.name: list(shards.read_shard(path)) for path in shards.shard_files(demo / "train")}

    def labels(details) -> set[tuple[str, str]]:
        return {(thing["colour"], thing["shape"]) for thing in details["things"]}

    references = 0
    for item in stored["pairs-000000.tar"]:
        for shard, index in item.sample.related_images:
            references += 1
            assert stored[shard][index].sample.kind is Kind.IMAGE
            assert len(labels(item.details) & labels(stored[shard][index].details)) >= 2
    assert references > 10


def test_frequent_words_are_single_tokens(demo: Path) -> None:
    loaded = tokenizer.load(demo / "train")
    assert max(len(loaded.encode(f" {word}")) for word in ("red", "blue", "star", "above", "left", "there")) == 1


def test_a_finished_corpus_is_reused_and_another_run_gives_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    write_demo_corpus(demo, **SIZES)
    assert before == {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    write_demo_corpus(tmp_path / "again", **SIZES)
    assert tree(tmp_path / "again") == tree(demo)


def test_scenes_can_have_the_regions_of_photographs(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    for name, number in (("grid", 1), ("again", 2)):  # threads share sums, and so their last bits
        torch.set_num_threads(number)
        write_demo_corpus(
            tmp_path / name, num_pairs=30, num_images=5, num_texts=5, num_held_out=5, seed=1, regions="grid"
        )
    torch.set_num_threads(threads)
    assert tree(tmp_path / "grid") == tree(tmp_path / "again")
    assert [verify(tmp_path / "grid" / name) for name in ("train", "held_out")] == [[], []]
    corpus = Corpus.open(tmp_path / "grid" / "train")
    extractor = extractors.load(tmp_path / "grid" / "held_out")
    assert (corpus.feature_size, corpus.num_region_classes) == (extractor.feature_size, extractor.num_classes)
    assert len(set(corpus.num_regions[corpus.kinds != Kind.TEXT])) == 1


def test_an_interrupted_corpus_is_rebuilt(demo: Path, tmp_path: Path, monkeypatch) -> None:
    def stop(*arguments, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            write_demo_corpus(tmp_path / "corpus", **SIZES)
    assert (tmp_path / "corpus" / "train" / "pairs-000000.tar").exists()
    write_demo_corpus(tmp_path / "corpus", **SIZES)
    assert tree(tmp_path / "corpus") == tree(demo)


def test_other_parameters_are_refused_by_name(demo: Path) -> None:
    with pytest.raises(UserError, match=r"other parameters \(seed\)"):
        write_demo_corpus(demo, **{**SIZES, "seed": 4})


def test_a_folder_with_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        write_demo_corpus(tmp_path, **SIZES)
    assert (tmp_path / "train" / "thesis.txt").read_text() == "mine"


def test_a_damaged_note_is_named(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(UserError, match=r"demo\.json"):
        write_demo_corpus(tmp_path, **SIZES)
    (tmp_path / "demo.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="other parameters"):
        write_demo_corpus(tmp_path, **SIZES)


def test_a_finished_corpus_that_lost_a_folder_is_named(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_bytes((demo / "demo.json").read_bytes())
    with pytest.raises(UserError, match="damaged"):
        write_demo_corpus(tmp_path, **SIZES)


@pytest.mark.parametrize(
    ("change", "name"),
    [({"num_pairs": 0}, "num_pairs"), ({"num_images": -1}, "num_images"), ({"regions": "magic"}, "magic")],
)
def test_parameters_out_of_range_are_refused(tmp_path: Path, change, name) -> None:
    with pytest.raises(UserError, match=name):
        write_demo_corpus(tmp_path / "corpus", **{**SIZES, **change})
    assert not (tmp_path / "corpus").exists()


def test_an_output_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        write_demo_corpus(tmp_path / "file" / "corpus", **SIZES)


def test_a_full_disk_is_a_sentence_and_the_same_call_goes_on(tmp_path: Path) -> None:
    parameters = {"num_pairs": 2, "num_images": 2, "num_texts": 2, "num_held_out": 2}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    writing.write_demo_corpus(whole, **parameters)
    with (
        files_of_at_most(150_000),
        pytest.raises(UserError, match=r"cannot write .*extractor\.safetensors: File too large"),
    ):
        writing.write_demo_corpus(cut, **parameters)
    writing.write_demo_corpus(cut, **parameters)
    (whole / "demo.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"demo\.json: it is nested too deeply; remove"):
        writing.write_demo_corpus(whole, **parameters)
    for path in whole.rglob("*.tar"):
        assert path.read_bytes() == (cut / path.relative_to(whole)).read_bytes()


def test_two_processes_do_not_draw_into_one_folder(tmp_path: Path) -> None:
    parameters = {"num_pairs": 2, "num_images": 2, "num_texts": 2, "num_held_out": 2}
    corpus = tmp_path / "corpus"
    with alone_in(corpus, make=True), pytest.raises(UserError, match=r"another `unimo prepare` is at work in .*corpus"):
        writing.write_demo_corpus(corpus, **parameters)
    writing.write_demo_corpus(corpus, **parameters)
    with alone_in(corpus):
        writing.write_demo_corpus(corpus, **parameters)  # finished: nothing is drawn
