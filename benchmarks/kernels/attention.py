"""Packed attention on a mix like UNIMO's: this project's paths and its alternatives in one run, interleaved.

    python -m benchmarks.kernels.attention --device cuda --dtype bfloat16 --json rows.json      # a GPU: about two minutes
    python -m benchmarks.kernels.attention --scale 0.05                                         # a CPU: small, for the shapes

Without dropout every contender must first agree with the plain reference on this mix. Rows: median and worst milliseconds of
the rounds, peak extra memory (`timing.py`, `attention_peers.py`).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass

import torch

from benchmarks.kernels.attention_peers import peers, unpacked
from benchmarks.kernels.timing import Contender, Rows, measure
from unimo_ds.ops.attention import attention_reference, packed_attention
from unimo_ds.ops.layout import Layout, make_layout
from unimo_ds.ops.native import attention as native
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.running import run_command

HEADS, SIZE = 12, 64
VARIANTS = {"": True, ", in parts": False}
"""Suffix of a contender's name -> `WHOLE_BACKWARD`, whether short sequences have a backward kernel of their own."""
_PAIRS = [(40 + 60 * pair // 23, [12 + (7 * pair + 5 * text) % 19 for text in range(4)]) for pair in range(24)]
"""Positions of an image, 40 to 100, and of each of four texts, 12 to 30."""
_UNIMO = [(512, 512)] * 8 + [(512, 256)] * 8 + [(101, 101)] * 40 + [(n, n) for n in range(120, 232, 3)]
MIXES: dict[str, list[list[tuple[int, int]]]] = {
    "unimo": [[sequence] for sequence in _UNIMO],
    "unimo_shares": [*([sequence] for sequence in _UNIMO[:-2]), _UNIMO[-2:]],
    "texts_128": [[(128, 128)]] * 128,
    "texts_256": [[(256, 256)]] * 64,
    "texts_512": [[(512, 512)]] * 32,
    "prefix_512": [[(512, 256)]] * 32,
    "texts_2048": [[(2048, 2048)]] * 8,
    "prefix_2048": [[(2048, 1024)]] * 8,
    "shared": [[(n, n) for n in (image, *texts)] for image, texts in _PAIRS],
    "repeated": [[(image + text, image + text)] for image, texts in _PAIRS for text in texts],
}
"""Name -> groups of (length, prefix) of sequences; in a group, those after the first share its prefix. `repeated`: the pairs of
`shared`, with the image encoded again for each text. `unimo_shares`: the cost to the others if one sequence shares. `*_2048`:
cost of a prefix in long sequences, in which the part of a block's cost that no mask changes weighs less."""


@dataclass(frozen=True)
class Row:
    mix: str
    contender: str
    probability: float
    forward_ms: float
    both_ms: float
    worst_both_ms: float
    extra_mib: float
    is_captured: bool
    teraflops: float
    """Counts only visible (query, key) pairs: two products forward, five backward, over `both_ms`."""


def ours(layout: Layout, probability: float, inputs: torch.Tensor, upstream: torch.Tensor) -> dict[str, Contender]:
    """This project's fast paths that can run here."""
    found = {}
    for path in ("native", "bucketed"):
        try:
            packed_attention(inputs[:0], make_layout([]).to(inputs.device), path=path)
        except UserError as error:
            print(f"ours {path}: left out: {error}", file=sys.stderr)
            continue
        for note, whole in VARIANTS.items() if path == "native" else [("", True)]:

            def call(leaf: torch.Tensor, path: str = path, whole: bool = whole) -> torch.Tensor:
                native.WHOLE_BACKWARD = whole
                return packed_attention(leaf, layout, probability=probability, site=1, path=path)

            found[f"ours {path}{note}"] = Contender(call, (inputs,), upstream)
    return found


def layout_of_mix(mix: str, scale: float = 1.0) -> Layout:
    """The stream of a mix, or a fraction of it."""
    groups = MIXES[mix][:: max(1, round(1 / scale))]
    lengths, prefixes = zip(*(sequence for group in groups for sequence in group), strict=True)
    owners: list[int] = []
    for group in groups:
        owners += [-1] + [len(owners)] * (len(group) - 1)
    shares = any(owner >= 0 for owner in owners)
    return make_layout(list(lengths), prefix_lengths=list(prefixes), prefix_of=owners if shares else None)


def measure_mix(mix: str, probability: float, arguments: argparse.Namespace) -> list[Row]:
    """All contenders on one mix."""
    layout = layout_of_mix(mix, arguments.scale)
    visible = _visible(layout)
    layout = layout.to(torch.device(arguments.device))
    generator = torch.Generator().manual_seed(1)
    shape, dtype = (layout.num_positions, 3, HEADS, SIZE), getattr(torch, arguments.dtype)
    inputs = torch.randn(shape, generator=generator).to(arguments.device, dtype)
    upstream = torch.randn(shape[0], HEADS, SIZE, generator=generator).to(inputs)
    contenders = ours(layout, probability, inputs, upstream) | peers(layout, probability, inputs, upstream)
    wanted = arguments.contenders.split(",")
    contenders = {name: one for name, one in contenders.items() if any(part in name for part in wanted)}
    if probability == 0:
        _require_agreement(contenders, inputs, layout)
    operations = 14 * SIZE * HEADS * visible
    return [
        Row(mix, name, probability, **asdict(times), teraflops=operations / times.both_ms / 1e9)
        for name, times in measure(contenders, rounds=arguments.rounds).items()
    ]


def _visible(layout: Layout) -> int:
    """(query, key) pairs of one head."""
    lengths, prefixes = layout.sequence_starts.diff().long(), layout.prefix_lengths.long()
    rest = lengths - prefixes
    pairs = lengths * prefixes + rest * (rest + 1) // 2
    if layout.prefix_of is not None:
        owners = layout.prefix_of.long()
        pairs += lengths * prefixes[owners.clamp(min=0)] * (owners >= 0)
    return int(pairs.sum())


def _require_agreement(contenders: dict[str, Contender], inputs: torch.Tensor, layout: Layout) -> None:
    expected = attention_reference(inputs.float(), layout)
    tolerance = 20 * torch.finfo(inputs.dtype).eps
    for name, contender in contenders.items():
        with torch.no_grad():
            parts = list(unpacked(contender.call(*contender.leaves), layout))
        error = float((torch.cat(parts).float() - expected).abs().max())
        if not error <= tolerance:
            raise UserError(f"{name} is off by {error:.3g} on this mix; its times would mean nothing")


def _main(arguments: argparse.Namespace) -> None:
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, {arguments.dtype}, {arguments.rounds} rounds\n")
    rows = Rows(Row, arguments.json, {"device": where, "torch": torch.__version__, "dtype": arguments.dtype})
    for mix in arguments.mixes.split(","):
        for probability in arguments.dropout:
            for row in measure_mix(mix, probability, arguments):
                rows.add(row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float32")
    parser.add_argument("--mixes", default=",".join(mix for mix in MIXES if "2048" not in mix))
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--contenders", default="", help="only those whose name holds one of these: PART,...")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the sequences to take")
    parser.add_argument("--json", help="write the rows to this file")
    arguments = parser.parse_args()
    return run_command(lambda: _main(arguments))


if __name__ == "__main__":
    sys.exit(main())
