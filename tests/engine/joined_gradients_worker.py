"""Steps with gradients added and clipped together, and the same steps as DeepSpeed alone takes them."""

from __future__ import annotations

import json

import torch
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import nn

from unimo_ds.config import OptimizerConfig, RunConfig
from unimo_ds.engine import ds_config, joined_gradients
from unimo_ds.engine.setup import make_engine

LEARNING_RATE = 0.1


class Model(nn.Module):
    """With a parameter that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(5, 7), nn.Linear(7, 3)
        self.unused = nn.Parameter(torch.ones(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.outer(self.inner(x).tanh())
        return result


def take_steps(clip_norm: float) -> tuple[list[float], list[torch.Tensor]]:
    """Gradient norms of three steps of two micro-batches, and the masters after them."""
    config = RunConfig(recipe="test", optimizer=OptimizerConfig(peak_learning_rate=LEARNING_RATE, clip_norm=clip_norm))
    engine = make_engine(Model(), config, ds_config.load("zero1_bf16", config, 1))
    assert isinstance(engine.wrapper, BF16_Optimizer)
    norms = []
    for step in range(3):
        engine.set_learning_rate(LEARNING_RATE)
        for index in range(2):
            inputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(2 * step + index)).bfloat16()
            engine.backward(engine.forward(inputs).float().square().sum(), is_boundary=index == 1)
        norms.append(engine.step().gradient_norm)
    masters = [engine.masters.read(one, "weight").clone() for one in engine.module.parameters()]
    engine.close()
    return norms, masters


def main() -> None:
    clip_norms, norm_of_deepspeed = (0.0, 0.1, 1e6), bf16_optimizer.get_global_norm_of_tensors
    joined = [take_steps(one) for one in clip_norms]
    assert bf16_optimizer.get_global_norm_of_tensors is not norm_of_deepspeed
    joined_gradients.join, bf16_optimizer.get_global_norm_of_tensors = lambda wrapper: None, norm_of_deepspeed
    for (norms, masters), (expected_norms, expected) in zip(joined, map(take_steps, clip_norms), strict=True):
        are_equal = all(torch.equal(one, other) for one, other in zip(masters, expected, strict=True))
        print(json.dumps({"norms": norms, "equal": are_equal and norms == expected_norms}))


if __name__ == "__main__":
    main()
