"""Before a run: `unimo plan`, `doctor`."""

from __future__ import annotations

import argparse
import dataclasses

from unimo_ds import recipes
from unimo_ds.commands.common import add_json, add_recipe, config_of, emit
from unimo_ds.utils import locations
from unimo_ds.utils.command_line import add_command


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_plan(
        add_command(commands, "plan", "estimate what a run will need: memory, time, data rates", _plan, _PLAN_EXAMPLE)
    )
    purpose = "list what this machine has, and what each missing piece costs"
    add_json(add_command(commands, "doctor", purpose, _doctor, _DOCTOR_EXAMPLE))


_PLAN_EXAMPLE = "unimo plan --recipe base_32xv100 --data data/train --utilisation 0.4"


def _add_plan(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--data",
        action=locations.Repeated,
        help="data folders, as in training: sequence lengths are counted, not assumed",
    )
    parser.add_argument("--devices", type=int, help="number of GPUs or CPU processes (default: the recipe's)")
    parser.add_argument("--hardware", help="v100, a100, h100, h200 or cpu (default: the recipe's)")
    parser.add_argument(
        "--utilisation", type=float, default=0.55, help="share of the peak FLOP/s that training reaches (default 0.55)"
    )
    parser.add_argument(
        "--measured",
        metavar="ROWS",
        help="take the utilisation from rows of `python -m benchmarks.step`, on this device, or on another GPU with --profile",
    )
    add_json(parser)


def _plan(arguments: argparse.Namespace) -> None:
    from unimo_ds.config_check import check
    from unimo_ds.data.corpus import Corpus
    from unimo_ds.data.corpus_check import check_corpus
    from unimo_ds.models.start import check_initial_weights
    from unimo_ds.planning import plan, text

    config = config_of(arguments, arguments.data)
    corpus = None
    if arguments.data is not None:
        corpus = Corpus.open(config.data.path, cache_dir=config.data.cache_dir)
        config = recipes.fit_to_data(config, corpus)
    result = plan.plan(
        config,
        corpus=corpus,
        devices=arguments.devices,
        hardware=arguments.hardware,
        utilisation=arguments.utilisation,
        measured=arguments.measured,
    )
    emit(dataclasses.asdict(result), text.to_text(result), arguments.json)
    if corpus is not None:
        # Find what training would refuse before waiting in a queue.
        check(config)
        check_initial_weights(config.model)
        check_corpus(corpus, config)


_DOCTOR_EXAMPLE = "unimo doctor\n  srun unimo doctor preflight --data data      the nodes of a job, see its own --help"


def _doctor(arguments: argparse.Namespace) -> int:
    from unimo_ds import doctor

    findings = doctor.examine()
    emit(doctor.to_dict(findings), doctor.to_text(findings), arguments.json)
    return 0 if doctor.is_fit(findings) else 1
