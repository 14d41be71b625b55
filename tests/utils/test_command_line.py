"""A mistake in a command line is one sentence that names it and the nearest right name."""

from __future__ import annotations

import argparse
from typing import TypeVar

import pytest

from unimo_ds import cli
from unimo_ds.utils import locations
from unimo_ds.utils.command_line import ArgumentParser
from unimo_ds.utils.errors import EXIT_BAD_INPUT, UserError

Parser = TypeVar("Parser", bound=argparse.ArgumentParser)


def make_parser(kind: type[Parser] = ArgumentParser, **options: bool) -> Parser:
    parser = kind(prog="tool", **options)
    parser.add_argument("--data", required=True)
    parser.add_argument("--count", type=int, choices=(1, 2), default=1)
    parser.add_argument("texts", nargs="*")
    return parser


def refusal(parser: argparse.ArgumentParser, *words: str) -> str:
    with pytest.raises(UserError) as told:
        parser.parse_args(words)
    assert "\n" not in str(told.value)
    assert f"`{parser.prog} --help`" in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    "words",
    [
        ("--data", "a"),
        ("--data=a", "x", "y"),
        ("--dat", "a", "--count", "2"),
        ("--data", "a", "--", "--b"),
        ("--data", "a", "--not an option"),
        ("--data", "a", "-1"),
    ],
)
def test_right_words_are_taken_as_argparse_takes_them(words: tuple[str, ...]) -> None:
    assert make_parser().parse_args(words) == make_parser(argparse.ArgumentParser).parse_args(words)


def test_a_misspelt_option_is_named_with_the_nearest() -> None:
    assert "unknown option --dta; did you mean '--data'?" in refusal(make_parser(), "--dta", "a"), (
        "not: --data is missing"
    )
    assert "--dta" in refusal(make_parser(), "--data", "a", "--dta=b")
    assert "unknown option --dat;" in refusal(make_parser(allow_abbrev=False), "--dat", "a")
    assert "required: --data" in refusal(make_parser())
    assert "invalid int value: 'many'" in refusal(make_parser(), "--data", "a", "--count", "many")


def test_what_is_too_much_or_no_choice_is_named() -> None:
    parser = ArgumentParser(prog="tool")
    parser.add_argument("--color", choices=("red", "blue"))
    assert "'a b' is more than it takes (see" in refusal(parser, "a", "b")
    parser.add_argument("--set", action="append")
    parser.add_argument("--data", action=locations.Repeated)
    for option in ("--set", "--data"):
        assert f"'b' is more than it takes; write {option} before each value" in refusal(parser, option, "a", "b")
    assert "'b' is more than it takes (see" in refusal(parser, "--set", "a", "--color", "red", "b")
    assert "--color: 'bleu' is not known; did you mean 'blue'?" in refusal(parser, "--color", "bleu")
    assert "known: 1, 2" in refusal(make_parser(), "--data", "a", "--count", "30")


@pytest.mark.parametrize(
    ("words", "culprit", "program"),
    [
        ("pln", "'plan'", "unimo"),
        ("plan --recipy demo", "'--recipe'", "unimo plan"),
        ("inspect order --rundir runs/a", "unknown option --rundir", "unimo inspect"),
        ("prepare imprt", "'import'", "unimo prepare"),
        ("prepare import --kind pears --output a", "'pairs'", "unimo prepare import"),
        ("prepare import --kind pairs --captoins a.tsv --output a", "'--captions'", "unimo prepare import"),
        ("search dogs --indx a", "'--index'", "unimo search"),
        ("search build --chekpoint a", "'--checkpoint'", "unimo search build"),
        ("kernels biuld", "'build'", "unimo kernels"),
        ("doctor preflight --dta a", "'--data'", "unimo doctor preflight"),
    ],
)
def test_every_command_tells_it_by_one_line_and_status_2(
    words: str, culprit: str, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == EXIT_BAD_INPUT
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    assert culprit in line
    assert line.endswith(f"`{program} --help`)")
