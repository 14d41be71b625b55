"""Images as bytes in Parquet files, with captions or without: Hugging Face data sets, and img2dataset's output of that kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.data.limits import MAX_MEMBER_BYTES
from unimo_ds.data.prepare.readers.captions import captions_of
from unimo_ds.data.prepare.readers.names import read_exclusion
from unimo_ds.data.prepare.readers.parquet import DAMAGE, files_of, open_parquet
from unimo_ds.data.prepare.readers.protocol import PART_ITEMS, Part, Reader, Record
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.errors import UserError

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
        for path in files_of(self.settings.input):
            file = open_parquet(path)
            for name, option in needed.items():
                if name not in file.schema_arrow.names:
                    names = ", ".join(file.schema_arrow.names)
                    raise UserError(f"{path} has no column {name!r}; it has {names}: name one with {option}")
            for group in range(file.num_row_groups):
                rows = range(file.metadata.row_group(group).num_rows)
                for start in rows[::PART_ITEMS]:
                    yield {"file": str(path), "row_group": group, "items": list(rows[start : start + PART_ITEMS])}

    def records(self, part: Part, report: Report) -> Iterator[Record]:
        exclusion = read_exclusion(self.settings.exclude)
        columns = [self.image, self.caption] if self.with_captions else [self.image]
        for where, row in self._rows(part, columns, report):
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
            for where, row in self._rows(part, [self.caption], Report()):
                yield from captions_of(row[self.caption], where, Report())

    def _rows(self, part: Part, columns: list[str], report: Report) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, values by column) of the part's rows."""
        path, group, wanted = Path(part["file"]), part["row_group"], frozenset(part["items"])
        batches = open_parquet(path).iter_batches(_ROWS, row_groups=[group], columns=columns)
        row, last = 0, max(wanted, default=-1)
        try:
            for batch in batches:
                for i in range(batch.num_rows):
                    where = f"{path.name}, row group {group}, row {row}"
                    if row in wanted:
                        try:
                            values = {name: batch.column(name)[i].as_py() for name in columns}
                        except UnicodeDecodeError:
                            report.skip("a row that is not UTF-8", where)
                        else:
                            yield where, values
                    row += 1
                if row > last:
                    return
        except DAMAGE as error:
            where = f"{path.name}, row group {group}, row {row}"
            report.skip("a row that cannot be read, with all behind it in its group", f"{where}: {error}")
