"""One rank of the step's tests: real engines and readers, three optimizer steps of each kind of task."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.finetune import small
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.engine import ds_config
from unimo_ds.engine.checkpoint_folder import WEIGHT
from unimo_ds.engine.launch import start_processes
from unimo_ds.engine.setup import make_engine
from unimo_ds.finetune.model import TaskModel
from unimo_ds.finetune.reader import TaskReader
from unimo_ds.finetune.step import TaskStep
from unimo_ds.utils.running import run_command

NUM_STEPS = 3
RATE = 1e-3


def run(case: dict, folder: Path) -> dict:
    """Losses, gradient norms and updated weights."""
    name = case["task"]
    data = folder / ("sst2" if name == "sst2" else "pairs")
    tokenizer = tokenizers.load(folder / "pairs" / "train")
    task, config, examples = small.open_task(
        name,
        data,
        tokenizer,
        "train",
        "model.hidden_dropout=0.1",
        "model.region_tag_sizes=6",
        f"model.num_image_layers={case.get('image_layers', 0)}",
        "finetune.head_dropout=0.1",
        "finetune.retrieval.negative_images=2",
        "finetune.retrieval.negative_captions=2",
        "batch.global_samples=5",
        f"batch.micro_batch_tokens={case['micro_batch_tokens']}",
        f"engine.deepspeed_config={case['deepspeed']}",
        f"finetune.adversarial.steps={case.get('ascents', 0)}",
        *(f"optimizer.rate_factors.{part}={factor}" for part, factor in case.get("rate_factors", {}).items()),
    )
    world_size = torch.distributed.get_world_size()
    model = TaskModel(config, task.make_head(config), tag_sizes=task.tag_sizes)
    engine = make_engine(model, config, ds_config.load(case["deepspeed"], config, world_size))
    engine.module.train()
    reader = TaskReader(examples, config, rank=engine.communicator.rank, world_size=world_size)
    step = TaskStep(config.finetune)
    found = [step(engine, task, batch, learning_rate=RATE) for batch in reader.steps(0, NUM_STEPS)]
    is_measured = name in ("sst2", "retrieval")
    evaluation = task.evaluate(engine, examples, config=config, tokenizer=tokenizer) if is_measured else None
    weights = {
        name: engine.masters.read(parameter, WEIGHT).flatten().tolist()
        for name, parameter in engine.module.named_parameters()
        if name.startswith(("head.", "layers.0", "text_embedding.norm", "region_embedding.tags", "image_transformer"))
    }
    engine.close()
    return {
        "losses": [one.loss for one in found],
        "counts": [one.counts["task"] for one in found],
        "norms": [one.gradient_norm for one in found],
        "temperatures": [one.temperature for one in found],
        "applied": all(one.applied for one in found),
        "metrics": evaluation.metrics if evaluation else {},
        "weights": weights,
    }


def main() -> None:
    cases, folder, output = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    start_processes()
    torch.set_num_threads(1)
    results = [run(case, folder) for case in cases]
    if torch.distributed.get_rank() == 0:
        output.write_text(json.dumps(results))


if __name__ == "__main__":
    sys.exit(run_command(main))
