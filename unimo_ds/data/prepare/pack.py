"""`unimo prepare pack` and `unimo prepare regions`: a folder's indices anew, and its regions anew from the stored images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from unimo_ds.data import folder as folders
from unimo_ds.data import images, manifest, regions, shards
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.manifest import Manifest
from unimo_ds.data.prepare import stage_marks
from unimo_ds.data.prepare.importing import NUM_FITTED_IMAGES
from unimo_ds.data.prepare.journal import Journal, read_json_object, sweep, write_json
from unimo_ds.data.prepare.sources import Report
from unimo_ds.data.prepare.workers import Workers, one_thread
from unimo_ds.data.regions import RegionExtractor
from unimo_ds.data.shards import StoredSample
from unimo_ds.data.tokenizer import TOKENIZER_FILE
from unimo_ds.utils import seed as seeds
from unimo_ds.utils.errors import UserError


def pack_folder(folder: Path, *, tokenizer_path: Path | None = None) -> Manifest:
    """Build every index and the manifest anew, accepting shards as they are.

    tokenizer_path: a tokenizer that takes the place of the folder's own; None: the folder's own.

    Raises:
        UserError: no shards, no tokenizer, a shard that cannot be read.
    """
    before = manifest.load_manifest(folder) if (folder / manifest.MANIFEST_FILE).exists() else None
    if tokenizer_path is not None:
        tokenizer = tokenizers.load(tokenizer_path)
        tokenizer.save(folder)
    else:
        tokenizer = tokenizers.load(folder / (before.tokenizer.file if before else TOKENIZER_FILE))
    # A folder whose import was cut short has the extractor's file but no manifest that speaks of it.
    extractor = None
    if before is None and (folder / regions.EXTRACTOR_FILE).exists():
        extractor = regions.load(folder)
    entry = before.extractor if before else None
    return folders.finish_folder(
        folder,
        tokenizer=tokenizer,
        extractor_fingerprint=extractor.fingerprint if extractor else entry.fingerprint if entry else None,
        extractor_file=regions.EXTRACTOR_FILE if extractor else entry.file if entry else None,
        num_region_classes=extractor.num_classes if extractor else before.num_region_classes if before else None,
        reindex=True,
    )


def extract_again(
    folder: Path,
    *,
    refit: bool = False,
    extractor_path: Path | None = None,
    seed: int = 0,
    workers: Workers | None = None,
) -> Report:
    """Replace the regions of every image of the folder, computed from the stored JPEGs.

    refit: learn a new extractor from those JPEGs; extractor_path: use another one; neither: the folder's own.

    Raises:
        UserError: a sample without a JPEG (import with --keep-images), or no extractor to use.
    """
    listed = manifest.load_manifest(folder)
    tokenizer = tokenizers.load(folder / listed.tokenizer.file)
    names = [entry.file for entry in listed.shards if entry.kinds.get("pair") or entry.kinds.get("image")]
    if not names:
        raise UserError(f"{folder} holds no images")
    journal = Journal(folder, "regions")
    sweep(folder)
    options = [refit, seed, None if extractor_path is None else regions.load(extractor_path).fingerprint]
    journal.begin(stage_marks.identity([options, listed.fingerprint]))
    if not (journal.path / regions.EXTRACTOR_FILE).exists():
        one_thread(_choose, folder, listed, names, refit, extractor_path, seed).save(journal.path)
    extractor = regions.load(journal.path)
    report = Report()
    entries = {name: journal.path / f"done-{name}.json" for name in names}
    tasks = [(folder / name, journal.path, entries[name]) for name in names if read_json_object(entries[name]) is None]
    for _ in (workers or Workers()).run(_extract_shard, tasks, label="regions", unit="shards"):
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
    journal.forget()
    return report


def _extract_shard(path: Path, extractor_path: Path, entry: Path) -> None:
    """Make the regions of one shard anew, then write the entry that says so."""
    extractor = regions.load(extractor_path)
    num_images = 0

    def transform(_: int, stored: StoredSample) -> StoredSample:
        nonlocal num_images
        if stored.sample.regions is None:
            return stored
        found = extractor.extract([_picture(stored, extractor.working_side)])[0]
        num_images += 1
        return replace(stored, sample=replace(stored.sample, regions=found))

    shards.rewrite_shard(path, transform)
    write_json(entry, {"images": num_images})


def _choose(
    folder: Path, listed: Manifest, names: list[str], refit: bool, extractor_path: Path | None, seed: int
) -> RegionExtractor:
    if extractor_path is not None:
        return regions.load(extractor_path)
    if not refit:
        if listed.extractor is None or listed.extractor.file is None:
            raise UserError(f"{folder} names no region extractor; add --refit or --extractor FILE")
        return regions.load(folder / listed.extractor.file)
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
