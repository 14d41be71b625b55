"""Captions in a plain table: lines `file<TAB>caption`, a file as often as it has captions."""

from __future__ import annotations

from collections.abc import Iterator

from unimo_ds.data.prepare.readers.protocol import Annotation
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.data.prepare.sources import Report, read_captions


def read_annotations(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    """
    Raises:
        UserError: unreadable, or no line of this form.
    """
    for path in settings.captions:
        for name, captions in read_captions(path, report).items():
            yield Annotation((name,), tuple(captions))
