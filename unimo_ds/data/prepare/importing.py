"""`unimo prepare import`: a raw corpus in, a complete data folder out (or a folder that has one source more)."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from PIL import Image
from rich.progress import Progress

from unimo_ds.data import folder as folders
from unimo_ds.data import images, manifest, regions
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.prepare import sources, texts
from unimo_ds.data.prepare.sources import ImageSource, Report
from unimo_ds.data.regions import RegionExtractor
from unimo_ds.data.schema import Caption, Kind, Sample
from unimo_ds.data.shards import SHARD_SUFFIX, ShardWriter
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.utils import seed as seeds
from unimo_ds.utils.errors import UserError

DEFAULT_VOCABULARY = 8192
NUM_FITTED_IMAGES = 1500
_BATCH = 64
_T = TypeVar("_T")


@dataclass(frozen=True)
class ImportSettings:
    """What to import, and into which folder."""

    kind: Literal["pairs", "texts", "images"]
    output: Path
    images: Path | None = None
    captions: Path | None = None
    input: tuple[Path, ...] = ()
    source: str | None = None
    """Name of the corpus in the folder; None: the name of its file."""
    tokenizer: Path | None = None
    extractor: Path | None = None
    like: Path | None = None
    """A data folder whose tokenizer and extractor are used."""
    vocabulary_size: int = DEFAULT_VOCABULARY
    keep_images: bool = False
    paragraphs: bool = False
    column: str | None = None
    skip: Path | None = None
    """File names (first column) of images to leave out."""
    replace: bool = False
    seed: int = 0


def run_import(settings: ImportSettings) -> Report:
    """Import one corpus, finish the folder, and write `report-SOURCE.json` beside the shards.

    Raises:
        UserError: missing or unfit inputs, a folder that has another tokenizer or extractor, nothing to import.
    """
    start = time.perf_counter()
    check(settings)
    report = Report()
    name = source_name(settings)
    if _was_interrupted(settings.output, name):
        settings = dataclasses.replace(settings, replace=True)
    if settings.kind == "texts":
        tokenizer = _tokenizer(settings, lambda: _all_texts(settings, Report()))
        num_samples = _import_texts(settings, name, tokenizer, report)
        extractor = None
    else:
        captions = sources.read_captions(settings.captions, report) if settings.captions else {}
        tokenizer = _tokenizer(settings, lambda: itertools.chain.from_iterable(captions.values()))
        extractor, num_samples = _import_images(settings, name, captions, report)
    if not num_samples:
        raise UserError("nothing to import: " + "; ".join(report.lines()))
    report.counts = {"samples": num_samples, **report.counts}
    tokenizer.save(settings.output)
    write_report(settings.output, name, report, seconds=time.perf_counter() - start)
    folders.finish_folder(
        settings.output,
        tokenizer=tokenizer,
        extractor_fingerprint=extractor.fingerprint if extractor else None,
        extractor_file=extractor.save(settings.output).name if extractor else None,
        num_region_classes=extractor.num_classes if extractor else None,
    )
    return report


def check(settings: ImportSettings) -> None:
    """
    Raises:
        UserError: an input that the kind needs is missing or is not there.
    """
    needed = {"pairs": ("images", "captions"), "images": ("images",), "texts": ("input",)}[settings.kind]
    for name in needed:
        if not getattr(settings, name):
            raise UserError(f"--kind {settings.kind} needs --{name}")
    for name in {"images", "captions", "input"} - set(needed):
        if getattr(settings, name):
            raise UserError(f"--kind {settings.kind} has no use for --{name}")
    for path in (settings.images, settings.captions, settings.skip, *settings.input):
        if path is not None and not path.exists():
            raise UserError(f"{path} does not exist")


def write_report(folder: Path, name: str, report: Report, *, seconds: float) -> None:
    """`report-NAME.json`: counts and every name that was skipped."""
    content = {**dataclasses.asdict(report), "seconds": round(seconds, 1)}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (folder / f"report-{name}.json").write_text(text + "\n", encoding="utf-8")


def progress(items: Iterable[_T], *, label: str, total: int | None = None) -> Iterator[_T]:
    """The items, with a bar where a person is watching."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console

    with Progress(console=Console(stderr=True)) as bar:
        yield from bar.track(items, total=total, description=label)


def _was_interrupted(folder: Path, name: str) -> bool:
    """Whether an earlier import of this source was killed: it left shards that no manifest lists. Its scraps are removed."""
    for scrap in folder.glob(f".{name}-*.partial"):
        scrap.unlink()
    listed = _manifest_of(folder)
    known = {entry.file for entry in listed.shards} if listed else set()
    present = {path.name for path in folder.glob(f"{name}-*{SHARD_SUFFIX}")}
    return bool(present) and not present & known


def source_name(settings: ImportSettings) -> str:
    """The given name, or that of the imported file, in the characters a shard's name may have."""
    path = settings.images if settings.kind != "texts" else settings.input[0]
    raw = settings.source or (path.stem if path else settings.kind)
    return re.sub(r"[^A-Za-z0-9_-]+", "_", raw)[:48] or settings.kind


def _tokenizer(settings: ImportSettings, training_texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """The named tokenizer, that of `--like`, the folder's own, or one trained on what is imported."""
    own = _manifest_of(settings.output)
    like = _manifest_of(settings.like, required=True) if settings.like else None
    if settings.tokenizer is not None:
        chosen = tokenizers.load(settings.tokenizer)
    elif like is not None and settings.like is not None:
        chosen = tokenizers.load(settings.like / like.tokenizer.file)
    elif own is not None:
        return tokenizers.load(settings.output / own.tokenizer.file)
    else:
        chosen = tokenizers.train(training_texts(), vocabulary_size=settings.vocabulary_size)
    if own is not None and own.tokenizer.fingerprint != chosen.fingerprint:
        raise UserError(
            f"{settings.output} was made with tokenizer {own.tokenizer.fingerprint}, not {chosen.fingerprint}; "
            "leave --tokenizer and --like out, or name another --output"
        )
    return chosen


def _extractor(settings: ImportSettings, source: ImageSource, wanted: Sequence[str]) -> RegionExtractor:
    """The named extractor, that of `--like`, the folder's own, or one fitted on the images of this import."""
    own = _manifest_of(settings.output)
    own_entry = own.extractor if own else None
    like = _manifest_of(settings.like, required=True) if settings.like else None
    if settings.extractor is not None:
        chosen = regions.load(settings.extractor)
    elif like is not None and settings.like is not None:
        if like.extractor is None or like.extractor.file is None:
            raise UserError(f"{settings.like} has no region extractor; name one with --extractor")
        chosen = regions.load(settings.like / like.extractor.file)
    elif own_entry is not None and own_entry.file is not None:
        return regions.load(settings.output / own_entry.file)
    else:
        chosen = fit_extractor(source, wanted, seed=settings.seed)
    if own_entry is not None and own_entry.fingerprint != chosen.fingerprint:
        raise UserError(
            f"{settings.output} was made with region extractor {own_entry.fingerprint}, not {chosen.fingerprint}; "
            "leave --extractor and --like out, or name another --output"
        )
    return chosen


def fit_extractor(source: ImageSource, names: Sequence[str], *, seed: int) -> RegionExtractor:
    """A grid extractor fitted on a seeded choice of the named images that can be decoded."""
    chosen = set(names)
    if len(names) > NUM_FITTED_IMAGES:
        order = seeds.generator(seed, 0xF17).permutation(len(names))[:NUM_FITTED_IMAGES]
        chosen = {names[i] for i in order}
    side = regions.GridSettings().image_side
    pictures: list[Image.Image] = []
    for _, data in progress(source.read(wanted=chosen), label="reading images to learn from", total=len(chosen)):
        try:
            picture = images.decode(data, shrink_to=side)
        except images.BadImage:
            continue  # counted and named when it is imported
        # Shrunk at once: this list must stay small however large the photographs are.
        pictures.append(picture.resize((side, side), Image.Resampling.BOX))
    if not pictures:
        raise UserError(f"none of the images in {source.path} that are wanted can be decoded; check the files")
    return regions.fit(pictures, seed=seed)


def _manifest_of(folder: Path | None, *, required: bool = False) -> manifest.Manifest | None:
    if folder is None or (not required and not (folder / manifest.MANIFEST_FILE).exists()):
        return None
    return manifest.load_manifest(folder)


def _all_texts(settings: ImportSettings, report: Report) -> Iterator[str]:
    for path in settings.input:
        yield from sources.read_texts(path, report, column=settings.column, paragraphs=settings.paragraphs)


def _import_texts(settings: ImportSettings, name: str, tokenizer: Tokenizer, report: Report) -> int:
    def counted() -> Iterator[str]:
        for text in _all_texts(settings, report):
            report.count("texts read")
            yield text

    with ShardWriter(settings.output, name, max_samples=10_000, replace=settings.replace) as writer:
        for piece in progress(texts.pieces(counted(), tokenizer), label="texts"):
            writer.write(Sample(key="", kind=Kind.TEXT, source=name, text=piece))
    return writer.num_samples


def _import_images(
    settings: ImportSettings, name: str, captions: dict[str, list[str]], report: Report
) -> tuple[RegionExtractor | None, int]:
    """Pairs, or images alone. Returns the extractor and the number of samples."""
    if settings.images is None:
        raise UserError(f"--kind {settings.kind} needs --images")
    source = ImageSource(settings.images)
    left_out = sources.read_names(settings.skip) if settings.skip else set()
    present = source.names(report)
    wanted: list[str] = []
    for image in present:
        if image in left_out or os.path.basename(image) in left_out:
            report.count("images left out by --skip")
        elif settings.kind == "pairs" and not _captions_of(image, captions):
            report.skip("an image without a caption", image)
        else:
            wanted.append(image)
    known = {*present, *(os.path.basename(image) for image in present)}
    for image in captions:
        if image not in known:
            report.skip("a caption whose image is missing", image)
    if not wanted:
        return None, 0
    extractor = _extractor(settings, source, wanted)
    with ShardWriter(settings.output, name, max_samples=1000, replace=settings.replace) as writer:
        stream = progress(source.read(wanted=set(wanted)), label=settings.kind, total=len(wanted))
        while batch := list(itertools.islice(stream, _BATCH)):
            decoded = list(_decode(batch, extractor.working_side, report))
            found = extractor.extract([picture for _, _, picture in decoded])
            for (image, data, picture), one in zip(decoded, found, strict=True):
                mine = tuple(Caption(text) for text in _captions_of(image, captions))
                report.count("captions", len(mine))
                writer.write(
                    Sample("", Kind.PAIR if mine else Kind.IMAGE, name, regions=one, captions=mine),
                    jpeg=_stored_jpeg(data, settings),
                    details={"file": image, "size": list(picture.size)},
                )
    return extractor, writer.num_samples


def _captions_of(image: str, captions: dict[str, list[str]]) -> list[str]:
    """By the whole relative name, else by the file name alone."""
    return captions.get(image) or captions.get(os.path.basename(image)) or []


def _decode(batch: Iterable[tuple[str, bytes]], side: int, report: Report) -> Iterator[tuple[str, bytes, Image.Image]]:
    for name, data in batch:
        try:
            yield name, data, images.decode(data, shrink_to=side)
        except images.BadImage as error:
            report.skip("an image that cannot be decoded", f"{name}: {error}")


def _stored_jpeg(data: bytes, settings: ImportSettings) -> bytes | None:
    if not settings.keep_images:
        return None
    return data if images.is_jpeg(data) else images.encode_jpeg(images.decode(data))
