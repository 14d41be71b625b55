"""One rank of the evaluation's tests: the same held-out report from plain ranks, and from an engine at each given ZeRO stage."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from tests.evaluation import small
from unimo_ds.config import EngineConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.engine import ds_config
from unimo_ds.engine.launch import start_processes
from unimo_ds.engine.setup import make_engine
from unimo_ds.evaluation.held_out import evaluate_held_out
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils.communicator import make_communicator
from unimo_ds.utils.running import run_command


def main() -> None:
    output, stages = Path(sys.argv[1]), [stage for stage in sys.argv[2].split(",") if stage]
    folders = [Path(name) for name in sys.argv[3:]]
    device = start_processes()
    communicator = make_communicator(device)
    reports = {}
    for folder in folders:
        corpus, config = Corpus.open(folder), small.run_config(folder)
        report = evaluate_held_out(small.make_engine(config, communicator), corpus, config)
        reports[f"{folder.name}/plain"] = communicator.all_gather_object(
            [report.metrics, len(report.pictures), len(report.embeddings.labels)]
        )
        for stage in stages:
            config = dataclasses.replace(config, engine=EngineConfig(deepspeed_config=f"zero{stage}_fp32"))
            settings = ds_config.load(config.engine.deepspeed_config, config, communicator.world_size)
            engine = make_engine(Unimo(config.model, seed=3), config, settings)
            first, second = (evaluate_held_out(engine, corpus, config).metrics for _ in range(2))
            assert first == second
            assert engine.module.training
            reports[f"{folder.name}/zero{stage}"] = communicator.all_gather_object([first, 0, 0])
    if communicator.rank == 0:
        output.write_text(json.dumps(reports))


if __name__ == "__main__":
    sys.exit(run_command(main))
