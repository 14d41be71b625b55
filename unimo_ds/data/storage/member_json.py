"""The JSON of a stored sample: its kind and source, its texts with their rewrites and phrases, related items, and how its JPEG
is cut into patches. Written deterministically, read strictly: `BadRecord` says what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from unimo_ds.data.limits import MAX_JSON_BYTES
from unimo_ds.data.schema import Caption, Kind, Level, PatchGrid, Rewrite, Sample, Spans

Buffer = bytes | memoryview

_PATCHES = "patches"
"""Key of [rows, columns, pixels per side] in the JSON."""
_REFERENCE = re.compile(r"([A-Za-z0-9_-]+\.tar):([0-9]{1,9})")
# Plain dictionaries: an enumeration's own lookup is several times slower, and a pair may have a hundred rewrites.
_KINDS, _LEVELS = dict(Kind.__members__), dict(Level.__members__)


class BadRecord(ValueError):
    """Bytes are not the JSON of a sample; the message says why."""


class Record(NamedTuple):
    """The parsed JSON of a sample."""

    kind: Kind
    source: str
    text: str | None
    phrases: Spans
    captions: tuple[Caption, ...]
    related_texts: tuple[str, ...]
    related_images: tuple[tuple[str, int], ...]
    patches: PatchGrid | None
    """How the JPEG is cut; None: regions have arrays, or there are none."""


def write(sample: Sample, details: Mapping[str, Any] | None = None) -> bytes:
    """The JSON of a sample. details: see `members.encode_sample`.

    Raises:
        BadRecord: a text is not valid Unicode.
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
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord(f"a text is not valid Unicode: {error.reason}") from None


def read(content: Buffer) -> Record:
    """
    Raises:
        BadRecord: anything that is not exactly the JSON of a sample of its kind.
    """
    record = _parse_json(content)
    kind = _parse_kind(record.get("kind"))
    is_text, is_pair = kind is Kind.TEXT, kind is Kind.PAIR
    if not isinstance(record.get("details", {}), dict):
        raise BadRecord("details is not an object")
    text = _text(record.get("text"), "text") if is_text else None
    related_texts = _list(record, "related_texts", is_pair=is_pair)
    related_images = _list(record, "related_images", is_pair=is_pair)
    return Record(
        kind=kind,
        source=_text(record.get("source"), "source"),
        text=text,
        phrases=() if text is None else _parse_phrases(record, text),
        captions=_parse_captions(record) if is_pair else (),
        related_texts=tuple(_text(text, "a related text") for text in related_texts),
        related_images=tuple(_parse_reference(reference) for reference in related_images),
        patches=_parse_patches(record[_PATCHES]) if _PATCHES in record else None,
    )


def details_of(content: Buffer) -> dict[str, Any]:
    """The `details` in the JSON of a valid sample."""
    details: dict[str, Any] = _parse_json(content).get("details", {})
    return details


def _parse_patches(numbers: object) -> PatchGrid:
    if not (isinstance(numbers, list) and len(numbers) == 3 and all(type(one) is int for one in numbers)):
        raise BadRecord(f"patches {numbers!r} are not [rows, columns, pixels on a side]")
    grid = PatchGrid(*numbers)
    if grid.problem:
        raise BadRecord(grid.problem)
    return grid


def _parse_json(content: Buffer) -> dict[str, Any]:
    if len(content) > MAX_JSON_BYTES:
        raise BadRecord(f"its .json has {len(content)} bytes; the limit is {MAX_JSON_BYTES}")
    try:
        text = str(content, "utf-8")
        record = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            # JSON can escape half of a surrogate pair, which no tokenizer, page or terminal accepts.
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadRecord("a text in its .json is not valid Unicode") from None
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"its .json cannot be parsed: {error}") from None
    if not isinstance(record, dict):
        raise BadRecord("its .json is not an object")
    return record


def _parse_kind(name: object) -> Kind:
    kind = _KINDS.get(name.upper()) if isinstance(name, str) else None
    if kind is None:
        raise BadRecord(f"kind {name!r} is not pair, image or text")
    return kind


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadRecord(f"{what} is missing or not a text")
    return value


def _list(record: Mapping[str, Any], name: str, *, is_pair: bool) -> list[Any]:
    values = record.get(name, [])
    if not isinstance(values, list):
        raise BadRecord(f"{name} is not a list")
    if values and not is_pair:
        raise BadRecord(f"only pairs have {name}")
    return values


def _parse_captions(record: Mapping[str, Any]) -> tuple[Caption, ...]:
    # A single caption may also be at the top level, with its rewrites beside it.
    records = None
    if "caption" in record:
        records = [{**record, "text": record["caption"]}]
    records = records or record.get("captions")
    if not isinstance(records, list) or not records:
        raise BadRecord("a pair has no captions")
    return tuple(_parse_caption(one) for one in records)


def _parse_caption(record: object) -> Caption:
    if not isinstance(record, dict) or not isinstance(record.get("rewrites", {}), dict):
        raise BadRecord("a caption is not an object with text and rewrites")
    rewrites = record.get("rewrites", {})
    positives, negatives = rewrites.get("positive", []), rewrites.get("negative", [])
    if not isinstance(positives, list) or not isinstance(negatives, list):
        raise BadRecord("rewrites are not lists")
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
        raise BadRecord("phrases is not a list")
    last, found = 0, []
    for span in spans:
        if not (isinstance(span, list) and len(span) == 2 and all(type(one) is int for one in span)):
            raise BadRecord(f"phrase {span!r} is not [start, end]")
        start, end = span
        if not last <= start < end <= len(text):
            raise BadRecord(f"phrase {span!r} lies outside its text, or over the one before")
        found.append((start, end))
        last = end
    return tuple(found)


def _parse_rewrite(record: object, *, positive: bool) -> Rewrite:
    if not isinstance(record, dict):
        raise BadRecord("a rewrite is not an object")
    origin = record.get("from", "")
    if "to" in record:
        origin = f"{origin}>{record['to']}"
    if not isinstance(origin, str):
        raise BadRecord("a rewrite's origin is not a text")
    name = record.get("level", "none")
    level = _LEVELS.get(name.upper()) if isinstance(name, str) else None
    if level is None:
        raise BadRecord(f"a rewrite's level is {name!r}")
    if positive == bool(level):
        raise BadRecord("a positive rewrite has a level" if positive else "a negative rewrite has no level")
    return Rewrite(_text(record.get("text"), "a rewrite"), level, origin)


def _parse_reference(reference: object) -> tuple[str, int]:
    match = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
    if match is None:
        raise BadRecord(f"related image {reference!r} is not SHARD.tar:INDEX")
    return match[1], int(match[2])


def _caption_record(caption: Caption) -> dict[str, Any]:
    positives = [{"text": one.text, "from": one.origin} for one in caption.positives]
    negatives = [{"text": one.text, "level": one.level.name.lower(), "from": one.origin} for one in caption.negatives]
    rewrites = {"positive": positives, "negative": negatives}
    return {"text": caption.text, **_phrases_record(caption.phrases), "rewrites": rewrites}


def _phrases_record(phrases: Spans) -> dict[str, Any]:
    """Empty if there are none: such samples are stored as in earlier versions."""
    return {"phrases": [list(span) for span in phrases]} if phrases else {}
