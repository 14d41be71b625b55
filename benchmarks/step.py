"""Throughput and memory of a whole training step: this project against the same model and losses written the usual way.

    python -m benchmarks.step                                              a CPU, DeepSpeed, fp32: some minutes
    python -m benchmarks.step --device cuda --engine plain --samples 112   a GPU, bf16; --engine deepspeed where it is installed

Both get identical samples and weights, and must first agree on every loss and the gradient's norm with dropout off. Then
each round runs all contenders on one step of the stream, in a new order. Useful tokens are positions that are not padding.
On a GPU every batch runs once before any is timed, with an allocator whose segments can grow: each batch has its own shapes,
and the usual way's steps that had to request memory from the driver took 0.4 and 0.5 seconds, others 0.2.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import measuring
from benchmarks.mix import MixCorpus, NumberTokenizer
from benchmarks.plain_engine import PlainEngine
from benchmarks.usual import PaddedStep, UsualModel, copy_weights, pad
from unimo_ds.config import (
    BatchConfig,
    ContrastConfig,
    KindWeights,
    LossWeights,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from unimo_ds.data.schema import PackedBatch, StepBatch
from unimo_ds.data.step_reader import StepReader
from unimo_ds.data.transport import flatten, restore
from unimo_ds.engine.protocol import StepEngine
from unimo_ds.engine.step import train_step
from unimo_ds.losses.contrast_plan import make_plan, share_sizes
from unimo_ds.models.accounting import training_flops
from unimo_ds.models.unimo import Unimo
from unimo_ds.tasks.pretraining import PretrainingTask
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.host_memory import keep_freed_buffers, return_freed_memory
from unimo_ds.utils.running import run_command

OURS, USUAL, MASKED_HEAD = "ours", "usual", "usual-masked-head"
CONTENDERS = (OURS, USUAL, MASKED_HEAD)
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::addmv_", "aten::mv")
Step = Callable[[StepBatch, PaddedStep], dict[str, float]]


def configuration(arguments: argparse.Namespace) -> RunConfig:
    """The parts of the recipe `base_32xv100` that a step depends on, at the requested size."""
    model = ModelConfig(
        num_layers=arguments.layers,
        hidden_size=arguments.hidden,
        num_heads=arguments.hidden // 64,
        feed_forward_size=4 * arguments.hidden,
        hidden_dropout=arguments.dropout,
        attention_dropout=arguments.dropout,
    )
    texts_alone = arguments.mix == "texts"
    return RunConfig(
        recipe="benchmark",
        model=model,
        data=dataclasses.replace(
            RunConfig("benchmark").data, kind_weights=KindWeights(0, 1, 0) if texts_alone else KindWeights()
        ),
        # The contrastive loss has one group per step, and the usual code has one forward: one micro-batch holds the step.
        batch=BatchConfig(global_samples=arguments.samples, micro_batch_tokens=1 << 20),
        contrast=ContrastConfig(enabled=not texts_alone),
        optimizer=OptimizerConfig(peak_learning_rate=1e-4),
    )


def make_batches(config: RunConfig, arguments: argparse.Namespace, count: int) -> list[StepBatch]:
    """Steps 0 .. count - 1 of one rank's stream."""
    pools = {"images": 24, "texts": 64, "pairs": max(96, arguments.samples)}
    text_tokens = 510 if arguments.mix == "texts" else None
    corpus = MixCorpus(**pools, regions=arguments.regions, text_tokens=text_tokens)
    reader = StepReader(corpus, NumberTokenizer(), config, rank=0, world_size=1)
    return [reader.read(step) for step in range(count)]


def make_engine(model: torch.nn.Module, config: RunConfig, arguments: argparse.Namespace) -> StepEngine:
    """DeepSpeed's engine or the plain one, around a model."""
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    if arguments.engine == "plain":
        return PlainEngine(model, config.optimizer, device=device, dtype=dtype)
    # Imported here, so that the plain engine runs on machines without DeepSpeed.
    from unimo_ds.engine import ds_config, setup

    name = arguments.deepspeed_config or ("zero1_bf16" if arguments.device == "cuda" else "zero1_fp32")
    return setup.make_engine(model, config, ds_config.load(name, config, 1))


def usual_step(engine: StepEngine, task: PretrainingTask, batch: StepBatch, step: PaddedStep) -> dict[str, float]:
    """One optimizer step as most trainers write it. Returns every loss and the gradient's norm."""
    step = step.to(engine.device)
    output = engine.forward(step)
    packed: PackedBatch = step.packed
    *counts, num_pairs = task.counts(batch.micro_batches)
    losses = {}
    for objective, weight, count in zip(task.objectives, task.weights, counts, strict=True):
        losses[objective.name] = weight * objective.loss_sum(output, packed) / max(count, 1)
    if num_pairs:
        contrast = task.contrastive(
            output.pooled_images,
            output.pooled_texts,
            make_plan(
                packed.contrast, form=task.contrast.form, sizes=share_sizes(packed.contrast, engine.communicator)
            ).to(engine.device),
            temperature=output.temperature,
            communicator=engine.communicator,
        )
        losses["contrastive"] = task.contrast_weight * contrast.loss_sum / num_pairs
    engine.backward(torch.stack(list(losses.values())).sum(), is_boundary=True)
    result = engine.step()
    return {name: float(value.detach()) for name, value in losses.items()} | {"gradient_norm": result.gradient_norm}


def make_contenders(
    config: RunConfig, arguments: argparse.Namespace, names: tuple[str, ...]
) -> tuple[dict[str, Step], dict[str, torch.nn.Module]]:
    """Each contender's training step, and their models. All start from the same weights."""
    task = PretrainingTask(contrast=config.contrast, weights=LossWeights())
    first = Unimo(config.model, attention=arguments.attention)
    steps: dict[str, Step] = {}
    models: dict[str, torch.nn.Module] = {}
    for name in names:
        if name == OURS:
            continue
        usual = UsualModel(config.model, head="all" if name == USUAL else "masked")
        copy_weights(first, usual)
        models[name] = usual
        engine = make_engine(usual, config, arguments)
        steps[name] = lambda batch, padded, engine=engine: usual_step(engine, task, batch, padded)
    if OURS in names:
        models[OURS] = first
        engine = make_engine(first, config, arguments)

        def own_step(batch: StepBatch, _: PaddedStep) -> dict[str, float]:
            metrics = train_step(engine, task, batch, learning_rate=config.optimizer.peak_learning_rate)
            return metrics.losses | {"gradient_norm": metrics.gradient_norm}

        steps[OURS] = own_step
    return steps, models


def require_agreement(
    steps: Mapping[str, Step], models: Mapping[str, torch.nn.Module], batch: StepBatch, padded: PaddedStep, device: str
) -> list[dict[str, Any]]:
    """One real step of each with dropout off. Returns the losses of all contenders side by side.

    Raises:
        UserError: they differ by more than rounding, so that times would mean nothing.
    """
    for model in models.values():
        model.eval()
    found = {name: step(batch, padded) for name, step in steps.items()}
    for model in models.values():
        model.train()
    tolerance = 5e-2 if device == "cuda" else 2e-4  # bf16, fp32
    rows = []
    for name, values in found.items():
        rows.append({"case": "agreement", "contender": name, **values})
        for key, value in values.items():
            expected = next(iter(found.values())).get(key, value)
            if abs(value - expected) > tolerance * abs(expected) and expected == expected:
                raise UserError(f"{name} has {key} {value}, others {expected}: these are not the same losses")
    return rows


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the agreement and of all contenders on the mix."""
    from unimo_ds.engine.speed import stream_shape

    config = configuration(arguments)
    on_gpu = arguments.device == "cuda"
    batches = make_batches(config, arguments, arguments.rounds + 1)
    padded = [pad(batch.micro_batches[0]) for batch in batches]
    if on_gpu:
        # Both start with a batch as a loader delivers it.
        padded = [step.pin_memory() for step in padded]
        batches = [restore(flatten(batch).pin_memory()) for batch in batches]
    names = tuple(arguments.contenders.split(","))
    steps, models = make_contenders(config, arguments, names)
    rows = require_agreement(steps, models, batches[-1], padded[-1], arguments.device)

    def run(name: str) -> Callable[[int], None]:
        # Warm-up rounds have numbers below 0.
        return lambda number: (
            steps[name](batches[number % arguments.rounds], padded[number % arguments.rounds]) and None
        )

    timings = measuring.interleaved(
        {name: run(name) for name in steps},
        rounds=arguments.rounds,
        # The GPU's allocator has then seen every batch's shapes.
        warm_up=arguments.rounds if on_gpu else 1,
        synchronize=torch.cuda.synchronize if on_gpu else lambda: None,
        say=True,
    )
    rounds = range(arguments.rounds)
    useful = [batches[number].micro_batches[0].num_positions for number in rounds]
    computed = [padded[number].num_padded for number in rounds]
    flops = [training_flops(config.model, stream_shape(batches[number].micro_batches)) for number in rounds]
    for name, timing in timings.items():
        rates = sorted(tokens / seconds for tokens, seconds in zip(useful, timing.wall, strict=True))
        per_second = sorted(value / seconds for value, seconds in zip(flops, timing.wall, strict=True))
        rows.append(
            {
                "case": f"{arguments.mix}, {arguments.regions} regions",
                "contender": name,
                "device": arguments.device,
                "engine": arguments.engine,
                "layers": arguments.layers,
                "dropout": arguments.dropout,
                "samples": arguments.samples,
                "useful_tokens": sum(useful) / len(useful),
                "padded_tokens": sum(useful if name == OURS else computed) / len(useful),
                "useful_tokens_per_second": rates[len(rates) // 2],
                "worst_useful_tokens_per_second": rates[0],
                "useful_teraflops": per_second[len(per_second) // 2] / 1e12,
                **timing.row(),
                **(measuring.ratio_of_rounds(timing, timings[OURS]) if OURS in timings else {}),
            }
        )
    if arguments.profile:
        for name in (OURS, USUAL):
            if name not in steps:
                continue
            profiled = _profile(lambda name=name: steps[name](batches[0], padded[0]), name, arguments.device)
            if on_gpu:
                row = next(row for row in rows if row["contender"] == name and "useful_teraflops" in row)
                row |= {"first_step_teraflop": flops[0] / 1e12, "first_step_seconds": timings[name].wall[0], **profiled}
                _synchronisations(lambda name=name: steps[name](batches[0], padded[0]), name)
    return rows


def _profile(step: Callable[[], Any], name: str, device: str) -> dict[str, float]:
    """Print where the time of a step goes. Returns the GPU's seconds, and how many of them are matrix products."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    key = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    found = profile.key_averages()
    print(f"\n{name}\n{found.table(sort_by=key, row_limit=28, max_name_column_width=60)}", flush=True)
    kernels = [event for event in found if event.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "first_step_gpu_seconds": sum(event.self_device_time_total for event in kernels) / 1e6,
        "first_step_product_seconds": sum(e.self_device_time_total for e in found if e.key in _PRODUCTS) / 1e6,
    }


def _synchronisations(step: Callable[[], Any], name: str) -> None:
    """Print which lines of Python make the host wait for the GPU within one step."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    called = [one for one in caught if "called a synchronizing" in str(one.message)]
    places = Counter(f"{'/'.join(Path(one.filename).parts[-2:])}:{one.lineno}" for one in called)
    print(f"\n{name} waits {len(called)} times: {dict(places)}", flush=True)


def peak_memory(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory of one training step beyond weights, optimizer and batch, for texts of 512 tokens only."""
    config = configuration(arguments)
    batch = make_batches(config, arguments, 1)[0]
    padded = pad(batch.micro_batches[0])
    steps, _ = make_contenders(config, arguments, (name,))
    steps[name](batch, padded)  # creates optimizer states and gradient buffers
    if arguments.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps[name](batch, padded)
        peak = torch.cuda.max_memory_allocated() - before
    else:
        return_freed_memory()
        before = measuring.resident_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        steps[name](batch, padded)
        peak = measuring.resident_bytes("VmHWM") - before
    positions = batch.micro_batches[0].num_positions
    return {
        "case": "peak memory, texts of 512 tokens",
        "contender": name,
        "device": arguments.device,
        "engine": arguments.engine,
        "layers": arguments.layers,
        "dropout": arguments.dropout,
        "tokens": positions,
        "mebibytes": peak / 2**20,
        "kibibytes_per_token": peak / 1024 / positions,
    }


def memory_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """`peak_memory` of each contender, each in its own process."""
    rows = []
    for name in arguments.contenders.split(","):
        command = [sys.executable, "-m", "benchmarks.step", "--peak-of", name, "--mix", "texts"]
        for option in ("device", "engine", "layers", "hidden", "dropout", "attention"):
            command += [f"--{option}", str(getattr(arguments, option))]
        command += ["--samples", str(arguments.memory_samples)]
        # In this project's trainer glibc keeps freed buffers; for a high-water mark they must be returned, by all contenders.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def _main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)  # beside a GPU too, as in training
    if arguments.peak_of:
        print(json.dumps(peak_memory(arguments.peak_of, arguments)))
        return
    # Done first, while this process is not yet in a process group, which its children would join.
    rows = memory_rows(arguments) if arguments.memory_samples else []
    if arguments.device == "cpu":
        keep_freed_buffers()
    rows += measure(arguments)
    columns = ("case", "contender", "useful_tokens_per_second", "seconds_median", "ratio_median", "ratio_worst")
    print("\n" + measuring.table(rows, (*columns, "processor_ratio_median", "useful_teraflops", "kibibytes_per_token")))
    print("wrote", measuring.write(f"step_{arguments.device}", rows, device=arguments.device, path=arguments.json))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--engine", choices=("deepspeed", "plain"), default="deepspeed")
    parser.add_argument(
        "--deepspeed-config", help="name of a file in ds_configs/; default zero1 in the device's precision"
    )
    parser.add_argument("--contenders", default=",".join((OURS, USUAL)), help=f"of {'; '.join(CONTENDERS)}")
    parser.add_argument("--mix", choices=("paper", "texts"), default="paper")
    parser.add_argument("--regions", choices=("detected", "full"), default="detected")
    parser.add_argument("--samples", type=int, default=14, help="samples of a step")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--attention", default="auto", help="path of this project's attention")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--memory-samples", type=int, default=8, help="texts of 512 tokens for peak memory; 0: not measured"
    )
    parser.add_argument("--profile", action="store_true", help="print where the time of one step goes")
    parser.add_argument("--json", help="write the rows to this file")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        measuring.steady_allocator("benchmarks.step")
    return run_command(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
