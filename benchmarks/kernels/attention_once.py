"""One forward and backward pass of the native attention kernels on a mix, for a profiler:

ncu --set full --clock-control none -k regex:attention_ -c 3 python -m benchmarks.kernels.attention_once --mix unimo
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.kernels.attention import HEADS, MIXES, SIZE, layout_of_mix
from unimo_ds.ops.attention import packed_attention
from unimo_ds.ops.native import attention as native


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", choices=MIXES, default="unimo")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the mix to take")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--whole", action=argparse.BooleanOptionalAction, default=True, help="short sequences")
    arguments = parser.parse_args()
    native.WHOLE_BACKWARD = arguments.whole
    layout = layout_of_mix(arguments.mix, arguments.scale).to(torch.device("cuda"))
    dtype = getattr(torch, arguments.dtype)
    inputs = torch.randn(layout.num_positions, 3, HEADS, SIZE, device="cuda", dtype=dtype, requires_grad=True)
    output = packed_attention(inputs, layout, probability=arguments.dropout, site=1, path="native")
    output.backward(torch.randn_like(output))
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
