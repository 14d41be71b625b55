"""What ranks add up is in the precision of the weights, or in the one that a file in `ds_configs` names (docs/deepspeed.md)."""

from __future__ import annotations

import json
from pathlib import Path

from tests.distributed.launching import launch
from unimo_ds.engine.ds_config import FOLDER

NAMES = ("zero1_bf16", "zero2_bf16", "zero3_bf16", "zero1_fp16")
ROUNDED = {"bf16": 2.0**-9, "fp16": 2.0**-12}
"""Less than one rounding of 8 or 11 bits leaves of random numbers."""


def test_sums_in_fp32_keep_what_was_accumulated_in_fp32(tmp_path: Path) -> None:
    for name in NAMES:
        values = json.loads((FOLDER / f"{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
        (tmp_path / f"{name}_sums.json").write_text(json.dumps(values | {"communication_data_type": "fp32"}))
    result = tmp_path / "result.json"
    names = [name for one in NAMES for name in (one, f"{one}_sums")]
    launch(Path(__file__).with_name("gradient_sums_worker.py"), [str(tmp_path), str(result), *names], processes=2)
    found = json.loads(result.read_text())
    for name in NAMES:
        rounding = ROUNDED[name[-4:]]
        assert rounding / 4 < found[name] < 4 * rounding, (name, found)
        assert found[f"{name}_sums"] < rounding / 1000, (name, found)
