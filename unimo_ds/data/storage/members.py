"""The members of a stored sample, as bytes: one JSON, the arrays of its regions, and optionally the JPEG.

An image whose regions are patches of its own pixels has no arrays: the JSON says how its JPEG is cut.

Encoding is deterministic; decoding is strict: an allow-list of members, `.npy` headers in one canonical form, shapes and dtypes
checked before anything is allocated, never a pickle. The decoder trusts nothing: `DecodeError` says what is wrong.

Tags of regions are the columns of `class_ids.npy` beyond those of `class_probabilities.npy`: ids without a probability.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.limits import MAX_CLASSES_PER_REGION, MAX_FEATURE_SIZE, MAX_REGIONS
from unimo_ds.data.schema import NO_TAG, Kind, Level, PatchGrid, Regions, Sample, Spans, TextRole
from unimo_ds.data.storage import member_json
from unimo_ds.data.storage.member_json import Buffer
from unimo_ds.data.vision import images, patches
from unimo_ds.data.vision.crops import Crop

JSON, BOXES, CLASS_IDS, CLASS_PROBABILITIES, FEATURES, JPEG = range(6)
EXTENSIONS = ("json", "boxes.npy", "class_ids.npy", "class_probabilities.npy", "features.npy", "jpg")
"""Every member a sample may have; the position of each is its column in the index."""
REGION_MEMBERS = (BOXES, CLASS_IDS, CLASS_PROBABILITIES, FEATURES)

_ARRAYS: dict[int, tuple[str, int]] = {
    BOXES: ("<f4", 4),
    CLASS_IDS: ("<i4", MAX_CLASSES_PER_REGION),
    CLASS_PROBABILITIES: ("<f2", MAX_CLASSES_PER_REGION),
    FEATURES: ("<f2", MAX_FEATURE_SIZE),
}
"""dtype and maximum number of columns of each array."""
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '(<f4|<f2|<i4)', 'fortran_order': False, 'shape': \((\d{1,6}), (\d{1,6})\), \} *\n"
)


class DecodeError(ValueError):
    """Stored bytes are not a sample; the message says why."""


class StoredText(NamedTuple):
    """One text of a sample, in canonical order."""

    text: str
    role: TextRole
    caption: int
    """Number of the caption it belongs to; -1 for related texts."""
    level: Level
    phrases: Spans = ()


def texts_of(sample: Sample) -> list[StoredText]:
    """All texts of a sample in the index's canonical order: each caption followed by its positives and its negatives; then the
    related texts. A text sample has one."""
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


def num_texts(sample: Sample) -> int:
    """Of `texts_of`."""
    if sample.text is not None:
        return 1
    return sum(1 + len(one.positives) + len(one.negatives) for one in sample.captions) + len(sample.related_texts)


def encode_sample(
    sample: Sample, *, jpeg: bytes | None = None, details: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """Extension -> bytes of a sample's members. Equal samples give equal bytes.

    jpeg: the image; required if regions are patches of it. It is not decoded, since it was when the patches were cut.
    details: anything that JSON can hold (original file name, image size); stored, never used.

    Raises:
        DecodeError: the decoder would not accept the sample.
    """
    grid = None if sample.regions is None else sample.regions.patches
    try:
        members = {EXTENSIONS[JSON]: member_json.write(sample, details)}
    except member_json.BadRecord as error:
        raise DecodeError(str(error)) from None
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
    decoded = decode_sample(sample.key, columns, pixels=False)
    if decoded.regions is not None:
        check_values(decoded.regions)
    return members


def decode_sample(key: str, members: Mapping[int, Buffer], *, pixels: bool = True, crop: Crop | None = None) -> Sample:
    """The sample of members (column of `EXTENSIONS` -> bytes). The JPEG is decoded only if regions are patches of it.

    Arrays are read-only; stored ones are views of the given bytes.

    pixels: False if only texts are needed: the JPEG is not decoded, and features of patches are zero.
    crop: of the image, if its regions are patches of it; None: all of it.

    Raises:
        DecodeError: anything that is not exactly a sample of its kind.
    """
    if JSON not in members:
        raise DecodeError("its .json is missing (raw images are for `unimo prepare import`)")
    try:
        record = member_json.read(members[JSON])
    except member_json.BadRecord as error:
        raise DecodeError(str(error)) from None
    is_text, grid = record.kind is Kind.TEXT, record.patches
    present = [member for member in REGION_MEMBERS if member in members]
    if is_text and (present or grid is not None or JPEG in members):
        raise DecodeError("a text sample has an image")
    if grid is not None and present:
        raise DecodeError(f"its regions are patches of its .jpg, and it has .{EXTENSIONS[present[0]]}")
    if grid is not None and JPEG not in members:
        raise DecodeError("its .jpg is missing")
    if not is_text and grid is None and len(present) < len(REGION_MEMBERS):
        missing = [EXTENSIONS[member] for member in REGION_MEMBERS if member not in members]
        raise DecodeError(f"its {', '.join(missing)} is missing")
    regions = None
    if grid is not None:
        regions = _cut(members[JPEG], grid, crop, pixels=pixels)
    elif not is_text:
        regions = _decode_regions(members)
    return Sample(
        key=key,
        kind=record.kind,
        source=record.source,
        regions=regions,
        text=record.text,
        phrases=record.phrases,
        captions=record.captions,
        related_texts=record.related_texts,
        related_images=record.related_images,
    )


def encode_array(member: int, array: NDArray[Any]) -> bytes:
    """A two-dimensional array as canonical `.npy` bytes (version 1.0, C order) in the member's dtype."""
    # Values beyond float16 become infinite, which `check_values` refuses.
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array, dtype=_ARRAYS[member][0])
    if stored.ndim != 2:
        raise DecodeError(f"{EXTENSIONS[member]} has {stored.ndim} dimensions, not 2")
    header = f"{{'descr': '{_ARRAYS[member][0]}', 'fortran_order': False, 'shape': {stored.shape}, }}".encode()
    # NumPy pads the header so that the data start at a multiple of 64 bytes.
    padding = -(len(_NPY_MAGIC) + 2 + len(header) + 1) % 64
    header += b" " * padding + b"\n"
    return _NPY_MAGIC + len(header).to_bytes(2, "little") + header + stored.tobytes()


def decode_array(member: int, content: Buffer) -> NDArray[Any]:
    """A read-only view [R, columns] of `.npy` bytes; nothing is allocated before dtype and shape are checked."""
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
    """Refuse values that would spoil a run: not finite, boxes outside the image, probabilities outside [0, 1].

    Raises:
        DecodeError: naming the array.
    """
    if regions.patches is not None:
        return  # computed here, not stored
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
