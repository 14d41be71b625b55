"""Assigns samples to ranks and micro-batches: a pure function of the index, equal on every rank.

Letters: B samples of a step, W ranks, M micro-batches per rank.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.draws import Integers
from unimo_ds.utils.errors import UserError

Split = tuple[tuple[Integers, ...], ...]
"""[W][M] rows among a step's samples, ascending; any may be empty."""


def estimate_costs(
    lengths: Integers, starts: Integers, *, hidden_size: int, shared_lengths: Integers | None = None
) -> NDArray[np.float64]:
    """Relative cost of each sample: sum over its sequences of n + n (n + s) / (6 h).

    lengths: [S] positions n of each sequence; shared_lengths: [S] positions s of another sequence that it sees, None: no
    sequence sees any; starts: [B + 1] offsets of the samples among them. Returns [B].
    A layer does 24 h^2 operations per position in its matrices, and 4 h per position and attended position in attention; heads
    and embeddings are ignored.
    """
    n = lengths.astype(np.float64)
    attended = n if shared_lengths is None else n + shared_lengths
    costs = n + n * attended / (6.0 * max(hidden_size, 1))
    result: NDArray[np.float64] = np.add.reduceat(costs, starts[:-1]) if len(starts) > 1 else costs[:0]
    return result


def split_step(
    costs: NDArray[Any],
    num_positions: NDArray[Any],
    pair_flags: NDArray[Any] | None = None,
    world_size: int = 1,
    micro_batch_tokens: int = 16384,
    *,
    name_of: Callable[[int], str] = "sample {}".format,
) -> Split:
    """Assign every sample to one rank and one of its micro-batches.

    costs: [B] from `step_plan.sample_costs`. num_positions: [B] stream positions. pair_flags: [B] bool, True for pairs; of equal
    costs pairs are then assigned first, so that they spread evenly. name_of: name of row i in an error.

    Every rank gets the same number of micro-batches: the fewest for which greedy assignment succeeds (largest cost first, to
    the least loaded micro-batch that can hold it), so that each is within the budget and costs are close to equal.

    Raises:
        UserError: a sample does not fit into a micro-batch by itself; it is named.
    """
    costs, sizes = np.asarray(costs, np.float64), np.asarray(num_positions, np.int64)
    if len(sizes) and sizes.max() > micro_batch_tokens:
        culprit = int(sizes.argmax())
        raise UserError(
            f"{name_of(culprit)} makes {sizes[culprit]} stream positions, more than batch.micro_batch_tokens="
            f"{micro_batch_tokens}; raise that, or lower data.max_text_tokens, data.max_regions or the contrast.* counts"
        )
    pairs = np.zeros(len(sizes), bool) if pair_flags is None else np.asarray(pair_flags, bool)
    order = np.lexsort((np.arange(len(sizes)), ~pairs, -costs))
    num_micro_batches = max(1, -(-int(sizes.sum()) // (world_size * micro_batch_tokens)))
    while True:
        bins = _fill(order, costs, sizes, num_bins=world_size * num_micro_batches, capacity=micro_batch_tokens)
        if bins is not None:
            break
        num_micro_batches += 1
    rows: list[list[int]] = [[] for _ in range(world_size * num_micro_batches)]
    for row, number in enumerate(bins.tolist()):
        rows[number].append(row)
    # Neighbouring bins go to different ranks, so ranks stay balanced even if bins are not.
    return tuple(
        tuple(np.array(rows[micro * world_size + rank], np.int64) for micro in range(num_micro_batches))
        for rank in range(world_size)
    )


def _fill(
    order: Integers, costs: NDArray[np.float64], sizes: Integers, *, num_bins: int, capacity: int
) -> Integers | None:
    """[B] bin of each sample, put in `order` into the cheapest bin that can hold it; None if one fits nowhere."""
    bins = np.empty(len(order), np.int64)
    heap = [(0.0, number, 0) for number in range(num_bins)]
    cost_list, size_list = costs.tolist(), sizes.tolist()
    for row in order.tolist():
        passed = []
        while heap and heap[0][2] + size_list[row] > capacity:
            passed.append(heapq.heappop(heap))
        if not heap:
            return None
        load, number, used = heap[0]
        heapq.heapreplace(heap, (load + cost_list[row], number, used + size_list[row]))
        for full in passed:
            heapq.heappush(heap, full)
        bins[row] = number
    return bins


def contrast_groups(is_pair: NDArray[Any], *, group_pairs: int) -> Integers:
    """[B] contrastive group of each sample: pairs in position order, `group_pairs` per group; 0: all in one.

    Samples that are not pairs get 0.
    """
    pairs = np.asarray(is_pair, bool)
    if not group_pairs:
        return np.zeros(len(pairs), np.int64)
    return np.where(pairs, (np.cumsum(pairs) - 1) // group_pairs, 0)
