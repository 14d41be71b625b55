"""Shards made by others: whatever could lead out of the folder, run code, exhaust memory or be half a sample is refused."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.data.shard_folders import WordTokenizer, make_regions
from unimo_ds.data.schema import Kind, Regions, Sample
from unimo_ds.data.storage import members
from unimo_ds.data.storage.index import build_index
from unimo_ds.utils.errors import UserError

Member = tuple[str, bytes]


def _text_members(base: str, text: str = "some words") -> list[Member]:
    return [(f"{base}.json", json.dumps({"kind": "text", "source": "books", "text": text}).encode())]


def _image_members(base: str, *, regions: Regions | None = None) -> list[Member]:
    sample = Sample(key="", kind=Kind.IMAGE, source="x", regions=make_regions(0))
    found = {f"{base}.{name}": content for name, content in members.encode_sample(sample).items()}
    if regions is not None:
        found[f"{base}.features.npy"] = members.encode_array(members.FEATURES, regions.features)
    return sorted(found.items())


def write_tar(path: Path, content: list[Member | tarfile.TarInfo]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for one in content:
            if isinstance(one, tarfile.TarInfo):
                archive.addfile(one)
            else:
                info = tarfile.TarInfo(one[0])
                info.size = len(one[1])
                archive.addfile(info, io.BytesIO(one[1]))


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def _npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _with(base: str, extension: str, content: bytes) -> list[Member]:
    return sorted((dict(_image_members(base)) | {f"{base}.{extension}": content}).items())


def _rewritten(rewrites: dict[str, list[dict[str, str]]]) -> list[Member]:
    record = {"kind": "pair", "source": "x", "captions": [{"text": "a", "rewrites": rewrites}]}
    return _with("a", "json", json.dumps(record).encode())


_BOMB = members.encode_array(members.FEATURES, np.zeros((2, 2))).replace(
    b"(2, 2), }" + b" " * 10, b"(999999, 999999), }"
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            _image_members("a")[:2] + _image_members("b") + _image_members("a")[2:], "missing", id="interleaved"
        ),
        pytest.param(_text_members("a") + _text_members("b") + _text_members("a"), "comes twice", id="same base again"),
        pytest.param(_text_members("a") + _text_members("a"), "has .json twice", id="same member twice"),
        pytest.param(_image_members("a")[:-1], "json is missing", id="without json"),
        pytest.param(_image_members("a")[1:], "boxes.npy is missing", id="half a sample"),
        pytest.param(
            _image_members("a") + _image_members("b", regions=make_regions(0, feature_size=9)),
            "9 features and 2 classes where the shard's first have 8 and 2",
            id="another extractor",
        ),
        pytest.param(_text_members("a") + _image_members("a")[:-1], "a text sample has an image", id="merged"),
        pytest.param([("../../evil.json", b"{}")], "is not BASE.EXTENSION", id="dots"),
        pytest.param([("/etc/evil.json", b"{}")], "is not BASE.EXTENSION", id="absolute"),
        pytest.param([("folder/a.json", b"{}")], "is not BASE.EXTENSION", id="folder"),
        pytest.param([("json", b"{}")], "is not BASE.EXTENSION", id="no base"),
        pytest.param([special("a.json", tarfile.SYMTYPE, "/etc/passwd")], "a symbolic link", id="symbolic link"),
        pytest.param([special("a.json", tarfile.LNKTYPE, "b.json")], "a hard link", id="hard link"),
        pytest.param([special("a.json", tarfile.CHRTYPE)], "a character device", id="character device"),
        pytest.param([special("a.json", tarfile.BLKTYPE)], "a block device", id="block device"),
        pytest.param([special("a.json", tarfile.FIFOTYPE)], "a pipe", id="pipe"),
        pytest.param([special("a.json", tarfile.DIRTYPE)], "a directory", id="directory"),
        pytest.param([special("a.json", tarfile.XHDTYPE)], "of tar type", id="extended header"),
        pytest.param([*_text_members("a"), ("a.pyd", b"cos\nsystem\n")], r"member .pyd; only json", id="pickle pyd"),
        pytest.param([*_text_members("a"), ("a.pkl", b"cos\nsystem\n")], "member .pkl", id="pickle pkl"),
        pytest.param([*_text_members("a"), ("a.pth", b"")], "member .pth", id="torch file"),
        pytest.param(
            _with("a", "features.npy", _npy(np.array([[None]]), allow_pickle=True)), "plain two-dim", id="pickled array"
        ),
        pytest.param(_with("a", "features.npy", _npy(np.zeros((3, 8), np.float64))), "plain two-dim", id="dtype"),
        pytest.param(
            _with("a", "boxes.npy", _npy(np.zeros((3, 4), np.float16))), "holds <f2, not <f4", id="dtype of boxes"
        ),
        pytest.param(_with("a", "boxes.npy", _npy(np.zeros((3, 3), np.float32))), "3 columns", id="columns of boxes"),
        pytest.param(_with("a", "boxes.npy", _npy(np.zeros((2, 4), np.float32))), "differ in their number", id="rows"),
        pytest.param(_with("a", "features.npy", _npy(np.zeros(24, np.float16))), "plain two-dim", id="one dimension"),
        pytest.param(_with("a", "features.npy", _npy(np.zeros((0, 8), np.float16))), "shape", id="no regions"),
        pytest.param(_with("a", "features.npy", _BOMB), "beyond", id="claims a terabyte"),
        pytest.param(
            _with("a", "features.npy", _npy(np.zeros((3, 8), np.float16))[:-1]), "bytes for shape", id="short"
        ),
        pytest.param(
            _with("a", "features.npy", _npy(np.full((3, 8), np.nan, np.float16))), "not finite", id="not finite"
        ),
        pytest.param(
            _with("a", "boxes.npy", _npy(np.full((3, 4), 1.5, np.float32))), r"within \[0, 1\]", id="box outside"
        ),
        pytest.param(
            _with("a", "boxes.npy", _npy(np.full((3, 4), -0.5, np.float32))), r"within \[0, 1\]", id="below 0"
        ),
        pytest.param(
            _with("a", "boxes.npy", _npy(np.tile(np.float32([0.5, 0.1, 0.4, 0.9]), (3, 1)))),
            "x1 <= x2",
            id="inside out",
        ),
        pytest.param(
            _with("a", "class_probabilities.npy", _npy(np.full((3, 2), -0.1, np.float16))),
            "probabilities.npy is not within",
            id="negative probability",
        ),
        pytest.param(
            _with("a", "class_probabilities.npy", _npy(np.full((3, 2), 1.1, np.float16))),
            "probabilities.npy is not within",
            id="probability above 1",
        ),
        pytest.param(
            _with("a", "class_ids.npy", _npy(np.full((3, 2), -1, np.int32))), "negative ids", id="negative ids"
        ),
        pytest.param(_with("a", "class_ids.npy", _npy(np.zeros((3, 1), np.int32))), "fewer class ids", id="few ids"),
        pytest.param(
            [*_text_members("a"), ("a.jpg", b"\xff\xd8")], "a text sample has an image", id="text with an image"
        ),
        pytest.param(
            [("a.json", b'{"kind": "text", "source": "x", "text": "x", "patches": [1, 1, 1]}')],
            "a text sample has an image",
            id="text with patches",
        ),
        pytest.param(
            _rewritten({"positive": [{"text": "b", "level": "word"}]}), "positive rewrite has a", id="positive"
        ),
        pytest.param(_rewritten({"negative": [{"text": "b"}]}), "negative rewrite has no level", id="negative"),
        pytest.param([("a.json", b"\xff")], "cannot be parsed", id="not unicode"),
        pytest.param([("a.json", b"[" * 100_000)], "cannot be parsed", id="nested too deeply"),
        pytest.param([("a.json", b"[]")], "not an object", id="not an object"),
        pytest.param([("a.json", b'{"kind": "video", "source": "x"}')], "'video' is not pair", id="kind"),
        pytest.param(
            [("a.json", b'{"kind": "text", "source": "x", "text": "x", "details": []}')], "details is not", id="details"
        ),
        pytest.param([("a.json", b'{"kind": "text", "source": "x", "text": ""}')], "text is missing", id="empty text"),
        pytest.param(
            [("a.json", b'{"kind": "text", "source": "x", "text": "\\ud800"}')],
            "not valid Unicode",
            id="half a surrogate",
        ),
        pytest.param(
            [("a.json", b'{"kind": "text", "source": "x", "text": "x", "details": {"file": ["\\uD83d"]}}')],
            "not valid Unicode",
            id="half a surrogate in the notes",
        ),
    ],
)
def test_shards_that_are_refused(
    tmp_path: Path,
    content: list[Member | tarfile.TarInfo],
    message: str,
) -> None:
    path = tmp_path / "evil-000000.tar"
    write_tar(path, content)
    with pytest.raises(UserError, match=message):
        build_index(path, WordTokenizer())
    assert sorted(os.listdir(tmp_path)) == ["evil-000000.tar"]


def test_a_member_that_claims_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "evil-000000.tar"
    info = tarfile.TarInfo("a.json")
    info.size = 2**40
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(UserError, match=r"claims 1099511627776 bytes"):
        build_index(path, WordTokenizer())


def test_something_behind_the_end_mark(tmp_path: Path) -> None:
    path = tmp_path / "a-000000.tar"
    write_tar(path, [*_text_members("a")])
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    with pytest.raises(UserError, match="something behind the end mark"):
        build_index(path, WordTokenizer())


@pytest.mark.parametrize(
    ("at", "message"),
    [(511, r"the padding behind a\.json is damaged"), (1023 + 512, "the end mark is damaged")],
)
def test_no_byte_between_the_members_counts_for_nothing(tmp_path: Path, at: int, message: str) -> None:
    path = tmp_path / "a-000000.tar"
    write_tar(path, _text_members("a"))
    whole = bytearray(path.read_bytes())
    whole[512 + at] = 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match=message):
        build_index(path, WordTokenizer())
