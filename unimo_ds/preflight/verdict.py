"""Decides from the reports of all nodes which are bad, in pure functions."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unimo_ds.preflight.node import NodeReport

_CLOCK_REMARK_SECONDS, _CLOCK_BAD_SECONDS = 2.0, 60.0
_SLOW_SHARE = 0.4
"""A node is slow if each of its links is slower than this fraction of the median link."""


@dataclass(frozen=True)
class Link:
    """A measured exchange between neighbours in the ring of nodes."""

    nodes: tuple[str, str]
    gigabytes_per_second: float


@dataclass(frozen=True)
class NetworkReport:
    """What the nodes measured together. problem: why they could not, if so."""

    problem: str = ""
    ranks: int = 0
    all_reduce_bytes: int = 0
    all_reduce_seconds: float = 0.0
    links: tuple[Link, ...] = ()
    clocks: Mapping[str, float] = field(default_factory=dict)
    """Time of each node's clock, in seconds, taken right after a barrier of all nodes."""

    @property
    def bus_bandwidth(self) -> float:
        """GB/s that each rank sends and receives in a ring all-reduce: 2 (n - 1) / n x bytes / seconds, NCCL's measure."""
        if not self.all_reduce_seconds:
            return 0.0
        return 2e-9 * (self.ranks - 1) / self.ranks * self.all_reduce_bytes / self.all_reduce_seconds


def judge(
    expected: Sequence[str],
    reports: Mapping[str, NodeReport],
    unreached: Mapping[str, Sequence[str]],
    network: NetworkReport | None,
    *,
    min_bandwidth: float = 0.0,
) -> dict[str, list[str]]:
    """What is wrong, by node; empty if the run may start.

    Args:
        expected: names of all nodes of the job.
        reports: of the nodes that reported.
        unreached: node -> the nodes that it could not connect to.
        network: None if it was not tested because a node was already bad.
        min_bandwidth: GB/s that the all-reduce must reach; 0: no minimum.
    """
    bad: dict[str, list[str]] = {}

    def blame(node: str, text: str) -> None:
        bad.setdefault(node, []).append(text)

    for node in expected:
        if node not in reports:
            blame(node, "did not report: Python does not start there, or the run directory is not shared")
        else:
            for problem in reports[node].problems:
                blame(node, problem)
    findings = [_disagreements(reports), _unreachable(reports, unreached)]
    if network is not None:
        findings += [_off_clocks(network.clocks), _slow(network.links)]
    for found in findings:
        for node, text in found.items():
            blame(node, text)
    if network is not None:
        if network.problem and not bad:
            blame("", f"the nodes are fit one by one, but not together: {network.problem}")
        elif not network.problem and network.bus_bandwidth < min_bandwidth and not bad:
            text = f"all-reduce reaches {network.bus_bandwidth:.2f} GB/s, {min_bandwidth:.2f} wanted (--min-bandwidth)"
            blame("", f"{text}, and no single node is to blame")
    return bad


def _disagreements(reports: Mapping[str, NodeReport]) -> dict[str, str]:
    """Nodes whose versions differ from the most common ones."""
    found: dict[str, str] = {}
    for key in sorted({key for report in reports.values() for key in report.versions}):
        values = {node: report.versions.get(key, "absent") for node, report in reports.items()}
        usual, count = Counter(values.values()).most_common(1)[0]
        for node, value in values.items():
            if value != usual:
                found.setdefault(node, f"{key} is {value}, on {count} other nodes {usual}")
    return found


def _unreachable(reports: Mapping[str, NodeReport], unreached: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Nodes that are cut off: of every pair without a connection, the node with more such pairs; both if equal."""
    pairs = {frozenset((one, other)) for one, others in unreached.items() for other in others if one != other}
    counts = Counter(node for pair in pairs for node in pair)
    found: dict[str, str] = {}
    for pair in pairs:
        worst = max(counts[node] for node in pair)
        for node in pair:
            if counts[node] == worst and node in reports:
                text = f"no connection with {counts[node]} of {len(reports) - 1} nodes"
                found[node] = f"{text} (tried {reports[node].address}; NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)"
    return found


def _offsets(clocks: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each clock from the median one."""
    middle = statistics.median_low(clocks.values()) if clocks else 0.0
    return {node: clock - middle for node, clock in clocks.items()}


def _off_clocks(clocks: Mapping[str, float]) -> dict[str, str]:
    return {
        node: f"its clock is {offset:+.1f} s off the others'"
        for node, offset in _offsets(clocks).items()
        if abs(offset) > _CLOCK_BAD_SECONDS
    }


def clock_remarks(clocks: Mapping[str, float]) -> list[str]:
    """Clocks that are off, but only by so little that it matters only in logs."""
    return [
        f"the clock of {node} is {offset:+.1f} s off"
        for node, offset in _offsets(clocks).items()
        if _CLOCK_REMARK_SECONDS < abs(offset) <= _CLOCK_BAD_SECONDS
    ]


def _slow(links: Sequence[Link]) -> dict[str, str]:
    """Nodes whose links (at least two, of at least four in all) are all far slower than the median link."""
    if len(links) < 4:
        return {}
    median = statistics.median(link.gigabytes_per_second for link in links)
    found = {}
    for node in {node for link in links for node in link.nodes}:
        own = [link.gigabytes_per_second for link in links if node in link.nodes]
        if len(own) > 1 and max(own) < _SLOW_SHARE * median:
            found[node] = f"its links carry {max(own):.2f} GB/s at best, those of the others {median:.2f}"
    return found
