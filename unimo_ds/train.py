"""The trainer: from prepared data to a trained model.

    deepspeed unimo_ds/train.py                                                          the demo recipe, on synthetic scenes
    deepspeed unimo_ds/train.py --recipe small --data data --run-dir runs/mine           your data/train and data/held_out
    torchrun --nproc-per-node 4 -m unimo_ds.train --set schedule.total_steps=2000        one field changed

`mpirun`, `srun` and plain `python` start it as well. Run the same command again to resume from the newest good checkpoint.
Exit status: 0 done, 2 bad input (one sentence says what), 75 stopped by SIGTERM or SIGUSR1 with nothing lost, 130 by SIGINT.
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    from unimo_ds.utils.starting import watch_start

    watch_start()
    gc.disable()  # imports leave no garbage, and looking for it takes a seventh of their time

import dataclasses
import functools
import sys
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from unimo_ds import recipes
from unimo_ds.config import RunConfig
from unimo_ds.config_check import check
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.corpus_check import check_corpus, regions_left_out, with_fingerprints
from unimo_ds.data.loader import BadSampleLimit, StepLoader
from unimo_ds.data.schema import StepBatch
from unimo_ds.engine import ds_config, run_directory
from unimo_ds.engine.launch import start_run
from unimo_ds.engine.loop import Loop
from unimo_ds.engine.metrics import Report
from unimo_ds.engine.patient_files import say
from unimo_ds.engine.setup import make_engine
from unimo_ds.engine.step import StepMetrics, train_step
from unimo_ds.engine.trackers import check_installed
from unimo_ds.evaluation.held_out import BEST_METRIC, check_fits, evaluate_held_out
from unimo_ds.models.start import check_initial_weights, load_initial_weights, start_note
from unimo_ds.models.unimo import Unimo, options_of
from unimo_ds.models.vision_transformer import load_vision_transformer
from unimo_ds.overrides import apply_overrides
from unimo_ds.planning.host import check_host_memory, pretraining_costs
from unimo_ds.tasks.pretraining import PretrainingTask
from unimo_ds.utils import locations
from unimo_ds.utils.agreement import failing_together, rank_0_first
from unimo_ds.utils.command_line import ArgumentParser
from unimo_ds.utils.communicator import Communicator
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.running import run_command

DEMO_DATA = "demo_data"
_DEFAULT_RECIPE = "demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says. Returns the exit status. Every call is a stage of the project, in the order it happens."""
    # A problem on one rank is reported once and ends all of them: `rank_0_first` and `failing_together` are collectives.
    config, device, communicator = start_run(lambda: read_configuration(arguments), settings_of=lambda run: run.engine)

    # Data: an index in memory, samples on disk. A recipe that starts from scratch takes vocabulary and region sizes from it.
    draw_demo(config, communicator)
    cache = config.data.cache_dir or str(Path(config.run_dir) / "cache")
    open_corpus = functools.partial(Corpus.open, cache_dir=cache, cache_bytes=config.data.cache_bytes)
    corpus = rank_0_first(communicator, lambda: open_corpus(config.data.path))
    with failing_together(communicator):
        config = recipes.fit_to_data(config, corpus)
        check(config)
        check_initial_weights(config.model)
        check_corpus(corpus, config)
        config = with_fingerprints(config, corpus)
        held_out = open_corpus(config.data.held_out_path) if config.data.held_out_path else None
        if held_out is not None:
            check_fits(held_out, config)
        engine_settings = ds_config.load(config.engine.deepspeed_config, config, communicator.world_size)
    if communicator.rank == 0:
        notes = (
            recipes.device_note(config.recipe, device.type),
            recipes.held_out_note(config),
            *regions_left_out(corpus, config),
            start_note(config.model),
        )
        for note in filter(None, notes):
            say(f"note: {note}")
    costs = pretraining_costs(config, corpus)
    check_host_memory(config, costs, engine_settings, device=device, communicator=communicator)
    run_directory.prepare(
        config,
        engine_settings,
        data_fingerprint=corpus.fingerprint,
        held_out_fingerprint=held_out.fingerprint if held_out else "",
        communicator=communicator,
    )

    # Objectives, model, engine.
    task = PretrainingTask.of(config)
    with failing_together(communicator):
        model = make_model(config, task)
    engine = make_engine(model, config, engine_settings)

    # The loop decides what happens between steps; steps, batches and evaluation are defined here.
    limit = BadSampleLimit(config.data.max_bad_share, communicator)
    make_batches = functools.partial(StepLoader, corpus, config, communicator.rank, communicator.world_size)

    def evaluate() -> Report:
        assert held_out is not None
        return evaluate_held_out(engine, held_out, config)

    def watch_data(batch: StepBatch, metrics: StepMetrics) -> None:
        for bad in batch.bad_samples:
            say(f"unreadable sample {bad.key}: {bad.reason}; {bad.substitute} took its place")
        limit.add(batch.bad_samples, num_bad=metrics.bad_samples, num_samples=batch.num_samples)

    loop = Loop(
        engine,
        config,
        take_step=functools.partial(train_step, engine, task),
        make_batches=make_batches,
        evaluate=evaluate if held_out is not None else None,
        best_metric=BEST_METRIC,
        measured_on=f"{held_out.fingerprint}/{config.evaluation.num_pairs}" if held_out is not None else "",
        on_step=watch_data,
    )
    return loop.run()


def read_configuration(arguments: Sequence[str] | None) -> RunConfig:
    """The recipe with the command line's changes."""
    parser = ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--recipe", help=f"one of {', '.join(recipes.NAMES)} (default: {_DEFAULT_RECIPE})")
    parser.add_argument("--data", metavar="PATH", action=locations.Repeated, help=locations.HELP)
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        help="where the run is kept; the same command again resumes it (default: the recipe's)",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change one field, e.g. optimizer.clip_norm=0.5; may be repeated",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=SUPPRESS)  # given by `deepspeed`, unused
    options = parser.parse_args(arguments)
    held = run_directory.recipe_in(options.run_dir) if options.run_dir and options.recipe is None else _DEFAULT_RECIPE
    if held not in (None, _DEFAULT_RECIPE):
        raise UserError(
            f"{options.run_dir} holds a run of recipe {held}; give all of its command again, with --recipe {held}"
        )
    config = recipes.load(options.recipe or _DEFAULT_RECIPE)
    if options.data is not None:
        config = recipes.with_data(config, options.data)
    if options.run_dir is not None:
        config = dataclasses.replace(config, run_dir=options.run_dir)
    config = apply_overrides(config, options.set)
    check_installed(config.logging.trackers)
    if not config.data.path:
        raise UserError(f"recipe {config.recipe!r} names no data; give --data PATH (see `unimo prepare import --help`)")
    return recipes.without_unread(config)


def draw_demo(config: RunConfig, communicator: Communicator) -> None:
    """Generate the demo corpus on rank 0 if the recipe uses it; a finished one is left as it is."""
    with failing_together(communicator):
        drawn = Path(DEMO_DATA) / "train"
        if communicator.rank == 0 and drawn in map(Path, locations.split(config.data.path)):
            from unimo_ds.data.prepare.scenes.writing import write_demo_corpus

            write_demo_corpus(DEMO_DATA)


def make_model(config: RunConfig, task: PretrainingTask) -> Unimo:
    """The model with its initial weights, which are equal on every rank: they come from the seed or a file."""
    model = Unimo(config.model, heads=task.make_heads(config.model), **options_of(config))
    if config.model.initialize_from is not None:
        load_initial_weights(model, config.model.initialize_from)
    if config.model.initialize_images_from is not None:
        load_vision_transformer(model, config.model.initialize_images_from)
    return model


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    sys.exit(run_command(main))
