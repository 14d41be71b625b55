"""One rank of the tests of rates by part: `rate_factors_worker.py FOLDER OUT NAMES MOVES`, both as in checkpoint_worker.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.distributed.checkpoint_worker import everything, train
from tests.distributed.engine_worker import build, configuration, run_step
from unimo_ds.engine import checkpoint
from unimo_ds.engine.launch import start_processes
from unimo_ds.engine.state import Progress
from unimo_ds.utils.running import run_command

FACTORS = {"embedding": 0.0, "inner": 0.5, "inner.2": 0.1, "inner.2.bias": 0.0, "temperature": 2.0}
"""Frozen: a table that is used twice, once outside its module, and the bias of a module whose weight is trained."""
TURNED = {"inner": 0.0}
"""What was frozen is trained, and part of what was trained is frozen."""


def save_and_resume(folder: Path, name: str) -> dict:
    """Five steps straight on, a dropped one between, against three, a checkpoint, a fresh engine and two more."""
    run_dir, config = folder / name, configuration(rate_factors=FACTORS)
    engine = build(name, FACTORS)
    frozen = [key for key, parameter in engine.module.named_parameters() if not parameter.requires_grad]
    steps = train(engine, 0, 3)
    before = everything(engine)
    dropped = run_step(engine, micro_batches=3, is_finite=False)
    dropped_leave_no_trace = not dropped["applied"] and everything(engine) == before
    checkpoint.Saver(engine, run_dir, config).save(Progress(step=3), wait=True)
    saved = everything(engine)
    steps += train(engine, 3, 5)
    straight = everything(engine)
    engine.close()
    engine = build(name, FACTORS)
    assert checkpoint.load(engine, run_dir, config) is not None
    restored = everything(engine)
    train(engine, 3, 5)
    resumed = everything(engine)
    engine.close()
    return {
        "frozen": frozen,
        "steps": steps,
        "dropped_leave_no_trace": dropped_leave_no_trace,
        "restored_equal": restored == saved,
        "resumed_equal": resumed == straight,
        "saved": saved,
        "straight": straight,
    }


def load_elsewhere(folder: Path, source: str, target: str, turned: str = "") -> dict:
    """A checkpoint of `source` read into an engine of `target`, and two steps from there. turned: with `TURNED`."""
    factors = TURNED if turned else FACTORS
    engine = build(target, factors)
    assert checkpoint.load(engine, folder / source, configuration(rate_factors=factors)) is not None
    restored = everything(engine)
    train(engine, 3, 5)
    result = {"restored": restored, "after": everything(engine)}
    engine.close()
    return result


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    names, moves = (argument.split(",") if argument else [] for argument in sys.argv[3:5])
    start_processes()
    results = {name: save_and_resume(folder, name) for name in names}
    results |= {move: load_elsewhere(folder, *move.split(":")) for move in moves}
    if torch.distributed.get_rank() == 0:
        output.write_text(json.dumps(results))


if __name__ == "__main__":
    sys.exit(run_command(main))
