"""Region features in UNITER's LMDB: key `coco_train2014_000000000009.npz`, value an .npz or a msgpack map of arrays.

Only arrays of numbers are accepted. A database of pickles (as from the tools of volta and ViLBERT) runs code when read; it is
refused with an explanation.
"""

from __future__ import annotations

import contextlib
import io
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.limits import MAX_MEMBER_BYTES
from unimo_ds.data.prepare.readers.detections import BadDetections, Detections, FeatureFiles, to_regions
from unimo_ds.data.prepare.readers.protocol import Item, Record
from unimo_ds.data.prepare.report import Report
from unimo_ds.utils.errors import UserError

_NOT_IMAGES = (b"__keys__", b"__len__", b"keys")
_ARRAYS = ("features", "norm_bb", "conf", "soft_labels")
_NUMBERS = frozenset("fiu")
_NEWEST_PICKLE = 5
_DAMAGE = (
    *(zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, RuntimeError, zlib.error),
    *(TypeError, MemoryError, tokenize.TokenError),
)
"""Raised by zipfile, and by NumPy for headers of arrays that are no shapes, or of more memory than there is."""


@dataclass(frozen=True)
class UniterLmdb(FeatureFiles):
    """One or several databases (folders, or single files). A place is (number of the database,)."""

    def items(self, report: Report) -> Iterator[Item]:
        for number, path in enumerate(self.settings.features):
            with _reading(path) as transaction:
                checked = False
                for key, value in transaction.cursor():
                    if bytes(key) in _NOT_IMAGES:
                        continue
                    if not checked:
                        _refuse_pickles(path, value)
                        checked = True
                    try:
                        yield Item(bytes(key).decode("utf-8"), (number,))
                    except UnicodeDecodeError:
                        report.skip("a key that is not UTF-8", f"{path.name}: {bytes(key)!r}")

    def read(self, items: Sequence[Item], report: Report) -> Iterator[tuple[int, Record]]:
        for number, path in enumerate(self.settings.features):
            wanted = [(i, item.name) for i, item in enumerate(items) if item.place[0] == number]
            if not wanted:
                continue
            with _reading(path) as transaction:
                for i, name in wanted:
                    value = transaction.get(name.encode("utf-8"))
                    if value is None:
                        raise UserError(f"{path} has lost {name}; do not change inputs during an import")
                    try:
                        found = parse_value(value)
                        yield i, Record(name, regions=to_regions(found, self.settings))
                    except BadDetections as error:
                        report.skip(error.reason, f"{name} {error.detail}".rstrip())


def parse_value(value: bytes) -> Detections:
    arrays = _from_npz(value) if value[:2] == b"PK" else _from_msgpack(value)
    missing = [name for name in ("features", "norm_bb") if name not in arrays]
    if missing:
        raise BadDetections("a value without features and norm_bb", f"it has {', '.join(sorted(arrays)) or 'nothing'}")
    boxes = arrays["norm_bb"]
    # norm_bb is x1, y1, x2, y2, width, height.
    return Detections(
        features=arrays["features"],
        boxes=boxes[:, :4] if boxes.ndim == 2 else boxes,
        confidences=arrays.get("conf"),
        probabilities=arrays.get("soft_labels"),
    )


def _from_npz(value: bytes) -> dict[str, NDArray[Any]]:
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(value)) as archive:
            for name in _ARRAYS:
                if f"{name}.npy" not in archive.namelist():
                    continue
                if archive.getinfo(f"{name}.npy").file_size > MAX_MEMBER_BYTES:
                    raise BadDetections("an array that is too large", name)
                with archive.open(f"{name}.npy") as member:
                    array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
                if array.dtype.kind not in _NUMBERS:
                    raise BadDetections("an array that does not hold numbers", name)
                arrays[name] = array
    except _DAMAGE as error:
        raise BadDetections("a value that is not a readable .npz", str(error)) from None
    return arrays


def _from_msgpack(value: bytes) -> dict[str, NDArray[Any]]:
    """Arrays as written by msgpack-numpy: maps of nd, type, shape and data. No extension types are decoded, no objects made."""
    import msgpack

    try:
        content = msgpack.unpackb(value, raw=True, strict_map_key=False, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:  # TypeError: a list as a key
        raise BadDetections("a value that is neither .npz nor msgpack", str(error)) from None
    if not isinstance(content, dict):
        raise BadDetections("a value that is not a map of arrays")
    return {name: _array(content[name.encode()], name) for name in _ARRAYS if name.encode() in content}


def _array(about: Any, name: str) -> NDArray[Any]:
    if not isinstance(about, dict):
        raise BadDetections("a value that is not a map of arrays", name)
    kind, shape, data = (about.get(key) for key in (b"type", b"shape", b"data"))
    if about.get(b"nd") is not True or not isinstance(kind, bytes) or not isinstance(data, bytes):
        raise BadDetections("an array that does not hold numbers", name)
    try:
        dtype = np.dtype(kind.decode("ascii"))
        array = np.frombuffer(data, dtype) if dtype.kind in _NUMBERS else None
        if array is None or not isinstance(shape, list | tuple):
            raise BadDetections("an array that does not hold numbers", name)
        return array.reshape(tuple(shape))
    except (TypeError, ValueError) as error:
        raise BadDetections("an array of a wrong shape", f"{name}: {error}") from None


def _refuse_pickles(path: Path, value: bytes) -> None:
    if value[:1] == b"\x80" and len(value) > 1 and value[1] <= _NEWEST_PICKLE:
        raise UserError(
            f"{path} holds pickles, which can run any code when they are read; write its features as HDF5 or TSV with the "
            "tool that made them, and import that"
        )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """A read transaction."""
    import lmdb

    try:
        database = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise UserError(f"{path} cannot be opened as an LMDB: {error}") from None
    with database, database.begin() as transaction:
        _refuse_cut(path, (database.info()["last_pgno"] + 1) * database.stat()["psize"])
        try:
            yield transaction
        except lmdb.Error as error:
            raise UserError(f"{path} is damaged ({error}); fetch it again") from None


def _refuse_cut(path: Path, needed: int) -> None:
    """Refuse a truncated database: reading a missing page would kill the process by a signal."""
    file = path / "data.mdb" if path.is_dir() else path
    size = file.stat().st_size
    if size < needed:
        raise UserError(f"{file} is cut: it has {size} bytes of {needed}; fetch it again")
