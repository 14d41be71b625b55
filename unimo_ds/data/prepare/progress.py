"""A progress bar if stderr is a terminal, otherwise nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], *, label: str, total: int | None = None, unit: str = "") -> Iterator[T]:
    """The items.

    total: their number, if they have no length. unit: plural noun for them, to show how many come in a second.
    """
    if not sys.stderr.isatty() or total == 0:
        yield from items
        return
    from rich import progress as bars
    from rich.console import Console
    from rich.text import Text

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(f"{task.speed or 0:.3g} {unit}/s")

    columns = [bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn()]
    columns += [Rate(), bars.TimeRemainingColumn()] if unit else [bars.TimeRemainingColumn()]
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
        yield from bar.track(items, total, description=label)
