"""A run that goes on with another number of ranks and another ZeRO stage, beside one that never changed.

    python -m tests.distributed.elastic                         ranks 4, 2, 3, 1 and stages 2, 3, 3, 1

The same global batches, sample for sample, and the loss of every step within rounding. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.distributed.launching import started, torchrun
from tests.distributed.test_train import SPOILING, arguments
from tests.runs import logged
from unimo_ds.data.prepare.scenes.writing import write_demo_corpus

STEPS_EACH = 6


@dataclass(frozen=True)
class Outcome:
    """The changing run against the straight one."""

    ranks: list[int]
    stages: list[str]
    steps: int
    samples: int
    equal_batches: bool
    """Whether every step read the same samples."""
    largest_loss_difference: float
    """Relative, over all steps and losses."""
    largest_norm_difference: float
    """The same of the gradient norm."""


def samples_by_step(notes: Path, num_ranks: int) -> dict[int, list[str]]:
    """Sorted keys of each step's global batch; a step that was read twice shows."""
    found: dict[int, list[str]] = defaultdict(list)
    for rank in range(num_ranks):
        path = notes.with_name(f"{notes.name}.{rank}")
        for line in path.read_text().splitlines() if path.is_file() else ():
            step, keys = json.loads(line)
            found[step] += keys
    return {step: sorted(keys) for step, keys in found.items()}


def run(notes: Path, corpus: Path, run_dir: Path, *, ranks: int, stage: str, total: int, stop: int | None) -> None:
    """Raises:
    AssertionError: it does not end as it should.
    """
    settings = {"schedule__total_steps": total, "data__num_workers": 0, "engine__deepspeed_config": stage}
    spoilt = f"note={notes}" + (f";stop={stop - 1}" if stop is not None else "")
    launcher = torchrun(ranks) if ranks > 1 else [sys.executable]
    with started([*launcher, str(SPOILING), spoilt, *arguments(corpus, run_dir, **settings)]) as family:
        output, _ = family.communicate(timeout=900)
    ended_well = family.returncode == 0 if stop is None else f"stopped at step {stop} (SIGUSR1)" in output
    assert ended_well, f"status {family.returncode}\n{output[-4000:]}"


def compare(folder: Path, ranks: Sequence[int], stages: Sequence[str]) -> Outcome:
    """Both runs in `folder`; the straight one on the last number of ranks and stage."""
    corpus, total = folder / "corpus", STEPS_EACH * len(ranks)
    write_demo_corpus(corpus, num_pairs=80, num_images=20, num_texts=20, num_held_out=8)
    straight, changing = folder / "straight", folder / "changing"
    run(folder / "straight.notes", corpus, straight, ranks=ranks[-1], stage=stages[-1], total=total, stop=None)
    for number, (count, stage) in enumerate(zip(ranks, stages, strict=True), start=1):
        stop = number * STEPS_EACH if number < len(ranks) else None
        run(folder / "changing.notes", corpus, changing, ranks=count, stage=stage, total=total, stop=stop)
    expected, found = logged(straight), logged(changing)
    assert sorted(expected) == sorted(found) == list(range(1, total + 1))
    batches = samples_by_step(folder / "straight.notes", max(ranks))

    def difference(prefix: str) -> float:
        return max(
            abs(found[step][name] - value) / abs(value)
            for step, values in expected.items()
            for name, value in values.items()
            if name.startswith(prefix) and value
        )

    return Outcome(
        ranks=list(ranks),
        stages=list(stages),
        steps=total,
        samples=sum(map(len, batches.values())),
        equal_batches=batches == samples_by_step(folder / "changing.notes", max(ranks)),
        largest_loss_difference=difference("loss/"),
        largest_norm_difference=difference("gradient_norm"),
    )


def main() -> int:
    """Returns 0 where batches are equal and losses agree to rounding."""
    with tempfile.TemporaryDirectory(prefix="unimo-elastic-") as name:
        outcome = compare(Path(name), (4, 2, 3, 1), ("zero2_fp32", "zero3_fp32", "zero3_fp32", "zero1_fp32"))
    print(json.dumps(asdict(outcome)))
    return 0 if outcome.equal_batches and outcome.largest_loss_difference < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
