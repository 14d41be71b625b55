"""Region features of VinVL: features.tsv with features.lineidx, optionally predictions.tsv with the class of each box.

A line is `id, number of boxes, base64` or `id, JSON of num_boxes and features`; a row of features has 2048 numbers and six of
geometry: x1, y1, x2, y2, width, height as fractions. predictions.tsv has class names; `--feature-classes` numbers them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unimo_ds.data.prepare.readers.detections import BadDetections, Detections, FeatureFiles, from_base64, to_regions
from unimo_ds.data.prepare.readers.files import open_file, read_extent, read_json, read_lines
from unimo_ds.data.prepare.readers.protocol import Item, Record
from unimo_ds.data.prepare.readers.tsv_lines import Line, find_lines
from unimo_ds.data.prepare.report import Report
from unimo_ds.utils.errors import UserError

_GEOMETRY = 6


@dataclass(frozen=True)
class VinvlTsv(FeatureFiles):
    """One or several features.tsv. A place is (number of the file, offset, size, offset and size of its predictions)."""

    def items(self, report: Report) -> Iterator[Item]:
        labels = self.settings.feature_labels
        if (labels is None) != (self.settings.feature_classes is None):
            raise UserError("--feature-labels (predictions.tsv) and --feature-classes (their numbers) need each other")
        if self.settings.feature_classes is not None:
            class_numbers(self.settings.feature_classes)
        predicted: dict[str, Line] = {}
        if labels is not None:
            predicted = {line.name: line for line in find_lines(labels, report)}
        for number, path in enumerate(self.settings.features):
            for line in find_lines(path, report):
                where = predicted.get(line.name)
                if labels is not None and where is None:
                    report.skip("features without predictions", line.name)
                else:
                    yield Item(line.name, (number, line.offset, line.size, *(where[:2] if where else ())))

    def read(self, items: Sequence[Item], report: Report) -> Iterator[tuple[int, Record]]:
        labels, classes = self.settings.feature_labels, self.settings.feature_classes
        numbers = class_numbers(classes) if classes is not None else {}
        with ExitStack() as stack:
            streams = {path: stack.enter_context(open_file(path)) for path in (*self.settings.features, labels) if path}
            for i, (name, (number, offset, size, *extent)) in enumerate(items):
                path = self.settings.features[number]
                try:
                    found = parse_line(read_extent(streams[path], path, offset, size))
                    if labels is not None and extent:
                        line = read_extent(streams[labels], labels, extent[0], extent[1])
                        found = with_predictions(found, line, numbers)
                    yield i, Record(name, regions=to_regions(found, self.settings))
                except BadDetections as error:
                    report.skip(error.reason, f"{name} ({path.name}, byte {offset}) {error.detail}".rstrip())


def parse_line(line: bytes) -> Detections:
    fields = line.rstrip(b"\r\n").split(b"\t")
    if len(fields) == 2:
        about = _parse(fields[1])
        rows, text = (about.get(key) if isinstance(about, dict) else None for key in ("num_boxes", "features"))
    elif len(fields) == 3:
        rows, text = int(fields[1]) if fields[1].isdigit() and len(fields[1]) < 6 else None, fields[2].decode("latin-1")
    else:
        raise BadDetections("a line with another number of columns", f"{len(fields)}")
    if not isinstance(rows, int) or not isinstance(text, str):
        raise BadDetections("a field that is not a number" if isinstance(text, str) else "a line without features")
    whole = from_base64(text, "<f4", rows)
    if whole.shape[1] <= _GEOMETRY:
        raise BadDetections("features of a wrong shape", f"{whole.shape}")
    return Detections(features=whole[:, :-_GEOMETRY], boxes=whole[:, -_GEOMETRY:-2])


def with_predictions(found: Detections, line: bytes, numbers: dict[str, int]) -> Detections:
    """The detections with class and confidence of each box, from the image's line of predictions.tsv.

    Raises:
        BadDetections: predictions that cannot be parsed, another number of boxes, or a class without a number.
    """
    content: Any = _parse(line.rstrip(b"\r\n").partition(b"\t")[2])
    boxes = content.get("objects") if isinstance(content, dict) else content
    if not isinstance(boxes, list) or not all(isinstance(one, dict) for one in boxes):
        raise BadDetections("predictions that are not a list of objects")
    if len(boxes) != len(found.features):
        raise BadDetections("predictions of another number of boxes", f"{len(boxes)}, not {len(found.features)}")
    names = [str(one.get("class")) for one in boxes]
    unknown = next((name for name in names if name not in numbers), None)
    if unknown is not None:
        raise BadDetections("a class without a number", unknown)
    confidences = [one.get("conf", 1.0) for one in boxes]
    if not all(isinstance(one, int | float) for one in confidences):
        raise BadDetections("a field that is not a number", "conf")
    return replace(
        found,
        class_ids=np.array([numbers[name] for name in names], np.int64),
        confidences=np.array(confidences, np.float32),
    )


def class_numbers(path: Path) -> dict[str, int]:
    """Class name -> number, from a JSON object of that form (or with one as label_to_idx), or one name per line, from 0.

    Raises:
        UserError: neither, or not UTF-8.
    """
    if path.suffix != ".json":
        names = [line.strip() for _, line in read_lines(path) if line.strip()]
        return {name: number for number, name in enumerate(names)}
    content = read_json(path)
    found = content.get("label_to_idx", content) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(one, int) for one in found.values()):
        raise UserError(f"--feature-classes {path} is not a JSON of name -> number")
    return {str(name): number for name, number in found.items()}


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise BadDetections("a field that is not JSON") from None
