"""Ranks add gradients in the precision that a file in `ds_configs` names, or that of the weights (docs/deepspeed.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.distributed.launching import launch
from unimo_ds.engine.ds_config import FOLDER

EXACT = ("zero1_bf16", "zero2_bf16", "zero3_bf16")
ROUNDED = {"zero0_bf16": 2.0**-9, "zero1_bf16_sums": 2.0**-9, "zero1_fp16": 2.0**-12}
"""What one rounding to 8 or 11 bits leaves of random numbers, somewhat less in the mean."""


def test_sums_in_fp32_keep_what_was_accumulated_in_fp32(tmp_path: Path) -> None:
    for name in (*EXACT, "zero0_bf16", "zero1_fp16"):
        shutil.copy(FOLDER / f"{name}.json", tmp_path)
    values = json.loads((FOLDER / "zero1_bf16.json").read_text())
    (tmp_path / "zero1_bf16_sums.json").write_text(json.dumps(values | {"communication_data_type": "bf16"}))
    result = tmp_path / "result.json"
    worker = Path(__file__).with_name("gradient_sums_worker.py")
    launch(worker, [str(tmp_path), str(result), *EXACT, *ROUNDED], processes=2)
    found = json.loads(result.read_text())
    for name in EXACT:
        assert found[name] < 1e-6, (name, found)
    for name, rounding in ROUNDED.items():
        assert rounding / 4 < found[name] < 4 * rounding, (name, found)
