"""Recipes: the paper's numbers, the steps that follow from the data, and what may be changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.finetune import small
from unimo_ds import cli
from unimo_ds.config import ModelConfig, RunConfig, from_dict, to_dict
from unimo_ds.engine.schedule import learning_rate
from unimo_ds.finetune import tasks
from unimo_ds.finetune.settings import configure, fit_schedule
from unimo_ds.utils.errors import UserError

SIZES = {
    "base": ModelConfig(),
    "large": ModelConfig(num_layers=24, hidden_size=1024, num_heads=16, feed_forward_size=4096),
}
NAMED = {"data": Path("data"), "run_dir": Path("run"), "start_name": "start", "seed": 1}


def recipe(name: str, size: str, *changes: str) -> RunConfig:
    start = RunConfig(recipe="base_32xv100", model=SIZES[size])
    return configure(tasks.load(name), size, start, overrides=changes, **NAMED)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", tasks.NAMES)
def test_every_recipe_can_run(name, size):
    config = fit_schedule(recipe(name, size), 1000)
    assert config.finetune.task == tasks.load(name).name == name
    assert config.finetune.size == size
    assert config.schedule.total_steps > 0
    assert from_dict(RunConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("name", "size", "rate", "batch", "epochs"),
    [
        ("cnndm", "base", 4e-5, 32, 20),
        ("cnndm", "large", 2e-5, 32, 20),
        ("gigaword", "base", 3e-5, 128, 10),
        ("squad-questions", "base", 1.25e-5, 32, 20),
        ("squad-questions", "large", 5e-6, 32, 20),
        ("coqa", "large", 8e-6, 32, 20),
        ("retrieval", "base", 5e-6, 64, 40),
        ("retrieval", "large", 5e-6, 32, 40),
        ("snli-ve", "base", 1e-5, 192, 10),
        ("snli-ve", "large", 1e-5, 64, 10),
        ("captioning", "base", 7e-6, 64, 20),
        ("captioning", "large", 7e-6, 32, 10),
    ],
)
def test_numbers_of_the_release(name, size, rate, batch, epochs):
    config = recipe(name, size)
    assert config.optimizer.peak_learning_rate == rate
    assert config.batch.global_samples == batch
    assert config.finetune.epochs == epochs


def test_steps_follow_from_the_epochs_unless_they_are_given():
    config = fit_schedule(recipe("sst2", "base"), 67_349)
    assert config.schedule.total_steps == 10 * 2105
    assert config.schedule.warmup_steps == round(0.06 * 21_050)
    assert config.evaluation.every_steps == 2105
    given = fit_schedule(recipe("sst2", "base", "schedule.total_steps=7"), 67_349, ("schedule.total_steps=7",))
    assert given.schedule.total_steps == 7


def test_drops_have_a_warm_up_where_one_is_asked_for():
    for changes, steps in (((), 0), (("finetune.warmup_share=0.1",), 10)):
        schedule = fit_schedule(recipe("retrieval", "base", "finetune.epochs=10", *changes), 640, changes).schedule
        assert (schedule.form, schedule.total_steps, schedule.warmup_steps) == ("drops", 100, steps)


def test_the_rate_falls_from_the_first_step_on_and_drops_twice_in_retrieval():
    schedule = fit_schedule(recipe("sst2", "base"), 3200).schedule
    assert (schedule.total_steps, schedule.warmup_steps) == (1000, 60)
    rates = [learning_rate(step, peak=1.0, schedule=schedule) for step in range(1000)]
    assert rates[59] == 1.0
    assert rates[60] == pytest.approx(0.94)
    assert rates[999] == pytest.approx(0.001)
    drops = fit_schedule(recipe("retrieval", "base"), 64 * 10).schedule
    assert (drops.total_steps, drops.warmup_steps) == (400, 0)
    found = [learning_rate(step, peak=1.0, schedule=drops) for step in (0, 239, 240, 319, 320, 399)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_sources_are_cut_to_the_models_positions():
    start = small.run_config(300)
    config = configure(tasks.load("cnndm"), "base", start, **NAMED)
    assert config.data.max_text_tokens == 64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("finetune.retrieval.hard_share=2", "finetune.retrieval.hard_share=2.0 must be between 0 and 1"),
        ("finetune.generation.beams=0", "finetune.generation.beams=0 must be between 1 and 10000"),
        ("finetune.generation.length_penalty=5000", "finetune.generation.length_penalty=5000"),
        ("finetune.generation.beams=1000000000", "finetune.generation.beams=1000000000 must be between 1 and 10000"),
        ("finetune.adversarial.steps=100000", "finetune.adversarial.steps=100000 must be between 0 and 1000"),
        ("finetune.retrieval.negative_images=1000000000", "must be between 0 and 1000"),
        ("finetune.adversarial.limit=-1", "finetune.adversarial.limit=-1"),
        ("finetune.retrieval.loss=round", "is not one of plain, circle"),
        ("finetune=3", "is a group of keys"),
    ],
)
def test_impossible_numbers_are_refused(change, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        recipe("retrieval", "base", change)


def test_a_pre_training_has_no_finetune():
    config = RunConfig(recipe="demo")
    assert config.finetune is None
    assert from_dict(RunConfig, to_dict(config)) == config
    tuned = dataclasses.replace(config, finetune=recipe("sst2", "base").finetune)
    assert from_dict(RunConfig, to_dict(tuned)) == tuned


def test_deepspeeds_launcher_may_put_its_rank_in_front(capsys):
    assert cli.main(["--local_rank=0", "report", "--ours", "nothing"]) == 2
    assert "must be LABEL=FOLDER" in capsys.readouterr().err


def test_texts_are_no_longer_than_the_models_positions():
    """A recipe's lengths give way; lengths that are asked for are refused before anything is read."""
    start = RunConfig(recipe="small", model=ModelConfig(max_positions=40))
    config = configure(tasks.load("cnndm"), "base", start, **NAMED)
    assert (config.finetune.max_target_tokens, config.finetune.generation.max_tokens) == (37, 38)
    for change, said in (
        ("finetune.max_target_tokens=38", "max_target_tokens=38 is above 37, all that 40 positions allow"),
        ("finetune.generation.max_tokens=39", "generation.max_tokens=39 is above 38"),
        ("finetune.generation.max_tokens=9", "generation.min_tokens=20 is above finetune.generation.max_tokens=9"),
        ("finetune.generation.beams=0", "finetune.generation.beams=0"),
    ):
        with pytest.raises(UserError, match=said):
            configure(tasks.load("cnndm"), "base", start, overrides=(change,), **NAMED)
