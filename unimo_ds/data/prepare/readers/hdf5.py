"""Region features in HDF5, in the two layouts in use.

One group per image (volta, VL-T5): /ID/features, /ID/boxes, /ID/img_w, /ID/img_h, optionally obj_id, obj_conf, cls_prob.
One array per field: /image_id, /features [n, R, F], /boxes [n, R, 4], optionally num_boxes, image_w, image_h, objects_id,
objects_conf, cls_prob.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unimo_ds.data.limits import MAX_MEMBER_BYTES
from unimo_ds.data.prepare.readers.detections import (
    LARGEST_SHARE,
    BadDetections,
    Detections,
    FeatureFiles,
    to_regions,
)
from unimo_ds.data.prepare.readers.protocol import Item, Record
from unimo_ds.data.prepare.report import Report
from unimo_ds.utils.errors import UserError

_SPELLINGS = {
    "image_id": ("image_id", "image_ids", "img_id"),
    "features": ("features",),
    "boxes": ("boxes", "bbox"),
    "num_boxes": ("num_boxes",),
    "width": ("img_w", "image_w", "width"),
    "height": ("img_h", "image_h", "height"),
    "class_ids": ("obj_id", "objects_id", "object_ids"),
    "confidences": ("obj_conf", "objects_conf"),
    "probabilities": ("cls_prob", "soft_labels"),
}


_DAMAGE = (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError)
"""Raised by h5py for arrays that are damaged, missing, too short or not arrays."""


@dataclass(frozen=True)
class Hdf5(FeatureFiles):
    """One or several files. A place is (number of the file, row); the row is -1 if images are groups."""

    def items(self, report: Report) -> Iterator[Item]:
        for number, path in enumerate(self.settings.features):
            with _open(path) as file:
                try:
                    found = list(_items(file, number))
                except _DAMAGE as error:
                    raise UserError(f"{path} is damaged: its images cannot be listed ({error})") from None
            if not found:
                raise UserError(f"{path} has neither image_id beside features nor a group for every image")
            yield from found

    def read(self, items: Sequence[Item], report: Report) -> Iterator[tuple[int, Record]]:
        for number, path in enumerate(self.settings.features):
            wanted = [(i, item) for i, item in enumerate(items) if item.place[0] == number]
            if not wanted:
                continue
            with _open(path) as file:
                for i, item in wanted:
                    row = item.place[1]
                    try:
                        group = file if row >= 0 else file[item.name]
                        found = _detections(group, row, of=file.filename)
                        yield i, Record(item.name, regions=to_regions(found, self.settings))
                    except BadDetections as error:
                        report.skip(error.reason, f"{item.name} {error.detail}".rstrip())
                    except _DAMAGE as error:
                        report.skip("features that cannot be read", f"{item.name}: {error}")


def _items(file: Any, number: int) -> Iterator[Item]:
    ids = _member(file, "image_id")
    if ids is None:
        yield from (Item(_text(name), (number, -1)) for name in file if hasattr(file[name], "keys"))
        return
    for row, name in enumerate(ids[()].reshape(len(ids)).tolist()):
        yield Item(_text(name), (number, row))


def _text(name: object) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _detections(group: Mapping[str, Any], row: int, *, of: str) -> Detections:
    """of: name of the file."""
    arrays: dict[str, Any] = {}
    for field in ("features", "boxes", "num_boxes", "width", "height", "class_ids", "confidences", "probabilities"):
        data = _member(group, field)
        if data is not None:
            _check_array(data, row, field, of=of)
            array = np.asarray(data[()] if row < 0 else data[row])
            if array.dtype.kind not in "fiu":
                raise BadDetections("an array that does not hold numbers", field)
            arrays[field] = array
    if "features" not in arrays or "boxes" not in arrays:
        raise BadDetections("an image without features and boxes", f"it has {', '.join(sorted(arrays)) or 'nothing'}")
    # Arrays over all images are padded to the largest number of regions.
    present = int(arrays["num_boxes"]) if "num_boxes" in arrays and arrays["num_boxes"].ndim == 0 else None
    if present is not None and not 0 <= present <= len(arrays["features"]):
        raise BadDetections("another number of boxes than of rows", f"{present}, {len(arrays['features'])} rows")
    cut = {name: array[:present] if array.ndim else array for name, array in arrays.items()}
    size = None
    if "width" in cut and "height" in cut:
        size = (float(cut["width"]), float(cut["height"]))
    elif np.abs(cut["boxes"]).max(initial=0) > LARGEST_SHARE:
        raise BadDetections("boxes in pixels without the image's width and height")
    boxes = cut["boxes"]
    return Detections(
        features=cut["features"],
        boxes=boxes[:, :4] if boxes.ndim == 2 else boxes,
        size=size,
        class_ids=cut.get("class_ids"),
        confidences=cut.get("confidences"),
        probabilities=cut.get("probabilities"),
    )


def _check_array(data: Any, row: int, field: str, *, of: str) -> None:
    """Before it is read: HDF5 follows links, and may keep an array in any other file; a few bytes may describe terabytes."""
    if data.file.filename != of or data.is_virtual or data.external:
        raise BadDetections("an array that is in another file", field)
    read = data.shape if row < 0 else data.shape[1:]
    if max(math.prod(read), math.prod(data.chunks or ())) * data.dtype.itemsize > MAX_MEMBER_BYTES:
        raise BadDetections("an array that is too large", field)


def _member(group: Mapping[str, Any], field: str) -> Any:
    return next((group[name] for name in _SPELLINGS[field] if name in group), None)


def _open(path: Path) -> Any:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} cannot be opened as HDF5: {error}") from None
