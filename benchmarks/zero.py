"""A step under ZeRO 0 to 3 and under plain DistributedDataParallel: the same model, samples and optimizer on several ranks.

    torchrun --nproc-per-node 2 -m benchmarks.zero                     two CPU ranks over gloo, fp32
    torchrun --nproc-per-node 8 -m benchmarks.zero --precision bf16    GPUs over NCCL

All engines are in the same processes; each round runs one step of each, in the same order on all ranks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import measuring
from benchmarks.mix import MixCorpus, NumberTokenizer
from benchmarks.plain_engine import PlainEngine
from unimo_ds.config import BatchConfig, ModelConfig, RunConfig
from unimo_ds.data.schema import StepBatch
from unimo_ds.data.step_reader import StepReader
from unimo_ds.engine import ds_config, setup
from unimo_ds.engine.launch import start_processes
from unimo_ds.engine.protocol import StepEngine
from unimo_ds.engine.step import train_step
from unimo_ds.models.unimo import Unimo
from unimo_ds.tasks.pretraining import PretrainingTask
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.running import run_command

DDP = "DistributedDataParallel"


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows for every stage and for DDP."""
    device = start_processes()
    torch.set_num_threads(arguments.threads)
    model = ModelConfig(
        num_layers=arguments.layers,
        hidden_size=arguments.hidden,
        num_heads=max(1, arguments.hidden // 64),
        feed_forward_size=4 * arguments.hidden,
    )
    config = RunConfig(
        recipe="benchmark",
        model=model,
        batch=BatchConfig(global_samples=arguments.samples, micro_batch_tokens=1 << 16),
    )
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    corpus = MixCorpus(images=16, texts=16, pairs=48)
    reader = StepReader(corpus, NumberTokenizer(), config, rank=rank, world_size=world)
    batches = [reader.read(step) for step in range(arguments.rounds + 1)]
    task = PretrainingTask(contrast=config.contrast, weights=config.losses)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.precision]
    engines: dict[str, StepEngine] = {DDP: PlainEngine(Unimo(model), config.optimizer, device=device, dtype=dtype)}
    for stage in arguments.stages.split(","):
        name = f"zero{stage}_{arguments.precision}"
        engines[name] = setup.make_engine(Unimo(model), config, ds_config.load(name, config, world))
    losses: dict[str, float] = {}

    def run(name: str) -> Callable[[int], None]:
        def step(number: int) -> None:
            batch: StepBatch = batches[number + 1]
            metrics = train_step(engines[name], task, batch, learning_rate=1e-4)
            if number < 0:
                losses[name] = metrics.loss

        return step

    synchronize = torch.cuda.synchronize if device.type == "cuda" else torch.distributed.barrier
    timings = measuring.interleaved(
        {name: run(name) for name in engines}, rounds=arguments.rounds, synchronize=synchronize, say=rank == 0
    )
    for name, loss in losses.items():
        if abs(loss - losses[DDP]) > (2e-2 if arguments.precision == "bf16" else 1e-4) * abs(losses[DDP]):
            raise UserError(f"{name} has the loss {loss} in its first step, {DDP} {losses[DDP]}")
    return [
        {
            "case": f"{world} ranks, {arguments.layers} layers of {arguments.hidden}, {arguments.precision}",
            "contender": name,
            "device": device.type,
            "parameters": sum(one.numel() for one in Unimo(model).parameters()),
            "first_loss": losses[name],
            **timing.row(),
            **{f"ddp_{key}": value for key, value in measuring.ratio_of_rounds(timing, timings[DDP]).items()},
        }
        for name, timing in timings.items()
    ]


def _main(arguments: argparse.Namespace) -> None:
    rows = measure(arguments)
    if torch.distributed.get_rank() == 0:
        columns = ("case", "contender", "seconds_median", "seconds_worst", "ddp_ratio_median", "ddp_ratio_worst")
        print("\n" + measuring.table(rows, (*columns, "ddp_processor_ratio_median")))
        device = str(rows[0]["device"])
        print("wrote", measuring.write(f"zero_{device}", rows, device=device, path=arguments.json))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default="0,1,2,3")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--samples", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    return run_command(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
