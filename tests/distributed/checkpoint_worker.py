"""One rank of the checkpoint tests: `checkpoint_worker.py FOLDER OUT NAMES MOVES`.

NAMES: configurations to train, save and resume. MOVES: pairs SOURCE:TARGET, checkpoints of one to read into the other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.distributed.engine_worker import build, configuration, run_step, weights
from unimo_ds.engine import checkpoint
from unimo_ds.engine.launch import start_processes
from unimo_ds.engine.state import Best, Progress
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.running import run_command

SLOTS = ("weight", "exp_avg", "exp_avg_sq")
RATES = (1e-2, 9e-3, 8e-3, 7e-3, 6e-3)


def train(engine, start: int, stop: int) -> list:
    norms = []
    for step in range(start, stop):
        engine.set_learning_rate(RATES[step])
        norms.append(run_step(engine, micro_batches=3))
    return norms


def everything(engine) -> dict:
    with torch.no_grad():
        prediction = engine.forward(torch.arange(11).to(engine.device)).prediction.double().sum().item()
    return {slot: weights(engine, slot) for slot in SLOTS} | {"steps": engine.applied_steps, "prediction": prediction}


def save_and_resume(folder: Path, name: str) -> dict:
    """Five steps straight on, against three, a checkpoint, a fresh engine and two more."""
    run_dir, config = folder / name, configuration()
    engine = build(name)
    train(engine, 0, 3)
    progress = Progress(step=3, skipped=1, best=Best("recall", 0.5, 3))
    checkpoint.Saver(engine, run_dir, config).save(progress, wait=True)
    saved = everything(engine)
    straight_norms = train(engine, 3, 5)
    straight = everything(engine)
    engine.close()
    engine = build(name)
    loaded = checkpoint.load(engine, run_dir, config)
    restored = everything(engine)
    resumed_norms = train(engine, 3, 5)
    resumed = everything(engine)
    engine.close()
    return {
        "progress_equal": loaded is not None and loaded.progress == progress,
        "restored_equal": restored == saved,
        "resumed_equal": resumed == straight and straight_norms == resumed_norms,
        "saved": saved,
        "straight": straight,
    }


def load_elsewhere(folder: Path, source: str, target: str) -> dict:
    """A checkpoint of `source` read into an engine of `target`, and two steps from there."""
    engine = build(target)
    loaded = checkpoint.load(engine, folder / source, configuration())
    assert loaded is not None
    restored = everything(engine)
    train(engine, 3, 5)
    result = {"restored": restored, "after": everything(engine)}
    engine.close()
    return result


def damaged(folder: Path) -> dict:
    """Each rank's verdict over a damaged run: the older good checkpoint, or a refusal on every rank."""
    config, run_dir = configuration(), folder / "damaged"
    engine = build("zero1_fp32")
    rank = engine.communicator.rank
    verdicts = {}
    for step in (1, 2):
        train(engine, step - 1, step)
        checkpoint.Saver(engine, run_dir, config).save(Progress(step=step), wait=True)

    def attempt(name: str) -> None:
        try:
            loaded = checkpoint.load(engine, run_dir, config, say=lambda _: None)
            verdict = str(loaded.progress.step if loaded else None)
        except UserError as error:
            verdict = f"refused: {error}"
        verdicts[name] = engine.communicator.all_gather_object(verdict)

    def spoil(step: int, name: str) -> None:
        engine.communicator.all_gather_object(None)
        if rank == 0:
            path = run_dir / "checkpoints" / f"step-{step}" / name
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        engine.communicator.all_gather_object(None)

    attempt("good")
    spoil(2, "exp_avg.safetensors")
    attempt("newest damaged")
    spoil(1, "model.safetensors")
    attempt("all damaged")
    engine.close()
    return verdicts


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    names, moves = (argument.split(",") if argument else [] for argument in sys.argv[3:5])
    start_processes()
    results = {name: save_and_resume(folder, name) for name in names}
    if names:
        results["damaged"] = damaged(folder)
    results |= {move: load_elsewhere(folder, *move.split(":")) for move in moves}
    if torch.distributed.get_rank() == 0:
        output.write_text(json.dumps(results))


if __name__ == "__main__":
    sys.exit(run_command(main))
