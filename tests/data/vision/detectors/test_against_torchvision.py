"""Operators and networks of torchvision, in an environment of their own, against this project's.

torchvision wants the torch it was built for, which need not be the one of this environment. `make torchvision-environment` makes
one in `.venv-torchvision`; another interpreter can be named in UNIMO_TORCHVISION_PYTHON.
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
INTERPRETER = Path(os.environ.get("UNIMO_TORCHVISION_PYTHON", ROOT / ".venv-torchvision" / "bin" / "python"))


@pytest.mark.skipif(not INTERPRETER.exists(), reason="no torchvision: make torchvision-environment")
@pytest.mark.parametrize("part", ["operators", "bottom_up", "adapter"])
def test_agrees_with_torchvision(part: str) -> None:
    done = subprocess.run(
        [str(INTERPRETER), "-m", "tests.data.vision.detectors.in_torchvision", part],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "agreed"


def test_without_torchvision_the_extractor_says_so(tmp_path: Path) -> None:
    """In an environment whose torchvision is not there or does not load."""
    import torch
    from safetensors.torch import save_file

    from unimo_ds.data.vision import extractors
    from unimo_ds.utils.errors import UserError

    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        pass
    else:
        pytest.skip("this environment has torchvision")
    save_file({"roi_heads.box_predictor.cls_score.weight": torch.zeros(5, 9)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"needs torchvision.*bottom-up, which needs none"):
        extractors.ExtractorChoice(extractor=Path("torchvision"), weights=tmp_path / "weights.safetensors").made()
