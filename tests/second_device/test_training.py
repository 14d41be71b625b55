"""Steps of pre-training and fine-tuning on a device are those of the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.plain_engine import PlainEngine
from tests import extending_page, support
from tests.distributed.step_worker import NUM_STEPS, step_batch
from tests.finetune import small, test_image_text, test_writing
from unimo_ds.config import ContrastConfig, LossWeights, OptimizerConfig
from unimo_ds.engine.step import train_step
from unimo_ds.evaluation.encode import OneDevice
from unimo_ds.finetune.model import TaskModel
from unimo_ds.finetune.reader import TaskReader
from unimo_ds.finetune.step import TaskStep
from unimo_ds.models.unimo import Unimo
from unimo_ds.tasks import pretraining
from unimo_ds.tasks.pretraining import PretrainingTask

CPU = torch.device("cpu")
IN_FP32 = "tiled"
"""Path of the contrastive loss: the kernels of a GPU round to fp16."""
OPTIMIZER = OptimizerConfig(peak_learning_rate=1e-3, clip_norm=0.5)


ROUNDING = {"second": {"rel": 1e-5, "abs": 1e-6}, "cuda": {"rel": 1e-3, "abs": 1e-4}}


def assert_close(device: torch.device, found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, **ROUNDING[device.type], nan_ok=True), name


def pretrained(device: torch.device, task: PretrainingTask, *, micro_batches: int, **model) -> list[dict]:
    sizes = support.model_config(**model)
    checkpointed = bool(sizes.num_image_layers)
    network = Unimo(sizes, heads=task.make_heads(sizes), seed=5, activation_checkpointing=checkpointed)
    engine = PlainEngine(network.train(), OPTIMIZER, device=device)
    dealt = {"rank": 0, "world_size": 1, "micro_batches": micro_batches, "group_pairs": 0}
    batches = [step_batch(step, **dealt, with_tags=bool(sizes.region_tag_sizes)) for step in range(NUM_STEPS)]
    return [train_step(engine, task, batch, learning_rate=1e-3).scalars() for batch in batches]


TAGGED = {"region_tag_sizes": support.REGION_TAG_SIZES}
CASES = {
    "two_logs": (1, {"form": "two_logs"}, {}),
    "one_log in parts": (3, {"form": "one_log"}, TAGGED),
    "log_each round a ring": (3, {"form": "log_each", "exchange": "ring"}, {}),
    "pixels": (2, {}, {"num_image_layers": 2, **TAGGED}),
}


def assert_trained_alike(device: torch.device, task: PretrainingTask, **options) -> list[dict]:
    there, here = (pretrained(where, task, **options) for where in (device, CPU))
    assert any(one["count/contrastive"] for one in here)
    for found, expected in zip(there, here, strict=True):
        assert_close(device, found, expected)
    return here


@pytest.mark.parametrize("case", CASES)
def test_pre_training(device: torch.device, case: str) -> None:
    micro_batches, contrast, model = CASES[case]
    task = PretrainingTask(contrast=ContrastConfig(**contrast), weights=LossWeights(), contrastive_path=IN_FP32)
    assert_trained_alike(device, task, micro_batches=micro_batches, **model)


def test_an_objective_of_ones_own(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of docs/extending.md."""
    own = extending_page.modules_of_page()["matching"].MATCHING
    monkeypatch.setattr(pretraining, "OBJECTIVES", (*pretraining.OBJECTIVES, own))
    weights = extending_page.weights_of(1.0)
    task = PretrainingTask(contrast=ContrastConfig(), weights=weights, contrastive_path=IN_FP32)
    assert assert_trained_alike(device, task, micro_batches=2)[0]["loss/image_text_matching"] > 0


def data_of(name: str, folder: Path):
    """Files of a task in its official form, and their tokenizer."""
    if name in ("retrieval", "captioning"):
        return folder, small.write_pairs(folder)
    tokenizer = small.train_tokenizer()
    if name == "sst2":
        small.write_sst2(folder)
    elif name == "gigaword":
        test_writing.gigaword(folder, tokenizer)
    elif name == "coqa":
        test_writing.coqa_file(folder)
    else:
        small.write_images(folder / "images", test_image_text.NAMES, tokenizer)
        if name == "vqa":
            test_image_text.write_vqa(folder, test_image_text.QUESTIONS)
        else:
            lines = [test_image_text.entailment(label) for label in ("neutral", "entailment", "contradiction")]
            test_image_text.write_snli_ve(folder, *lines)
    return folder, tokenizer


def task_on(device: torch.device, name: str, folder: Path, tokenizer, changes: tuple[str, ...], dtype=torch.float32):
    """An open task, its examples, an engine, and two batches."""
    usual = ("model.hidden_dropout=0.1", "batch.global_samples=2", "batch.micro_batch_tokens=400")
    task, config, examples = small.open_task(name, folder, tokenizer, "train", *usual, *changes)
    model = TaskModel(config, task.make_head(config), tag_sizes=task.tag_sizes)
    untrained = OneDevice(model.to(device), device)
    examples = task.prepare_training(examples, untrained, config)
    engine = PlainEngine(model.train(), config.optimizer, device=device, dtype=dtype)
    return task, config, examples, engine, list(TaskReader(examples, config, rank=0, world_size=1).steps(0, 2))


def tuned(device: torch.device, name: str, folder: Path, tokenizer, changes: tuple[str, ...]) -> dict:
    """Two steps, and what is measured after them."""
    task, config, examples, engine, batches = task_on(device, name, folder, tokenizer, changes)
    found = [TaskStep(config.finetune)(engine, task, batch, learning_rate=1e-3).scalars() for batch in batches]
    evaluation = task.evaluate(engine, examples, config=config, tokenizer=tokenizer, quick=True)
    steps = {f"{name} {step}": value for step, values in enumerate(found) for name, value in values.items()}
    return {
        **steps,
        **evaluation.metrics,
        "answers": [one.get("answer", one.get("image")) for one in evaluation.predictions],
    }


ASCENTS = "finetune.adversarial.steps=2"
TUNED = {
    "sst2": (ASCENTS,),
    "snli-ve": (ASCENTS,),
    "vqa": ("finetune.answer_min_count=1",),
    "retrieval": ("finetune.retrieval.negative_images=2", "finetune.retrieval.hard_pool=4"),
    "captioning": (ASCENTS, "finetune.generation.max_tokens=8"),
    "gigaword": ("finetune.generation.beams=2", "finetune.generation.max_tokens=8"),
    "coqa": ("finetune.generation.max_tokens=8",),
}


@pytest.mark.parametrize("name", TUNED)
def test_fine_tuning(device: torch.device, name: str, tmp_path: Path) -> None:
    folder, tokenizer = data_of(name, tmp_path)
    there, here = (tuned(where, name, folder, tokenizer, TUNED[name]) for where in (device, CPU))
    assert there.pop("answers") == here.pop("answers")
    assert_close(device, there, here)
