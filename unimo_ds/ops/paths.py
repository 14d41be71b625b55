"""Choice of the code path of an op: by name, refused with the reason, never silently replaced; `auto` logs once what it took
and why not what it would have taken first."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping

from unimo_ds.utils.errors import UserError, nearest_name

logger = logging.getLogger(__name__)


def choose(op: str, path: str, refusals: Mapping[str, str | None]) -> str:
    """The path to run.

    path: a name in `refusals`, or `auto`: the first that is not refused. refusals: per path in order of preference, why it
    cannot run on these inputs, or None where it can.

    Raises:
        UserError: unknown path, or one that cannot run, with the reason.
    """
    if path == "auto":
        chosen = next(name for name, reason in refusals.items() if reason is None)
        _log_once(op, chosen, tuple(refusals.items()))
        return chosen
    if path not in refusals:
        raise UserError(f"{op} has no path {path!r}{nearest_name(path, ['auto', *refusals])}")
    reason = refusals[path]
    if reason is not None:
        raise UserError(f"{op} cannot take path {path!r}: {reason}")
    return path


def may_take_kernels(path: str) -> bool:
    """Whether a choice of path can end at the kernels, so that a missing library is worth compiling."""
    return path in ("native", "auto")


@functools.cache
def _log_once(op: str, chosen: str, refusals: tuple[tuple[str, str | None], ...]) -> None:
    passed_over = "; ".join(f"not {name}: {reason}" for name, reason in refusals if reason is not None)
    logger.info("%s: path %s%s", op, chosen, f" ({passed_over})" if passed_over else "")
