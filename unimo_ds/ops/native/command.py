"""`unimo kernels ...`: build the CUDA kernels, and check them on the CPU."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict

from unimo_ds.ops.native import build, toolchain
from unimo_ds.utils.command_line import ArgumentParser
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.running import run_command

_DEFAULT_ARCHITECTURE = "sm_90"
_CHECKED = ("attention", "bias_gelu", "contrastive", "cross_entropy", "dropout_norm")


def main(words: Sequence[str]) -> int:
    """Run `unimo kernels`. Returns the exit status: 0, 1 if `check` finds a difference, 2 on bad input."""
    parser = ArgumentParser(
        prog="unimo kernels",
        description="Build the CUDA kernels, and check them without a GPU.",
        epilog="example:\n  unimo kernels build --arch sm_90\n  unimo kernels check --cases 100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    making = verbs.add_parser(
        "build",
        help="compile for a list of architectures",
        description="Compile the kernels into one library for each GPU architecture.",
        epilog="example:\n  unimo kernels build --arch sm_70,sm_90 --nvcc /usr/local/cuda-12.9/bin/nvcc",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    making.add_argument(
        "--arch",
        default=_DEFAULT_ARCHITECTURE,
        help="GPU architectures, separated by commas: sm_70 (V100, CUDA 12.9 or older), sm_80 (A100), sm_90 (H100, H200); "
        "default %(default)s",
    )
    making.add_argument("--nvcc", help="the CUDA compiler (default: that of CUDA_HOME, else of PATH)")
    making.add_argument("--json", action="store_true", help="print the result as JSON")
    making.set_defaults(run=_build)
    checking = verbs.add_parser(
        "check",
        help="run a kernel's source on the CPU over random cases, against fp64",
        description="Run a kernel's source on the CPU over random cases, and compare the results with fp64.",
        epilog="example:\n  unimo kernels check --arch sm_70 --cases 1000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    checking.add_argument(
        "--arch",
        default="sm_70,sm_80,sm_90",
        help="architectures whose matrix instructions are emulated (default %(default)s)",
    )
    checking.add_argument("--kernel", choices=_CHECKED, default=_CHECKED[0], help="default %(default)s")
    checking.add_argument("--first", type=int, default=0, help="number of the first case, to repeat one (default 0)")
    checking.add_argument("--cases", type=int, default=100, help="number of cases (default %(default)s)")
    checking.add_argument("--plain", action="store_true", help="without sanitizers: a few times faster")
    checking.set_defaults(run=_check)
    return run_command(lambda: _run(parser.parse_args(words)))


def _run(arguments: argparse.Namespace) -> int:
    status: int = arguments.run(arguments)
    return status


def _architectures(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("--arch names no architecture; write it as sm_70,sm_90")
    for name in names:
        toolchain.architecture_number(name)
    return names


def _build(arguments: argparse.Namespace) -> int:
    names = _architectures(arguments.arch)
    compiler = toolchain.find_nvcc(arguments.nvcc)
    for name in names:  # check all before minutes are spent
        toolchain.require_architecture(compiler, name)
    built = [build.build(name, nvcc=arguments.nvcc) for name in names]
    if arguments.json:
        print(json.dumps([{**asdict(library), "path": str(library.path)} for library in built], indent=2))
        return 0
    for library in built:
        print(f"{library.architecture}: {library.path}")
    print(build.table(built))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    if arguments.cases < 1 or arguments.first < 0:
        raise UserError(
            f"{arguments.cases} cases from number {arguments.first} check nothing; --cases is 1 or more, --first 0 or more"
        )
    worst = 0
    for name in _architectures(arguments.arch):
        program = build.build_check(arguments.kernel, name, sanitize=not arguments.plain)
        build.require_own(program)
        print(f"{arguments.kernel}, {name}: ", end="", flush=True)
        done = subprocess.run([program, str(arguments.first), str(arguments.cases)], check=False)
        worst = max(worst, 1 if done.returncode else 0)
    return worst
