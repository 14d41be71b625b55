"""Region features in the TSV of bottom-up attention and its successors: a line per image, arrays (float32, int64) in base64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.prepare.readers.detections import BadDetections, Detections, FeatureFiles, from_base64, to_regions
from unimo_ds.data.prepare.readers.files import open_file, read_extent
from unimo_ds.data.prepare.readers.protocol import Item, Record
from unimo_ds.data.prepare.readers.tsv_lines import find_lines
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.errors import UserError

_PLAIN = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
_KNOWN = {
    6: _PLAIN,
    7: (*_PLAIN, "cls_prob"),
    # LXMERT's, with the detected class and attribute of each box.
    10: ("image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", *_PLAIN[3:]),
}
_NEEDED = frozenset(_PLAIN)
_ALL = _NEEDED | {"objects_id", "objects_conf", "attrs_id", "attrs_conf", "cls_prob"}


@dataclass(frozen=True)
class BottomUpTsv(FeatureFiles):
    """Files with columns `image_id, image_w, image_h, num_boxes, boxes, features` (bottom-up attention), LXMERT's ten columns,
    or those of `--feature-columns`. A place is (number of the file, offset, size)."""

    def items(self, report: Report) -> Iterator[Item]:
        if self.settings.feature_columns:
            _named_columns(self.settings.feature_columns)
        for number, path in enumerate(self.settings.features):
            for line in find_lines(path, report, header=frozenset(("image_id", "img_id"))):
                yield Item(line.name, (number, line.offset, line.size))

    def read(self, items: Sequence[Item], report: Report) -> Iterator[tuple[int, Record]]:
        with ExitStack() as stack:
            streams: dict[int, BinaryIO] = {}
            for i, (name, (number, offset, size)) in enumerate(items):
                path = self.settings.features[number]
                if number not in streams:
                    streams[number] = stack.enter_context(open_file(path))
                line = read_extent(streams[number], path, offset, size)
                try:
                    found = parse_line(line, self.settings)
                    regions = to_regions(found, self.settings)
                    yield i, Record(name, regions=regions, details={"size": [round(side) for side in found.size or ()]})
                except BadDetections as error:
                    report.skip(error.reason, f"{name} ({path.name}, byte {offset}) {error.detail}".rstrip())


def parse_line(line: bytes, settings: ImportSettings) -> Detections:
    fields = line.rstrip(b"\r\n").split(b"\t")
    columns = _named_columns(settings.feature_columns) if settings.feature_columns else _KNOWN.get(len(fields))
    if columns is None or len(columns) != len(fields):
        raise BadDetections("a line with another number of columns", f"{len(fields)}")
    row = dict(zip(columns, fields, strict=True))
    try:
        rows, width, height = (float(row[name]) for name in ("num_boxes", "image_w", "image_h"))
    except ValueError as error:
        raise BadDetections("a field that is not a number", str(error)) from None
    if not 1 <= rows < 2**16:
        raise BadDetections("features of a wrong shape", f"{row['num_boxes'].decode()} boxes")
    number = int(rows)
    ids = _integers(row["objects_id"], number) if "objects_id" in row else None
    return Detections(
        features=from_base64(row["features"], "<f4", number),
        boxes=from_base64(row["boxes"], "<f4", number),
        size=(width, height),
        class_ids=ids,
        confidences=from_base64(row["objects_conf"], "<f4", number)[:, 0] if "objects_conf" in row else None,
        probabilities=from_base64(row["cls_prob"], "<f4", number) if "cls_prob" in row else None,
    )


def _integers(field: bytes, number: int) -> NDArray[Any]:
    """int64, or int32 if there are half as many bytes."""
    halves = from_base64(field, "<i4", number)
    return from_base64(field, "<i8", number)[:, 0] if halves.shape[1] == 2 else halves[:, 0].astype(np.int64)


def _named_columns(names: str) -> tuple[str, ...]:
    columns = tuple(
        {"img_id": "image_id", "img_w": "image_w", "img_h": "image_h"}.get(one, one) for one in names.split(",")
    )
    unknown = set(columns) - _ALL
    if unknown or not set(columns) >= _NEEDED or columns[0] != "image_id":
        raise UserError(
            f"--feature-columns {names} must begin with image_id, hold {', '.join(_PLAIN)}, and may hold "
            f"{', '.join(sorted(_ALL - _NEEDED))}"
        )
    return columns
