"""COCO captions (captions_train2017.json and similar): images, and annotations that refer to them by id."""

from __future__ import annotations

from collections.abc import Iterator

from unimo_ds.data.prepare.readers.captions import caption_of
from unimo_ds.data.prepare.readers.protocol import Annotation
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.json_entries import objects_under

_WHAT = "a COCO captions file"


def read_annotations(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    for path in settings.captions:
        captions: dict[int, list[str]] = {}
        for one in objects_under(path, "annotations", what=_WHAT):
            where = f"{path.name}, annotation {one.get('id')}"
            caption = caption_of(one.get("caption"), where, report)
            if not isinstance(one.get("image_id"), int):
                report.skip("a caption without an image_id", where)
            elif caption is not None:
                captions.setdefault(one["image_id"], []).append(caption)
        seen: set[int] = set()
        for image in objects_under(path, "images", what=_WHAT):
            number, name = image.get("id"), image.get("file_name")
            if not isinstance(number, int) or not isinstance(name, str) or not name:
                report.skip("an image entry without id and file_name", f"{path.name}, image {number}")
            elif number in seen:
                report.skip("an id that comes twice", f"{path.name}, image {number}")
            else:
                seen.add(number)
                yield Annotation((name, str(number)), tuple(captions.pop(number, ())), number)
        for number in captions:
            report.skip("a caption of an image that the file does not list", f"{path.name}, image {number}")
