"""The scripts of slurm/ on a real Slurm of three small nodes; `make cluster` does base.sh and large.sh on four and eight."""

from __future__ import annotations

import ctypes.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import REPOSITORY, Cluster, wait_until, why_not
from tests.cluster.rehearsal import TINY, rehearse, write_environment
from tests.data.prepare.paper_corpora import write_paper_corpora
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


def test_the_whole_paper_is_one_command(cluster: Cluster, tmp_path: Path) -> None:
    """reproduce.sh on a few files of every corpus: corpora, training on two nodes, zero-shot, a task, and the tables of them."""
    corpus, held_out = write_paper_corpora(tmp_path)
    small.write_sst2(tmp_path / "tasks" / "sst2")
    environment = write_environment(tmp_path / "environment.sh", corpus=tmp_path / "data", tasks_per_node=1)
    words = [f"--output={tmp_path}/%x-%j.log"]
    with environment.open("a") as file:
        options = ("PREPARE", "EVALUATE", "FINETUNE")
        file.write("".join(f"{name}_OPTIONS=({words[0]})\n" for name in options))
        file.write(f"TRAIN_OPTIONS=({words[0]} --nodes=2)\n")
    run = tmp_path / "run"
    variables = {
        "CORPUS": str(corpus),
        "HELD_OUT": str(held_out),
        "TASKS": str(tmp_path / "tasks"),
        "RUN_DIR": str(run),
        "UNIMO_ENVIRONMENT": str(environment),
        "SEEDS": "1",
    }
    changes = ["schedule.total_steps=4", "data.source_weights=none", "contrast.related_images=1"]
    sets = [word for change in changes for word in ("--set", change)]
    said = cluster.run("bash", str(REPOSITORY / "slurm" / "reproduce.sh"), "base", *TINY, *sets, **variables)
    jobs = [word for word in said.replace(",", " ").split() if word.isdecimal()]
    assert len(jobs) == 5
    for job in jobs:
        assert cluster.wait(job, timeout=600) == "COMPLETED", "".join(log.read_text() for log in tmp_path.glob("*.log"))
    tuned = tmp_path / "run-finetuned"
    assert json.loads((tuned / "zero_shot.json").read_text())["metrics"]
    assert len(json.loads((tuned / "sst2" / "results.json").read_text())["seeds"]) == 1
    assert f"unimo report --ours base={tuned}" in said
