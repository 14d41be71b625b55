"""The scripts of slurm/ on a real Slurm of three small nodes; `make cluster` does base.sh and large.sh on four and eight."""

from __future__ import annotations

import ctypes.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, wait_until, why_not
from tests.cluster.rehearsal import rehearse, write_environment
from tests.data.prepare.raw import write_photographs
from tests.finetune import small
from tests.finetune.test_run import logged
from unimo_ds.data.prepare.command import main as prepare

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


PMIX = ctypes.util.find_library("pmix")


class Script:
    """A submission of one of the scripts that run on a single node."""

    def __init__(self, cluster: Cluster, folder: Path, name: str, *words: str, **variables: str) -> None:
        environment = write_environment(folder / "environment.sh", corpus=folder)
        self.cluster, self.log = cluster, folder / f"{name}.log"
        self.number = cluster.submit(f"--output={self.log}", *words, UNIMO_ENVIRONMENT=str(environment), **variables)

    def has_failed(self) -> bool:
        return self.cluster.job(self.number)["JobState"] == "FAILED"

    def finish(self) -> str:
        """Wait for success; returns the log."""
        state = self.cluster.wait(self.number, timeout=600)
        text = self.log.read_text()
        assert state == "COMPLETED", f"{state}\n{text[-6000:]}"
        return text


def test_fine_tuning_survives_its_time_limit_and_is_evaluated(cluster: Cluster, tmp_path: Path) -> None:
    """finetune.sh on two ranks, two seeds, the signal of the time limit in the second: the results of a job without it, which
    evaluate.sh finds too."""
    small.write_checkpoint(tmp_path / "start")
    data = small.write_sst2(tmp_path / "data", train=200, dev=40)
    changes = (
        "finetune.epochs=8",
        "logging.every_steps=1",
        "batch.global_samples=8",
        "optimizer.peak_learning_rate=1e-3",
    )
    words = [
        "--ntasks-per-node=2",
        "slurm/finetune.sh",
        "sst2",
        "--checkpoint",
        str(tmp_path / "start"),
        "--data",
        str(data),
        "--seeds",
        "2",
    ]
    words += [part for change in changes for part in ("--set", change)]
    runs = {name: tmp_path / f"run-{name}" for name in ("straight", "stopped")}
    jobs = {name: Script(cluster, tmp_path, name, *words, "--run-dir", str(run)) for name, run in runs.items()}
    lines = runs["stopped"] / "seed-1" / "metrics.jsonl"
    wait_until(
        lambda: (lines.is_file() and lines.read_text().count("\n") > 9) or jobs["stopped"].has_failed(),
        timeout=600,
        what="the second seed",
    )
    cluster.run("scancel", "--signal=USR1", jobs["stopped"].number)
    jobs["straight"].finish()
    log = jobs["stopped"].finish()
    assert cluster.job(jobs["stopped"].number)["Restarts"] == "1"
    assert "(SIGUSR1); the same command goes on" in log
    assert "resuming from" in log
    results = [json.loads((run / "results.json").read_text()) for run in runs.values()]
    assert results[0] == results[1]
    assert (results[0]["world_size"], len(results[0]["seeds"])) == (2, 2)
    for seed in ("seed-0", "seed-1"):
        assert logged(runs["straight"] / seed) == logged(runs["stopped"] / seed)

    target = tmp_path / "evaluated.json"
    best = runs["stopped"] / "seed-1" / "checkpoints" / "best"
    words = ["sst2", "--checkpoint", str(best), "--data", str(data), "--json", str(target)]
    Script(cluster, tmp_path, "evaluation", "slurm/evaluate.sh", *words).finish()
    assert json.loads(target.read_text())["metrics"] == results[0]["seeds"][1]["metrics"]


@pytest.mark.skipif(not PMIX, reason="Slurm has no PMIx here (tests/cluster/mini-slurm.sh install)")
def test_preparation_over_ranks_makes_the_same_bytes(cluster: Cluster, tmp_path: Path) -> None:
    """prepare.sh with `--executor mpi`: ranks of Slurm's PMIx on two nodes, as `docs/preparation.md` starts them."""
    write_photographs(tmp_path, 6)
    raw = ["--images", str(tmp_path / "photos.tar"), "--captions", str(tmp_path / "captions.tsv")]
    words = ["all", *raw, "--vocabulary-size", "300"]
    job = ["--nodes=2", "slurm/prepare.sh", *words, "--output", str(tmp_path / "ranks"), "--executor", "mpi"]
    Script(cluster, tmp_path, "prepare", *job, SLURM_MPI_TYPE="pmix").finish()
    assert prepare([*words, "--output", str(tmp_path / "alone"), "--workers", "1"]) == 0
    for path in (tmp_path / "alone").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "ranks" / path.name).read_bytes()
