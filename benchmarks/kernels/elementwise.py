"""The operations between a layer's matrix products, and the head after them: ours and plain torch in one run, interleaved.

    python -m benchmarks.kernels.elementwise --device cuda --dtype bfloat16 --json rows.json     # a GPU: about a minute
    python -m benchmarks.kernels.elementwise --dtype float32 --positions 2000                    # a CPU

`dropout_norm`: layer_norm(residual + dropout(x)). `linear_gelu`: gelu of a linear layer, its product included. `cross_entropy`:
with the tied word table, at one position in eight, product included; as in training, it does not report correct predictions,
except in the row that says so. Contenders: this project's paths; torch's own operators with its own dropout; the same compiled;
apex's layer norm if installed. Rows: median and worst milliseconds of the rounds, peak extra memory (`timing.py`).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional

from benchmarks.kernels.timing import Contender, Rows, measure
from unimo_ds.ops.cross_entropy import tied_cross_entropy
from unimo_ds.ops.dropout_norm import dropout_add_layer_norm
from unimo_ds.ops.layout import make_layout
from unimo_ds.ops.linear_gelu import linear_gelu
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.running import run_command

SIZE, WIDE, WORDS = 768, 3072, 50265
EPSILON, DROPOUT = 1e-5, 0.1
MASKED = 8
"""One position in this many predicts a word."""
Call = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Row:
    op: str
    contender: str
    positions: int
    forward_ms: float
    both_ms: float
    worst_both_ms: float
    extra_mib: float
    is_captured: bool


def dropout_norms(positions: int, device: torch.device) -> dict[str, Call]:
    keys = make_layout([128] * (positions // 128)).to(device).position_keys

    def ours(path: str) -> Call:
        return lambda x, residual, weight, bias: dropout_add_layer_norm(
            x, residual, weight, bias, keys, probability=DROPOUT, site=5, epsilon=EPSILON, path=path
        )

    def plain(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(residual + functional.dropout(x, DROPOUT), (SIZE,), weight, bias, EPSILON)

    found = {"ours native": ours("native"), "ours fused": ours("fused"), "torch": plain}
    try:
        normalization = importlib.import_module("apex.normalization.fused_layer_norm")
    except ImportError:
        return found

    def with_apex(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        total = residual + functional.dropout(x, DROPOUT)
        result: torch.Tensor = normalization.fused_layer_norm_affine(total, weight, bias, (SIZE,), EPSILON)
        return result

    return found | {"torch, norm of apex": with_apex}


def linear_gelus(_: int, __: torch.device) -> dict[str, Call]:
    def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.gelu(functional.linear(x, weight, bias))

    return {"ours native": lambda *tensors: linear_gelu(*tensors, path="native"), "torch": plain}


def cross_entropies(positions: int, device: torch.device) -> dict[str, Call]:
    generator = torch.Generator().manual_seed(2)
    targets = torch.randint(WORDS, (positions // MASKED,), generator=generator).to(device)

    def plain(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        logits = functional.linear(hidden, weight, bias)
        return functional.cross_entropy(logits.float(), targets, reduction="none")

    def ours(path: str, *, tells: bool = False) -> Call:
        return lambda *tensors: tied_cross_entropy(*tensors, targets, tells_correct=tells, path=path)[0]

    return {
        "ours native": ours("native"),
        "ours native, tells who is correct": ours("native", tells=True),
        "ours chunked": ours("chunked"),
        "torch": plain,
    }


OPS: dict[str, tuple[Callable[[int, torch.device], dict[str, Call]], Callable[[int], list[tuple[int, ...]]]]] = {
    "dropout_norm": (dropout_norms, lambda positions: [(positions, SIZE), (positions, SIZE), (SIZE,), (SIZE,)]),
    "linear_gelu": (linear_gelus, lambda positions: [(positions, SIZE), (WIDE, SIZE), (WIDE,)]),
    "cross_entropy": (cross_entropies, lambda positions: [(positions // MASKED, SIZE), (WORDS, SIZE), (WORDS,)]),
}
"""Op -> its contenders, and the shapes of its inputs."""


def measure_op(op: str, arguments: argparse.Namespace) -> list[Row]:
    """All contenders of an op that can run here."""
    make, shapes = OPS[op]
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    positions = arguments.positions // 128 * 128
    generator = torch.Generator().manual_seed(1)
    # Weights as a layer is initialised, so that no logit is large.
    leaves = tuple(
        (torch.randn(shape, generator=generator) * (1 if index == 0 else 0.02)).to(device, dtype)
        for index, shape in enumerate(shapes(positions))
    )
    calls = make(positions, device)
    if arguments.compile:
        calls["torch, compiled"] = torch.compile(calls["torch"], dynamic=False)
    contenders = {}
    for name, call in calls.items():
        try:
            output = call(*leaves)
        except UserError as error:
            print(f"{op}, {name}: left out: {error}", file=sys.stderr)
            continue
        upstream = torch.randn(output.shape, generator=generator).to(output)
        contenders[name] = Contender(call, leaves, upstream)
    found = measure(contenders, rounds=arguments.rounds)
    return [Row(op, name, positions, **asdict(times)) for name, times in found.items()]


def _main(arguments: argparse.Namespace) -> None:
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, {arguments.dtype}, {arguments.rounds} rounds\n")
    rows = Rows(Row, arguments.json, {"device": where, "torch": torch.__version__, "dtype": arguments.dtype})
    for op in arguments.ops.split(","):
        if op not in OPS:
            raise UserError(f"--ops knows {', '.join(OPS)}, not {op!r}")
        for row in measure_op(op, arguments):
            rows.add(row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float32")
    parser.add_argument("--ops", default=",".join(OPS), help="OP,...")
    parser.add_argument("--positions", type=int, default=18944, help="of the stream; brought down to a multiple of 128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch's operators compiled, too")
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    return run_command(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
