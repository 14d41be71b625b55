"""`unimo prepare regions`: the regions of every image of a folder anew, from the stored JPEGs.

A task is a shard, done whole or not at all; images go through the extractor in batches that do not depend on the number of
workers. The extractor lies in the stage's journal, so that a stage that was killed goes on with the same one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from unimo_ds.data import extractors, images, manifest, regions, shards
from unimo_ds.data import folder as folders
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.extractor_file import EXTRACTOR_FILE
from unimo_ds.data.manifest import Manifest
from unimo_ds.data.prepare import stage_marks
from unimo_ds.data.prepare.importing import NUM_FITTED_IMAGES
from unimo_ds.data.prepare.journal import Journal, read_json_object, sweep, write_json
from unimo_ds.data.prepare.sources import Report
from unimo_ds.data.prepare.workers import Workers, one_thread
from unimo_ds.data.regions import RegionExtractor
from unimo_ds.data.schema import Regions
from unimo_ds.data.shards import StoredSample
from unimo_ds.utils import seed as seeds
from unimo_ds.utils.errors import UserError

_BATCH = 64
"""Images handed to the extractor together."""


def extract_again(
    folder: Path,
    *,
    refit: bool = False,
    extractor_path: Path | None = None,
    weights: Path | None = None,
    seed: int = 0,
    workers: Workers | None = None,
) -> Report:
    """Replace the regions of every image of the folder, computed from the stored JPEGs.

    refit: learn a new grid from those JPEGs; extractor_path: a kind (`grid` learns anew too) or an extractor's file; weights: of
    the detector of that kind; none of these: the folder's own extractor.

    Raises:
        UserError: a sample without a JPEG (import with --keep-images), or no extractor to use.
    """
    listed = manifest.load_manifest(folder)
    tokenizer = tokenizers.load(folder / listed.tokenizer.file)
    names = [entry.file for entry in listed.shards if entry.kinds.get("pair") or entry.kinds.get("image")]
    if not names:
        raise UserError(f"{folder} holds no images")
    refit = refit or extractors.is_grid(extractor_path)
    given = extractors.chosen(extractor_path, weights)
    if refit and given is not None:
        raise UserError("--refit learns a new grid; leave --extractor and --weights out")
    options = stage_marks.identity([refit, seed, None if given is None else given.fingerprint])
    journal = Journal(folder, "regions")
    sweep(folder)
    if stage_marks.is_done(folder, "regions", options):
        journal.forget()
        return Report({"regions already made": 1})
    journal.begin(stage_marks.identity([options, listed.fingerprint]))
    if not (journal.path / EXTRACTOR_FILE).exists():
        (given or one_thread(_own, folder, listed, names, refit, seed)).save(journal.path)
    extractor = given or extractors.load(journal.path)
    report = Report()
    entries = {name: journal.path / f"done-{name}.json" for name in names}
    place = (journal.path, extractor.fingerprint)
    tasks = [(folder / name, *place, entries[name]) for name in names if read_json_object(entries[name]) is None]
    with (workers or Workers()).for_extractor(is_detector=extractors.is_detector(journal.path)) as some:
        for _ in some.run(_extract_shard, tasks, label="regions", unit="shards"):
            pass
    for entry in entries.values():
        report.count("images", read_json_object(entry)["images"])
    folders.finish_folder(
        folder,
        tokenizer=tokenizer,
        tokenizer_file=listed.tokenizer.file,
        extractor_fingerprint=extractor.fingerprint,
        extractor_file=extractor.save(folder).name,
        num_region_classes=extractor.num_classes,
    )
    stage_marks.mark_done(folder, "regions", options)
    journal.forget()
    return report


def _extract_shard(path: Path, extractor_folder: Path, fingerprint: str, entry: Path) -> None:
    """Make the regions of one shard anew, then write the entry that says so."""
    found = _regions_of(path, _loaded(extractor_folder, fingerprint))
    num_images = 0

    def transform(_: int, stored: StoredSample) -> StoredSample:
        nonlocal num_images
        if stored.sample.regions is None:
            return stored
        num_images += 1
        return replace(stored, sample=replace(stored.sample, regions=next(found)))

    shards.rewrite_shard(path, transform)
    write_json(entry, {"images": num_images})


def _regions_of(path: Path, extractor: RegionExtractor) -> Iterator[Regions]:
    """New regions of a shard's images in their order, a batch at a time."""
    with_images = (stored for stored in shards.read_shard(path) if stored.sample.regions is not None)
    while batch := list(itertools.islice(with_images, _BATCH)):
        yield from extractor.extract([_picture(stored, extractor.working_side) for stored in batch])


# A worker does many shards of one stage. The fingerprint is part of the key, for a file may be written anew.
@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, fingerprint: str) -> RegionExtractor:
    return extractors.load(folder)


def _own(folder: Path, listed: Manifest, names: list[str], refit: bool, seed: int) -> RegionExtractor:
    """The folder's extractor, or a grid learned from its images."""
    if not refit:
        if listed.extractor is None or listed.extractor.file is None:
            raise UserError(
                f"{folder} names no region extractor; add --extractor grid, "
                "or a detector's --extractor and --weights, or an extractor's file"
            )
        return extractors.load(folder / listed.extractor.file)
    total = listed.totals.get("pair", 0) + listed.totals.get("image", 0)
    chosen = set(seeds.generator(seed, 0xF17).permutation(total)[:NUM_FITTED_IMAGES].tolist())
    side = regions.GridSettings().image_side
    pictures = []
    stored_images = (
        one for name in names for one in shards.read_shard(folder / name) if one.sample.regions is not None
    )
    for number, stored in enumerate(stored_images):
        if number in chosen:
            pictures.append(_picture(stored, side).resize((side, side), Image.Resampling.BOX))
    return regions.fit(pictures, seed=seed)


def _picture(stored: StoredSample, side: int) -> Image.Image:
    if stored.jpeg is None:
        raise UserError(f"sample {stored.sample.key} has no stored image; import it again with --keep-images")
    try:
        return images.decode(stored.jpeg, shrink_to=side)
    except images.BadImage as error:
        raise UserError(f"the image of sample {stored.sample.key} cannot be decoded: {error}") from None
