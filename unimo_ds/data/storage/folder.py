"""Finishes a data folder: an index for every shard, then the manifest of all of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import unimo_ds
from unimo_ds.data.storage import index, manifest, shards
from unimo_ds.data.storage.manifest import ExtractorEntry, FileEntry, Manifest, ShardEntry, TokenizerEntry
from unimo_ds.data.vision import region_tags
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.redact import redact

_OTHER_FILES = (".json", ".safetensors", ".txt", ".tsv")
_PACKAGES = ("numpy", "webdataset", "tokenizers", "pillow", "torch")


def finish_folder(
    folder: str | os.PathLike[str],
    *,
    tokenizer: index.BatchEncoder,
    tokenizer_file: str = "tokenizer.json",
    extractor: ExtractorEntry | None = None,
    num_region_classes: int | None = None,
    command: str | None = None,
    reindex: bool = False,
    leave_out: Collection[str] = (),
) -> Manifest:
    """Make a folder of shards complete: build indices that are missing or count tokens of another tokenizer, and write
    manifest.json. Repeating it is cheap and changes nothing; after another import it adds the new shards.

    tokenizer_file: name of a file inside the folder.
    extractor, num_region_classes: None: as in the present manifest.
    command: recorded as what made the folder; None: this process's command line.
    leave_out: names of shards that do not belong to it (yet).
    reindex: rebuild every index, and accept shards changed or removed since the manifest was written.

    Raises:
        UserError: no shards; a damaged shard; a shard changed or lost since the manifest was written; shards that differ in
            feature size; a reference to a missing related image; files not found.
    """
    folder = Path(folder)
    paths = [path for path in shards.shard_files(folder) if path.name not in leave_out]
    if not paths:
        raise UserError(f"{folder} holds no shards; import something into it first")
    before = None if reindex else manifest.manifest_in(folder)
    if before is not None:
        lost = {entry.file for entry in before.shards} - {path.name for path in paths}
        if lost:
            raise UserError(
                f"{folder} lost shard {min(lost)} since its manifest was written; restore it, or accept the loss with "
                f"`unimo prepare pack {folder}`"
            )
    for path in paths:
        if reindex or not _has_index(path, tokenizer.fingerprint):
            index.build_index(path, tokenizer)
    entries, outlines = _collect(paths)
    feature_size, classes_per_region, largest_class, tag_sizes = common_sizes(outlines)
    check_related(outlines)
    if extractor is None and before is not None:
        extractor = before.extractor
    if num_region_classes is None:
        num_region_classes = before.num_region_classes if before is not None else 0
    if largest_class >= num_region_classes:
        raise UserError(
            f"{folder} holds region class {largest_class}, but num_region_classes is {num_region_classes}; "
            "name the extractor's number of classes"
        )
    program = Path(sys.argv[0]).name.replace("__main__.py", "unimo")
    made_by = command if command is not None else redact(shlex.join([program, *sys.argv[1:]]))
    commands = before.commands if before is not None else ()
    made = Manifest(
        shards=tuple(entries),
        tokenizer=TokenizerEntry(tokenizer_file, tokenizer.fingerprint, tokenizer.vocabulary_size),
        extractor=extractor,
        feature_size=feature_size,
        classes_per_region=classes_per_region,
        num_region_classes=num_region_classes,
        files=_other_files(folder, (tokenizer_file, extractor.file if extractor is not None else None)),
        commands=commands if commands[-1:] == (made_by,) else (*commands, made_by),
        versions=_versions(),
        region_tag_sizes=tag_sizes,
    )
    manifest.write_manifest(folder, made)
    return made


def _has_index(path: Path, tokenizer_fingerprint: str) -> bool:
    """Whether the shard has an index for this tokenizer. An unreadable index counts as none.

    Raises:
        UserError: the shard's size has changed since it was indexed.
    """
    file = shards.index_path(path)
    if not file.is_file():
        return False
    try:
        present = index.from_bytes(file.read_bytes(), where=str(file))
    except UserError:
        return False
    if present.shard_bytes != path.stat().st_size:
        raise UserError(
            f"shard {path} has {path.stat().st_size} bytes where its index knows {present.shard_bytes}: it is damaged or was "
            f"replaced; restore it, or accept it as it is with `unimo prepare pack {path.parent}`"
        )
    return present.tokenizer_fingerprint == tokenizer_fingerprint


@dataclass(frozen=True)
class Outline:
    """The part of a shard's index that shows whether shards fit together. Whole indices are too large: some KB a pair."""

    path: Path
    feature_size: int
    classes_per_region: int
    largest_class: int
    tag_sizes: region_tags.Sizes
    has_regions: NDArray[np.bool_]
    """[n] for each sample."""
    refers: bool
    """Whether pairs refer to related images."""


def outline_of(path: Path, one: index.ShardIndex) -> Outline:
    has_regions = one.samples["num_regions"] > 0
    sizes = (one.feature_size, one.classes_per_region, one.largest_class, one.region_tag_sizes)
    return Outline(path, *sizes, has_regions, bool(one.related_shards))


def _collect(paths: Iterable[Path]) -> tuple[list[ShardEntry], list[Outline]]:
    entries, outlines = [], []
    for path in paths:
        content = shards.index_path(path).read_bytes()
        one = index.from_bytes(content, where=str(shards.index_path(path)))
        outlines.append(outline_of(path, one))
        entries.append(entry_of(path.name, one, content))
    return entries, outlines


def entry_of(file: str, one: index.ShardIndex, content: bytes) -> ShardEntry:
    """The manifest's entry of a shard. content: the bytes of its index."""
    return ShardEntry(
        file=file,
        samples=one.num_samples,
        kinds=one.counts_by_kind(),
        sources=one.counts_by_source(),
        bytes=one.shard_bytes,
        sha256=one.shard_sha256,
        index_bytes=len(content),
        index_sha256=hashlib.sha256(content).hexdigest(),
    )


def common_sizes(outlines: Sequence[Outline]) -> tuple[int, int, int, region_tags.Sizes]:
    """(feature size, classes per region, largest class, sizes of tags) over all shards that have regions; (0, 0, -1, ()) if
    none has.

    Raises:
        UserError: shards differ.
    """
    with_regions = [one for one in outlines if one.classes_per_region]
    shapes = [
        f"{one.feature_size} features with {one.classes_per_region} classes and {len(one.tag_sizes)} tags"
        for one in with_regions
    ]
    for one, shape in zip(with_regions, shapes, strict=True):
        if shape != shapes[0]:
            raise UserError(
                f"shard {one.path.name} has regions of {shape} where {with_regions[0].path.name} has {shapes[0]}; "
                "import both with one extractor, or extract again with `unimo prepare regions`"
            )
    feature_size = with_regions[0].feature_size if with_regions else 0
    classes_per_region = with_regions[0].classes_per_region if with_regions else 0
    largest_class = max(one.largest_class for one in outlines)
    return feature_size, classes_per_region, largest_class, region_tags.common(one.tag_sizes for one in with_regions)


def check_related(outlines: Sequence[Outline]) -> None:
    """Every reference to a related image must name an existing sample with regions.

    Raises:
        UserError: naming the shard that refers, and the cure.
    """
    by_name = {one.path.name: one for one in outlines}
    for path in (one.path for one in outlines if one.refers):
        referring = index.of_shard(path)
        for number, name in enumerate(referring.related_shards):
            if name not in by_name:
                raise UserError(
                    f"shard {path.name} refers to related images in {name}, which is not there; "
                    "run `unimo prepare retrieve` again"
                )
            samples = referring.related_images["index"][referring.related_images["shard"] == number]
            target = by_name[name].has_regions
            if len(samples) and (samples.max() >= len(target) or not target[samples].all()):
                raise UserError(
                    f"shard {path.name} refers to a related image in {name} that is not there or has no regions; "
                    "run `unimo prepare retrieve` again"
                )


def _other_files(folder: Path, named: Iterable[str | None]) -> tuple[FileEntry, ...]:
    """Entries of the files besides the shards; the named ones must exist."""
    for name in named:
        if name is not None and not (manifest.PLAIN_NAME.fullmatch(name) and (folder / name).is_file()):
            raise UserError(f"{folder} has no file {name!r}; it must lie inside the folder, beside the shards")
    names = {name for name in named if name is not None}
    for path in folder.iterdir():
        if path.is_file() and path.suffix in _OTHER_FILES and manifest.PLAIN_NAME.fullmatch(path.name):
            names.add(path.name)
    names.discard(manifest.MANIFEST_FILE)
    return tuple(manifest.file_entry(folder / name) for name in sorted(names))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "unimo_ds": unimo_ds.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
