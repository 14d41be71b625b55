"""Every command line that README, docs, Makefile, Slurm scripts and benchmarks show is one that its program takes.

Each program is started up to its own `parse_args`, and nothing is run. Prose often names a command without what it requires, so
nothing is required here; unknown programs, options, choices and keys of `--set` are errors.
"""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unimo_ds import recipes
from unimo_ds.config import RunConfig
from unimo_ds.finetune_config import FinetuneConfig
from unimo_ds.overrides import apply_overrides

ROOT = Path(__file__).parents[1]
SOURCES = [
    "README.md",
    "Makefile",
    "docs/*.md",
    "kernels/*.md",
    "slurm/*.sh",
    "benchmarks/**/*.py",
    "tests/cluster/*.py",
]
PROGRAM = re.compile(
    r"(?:^|[\s`/(\"])(?:"
    r"(?P<unimo>unimo|-m unimo_ds|--module unimo_ds)"
    r"|(?P<train>(?:deepspeed|python3?) [^`\n]*?unimo_ds/train\.py|slurm/(?:base|large)\.sh)"
    r"|slurm/(?P<stage>prepare|evaluate|finetune)\.sh"
    r"|-m (?P<module>(?:benchmarks|unimo_ds|tests)\.[\w.]+)"
    r"|python3? (?P<script>(?:benchmarks|unimo_ds)/[\w/]+\.py)"
    r")(?P<words>[ \t][^`\n]*)?(?=[`\n])",
    re.MULTILINE,
)


class Parsed(BaseException):
    """What a program's parser made of its command line: args[0]."""


def text_of(path: Path) -> str:
    """The file's words, each command on one line."""
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    if path.suffix == ".md":
        parts = text.split("```")
        parts[::2] = [re.sub(r"`[^`]+`", lambda span: " ".join(span[0].split()), prose) for prose in parts[::2]]
        text = "\n".join(parts)
    return re.sub(r"\s*\\\n#?\s*", " ", text).replace(" && ", "\n") + "\n"


def command_lines() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(file, module or script, words) of every command."""
    for path in sorted({path for pattern in SOURCES for path in ROOT.glob(pattern)}):
        for found in PROGRAM.finditer(text_of(path)):
            # What ends a command: a comment, another command, a column of prose, or "and so on".
            shown = re.split(r" #|;|  +| (?:--\S+ )?\.\.\.|\[|\||\"\$[@{]", found["words"] or "")[0].strip()
            words = [*([found["stage"]] if found["stage"] else []), *shlex.split(shown)]
            if found["unimo"] and (not words or not words[0].islower() or words[1:2] == ["STAGE"]):
                continue
            program = "unimo_ds.train" if found["train"] else found["module"] or found["script"] or "unimo_ds"
            yield path.name, program, tuple(words)


@pytest.fixture
def nothing_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    make_action, parse = argparse.Action.__init__, argparse.ArgumentParser.parse_args

    def make_optional(self: argparse.Action, *arguments: Any, **options: Any) -> None:
        make_action(self, *arguments, **options)
        self.required = False
        self.nargs = "?" if self.nargs is None and self.option_strings else self.nargs

    def stop(self: argparse.ArgumentParser, *arguments: Any) -> None:
        raise Parsed(parse(self, *arguments))

    monkeypatch.setattr(argparse.Action, "__init__", make_optional)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)


def check_keys(options: argparse.Namespace) -> None:
    """Refuse what training would refuse; a VALUE in capitals stands for any."""
    recipe = getattr(options, "recipe", None)
    config = recipes.load(recipe) if recipe in recipes.NAMES else RunConfig("any", finetune=FinetuneConfig("sst2"))
    for override in getattr(options, "set", ()):
        if not override.partition("=")[2].isupper():
            apply_overrides(config, [override])


def refusal(program: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str | None:
    """What the program says against these words, None: it takes them."""
    is_script = program.endswith(".py")
    place = ROOT / (program if is_script else f"{program.replace('.', '/')}.py")
    source = place.read_text() if place.is_file() else ""
    if not source and program != "unimo_ds":
        return "there is no such program"
    if is_script and "from benchmarks" in source:
        return "it finds its neighbours by python -m alone"
    if source and "rgumentParser" not in source:
        return "it takes no words" if words and "sys.argv" not in source else None
    try:
        if is_script:
            runpy.run_path(str(place), run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__")
    except Parsed as parsed:
        check_keys(parsed.args[0])
    except SystemExit as stopped:
        return capsys.readouterr().err if stopped.code else None
    return None


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of runpy: the module is imported already
def test_every_command_line_is_one_that_its_program_takes(
    nothing_is_required: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = sorted(set(command_lines()))
    assert len(commands) > 100
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as `python FILE` has its own folder
    for file, program, words in commands:
        monkeypatch.setattr(sys, "argv", [program, *words])
        assert refusal(program, words, capsys) is None, f"{file}: {program} {shlex.join(words)}"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("unimo_ds", ("plan", "--recepe", "demo")),
        ("unimo_ds", ("evaluate", "retrival")),
        ("unimo_ds.train", ("--checkpoint", "x")),
        ("benchmarks.balance", ("--captured",)),
        ("benchmarks/step.py", ()),
        ("benchmarks.nothing", ()),
        ("unimo_ds.demo", ("--steps", "3")),
    ],
)
def test_a_wrong_command_line_is_refused(
    program: str,
    words: tuple[str, ...],
    nothing_is_required: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [program, *words])
    assert refusal(program, words, capsys)
