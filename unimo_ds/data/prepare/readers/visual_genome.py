"""Visual Genome's region_descriptions.json: some fifty phrases per image. Images are named by numbers (2345.jpg).

Half of them are also in COCO, some in its test sets: image_data.json (`--image-data`) maps their ids, so that `--exclude` with
COCO ids excludes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unimo_ds.data.prepare.readers.captions import caption_of
from unimo_ds.data.prepare.readers.protocol import Annotation
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.json_entries import array_items

_WHAT = "Visual Genome's region_descriptions.json"


def read_annotations(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    """One annotation per image: its distinct phrases in order."""
    elsewhere = _other_ids(settings.image_data) if settings.image_data else {}
    for path in settings.captions:
        for position, image in enumerate(array_items(path, what=_WHAT)):
            regions = image.get("regions") if isinstance(image, dict) else None
            if not isinstance(regions, list):
                report.skip("an image entry without regions", f"{path.name}, entry {position}")
                continue
            phrases: dict[str, None] = {}
            number = image.get("id", image.get("image_id"))
            for region in regions:
                if not isinstance(region, dict):
                    report.skip("a region that is not an object", f"{path.name}, image {number}")
                    continue
                # Some releases have the image's number only in its regions.
                number = region.get("image_id", number) if number is None else number
                name = f"{path.name}, image {number}, region {region.get('region_id')}"
                phrase = caption_of(region.get("phrase"), name, report)
                if phrase is not None:
                    phrases[phrase] = None
            if not isinstance(number, int):
                report.skip("an image entry without an id", f"{path.name}, entry {position}")
                continue
            yield Annotation((f"{number}.jpg", str(number)), tuple(phrases), number, elsewhere.get(number, ()))


def _other_ids(path: Path) -> dict[int, tuple[str, ...]]:
    """Image number -> its COCO and Flickr ids."""
    found: dict[int, tuple[str, ...]] = {}
    for image in array_items(path, what="Visual Genome's image_data.json"):
        if isinstance(image, dict) and isinstance(image.get("image_id"), int):
            numbers = (image.get("coco_id"), image.get("flickr_id"))
            found[image["image_id"]] = tuple(str(one) for one in numbers if isinstance(one, int))
    return found
