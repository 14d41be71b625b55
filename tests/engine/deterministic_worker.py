"""Gradients of one training batch, computed ten times on this machine's device under `engine.deterministic`."""

from __future__ import annotations

import json
import os

import torch

from tests import support
from unimo_ds.config import EngineConfig
from unimo_ds.data.packing import pack
from unimo_ds.engine.launch import start_processes
from unimo_ds.models.unimo import Unimo, anchor


def main() -> None:
    device = start_processes(EngineConfig(deterministic=True))
    examples = [support.example(position) for position in range(40)]
    batch = pack(examples, feature_size=support.FEATURES, classes_per_region=support.STORED_CLASSES).to(device)
    model = Unimo(support.model_config(), seed=5).train().to(device)
    found = []
    for _ in range(10):
        model.zero_grad()
        output = model(batch)
        parts = (output.language_losses, output.region_predictions, output.region_class_logits, output.pooled_images)
        loss = sum((part.square().sum() for part in parts), start=output.pooled_texts.sum() + anchor(output))
        loss.backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    told = {
        "switched": torch.are_deterministic_algorithms_enabled(),
        "workspaces": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "equal": [torch.equal(one, found[0]) for one in found],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
