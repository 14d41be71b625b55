"""Who is blamed for what, from reports alone."""

from __future__ import annotations

import pytest

from unimo_ds.preflight.node import NodeReport
from unimo_ds.preflight.verdict import Link, NetworkReport, clock_remarks, judge

NODES = ["n1", "n2", "n3", "n4"]


def reports(**problems: str) -> dict[str, NodeReport]:
    return {
        node: NodeReport(
            node=node,
            address=f"{node}:1",
            problems=(problems[node],) if node in problems else (),
            versions={"torch": "2.13.0", "driver": "560"},
        )
        for node in NODES
    }


def network(*speeds: float, seconds: float = 0.01, **clocks: float) -> NetworkReport:
    ring = [(NODES[index], NODES[(index + 1) % 4]) for index in range(4)]
    return NetworkReport(
        ranks=4,
        all_reduce_bytes=10**8,
        all_reduce_seconds=seconds,
        links=tuple(Link(nodes, speed) for nodes, speed in zip(ring, speeds or (10, 10, 10, 10), strict=True)),
        clocks=dict.fromkeys(NODES, 1000.0) | clocks,
    )


def test_good_nodes() -> None:
    assert judge(NODES, reports(), {}, network()) == {}


def test_silent_and_unfit_nodes_are_named() -> None:
    given = reports(n2="3 of 8 GPUs are usable")
    del given["n4"]
    bad = judge(NODES, given, {}, None)
    assert bad.keys() == {"n2", "n4"}
    assert bad["n2"] == ["3 of 8 GPUs are usable"]
    assert "did not report" in bad["n4"][0]


@pytest.mark.parametrize("versions", [{"torch": "2.13.0", "driver": "550"}, {"torch": "2.13.0"}])
def test_the_odd_one_out_is_named(versions: dict[str, str]) -> None:
    given = reports() | {"n3": NodeReport(node="n3", address="n3:1", versions=versions)}
    assert judge(NODES, given, {}, None) == {
        "n3": [f"driver is {versions.get('driver', 'absent')}, on 3 other nodes 560"]
    }


def test_a_node_cut_off_is_told_from_those_that_miss_it() -> None:
    """n3 reaches nobody and is reached by nobody, however only some of them noticed."""
    bad = judge(NODES, reports(), {"n1": ["n3"], "n2": ["n3"], "n3": ["n1", "n4"]}, None)
    assert bad.keys() == {"n3"}
    assert "no connection with 3 of 3 nodes" in bad["n3"][0]


def test_two_that_do_not_meet_are_both_named() -> None:
    assert judge(NODES, reports(), {"n1": ["n2"]}, None).keys() == {"n1", "n2"}


def test_clocks() -> None:
    assert judge(NODES, reports(), {}, network(n2=1070.0)) == {"n2": ["its clock is +70.0 s off the others'"]}
    assert judge(NODES, reports(), {}, network(n2=990.0)) == {}
    assert clock_remarks(network(n2=990.0).clocks) == ["the clock of n2 is -10.0 s off"]
    assert clock_remarks({"n1": 5.0}) == []


def test_a_slow_node_is_told_from_its_neighbours() -> None:
    """Links n1-n2, n2-n3, n3-n4, n4-n1: both of n3's are slow, one each of n2's and n4's."""
    assert judge(NODES, reports(), {}, network(10, 1, 2, 9)) == {
        "n3": ["its links carry 2.00 GB/s at best, those of the others 5.50"]
    }
    assert judge(NODES, reports(), {}, network(10, 8, 2, 9)) == {}, "one slow link is no slow node"


def test_bandwidth_without_a_culprit_blames_no_node() -> None:
    slow = network(seconds=1.0)
    assert slow.bus_bandwidth == pytest.approx(2 * 3 / 4 * 1e8 / 1e9)
    assert judge(NODES, reports(), {}, slow) == {}
    bad = judge(NODES, reports(), {}, slow, min_bandwidth=0.5)
    assert bad.keys() == {""}
    assert "0.15 GB/s, 0.50 wanted" in bad[""][0]


def test_a_failed_collective_blames_no_node() -> None:
    bad = judge(NODES, reports(), {}, NetworkReport(problem="timed out"))
    assert bad == {"": ["the nodes are fit one by one, but not together: timed out"]}
