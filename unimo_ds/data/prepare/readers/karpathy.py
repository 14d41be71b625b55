"""Karpathy's splits (dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json): sentences and split of each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from unimo_ds.data.prepare.readers.captions import captions_of
from unimo_ds.data.prepare.readers.protocol import Annotation
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.json_entries import objects_under

TRAINING_SPLITS = ("train", "restval")
"""The default; the other splits are test images of downstream tasks."""


def read_annotations(settings: ImportSettings, report: Report) -> Iterator[Annotation]:
    wanted = settings.splits or TRAINING_SPLITS
    present: Counter[str] = Counter()
    for path in settings.captions:
        for image in objects_under(path, "images", what="a file with Karpathy's splits"):
            name, split, sentences = image.get("filename"), image.get("split"), image.get("sentences")
            if not isinstance(name, str) or not isinstance(split, str) or not isinstance(sentences, list):
                report.skip("an image entry without filename, split and sentences", f"{path.name}, image {name}")
                continue
            present[split] += 1
            if split not in wanted:
                report.count(f"images of the split {split} left out")
                continue
            raw = [one.get("raw") if isinstance(one, dict) else None for one in sentences]
            number, folder = image.get("cocoid"), image.get("filepath")
            names = (f"{folder}/{name}", name) if isinstance(folder, str) and folder else (name,)
            yield Annotation(names, captions_of(raw, name, report), number if isinstance(number, int) else None)
    missing = set(settings.splits) - set(present)
    if missing:
        raise UserError(f"no image has the split {min(missing)!r}; there are {', '.join(sorted(present)) or 'none'}")
