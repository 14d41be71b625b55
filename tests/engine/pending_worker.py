"""How many parameters ZeRO-3 has gathered at most during a backward pass, with and without another forward pass before it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import nn

from unimo_ds.config import OptimizerConfig, RunConfig
from unimo_ds.engine import ds_config
from unimo_ds.engine.setup import make_engine

NUM_LAYERS = 6
AT_ONCE = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")


class Model(nn.Module):
    """Notes how many weights are gathered whenever the backward pass reaches a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(NUM_LAYERS))
        self.gathered: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
            if x.requires_grad:
                x.register_hook(self._note)
        return x

    def _note(self, _: torch.Tensor) -> None:
        self.gathered.append(sum(one.ds_status == ZeroParamStatus.AVAILABLE for one in self.parameters()))


def main() -> None:
    values = json.loads((ds_config.FOLDER / "zero3_fp32.json").read_text())
    values["zero_optimization"] |= {f"stage3_{name}": 0 for name in AT_ONCE}
    path = Path(sys.argv[1]) / "frugal.json"
    path.write_text(json.dumps(values))
    config = RunConfig(recipe="test", optimizer=OptimizerConfig(peak_learning_rate=0.1))
    model = Model()
    engine = make_engine(model, config, ds_config.load(str(path), config, 1))
    inputs = torch.ones(2, 4)
    for num_between in (0, 0, 1, 2):
        model.gathered.clear()
        output = engine.forward(inputs)
        with torch.no_grad():
            for _ in range(num_between):
                engine.forward(inputs)
        engine.backward(output.square().sum(), is_boundary=True)
        print(json.dumps({"between": num_between, "gathered": max(model.gathered)}))
        engine.step()


if __name__ == "__main__":
    main()
