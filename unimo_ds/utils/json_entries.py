"""Reads JSON files of hundreds of megabytes one entry at a time, and names what is wrong in them."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from unimo_ds.utils.errors import UserError

_CHUNK = 1 << 20
_SPACE = " \t\r\n"
_LONGEST_WORD = 16
"""Upper bound, in characters, of what must be read whole: true, -Infinity, an escape of two \\u0000."""
_ENDS = (*_SPACE, ",", "]", "}")


def objects_under(path: Path, key: str, *, what: str, finite: bool = False) -> Iterator[dict[str, Any]]:
    """The list of objects at `key` of a JSON object.

    what: the format, for the message. finite: refuse NaN and infinities, which JSON lacks and many programs write.

    Raises:
        UserError: unreadable, or not of this form.
    """
    refusal = UserError(f"{path} is not {what}: it has no list of objects named {key!r}")
    with _opened(path) as stream:
        text = _Text(stream, path, what, finite=finite)
        if text.peek() != "{":
            text.value()  # raises if it is no JSON at all
            raise refusal
        is_there = False
        for name in text.elements("{}"):
            is_wanted = name == key and text.peek() == "["
            is_there |= is_wanted
            if text.peek() != "[":
                text.value()
                continue
            for _ in text.elements("[]"):
                one = text.value()
                if is_wanted and not isinstance(one, dict):
                    raise refusal
                if is_wanted:
                    yield one
        if not is_there:
            raise refusal


def array_items(path: Path, *, what: str) -> Iterator[Any]:
    """Elements of a file that is one JSON array.

    Raises:
        UserError: unreadable, not an array, or truncated.
    """
    with _opened(path) as stream:
        text = _Text(stream, path, what)
        if text.peek() != "[":
            raise UserError(f"{path} is not {what}: it does not begin with a JSON array")
        for _ in text.elements("[]"):
            yield text.value()


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


class _Text:
    """A JSON file read from its beginning; only the part being parsed is held.

    Every method may raise UserError: not JSON in UTF-8, truncated, or nested too deeply.
    """

    def __init__(self, stream: BinaryIO, path: Path, what: str, *, finite: bool = False) -> None:
        self._stream, self._path, self._what = stream, path, what
        self._decoder = json.JSONDecoder(parse_constant=self._refuse if finite else None)
        self._from_bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._buffer, self._at = "", 0

    def peek(self) -> str:
        """The next character that is not white space."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in _SPACE:
                    return self._buffer[self._at]
                self._at += 1
            self._read_on()

    def value(self) -> Any:
        """The value that starts here."""
        self.peek()
        while True:
            try:
                found, end = self._decoder.raw_decode(self._buffer, self._at)
                # A number may continue in the next chunk, and "1." or "1e" would be parsed as 1.
                if self._buffer[end - 1] in '"]}' or self._buffer[end : end + 1] in _ENDS:
                    self._at = end
                    return found
            except json.JSONDecodeError as error:
                # Truncated if the error is at the end of what was read; for an unterminated string it is at the start.
                is_cut = error.pos >= len(self._buffer) - _LONGEST_WORD or error.msg.startswith("Unterminated string")
                if not is_cut:
                    self._at = error.pos
                    raise self._invalid(error.msg) from None
            except UserError:
                raise
            except ValueError as error:  # thousands of digits
                raise self._invalid(str(error).partition(";")[0]) from None
            except RecursionError:
                raise UserError(f"{self._path} is not {self._what}: its values are nested too deeply") from None
            self._read_on()

    def elements(self, brackets: str) -> Iterator[Any]:
        """Yields None before each value of the array (`[]`), or the key before each of the object (`{}`), that starts here; the
        caller then reads the value.
        """
        first, last = brackets[0], brackets[1]
        self._take(first)
        if self.peek() == last:
            self._take(last)
            return
        while True:
            key = None
            if brackets == "{}":
                if self.peek() != '"':
                    raise self._invalid("a key is missing")
                key = self.value()
                self._take(":")
            yield key
            if self.peek() == last:
                self._take(last)
                return
            self._take(",")

    def _take(self, character: str) -> None:
        if self.peek() != character:
            raise self._invalid(f"{character!r} is missing")
        self._at += 1

    def _invalid(self, reason: str) -> UserError:
        return UserError(f"{self._path} is not valid JSON: {reason} before {self._buffer[self._at :][:20]!r}")

    def _refuse(self, constant: str) -> None:
        raise UserError(f"{self._path} is not valid JSON: {constant} is no number")

    def _read_on(self) -> None:
        """Reads as much again as is held, at least a chunk."""
        content = self._stream.read(max(_CHUNK, len(self._buffer) - self._at))
        if not content:
            raise UserError(f"{self._path} is cut or not valid JSON; fetch it again")
        try:
            self._buffer = self._buffer[self._at :] + self._from_bytes.decode(content)
        except UnicodeDecodeError as error:
            place = self._stream.tell() - len(error.object) + error.start
            raise UserError(f"{self._path} is not UTF-8: {error.reason} at byte {place}; fetch it again") from None
        self._at = 0
