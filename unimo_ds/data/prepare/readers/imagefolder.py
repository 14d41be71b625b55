"""`metadata.jsonl` of Hugging Face's `imagefolder`: JSON lines with `file_name` and a caption, or a list of them."""

from __future__ import annotations

from collections.abc import Iterator

from unimo_ds.data.prepare.readers.captions import captions_of
from unimo_ds.data.prepare.readers.files import json_of_line, read_lines
from unimo_ds.data.prepare.readers.protocol import Annotation
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.errors import UserError


def read_annotations(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    key = settings.column or "text"
    for path in settings.captions:
        is_empty = True
        for number, line in read_lines(path, report):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            entry = json_of_line(line, where, report)
            if entry is None:
                continue
            name = entry.get("file_name")
            if isinstance(name, str) and name:
                is_empty = False
                yield Annotation((name,), captions_of(entry.get(key), where, report))
            else:
                report.skip("a line without file_name", where)
        if is_empty:
            raise UserError(f"{path} holds no JSON line with a file_name; is it a metadata.jsonl of an imagefolder?")
