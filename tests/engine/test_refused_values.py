"""Values of a ds_config that only DeepSpeed can judge end in one sentence, not in its traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from unimo_ds.config import EngineConfig, RunConfig
from unimo_ds.engine import ds_config
from unimo_ds.engine.launch import stop_processes
from unimo_ds.engine.setup import make_engine
from unimo_ds.utils.errors import UserError


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    yield
    stop_processes()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"communication_data_type": "foo"}, "Got: foo"),
        (
            {"zero_optimization": {"stage": 1, "reduce_bucket_size": -5}},
            "reduce_bucket_size Input should be greater than",
        ),
        ({"fp16": {"enabled": True, "loss_scale": -1}, "bf16": {"enabled": False}}, "loss_scale"),
    ],
)
def test_deepspeeds_refusals_are_told_in_one_line(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}} | changes))
    config = RunConfig(recipe="test", engine=EngineConfig(deepspeed_config=str(path)))
    with pytest.raises(UserError, match=reason) as caught:
        make_engine(nn.Linear(3, 2), config, ds_config.load(str(path), config, 1))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
