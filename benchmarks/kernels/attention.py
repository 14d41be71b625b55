"""Packed attention on a mix like UNIMO's: this project's paths and what else can express it, in one run, interleaved.

    python benchmarks/kernels/attention.py --device cuda --dtype bfloat16 --json rows.json      # a GPU: under 8 minutes
    python benchmarks/kernels/attention.py --device cpu --dtype float32 --scale 0.05            # a CPU: small, for the shapes

Every contender first has to agree with the plain reference on this mix; then each of the rounds runs all of them, one after
another, in a new order, forward and backward. Rows: median and worst milliseconds of the rounds, peak extra memory.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from unimo_ds.ops.attention import attention_reference, packed_attention, sequence_mask
from unimo_ds.ops.layout import Layout, make_layout
from unimo_ds.utils.errors import UserError, run_command

HEADS, SIZE = 12, 64
MIXES: dict[str, list[tuple[int, int]]] = {
    "unimo": [(512, 512)] * 8 + [(512, 256)] * 8 + [(101, 101)] * 40 + [(n, n) for n in range(120, 232, 3)],
    "texts_128": [(128, 128)] * 128,
    "texts_256": [(256, 256)] * 64,
    "texts_512": [(512, 512)] * 32,
    "prefix_512": [(512, 256)] * 32,
}
"""Name -> (length, prefix) of every sequence."""
Contender = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Row:
    mix: str
    contender: str
    probability: float
    forward_ms: float
    both_ms: float
    worst_both_ms: float
    extra_mib: float
    """Peak memory beyond what was there before, of forward and backward; 0 on a CPU, where it is not measured."""


def contenders(layout: Layout, probability: float, inputs: torch.Tensor) -> dict[str, Contender]:
    """Everything that runs here. Names of this project's paths start with `ours`."""
    found: dict[str, Contender] = {
        "ours bucketed": lambda x: packed_attention(x, layout, probability=probability, site=1, path="bucketed")
    }
    try:
        packed_attention(inputs[:0], make_layout([]), path="native")
        found["ours native"] = lambda x: packed_attention(x, layout, probability=probability, site=1, path="native")
    except UserError as error:
        print(f"ours native: left out: {error}", file=sys.stderr)
    found["torch SDPA, dense mask"] = _padded_sdpa(layout, probability)
    lengths = (layout.sequence_starts[1:] - layout.sequence_starts[:-1]).tolist()
    if layout.prefix_lengths.tolist() == lengths:
        flash = _flash_varlen(layout, probability)
        if flash is not None:
            found["flash-attn varlen"] = flash
    return found


def _padded_sdpa(layout: Layout, probability: float) -> Contender:
    """Sequences padded to the longest, masks as a dense bias: what torch alone offers for prefix masks."""
    lengths = (layout.sequence_starts[1:] - layout.sequence_starts[:-1]).long()
    longest, device = layout.longest, layout.device
    offsets = torch.arange(longest, device=device)
    valid = offsets < lengths[:, None]
    mask = torch.stack([sequence_mask(longest, int(prefix), device=device) for prefix in layout.prefix_lengths])
    mask = (mask & valid[:, None, :])[:, None]
    mask |= ~valid[:, None, :, None]  # rows of padding see everything, so that none is empty

    def run(inputs: torch.Tensor) -> torch.Tensor:
        padded = inputs.new_zeros(len(lengths), longest, *inputs.shape[1:]).masked_scatter(
            valid[:, :, None, None, None], inputs
        )
        query, key, value = padded.permute(2, 0, 3, 1, 4)
        output = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=probability)
        return output.transpose(1, 2)[valid]

    return run


def _flash_varlen(layout: Layout, probability: float) -> Contender | None:
    """FlashAttention's packed call, where it is installed; bidirectional alone, it has no prefix masks."""
    try:
        from flash_attn import flash_attn_varlen_qkvpacked_func
    except ImportError:
        return None
    return lambda x: flash_attn_varlen_qkvpacked_func(x, layout.sequence_starts, layout.longest, dropout_p=probability)


def measure(mix: str, probability: float, arguments: argparse.Namespace) -> list[Row]:
    """All contenders on one mix."""
    sequences = MIXES[mix][:: max(1, round(1 / arguments.scale))]
    device = torch.device(arguments.device)
    on_host = make_layout([length for length, _ in sequences], prefix_lengths=[prefix for _, prefix in sequences])
    layout = Layout(
        *(
            getattr(on_host, name).to(device)
            for name in ("sequence_starts", "prefix_lengths", "sequence_seeds", "position_sequence", "position_offset")
        ),
        longest=on_host.longest,
    )
    generator = torch.Generator().manual_seed(1)
    shape = (layout.num_positions, 3, HEADS, SIZE)
    inputs = torch.randn(shape, generator=generator).to(device, getattr(torch, arguments.dtype))
    runners = contenders(layout, probability, inputs)
    if probability == 0:
        _require_agreement(runners, inputs, layout)
    upstream = torch.randn(shape[0], HEADS, SIZE, generator=generator).to(inputs)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    extra = dict.fromkeys(runners, 0.0)
    order = list(runners)
    shuffler = random.Random(1)
    for index in range(arguments.rounds + 1):
        shuffler.shuffle(order)
        for name in order:
            forward, both, memory = _time(runners[name], inputs, upstream)
            extra[name] = max(extra[name], memory)
            if index:  # the first round warms up
                times[name].append((forward, both))
    return [
        Row(
            mix,
            name,
            probability,
            statistics.median(forward for forward, _ in rounds),
            statistics.median(both for _, both in rounds),
            max(both for _, both in rounds),
            extra[name],
        )
        for name, rounds in times.items()
    ]


def _require_agreement(runners: dict[str, Contender], inputs: torch.Tensor, layout: Layout) -> None:
    expected = attention_reference(inputs.float(), layout)
    tolerance = 20 * torch.finfo(inputs.dtype).eps
    for name, run in runners.items():
        error = float((run(inputs).float() - expected).abs().max())
        if not error <= tolerance:
            raise UserError(f"{name} is off by {error:.3g} on this mix; its times would mean nothing")


def _time(run: Contender, inputs: torch.Tensor, upstream: torch.Tensor) -> tuple[float, float, float]:
    """Milliseconds forward, forward and backward; MiB of extra memory."""
    leaf = inputs.detach().requires_grad_()
    on_gpu = inputs.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    output = run(leaf)
    if on_gpu:
        torch.cuda.synchronize()
    middle = time.perf_counter()
    output.backward(upstream)
    if on_gpu:
        torch.cuda.synchronize()
    stop = time.perf_counter()
    memory = (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else 0.0
    return (middle - start) * 1e3, (stop - start) * 1e3, memory


def _main(arguments: argparse.Namespace) -> None:
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, {arguments.dtype}, {arguments.rounds} rounds\n")
    print(
        "| mix | contender | dropout | forward ms | forward + backward ms | worst | extra MiB |\n|---|---|---|---|---|---|---|"
    )
    rows = []
    for mix in arguments.mixes.split(","):
        for probability in (0.0, 0.1):
            for row in measure(mix, probability, arguments):
                rows.append(row)
                print(
                    f"| {row.mix} | {row.contender} | {row.probability} | {row.forward_ms:.3f} | {row.both_ms:.3f} | "
                    f"{row.worst_both_ms:.3f} | {row.extra_mib:.0f} |",
                    flush=True,
                )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(
                {"device": where, "torch": torch.__version__, "rows": [vars(row) for row in rows]}, file, indent=1
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float32")
    parser.add_argument("--mixes", default=",".join(MIXES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the sequences to take")
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    return run_command(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
