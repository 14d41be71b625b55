"""Microseconds of one CPU thread that a training step's host work takes beside a GPU: no kernel runs, nothing waits.

    python -m benchmarks.host_time --json FILE

Operators are called on tiny CPU tensors with C functions that return at once. So a figure is the Python and the dispatch of
one call, without what only a GPU adds (a launch in the driver, the current stream and device). The other rows are what the
trainer's thread does with a step's batch of two micro-batches besides launching kernels. CPU time, median over repeats.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import step as steps
from unimo_ds.data.schema import StepBatch
from unimo_ds.data.transport import flatten, restore
from unimo_ds.engine.rehearsal import clean_part
from unimo_ds.losses.contrast_plan import join_tables, make_plan, share_sizes
from unimo_ds.ops.contrastive import pair_scores
from unimo_ds.ops.cross_entropy import tied_cross_entropy
from unimo_ds.ops.dropout_norm import dropout_add_layer_norm
from unimo_ds.ops.grouping import group
from unimo_ds.ops.layout import make_layout
from unimo_ds.ops.native import attention, bias_gelu, library
from unimo_ds.tasks.pretraining import PretrainingTask
from unimo_ds.utils.communicator import SingleProcess

Call = Callable[[], Any]


def idle_library() -> Any:
    """A kernels' library whose functions return 0 at once."""
    nothing = ctypes.CDLL(None).isascii  # 0 for any address
    nothing.argtypes, nothing.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p], ctypes.c_int
    numbers = {"block_rows": 64, "whole_length": 128}
    functions = {f"unimo_attention_{name}": lambda number=number: number for name, number in numbers.items()}
    return SimpleNamespace(**dict.fromkeys(library._FUNCTIONS, nothing), **functions)


def operators() -> dict[str, tuple[Call, Call]]:
    """(forward without gradients, forward and backward) of each operator on the kernels' path."""
    dtype, generator = torch.bfloat16, torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    layout = make_layout([4, 4])
    attention.tables_of(layout)
    rows, keys = [leaf(8, 64) for _ in range(2)], layout.position_keys
    norm, inner = [leaf(64), leaf(64)], [leaf(8, 64), leaf(64)]
    stream = leaf(8, 3, 1, 64)
    head, targets = [leaf(8, 64), leaf(16, 64), leaf(16)], torch.zeros(8, dtype=torch.int64)
    groups = group(torch.arange(8), 8)
    found: dict[str, Callable[[], torch.Tensor]] = {
        "attention": lambda: attention.attention(stream, layout, probability=0.1, site=3),
        "dropout, residual, norm": lambda: dropout_add_layer_norm(
            *rows, *norm, keys, probability=0.1, site=3, epsilon=1e-5, path="native"
        ),
        "bias, gelu": lambda: bias_gelu.bias_gelu(*inner),
        "tied cross-entropy": lambda: tied_cross_entropy(*head, targets, tells_correct=False, path="native")[0],
        "pair scores": lambda: pair_scores(*rows, groups, groups, path="native"),
    }

    def with_backward(call: Callable[[], torch.Tensor], upstream: torch.Tensor) -> None:
        call().backward(upstream)

    def without_gradients(call: Callable[[], torch.Tensor]) -> None:
        with torch.no_grad():
            call()

    return {
        name: (
            functools.partial(without_gradients, call),
            functools.partial(with_backward, call, torch.ones_like(call().detach())),
        )
        for name, call in found.items()
    }


def lists(samples: int) -> dict[str, Call]:
    """The host's work on a batch of `samples` before the first forward pass, in two micro-batches."""
    arguments = argparse.Namespace(
        layers=1, hidden=64, dropout=0.1, mix="paper", samples=samples, regions="detected", threads=1
    )
    config = steps.configuration(arguments)
    positions = steps.make_batches(config, arguments, 1)[0].micro_batches[0].num_positions
    halves = dataclasses.replace(config.batch, micro_batch_tokens=int(0.55 * positions))
    batch: StepBatch = restore(flatten(steps.make_batches(dataclasses.replace(config, batch=halves), arguments, 1)[0]))
    table = join_tables(batch.micro_batches)
    sizes = share_sizes(table, SingleProcess())
    plan = make_plan(table, form=config.contrast.form, sizes=sizes)
    nowhere = torch.device("meta")  # a device that does nothing
    there = batch.micro_batches[1].to(nowhere)
    print(
        f"{samples} samples: {positions} positions, {len(batch.micro_batches)} micro-batches, {plan.num_pairs} pairs, "
        f"{sum(plan.part_sizes)} scores"
    )

    return {
        "one table of the micro-batches": lambda: join_tables(batch.micro_batches),
        "plan of the contrastive loss": lambda: make_plan(table, form=config.contrast.form, sizes=sizes),
        "plan, moved": lambda: plan.to(nowhere),
        "batch, moved": lambda: [one.to(nowhere) for one in batch.micro_batches],
        "clean part of a micro-batch": lambda: clean_part(batch.micro_batches[1], there),
        "counts of the objectives": lambda: PretrainingTask.of(config).counts(batch.micro_batches),
    }


def microseconds(call: Call, *, calls: int, repeats: int) -> float:
    """Median CPU time of one call."""
    call()
    found = []
    for _ in range(repeats):
        start = time.process_time()  # a backward pass has a thread of its own
        for _ in range(calls):
            call()
        found.append((time.process_time() - start) / calls * 1e6)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    idle = idle_library()
    library.library_of = lambda _: idle
    library.refusal = lambda *_: None
    rows = {}
    for name, (forward, both) in operators().items():
        rows[f"{name}, without gradients"] = microseconds(forward, calls=200, repeats=arguments.repeats)
        rows[f"{name}, forward and backward"] = microseconds(both, calls=200, repeats=arguments.repeats)
    for name, call in lists(arguments.samples).items():
        rows[name] = microseconds(call, calls=5, repeats=arguments.repeats)
    for name, value in rows.items():
        print(f"{name:45s} {value:9.1f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
