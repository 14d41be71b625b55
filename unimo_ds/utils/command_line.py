"""Command lines whose mistakes are reported like all others: one sentence with the nearest valid name, and status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from unimo_ds.utils.errors import UserError, nearest_name
from unimo_ds.utils.locations import Repeated


def seed(text: str) -> int:
    """The argparse type of a seed."""
    found = int(text)
    if abs(found) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is no number of 64 bits")
    return found


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    purpose: str,
    run: Callable[[argparse.Namespace], int | None],
    example: str,
) -> argparse.ArgumentParser:
    """Add a command that `run` executes, with an example in its help."""
    parser = commands.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


class ArgumentParser(argparse.ArgumentParser):
    """Plain argparse prints the usage before a mistake, a page of it for `unimo prepare import`, and suggests no name.

    Its subcommands are of this class too.

    Raises:
        UserError: from `parse_args`, if the command line is invalid.
    """

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """As in argparse, but nothing may be left over."""
        if self._subparsers is None:  # subcommands check their own options
            self._check_options(sys.argv[1:] if args is None else args)
        found, left = super().parse_known_args(args, namespace)
        if left:
            again = self._repeated_before(left[0], sys.argv[1:] if args is None else args)
            self.error(
                f"{' '.join(left)!r} is more than it takes{f'; write {again} before each value' if again else ''}"
            )
        return found, left

    def _repeated_before(self, word: str, words: Sequence[str]) -> str:
        """The option before `word` if it is one that is given once for each value; else empty."""
        before = [one for one in words[: words.index(word)] if one.startswith("--")] if word in words else []
        action = self._option_string_actions.get(before[-1]) if before else None
        return before[-1] if isinstance(action, argparse._AppendAction | Repeated) else ""

    def error(self, message: str) -> NoReturn:
        """One sentence instead of usage and exit."""
        raise UserError(f"{message} (see `{self.prog} --help`)")

    def _check_options(self, words: Sequence[str]) -> None:
        # Before argparse does: it would report first that a required option is missing, which was only misspelt.
        known = [option for option in self._option_string_actions if option.startswith("--")]
        for word in words:
            if word == "--":
                return
            option = word.partition("=")[0]
            if not option.startswith("--") or " " in word or option in known:
                continue
            if not (self.allow_abbrev and any(one.startswith(option) for one in known)):
                self.error(f"unknown option {option}{nearest_name(option, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = map(str, action.choices)
            raise argparse.ArgumentError(action, f"{str(value)!r} is not known{nearest_name(str(value), names)}")
