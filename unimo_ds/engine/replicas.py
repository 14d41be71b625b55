"""Checks that all ranks still have the same weights."""

from __future__ import annotations

import torch

from unimo_ds.engine.setup import Engine
from unimo_ds.utils.agreement import fail_together


def check_replicas(engine: Engine) -> None:
    """Check that all ranks have bit-identical weights (ZeRO stages 0 to 2). A collective.

    Raises:
        UserError: on all ranks, naming those that differ: a broken device, or ranks that ran different code.
    """
    if engine.zero_stage == 3:
        return
    sums = [
        parameter.detach().flatten().view(torch.int16).sum(dtype=torch.int64)
        for parameter in engine.module.parameters()
    ]
    digests = engine.communicator.all_gather_object(torch.stack(sums).tolist())
    differing = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if differing:
        fail_together(
            engine.communicator,
            f"the weights of rank {', '.join(map(str, differing))} are no longer those of rank 0; check that machine, "
            "and resume from the last checkpoint",
        )
