"""The data folders of one run: opened, checked to fit together, and described by one manifest.

No code beyond this needs their number: `corpus.Corpus` joins the shards of all of them as if they were in one folder, so order,
masking and packing are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from unimo_ds.data.storage.manifest import Manifest
from unimo_ds.data.storage.open_folder import OpenFolder
from unimo_ds.data.vision import region_tags
from unimo_ds.utils import locations
from unimo_ds.utils.errors import UserError

_ONCE = "name each data folder once (data.folder_weights says how often its samples are seen)"


def open_folders(location: str, *, cache_dir: str | None, cache_bytes: int) -> list[OpenFolder]:
    """The folders of `A::B`, in this order. cache_bytes: for all remote ones together.

    Raises:
        UserError: as `OpenFolder`; one is named twice, or two hold a shard with the same bytes (a copy, link or mirror); they
            were prepared with different tokenizers, region extractors, feature sizes or numbers of classes.
    """
    places = locations.split(location)
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"data folder {place} is named twice; {_ONCE}")
    folders = [
        OpenFolder(place, cache_dir=cache_dir, cache_bytes=cache_bytes, num_folders=len(places)) for place in places
    ]
    _check_made_alike(folders)
    _check_distinct(folders)
    return folders


def lead_of(folders: Sequence[OpenFolder]) -> OpenFolder:
    """The folder whose tokenizer and region extractor are used: the first with region features and an extractor, if any."""
    return max(folders, key=lambda one: (one.manifest.feature_size > 0, one.manifest.extractor is not None))


def still_there(location: str) -> OpenFolder:
    """The lead of those folders that can be opened; used after a run, for the tools that made its data.

    Raises:
        UserError: none can be opened; the first folder's error.
    """
    found, problems = [], []
    for place in locations.split(location):
        try:
            found.append(OpenFolder(place))
        except UserError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    return lead_of(found)


def joint_manifest(folders: Sequence[OpenFolder]) -> Manifest:
    """Manifest of everything that is read. Its fingerprint covers content and order but not location: folders may move, and one
    folder with the same shards in the same order has the same fingerprint.
    """
    return dataclasses.replace(
        lead_of(folders).manifest,
        shards=tuple(entry for folder in folders for entry in folder.manifest.shards),
        commands=tuple(command for folder in folders for command in folder.manifest.commands),
        region_tag_sizes=region_tags.common(
            folder.manifest.region_tag_sizes for folder in folders if folder.manifest.feature_size
        ),
    )


def _check_made_alike(folders: Sequence[OpenFolder]) -> None:
    known: dict[str, tuple[object, OpenFolder]] = {}
    for folder in folders:
        for part, value in _made_with(folder.manifest).items():
            wanted, first = known.setdefault(part, (value, folder))
            if value != wanted:
                raise UserError(
                    f"data folders {first.location} and {folder.location} do not fit together: {part} {wanted} and {value}; "
                    f"prepare {folder.location} with `--like {first.location}` (features of one detector: with the same "
                    "--feature-name)"
                )


def _made_with(manifest: Manifest) -> dict[str, object]:
    """Values that must be equal in all folders that have them."""
    parts: dict[str, object] = {
        "vocabulary of": manifest.tokenizer.vocabulary_size,
        "tokenizer": manifest.tokenizer.fingerprint,
    }
    if manifest.extractor is not None:
        parts["region extractor"] = manifest.extractor.fingerprint
    if manifest.feature_size:
        parts["region features of size"] = manifest.feature_size
        parts["number of region classes"] = manifest.num_region_classes
        parts["classes stored with a region"] = manifest.classes_per_region
        parts["tags of a region"] = len(manifest.region_tag_sizes)
    return parts


def _check_distinct(folders: Sequence[OpenFolder]) -> None:
    holders: dict[str, OpenFolder] = {}
    for folder in folders:
        for entry in folder.manifest.shards:
            first = holders.setdefault(entry.sha256, folder)
            if first is not folder:
                raise UserError(
                    f"data folders {first.location} and {folder.location} hold the same samples (shard {entry.file}); {_ONCE}"
                )
