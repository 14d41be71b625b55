"""Choice of an op's code path. A named path that cannot run is an error with the reason, never replaced; `auto` logs once which
path it took, and why no earlier one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

import torch

from unimo_ds.utils.errors import UserError, nearest_name

logger = logging.getLogger(__name__)

Run = TypeVar("Run")


class Path(NamedTuple, Generic[Run]):
    """One way to compute an op."""

    run: Run
    """A function or object that computes the op, with the same interface on all its paths."""
    refusal: Callable[..., str | None] = lambda *_: None
    """(inputs that decide) -> why the path cannot run on them, None if it can."""


def choose(op: str, path: str, table: Mapping[str, Path[Run]], *inputs: torch.Tensor) -> Run:
    """The path's function.

    path: a name in `table`, or `auto`: the first that can run. table: paths in order of preference. inputs: what refusals
    depend on.

    Raises:
        UserError: unknown path, or one that cannot run, with the reason.
    """
    if path != "auto" and path not in table:
        raise UserError(f"{op} has no path {path!r}{nearest_name(path, ['auto', *table])}")
    refusals: dict[str, str] = {}
    for name in table if path == "auto" else (path,):
        reason = table[name].refusal(*inputs)
        if reason is None:
            if path == "auto" and not torch.compiler.is_compiling():
                _log_once(op, name, tuple(refusals.items()))
            return table[name].run
        refusals[name] = reason
    raise UserError(f"{op} cannot take path {path!r}: {'; '.join(refusals.values())}")


@functools.cache
def _log_once(op: str, chosen: str, refusals: tuple[tuple[str, str], ...]) -> None:
    passed_over = "; ".join(f"not {name}: {reason}" for name, reason in refusals)
    logger.info("%s: path %s%s", op, chosen, f" ({passed_over})" if passed_over else "")
