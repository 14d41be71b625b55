"""How evenly a step's work is dealt to the ranks, compared with random and length-bucketed dealing, and what dealing costs.

    python -m benchmarks.balance

The recipe `base_32xv100` on the paper's length mix. Work is counted in floating-point operations of all products (heads and
image projections included), which the dealing itself does not use. All dealings give each rank equally many micro-batches.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import measuring
from benchmarks.mix import MixCorpus
from unimo_ds import recipes
from unimo_ds.config import RunConfig
from unimo_ds.data.balance import split_step
from unimo_ds.data.mixture import Order
from unimo_ds.data.schema import Kind, LanguageObjective, SequenceRole
from unimo_ds.data.selection import select_step
from unimo_ds.data.step_plan import sample_costs
from unimo_ds.data.step_selection import StepSelection
from unimo_ds.models.accounting import StreamShape, training_flops
from unimo_ds.utils.running import run_command

BUCKETS = 8
Dealing = Callable[[StepSelection, RunConfig, int, np.random.Generator], list[NDArray[np.int64]]]


def ours(selection: StepSelection, config: RunConfig, world_size: int, random: np.random.Generator) -> list[Any]:
    """What the trainer does."""
    split = split_step(
        sample_costs(selection, config.model),
        selection.num_positions,
        selection.kinds == Kind.PAIR,
        world_size,
        config.batch.micro_batch_tokens,
    )
    return [np.concatenate(micro_batches) for micro_batches in split]


def at_random(selection: StepSelection, config: RunConfig, world_size: int, random: np.random.Generator) -> list[Any]:
    """The same number of samples for each rank, chosen at random: what a distributed sampler does."""
    return np.array_split(random.permutation(len(selection)), world_size)


def by_length(selection: StepSelection, config: RunConfig, world_size: int, random: np.random.Generator) -> list[Any]:
    """Samples in buckets of similar length, each bucket dealt evenly at random, as length-binned loaders do."""
    ranks: list[list[int]] = [[] for _ in range(world_size)]
    turn = 0
    for bucket in np.array_split(np.argsort(selection.num_positions, kind="stable"), BUCKETS):
        for row in random.permutation(bucket).tolist():
            ranks[turn % world_size].append(row)
            turn += 1
    return [np.array(rank) for rank in ranks]


DEALINGS: dict[str, Dealing] = {"ours": ours, "length buckets": by_length, "random": at_random}


def work_of(selection: StepSelection, config: RunConfig, corpus: MixCorpus) -> NDArray[np.float64]:
    """[B] operations of each sample, forward and backward."""
    images = np.where(selection.images >= 0, 1 + np.minimum(corpus.num_regions[selection.images], 100), 0)
    is_corrupted = selection.roles == SequenceRole.CORRUPTED
    starts = selection.sequence_starts[:-1]

    def per_sample(values: NDArray[Any]) -> NDArray[np.int64]:
        return np.add.reduceat(values, starts).astype(np.int64)

    share = np.where(selection.objectives == LanguageObjective.MASKED, 0.15, 0.25)
    tokens = selection.lengths - images
    language = per_sample(tokens * is_corrupted) * share
    columns = (
        per_sample(selection.lengths),
        per_sample(selection.lengths * (selection.lengths + selection.shared_lengths)),
        per_sample(selection.encoded_images),
        per_sample(selection.encoded_images**2),
        language.astype(np.int64),
        (per_sample(images * is_corrupted) * 0.2).astype(np.int64),
        per_sample(((images > 0).astype(int) + (tokens > 0)) * ~is_corrupted),
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return np.array([training_flops(config.model, StreamShape(*row)) for row in rows], np.float64)


def measure(world_size: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all dealings over a number of steps."""
    config = recipes.load("base_32xv100")
    samples = arguments.per_rank * world_size
    config = dataclasses.replace(config, batch=dataclasses.replace(config.batch, global_samples=samples))
    corpus = MixCorpus(images=2000, texts=2000, pairs=8000, feature_size=1)
    order = Order(corpus.kinds, corpus.source_ids, corpus.shard_of, config.data.kind_weights, seed=1)
    ratios: dict[str, list[float]] = {name: [] for name in DEALINGS}
    seconds: dict[str, list[float]] = {name: [] for name in DEALINGS}
    random = np.random.default_rng(0)
    for step in range(arguments.steps):
        positions = np.arange(step * samples, (step + 1) * samples)
        selection = select_step(corpus, order.samples_at(positions), positions, config)
        work = work_of(selection, config, corpus)
        for name, deal in DEALINGS.items():
            start = time.process_time()
            ranks = deal(selection, config, world_size, random)
            seconds[name].append(time.process_time() - start)
            loads = np.array([work[rows].sum() for rows in ranks])
            ratios[name].append(float(loads.max() / loads.mean()))
    return [
        {
            "case": f"{world_size} ranks, {arguments.per_rank} samples each",
            "contender": name,
            "max_over_mean_median": statistics.median(ratios[name]),
            "max_over_mean_worst": max(ratios[name]),
            "processor_milliseconds_median": 1e3 * statistics.median(seconds[name]),
            "steps": arguments.steps,
        }
        for name in DEALINGS
    ]


def _main(arguments: argparse.Namespace) -> None:
    rows = [row for world in arguments.worlds.split(",") for row in measure(int(world), arguments)]
    columns = ("case", "contender", "max_over_mean_median", "max_over_mean_worst", "processor_milliseconds_median")
    print(measuring.table(rows, columns))
    print("wrote", measuring.write("balance", rows, path=arguments.json))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default="2,8,32", help="numbers of ranks")
    parser.add_argument("--per-rank", type=int, default=32, help="samples of a rank and step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    return run_command(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
