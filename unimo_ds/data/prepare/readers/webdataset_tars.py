"""WebDataset tars, as img2dataset and others write them: consecutive members with the same base name are a sample.

A sample has an image (.jpg, .jpeg, .png or .webp) and a caption (.txt, or `caption` in its .json). Members are found by
their headers and read in place.
"""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from unimo_ds.data.limits import MAX_JSON_BYTES
from unimo_ds.data.prepare.readers.captions import caption_of
from unimo_ds.data.prepare.readers.files import open_file, read_extent
from unimo_ds.data.prepare.readers.image_files import IMAGE_SUFFIXES, members_of_tar, refusal
from unimo_ds.data.prepare.readers.names import Exclusion, read_exclusion
from unimo_ds.data.prepare.readers.protocol import PART_ITEMS, Part, Reader, Record
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError

_KEPT_DETAILS = ("key", "url", "original_width", "original_height", "sha256", "license")
_Members = Mapping[str, Sequence[int]]
"""Of one sample: extension -> offset, size."""


@dataclass(frozen=True)
class WebDatasetTars(Reader):
    """Single tars, or folders of tars. A part is up to 1000 samples of one tar."""

    settings: ImportSettings
    with_captions: bool = True

    def parts(self, report: Report) -> Iterator[Part]:
        exclusion = read_exclusion(self.settings.exclude)
        for path in tars_of(self.settings.input):
            for items in batched(self._wanted(path, exclusion, report), PART_ITEMS):
                yield {"tar": str(path), "items": items}

    def _wanted(self, path: Path, exclusion: Exclusion, report: Report) -> Iterator[tuple[str, _Members]]:
        # Duplicate keys are only sought within a tar: each download numbers its tars and samples from 0.
        seen: set[str] = set()
        for base, members in _samples(path, report):
            name = f"{path.name}/{base}"
            if _image_of(members) is None:
                report.skip("a sample without a JPEG, PNG or WebP image", name)
            elif self.with_captions and not {"txt", "json"} & set(members):
                report.skip("an image without a caption", name)
            elif exclusion.holds_name(base):  # a key is a counter, not an image id
                report.count("images excluded")
            elif base in seen:
                report.skip("an image that comes twice", name)
            else:
                seen.add(base)
                yield base, members

    def records(self, part: Part, report: Report) -> Iterator[Record]:
        path = Path(part["tar"])
        exclusion = read_exclusion(self.settings.exclude)
        with open_file(path) as stream:
            for base, members in part["items"]:
                name = f"{path.name}/{base}"
                about = _about(stream, path, members)
                if about is None:
                    report.skip("a sample whose .json cannot be parsed", name)
                    continue
                # Only the .json has the image's original name, in its URL.
                url = str(about.get("url") or "")
                if url and exclusion.holds(url.rpartition("/")[2]):
                    report.count("images excluded")
                    continue
                caption = _caption(stream, path, members, about, name, report) if self.with_captions else ""
                if caption is None:
                    continue
                details = {key: about[key] for key in _KEPT_DETAILS if isinstance(about.get(key), str | int)}
                image = read_extent(stream, path, *(_image_of(members) or (0, 0)))
                yield Record(name, captions=(caption,) if caption else (), image=image, details=details)

    def texts(self, part: Part) -> Iterator[str]:
        if not self.with_captions:
            return
        path = Path(part["tar"])
        with open_file(path) as stream:
            for _, members in part["items"]:
                about = _about(stream, path, members)
                caption = None if about is None else _caption(stream, path, members, about, "", Report())
                if caption is not None:
                    yield caption


def tars_of(paths: tuple[Path, ...]) -> list[Path]:
    """The given tars and those in the given folders, each once.

    Raises:
        UserError: a folder without tars.
    """
    tars: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not inside:
            raise UserError(
                f"--input {path} holds no .tar; make one of each folder of files: tar --sort=name -cf 00000.tar -C 00000 ."
            )
        for tar in inside:
            tars.setdefault(tar.resolve(), tar)
    return list(tars.values())


def _samples(path: Path, report: Report) -> Iterator[tuple[str, _Members]]:
    """(base name, members) of each sample; of several members with one extension the first."""
    for base, of_sample in itertools.groupby(_accepted(path, report), key=lambda member: _split(member)[0]):
        members: dict[str, Sequence[int]] = {}
        for member in of_sample:
            members.setdefault(_split(member)[1], (member.offset_data, member.size))
        yield base, members


def _accepted(path: Path, report: Report) -> Iterator[tarfile.TarInfo]:
    for member in members_of_tar(path, option="--input"):
        reason = refusal(member)
        if reason is None:
            yield member
        else:
            report.skip(reason, member.name.removeprefix("./"))


def _split(member: tarfile.TarInfo) -> tuple[str, str]:
    """Base name (with its folder) and extension, in lower case."""
    folder, slash, file = member.name.removeprefix("./").rpartition("/")
    first, _, extension = file.partition(".")
    return f"{folder}{slash}{first}", extension.lower()


def _image_of(members: _Members) -> Sequence[int] | None:
    return next((members[suffix[1:]] for suffix in IMAGE_SUFFIXES if suffix[1:] in members), None)


def _about(stream: BinaryIO, path: Path, members: _Members) -> dict[str, Any] | None:
    """The sample's .json, {} if it has none, None if it cannot be parsed."""
    if "json" not in members:
        return {}
    if members["json"][1] > MAX_JSON_BYTES:
        return None
    try:
        content = json.loads(read_extent(stream, path, *members["json"]))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _caption(
    stream: BinaryIO, path: Path, members: _Members, about: dict[str, Any], name: str, report: Report
) -> str | None:
    """The caption; None if there is no valid one, which the report then names."""
    caption = about.get("caption")
    if "txt" in members and members["txt"][1] <= MAX_JSON_BYTES:
        try:
            caption = read_extent(stream, path, *members["txt"]).decode("utf-8-sig")
        except UnicodeDecodeError:
            report.skip("a caption that is not UTF-8", name)
            return None
    return caption_of(caption, name, report)
