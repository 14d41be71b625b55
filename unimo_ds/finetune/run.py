"""One fine-tuning with one seed: read, start, train in pre-training's loop, measure the best checkpoint on the whole split."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unimo_ds.config import RunConfig, to_dict
from unimo_ds.data.schema import StepBatch
from unimo_ds.data.vision import resolution
from unimo_ds.engine import ds_config, run_directory
from unimo_ds.engine.checkpoint_folder import BEST, FOLDER, named
from unimo_ds.engine.launch import start_processes, start_run
from unimo_ds.engine.loop import Loop
from unimo_ds.engine.metrics import Report
from unimo_ds.engine.optim import freeze
from unimo_ds.engine.setup import make_engine
from unimo_ds.engine.trackers import check_installed
from unimo_ds.evaluation.encode import OneDevice
from unimo_ds.finetune import settings, start
from unimo_ds.finetune.batch import pack_examples
from unimo_ds.finetune.loaded import ASSETS_FILE, load_task
from unimo_ds.finetune.model import TaskModel, TaskOutput
from unimo_ds.finetune.reader import StepTooLarge, TaskReader
from unimo_ds.finetune.start import Start
from unimo_ds.finetune.step import TaskStep
from unimo_ds.finetune.task import Evaluation, Examples, Size, Task, spread
from unimo_ds.models import positions
from unimo_ds.planning.host import check_host_memory, example_cost
from unimo_ds.utils import strict_json
from unimo_ds.utils.agreement import fail_together, failing_together
from unimo_ds.utils.communicator import Communicator
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.host_memory import return_freed_memory
from unimo_ds.utils.whole_file import write_whole

DEV_PREFIX = "dev/"
RESULT_FILE = "result.json"
_OF_TRAINING = ("optimizer.", "schedule.")
_COUNTED_EXAMPLES, _READ_EXAMPLES = 512, 16
"""Examples whose lengths, and examples whose images, are used to estimate the memory of a step and of the image layers."""


@dataclass(frozen=True)
class Order:
    """What the command line requests."""

    task: Task
    size: Size
    data: Path
    run_dir: Path
    start: Start
    from_scratch: bool
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """The content of a seed's `result.json`."""

    seed: int
    checkpoint: str
    metrics: dict[str, float]
    notes: dict[str, str]
    steps: int


@dataclass(frozen=True)
class _Read:
    """Everything that fine-tuning with one seed reads before it starts."""

    order: Order
    config: RunConfig
    assets: Mapping[str, Any]
    training: Examples
    held_out: Examples


def finetune(read_order: Callable[[], Order], *, seed: int) -> tuple[int, Result | None]:
    """Fine-tune with one seed in `run_dir/seed-N`; calling it again resumes, or returns the stored result. A collective.

    read_order: may raise UserError.
    Returns the exit status (0: done; see `engine.signals` for the others) and the result, None unless done.

    Raises:
        UserError: bad input, on all ranks.
    """
    read, device, communicator = start_run(lambda: _read(read_order(), seed), lambda read: read.config.engine)
    status, is_done = _train(read, seed, device, communicator)
    if status or not is_done:
        return status, None
    # Frees the trained model: the best checkpoint is loaded as another one.
    gc.collect()
    return_freed_memory()
    return 0, _result(Path(read.config.run_dir), read.config, communicator, read.held_out)


def _train(read: _Read, seed: int, device: torch.device, communicator: Communicator) -> tuple[int, bool]:
    """Exit status, and whether all steps were taken. A collective."""
    order, config, training, held_out = read.order, read.config, read.training, read.held_out
    task, run_dir, tokenizer, finetuning = order.task, Path(config.run_dir), order.start.tokenizer, config.finetuning
    with failing_together(communicator):
        engine_settings = ds_config.load(config.engine.deepspeed_config, config, communicator.world_size)
        _check_stage(config, ds_config.zero_stage(engine_settings))
        cost = example_cost(*_lengths(training, config))
    check_host_memory(config, [cost], engine_settings, device=device, communicator=communicator)
    with failing_together(communicator):
        model = TaskModel(config, task.make_head(config), tag_sizes=task.tag_sizes)
        if not order.from_scratch:
            start.fill(model, order.start)
        # The engine does this too; doing it here reports a missing part before the search for hard negatives.
        freeze(model, config.optimizer.rate_factors)
    fingerprint = f"{training.fingerprint}-{held_out.fingerprint}"
    begins_with = None if order.from_scratch else order.start
    with failing_together(communicator):
        if communicator.rank == 0:
            is_done = _is_done(run_dir, config)
            start.check_start(order.run_dir, begins_with, is_done=is_done)
            if is_done:
                _check_trained_so(run_dir, config)
    run_directory.prepare(config, engine_settings, data_fingerprint=fingerprint, communicator=communicator)
    with failing_together(communicator):
        if communicator.rank == 0:
            start.keep_start(order.run_dir, begins_with)
    if communicator.rank == 0:
        print(f"seed {seed}: {run_dir}", flush=True)
        if (note := positions.note(order.start.config.model, config.model)) and not order.from_scratch:
            print(f"note: {note}", flush=True)
        tokenizer.save(run_dir)
        write_whole(run_dir / ASSETS_FILE, f"{json.dumps(read.assets)}\n".encode())

    untrained: OneDevice[TaskOutput] = OneDevice(model.to(device), device, communicator=communicator)
    training = task.prepare_training(training, untrained, config)
    engine = make_engine(model, config, engine_settings)
    reader = TaskReader(training, config, rank=communicator.rank, world_size=communicator.world_size)
    measured = spread(held_out, finetuning.max_evaluated)

    def make_batches(first: int, stop: int) -> Iterator[StepBatch]:
        try:
            yield from reader.steps(first, stop)
        except StepTooLarge as error:  # every rank has planned the same step
            fail_together(communicator, str(error))

    def evaluate() -> Report:
        found = task.evaluate(engine, measured, config=config, tokenizer=tokenizer, quick=True)
        return Report({DEV_PREFIX + name: value for name, value in found.metrics.items()})

    loop = Loop(
        engine,
        config,
        take_step=functools.partial(TaskStep(finetuning, contrastive_path=config.engine.contrastive), engine, task),
        make_batches=make_batches,
        evaluate=evaluate,
        best_metric=DEV_PREFIX + task.best_metric,
    )
    status = loop.run()
    engine.close()
    return status, loop.progress.step >= config.schedule.total_steps


def _read(order: Order, seed: int) -> _Read:
    """
    Raises:
        UserError: settings or files that do not fit.
    """
    task, run_dir = order.task, order.run_dir / f"seed-{seed}"
    started = order.start.config
    if started.model.num_patches and (images := task.find_images(order.data, "train")) is not None:
        started = resolution.fitted(started, images)
    config = settings.configure(
        task,
        order.size,
        started,
        data=order.data,
        run_dir=run_dir,
        start_name="" if order.from_scratch else str(order.start.path),
        seed=seed,
        overrides=order.overrides,
    )
    check_installed(config.logging.trackers)
    config, assets = task.settle(config, order.data)
    tokenizer = order.start.tokenizer
    everything = task.open(order.data, "train", tokenizer=tokenizer, config=config, assets=assets)
    training = spread(everything, config.finetuning.max_examples)
    held_out = task.open(order.data, "dev", tokenizer=tokenizer, config=config, assets=assets)
    for examples in (everything, held_out):
        if (key := task.unanswered(examples)) is not None:
            raise UserError(
                f"{key} has no label, so it can be neither learned from nor measured on; give files with labels as train and dev"
            )
    return _Read(order, settings.fit_schedule(config, len(training), order.overrides), assets, training, held_out)


def _lengths(training: Examples, config: RunConfig) -> tuple[list[list[int]], list[list[int]]]:
    """Lengths of each sequence of some examples, and, of fewer examples, of each image that image layers encode.

    Raises:
        UserError: an example cannot be read.
    """
    some, few = spread(training, _COUNTED_EXAMPLES), spread(training, _READ_EXAMPLES)
    lengths = [some.lengths(index, config.seed) for index in range(len(some))]
    if not config.model.num_image_layers:
        return lengths, []
    packed = [
        pack_examples([few.make(index, config.seed)], feature_size=few.feature_size, target_size=few.target_size)
        for index in range(len(few))
    ]
    return lengths, [[*one.image_starts.diff().tolist(), *one.singles.image_starts.diff().tolist()] for one in packed]


def _is_done(run_dir: Path, config: RunConfig) -> bool:
    """Whether the result exists and needs only to be read."""
    known = _known_result(run_dir)
    return known is not None and known.steps == config.schedule.total_steps


def _check_trained_so(run_dir: Path, config: RunConfig) -> None:
    """A resumed run may take another rate or schedule; a finished one may not, because its result comes from the old ones.

    Raises:
        UserError: they differ.
    """
    path = run_dir / run_directory.CONFIG_FILE
    if not path.is_file():
        return
    before, now = (run_directory.flatten(one) for one in (strict_json.read(path, dict[str, Any]), to_dict(config)))
    of_training = sorted(key for key in before.keys() | now.keys() if key.startswith(_OF_TRAINING))
    for key in (key for key in of_training if run_directory.differs(before, now, key)):
        raise UserError(
            f"{run_dir} is trained and measured with {key}={before.get(key)}, not {now.get(key)}; give that to read its result, "
            "or another --run-dir"
        )


def _known_result(run_dir: Path) -> Result | None:
    """Raises UserError: damaged."""
    path = run_dir / RESULT_FILE
    if not path.is_file():
        return None
    known: Result = strict_json.read(path, Result, cure="delete it to measure again")
    return known


def _check_stage(config: RunConfig, stage: int) -> None:
    """
    Raises:
        UserError: ZeRO-3, if its ranks would write texts of different lengths, or run several ascents before one backward.
    """
    for kind, is_asked in (
        ("tasks that write need", config.finetuning.max_target_tokens),
        ("adversarial training needs", config.finetuning.adversarial.steps),
    ):
        if stage == 3 and is_asked:
            raise UserError(f"{kind} ZeRO stage 0 to 2; set engine.deepspeed_config to a zero2_* file")


def _result(run_dir: Path, config: RunConfig, communicator: Communicator, held_out: Examples) -> Result:
    """Of the best checkpoint on the whole development split; read from the file if an earlier start wrote it."""
    path = run_dir / RESULT_FILE
    with failing_together(communicator):
        mine = _known_result(run_dir) if communicator.rank == 0 else None
    known: Result | None = communicator.broadcast_object(mine)
    best = run_dir / FOLDER / BEST
    step = communicator.broadcast_object(named(best))
    if known is not None and (known.checkpoint, known.steps) == (step, config.schedule.total_steps):
        return known
    with failing_together(communicator):
        loaded = load_task(best if step else run_dir, device=start_processes(), communicator=communicator)
    found: Evaluation = loaded.task.evaluate(loaded, held_out, config=loaded.config, tokenizer=loaded.tokenizer)
    result = Result(config.seed, step, found.metrics, found.notes, config.schedule.total_steps)
    if communicator.rank == 0:
        write_whole(path, (json.dumps(dataclasses.asdict(result), indent=2) + "\n").encode())
    return result
