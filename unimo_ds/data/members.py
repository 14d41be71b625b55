"""The members of a stored sample, as bytes: one JSON, the arrays of its regions, and perhaps the JPEG.

An image whose regions are patches of its own pixels has no arrays: the JSON says how its JPEG is cut.

Encoding is deterministic; decoding is strict: an allow-list of members, `.npy` headers in one canonical form, shapes and dtypes
bounded before anything is allocated, never a pickle. The decoder trusts nothing: `DecodeError` says what is wrong.

Tags of regions are the columns of `class_ids.npy` beyond those of `class_probabilities.npy`: numbers without a probability.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data import images, patches
from unimo_ds.data.crops import Crop
from unimo_ds.data.schema import (
    NO_TAG,
    Caption,
    Kind,
    Level,
    PatchGrid,
    Regions,
    Rewrite,
    Sample,
    Spans,
    TextRole,
)

JSON, BOXES, CLASS_IDS, CLASS_PROBABILITIES, FEATURES, JPEG = range(6)
EXTENSIONS = ("json", "boxes.npy", "class_ids.npy", "class_probabilities.npy", "features.npy", "jpg")
"""Every member a sample may have; the position of each is its column in the index."""
REGION_MEMBERS = (BOXES, CLASS_IDS, CLASS_PROBABILITIES, FEATURES)

MAX_MEMBER_BYTES = 256 * 2**20
MAX_JSON_BYTES = 16 * 2**20
MAX_REGIONS = 1024
MAX_FEATURE_SIZE = 16384
MAX_CLASSES_PER_REGION = 1024

_ARRAYS: dict[int, tuple[str, int]] = {
    BOXES: ("<f4", 4),
    CLASS_IDS: ("<i4", MAX_CLASSES_PER_REGION),
    CLASS_PROBABILITIES: ("<f2", MAX_CLASSES_PER_REGION),
    FEATURES: ("<f2", MAX_FEATURE_SIZE),
}
"""dtype and the most columns of each array."""
_PATCHES = "patches"
"""Key of the JSON: [rows, columns, pixels on a side]."""
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '(<f4|<f2|<i4)', 'fortran_order': False, 'shape': \((\d{1,6}), (\d{1,6})\), \} *\n"
)
_REFERENCE = re.compile(r"([A-Za-z0-9_-]+\.tar):([0-9]{1,9})")
# Plain dictionaries: an enumeration's own lookup takes several times as long, and a pair may hold a hundred rewrites.
_KINDS, _LEVELS = dict(Kind.__members__), dict(Level.__members__)


Buffer = bytes | memoryview


class DecodeError(ValueError):
    """Stored bytes are not a sample; the message says why."""


class StoredText(NamedTuple):
    """One text of a sample in canonical order."""

    text: str
    role: TextRole
    caption: int
    """Number of the caption it belongs to; -1 for related texts."""
    level: Level
    phrases: Spans = ()


def texts_of(sample: Sample) -> list[StoredText]:
    """All texts of a sample in the index's canonical order: for each caption itself, its positives and its negatives; then
    the related texts. A text sample has one."""
    if sample.text is not None:
        return [StoredText(sample.text, TextRole.TEXT, 0, Level.NONE, sample.phrases)]
    own, positive, negative, related = TextRole
    none = Level.NONE
    texts: list[StoredText] = []
    for number, caption in enumerate(sample.captions):
        texts.append(StoredText(caption.text, own, number, none, caption.phrases))
        texts += [StoredText(text, positive, number, none) for text, _, _ in caption.positives]
        texts += [StoredText(text, negative, number, level) for text, level, _ in caption.negatives]
    return texts + [StoredText(text, related, -1, none) for text in sample.related_texts]


def encode_sample(
    sample: Sample, *, jpeg: bytes | None = None, details: Mapping[str, Any] | None = None, pixels: bool = True
) -> dict[str, bytes]:
    """Extension -> bytes of a sample's members. Equal samples give equal bytes.

    jpeg: the image; must be there where regions are patches of it.
    details: anything of the caller's that JSON can hold (the original file's name, the image's size); kept, never read.
    pixels: whether such a JPEG is decoded, to see that it can be; False where that was seen before.

    Raises:
        DecodeError: the sample is not one that the decoder would accept.
    """
    record: dict[str, Any] = {"kind": sample.kind.name.lower(), "source": sample.source}
    if sample.kind is Kind.TEXT:
        record["text"] = sample.text
        record |= _phrases_record(sample.phrases)
    if sample.kind is Kind.PAIR:
        record["captions"] = [_caption_record(caption) for caption in sample.captions]
        record["related_texts"] = list(sample.related_texts)
        record["related_images"] = [f"{shard}:{index}" for shard, index in sample.related_images]
    grid = None if sample.regions is None else sample.regions.patches
    if grid is not None:
        record[_PATCHES] = [grid.rows, grid.columns, grid.side]
    if details:
        record["details"] = dict(details)
    try:
        members = {EXTENSIONS[JSON]: json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8")}
    except UnicodeEncodeError as error:
        raise DecodeError(f"a text is not valid Unicode: {error.reason}") from None
    if sample.regions is not None and grid is None:
        arrays: tuple[NDArray[Any], ...] = (
            sample.regions.boxes,
            _numbers(sample.regions),
            sample.regions.class_probabilities,
            sample.regions.features,
        )
        for member, array in zip(REGION_MEMBERS, arrays, strict=True):
            members[EXTENSIONS[member]] = encode_array(member, array)
    if jpeg is not None:
        members[EXTENSIONS[JPEG]] = bytes(jpeg)
    columns = {EXTENSIONS.index(name): content for name, content in members.items()}
    decoded = decode_sample(sample.key, columns, pixels=pixels)
    if decoded.regions is not None:
        check_values(decoded.regions)
    return members


def decode_sample(key: str, members: Mapping[int, Buffer], *, pixels: bool = True, crop: Crop | None = None) -> Sample:
    """The sample of members (column of `EXTENSIONS` -> bytes). The JPEG is looked at where regions are patches of it, else not.

    Arrays are read-only, views of the given bytes where these hold them.

    pixels: False for whoever is after texts: the JPEG is not looked at, and features of patches are zero.
    crop: of the image, where its regions are patches of it; None: all of it.

    Raises:
        DecodeError: anything that is not exactly a sample of its kind.
    """
    if JSON not in members:
        raise DecodeError("its .json is missing (raw images are for `unimo prepare import`)")
    record = _parse_json(members[JSON])
    kind = _parse_kind(record.get("kind"))
    is_text, is_pair = kind is Kind.TEXT, kind is Kind.PAIR
    present = [member for member in REGION_MEMBERS if member in members]
    is_cut = _PATCHES in record
    if is_text and (present or is_cut or JPEG in members):
        raise DecodeError("a text sample has an image")
    if is_cut and present:
        raise DecodeError(f"its regions are patches of its .jpg, and it has .{EXTENSIONS[present[0]]}")
    if is_cut and JPEG not in members:
        raise DecodeError("its .jpg is missing")
    if not is_text and not is_cut and len(present) < len(REGION_MEMBERS):
        missing = [EXTENSIONS[member] for member in REGION_MEMBERS if member not in members]
        raise DecodeError(f"its {', '.join(missing)} is missing")
    if not isinstance(record.get("details", {}), dict):
        raise DecodeError("details is not an object")
    text = _text(record.get("text"), "text") if is_text else None
    regions = None
    if is_cut:
        regions = _cut(members[JPEG], patch_grid(record[_PATCHES]), crop, pixels=pixels)
    elif not is_text:
        regions = _decode_regions(members)
    related_texts = _list(record, "related_texts", is_pair=is_pair)
    related_images = _list(record, "related_images", is_pair=is_pair)
    return Sample(
        key=key,
        kind=kind,
        source=_text(record.get("source"), "source"),
        regions=regions,
        text=text,
        phrases=() if text is None else _parse_phrases(record, text),
        captions=_parse_captions(record) if is_pair else (),
        related_texts=tuple(_text(text, "a related text") for text in related_texts),
        related_images=tuple(_parse_reference(reference) for reference in related_images),
    )


def patch_grid(numbers: object) -> PatchGrid:
    """The grid that the JSON of a sample names.

    Raises:
        DecodeError: not [rows, columns, side] of a grid that a sample may have.
    """
    if not (isinstance(numbers, list) and len(numbers) == 3 and all(type(one) is int and one >= 1 for one in numbers)):
        raise DecodeError(f"patches {numbers!r} are not [rows, columns, pixels on a side]")
    grid = PatchGrid(*numbers)
    if grid.num_patches > MAX_REGIONS or grid.feature_size > MAX_FEATURE_SIZE:
        raise DecodeError(
            f"{grid.rows} x {grid.columns} patches of {grid.feature_size} numbers are beyond ({MAX_REGIONS}, {MAX_FEATURE_SIZE})"
        )
    return grid


def details_of(content: Buffer) -> dict[str, Any]:
    """The `details` that were stored in the JSON of a sample that can be decoded."""
    details: dict[str, Any] = _parse_json(content).get("details", {})
    return details


def encode_array(member: int, array: NDArray[Any]) -> bytes:
    """A two-dimensional array as canonical `.npy` bytes (version 1.0, C order) in the member's dtype."""
    # Values beyond float16 become infinite, which `check_values` refuses by name.
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array, dtype=_ARRAYS[member][0])
    if stored.ndim != 2:
        raise DecodeError(f"{EXTENSIONS[member]} has {stored.ndim} dimensions, not 2")
    header = f"{{'descr': '{_ARRAYS[member][0]}', 'fortran_order': False, 'shape': {stored.shape}, }}".encode()
    # NumPy pads the header so that the data begin at a multiple of 64 bytes.
    padding = -(len(_NPY_MAGIC) + 2 + len(header) + 1) % 64
    header += b" " * padding + b"\n"
    return _NPY_MAGIC + len(header).to_bytes(2, "little") + header + stored.tobytes()


def decode_array(member: int, content: Buffer) -> NDArray[Any]:
    """A read-only view [R, columns] of `.npy` bytes; nothing is allocated before dtype and shape have been accepted."""
    name = EXTENSIONS[member]
    dtype, most_columns = _ARRAYS[member]
    if content[: len(_NPY_MAGIC)] != _NPY_MAGIC:
        raise DecodeError(f"{name} is not a version 1.0 .npy file")
    start = 10 + int.from_bytes(content[8:10], "little")
    match = _NPY_HEADER.fullmatch(content, 10, start)
    if match is None:
        raise DecodeError(f"{name} has a header other than the plain two-dimensional form")
    rows, columns = int(match[2]), int(match[3])
    if match[1].decode() != dtype:
        raise DecodeError(f"{name} holds {match[1].decode()}, not {dtype}")
    if not (1 <= rows <= MAX_REGIONS and 1 <= columns <= most_columns):
        raise DecodeError(f"{name} has shape ({rows}, {columns}), beyond ({MAX_REGIONS}, {most_columns})")
    if len(content) - start != rows * columns * np.dtype(dtype).itemsize:
        raise DecodeError(f"{name} has {len(content) - start} bytes for shape ({rows}, {columns}) of {dtype}")
    return np.frombuffer(content, dtype, offset=start).reshape(rows, columns)


def check_values(regions: Regions) -> None:
    """Refuse values that would poison a run: not finite, boxes outside the image, probabilities outside [0, 1].

    Raises:
        DecodeError: naming the array.
    """
    if regions.patches is not None:
        return  # they are made here
    if not np.isfinite(regions.features).all():
        raise DecodeError("features.npy holds values that are not finite (beyond the range of float16, or NaN)")
    boxes = regions.boxes
    if not ((boxes >= 0) & (boxes <= 1)).all() or not (boxes[:, :2] <= boxes[:, 2:]).all():
        raise DecodeError("boxes.npy is not x1 <= x2, y1 <= y2 within [0, 1]")
    probabilities = regions.class_probabilities
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise DecodeError("class_probabilities.npy is not within [0, 1]")
    if (regions.class_ids < 0).any():
        raise DecodeError("class_ids.npy holds negative ids")
    if regions.tags is not None and (regions.tags < NO_TAG).any():
        raise DecodeError(f"class_ids.npy holds a tag below {NO_TAG}")


def _numbers(regions: Regions) -> NDArray[Any]:
    """[R, K + G] `class_ids.npy`: class ids, then tags."""
    if regions.tags is None:
        return regions.class_ids
    if regions.tags.ndim != 2 or len(regions.tags) != len(regions.class_ids) or regions.tags.dtype.kind not in "iu":
        raise DecodeError(
            f"tags of type {regions.tags.dtype} and shape {regions.tags.shape} are no whole numbers [R, G]"
        )
    return np.concatenate([regions.class_ids, regions.tags], axis=1)


def _cut(jpeg: Buffer, grid: PatchGrid, crop: Crop | None, *, pixels: bool) -> Regions:
    if not pixels:
        return patches.uncut(grid)
    try:
        return patches.of_jpeg(jpeg, grid, crop)
    except images.BadImage as error:
        raise DecodeError(f"its .jpg cannot be decoded: {error}") from None


def _decode_regions(members: Mapping[int, Buffer]) -> Regions:
    boxes, class_ids, class_probabilities, features = (
        decode_array(member, members[member]) for member in REGION_MEMBERS
    )
    if boxes.shape[1] != 4:
        raise DecodeError(f"boxes.npy has {boxes.shape[1]} columns, not 4")
    if not len(boxes) == len(class_ids) == len(class_probabilities) == len(features):
        raise DecodeError("boxes, classes and features differ in their number of regions")
    num_classes = class_probabilities.shape[1]
    if class_ids.shape[1] < num_classes:
        raise DecodeError("there are fewer class ids than probabilities")
    class_ids, tags = class_ids[:, :num_classes], class_ids[:, num_classes:]
    return Regions(boxes, features, class_ids, class_probabilities, tags if tags.shape[1] else None)


def _parse_json(content: Buffer) -> dict[str, Any]:
    if len(content) > MAX_JSON_BYTES:
        raise DecodeError(f"its .json has {len(content)} bytes; the limit is {MAX_JSON_BYTES}")
    try:
        text = str(content, "utf-8")
        record = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            # JSON can spell half of a surrogate pair, which no tokenizer, page or terminal takes.
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise DecodeError("a text in its .json is not valid Unicode") from None
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"its .json cannot be parsed: {error}") from None
    if not isinstance(record, dict):
        raise DecodeError("its .json is not an object")
    return record


def _parse_kind(name: object) -> Kind:
    kind = _KINDS.get(name.upper()) if isinstance(name, str) else None
    if kind is None:
        raise DecodeError(f"kind {name!r} is not pair, image or text")
    return kind


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise DecodeError(f"{what} is missing or not a text")
    return value


def _list(record: Mapping[str, Any], name: str, *, is_pair: bool) -> list[Any]:
    values = record.get(name, [])
    if not isinstance(values, list):
        raise DecodeError(f"{name} is not a list")
    if values and not is_pair:
        raise DecodeError(f"only pairs have {name}")
    return values


def _parse_captions(record: Mapping[str, Any]) -> tuple[Caption, ...]:
    # One caption may also stand at the top level, with its rewrites beside it.
    records = None
    if "caption" in record:
        records = [{**record, "text": record["caption"]}]
    records = records or record.get("captions")
    if not isinstance(records, list) or not records:
        raise DecodeError("a pair has no captions")
    return tuple(_parse_caption(one) for one in records)


def _parse_caption(record: object) -> Caption:
    if not isinstance(record, dict) or not isinstance(record.get("rewrites", {}), dict):
        raise DecodeError("a caption is not an object with text and rewrites")
    rewrites = record.get("rewrites", {})
    positives, negatives = rewrites.get("positive", []), rewrites.get("negative", [])
    if not isinstance(positives, list) or not isinstance(negatives, list):
        raise DecodeError("rewrites are not lists")
    text = _text(record.get("text"), "a caption")
    return Caption(
        text=text,
        phrases=_parse_phrases(record, text),
        positives=tuple(_parse_rewrite(one, positive=True) for one in positives),
        negatives=tuple(_parse_rewrite(one, positive=False) for one in negatives),
    )


def _parse_phrases(record: Mapping[str, Any], text: str) -> Spans:
    spans = record.get("phrases", [])
    if not isinstance(spans, list):
        raise DecodeError("phrases is not a list")
    last, found = 0, []
    for span in spans:
        if not (isinstance(span, list) and len(span) == 2 and all(type(one) is int for one in span)):
            raise DecodeError(f"phrase {span!r} is not [start, end]")
        start, end = span
        if not last <= start < end <= len(text):
            raise DecodeError(f"phrase {span!r} lies outside its text, or over the one before")
        found.append((start, end))
        last = end
    return tuple(found)


def _parse_rewrite(record: object, *, positive: bool) -> Rewrite:
    if not isinstance(record, dict):
        raise DecodeError("a rewrite is not an object")
    origin = record.get("from", "")
    if "to" in record:
        origin = f"{origin}>{record['to']}"
    if not isinstance(origin, str):
        raise DecodeError("a rewrite's origin is not a text")
    name = record.get("level", "none")
    level = _LEVELS.get(name.upper()) if isinstance(name, str) else None
    if level is None:
        raise DecodeError(f"a rewrite's level is {name!r}")
    if positive == bool(level):
        raise DecodeError("a positive rewrite has a level" if positive else "a negative rewrite has no level")
    return Rewrite(_text(record.get("text"), "a rewrite"), level, origin)


def _parse_reference(reference: object) -> tuple[str, int]:
    match = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
    if match is None:
        raise DecodeError(f"related image {reference!r} is not SHARD.tar:INDEX")
    return match[1], int(match[2])


def _caption_record(caption: Caption) -> dict[str, Any]:
    positives = [{"text": one.text, "from": one.origin} for one in caption.positives]
    negatives = [{"text": one.text, "level": one.level.name.lower(), "from": one.origin} for one in caption.negatives]
    rewrites = {"positive": positives, "negative": negatives}
    return {"text": caption.text, **_phrases_record(caption.phrases), "rewrites": rewrites}


def _phrases_record(phrases: Spans) -> dict[str, Any]:
    """Nothing where there are none: such samples are stored as they always were."""
    return {"phrases": [list(span) for span in phrases]} if phrases else {}
