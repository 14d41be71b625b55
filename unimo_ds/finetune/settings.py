"""The configuration of a fine-tuning: the starting model's sizes, the task's recipe, and changes from the command line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from unimo_ds.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from unimo_ds.config_check import check
from unimo_ds.data.schema import FIRST_POSITION
from unimo_ds.finetune.task import Size, Task
from unimo_ds.overrides import apply_overrides, key_of
from unimo_ds.utils.errors import UserError


def configure(
    task: Task,
    size: Size,
    start: RunConfig,
    *,
    data: Path,
    run_dir: Path,
    start_name: str,
    seed: int,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Everything that does not depend on the number of examples; see `fit_schedule` for the rest.

    start: configuration of the starting model. start_name: path of its weights; empty: initialise fresh ones.

    Raises:
        UserError: an override that does not fit, or numbers that cannot run.
    """
    recipe = task.recipe(size)
    finetuning, usable = recipe.finetune, start.model.max_positions - FIRST_POSITION
    config = RunConfig(
        recipe=f"finetune_{task.name}_{size}",
        seed=seed,
        run_dir=str(run_dir),
        model=dataclasses.replace(start.model, initialize_from=None, initialize_images_from=None),
        data=DataConfig(
            path=str(data),
            made_with=start.data.made_with if start_name else {},
            max_text_tokens=min(recipe.max_text_tokens, usable),
            # Unlike regions, patches are not a selection: none may be left out.
            max_regions=max(recipe.max_regions, start.model.num_patches),
            num_workers=0,
        ),
        batch=BatchConfig(global_samples=recipe.global_examples, micro_batch_tokens=16384),
        contrast=start.contrast,
        optimizer=OptimizerConfig(
            peak_learning_rate=recipe.learning_rate,
            betas=(0.9, recipe.beta2),
            epsilon=1e-6,
            weight_decay=recipe.weight_decay,
            clip_norm=1.0,
        ),
        schedule=ScheduleConfig(total_steps=1, warmup_steps=0, form=recipe.schedule),
        # The release fine-tunes in float32.
        engine=EngineConfig(deepspeed_config="zero1_fp32", threads=start.engine.threads),
        checkpoint=CheckpointConfig(every_steps=1000, keep_last=1),
        evaluation=EvaluationConfig(every_steps=1000, at_start=False),
        logging=LoggingConfig(every_steps=50),
        finetune=dataclasses.replace(
            finetuning,
            start=start_name,
            # One position is taken by the [CLS] before the target.
            max_target_tokens=min(finetuning.max_target_tokens, usable - 1),
            generation=dataclasses.replace(
                finetuning.generation,
                min_tokens=min(finetuning.generation.min_tokens, usable),
                max_tokens=min(finetuning.generation.max_tokens, usable),
            ),
        ),
    )
    config = apply_overrides(config, overrides)
    check_finetuning(config)
    longest = config.finetuning.max_target_tokens
    if longest >= usable:
        raise UserError(
            f"finetune.max_target_tokens={longest} is above {usable - 1}, all that {start.model.max_positions} positions allow"
        )
    return config


def check_finetuning(config: RunConfig) -> None:
    """Check what fine-tuning and its measurement both need.

    Raises:
        UserError: numbers that cannot run.
    """
    check(config)
    retrieval = config.finetuning.retrieval
    if not (retrieval.trains_jointly or retrieval.contrastive_weight):
        raise UserError(
            "nothing is trained: give finetune.retrieval.contrastive_weight, or negatives with "
            "finetune.retrieval.negative_images and negative_captions"
        )
    if not config.finetuning.max_target_tokens:
        return
    generation, positions = config.finetuning.generation, config.model.max_positions
    largest = positions - FIRST_POSITION
    if generation.max_tokens > largest:
        raise UserError(
            f"finetune.generation.max_tokens={generation.max_tokens} is above {largest}, all that {positions} positions allow"
        )
    if generation.min_tokens > generation.max_tokens:
        raise UserError(
            f"finetune.generation.min_tokens={generation.min_tokens} is above "
            f"finetune.generation.max_tokens={generation.max_tokens}"
        )


def fit_schedule(config: RunConfig, num_examples: int, overrides: Sequence[str] = ()) -> RunConfig:
    """Set the steps of the recipe's epochs, its warm-up, and a measurement after each epoch; overridden values are kept."""
    changed = set(map(key_of, overrides))
    steps_per_epoch = max(1, math.ceil(num_examples / config.batch.global_samples))
    schedule, every = config.schedule, config.evaluation.every_steps
    if "schedule.total_steps" not in changed:
        total = max(1, round(config.finetuning.epochs * steps_per_epoch))
        schedule = dataclasses.replace(schedule, total_steps=total)
    if "schedule.warmup_steps" not in changed:
        has_none = schedule.form == "drops" and "finetune.warmup_share" not in changed
        share = 0.0 if has_none else config.finetuning.warmup_share
        schedule = dataclasses.replace(schedule, warmup_steps=round(share * schedule.total_steps))
    if "evaluation.every_steps" not in changed:
        every = steps_per_epoch
    config = dataclasses.replace(
        config, schedule=schedule, evaluation=dataclasses.replace(config.evaluation, every_steps=every)
    )
    check(config)
    return config
