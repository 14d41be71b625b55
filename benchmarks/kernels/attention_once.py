"""One forward and backward pass of the native attention kernels on a mix, for a profiler:

ncu --set full --clock-control none -k regex:attention_ -c 3 python -m benchmarks.kernels.attention_once --mix unimo
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.kernels.attention import HEADS, MIXES, SIZE
from unimo_ds.ops.attention import packed_attention
from unimo_ds.ops.layout import make_layout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", choices=MIXES, default="unimo")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="bfloat16")
    arguments = parser.parse_args()
    lengths, prefixes = zip(*MIXES[arguments.mix], strict=True)
    layout = make_layout(list(lengths), prefix_lengths=list(prefixes)).to(torch.device("cuda"))
    dtype = getattr(torch, arguments.dtype)
    inputs = torch.randn(layout.num_positions, 3, HEADS, SIZE, device="cuda", dtype=dtype, requires_grad=True)
    output = packed_attention(inputs, layout, probability=arguments.dropout, site=1, path="native")
    output.backward(torch.randn_like(output))
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
