"""`unimo generate` as a user calls it."""

from __future__ import annotations

import dataclasses
import functools
import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.prepare.raw import SMALL, picture
from tests.huggingface import small
from tests.serving.conftest import refusal
from unimo_ds import cli
from unimo_ds.data.schema import SEP, Kind, Sample
from unimo_ds.data.storage.folder import finish_folder
from unimo_ds.data.storage.manifest import ExtractorEntry
from unimo_ds.data.storage.shards import StoredSample, write_shards
from unimo_ds.export import source
from unimo_ds.finetune import model as task_models
from unimo_ds.finetune import tasks
from unimo_ds.finetune.object_words import ObjectWords
from unimo_ds.finetune_config import CaptioningConfig, FinetuneConfig, GenerationConfig
from unimo_ds.generation.generate import GenerationSettings, generate
from unimo_ds.models.unimo import Unimo
from unimo_ds.serving.model import ServedModel, own_settings
from unimo_ds.utils.errors import UserError


def written(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    capsys.readouterr()
    assert cli.main(["generate", *words, "--max-tokens", "8", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["results"]


def test_texts_from_photographs_texts_and_both(run: Path, photographs: Path, capsys: pytest.CaptureFixture[str]):
    model = ("--checkpoint", str(run))
    by_image = written(capsys, *model, "--image", str(photographs))
    assert [Path(one["image"]).name for one in by_image] == [
        "0.png",
        "2.png",
        "4.png",
        "6.png",
        "1.png",
        "3.png",
        "5.png",
    ]
    by_text = written(capsys, *model, "--text", "a red ball", "two dogs", "--texts", "2")
    assert [one["source"] for one in by_text] == ["a red ball", "two dogs"]
    assert [len(one["texts"]) for one in by_text] == [2, 2]
    assert by_text[0]["texts"][0]["score"] >= by_text[0]["texts"][1]["score"]
    both = written(capsys, *model, "--image", str(photographs), "--text", "a red ball")
    assert len({json.dumps(one["texts"]) for one in (*by_image[:1], *by_text[:1], *both[:1])}) == 3
    # One by one they are the same.
    one = written(capsys, *model, "--image", by_image[3]["image"])
    assert [text["text"] for text in one[0]["texts"]] == [text["text"] for text in by_image[3]["texts"]]
    drawn = [written(capsys, *model, "--text", "a", "--sample", "--seed", seed, "--texts", "3") for seed in "112"]
    assert drawn[0] == drawn[1] != drawn[2]
    scored = written(capsys, *model, "--text", "a", "--sample", "--beams", "3", "--texts", "3")
    assert all(text["score"] is not None for text in scored[0]["texts"]), "beams are not passed over"


def test_a_folder_of_photographs_needs_the_memory_of_a_few(run: Path):
    made: list[weakref.ref[Image.Image]] = []
    alive: list[int] = []

    def photographs() -> Iterator[Image.Image]:
        for number in range(100):
            image = picture(number % 4)
            made.append(weakref.ref(image))
            yield image
            alive.append(sum(one() is not None for one in made))

    texts = ServedModel.open(run).write(photographs(), [None] * 100, GenerationSettings(num_beams=1, max_tokens=4))
    assert [one[0][0] for one in texts] == [one[0][0] for one in texts[:4]] * 25
    assert max(alive) <= 64


def test_texts_alone_are_printed_for_people(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    texts = tmp_path / "texts.txt"
    texts.write_text("a red ball\ntwo dogs\n")
    capsys.readouterr()
    assert cli.main(["generate", "--checkpoint", str(run), "--text-file", str(texts), "--max-tokens", "6"]) == 0
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == ["a red ball", "two dogs"]
    assert printed.err.startswith("note: a model that was only pre-trained writes fragments")


def test_a_model_that_writes_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    silent = Unimo(small.run_config().model, seed=4)
    torch.nn.init.constant_(silent.language_head.bias[SEP : SEP + 1], 1e4)
    run = small.write_run(tmp_path / "run", silent)
    assert cli.main(["generate", "--checkpoint", str(run), "--text", "a red ball"]) == 0
    assert capsys.readouterr().err.startswith("every text came out empty")


def test_bad_input_is_named(run: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    refused = functools.partial(refusal, capsys, "generate")
    model = ("--checkpoint", str(run))
    assert "nothing to write from" in refused(*model)
    assert "no image or folder at" in refused(*model, "--image", "nowhere.jpg")
    assert "7 images and 2 texts" in refused(*model, "--image", str(photographs), "--text", "a", "b")
    assert "source text is empty" in refused(*model, "--text", "  ")
    assert "num_texts=9 needs as many beams" in refused(*model, "--text", "a", "--texts", "9")
    assert "--top-k changes nothing without --sample" in refused(*model, "--text", "a", "--top-k", "0")
    assert "no folder at" in refused("--checkpoint", str(tmp_path / "x"), "--text", "a")
    bare = small.write_run(tmp_path / "bare")
    (bare / "extractor.safetensors").unlink()
    assert "cannot look at images" in refused("--checkpoint", str(bare), "--image", str(photographs))
    config = dataclasses.replace(small.run_config(), finetune=FinetuneConfig("sst2", num_outputs=2))
    tuned = task_models.TaskModel(config, task_models.TextHead(config, num_outputs=2))
    run_of_sst2 = small.write_run(tmp_path / "sst2", tuned, config)
    assert "fine-tuned on sst2, which does not write" in refused("--checkpoint", str(run_of_sst2), "--text", "a")
    config = dataclasses.replace(small.run_config(), finetune=FinetuneConfig("coqa"))
    tuned = task_models.TaskModel(config, task_models.NoHead(), tag_sizes=tasks.load("coqa").tag_sizes)
    run_of_coqa = small.write_run(tmp_path / "coqa", tuned, config)
    assert "it answers in conversations, not to a text" in refused("--checkpoint", str(run_of_coqa), "--text", "a")


def test_a_tuned_model_writes_as_its_task_does(tmp_path: Path):
    chosen = GenerationConfig(beams=3, length_penalty=1.2, min_tokens=2, max_tokens=9, block_trigrams=True)
    for task, ends_with_mask in (("gigaword", True), ("captioning", False)):
        config = dataclasses.replace(small.run_config(), finetune=FinetuneConfig(task, generation=chosen))
        run = small.write_run(tmp_path / task, task_models.TaskModel(config, task_models.NoHead()), config)
        settings = own_settings(source.load(run))
        assert (settings.num_beams, settings.length_penalty, settings.no_repeat_words) == (3, 1.2, 3)
        assert (settings.min_tokens, settings.max_tokens) == (2, 9)
        assert (settings.end_id == small.make_tokenizer().mask_id) == ends_with_mask
        ((text, found),) = ServedModel.open(run).write([None], ["a red ball"], settings)[0]
        assert 2 <= len(found.tokens) <= 9
        assert "<mask>" not in text


def test_a_model_taught_to_ask_is_given_a_passage_and_an_answer(tmp_path: Path):
    """As its training was: the prompt of the command is the prompt of the task's file."""
    tuning = FinetuneConfig("squad-questions", generation=GenerationConfig(beams=3, max_tokens=9))
    config = dataclasses.replace(small.run_config(), finetune=tuning)
    run = small.write_run(tmp_path / "run", task_models.TaskModel(config, task_models.NoHead()), config)
    (tmp_path / "dev.pa.tok.txt").write_text("a red ball on a boat [SEP] a dog\n")
    (tmp_path / "dev.q.tok.txt").write_text("what is on the boat ?\n")
    model, task = ServedModel.open(run), tasks.load("squad-questions")
    examples = task.open(tmp_path, "dev", tokenizer=model.source.tokenizer, config=config, assets={})
    settings = own_settings(model.source)
    ((expected,),) = generate(model.source.module, [examples.prompt(0)], model.vocabulary, settings)
    (((_, found),), ((_, other),)) = model.write(
        [None] * 2, ["a red ball on a boat [SEP] a dog", "a red ball on a boat [SEP] a man"], settings
    )
    assert (found.tokens, found.score) == (expected.tokens, pytest.approx(expected.score))
    assert found.score != pytest.approx(other.score)
    with pytest.raises(UserError, match=r"has no \[SEP\] between its passage and its answer"):
        model.write([None], ["a red ball on a boat"], settings)


def test_a_tuned_model_looks_by_the_extractor_of_its_tasks_data(tmp_path: Path):
    """Where its start's data is gone and its own lies in folders of splits."""
    data = tmp_path / "task"
    (data / "train").mkdir(parents=True)
    small.make_extractor().save(data / "train")
    (regions,) = small.make_extractor().extract([picture(0)])
    write_shards(data / "train", "images", [StoredSample(Sample("", Kind.IMAGE, "photographs", regions))])
    tokenizer = small.make_tokenizer()
    tokenizer.save(data / "train")
    extractor = ExtractorEntry(small.make_extractor().fingerprint, "extractor.safetensors")
    made = {"extractor": extractor, "num_region_classes": SMALL.num_classes, "command": "test"}
    finish_folder(data / "train", tokenizer=tokenizer, **made)
    config = small.run_config()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, path=str(data)),
        finetune=FinetuneConfig("captioning", start=str(tmp_path / "gone")),
    )
    run = small.write_run(tmp_path / "run", task_models.TaskModel(config, task_models.NoHead()), config)
    (run / "extractor.safetensors").unlink()
    found = source.load(run)
    assert found.extractor is not None
    assert found.extractor.fingerprint == small.make_extractor().fingerprint


def test_a_model_taught_with_names_of_objects_is_shown_them(tmp_path: Path):
    """Without a text it writes what it writes for the text of the names that the extractor's classes have."""
    named = CaptioningConfig(object_names="given when it was taught", min_confidence=0.0)
    tuning = FinetuneConfig("captioning", captioning=named, generation=GenerationConfig(beams=1, max_tokens=9))
    config = dataclasses.replace(small.run_config(), finetune=tuning)
    run = small.write_run(tmp_path / "run", task_models.TaskModel(config, task_models.NoHead()), config)
    names = [f"{colour} {thing}" for colour in ("red", "blue") for thing in ("ball", "dog", "boat", "man", "horse")]
    (run / "task.json").write_text(json.dumps({"object_names": names}))
    model, image = ServedModel.open(run), picture(0)
    settings = own_settings(model.source)
    objects = ObjectWords.of(config, model.source.assets, model.source.tokenizer)
    words = model.source.tokenizer.decode(objects.text(model.regions([image])[0])[1:-1])
    assert words.startswith(tuple(names))
    shown, told, other = model.write([image] * 3, [None, words, "a red ball on"], settings)
    assert shown == told != other
