"""The losses of twelve steps as they were written down: numerics, data order, masking and schedule change on purpose alone.

`python -m tests.test_reference_losses` writes the file anew; its diff belongs to the change that wanted it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

from tests.distributed.launching import started
from tests.distributed.test_train import TRAIN, arguments
from tests.runs import logged, write_small_corpus

FILE = Path(__file__).with_name("reference_losses.json")
RENEW = "python -m tests.test_reference_losses"
STEPS = 12
NAMES = ("loss/", "count/", "learning_rate", "gradient_norm", "positions")


def take_steps(folder: Path) -> dict[str, dict[str, float]]:
    """Twelve steps of every kind and objective, with dropout and two micro-batches, in fp32 on one thread."""
    write_small_corpus(folder / "demo")
    flags = arguments(
        folder / "demo" / "train",
        folder / "run",
        schedule__total_steps=STEPS,
        schedule__warmup_steps=4,
        batch__micro_batch_tokens=1536,
        data__num_workers=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        with started([sys.executable, str(TRAIN), *flags]) as process:
            output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return {
        str(step): {name: float(f"{value:.7g}") for name, value in values.items() if name.startswith(NAMES)}
        for step, values in logged(folder / "run").items()
    }


def test_twelve_steps_have_the_losses_that_were_written_down(tmp_path: Path) -> None:
    """Within 5e-5: other vector units, BLAS kernels and thread counts of one machine differ by 5e-7, in gradient norms by 3e-6; a
    layer norm's epsilon of 1e-6 instead of 1e-5 by 3e-4. Counts are whole numbers."""
    expected, found = json.loads(FILE.read_text()), take_steps(tmp_path)
    assert list(found) == list(expected)
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=5e-5), (
            f"step {step} is not as in {FILE.name}; where this change means it: {RENEW}, and commit the file with it"
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        FILE.write_text(json.dumps(take_steps(Path(made)), indent=1) + "\n")
