"""Shared candidates in a ring: images stay on their rank, texts pass from rank to rank, and no rank ever holds all of either.

At each stop a rank scores the block of texts that it holds against its own images, in one matrix: rows are the images' queries,
columns the texts'. So each score of the step is computed once; gathering computes it twice. The columns' running log-sum-exps
travel with the block and are complete when it is back at its own rank; so are, in the backward pass, the gradients of the
texts. The next block is received while this one is processed.

    stop s of rank r: the texts of rank r - s        after the last stop everything is one step from its own rank

The order of sums follows the ring, so results differ from gathering by rounding.

Letters: P local pairs, A local image candidates, B local text candidates, D vector size, k own items of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from unimo_ds.ops.contrastive import NO_ITEM, Candidates, Functions
from unimo_ds.ops.own_precision import own_precision
from unimo_ds.ops.score_blocks import Keys, Logs
from unimo_ds.utils.communicator import Communicator
from unimo_ds.utils.differentiable_once import differentiable_once

_TEXTS, _RESULTS = 0, 1
"""Channels: blocks, sent before they are processed, and results, sent after."""


@dataclass(frozen=True)
class RingCandidates:
    """This rank's candidates; its pairs' own images and texts are the first P of each."""

    images: Candidates
    """[A, D] vectors of this rank only."""
    texts: Candidates
    """[B, D]"""
    own_images: torch.Tensor
    """[P, k] int64, keys of the pair's own images, padded with NO_ITEM; k is the same on every rank."""
    own_texts: torch.Tensor
    """[P, k] int64, likewise for texts."""
    text_counts: Sequence[int]
    """Texts of each rank."""
    communicator: Communicator

    def log_sum_exps(
        self, inverse_temperature: torch.Tensor, functions: Functions
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `contrastive.InBatch`. Collective: every rank calls it, and its backward."""
        num_pairs = len(self.own_images)
        keys = Keys(
            self.images.keys,
            self.texts.keys,
            _filled(self.own_texts, len(self.images.keys)),
            _filled(self.own_images, len(self.texts.keys)),
        )
        ring = _Ring(self.communicator, self.text_counts)
        vectors = (self.images.vectors, self.texts.vectors)
        logs = Logs(*_LogSumExps.apply(*vectors, inverse_temperature, keys, ring, functions))  # type: ignore[no-untyped-call]
        best = torch.stack((logs.best_rows[:num_pairs], logs.best_columns[:num_pairs]), 1)
        return logs.rows[:num_pairs], logs.columns[:num_pairs], best


def _filled(items: torch.Tensor, count: int) -> torch.Tensor:
    """[count, k], padded with rows of NO_ITEM."""
    return functional.pad(items, (0, 0, 0, count - len(items)), value=NO_ITEM)


@dataclass(frozen=True)
class _Ring:
    communicator: Communicator
    counts: Sequence[int]
    """Rows of each rank's block."""

    @property
    def stops(self) -> int:
        return len(self.counts)

    def pass_on(self, stop: int, tensors: Sequence[torch.Tensor], channel: int) -> Callable[[], list[torch.Tensor]]:
        """Send tensors of this stop's block to the next rank; call the result to receive the same of the next block."""
        coming = (self.communicator.rank - stop - 1) % self.stops
        return self.communicator.pass_on(tensors, self.counts[coming], channel=channel)


class _LogSumExps(torch.autograd.Function):
    """[A] and [B] log-sum-exps and best cosines of this rank's images and texts over those of all ranks."""

    @staticmethod
    @own_precision
    def forward(
        ctx: Any,
        images: torch.Tensor,
        texts: torch.Tensor,
        inverse: torch.Tensor,
        keys: Keys,
        ring: _Ring,
        functions: Functions,
    ) -> Logs:
        ctx.ring, ctx.functions, ctx.wide = ring, functions, images.dtype
        images, texts = functions.travelling(images), functions.travelling(texts)
        block = [texts, keys.columns, keys.column_items]
        mine: list[torch.Tensor] = []
        theirs: list[torch.Tensor] = []
        for stop in range(ring.stops):
            coming = ring.pass_on(stop, block, _TEXTS) if stop + 1 < ring.stops else None
            here = Keys(keys.rows, block[1], keys.row_items, block[2])
            logs = functions.log_sum_exps(images, block[0], inverse, here, both=True)
            mine = _joined(mine, logs.rows, logs.best_rows)
            theirs = ring.pass_on(stop, _joined(theirs, logs.columns, logs.best_columns), _RESULTS)()
            block = coming() if coming is not None else block
        ctx.save_for_backward(images, texts, inverse, *keys, mine[0], theirs[0])
        ctx.mark_non_differentiable(mine[1], theirs[1])
        return Logs(*mine, *theirs)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        images, texts, inverse, row_keys, column_keys, row_items, column_items, row_logs, column_logs = (
            ctx.saved_tensors
        )
        ring: _Ring = ctx.ring
        of_rows, of_columns = upstream[0], upstream[2].contiguous()
        block = [texts, column_keys, column_items, column_logs, of_columns]
        to_images, to_inverse = torch.zeros_like(images, dtype=ctx.wide), torch.zeros_like(inverse)
        to_texts: list[torch.Tensor] = []
        for stop in range(ring.stops):
            coming = ring.pass_on(stop, block, _TEXTS) if stop + 1 < ring.stops else None
            vectors, columns, items, logs, of_block = block
            here = Keys(row_keys, columns, row_items, items)
            found = ctx.functions.gradients(
                of_rows, of_block, images, vectors, inverse, here, row_logs, logs, both=True
            )
            to_images += found[0]
            to_inverse += found[2]
            carried = [found[1] if not to_texts else to_texts[0] + found[1]]
            to_texts = ring.pass_on(stop, carried, _RESULTS)()
            block = coming() if coming is not None else block
        return to_images, to_texts[0].to(ctx.wide), to_inverse, None, None, None


def _joined(before: list[torch.Tensor], logs: torch.Tensor, best: torch.Tensor) -> list[torch.Tensor]:
    return [torch.logaddexp(before[0], logs), torch.maximum(before[1], best)] if before else [logs, best]
