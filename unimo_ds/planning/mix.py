"""How often a run reads what: its streams, with their shares and epochs."""

from __future__ import annotations

from dataclasses import dataclass

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.step_plan import order_of
from unimo_ds.utils.redact import redact


@dataclass(frozen=True)
class Stream:
    """One source of one kind, in one folder if folders have weights."""

    kind: str
    source: str
    folder: str
    """Empty if folders have no weights."""
    samples: int
    share: float
    """Fraction of all samples that the run reads."""
    epochs: float
    """How often each sample is read, at the recipe's own batch and steps."""


def mix_of(config: RunConfig, corpus: Corpus) -> tuple[Stream, ...]:
    """
    Raises:
        UserError: as `step_plan.order_of`.
    """
    visits = config.batch.global_samples * config.schedule.total_steps
    return tuple(
        Stream(
            kind=one.kind.name.lower(),
            source=corpus.source_names[one.source],
            folder=redact(corpus.folder_names[one.folder]) if config.data.folder_weights else "",
            samples=one.num_samples,
            share=float(one.share),
            epochs=float(one.share * visits / one.num_samples),
        )
        for one in order_of(corpus, config).mix
    )


def to_lines(mix: tuple[Stream, ...]) -> list[str]:
    """A table for people; empty if no data is given."""
    if not mix:
        return []
    width = max(len("source"), *(len(one.source) for one in mix))
    head = f"kind   {'source':{width}}      samples  share %    epochs{'  folder' if mix[0].folder else ''}"
    rows = [
        f"{one.kind:5}  {one.source:{width}} {one.samples:12,} {100 * one.share:8.2f} {one.epochs:9.3g}  {one.folder}".rstrip()
        for one in mix
    ]
    return ["", head, *rows]
