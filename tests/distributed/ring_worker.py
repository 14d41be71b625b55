"""One rank of the ring's tests: the contrastive loss where ranks hold unequal shares of the pairs, and where one has all."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from tests.losses.test_contrastive import EVERY_ROLE, make_table
from unimo_ds.data.schema import ContrastTable
from unimo_ds.losses.contrast_plan import make_plan, share_sizes
from unimo_ds.losses.contrastive import ACCURACIES, contrastive_loss
from unimo_ds.utils.communicator import Communicator, ProcessGroup, SingleProcess

NUM_PAIRS = 9
OWNERS = {1: [0] * NUM_PAIRS, 2: [0, 1, 1, 1, 0, 1, 1, 1, 1], 3: [2, 0, 0, 2, 0, 2, 2, 2, 0]}
"""World size -> rank of every pair; of three ranks one has none."""


def share(table: ContrastTable, mine: torch.Tensor) -> ContrastTable:
    """The rows of the pairs that `mine` marks."""
    number = mine.cumsum(0) - 1
    of_pairs = {
        field.name: getattr(table, field.name)[mine]
        for field in dataclasses.fields(table)
        if field.name.startswith("pair_")
    }
    scores = mine[table.score_pair]
    of_scores = {
        field.name: getattr(table, field.name)[scores]
        for field in dataclasses.fields(table)
        if field.name.startswith("score_")
    }
    of_scores["score_pair"] = number[of_scores["score_pair"]]
    return ContrastTable(**of_pairs, **of_scores)


def run(case: dict, communicator: Communicator, dtype: torch.dtype) -> dict:
    """Loss, gradients and accuracies, summed over ranks."""
    table, num_images, num_texts = make_table(NUM_PAIRS, EVERY_ROLE, groups=case["groups"])
    # Items that pairs share, and a caption that two pairs have.
    table = dataclasses.replace(
        table,
        score_key=torch.where(torch.arange(len(table.score_key)) % 5 == 0, 77, table.score_key),
        pair_text_key=table.pair_text_key.clone().index_fill(0, torch.tensor([2, 6]), 4),
    )
    owners = torch.tensor(OWNERS[communicator.world_size])
    generator = torch.Generator().manual_seed(1)
    images, texts = (
        torch.randn(count, 16, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for count in (num_images, num_texts)
    )
    temperature = torch.tensor(0.1, dtype=dtype, requires_grad=True)
    mine = share(table, owners == communicator.rank)
    result = contrastive_loss(
        images,
        texts,
        make_plan(mine, form=case["form"], sizes=share_sizes(mine, communicator)),
        temperature=temperature,
        form=case["form"],
        in_batch=True,
        communicator=communicator,
        exchange=case["exchange"],
        path=case["path"],
    )
    gradients = torch.autograd.grad(
        result.loss_sum, (images, texts, temperature), allow_unused=True, materialize_grads=True
    )
    return {
        "loss": communicator.all_reduce_sum(result.loss_sum.detach()).item(),
        "gradients": [communicator.all_reduce_sum(gradient).flatten().tolist() for gradient in gradients],
        "accuracies": {
            name: communicator.all_reduce_sum(torch.stack(pair)).tolist()
            for name, *pair in zip(ACCURACIES, result.right, result.asked, strict=True)
        },
    }


def in_order(operation: Callable[..., dist.P2POp], *arguments: object) -> dist.P2POp:
    """A transfer without its tag: NCCL knows none and matches what two ranks send and receive by the order alone."""
    *others, _ = arguments
    return operation(*others)


def main() -> None:
    cases, output = json.loads(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo")
    dist.P2POp = functools.partial(in_order, dist.P2POp)
    two = dist.new_group([0, 1])
    results = []
    for case in cases:
        dtype = torch.float32 if case["path"] == "native" else torch.float64
        found = {"1": run(case, SingleProcess(), dtype), "3": run(case, ProcessGroup(), dtype)}
        if dist.get_rank() < 2:
            found["2"] = run(case, ProcessGroup(two), dtype)
        results.append(found)
    if dist.get_rank() == 0:
        output.write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
