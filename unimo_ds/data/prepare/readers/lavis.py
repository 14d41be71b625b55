"""Annotation files of LAVIS, ALBEF and BLIP: a JSON list of objects with `image` and `caption` (a text or a list)."""

from __future__ import annotations

from collections.abc import Iterator

from unimo_ds.data.prepare.readers.captions import caption_of
from unimo_ds.data.prepare.readers.protocol import Annotation
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.json_entries import array_items

_WHAT = "an annotation file of LAVIS"


def read_annotations(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    """
    Raises:
        UserError: a file in another format.
    """
    for path in settings.captions:
        captions: dict[str, list[str]] = {}
        for number, one in enumerate(array_items(path, what=_WHAT)):
            where = f"{path.name}, entry {number}"
            name = one.get("image") if isinstance(one, dict) else None
            if not isinstance(name, str) or not name:
                report.skip("an entry without image", where)
                continue
            given = one.get("caption")
            mine = captions.setdefault(name, [])
            for value in given if isinstance(given, list) else [given]:
                caption = caption_of(value, where, report)
                if caption is not None:
                    mine.append(caption)
        yield from (Annotation((name,), tuple(texts)) for name, texts in captions.items())
