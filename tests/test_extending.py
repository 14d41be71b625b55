"""The code of docs/extending.md: each block becomes the module it names, its line is added, and the whole path runs with it."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from tests import support
from tests.data.prepare import raw
from tests.distributed.launching import launch
from tests.distributed.step_worker import step_batch
from tests.engine.test_step import DatalessEngine
from tests.extending_page import NAME, modules_of_page, weights_of
from tests.finetune import small
from unimo_ds import config_check, recipes
from unimo_ds.config import ContrastConfig, LossWeights, RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.prepare import formats
from unimo_ds.data.prepare.command import main as prepare
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.schema import NO_TAG
from unimo_ds.data.step_reader import StepReader
from unimo_ds.data.vision import extractors
from unimo_ds.data.vision.images import encode_jpeg
from unimo_ds.engine.step import train_step
from unimo_ds.evaluation.checkpoint import read_weights
from unimo_ds.finetune import tasks
from unimo_ds.models import unimo
from unimo_ds.planning.plan import plan
from unimo_ds.serving.model import ServedModel
from unimo_ds.tasks import pretraining

TRAIN = Path(config_check.__file__).with_name("train.py")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    found = modules_of_page()
    for module in found.values():
        monkeypatch.delitem(sys.modules, module.__name__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


class OneProcess(DatalessEngine):
    """An engine on this process's own processor, which keeps the gradients."""

    def __init__(self, model: unimo.Unimo) -> None:
        super().__init__(model)
        self.device = torch.device("cpu")


@pytest.fixture
def with_matching(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "OBJECTIVES", (*pretraining.OBJECTIVES, modules["matching"].MATCHING))


def task_and_model(weights: LossWeights) -> tuple[pretraining.PretrainingTask, unimo.Unimo]:
    pretrains = pretraining.PretrainingTask(contrast=ContrastConfig(), weights=weights)
    sizes = support.model_config(hidden_dropout=0.0, attention_dropout=0.0)
    return pretrains, unimo.Unimo(sizes, heads=pretrains.make_heads(sizes), seed=5).train()


def take_step(weights: LossWeights, *, micro_batches: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and gradients of one step, however its examples are dealt."""
    pretrains, model = task_and_model(weights)
    batch = step_batch(0, rank=0, world_size=1, micro_batches=micro_batches, group_pairs=0)
    metrics = train_step(OneProcess(model), pretrains, batch, learning_rate=0.0)
    assert (NAME in metrics.counts) == (NAME in metrics.losses) == (getattr(weights, NAME) > 0)
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return metrics.losses, gradients


def test_an_objective_with_a_head_is_the_same_however_a_step_is_dealt(with_matching: None) -> None:
    losses, gradients = take_step(weights_of(2.0), micro_batches=1)
    others, other_gradients = take_step(weights_of(2.0), micro_batches=3)
    assert losses[NAME] == pytest.approx(math.log(2), abs=0.1)
    assert others == pytest.approx(losses, rel=1e-5)
    head = f"{unimo.OBJECTIVE_HEADS}{NAME}.output.weight"
    assert gradients[head].norm() > 0
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_rehearsal_asks_no_objective(with_matching: None) -> None:
    pretrains, model = task_and_model(weights_of(1.0))
    asked: list[int] = []
    model.objective_heads[NAME].register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
    batch = step_batch(0, rank=0, world_size=1, micro_batches=3, group_pairs=0)
    metrics = train_step(OneProcess(model), pretrains, batch, learning_rate=0.0)
    assert len(asked) == 5, "the module runs all the same: ZeRO-3 wants one order"
    assert asked[0] > 0
    assert asked[1:3] == [0, 0], "the first micro-batch is not rehearsed"
    assert sum(asked) == metrics.counts[NAME] > 0


def test_a_weight_of_nothing_leaves_the_objective_and_its_head_out(with_matching: None, tmp_path: Path) -> None:
    without, gradients = take_step(weights_of(0.0), micro_batches=1)
    with_it, _ = take_step(weights_of(1.0), micro_batches=1)
    assert without == {name: with_it[name] for name in without}
    _, model = task_and_model(weights_of(1.0))
    assert dict(model.named_parameters()).keys() - gradients.keys() == {
        f"{unimo.OBJECTIVE_HEADS}{NAME}.output.{last}" for last in ("weight", "bias")
    }
    stored = {name: one.detach().contiguous() for name, one in model.named_parameters()}
    safetensors.torch.save_file(stored, tmp_path / "model.safetensors")
    assert read_weights(tmp_path / "model.safetensors").keys() == gradients.keys()


def test_a_corpus_of_another_format_and_extractor_becomes_a_good_folder(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(extractors._MODULES, "colours", modules["colours"].__name__)
    monkeypatch.setattr(extractors, "KINDS", tuple(extractors._MODULES))
    line = formats._captioned("token files", modules["flickr_tokens"].read_annotations)
    monkeypatch.setitem(formats.FORMATS, "flickr", line)
    tar, _ = raw.write_photographs(tmp_path, 6)
    lines = [f"{i:03d}.jpg#{k}\t{text}" for i in range(6) for k, text in enumerate(raw.captions(i))]
    (tmp_path / "results.token").write_text("\n".join([*lines, "005.jpg\twithout a number"]) + "\n")
    inputs = ["--images", str(tar), "--captions", str(tmp_path / "results.token"), "--output", str(tmp_path / "data")]
    words = ["import", "--format", "flickr", "--extractor", "colours", "--vocabulary-size", "300", "--workers", "1"]
    assert prepare([*words, *inputs]) == 0
    assert verify(tmp_path / "data") == []
    corpus = Corpus.open(tmp_path / "data")
    assert (corpus.feature_size, corpus.num_region_classes, corpus.num_regions.tolist()) == (3, 1, [36] * 6)
    assert [caption.text for caption in corpus.read(3).captions] == raw.captions(3)
    (expected,) = extractors.load(tmp_path / "data").extract([raw.picture(3)])
    found = corpus.read(3).regions
    assert found is not None
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    # A JPEG lies between the two: a tile is known again by how bright it is.
    brightness = [one.features.astype(np.float32).mean(1) for one in (found, expected)]
    np.testing.assert_allclose(*brightness, atol=0.05)
    assert np.ptp(brightness[0]) > 0.5


def test_clips_whose_regions_carry_their_frame_train_with_a_line_of_configuration(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The extractor's file and the setting are all there is: the model learns what each frame looks like, and is served so."""
    clips = modules["clips"]
    monkeypatch.setitem(extractors._MODULES, "clips", clips.__name__)
    monkeypatch.setattr(extractors, "KINDS", tuple(extractors._MODULES))
    # One colour for each frame, from left to right, so that the number alone tells what a hidden region looked like.
    strips = [Image.new("RGB", (4 * 96, 96)) for _ in range(12)]
    for number, strip in enumerate(strips):
        for frame, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))):
            strip.paste(tuple(max(value - 4 * number, 0) for value in colour), (96 * frame, 0, 96 * (frame + 1), 96))
    tar = raw.write_tar(tmp_path / "clips.tar", {f"{n:02d}.jpg": encode_jpeg(one) for n, one in enumerate(strips)})
    words = ["import", "--kind", "images", "--images", str(tar), "--extractor", "clips", "--workers", "1"]
    data, run = tmp_path / "data", tmp_path / "run"
    assert prepare([*words, "--vocabulary-size", "300", "--output", str(data)]) == 0
    assert verify(data) == []
    corpus = Corpus.open(data)
    assert (corpus.num_regions.tolist(), corpus.region_tag_sizes) == ([4 * 36] * 12, (4,))

    settings = {
        "data.kind_weights.pair": 0,
        "data.kind_weights.text": 0,
        "contrast.enabled": "false",
        "data.held_out_path": "none",
        "data.max_regions": 144,
        "batch.global_samples": 6,
        "model.num_layers": 1,
        "schedule.total_steps": 25,
        "schedule.warmup_steps": 3,
        "checkpoint.every_steps": 25,
        "data.num_workers": 0,
        "losses.region_classification": 0,
        "model.region_tag_sizes": 4,
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    launch(TRAIN, ["--recipe", "demo", "--data", str(data), "--run-dir", str(run), *options], processes=1)

    served = ServedModel.open(run)
    config, model = served.source.config, served.source.module
    reader = StepReader(corpus, served.source.tokenizer, config, rank=0, world_size=1)
    (batch,) = reader.read(1000).micro_batches
    others = torch.where(batch.region_tags == NO_TAG, NO_TAG, (batch.region_tags + 1) % 4)
    with torch.no_grad():
        right, wrong = (
            (model(one).region_predictions - batch.masked_region_features.float()).square().mean().item()
            for one in (batch, dataclasses.replace(batch, region_tags=others))
        )
    assert right < wrong / 2
    # Regions in another order are the same to a model without the numbers, up to rounding.
    turned = Image.new("RGB", strips[0].size)
    turned.paste(strips[0].crop((96, 0, 384, 96)), (0, 0))
    turned.paste(strips[0].crop((0, 0, 96, 96)), (288, 0))
    one, other = served.image_vectors([strips[0], turned])
    assert np.abs(one - other).max() > 1e-5


def test_a_task_is_opened_and_measured(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tasks, "NAMES", (*tasks.NAMES, "topics"))
    tokenizer = small.train_tokenizer()
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\na film is good\tsports\nthe plot is dull\tscience\n")
    configured = small.task_config("topics", tokenizer)
    chosen = tasks.load("topics")
    examples = chosen.open(tmp_path, "dev", tokenizer=tokenizer, config=configured, assets={})
    engine = small.plain_engine(configured)
    found = chosen.evaluate(engine, examples, config=configured, tokenizer=tokenizer)
    answers = [one["answer"] for one in found.predictions]
    assert found.metrics["accuracy"] == np.mean([answers[0] == "sports", answers[1] == "science"])


def test_a_recipe_is_found_checked_and_planned(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes.RUNS_ON, "tiny", (2, "cpu"))
    monkeypatch.setattr(recipes, "NAMES", tuple(recipes.RUNS_ON))
    found = recipes.load("tiny")
    config_check.check(found)
    assert isinstance(found, RunConfig)
    assert (found.recipe, found.schedule.total_steps) == ("tiny", 40)
    assert plan(found).devices == 2
