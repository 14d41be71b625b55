"""What DeepSpeed would forgive is refused here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from unimo_ds.config import OptimizerConfig, RunConfig
from unimo_ds.engine import ds_config
from unimo_ds.utils.errors import UserError

CONFIG = RunConfig(recipe="test", optimizer=OptimizerConfig(clip_norm=0.7))
ALL = sorted(path.stem for path in ds_config.FOLDER.glob("*.json"))


@pytest.mark.parametrize("name", ALL)
def test_every_shipped_file_loads(name: str) -> None:
    values = ds_config.load(name, CONFIG, 4)
    assert f"zero{ds_config.zero_stage(values)}" in name
    assert name.endswith(ds_config.precision(values))
    assert ds_config.offloads_optimizer(values) == ("offload" in name)


def test_the_documented_set_is_shipped() -> None:
    expected = {f"zero{stage}_{precision}" for stage in range(4) for precision in ("fp32", "bf16", "fp16")}
    assert expected | {"zero2_offload_bf16", "zero3_offload_bf16"} == set(ALL)


def test_deepspeed_is_told_not_to_wait_for_the_device_to_time_steps() -> None:
    timers = DeepSpeedConfig(ds_config.load("zero1_bf16", CONFIG, 1)).timers_config
    assert not timers.enabled
    assert not timers.synchronized


def test_batch_and_clipping_come_from_the_recipe() -> None:
    values = ds_config.load("zero2_bf16", CONFIG, 4)
    assert values["train_batch_size"] == 4
    assert values["train_micro_batch_size_per_gpu"] == values["gradient_accumulation_steps"] == 1
    assert values["gradient_clipping"] == 0.7
    off = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(clip_norm=0.0))
    assert ds_config.load("zero2_bf16", off, 4)["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero_optimisation": {}}, "did you mean 'zero_optimization'"),
        ({"zero_optimization": {"stge": 2}}, "did you mean 'stage'"),
        ({"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}, "did you mean 'device'"),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, "'auto'"),
        ({"gradient_clipping": 1.0}, "optimizer.clip_norm"),
        ({"train_batch_size": 8}, "batch.global_samples"),
        ({"zero_optimization": {"stage": True}}, "must be int"),
        ({"zero_optimization": {"stage": 4}}, "0, 1, 2 or 3"),
        ({"zero_optimization": 2}, "must be an object"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "keep one"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, "NVMe"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "stage of 1 or more"),
        ({"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}, "stage of 1 or more"),
        ({"data_types": {"grad_accum_dtype": "float32"}}, "must be fp32, bf16 or fp16"),
        ([], "where an object belongs"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, values: object, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        ds_config.load(str(path), CONFIG, 1)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'zero1_bf16'"):
        ds_config.load("zero1_bf61", CONFIG, 1)
    with pytest.raises(UserError, match="no such file"):
        ds_config.load(str(tmp_path / "absent.json"), CONFIG, 1)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        ds_config.load(str(tmp_path / "broken.json"), CONFIG, 1)
