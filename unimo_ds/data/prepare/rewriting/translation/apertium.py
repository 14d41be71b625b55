"""Apertium, a rule-based translator with dictionaries, run as a separate program: the only one without weights.

It translates nearly word by word and is often wrong, so that each translation is checked (`positives.is_same_meaning`).
Debian: apt-get install apertium apertium-eng-spa apertium-eng-cat apertium-en-gl apertium-eo-en
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence

from unimo_ds.data.prepare.rewriting.translation.protocol import Pivot, one_line
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError

MODES = {
    "spa": ("eng-spa", "spa-eng"),
    "cat": ("eng-cat", "cat-eng"),
    "glg": ("en-gl", "gl-en"),
    "epo": ("en-eo", "eo-en"),
}
"""Pivot language -> Apertium modes there and back."""
_LINES = 10_000
"""Lines per run of the program."""
_MARKS = re.compile(r"[*#@]")
"""Marks on words that Apertium does not know, cannot inflect or cannot translate."""
_END = re.compile(r"\s*[.!?]+$")


class Apertium:
    """One direction of translation."""

    def __init__(self, mode: str, *, program: str = "apertium") -> None:
        self.mode, self._program = mode, program

    def translate(self, texts: Sequence[str], *, number: int = 1) -> list[list[str]]:
        """At most one translation per text: none if Apertium marks a word, or if the text itself contains a mark.

        Raises:
            UserError: the program or the language pair is not installed, or the program failed.
        """
        lines = [one_line(text) for text in texts]
        given = [i for i, line in enumerate(lines) if line and not _MARKS.search(line)]
        found: list[list[str]] = [[] for _ in texts]
        for numbers in batched(given, _LINES):
            for i, said in zip(numbers, self._run([lines[i] for i in numbers]), strict=True):
                said = one_line(said)
                if said and not _MARKS.search(said):
                    found[i] = [_with_end_of(lines[i], said)]
        return found

    def _run(self, lines: list[str]) -> list[str]:
        # The format "line" preserves lines; without -u unknown words are marked.
        command = [self._program, "-f", "line", self.mode]
        content = ("\n".join(lines) + "\n").encode()
        try:
            done = subprocess.run(
                command, input=content, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"}
            )
        except OSError as error:
            raise UserError(
                f"cannot run {self._program!r} ({error.strerror}); on Debian: apt-get install apertium apertium-eng-spa"
            ) from None
        said = done.stdout.decode("utf-8", errors="replace").split("\n")
        if done.returncode or len(said) - 1 != len(lines):
            reason = one_line(done.stderr.decode("utf-8", errors="replace")) or "it gave back another number of lines"
            raise UserError(f"apertium {self.mode} failed: {reason[:300]}")
        return said[:-1]


def _with_end_of(source: str, said: str) -> str:
    """Restore the final punctuation, which the program drops at the end of a line."""
    end = _END.search(source)
    return said if end is None or _END.search(said) else said + end.group()


def installed(program: str = "apertium") -> tuple[str, ...]:
    """Pivot languages of `MODES` installed in both directions.

    Raises:
        UserError: the program is not installed.
    """
    try:
        listed = subprocess.run([program, "-l"], capture_output=True, check=False).stdout.decode().split()
    except OSError:
        raise UserError(
            "--translator apertium needs the program; on Debian: apt-get install apertium apertium-eng-spa apertium-eng-cat"
        ) from None
    return tuple(language for language, modes in MODES.items() if set(modes) <= set(listed))


def pivot(language: str) -> Pivot:
    """The pivot for one language of `MODES`."""
    there, back = MODES[language]
    return Pivot(f"apertium {language}", Apertium(there), Apertium(back), is_trusted=False)
