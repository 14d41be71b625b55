"""Communication between ranks: one class for many processes, with a single-process twin, so no `if distributed`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from unimo_ds.utils.differentiable_once import differentiable_once

_MAX_TENSORS = 16
"""Most tensors in one `pass_on`; the tags of its channels are this far apart."""


class SingleProcess:
    """The communicator of one process: every collective is the identity."""

    rank = 0
    world_size = 1
    device = torch.device("cpu")

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    def all_reduce_max(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    def all_gather_rows(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        return rows

    def row_counts(self, num_rows: int) -> list[int]:
        return [num_rows]

    def pass_on(
        self, tensors: Sequence[torch.Tensor], num_coming: int, *, channel: int
    ) -> Callable[[], list[torch.Tensor]]:
        return lambda: list(tensors)

    def broadcast_object(self, value: Any) -> Any:
        return value

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value]


class ProcessGroup:
    """Collectives over a torch.distributed group (gloo on CPU, NCCL on GPUs). Every rank must call them in the same order.

    device: of the tensors exchanged.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, device: torch.device | None = None) -> None:
        self.group = group
        self.device = device or torch.device("cpu")
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks; returns a new tensor of the same shape and dtype."""
        result = tensor.clone()
        dist.all_reduce(result, group=self.group)
        return result

    def all_reduce_max(self, tensor: torch.Tensor) -> torch.Tensor:
        """Maximum over ranks; returns a new tensor of the same shape and dtype."""
        result = tensor.clone()
        dist.all_reduce(result, op=dist.ReduceOp.MAX, group=self.group)
        return result

    def row_counts(self, num_rows: int) -> list[int]:
        """Number of rows on each rank."""
        mine = torch.tensor([num_rows], dtype=torch.int64, device=self.device)
        counts = [torch.zeros_like(mine) for _ in range(self.world_size)]
        dist.all_gather(counts, mine, group=self.group)
        return [int(count) for count in torch.cat(counts).tolist()]

    def all_gather_rows(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Rows of all ranks, in rank order, differentiable: the gradient of a row is the sum of its gradients on all ranks.

        rows: [n, ...], n may differ between ranks and may be 0. counts: n of every rank, from `row_counts`.
        Returns [sum n, ...].
        """
        gathered: torch.Tensor = _GatherRows.apply(rows, counts, self)  # type: ignore[no-untyped-call]
        return gathered

    def pass_on(
        self, tensors: Sequence[torch.Tensor], num_coming: int, *, channel: int
    ) -> Callable[[], list[torch.Tensor]]:
        """Start to send tensors to the next rank of a ring and to receive the previous rank's, whose lengths may differ.

        tensors: [n, ...] each, not to be changed until the result is called. num_coming: n of the previous rank. channel: tells
        concurrent calls apart. Returns a function that waits and returns what was received. No gradient.
        """
        peers = [(self.rank + step) % self.world_size for step in (1, -1)]
        after, before = peers if self.group is None else [dist.get_global_rank(self.group, peer) for peer in peers]
        coming = [tensor.new_empty((num_coming, *tensor.shape[1:])) for tensor in tensors]
        moves = []
        for place, (mine, other) in enumerate(zip(tensors, coming, strict=True)):
            tag = _MAX_TENSORS * channel + place
            moves += [dist.P2POp(dist.isend, mine.contiguous(), after, self.group, tag)] if mine.numel() else []
            moves += [dist.P2POp(dist.irecv, other, before, self.group, tag)] if other.numel() else []
        works = dist.batch_isend_irecv(moves) if moves else []

        def wait() -> list[torch.Tensor]:
            for work in works:
                work.wait()
            moves.clear()  # sent tensors must live until now
            return coming

        return wait

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value on every rank. Only plain objects made by this program."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group, device=self.device)
        return box[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order. Only plain objects made by this program."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values


class _GatherRows(torch.autograd.Function):
    """all_gather of ragged rows, padded to the longest; backward sums over ranks and takes this rank's slice."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, counts: Sequence[int], communicator: ProcessGroup) -> torch.Tensor:
        ctx.communicator, ctx.counts = communicator, counts
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        if max(counts):
            dist.all_gather(parts, padded, group=communicator.group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        if total.numel():
            dist.all_reduce(total, group=ctx.communicator.group)
        start = sum(ctx.counts[: ctx.communicator.rank])
        return total[start : start + ctx.counts[ctx.communicator.rank]], None, None


Communicator: TypeAlias = SingleProcess | ProcessGroup


def make_communicator(device: torch.device | None = None) -> Communicator:
    """The process group's communicator if one is initialised, the single-process twin otherwise."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return ProcessGroup(device=device)
    return SingleProcess()
