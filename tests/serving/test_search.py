"""Collections: what is found, and what is said about bad input."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.prepare.raw import SMALL, picture
from tests.engine.disks import files_of_at_most
from tests.huggingface import small
from tests.serving.conftest import TEXTS, refusal
from unimo_ds import cli
from unimo_ds.data.prepare.command import main as prepare
from unimo_ds.data.vision import extractors, grid
from unimo_ds.export.folder import export
from unimo_ds.models.unimo import Unimo
from unimo_ds.serving.index import Index, Item, write
from unimo_ds.serving.model import ServedModel
from unimo_ds.serving.samples import read_picture
from unimo_ds.utils import machine
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.machine import worker_device
from unimo_ds.utils.seed import generator


def search(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    capsys.readouterr()
    assert cli.main(["search", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["found"]


def test_everything_is_indexed_and_finds_itself(
    run: Path, photographs: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    opened = Index.open(index)
    names = [Path(item.image).name for item in opened.items if item.image]
    assert sorted(names) == [f"{number}.png" for number in range(7)]
    assert [item.text for item in opened.items if item.text] == list(TEXTS)
    found = search(capsys, str(photographs / "deep" / "3.png"), "--index", str(index), "--count", "3")
    assert Path(found[0]["image"]).name == "3.png"
    assert found[0]["score"] == pytest.approx(1, abs=1e-5)
    assert len(found) == 3
    found = search(capsys, "two dogs", "--index", str(index))
    assert found[0]["text"] == "two dogs"
    assert len(found) == 10
    export(run, tmp_path / "exported")
    assert found == search(capsys, "two dogs", "--index", str(index), "--checkpoint", str(tmp_path / "exported"))
    # The vectors are those of single encodings, in the order of their cosines.
    model = ServedModel.open(run)
    query = model.text_vectors(["two dogs"])[0]
    photographs_in_order = [Image.open(item.image).convert("RGB") for item in opened.items if item.image]
    vectors = np.concatenate([model.image_vectors(photographs_in_order), model.text_vectors(TEXTS)])
    expected = np.sort(vectors @ query)[::-1]
    assert [one["score"] for one in found] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_large_photograph_is_seen_as_the_index_saw_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A JPEG is decoded at a fraction of its size, in searching too."""
    photograph, folder = tmp_path / "large.jpg", tmp_path / "index"
    picture(0).resize((1600, 1200), Image.Resampling.BICUBIC).save(photograph)
    given = ["--checkpoint", str(run), "--images", str(photograph), "--output", str(folder)]
    assert cli.main(["search", "build", *given]) == 0
    (found,) = search(capsys, str(photograph), "--index", str(folder))
    assert found["score"] == pytest.approx(1, abs=1e-6)


def test_a_line_ends_where_files_end_theirs(run: Path, tmp_path: Path):
    texts, folder = tmp_path / "texts.txt", tmp_path / "index"
    texts.write_bytes("a red\u2028ball\r\n\ntwo\x0cdogs".encode())
    given = ["--checkpoint", str(run), "--texts", str(texts), "--output", str(folder)]
    assert cli.main(["search", "build", *given]) == 0
    assert [item.text for item in Index.open(folder).items] == ["a red\u2028ball", "two\x0cdogs"]


def test_samples_of_a_data_folder_are_found_as_their_photographs_are(
    run: Path, photographs: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data, made = tmp_path / "data", tmp_path / "index"
    words = ["--output", str(data), "--tokenizer", str(run), "--extractor", str(run), "--workers", "1"]
    assert (
        prepare(["import", "--kind", "images", "--images", str(photographs), "--keep-images", "--source", "s", *words])
        == 0
    )
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS))
    assert prepare(["import", "--kind", "texts", "--input", str(tmp_path / "lines.txt"), *words[:2]]) == 0
    build = ["search", "build", "--checkpoint", str(run), "--data", str(data), "--output", str(made)]
    assert cli.main(build) == 0
    found = search(capsys, "two dogs", "--index", str(made))
    of_files = search(capsys, "two dogs", "--index", str(index))
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in of_files], abs=1e-6)
    assert [one["text"] for one in found] == [one["text"] for one in of_files]
    item = next(one for one in Index.open(made).items if one.image)
    assert str(item.image).startswith(f"{data.resolve()}/s-000000.tar:")
    assert read_picture(item).size == Image.open(photographs / "0.png").size

    # A model of other regions, and a damaged shard.
    grid.fit([picture(40)], seed=5, settings=SMALL).save(tmp_path / "other")
    assert cli.main([*build[:-1], str(tmp_path / "new"), "--extractor", str(tmp_path / "other")]) == 2
    assert "another extractor than the model's" in capsys.readouterr().err
    shard = data / "s-000000.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"features.npy") + 700] ^= 1
    shard.write_bytes(content)
    assert cli.main([*build[:-1], str(tmp_path / "new")]) == 2
    assert "--skip-bad leaves such samples out" in capsys.readouterr().err
    assert cli.main([*build[:-1], str(tmp_path / "new"), "--skip-bad"]) == 0
    assert len(Index.open(tmp_path / "new")) == len(Index.open(made)) - 1


def test_the_extractor_is_on_the_models_device(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are networks choose a GPU by themselves if there is one."""
    chosen, load = [], extractors.load
    monkeypatch.setattr(extractors, "load", lambda path: chosen.append(worker_device()) or load(path))
    monkeypatch.setattr(machine, "num_gpus", lambda: 1)
    ServedModel.open(run, device=torch.device("cpu"))
    assert chosen == [torch.device("cpu")]


def test_only_the_regions_of_the_models_own_extractor_are_taken(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """What the checkpoint and its export carry decides, where its data is gone and the sizes agree."""
    data = dataclasses.replace(small.run_config().data, made_with={"extractor": small.make_extractor().fingerprint})
    run = small.write_run(tmp_path / "run", config=dataclasses.replace(small.run_config(), data=data))
    assert cli.main(["export", "--checkpoint", str(run), "--to", str(tmp_path / "exported")]) == 0
    other = tmp_path / "other"
    grid.fit([picture(number) for number in range(8)], seed=9, settings=SMALL).save(other)
    images = tmp_path / "images"
    words = ["import", "--kind", "images", "--images", str(photographs), "--source", "s", "--output", str(images)]
    assert prepare([*words, "--tokenizer", str(run), "--extractor", str(other), "--workers", "1"]) == 0
    for model in (run, tmp_path / "exported"):
        build = ["search", "build", "--checkpoint", str(model), "--output", str(tmp_path / f"index-{model.name}")]
        generate = ["generate", "--checkpoint", str(model), "--image", str(photographs / "0.png")]
        capsys.readouterr()
        assert cli.main([*build, "--data", str(images)]) == 2
        assert cli.main([*build, "--images", str(photographs), "--extractor", str(other)]) == 2
        assert cli.main([*generate, "--extractor", str(other)]) == 2
        told = capsys.readouterr().err.splitlines()
        assert sum("error: " in line for line in told) == 3
        assert f"{images} was prepared with the extractor" in told[0]
        assert all("is not" in line and "give the model's own with --extractor" in line for line in told[1:])
        assert cli.main([*build, "--images", str(photographs)]) == 0
        shutil.copy(other / "extractor.safetensors", model)  # in place of its own
        assert cli.main(generate) == 2


def test_an_approximate_index_finds_nearly_the_same(tmp_path: Path):
    random = generator(3)
    vectors = random.standard_normal((3000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = [Item(text=str(number)) for number in range(len(vectors))]
    found = {}
    for approximate in (False, True):
        folder = tmp_path / str(approximate)
        halves = [(items[:1500], vectors[:1500]), (items[1500:], vectors[1500:])]
        write(folder, halves, size=16, model="m", checkpoint="c", approximate=approximate)
        opened = Index.open(folder)
        found[approximate] = [[one.number for one in opened.search(query, 10)] for query in vectors[:50]]
    exact = [np.argsort(-(vectors @ query), kind="stable")[:10].tolist() for query in vectors[:50]]
    assert found[False] == exact
    shared = [len(set(one) & set(other)) / 10 for one, other in zip(found[True], exact, strict=True)]
    assert np.mean(shared) > 0.95


def test_an_index_is_whole_or_not_there(tmp_path: Path):
    """FAISS's own files overlook a disk that is full where the last bytes are written, and take no name that is no Unicode."""
    vectors = generator(3).standard_normal((3000, 16)).astype(np.float32)
    whole, cut = tmp_path / os.fsdecode(b"whole-\xff"), tmp_path / "cut"
    made = functools.partial(write, size=16, model="m", checkpoint="c")
    batches = [([Item(text="a")] * 3000, vectors)]
    made(whole, batches)
    assert np.array_equal(Index.open(whole).vector(2999), vectors[2999])
    size = (whole / "vectors.faiss").stat().st_size
    for room in (size - 10, size // 2):
        with files_of_at_most(room), pytest.raises(UserError, match="cut: File too large"):
            made(cut, batches)
    assert [path.name for path in tmp_path.iterdir()] == [whole.name]


def test_bad_input_is_named(
    run: Path, photographs: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    refused = functools.partial(refusal, capsys, "search")
    assert "cannot read the image nowhere.jpg" in refused("nowhere.jpg", "--index", str(index))
    assert "no index at" in refused("a dog", "--index", str(tmp_path))
    assert "a text is empty" in refused("  ", "--index", str(index))
    assert r"the text 'dog\\udcff' is no Unicode" in refused(os.fsdecode(b"dog\xff"), "--index", str(index))
    assert "--device meta" in refused("a dog", "--index", str(index), "--device", "meta")
    assert "--count 0" in refused("a dog", "--index", str(index), "--count", "0")
    other = small.write_run(tmp_path / "other", Unimo(small.run_config().model, seed=9))
    assert "another model" in refused("a dog", "--index", str(index), "--checkpoint", str(other))
    build = ("build", "--checkpoint", str(run), "--output", str(tmp_path / "new"))
    assert "nothing to index" in refused(*build)
    assert "no image or folder at" in refused(*build, "--images", str(tmp_path / "gone"))
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "bad.jpg").write_bytes(b"not a photograph")
    shutil.copy(photographs / "0.png", bad / "good.png")
    assert "--skip-bad leaves such files out" in refused(*build, "--images", str(bad))
    assert not (tmp_path / "new").exists(), "whole or not at all"
    assert cli.main(["search", *build, "--images", str(bad), "--skip-bad"]) == 0
    assert [Path(item.image).name for item in Index.open(tmp_path / "new").items] == ["good.png"]
    assert "already holds something" in refused(*build, "--images", str(bad))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match="or is the current folder; give a new folder to --output"):
        write(Path(), [], size=4, model="", checkpoint="")
    faiss = pytest.importorskip("faiss")
    faiss.write_index(faiss.index_factory(4, "LSH"), str(tmp_path / "new" / "vectors.faiss"))
    assert "of another kind than this program writes" in refused("a dog", "--index", str(tmp_path / "new"))
    (tmp_path / "new" / "vectors.faiss").write_bytes(b"cut")
    assert "is damaged" in refused("a dog", "--index", str(tmp_path / "new"))
