"""Contrastive losses over many candidates, forward and backward: ours and peers in one run, interleaved.

    python -m benchmarks.kernels.contrastive --inf-cl DIR --json out.json      # on a GPU; DIR: a checkout of Inf-CLIP

`pairs`: C images against C texts, one positive each, both directions (the loss of CLIP) or one (`_one_way`). Ours, Inf-CL's
kernels (imported from DIR, none of it is in this repository), and open_clip's loss by its formula with all logits.
`cmcl`: one logarithm over each row's own 4 positives and 100 negatives and over the other pairs in both directions. Ours, and
the same formula in plain PyTorch. Prints median and worst milliseconds of the rounds and peak extra memory, gradients included.
"""

from __future__ import annotations

import argparse
import importlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks.kernels.timing import Rows
from unimo_ds.ops.grouping import group
from unimo_ds.ops.native import contrastive, library, pairs
from unimo_ds.ops.score_blocks import Keys
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.running import run_command

INVERSE_TEMPERATURE = 16.0
"""Exact in bf16: peers multiply bf16 vectors by it as a bf16 number, and 1 / 0.07 would be rounded to 14.3125, another loss
(by 1 %; ours keeps fp32)."""
LOSSES_MAY_DIFFER_BY = 2e-3
POSITIVES, NEGATIVES = 4, 100
DEFAULT_CHUNKS = contrastive.SMALL_CHUNK, contrastive.LARGE_CHUNK
CHUNKS_AT = 65536
"""Number of candidates at which other chunk sizes are tried."""
Loss = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Row:
    task: str
    candidates: int
    contender: str
    forward_ms: float
    both_ms: float
    worst_both_ms: float
    extra_mib: float
    loss: float


def make_keys(count: int, device: torch.device) -> Keys:
    """All pairs distinct: everything except its own image and text is a negative of a pair."""
    index = torch.arange(count, device=device)
    keys = torch.stack((torch.zeros_like(index), index, index, index), 1)
    return Keys(keys, keys, index[:, None], index[:, None])


def ours_pairs(count: int, device: torch.device, *, both: bool) -> Loss:
    keys, index = make_keys(count, device), group(torch.arange(count, device=device), count)

    def loss(images: torch.Tensor, texts: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        positive = pairs.pair_scores(images, texts, index, index) * inverse
        logs = contrastive.log_sum_exps(images, texts, inverse, keys, both=both)
        total = (torch.logaddexp(positive, logs.rows) - positive).mean()
        if both:
            total = (total + (torch.logaddexp(positive, logs.columns) - positive).mean()) / 2
        return total

    return loss


def in_chunks(loss: Loss, small: tuple[int, int], large: tuple[int, int]) -> Loss:
    """With chunks of these rows and columns."""

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        contrastive.SMALL_CHUNK, contrastive.LARGE_CHUNK = small, large  # until the next run: backward needs them too
        return loss(*inputs)

    return run


def inf_cl_pairs(folder: Path, *, both: bool) -> Loss:
    """What cal_inf_loss does on one process; on several it would also sum the scale's gradient over them."""
    if not (folder / "inf_cl" / "flash.py").is_file():
        raise UserError(f"there is no inf_cl/flash.py in {folder}; --inf-cl names a checkout of Inf-CLIP")
    sys.path.insert(0, str(folder))
    flash = importlib.import_module("inf_cl.flash")

    def loss(images: torch.Tensor, texts: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = flash.cal_flash_loss(images, texts, scale=inverse).mean()
        return (total + flash.cal_flash_loss(texts, images, scale=inverse).mean()) / 2 if both else total

    return loss


def open_clip_pairs(images: torch.Tensor, texts: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """open_clip's gathered loss under its usual autocast: logits in bf16, cross-entropy in fp32."""
    with torch.autocast(images.device.type, torch.bfloat16):
        logits = inverse * images @ texts.T
        labels = torch.arange(len(images), device=images.device)
        return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def ours_cmcl(count: int, device: torch.device) -> Loss:
    keys = make_keys(count, device)
    own = torch.arange(count * (POSITIVES + NEGATIVES), device=device).view(count, -1)
    # As the training loss lists them: all positives, then all negatives.
    listed = torch.cat((own[:, :POSITIVES].flatten(), own[:, POSITIVES:].flatten()))
    owner, first = listed // (POSITIVES + NEGATIVES), count * POSITIVES
    by_image, by_own = group(owner, count), group(listed, len(listed))
    positives, negatives = (group(part, count) for part in (owner[:first], owner[first:]))

    def loss(images: torch.Tensor, texts: torch.Tensor, inverse: torch.Tensor, private: torch.Tensor) -> torch.Tensor:
        scores = pairs.pair_scores(images, private.flatten(0, 1), by_image, by_own) * inverse
        of_positives, of_negatives = scores.split((first, len(listed) - first))
        log_positive = pairs.segment_log_sum_exp(of_positives, positives)
        log_negative = pairs.segment_log_sum_exp(of_negatives, negatives)
        logs = contrastive.log_sum_exps(images, texts, inverse, keys, both=True)
        everything = pairs.log_sum_exp(torch.stack((log_positive, log_negative, logs.rows, logs.columns)))
        return (everything - log_positive).mean()

    return loss


def eager_cmcl(images: torch.Tensor, texts: torch.Tensor, inverse: torch.Tensor, private: torch.Tensor) -> torch.Tensor:
    own = (images[:, None] * private).sum(-1)
    scores = images @ texts.T
    itself = torch.eye(len(images), dtype=torch.bool, device=images.device)
    # Not -inf: its product with a gradient of 0 would be nan for the temperature.
    to_texts, to_images = (matrix.masked_fill(itself, -1e4) for matrix in (scores, scores.T))
    logits = torch.cat((own, to_texts, to_images), 1).float() * inverse
    return (torch.logsumexp(logits, 1) - torch.logsumexp(logits[:, :POSITIVES], 1)).mean()


def in_fp32(loss: Loss) -> Loss:
    return lambda images, texts, inverse, private: loss(images.float(), texts.float(), inverse, private.float())


def make_inputs(task: str, count: int, arguments: argparse.Namespace) -> list[torch.Tensor]:
    """Images, texts similar to them, the inverse temperature; and each row's own vectors."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    generator = torch.Generator(device=device).manual_seed(1)

    def unit(*shape: int) -> torch.Tensor:
        noise = torch.randn(*shape, arguments.size, generator=generator, device=device, dtype=dtype)
        return functional.normalize(noise, dim=-1)

    images = unit(count)
    texts = functional.normalize(images + unit(count), dim=-1)
    inputs = [images, texts, torch.tensor(INVERSE_TEMPERATURE, device=device)]
    return [*inputs, unit(count, POSITIVES + NEGATIVES)] if task == "cmcl" else inputs


def contenders(task: str, count: int, arguments: argparse.Namespace) -> dict[str, Loss]:
    device = torch.device(arguments.device)
    if task == "cmcl":
        return {
            "ours": in_chunks(ours_cmcl(count, device), *DEFAULT_CHUNKS),
            "eager": eager_cmcl,
            "eager fp32": in_fp32(eager_cmcl),
        }
    both = task == "pairs"
    ours = ours_pairs(count, device, both=both)
    found = {"ours": in_chunks(ours, *DEFAULT_CHUNKS)}
    for chunk in filter(None, arguments.chunks.split(",") if count == CHUNKS_AT else ()):
        rows, columns = map(int, chunk.split("x"))
        found[f"ours {chunk}"] = in_chunks(ours, (rows, columns), (rows, columns))
    if arguments.inf_cl:
        found["Inf-CL"] = inf_cl_pairs(arguments.inf_cl, both=both)
    if both:
        found["open_clip"] = open_clip_pairs
    return found


def measure(task: str, count: int, arguments: argparse.Namespace) -> list[Row]:
    inputs = make_inputs(task, count, arguments)
    losses = contenders(task, count, arguments)
    times: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in losses}
    shuffler = random.Random(1)
    for _ in range(arguments.rounds + 1):
        order = list(losses)
        shuffler.shuffle(order)
        for name in order:
            try:
                times[name].append(_time(losses[name], inputs))
            except torch.cuda.OutOfMemoryError:
                print(f"{task} {count} {name}: out of memory", file=sys.stderr)
                del losses[name], times[name]
                torch.cuda.empty_cache()
    found = {name: rounds[-1][3] for name, rounds in times.items()}
    if max(found.values()) - min(found.values()) > LOSSES_MAY_DIFFER_BY * max(found.values()):
        raise UserError(f"contenders compute different losses ({found}); their times would not be comparable")
    return [
        Row(
            task,
            count,
            name,
            statistics.median(forward for forward, *_ in rounds[1:]),  # the first round warms up
            statistics.median(both for _, both, *_ in rounds[1:]),
            max(both for _, both, *_ in rounds[1:]),
            max(memory for _, _, memory, _ in rounds),
            rounds[-1][3],
        )
        for name, rounds in times.items()
    ]


def _time(loss: Loss, inputs: Sequence[torch.Tensor]) -> tuple[float, float, float, float]:
    """Milliseconds forward, forward and backward; MiB of extra memory; the loss."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    value = loss(*leaves)
    torch.cuda.synchronize()
    middle = time.perf_counter()
    value.backward()
    torch.cuda.synchronize()
    stop = time.perf_counter()
    memory = (torch.cuda.max_memory_allocated() - before) / 2**20
    return (middle - start) * 1e3, (stop - start) * 1e3, memory, float(value.detach())


def captured(task: str, count: int, arguments: argparse.Namespace) -> Row:
    """Ours as CUDA graphs: only the GPU's time, without that of the host launching the kernels."""
    leaves = [tensor.requires_grad_() for tensor in make_inputs(task, count, arguments)]
    loss = contenders(task, count, arguments)["ours"]
    runs: list[Callable[[], object]] = [lambda: loss(*leaves), lambda: torch.autograd.grad(loss(*leaves), leaves)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        runs[1]()
    torch.cuda.current_stream().wait_stream(side)
    times: list[list[float]] = []
    for run in runs:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        times.append([])
        for _ in range(arguments.rounds + 1):
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            times[-1].append(float(start.elapsed_time(stop)))
    forward, both = (rounds[1:] for rounds in times)
    middle = statistics.median(both)
    *_, memory, value = _time(loss, leaves)
    return Row(task, count, "ours, captured", statistics.median(forward), middle, max(both), memory, value)


def profile(task: str, count: int, arguments: argparse.Namespace) -> str:
    """Where the time of ours goes: the profiler's kernels, longest first."""
    inputs = make_inputs(task, count, arguments)
    loss = contenders(task, count, arguments)["ours"]
    _time(loss, inputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        _time(loss, inputs)
    spent = sorted(
        ((float(event.self_device_time_total), event.count, str(event.key)) for event in profiler.key_averages()),
        reverse=True,
    )
    lines = [f"| {time / 1e3:.3f} | {count} | `{name[:100]}` |" for time, count, name in spent[:14]]
    return "\n".join([f"\n{task}, {count} candidates:\n", "| ms | calls | kernel |", "|---|---|---|", *lines])


def _main(arguments: argparse.Namespace) -> None:
    refused = library.refusal(torch.zeros(1, dtype=getattr(torch, arguments.dtype), device=arguments.device))
    if refused is not None:
        raise UserError(f"ours cannot run: {refused}")
    where = torch.cuda.get_device_name()
    print(f"{where}, torch {torch.__version__}, {arguments.dtype}, size {arguments.size}, {arguments.rounds} rounds\n")
    rows = Rows(Row, arguments.json, {"device": where, "torch": torch.__version__})
    for place in arguments.tasks.split(","):
        task, count = place.split(":")
        for row in measure(task, int(count), arguments):
            rows.add(row)
        if arguments.captured:
            rows.add(captured(task, int(count), arguments))
    for place in filter(None, arguments.profile.split(",")):
        task, count = place.split(":")
        print(profile(task, int(count), arguments))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--size", type=int, default=768, help="of a vector")
    parser.add_argument(
        "--tasks",
        default="pairs_one_way:32768,pairs_one_way:65536,pairs_one_way:131072,pairs:32768,pairs:65536,pairs:131072,"
        "cmcl:16384,cmcl:32768",
        help="TASK:CANDIDATES, ...",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inf-cl", type=Path, metavar="DIR", help="a checkout of Inf-CLIP")
    parser.add_argument(
        "--captured", action="store_true", help="time ours as CUDA graphs too: the GPU without the host"
    )
    parser.add_argument(
        "--chunks", default="", metavar="ROWSxCOLUMNS,...", help=f"other rectangles to try at {CHUNKS_AT} candidates"
    )
    parser.add_argument(
        "--profile", default="", metavar="TASK:CANDIDATES,...", help="print where the time of ours goes"
    )
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    return run_command(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
