"""Corpora made to do harm: tars and region features that would read other files, or take all memory or hours, are refused or
named."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.prepare.test_features import held
from tests.data.prepare.test_readers import read
from unimo_ds.data.prepare.readers.detections import BadDetections
from unimo_ds.data.prepare.readers.image_files import members_of_tar
from unimo_ds.data.prepare.readers.uniter_lmdb import parse_value
from unimo_ds.utils.errors import UserError


def _member(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, size: int | None = None) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def _records(content: bytes) -> bytes:
    return _member("pax", content, tarfile.XHDTYPE)


_LONG = _member("././@LongLink", b"a.jpg\0", tarfile.GNUTYPE_LONGNAME)
_PHOTO = _member("a.jpg")


@pytest.mark.parametrize("first", [b"", _PHOTO], ids=["at the start", "behind a photograph"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(_records(b"1" * 100_000) + _PHOTO, "an extended header of 100000 bytes", id="quadratic"),
        pytest.param(_member("pax", b"", tarfile.XHDTYPE, 2**40), "of 1099511627776 bytes", id="long records"),
        pytest.param(_member("long", b"", tarfile.GNUTYPE_LONGNAME, 2**40), "of 1099511627776 bytes", id="long name"),
        pytest.param(_LONG * 3000 + _PHOTO, "recursion", id="names of names"),
        pytest.param(_records(b"41 size=%s\n" % (b"9" * 32)) + _PHOTO, "cannot fit", id="size beyond 64 bits"),
        pytest.param(_records(b"14 size=-5000\n") + _PHOTO, "is damaged or cut", id="size below zero"),
    ],
)
def test_tars_that_would_hang_or_crash(tmp_path: Path, first: bytes, content: bytes, message: str) -> None:
    path = tmp_path / "evil.tar"
    path.write_bytes(first + content + bytes(1024))
    with pytest.raises(UserError, match=message):
        list(members_of_tar(path, option="--images"))


def test_a_long_name_is_read(tmp_path: Path) -> None:
    path, name = tmp_path / "a.tar", "folder/" * 500 + "a.jpg"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(path, "w", format=form) as archive:
            archive.addfile(tarfile.TarInfo(name))
        assert [one.name for one in members_of_tar(path, option="--images")] == [name]


def _outside(h5py: Any, group: Any, folder: Path) -> None:
    (folder / "secret").write_bytes(np.full((5, 8), 0.25, np.float32).tobytes())
    group.create_dataset("features", (5, 8), "<f4", external=[(os.fspath(folder / "secret"), 0, 160)])


def _other_file(h5py: Any, folder: Path) -> Path:
    with h5py.File(folder / "other.h5", "w") as file:
        file["features"] = np.full((5, 8), 0.25, np.float32)
    return folder / "other.h5"


def _link(h5py: Any, group: Any, folder: Path) -> None:
    group["features"] = h5py.ExternalLink(os.fspath(_other_file(h5py, folder)), "features")


def _virtual(h5py: Any, group: Any, folder: Path) -> None:
    layout = h5py.VirtualLayout((5, 8), "<f4")
    layout[:] = h5py.VirtualSource(os.fspath(_other_file(h5py, folder)), "features", (5, 8))
    group.create_virtual_dataset("features", layout)


def _terabytes(h5py: Any, group: Any, folder: Path) -> None:
    group.create_dataset("features", (10**6, 10**6), "<f4", chunks=(100, 100))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_outside, "an array that is in another file"),
        (_link, "an array that is in another file"),
        (_virtual, "an array that is in another file"),
        (_terabytes, "an array that is too large"),
    ],
)
def test_hdf5_that_leads_elsewhere_or_claims_too_much(
    tmp_path: Path, make: Callable[[Any, Any, Path], None], reason: str
) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "evil.h5", "w") as file:
        group = file.create_group("7")
        group["boxes"] = np.full((5, 4), 0.5, np.float32)
        make(h5py, group, tmp_path)
    records, report = read(held("hdf5", tmp_path / "evil.h5"))
    assert not records
    assert report.skipped == {reason: ["7 features"]}


@pytest.mark.parametrize("header", ["'shape': (10**12,)", "'shape': (1000000000000000,)", "'shape': (True,)", "((("])
def test_arrays_with_headers_that_are_none(header: str) -> None:
    text = f"{{'descr': '<f4', 'fortran_order': False, {header}}}\n".encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("features.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(BadDetections, match=r"not a readable \.npz"):
        parse_value(content.getvalue())
