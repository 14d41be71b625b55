"""Captions in a plain table: lines `file<TAB>caption`, a file as often as it has captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unimo_ds.data.prepare.readers.protocol import Annotation
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.data.prepare.sources import Report, read_lines
from unimo_ds.utils.errors import UserError


def read_annotations(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    """
    Raises:
        UserError: unreadable, or no line of this form.
    """
    for path in settings.captions:
        for name, captions in _read(path, report).items():
            yield Annotation((name,), tuple(captions))


def _read(path: Path, report: Report) -> dict[str, list[str]]:
    """File name -> its captions, from lines `file<TAB>caption`, in the file's order.

    Captions keep every character between their first and last visible one.

    Raises:
        UserError: unreadable, or no line of this form.
    """
    captions: dict[str, list[str]] = {}
    for number, line in read_lines(path, report):
        name, tab, caption = line.partition("\t")
        if not tab or not name.strip():
            if line.strip():
                report.skip("a line that is not file<TAB>caption", f"{path.name}:{number}")
            continue
        mine = captions.setdefault(name.strip().removeprefix("./"), [])
        if caption.strip():
            mine.append(caption.strip())
        else:
            report.skip("an empty caption", f"{path.name}:{number}")
    if not captions:
        raise UserError(f"{path} holds no line of the form file<TAB>caption; of another format, name it with --format")
    return captions
