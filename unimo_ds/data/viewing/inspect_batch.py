"""One rank's data for one step, read as in training: the body of `unimo inspect batch`."""

from __future__ import annotations

from typing import Any, NamedTuple

from unimo_ds.config import RunConfig
from unimo_ds.data.schema import StepBatch
from unimo_ds.data.step_reader import ReadableCorpus, StepReader, TextTokenizer
from unimo_ds.data.viewing.unpacking import summary
from unimo_ds.utils.errors import UserError


class Place(NamedTuple):
    """Part of a run: a step, from 0, and the rank that reads it."""

    step: int
    rank: int
    world_size: int


def read_step(corpus: ReadableCorpus, config: RunConfig, place: Place, tokenizer: TextTokenizer) -> StepBatch:
    """The rank's micro-batches.

    Raises:
        UserError: numbers out of range, and as `StepReader`.
    """
    step, rank, world_size = place
    if not (0 <= rank < world_size and 0 <= step < 2**62 // config.batch.global_samples):
        raise UserError(
            f"--step {step} --rank {rank} --world-size {world_size}: a step from 0, in a stream of 2**62 samples, and a rank "
            "from 0 below the world size are wanted"
        )
    return StepReader(corpus, tokenizer, config, rank=rank, world_size=world_size).read(step)


def to_dict(step: StepBatch, place: Place) -> dict[str, Any]:
    """Plain values."""
    return {
        **place._asdict(),
        "micro_batches": [summary(batch) for batch in step.micro_batches],
        "bad_samples": [vars(bad) for bad in step.bad_samples],
    }


def to_text(found: dict[str, Any], config: RunConfig) -> str:
    """A table per micro-batch. found: from `to_dict`."""
    count = len(found["micro_batches"])
    lines = [
        f"{heading(found)}: {count} micro-batch{'es' * (count != 1)} of at most "
        f"{config.batch.micro_batch_tokens:,} positions"
    ]
    for number, one in enumerate(found["micro_batches"], start=1):
        lines.append(f"\nmicro-batch {number}: {facts(one)}")
        lines += [
            f"  {name:40} {counts['sequences']:6,} sequences {counts['positions']:8,} positions"
            for name, counts in one["by_purpose"].items()
        ]
    return "\n".join([*lines, *map(of_bad_sample, found["bad_samples"])])


def heading(found: dict[str, Any]) -> str:
    return f"step {found['step']}, rank {found['rank']} of {found['world_size']}"


def of_bad_sample(bad: dict[str, str]) -> str:
    return f"{bad['key']} could not be read ({bad['reason']}); in its place: {bad['substitute']}"


def facts(found: dict[str, Any]) -> str:
    """A sentence or two about a micro-batch. found: its `summary`."""
    positions, padded = found["positions"], found["padded_positions"]
    if not positions:
        return "empty; other ranks have more to do in this step"
    words = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in found["predicted_tokens"].items())
    return (
        f"{positions:,} positions in {found['sequences']:,} sequences of {len(found['samples'])} samples; padded to the longest, "
        f"{found['longest']}, they would take {padded:,}, {padded / positions:.1f} times as many. "
        f"Predicted: tokens ({words or 'none'}), {found['masked_regions']:,} regions. "
        f"{found['pairs']:,} pairs with {found['private_scores']:,} scores of their own."
    )
