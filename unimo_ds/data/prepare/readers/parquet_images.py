"""Images as bytes in Parquet files, with captions or without: Hugging Face data sets, and img2dataset's output of that kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from unimo_ds.data.limits import MAX_MEMBER_BYTES
from unimo_ds.data.prepare.readers.captions import captions_of
from unimo_ds.data.prepare.readers.names import read_exclusion
from unimo_ds.data.prepare.readers.parquet_files import files_with, rows_of
from unimo_ds.data.prepare.readers.protocol import PART_ITEMS, Part, Reader, Record
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings

DEFAULT_IMAGE, DEFAULT_CAPTION = "image", "text"
_ROWS = 64
"""Rows read at a time, with their images."""


@dataclass(frozen=True)
class ParquetImages(Reader):
    """Rows of an image (bytes, or a struct of `bytes` and `path`) and a caption (a string, or a list of them).

    A part is a row group, or 1000 rows of a larger one; its items are the rows' numbers in their group.
    """

    settings: ImportSettings
    with_captions: bool = True

    @property
    def image(self) -> str:
        return self.settings.image_column or DEFAULT_IMAGE

    @property
    def caption(self) -> str:
        return self.settings.column or DEFAULT_CAPTION

    def parts(self, report: Report) -> Iterator[Part]:
        needed = {self.image: "--image-column"} | ({self.caption: "--column"} if self.with_captions else {})
        for path, file in files_with(needed, self.settings.input):
            for group in range(file.num_row_groups):
                rows = range(file.metadata.row_group(group).num_rows)
                for start in rows[::PART_ITEMS]:
                    yield {"file": str(path), "row_group": group, "items": list(rows[start : start + PART_ITEMS])}

    def records(self, part: Part, report: Report) -> Iterator[Record]:
        exclusion = read_exclusion(self.settings.exclude)
        columns = [self.image, self.caption] if self.with_captions else [self.image]
        for where, row in rows_of(part, columns, report, at_once=_ROWS):
            image = row[self.image]
            content, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
            name = f"{where} ({path})" if isinstance(path, str) else where
            if not isinstance(content, bytes):
                report.skip("a row without an image's bytes", name)
            elif len(content) > MAX_MEMBER_BYTES:
                report.skip(f"larger than {MAX_MEMBER_BYTES} bytes", name)
            elif isinstance(path, str) and exclusion.holds(path):
                report.count("images excluded")
            elif not self.with_captions:
                yield Record(name, image=content)
            elif captions := captions_of(row[self.caption], name, report):
                yield Record(name, None, captions, content)

    def texts(self, part: Part) -> Iterator[str]:
        if self.with_captions:
            for where, row in rows_of(part, [self.caption], Report(), at_once=_ROWS):
                yield from captions_of(row[self.caption], where, Report())
