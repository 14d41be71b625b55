"""The index of a shard: the position of every member and the size of every sample, without reading the shard.

`SHARD.index.npz` (NumPy, no pickle) holds four arrays: `samples`, `texts` and `related_images` as records, and `about`, a
JSON. With it any sample takes one positioned read, and order, packing and balance need only indices.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.limits import MAX_MEMBER_BYTES
from unimo_ds.data.schema import SCHEMA_VERSION, Kind, Level, Sample, TextRole
from unimo_ds.data.storage import manifest, members, shards, tars
from unimo_ds.data.vision import region_tags
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.whole_file import write_whole

NUM_MEMBERS = len(members.EXTENSIONS)

SAMPLE_RECORD = np.dtype(
    [
        ("kind", "u1"),
        ("source", "<u2"),
        ("num_regions", "<u2"),
        ("num_texts", "<u4"),
        ("num_related_images", "<u4"),
        ("start", "<i8"),
        ("offset", "<u4", (NUM_MEMBERS,)),
        ("size", "<u4", (NUM_MEMBERS,)),
        ("crc32", "<u4", (NUM_MEMBERS,)),
    ]
)
"""start: first byte of the sample's first content; offset: of each member's content, from there; size: 0 if it has none."""
TEXT_RECORD = np.dtype([("role", "u1"), ("level", "u1"), ("caption", "<i4"), ("tokens", "<i4")])
"""Texts in the order of `members.texts_of`; tokens are counted without specials."""
RELATED_RECORD = np.dtype([("shard", "<u4"), ("index", "<u4")])
"""Related images: number of a shard name in `about`, and of a sample in that shard."""


class BatchEncoder(Protocol):
    """The part of a tokenizer used here."""

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode_batch(self, texts: Sequence[str], /) -> list[NDArray[np.int32]]: ...


@dataclass(frozen=True)
class ShardIndex:
    """The index of one shard."""

    samples: NDArray[np.void]
    """[n] SAMPLE_RECORD"""
    texts: NDArray[np.void]
    """[sum of num_texts] TEXT_RECORD"""
    related_images: NDArray[np.void]
    """[sum of num_related_images] RELATED_RECORD"""
    base_names: str
    """The n WebDataset keys within the shard, one per line: a single object in memory for any number of samples."""
    source_names: tuple[str, ...]
    related_shards: tuple[str, ...]
    """Names of the shards that hold related images."""
    shard_bytes: int
    shard_sha256: str
    tokenizer_fingerprint: str
    feature_size: int
    """0 if no sample has regions."""
    classes_per_region: int
    largest_class: int
    """-1 if no sample has regions."""
    region_tag_sizes: region_tags.Sizes = ()

    @property
    def bases(self) -> list[str]:
        """[n] WebDataset keys within the shard."""
        return self.base_names.splitlines()

    @property
    def num_samples(self) -> int:
        return len(self.samples)

    def counts_by_kind(self) -> dict[str, int]:
        """Kind name -> number of samples, for the kinds that occur."""
        counts = np.bincount(self.samples["kind"], minlength=len(Kind))
        return {kind.name.lower(): int(counts[kind]) for kind in Kind if counts[kind]}

    def counts_by_source(self) -> dict[str, int]:
        counts = np.bincount(self.samples["source"], minlength=len(self.source_names))
        return {name: int(count) for name, count in zip(self.source_names, counts, strict=True)}


_SCALARS = {
    "shard_bytes": int,
    "shard_sha256": str,
    "tokenizer_fingerprint": str,
    "feature_size": int,
    "classes_per_region": int,
    "largest_class": int,
}
_NAMES = ("source_names", "related_shards")
_TAG_SIZES = "region_tag_sizes"
"""Written only if there are tags: an index without them is as in earlier versions."""
# Raised by zipfile on damaged bytes; RuntimeError if they mark a member as encrypted.
_UNREADABLE = (ValueError, KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_RECORDS = {"samples": SAMPLE_RECORD, "texts": TEXT_RECORD, "related_images": RELATED_RECORD}


def _header_pattern(record: np.dtype[Any]) -> re.Pattern[bytes]:
    """Matches NumPy's header of a one-dimensional array of records; the group is their number."""
    descr = re.escape(repr(np.lib.format.dtype_to_descr(record)))
    fields = rf"\{{'descr': {descr}, 'fortran_order': False, 'shape': \((\d{{1,12}}),\), \}} *\n"
    return re.compile(rb"\x93NUMPY\x01\x00.." + fields.encode(), re.DOTALL)


_HEADERS = {name: _header_pattern(record) for name, record in {**_RECORDS, "about": np.dtype("u1")}.items()}


def build_index(path: Path, tokenizer: BatchEncoder, *, pixels: bool = True) -> None:
    """Read a shard once, check every sample completely, count its tokens, and write `SHARD.index.npz` beside it.

    pixels: whether JPEGs that are cut into patches are decoded; False if the writer of the shard has already decoded them.

    Raises:
        UserError: the shard cannot be read, or is damaged (naming the sample), or its samples differ in feature size.
    """
    write_whole(shards.index_path(path), to_bytes(scan(path, tokenizer, pixels=pixels)))


def of_shard(path: Path) -> ShardIndex:
    """The index beside a shard.

    Raises:
        UserError: it is damaged, or of another schema version.
        OSError: it cannot be read.
    """
    file = shards.index_path(path)
    return from_bytes(file.read_bytes(), where=file.name)


def rewrite(
    path: Path, transform: Callable[[int, shards.StoredSample], shards.StoredSample], tokenizer: BatchEncoder
) -> None:
    """`shards.rewrite_shard` and a new index. The shard must match its index, or damaged bytes would get a new checksum.

    Raises:
        UserError: the shard is damaged or does not match its index, or cannot be written; it is left unchanged.
    """
    file = shards.index_path(path)
    # There is no index if an earlier call was killed between its two halves.
    if file.exists():
        known = from_bytes(file.read_bytes(), where=str(file))
        if manifest.file_entry(path).sha256 != known.shard_sha256:
            raise UserError(
                f"shard {path} is not what it was when it was indexed (checksum): it is damaged or was replaced; restore it, "
                f"or accept it as it is with `unimo prepare pack {path.parent}`"
            )
    shards.rewrite_shard(path, transform)
    build_index(path, tokenizer, pixels=False)


def scan(path: Path, tokenizer: BatchEncoder, *, pixels: bool = True) -> ShardIndex:
    """The index of a shard, from the tar only. pixels: as in `build_index`.

    Raises:
        UserError: as `build_index`.
    """
    builder = _Builder()
    digest = hashlib.sha256()
    base = ""
    try:
        with shards.open_shard(path) as stream:
            walk = tars.walk(_Hashing(stream, digest), max_member_bytes=MAX_MEMBER_BYTES)  # type: ignore[arg-type]
            for base, columns in shards.group_members(walk):
                content = {column: member.content for column, member in columns.items()}
                sample = members.decode_sample(f"{path.name}:{base}", content, pixels=pixels)
                if sample.regions is not None:
                    members.check_values(sample.regions)
                builder.add(base, sample, columns)
    except (tars.BadTar, members.DecodeError, OSError) as error:
        raise shards.unreadable(path, base, error) from None
    if not builder.samples:
        raise UserError(f"shard {path} is damaged: it holds no sample; write it again or leave it out")
    return builder.finish(path.stat().st_size, digest.hexdigest(), tokenizer)


def to_bytes(index: ShardIndex) -> bytes:
    """The index as `.npz` bytes; equal indices give equal bytes."""
    about: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    about.update({name: getattr(index, name) for name in (*_SCALARS, "bases", *_NAMES)})
    if index.region_tag_sizes:
        about[_TAG_SIZES] = index.region_tag_sizes
    arrays = {name: getattr(index, name) for name in _RECORDS}
    arrays["about"] = np.frombuffer(json.dumps(about, separators=(",", ":")).encode(), np.uint8)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            # A fixed time makes the bytes a function of the content.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
    return buffer.getvalue()


def from_bytes(content: bytes, *, where: str) -> ShardIndex:
    """The index from the bytes of `to_bytes`.

    Raises:
        UserError: not an index, or one of another version; names `where`.
    """
    cure = "build it again with `unimo prepare pack`"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            arrays = {name: _parse_records(_stored(archive, name), name) for name in _RECORDS}
            about = strict_json.parsed(_parse_records(_stored(archive, "about"), "about").tobytes())
    except _UNREADABLE as error:
        raise UserError(f"{where} is not a readable index ({error}); {cure}") from None
    if not isinstance(about, dict) or about.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{where} is not of schema version {SCHEMA_VERSION}; {cure}")
    tag_sizes = about.pop(_TAG_SIZES, [])
    if set(about) != {"schema_version", "bases", *_SCALARS, *_NAMES}:
        raise UserError(f"{where} has other keys than this version writes; {cure}")
    if not all(type(about[name]) is kind for name, kind in _SCALARS.items()) or not all(
        isinstance(values, list) and {kind}.issuperset(map(type, values))
        for values, kind in ((tag_sizes, int), *((about[name], str) for name in ("bases", *_NAMES)))
    ):
        raise UserError(f"{where} has values of other types than this version writes; {cure}")
    fields: dict[str, Any] = {**arrays, **{name: about[name] for name in _SCALARS}}
    fields.update({name: tuple(about[name]) for name in _NAMES}, base_names="\n".join(about["bases"]))
    fields[_TAG_SIZES] = tuple(tag_sizes)
    index = ShardIndex(**fields)
    bases = about["bases"]
    if len(bases) != len(index.samples) or not all(map(str.isprintable, bases)) or not _is_possible(index):
        raise UserError(f"{where} contradicts itself; {cure}")
    return index


def _is_possible(index: ShardIndex) -> bool:
    """Whether numbers lie within what they count, and every sample has the texts of its kind: reading trusts them."""
    samples, texts = index.samples, index.texts
    ends = samples["start"][:, None] + samples["offset"].astype(np.int64) + samples["size"]
    # Beyond the shard's length, the sum might overflow.
    are_inside = not len(samples) or (
        0 <= samples["start"].min() <= samples["start"].max() <= ends.max() <= index.shard_bytes < 2**62
        and samples["source"].max() < len(index.source_names)
        and samples["size"].max() <= MAX_MEMBER_BYTES
        and samples["kind"].max() < len(Kind)
    )
    return bool(
        are_inside
        and samples["num_texts"].sum() == len(texts)
        and samples["num_related_images"].sum() == len(index.related_images)
        and index.related_images["shard"].max(initial=0) < max(len(index.related_shards), 1)
        and _are_texts_of(samples, texts)
    )


def _are_texts_of(samples: NDArray[np.void], texts: NDArray[np.void]) -> bool:
    """Whether an image has no text, a text one, and a pair at least one, of which the first is a caption."""
    kinds, counts = samples["kind"], samples["num_texts"].astype(np.int64)
    least, most = np.array([0, 1, 1]), np.array([0, 1, np.iinfo(np.int64).max])  # of image, text, pair
    firsts = (np.cumsum(counts) - counts)[counts > 0]
    return bool(
        (counts >= least[kinds]).all()
        and (counts <= most[kinds]).all()
        and (texts["role"][firsts] == TextRole.TEXT).all()
        and texts["role"].max(initial=0) < len(TextRole)
        and texts["level"].max(initial=0) < len(Level)
        and texts["tokens"].min(initial=0) >= 0
    )


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a member, which are in the archive as they are: a compressed one may grow a thousandfold.

    Raises:
        ValueError: it is compressed; and as zipfile.
    """
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(member)


def _parse_records(content: bytes, name: str) -> NDArray[np.void]:
    """[n] records as a view of `.npy` bytes. Much faster than NumPy's own reader, and accepts only the expected form.

    Raises:
        ValueError: another header, or another number of bytes than it states.
    """
    match = _HEADERS[name].match(content)
    record = _RECORDS.get(name, np.dtype("u1"))
    if match is None or len(content) - match.end() != int(match[1]) * record.itemsize:
        raise ValueError(f"{name} holds records of another form")
    return np.frombuffer(content, record, offset=match.end())


class _Hashing:
    """A stream whose bytes are hashed as they are read."""

    def __init__(self, stream: Any, digest: Any) -> None:
        self.stream, self.digest = stream, digest

    def read(self, size: int) -> bytes:
        content: bytes = self.stream.read(size)
        self.digest.update(content)
        return content


class _Builder:
    """Collects the records of a shard, sample by sample; texts are tokenised at the end in one batch."""

    def __init__(self) -> None:
        self.samples: list[tuple[Any, ...]] = []
        self.texts: list[tuple[int, int, int]] = []
        self.strings: list[str] = []
        self.related: list[tuple[int, int]] = []
        self.bases: list[str] = []
        self.source_numbers: dict[str, int] = {}
        self.related_numbers: dict[str, int] = {}
        self.feature_size = self.classes_per_region = 0
        self.largest_class = -1
        self.tag_sizes: region_tags.Sizes = ()

    def add(self, base: str, sample: Sample, columns: dict[int, tars.TarMember]) -> None:
        start = min(member.offset for member in columns.values())
        offset, size, crc32 = (np.zeros(NUM_MEMBERS, np.uint32) for _ in range(3))
        for column, member in columns.items():
            offset[column] = member.offset - start
            size[column] = len(member.content)
            crc32[column] = zlib.crc32(member.content)
        num_regions = 0
        if sample.regions is not None:
            num_regions, feature_size = sample.regions.features.shape
            classes = sample.regions.class_ids.shape[1]
            if self.feature_size and (feature_size, classes) != (self.feature_size, self.classes_per_region):
                raise members.DecodeError(
                    f"its regions have {feature_size} features and {classes} classes where the shard's first have "
                    f"{self.feature_size} and {self.classes_per_region}"
                )
            tag_sizes = region_tags.sizes_of(sample.regions)
            if self.feature_size and len(tag_sizes) != len(self.tag_sizes):
                raise members.DecodeError(
                    f"its regions have {len(tag_sizes)} tags where the shard's first have {len(self.tag_sizes)}"
                )
            self.tag_sizes = region_tags.common([tag_sizes, self.tag_sizes or tag_sizes])
            self.feature_size, self.classes_per_region = feature_size, classes
            self.largest_class = max(self.largest_class, int(sample.regions.class_ids.max()))
        texts = members.texts_of(sample)
        self.texts.extend((text.role, text.level, text.caption) for text in texts)
        self.strings.extend(text.text for text in texts)
        for shard, number in sample.related_images:
            self.related.append((self.related_numbers.setdefault(shard, len(self.related_numbers)), number))
        source = self.source_numbers.setdefault(sample.source, len(self.source_numbers))
        counts = (num_regions, len(texts), len(sample.related_images))
        self.samples.append((int(sample.kind), source, *counts, start, offset, size, crc32))
        self.bases.append(base)

    def finish(self, shard_bytes: int, shard_sha256: str, tokenizer: BatchEncoder) -> ShardIndex:
        texts = np.zeros(len(self.texts), TEXT_RECORD)
        if self.texts:
            texts["role"], texts["level"], texts["caption"] = np.array(self.texts).T
            texts["tokens"] = [len(ids) for ids in tokenizer.encode_batch(self.strings)]
        return ShardIndex(
            samples=np.array(self.samples, SAMPLE_RECORD),
            texts=texts,
            related_images=np.array(self.related, RELATED_RECORD),
            base_names="\n".join(self.bases),
            source_names=tuple(self.source_numbers),
            related_shards=tuple(self.related_numbers),
            shard_bytes=shard_bytes,
            shard_sha256=shard_sha256,
            tokenizer_fingerprint=tokenizer.fingerprint,
            feature_size=self.feature_size,
            classes_per_region=self.classes_per_region,
            largest_class=self.largest_class,
            region_tag_sizes=self.tag_sizes,
        )
