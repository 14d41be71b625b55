"""What would be killed for memory is refused before anything is allocated; all else starts."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.launching import started
from tests.evaluation import small
from unimo_ds import recipes
from unimo_ds.config import BatchConfig, CheckpointConfig, EngineConfig, ModelConfig, RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.overrides import apply_overrides
from unimo_ds.planning.cost import SampleCost
from unimo_ds.planning.host import check_host_memory, example_cost, pretraining_costs, shortage
from unimo_ds.planning.memory import stage_memory
from unimo_ds.planning.rates import HARDWARE
from unimo_ds.utils.communicator import SingleProcess
from unimo_ds.utils.errors import UserError

CPU = torch.device("cpu")
LAPTOP = ("laptop", 16.0)


NO_IMAGES = "data.kind_weights.image=0"
ENDLESS = "model.num_layers=100000000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_corpus(tmp_path_factory.mktemp("corpus"), num_pairs=12)


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return Corpus.open(folder)


def fitted(name: str, corpus: Corpus, *overrides: str) -> RunConfig:
    return recipes.fit_to_data(apply_overrides(recipes.load(name), [NO_IMAGES, *overrides]), corpus)


def of_run(config: RunConfig, corpus: Corpus, machines: list[tuple[str, float]], *, stage: int) -> str:
    return shortage(config, pretraining_costs(config, corpus), machines, stage=stage)


def test_recipes_for_processors_start_and_what_is_too_large_is_named(corpus: Corpus) -> None:
    for name in ("demo", "small"):
        assert of_run(fitted(name, corpus), corpus, [LAPTOP] * 2, stage=0) == ""
    config = fitted("single_gpu", corpus, "batch.global_samples=20000")
    problem = of_run(config, corpus, [LAPTOP], stage=1)
    assert "GiB for each rank (1 on laptop, where 16 GiB may be used)" in problem
    assert of_run(config, corpus, [("server", 512.0)], stage=1) == ""
    # Two ranks of the laptop share its memory, whatever the server has.
    assert "2 on laptop" in of_run(config, corpus, [("server", 512.0), LAPTOP, LAPTOP], stage=1)


def test_few_short_samples_fit_where_full_ones_would_not(corpus: Corpus) -> None:
    config = fitted("single_gpu", corpus)
    assert of_run(config, corpus, [LAPTOP], stage=1) == ""


def test_a_fine_tuning_is_asked_with_the_lengths_of_its_examples(corpus: Corpus) -> None:
    config = fitted("single_gpu", corpus, "batch.global_samples=64", "engine.deepspeed_config=zero1_fp32")
    few, many = ([[30, 20]] * 8, [[500]] * 8)
    assert shortage(config, [example_cost(few)], [LAPTOP], stage=1) == ""
    assert "GiB for each rank" in shortage(config, [example_cost(many)], [LAPTOP], stage=1)
    assert shortage(config, [example_cost([])], [LAPTOP], stage=1) == "", "that there is none is told elsewhere"


def test_image_layers_of_a_fine_tuning_count(corpus: Corpus) -> None:
    config = fitted("single_gpu", corpus, "batch.global_samples=64", "engine.deepspeed_config=zero1_fp32")
    cost = example_cost([[120]] * 8, [[100, 100], [100, 300]])
    assert (cost.regions, cost.squared_images) == (300.0, 60_000.0)
    model = dataclasses.replace(config.model, num_image_layers=12)
    planned = [
        stage_memory(dataclasses.replace(config, model=model), one, stage=1, devices=1, hardware=HARDWARE["cpu"])
        for one in (example_cost([[120]] * 8), cost)
    ]
    assert planned[1].activations > 2 * planned[0].activations


def test_who_says_so_starts_all_the_same(corpus: Corpus) -> None:
    endless = fitted("demo", corpus, ENDLESS)
    with pytest.raises(UserError, match="no GPU is at hand"):
        check_host_memory(endless, pretraining_costs(endless, corpus), {}, device=CPU, communicator=SingleProcess())
    check_host_memory(
        endless, pretraining_costs(endless, corpus), {}, device=torch.device("meta"), communicator=SingleProcess()
    )
    settings = dataclasses.replace(endless.engine, check_memory=False)
    endless = dataclasses.replace(endless, engine=settings)
    check_host_memory(endless, pretraining_costs(endless, corpus), {}, device=CPU, communicator=SingleProcess())


def test_the_trainer_refuses_in_one_sentence_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "unimo_ds.train", "--recipe", "single_gpu", "--run-dir", str(run)]
    command += ["--data", str(folder), "--set", ENDLESS, "--set", NO_IMAGES]
    with started(command) as family:
        output, _ = family.communicate(timeout=120)
    assert family.returncode == 2, output
    assert [line for line in output.splitlines() if line.startswith("error: no GPU is at hand")]
    assert not run.exists()


PEAKS = [
    # layers, width, heads, positions of a step, mean attended length, fine-tuning, saved meanwhile, GiB of the whole process
    (12, 512, 8, 122, 15, True, True, 2.10),
    (12, 512, 8, 122, 15, True, False, 1.74),
    (8, 512, 8, 2_083, 43, True, False, 2.08),
    (4, 384, 6, 10_752, 224, True, False, 2.73),
    (4, 256, 4, 12_950, 405, True, False, 3.02),
    (4, 256, 4, 15_309, 29, False, False, 1.68),
    (6, 384, 6, 10_206, 29, False, False, 2.48),
]
"""Measured on a CPU (docs/experiments.md, 2026-11-27)."""


@pytest.mark.parametrize("peak", PEAKS, ids=str)
def test_what_is_planned_for_a_processor_is_what_was_measured(peak: tuple) -> None:
    layers, width, heads, positions, attended, is_tuned, is_saved, measured = peak
    model = ModelConfig(layers, width, heads, 4 * width, vocabulary_size=760 if is_tuned else 1_000)
    config = RunConfig(
        recipe="measured",
        model=dataclasses.replace(model, region_feature_size=8, num_region_classes=6),
        batch=BatchConfig(global_samples=1, micro_batch_tokens=16_384),
        engine=EngineConfig(deepspeed_config="zero1_fp32" if is_tuned else "zero0_fp32"),
        checkpoint=CheckpointConfig(in_background=is_saved),
        finetune=FinetuneConfig("sst2") if is_tuned else None,
    )
    cost = SampleCost(positions=positions, squared_lengths=positions * attended)
    planned = stage_memory(config, cost, stage=int(is_tuned), devices=1, hardware=HARDWARE["cpu"]).total
    assert planned == pytest.approx(measured, rel=0.2)


def test_a_refusal_names_what_would_fit(corpus: Corpus) -> None:
    """And what would fit is not refused."""
    config = fitted("single_gpu", corpus, "engine.deepspeed_config=zero1_fp32", "batch.micro_batch_tokens=65536")
    cost = example_cost([[500]] * 8)
    config = dataclasses.replace(config, batch=dataclasses.replace(config.batch, global_samples=4096))
    problem = shortage(config, [cost], [LAPTOP], stage=1)
    tokens = int(problem.partition("batch.micro_batch_tokens=")[2].partition(",")[0])
    assert shortage(apply_overrides(config, [f"batch.micro_batch_tokens={tokens}"]), [cost], [LAPTOP], stage=1) == ""
    assert shortage(apply_overrides(config, [f"batch.micro_batch_tokens={2 * tokens}"]), [cost], [LAPTOP], stage=1)
    assert "take a smaller model" in shortage(config, [cost], [("watch", 1.0)], stage=1)
