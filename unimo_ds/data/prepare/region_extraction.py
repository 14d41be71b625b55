"""`unimo prepare regions`: recomputes the regions of every image in a folder from the stored JPEGs.

Each task rewrites one shard atomically; the extractor gets images in batches that do not depend on the number of workers. The
stage's journal keeps the extractor, so that a killed stage continues with the same one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from unimo_ds.data.prepare.importing import chosen_images
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import RegionSettings
from unimo_ds.data.prepare.stages import Stage, Transform
from unimo_ds.data.prepare.workers import Workers, one_thread
from unimo_ds.data.schema import Regions
from unimo_ds.data.storage import shards
from unimo_ds.data.storage.manifest import ExtractorEntry, Manifest
from unimo_ds.data.storage.shards import StoredSample
from unimo_ds.data.vision import extractors, images
from unimo_ds.data.vision.extractor_file import EXTRACTOR_FILE
from unimo_ds.data.vision.grid import GridLearner
from unimo_ds.data.vision.region_extractor import RegionExtractor, RegionLearner
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError

_BATCH = 64
"""Images per call of the extractor."""


def extract_again(folder: Path, settings: RegionSettings, workers: Workers) -> Report:
    """Replace the regions of every image in the folder, computed from the stored JPEGs.

    Raises:
        UserError: a sample without a JPEG (import with --keep-images), or no extractor.
    """
    given = settings.made()
    if settings.refit and given is not None and not isinstance(given, GridLearner):
        raise UserError("--refit learns a new grid; leave --extractor and --weights out")
    given = given or (GridLearner() if settings.refit else None)
    stage = Stage(folder, "regions", [settings.refit, settings.seed, None if given is None else given.fingerprint])
    names = stage.shards("pair", "image")
    if not names:
        raise UserError(f"{folder} holds no images")
    if not stage.begin():
        return Report({"regions already made": 1})
    place = stage.journal.path
    if (place / EXTRACTOR_FILE).exists():
        extractor = extractors.load(place)
    else:
        if given is None:
            extractor = _own(folder, stage.listed)
        elif isinstance(given, RegionLearner):
            extractor = one_thread(_learned, given, folder, names, stage.listed, settings.seed)
        else:
            extractor = given
        extractor.save(place)
    work = (place, extractor.fingerprint)
    with workers.for_extractor(is_network=extractors.is_network(place)) as some:
        report = stage.each_shard(_with_regions, work, names, some, label="regions")
    entry = ExtractorEntry(extractor.fingerprint, extractor.save(folder).name)
    stage.finish(extractor=entry, num_region_classes=extractor.num_classes)
    return report


def _with_regions(extractor: tuple[Path, str], path: Path, report: Report) -> Transform:
    """extractor: folder of its file, and fingerprint."""
    found = _regions_of(path, extractors.loaded(*extractor))

    def transform(_: int, stored: StoredSample) -> StoredSample:
        if stored.sample.regions is None:
            return stored
        report.count("images")
        return replace(stored, sample=replace(stored.sample, regions=next(found)))

    return transform


def _regions_of(path: Path, extractor: RegionExtractor) -> Iterator[Regions]:
    """New regions of a shard's images in order, computed in batches."""
    with_images = (stored for stored in shards.read_shard(path, pixels=False) if stored.sample.regions is not None)
    for some in batched(with_images, _BATCH):
        yield from extractor.extract([_picture(stored, extractor.working_side) for stored in some])


def _own(folder: Path, listed: Manifest) -> RegionExtractor:
    if listed.extractor is None or listed.extractor.file is None:
        raise UserError(
            f"{folder} names no region extractor; add --extractor grid, "
            "or a network's --extractor and --weights, or an extractor's file"
        )
    return extractors.load(folder / listed.extractor.file)


def _learned(learner: RegionLearner, folder: Path, names: list[str], listed: Manifest, seed: int) -> RegionExtractor:
    """The extractor learned from a seeded choice of the folder's images."""
    total = listed.totals.get("pair", 0) + listed.totals.get("image", 0)
    chosen = chosen_images(total, learner, seed)
    stored_images = (
        one
        for name in names
        for one in shards.read_shard(folder / name, pixels=False)
        if one.sample.regions is not None
    )
    pictures = (_picture(one, learner.working_side) for number, one in enumerate(stored_images) if number in chosen)
    return learner.learn(pictures, seed=seed)


def _picture(stored: StoredSample, side: int) -> Image.Image:
    if stored.jpeg is None:
        raise UserError(f"sample {stored.sample.key} has no stored image; import it again with --keep-images")
    try:
        return images.decode(stored.jpeg, shrink_to=side)
    except images.BadImage as error:
        raise UserError(f"the image of sample {stored.sample.key} cannot be decoded: {error}") from None
