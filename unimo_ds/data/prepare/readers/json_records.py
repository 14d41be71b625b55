"""JSON annotation files: reading them, large arrays one element at a time, and naming what is wrong in them."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unimo_ds.data.prepare.readers.image_files import open_file
from unimo_ds.data.prepare.readers.names import read_json
from unimo_ds.data.prepare.sources import Report
from unimo_ds.utils.errors import UserError

_CHUNK = 1 << 20
_SPACE = " \t\r\n"


def objects_under(path: Path, key: str, *, what: str) -> list[dict[str, Any]]:
    """The list of objects at `key` of a JSON object.

    what: the format, for the message.

    Raises:
        UserError: unreadable, or of another form.
    """
    content = read_json(path)
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UserError(f"{path} is not {what}: it has no list of objects named {key!r}")
    return found


def array_items(path: Path, *, what: str) -> Iterator[Any]:
    """Elements of a file that is one JSON array, held one at a time: files of this kind have hundreds of megabytes.

    Raises:
        UserError: unreadable, not an array, or cut.
    """
    decoder = json.JSONDecoder()
    text = codecs.getincrementaldecoder("utf-8")()
    with open_file(path) as stream:
        try:
            buffer = text.decode(stream.read(_CHUNK)).lstrip(_SPACE)
            if not buffer.startswith("["):
                raise UserError(f"{path} is not {what}: it does not begin with a JSON array")
            buffer = buffer[1:]
            first = True
            while True:
                buffer = buffer.lstrip(_SPACE)
                if buffer.startswith("]"):
                    return
                start = 0
                if not first and buffer:
                    if buffer[0] != ",":
                        raise UserError(f"{path} is not valid JSON: a comma is missing between two elements")
                    start = 1
                while start < len(buffer) and buffer[start] in _SPACE:
                    start += 1
                try:
                    value, end = decoder.raw_decode(buffer, start)
                    # A number or word at the very end of the buffer may go on in the next chunk.
                    whole = end < len(buffer)
                except json.JSONDecodeError:
                    whole = False
                except RecursionError:
                    raise UserError(f"{path} is not {what}: its values are nested too deeply") from None
                if whole:
                    yield value
                    buffer, first = buffer[end:], False
                    continue
                chunk = stream.read(max(_CHUNK, len(buffer)))
                if not chunk:
                    raise UserError(f"{path} is cut or not valid JSON; fetch it again")
                buffer += text.decode(chunk)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start}; fetch it again") from None


def is_unicode(text: str) -> bool:
    """False where it holds half of a surrogate pair, which can be spelt in JSON, but neither tokenised nor stored."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def caption_of(value: object, name: str, report: Report) -> str | None:
    """A caption without the white space around it; None, and named in the report, where there is none."""
    if value is not None and not isinstance(value, str):
        report.skip("a caption that is not a text", name)
    elif value is None or not value.strip():
        report.skip("an empty caption", name)
    elif is_unicode(value):
        return value.strip()
    else:
        report.skip("a text that is not valid Unicode", name)
    return None
