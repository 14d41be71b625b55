"""Tests of nodes together: which can connect, how fast an all-reduce over all of them is, and which link is slow."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist

from unimo_ds.preflight.verdict import Link, NetworkReport

_ROUNDS = 3
_KNOCK_SECONDS = 10.0


@contextlib.contextmanager
def doorbell() -> Iterator[int]:
    """Accept and close connections on a port of all interfaces, in the background; yields the port."""
    with socket.create_server(("", 0), backlog=512) as server:
        stopped = threading.Event()

        def answer() -> None:
            while not stopped.is_set():
                with contextlib.suppress(OSError):  # the caller is gone, or the server is being closed
                    server.accept()[0].close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        port = int(server.getsockname()[1])
        try:
            yield port
        finally:
            stopped.set()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            thread.join(timeout=5.0)


def unreachable(addresses: Mapping[str, str]) -> list[str]:
    """The nodes that cannot be connected to. addresses: node -> `host:port`."""
    found = []
    for node, address in addresses.items():
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()
        except OSError:
            found.append(node)
    return found


def try_network(
    node_of_rank: Sequence[str], device: torch.device, *, num_bytes: int, timeout: datetime.timedelta
) -> NetworkReport:
    """All-reduce over all ranks, then an exchange over each link of the ring of nodes. A collective over `torch.distributed`.

    node_of_rank: [world_size] names of nodes. num_bytes: of the fp32 tensor that is reduced. Creates and destroys the process
    group. An error is returned in the report, not raised, so that every rank still able to can report.
    """
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        return NetworkReport(problem=_first_line(error))
    try:
        return _measure(node_of_rank, device, num_bytes=num_bytes)
    except RuntimeError as error:
        return NetworkReport(problem=_first_line(error))
    finally:
        dist.destroy_process_group()


def _measure(node_of_rank: Sequence[str], device: torch.device, *, num_bytes: int) -> NetworkReport:
    world_size = dist.get_world_size()
    ones = torch.ones(max(1, num_bytes // 4), device=device)
    dist.all_reduce(ones)  # connections are made on first use
    if not bool((ones == world_size).all()):
        return NetworkReport(problem=f"an all-reduce of ones over {world_size} ranks is not {world_size} everywhere")
    ones.fill_(1.0)
    seconds = _seconds(device, lambda: dist.all_reduce(ones)) / _ROUNDS
    links = _links(node_of_rank, ones)
    dist.barrier()
    clocks = [clock for (clock,) in _gathered([time.time()])]
    return NetworkReport(
        ranks=world_size,
        all_reduce_bytes=4 * ones.numel(),
        all_reduce_seconds=seconds,
        links=links,
        clocks=dict(zip(node_of_rank, clocks, strict=True)),
    )


def _links(node_of_rank: Sequence[str], tensor: torch.Tensor) -> tuple[Link, ...]:
    """GB/s in each direction between the first ranks of neighbouring nodes, never two links of one node at a time."""
    nodes = list(dict.fromkeys(node_of_rank))
    first = [node_of_rank.index(node) for node in nodes]
    number = len(nodes)
    links = [(index, (index + 1) % number) for index in range(number if number > 2 else number - 1)]
    received = torch.empty_like(tensor)
    measured = [0.0] * len(links)
    for turn in range(3):
        for index, (one, other) in enumerate(links):
            # A ring of odd length needs a third turn for the link that closes it.
            if turn != (2 if number % 2 and index == number - 1 else index % 2):
                continue
            if dist.get_rank() in (first[one], first[other]):
                peer = first[other] if dist.get_rank() == first[one] else first[one]

                def exchange(peer: int = peer) -> None:
                    sending = dist.P2POp(dist.isend, tensor, peer)
                    for request in dist.batch_isend_irecv([sending, dist.P2POp(dist.irecv, received, peer)]):
                        request.wait()

                exchange()
                measured[index] = _ROUNDS * 4e-9 * tensor.numel() / _seconds(tensor.device, exchange)
        dist.barrier()
    best = [max(values) for values in zip(*_gathered(measured), strict=True)] if links else []
    return tuple(Link((nodes[one], nodes[other]), speed) for (one, other), speed in zip(links, best, strict=True))


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Of `_ROUNDS` calls."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _gathered(values: Sequence[float]) -> list[list[float]]:
    """Every rank's numbers, through gloo."""
    mine = torch.tensor(list(values), dtype=torch.float64)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return [part.tolist() for part in parts]


def _first_line(error: Exception) -> str:
    host = os.environ.get("MASTER_ADDR", "")
    return f"{str(error).splitlines()[0]} (rank 0 on {host})"
