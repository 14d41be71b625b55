"""One rank of the step's tests: real engines, three optimizer steps on the same examples however they are dealt."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch

from tests import support
from tests.extending_page import modules_of_page, weights_of
from unimo_ds.config import ContrastConfig, LossWeights, OptimizerConfig, RunConfig
from unimo_ds.data.packing import pack
from unimo_ds.data.schema import Kind, StepBatch
from unimo_ds.engine import ds_config
from unimo_ds.engine.checkpoint_folder import WEIGHT
from unimo_ds.engine.launch import start_processes
from unimo_ds.engine.setup import make_engine
from unimo_ds.engine.step import train_step
from unimo_ds.models.unimo import Unimo
from unimo_ds.tasks import pretraining
from unimo_ds.tasks.pretraining import PretrainingTask
from unimo_ds.utils.running import run_command

NUM_EXAMPLES, NUM_STEPS = 11, 3
BUILT_IN = pretraining.OBJECTIVES


def step_batch(
    step: int, *, rank: int, world_size: int, micro_batches: int, group_pairs: int, with_tags: bool = False
) -> StepBatch:
    """This rank's share of the step's examples. Uneven: some micro-batches hold one kind alone, some hold nothing."""
    positions = range(step * NUM_EXAMPLES, (step + 1) * NUM_EXAMPLES)
    examples = [support.example(position) for position in positions]
    if with_tags:
        examples = [support.tagged(example) for example in examples]
    pairs = [index for index, example in enumerate(examples) if example.kind == Kind.PAIR]
    group_of = {index: number // group_pairs if group_pairs else 0 for number, index in enumerate(pairs)}
    bins = world_size * micro_batches
    # Two thirds of the bins get examples: the rest stay empty wherever there are several.
    used = max(1, bins * 2 // 3)
    mine = []
    for micro_batch in range(micro_batches):
        indices = [index for index in range(NUM_EXAMPLES) if (index * 7) % used == rank * micro_batches + micro_batch]
        mine.append(
            pack(
                [examples[index] for index in indices],
                [group_of.get(index, 0) for index in indices],
                feature_size=support.FEATURES,
                classes_per_region=support.STORED_CLASSES,
            )
        )
    return StepBatch(step=step, micro_batches=tuple(mine), num_samples=NUM_EXAMPLES)


def run(case: dict) -> dict:
    contrast = ContrastConfig(form=case.get("form", "two_logs"), exchange=case.get("exchange", "gather"))
    optimizer = OptimizerConfig(peak_learning_rate=1e-3, clip_norm=0.5, rate_factors=case.get("rate_factors", {}))
    config = RunConfig(recipe="test", contrast=contrast, optimizer=optimizer)
    pretraining.OBJECTIVES, weights = BUILT_IN, LossWeights(region_regression=2.0, contrastive=0.5)
    if case.get("with_head"):
        pretraining.OBJECTIVES = (*BUILT_IN, modules_of_page()["matching"].MATCHING)
        weights = weights_of(1.0, region_regression=2.0, contrastive=0.5)
    task = PretrainingTask(contrast=contrast, weights=weights)
    num_image_layers = case.get("image_layers", 0)
    with_tags = bool(case.get("with_tags") or num_image_layers)
    sizes = support.model_config(
        num_image_layers=num_image_layers, region_tag_sizes=support.REGION_TAG_SIZES if with_tags else ()
    )
    model = Unimo(
        sizes,
        heads=task.make_heads(sizes),
        seed=5,
        activation_checkpointing=case.get("activation_checkpointing", False),
    )
    world_size = torch.distributed.get_world_size()
    engine = make_engine(model, config, ds_config.load(case["deepspeed"], config, world_size))
    engine.module.train()
    steps = []
    for step in range(NUM_STEPS):
        batch = step_batch(
            step,
            rank=engine.communicator.rank,
            world_size=world_size,
            micro_batches=case["micro_batches"],
            group_pairs=case.get("group_pairs", 0),
            with_tags=with_tags,
        )
        steps.append(dataclasses.asdict(train_step(engine, task, batch, learning_rate=1e-3)))
    weights = {
        name: engine.masters.read(parameter, WEIGHT).flatten().tolist()
        for name, parameter in engine.module.named_parameters()
    }
    engine.close()
    return {"steps": steps, "weights": weights}


def main() -> None:
    cases, output = json.loads(sys.argv[1]), Path(sys.argv[2])
    start_processes()
    results = [run(case) for case in cases]
    if torch.distributed.get_rank() == 0:
        output.write_text(json.dumps(results))


if __name__ == "__main__":
    sys.exit(run_command(main))
