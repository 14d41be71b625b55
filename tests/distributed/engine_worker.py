"""One rank of the engine's tests: many engines in one launch, since a launch costs more than the tests."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from unimo_ds.config import OptimizerConfig, RunConfig
from unimo_ds.engine import ds_config
from unimo_ds.engine.checkpoint_folder import WEIGHT
from unimo_ds.engine.launch import start_processes
from unimo_ds.engine.setup import Engine, make_engine
from unimo_ds.utils.running import run_command


@dataclass(frozen=True)
class ToyOutput:
    """A dataclass, as the real model returns."""

    prediction: torch.Tensor
    temperature: torch.Tensor


class Toy(nn.Module):
    """Odd sizes, a parameter of one number, a weight used twice (once outside its module): what partitioning gets wrong first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 7)
        self.inner = nn.Sequential(nn.Linear(7, 13), nn.GELU(), nn.Linear(13, 7), nn.LayerNorm(7))
        self.bias = nn.Parameter(torch.zeros(11))
        self.temperature = nn.Parameter(torch.full((1,), 0.3))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter is not self.temperature:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)

    def external_parameters(self) -> list[tuple[nn.Module, nn.Parameter]]:
        return [(self, self.embedding.weight)]

    def forward(self, tokens: torch.Tensor) -> ToyOutput:
        hidden = self.inner(self.embedding(tokens))
        logits = nn.functional.linear(hidden, self.embedding.weight, self.bias)
        return ToyOutput(prediction=logits.float(), temperature=self.temperature[0].float().exp())


def loss_sum(output: ToyOutput, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output.prediction * output.temperature, targets, reduction="sum")


TOKENS = (torch.arange(48) * 7 + 3) % 11
TARGETS = (torch.arange(48) * 5 + 1) % 11


def configuration(*, clip_norm: float = 0.5, rate_factors: Mapping[str, float] | None = None) -> RunConfig:
    optimizer = OptimizerConfig(peak_learning_rate=1e-2, clip_norm=clip_norm, rate_factors=rate_factors or {})
    return RunConfig(recipe="test", optimizer=optimizer)


def build(name: str, rate_factors: Mapping[str, float] | None = None) -> Engine:
    config = configuration(rate_factors=rate_factors)
    world_size = torch.distributed.get_world_size()
    return make_engine(Toy(), config, ds_config.load(name, config, world_size))


def run_step(
    engine: Engine, *, micro_batches: int, is_finite: bool = True, is_wanted: bool = True, spoil: bool = False
) -> dict:
    """One step over this rank's share of the rows, cut into uneven micro-batches."""
    rank, world_size = engine.communicator.rank, engine.communicator.world_size
    tokens, targets = TOKENS[rank::world_size], TARGETS[rank::world_size]
    cuts = [0, 1, 2, len(tokens)] if micro_batches == 3 else [0, len(tokens)]
    for index in range(len(cuts) - 1):
        part = slice(cuts[index], cuts[index + 1])
        output = engine.forward(tokens[part].to(engine.device))
        loss = loss_sum(output, targets[part].to(engine.device)) * world_size / len(TOKENS)
        if spoil and rank == world_size - 1 and index == 0:
            loss = loss * float("nan")
        engine.backward(loss, is_boundary=index == len(cuts) - 2)
    return dataclasses.asdict(engine.step(is_finite=is_finite, is_wanted=is_wanted))


def weights(engine: Engine, slot: str = WEIGHT) -> list[float]:
    flat = [engine.masters.read(parameter, slot).flatten().cpu() for parameter in engine.module.parameters()]
    return torch.cat(flat).tolist()


def accumulate(name: str) -> dict:
    """Steps with one and with three micro-batches, a rehearsal without gradients, steps that are dropped."""
    result = {}
    for micro_batches in (1, 3):
        engine = build(name)
        with torch.no_grad():
            rehearsed = engine.forward(TOKENS.to(engine.device))
            direct = engine.module(TOKENS.to(engine.device))
        assert isinstance(rehearsed, ToyOutput)
        assert isinstance(direct, ToyOutput)
        assert torch.equal(rehearsed.prediction, direct.prediction)
        engine.set_learning_rate(1e-2)
        steps = [run_step(engine, micro_batches=micro_batches) for _ in range(3)]
        before = weights(engine)
        skipped = run_step(engine, micro_batches=micro_batches, is_finite=False)
        spoiled = run_step(engine, micro_batches=micro_batches, spoil=True)
        unwanted = run_step(engine, micro_batches=micro_batches, is_wanted=False)
        unchanged = before == weights(engine)
        after = run_step(engine, micro_batches=micro_batches)
        result[str(micro_batches)] = {
            "steps": steps,
            "skipped": skipped,
            "spoiled": spoiled,
            "unwanted": unwanted,
            "unchanged": unchanged,
            "after": after,
            "weights": weights(engine),
            "exp_avg": weights(engine, "exp_avg"),
            "applied_steps": engine.applied_steps,
        }
        engine.close()
    return result


def main() -> None:
    names, output = sys.argv[1].split(","), Path(sys.argv[2])
    start_processes()
    results = {name: accumulate(name) for name in names}
    if torch.distributed.get_rank() == 0:
        output.write_text(json.dumps(results))


if __name__ == "__main__":
    sys.exit(run_command(main))
