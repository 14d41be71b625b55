"""Evaluation over ranks gives exactly what one rank finds: uneven shares, fewer samples than ranks, partitioned weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.launching import launch
from tests.evaluation import small
from unimo_ds.data.corpus import Corpus
from unimo_ds.evaluation.held_out import evaluate_held_out

WORKER = Path(__file__).with_name("evaluation_worker.py")


@pytest.mark.parametrize(("processes", "stages"), [(3, ""), (2, "1,3")])
def test_ranks_agree_with_one_process(tmp_path: Path, processes: int, stages: str) -> None:
    # Two pairs are fewer than the micro-batches of three ranks; nine do not divide among two or three.
    folders = [small.write_corpus(tmp_path / name, num_pairs=number) for name, number in (("two", 2), ("nine", 9))]
    output = tmp_path / "reports.json"
    launch(WORKER, [str(output), stages, *map(str, folders)], processes=processes)
    reports = json.loads(output.read_text())
    assert len(reports) == 2 * (1 + len(stages.split(",")) if stages else 1)
    for folder in folders:
        config = small.run_config(folder)
        alone = evaluate_held_out(small.make_engine(config), Corpus.open(folder), config)
        for name in (name for name in reports if name.startswith(f"{folder.name}/")):
            ranks = reports[name]
            assert len(ranks) == processes
            for metrics, _, _ in ranks:
                assert metrics == ranks[0][0], "every rank reports the same"
                assert metrics.keys() == alone.metrics.keys()
                for key, value in metrics.items():
                    # Ranks and recalls are exact; only sums of losses are added in another order.
                    is_sum = "/loss/" in key
                    assert value == (pytest.approx(alone.metrics[key], rel=1e-5) if is_sum else alone.metrics[key]), key
        pictures = [number for _, number, _ in reports[f"{folder.name}/plain"]]
        assert pictures == [len(alone.pictures)] + [0] * (processes - 1), "only rank 0 draws"
