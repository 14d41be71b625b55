"""Gradients of several micro-batches on two ranks, and their exact mean, for each precision of the sums between ranks."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_grad
from torch import nn

from unimo_ds.config import OptimizerConfig, RunConfig
from unimo_ds.engine import ds_config
from unimo_ds.engine.launch import start_processes
from unimo_ds.engine.setup import make_engine

SIZE, MICRO_BATCHES = 64, 4


class Weight(nn.Module):
    """The gradient is the input over SIZE, without rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(SIZE, SIZE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight * x.to(self.weight.dtype)).float().sum() / SIZE


def inputs(rank: int, micro_batch: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * micro_batch + rank)
    return torch.randn(SIZE, SIZE, generator=generator).to(dtype)


def error(path: Path, dtype: torch.dtype) -> float:
    """Of the gradient before the update, relative to its length."""
    device = start_processes()
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    config = RunConfig(recipe="test", optimizer=OptimizerConfig(clip_norm=0.0))
    config = dataclasses.replace(config, engine=dataclasses.replace(config.engine, deepspeed_config=str(path)))
    engine = make_engine(Weight(), config, ds_config.load(str(path), config, world_size))
    for number in range(MICRO_BATCHES):
        loss = engine.forward(inputs(rank, number, dtype).to(device))
        engine.backward(loss, is_boundary=number == MICRO_BATCHES - 1)
    found = safe_get_full_grad(engine.module.weight).cpu().double() / engine.loss_scale
    given = [inputs(one, n, dtype) for one in range(world_size) for n in range(MICRO_BATCHES)]
    exact = torch.stack(given).double().sum(0) / (SIZE * world_size)
    engine.close()
    return float((found - exact).norm() / exact.norm())


def main() -> None:
    folder, result, *names = sys.argv[1:]
    found = {}
    for path in (Path(folder) / f"{name}.json" for name in names):
        found[path.stem] = error(path, torch.bfloat16 if "bf16" in path.stem else torch.float16)
    if torch.distributed.get_rank() == 0:
        Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
