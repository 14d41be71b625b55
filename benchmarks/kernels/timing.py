"""Times of contenders on a GPU or a CPU, interleaved: each round runs all of them, in a new order.

On a GPU each contender's forward, and its forward and backward, are captured as CUDA graphs, so that a row is the time of
the kernels, not of the Python that launches them; what cannot be captured is launched call by call, and its row says so.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

_REPLAYS = 20
"""Calls between two events: enough for some milliseconds, so that the clock's resolution does not matter."""


@dataclass(frozen=True)
class Contender:
    """Something to time. call: from the leaves to the output; the output's gradient is `upstream`."""

    call: Callable[..., torch.Tensor]
    leaves: tuple[torch.Tensor, ...]
    upstream: torch.Tensor


@dataclass(frozen=True)
class Times:
    """Of one contender, over the rounds; in milliseconds and MiB."""

    forward_ms: float
    both_ms: float
    """Forward and backward; median, like `forward_ms`."""
    worst_both_ms: float
    extra_mib: float
    """Peak memory of forward and backward, beyond what was allocated before; 0 on a CPU, where it is not measured."""
    is_captured: bool
    """Whether CUDA graphs were timed."""


class Rows:
    """Dataclasses of one kind, printed as a table during measuring, and kept in a JSON file if something later fails."""

    def __init__(self, kind: type, path: str | None, head: Mapping[str, str]) -> None:
        """path: of the file; None: no file. head: what the file says about all rows."""
        self._path, self._head, self._rows = path, head, list[Any]()
        names = [item.name.replace("_", " ") for item in fields(kind)]
        print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")

    def add(self, row: Any) -> None:
        self._rows.append(row)
        cells = [f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in asdict(row).values()]
        print("| " + " | ".join(cells) + " |", flush=True)
        if self._path:
            with open(self._path, "w") as file:
                json.dump({**self._head, "rows": [asdict(one) for one in self._rows]}, file, indent=1)


def measure(contenders: Mapping[str, Contender], *, rounds: int) -> dict[str, Times]:
    """Every contender's times. The first of `rounds` + 1 rounds warms up."""
    runs = {name: _runner(contender) for name, contender in contenders.items()}
    memory = {name: _extra_memory(contender) for name, contender in contenders.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    order, shuffler = list(contenders), random.Random(1)
    for index in range(rounds + 1):
        shuffler.shuffle(order)
        for name in order:
            forward, both, _ = runs[name]
            pair = (forward(), both())
            if index:
                found[name].append(pair)
    return {
        name: Times(
            statistics.median(forward for forward, _ in pairs),
            statistics.median(both for _, both in pairs),
            max(both for _, both in pairs),
            memory[name],
            runs[name][2],
        )
        for name, pairs in found.items()
    }


def _both(contender: Contender) -> Sequence[torch.Tensor]:
    leaves = [leaf.detach().requires_grad_() for leaf in contender.leaves]
    return torch.autograd.grad(contender.call(*leaves), leaves, contender.upstream)


def _forward(contender: Contender) -> torch.Tensor:
    """Forward as in training: it keeps what the backward pass needs."""
    return contender.call(*[leaf.detach().requires_grad_() for leaf in contender.leaves])


def _runner(contender: Contender) -> tuple[Callable[[], float], Callable[[], float], bool]:
    if contender.upstream.device.type != "cuda":
        return (lambda: _host_ms(lambda: _forward(contender))), (lambda: _host_ms(lambda: _both(contender))), False
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            _both(contender)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graphs = [_captured(lambda: _forward(contender)), _captured(lambda: _both(contender))]
    if graphs[0] is None or graphs[1] is None:
        return (lambda: _device_ms(lambda: _forward(contender))), (lambda: _device_ms(lambda: _both(contender))), False
    forward, both = graphs[0].replay, graphs[1].replay
    return (lambda: _device_ms(forward)), (lambda: _device_ms(both)), True


def _captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph | None:
    """A graph of the call; None if it waits for the device or does something else that a capture forbids."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph


def _device_ms(run: Callable[[], object]) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    run()
    start.record()
    for _ in range(_REPLAYS):
        run()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / _REPLAYS


def _host_ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _extra_memory(contender: Contender) -> float:
    if contender.upstream.device.type != "cuda":
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _both(contender)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
