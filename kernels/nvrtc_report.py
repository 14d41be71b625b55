"""Registers and spills of the kernels by NVRTC, NVIDIA's compiler as a library, if no nvcc supports an architecture.

    pip install --target nvrtc --no-deps nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-runtime-cu12==12.9.79 \
        nvidia-cuda-nvcc-cu12==12.9.86 nvidia-cuda-cccl-cu12==12.9.27
    python kernels/nvrtc_report.py --packages nvrtc --arch sm_70
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path

from unimo_ds.ops.native import build, toolchain
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.running import run_command

_HEADERS = (
    *("attention/forward.cuh", "attention/backward_queries.cuh", "attention/backward_keys.cuh"),
    *("contrastive/conflicts.cuh", "contrastive/statistics.cuh", "contrastive/weights.cuh", "contrastive/pairs.cuh"),
    *("dropout_norm/dropout_norm.cuh", "bias_gelu/bias_gelu.cuh", "cross_entropy/cross_entropy.cuh"),
)
_SOURCE = "".join(f'#include "{header}"\n' for header in _HEADERS).encode()
_OF_FORMAT_AND_TWO_FLAGS = (
    *("attention_forward", "attention_backward_queries", "attention_backward_keys"),
    "contrastive_pair_gradients",
)
_OF_FORMAT_AND_FLAG = ("contrastive_weights", "cross_entropy_parts")
_OF_FLAG = ("contrastive_statistics", "contrastive_join")
_OF_FORMAT = (
    *("contrastive_pair_scores", "bias_gelu_forward", "bias_gelu_backward", "keyed_dropout"),
    *("cross_entropy_losses", "cross_entropy_slopes"),
)
_OF_FORMAT_WIDTH_AND_FLAG = ("dropout_norm_forward", "dropout_norm_backward")
_WIDTHS = (1, 2, 3, 4)
_PLAIN = ("contrastive_conflicts", "contrastive_segments", "contrastive_segment_gradients")


def _names(formats: tuple[str, ...]) -> list[str]:
    """Every kernel in every variant."""
    flags = ("true", "false")
    names = [
        f"{name}<unimo::{of}, {flag}, {other}>"
        for name in _OF_FORMAT_AND_TWO_FLAGS
        for of in formats
        for flag in flags
        for other in flags
    ]
    names += [f"{name}<unimo::{of}, {flag}>" for name in _OF_FORMAT_AND_FLAG for of in formats for flag in flags]
    names += [f"{name}<{flag}>" for name in _OF_FLAG for flag in flags]
    names += [f"{name}<unimo::{of}>" for name in _OF_FORMAT for of in formats]
    names += [
        f"{name}<unimo::{of}, {width}, {flag}>"
        for name in _OF_FORMAT_WIDTH_AND_FLAG
        for of in formats
        for width in _WIDTHS
        for flag in flags
    ]
    return [*names, *_PLAIN]


def compile_report(packages: Path, architecture: str) -> build.Built:
    """Compile every kernel for one architecture; only the report is kept."""
    libraries = sorted(packages.glob("nvidia/cuda_nvrtc/lib/libnvrtc.so.*"))
    if not libraries:
        raise UserError(f"there is no nvidia/cuda_nvrtc/lib/libnvrtc.so.* in {packages}; see the head of this script")
    nvrtc = ctypes.CDLL(str(libraries[0]))
    half_only = toolchain.architecture_number(architecture) < 80
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "--ptxas-options=-v", f"-I{build.sources_folder()}"]
    options += [f"-I{folder}" for folder in packages.glob("nvidia/*/include")] + ["-DUNIMO_HALF_ONLY"] * half_only
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), _SOURCE, b"kernels.cu", 0, None, None)
    for name in _names(("Half",) if half_only else ("Half", "BFloat16")):
        nvrtc.nvrtcAddNameExpression(program, f"unimo::{name}".encode())
    words = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = nvrtc.nvrtcCompileProgram(program, len(options), words)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if status:
        raise UserError(f"NVRTC failed:\n{log.value.decode()}")
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    uses = tuple(build.parse_kernel_uses(log.value.decode()))
    return build.Built(Path(), architecture, f"nvrtc {major.value}.{minor.value}", uses)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder that holds nvidia/cuda_nvrtc")
    parser.add_argument("--arch", default="sm_70")
    arguments = parser.parse_args()
    return run_command(lambda: print(build.table([compile_report(arguments.packages, arguments.arch)])))


if __name__ == "__main__":
    sys.exit(main())
