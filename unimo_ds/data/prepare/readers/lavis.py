"""Annotation files of LAVIS, ALBEF and BLIP: a JSON list of objects with `image` and `caption` (a text or a list)."""

from __future__ import annotations

from collections.abc import Iterator

from unimo_ds.data.prepare.readers.captions import captions_of
from unimo_ds.data.prepare.readers.protocol import Annotation
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.json_entries import array_items


def read_annotations(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    for path in settings.captions:
        for number, one in enumerate(array_items(path, what="an annotation file of LAVIS")):
            where = f"{path.name}, entry {number}"
            name = one.get("image") if isinstance(one, dict) else None
            if isinstance(name, str) and name:
                yield Annotation((name,), captions_of(one.get("caption"), where, report))
            else:
                report.skip("an entry without image", where)
