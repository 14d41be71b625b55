"""`unimo COMMAND ...`: all commands except training. Heavy imports are delayed until a command runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import unimo_ds
from unimo_ds.commands import inspecting, measuring, runs, taking
from unimo_ds.utils import locations
from unimo_ds.utils.command_line import ArgumentParser
from unimo_ds.utils.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, UserError, tell
from unimo_ds.utils.running import drop_output, run_command

_TRAINING = (
    "train with `python -m unimo_ds.train`, or in several processes with deepspeed or torchrun (its --help says how)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns its exit status: 0, 1 if a check finds problems, 2 on bad input."""
    try:
        return _handed_out(sys.argv[1:] if argv is None else argv)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("unimo_ds"):
            raise
        tell(
            f"{sys.executable} has no package for `import {error.name}`; install requirements.txt there (docs/install.md)"
        )
        return EXIT_BAD_INPUT


def _handed_out(words: Sequence[str]) -> int:
    # `deepspeed --module unimo_ds ...` inserts this option; ranks use the environment instead.
    words = [word for word in words if not word.startswith(("--local_rank=", "--local-rank="))] or ["--help"]
    if words[:1] == ["prepare"]:
        from unimo_ds.data.prepare import command

        return _guarded(lambda: command.main(words[1:]), cure="the same command goes on where this one stopped")
    if words[:2] == ["doctor", "preflight"]:
        from unimo_ds.preflight import command as preflight

        return _guarded(lambda: preflight.main(words[2:]))
    if words[:1] == ["kernels"]:
        from unimo_ds.ops.native import command as kernels

        return _guarded(lambda: kernels.main(words[1:]))
    if words[:1] == ["search"]:
        from unimo_ds.serving import search_command

        return _guarded(lambda: search_command.main(words[1:]))
    return _guarded(lambda: run_command(lambda: _run(words)))


def _run(words: Sequence[str]) -> int | None:
    if words[0] == "train":
        raise UserError(f"unimo has no command 'train'; {_TRAINING}")
    arguments = _parser().parse_args(words)
    locations.check_local_options(arguments)
    run: Callable[[argparse.Namespace], int | None] = arguments.run
    return run(arguments)


def _guarded(command: Callable[[], int], *, cure: str = "") -> int:
    """cure: what to do after an interruption."""
    try:
        return command()
    except KeyboardInterrupt:
        if cure:
            tell(f"interrupted; {cure}")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        drop_output()  # the reader (head, less) has exited
        return 0


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = ArgumentParser(
        prog="unimo",
        description=f"Prepare data for, plan, examine and evaluate UNIMO pre-training;\n{_TRAINING}.",
        epilog="example:\n  unimo plan --recipe base_32xv100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"unimo_ds {unimo_ds.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    # In the order of use. Those with add_help=False are only listed here; `_handed_out` passes them to their own parsers.
    commands.add_parser("prepare", help="turn raw corpora into data folders, stage by stage", add_help=False)
    runs.add(commands)
    inspecting.add(commands)
    measuring.add(commands)
    taking.add(commands)
    commands.add_parser(
        "search", help="search photographs and texts: build an index, search it, open a search page", add_help=False
    )
    commands.add_parser("kernels", help="build the CUDA kernels, or check them without a GPU", add_help=False)
    return parser
