"""Captions of annotation files; invalid ones are left out and named in the report."""

from __future__ import annotations

from unimo_ds.data.prepare.report import Report
from unimo_ds.utils.printable import is_unicode

_LONGEST = 10_000
"""Characters; anything longer is no caption, and a parser of captions would take hours over it."""


def caption_of(value: object, name: str, report: Report) -> str | None:
    """A caption without surrounding white space; None if it is invalid, which the report then names."""
    if value is not None and not isinstance(value, str):
        report.skip("a caption that is not a text", name)
    elif value is None or not value.strip():
        report.skip("an empty caption", name)
    elif len(value) > _LONGEST:
        report.skip(f"a caption of more than {_LONGEST} characters", name)
    elif is_unicode(value):
        return value.strip()
    else:
        report.skip("a text that is not valid Unicode", name)
    return None


def captions_of(value: object, name: str, report: Report) -> tuple[str, ...]:
    """The valid captions of a text or a list of texts."""
    found = (caption_of(one, name, report) for one in (value if isinstance(value, list) else [value]))
    return tuple(one for one in found if one is not None)
