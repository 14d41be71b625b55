"""base.sh on a real Slurm of three small nodes; `make cluster` does the same on four and eight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, why_not
from tests.cluster.rehearsal import rehearse

REASON = why_not()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with Cluster(folder / "slurm", 3, shared=[folder.parent]) as made:
        yield made


@pytest.mark.parametrize("script", ["base.sh", "large.sh", "evaluate.sh", "finetune.sh", "prepare.sh"])
def test_headers_are_accepted_as_they_are(cluster: Cluster, script: str) -> None:
    cluster.run("sbatch", "--test-only", "--nodes=2", f"slurm/{script}", "zero-shot")


def test_signal_and_lost_node_leave_the_same_bits(cluster: Cluster, tmp_path: Path) -> None:
    """Two nodes of one rank, a spare third: SIGUSR1 before the time limit, requeue, a node dies, requeue, same weights. The
    undisturbed job meets a node that does not see the data, and goes on without it."""
    outcome = rehearse(
        cluster,
        tmp_path,
        script="base.sh",
        nodes=2,
        tasks_per_node=1,
        total_steps=150,
        sbatch=["--nodes=2"],
        at_time_limit=False,
        blind=True,
    )
    assert outcome.nodes_excluded == ["node1"]
    assert outcome.equal_files
    assert outcome.equal_metrics
    assert len(outcome.starts) == 3
    assert outcome.nodes_of_starts[:2] == ["node[1-2]", "node[1-2]"]
    assert outcome.nodes_of_starts[2] == "node[2-3]"
