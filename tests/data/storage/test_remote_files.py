"""Requests to a URL end, and commands take URLs as they take folders. The stores themselves: tests/data/stores."""

from __future__ import annotations

import errno
import json
import socket
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from tests.data.shard_folders import make_folder
from unimo_ds import inspection
from unimo_ds.__main__ import main
from unimo_ds.data.prepare import verify_remote
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.prepare.verify_remote import verify_at
from unimo_ds.data.storage import remote_files, retrying
from unimo_ds.data.storage.remote_files import RemoteFiles
from unimo_ds.data.storage.retrying import Retries
from unimo_ds.utils.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("local"))


@pytest.fixture
def url(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The folder in fsspec's memory."""
    monkeypatch.setattr(retrying, "_FIRST_PAUSE", 0.001)
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        files.pipe_file(f"/proven/{path.name}", path.read_bytes())
    yield "memory://proven"
    files.rm("/proven", recursive=True)


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        files = RemoteFiles(f"http://127.0.0.1:{listening.getsockname()[1]}/data")
        for request in (lambda: files.read("a"), lambda: next(files.chunks("a"))):
            with pytest.raises(OSError, match=r"^http://.*/data/a: no answer within 0\.5 seconds$"):
                request()


def test_what_is_gone_is_not_waited_for() -> None:
    attempts: list[int] = []

    def gone() -> None:
        attempts.append(1)
        raise FileNotFoundError(errno.ENOENT, "no such file")

    with pytest.raises(FileNotFoundError):
        Retries()("a", gone)
    assert len(attempts) == 1


def test_what_took_long_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    def fails() -> None:
        attempts.append(1)
        raise OSError("busy")

    monkeypatch.setattr(retrying, "_FIRST_PAUSE", 0.001)
    with pytest.raises(OSError, match="busy"):
        Retries()("a", fails)
    assert len(attempts) == 4
    retry = Retries()
    clock = iter([0.0, 40.0, 50.0, 90.0, 95.0])
    monkeypatch.setattr(retrying, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(OSError, match=r"^busy$"):
        retry("a", fails)
    assert len(attempts) == 5
    # For as long as that took, forty seconds, it is given up at once; then it has one attempt.
    with pytest.raises(OSError, match=r"^b is not tried again yet, after busy$"):
        retry("b", fails)
    assert len(attempts) == 5
    with pytest.raises(OSError, match=r"^busy$"):
        retry("a", fails)
    assert len(attempts) == 6


def test_an_unknown_kind_of_failure_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    files = RemoteFiles("memory://proven")

    def broken(*_: object) -> bytes:
        raise AttributeError("a mistake in a client")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", broken)
    with pytest.raises(AttributeError, match="a mistake"):
        files.read("a")


def test_a_stream_is_the_file(folder: Path, url: str) -> None:
    shard = next(folder.glob("*.tar"))
    for size in (1000, 2**20):
        with RemoteFiles(url).open(shard.name, size) as stream:
            assert stream.read(700) + stream.read(1) + stream.read() == shard.read_bytes()
            assert stream.tell() == shard.stat().st_size


def test_the_clients_have_the_versions_that_are_tested() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = {client for client in remote_files.CLIENTS.values() if "==" in client}
    assert pins == {pin for name in ("s3", "gcs", "azure") for pin in extras[name]}
    assert pins <= set((ROOT / "requirements-stores.txt").read_text().splitlines())


def test_a_good_url(folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert verify_at(url) == []
    assert verify_at(folder) == []
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "gone", "index", "tokenizer", "pickle", "unlisted"])
def test_damage_at_a_url_is_that_of_a_folder(folder: Path, url: str, tmp_path: Path, damage: str) -> None:
    """Every byte counts."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    name = {"index": "images-000000.index.npz", "tokenizer": "tokenizer.json", "pickle": "a.pkl", "unlisted": "b.tar"}
    target = copy / name.get(damage, "images-000000.tar")
    whole = target.read_bytes() if target.exists() else b""
    middle = len(whole) // 2
    files = fsspec.filesystem("memory")
    if damage == "gone":
        target.unlink()
        files.rm_file(f"/proven/{target.name}")
    else:
        changed = {"cut": whole[:-1000], "longer": whole + bytes(2000)}
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :] if whole else b"new"
        target.write_bytes(changed.get(damage, flipped))
        files.pipe_file(f"/proven/{target.name}", target.read_bytes())
    here, there = verify(copy), verify_at(url)
    assert here
    assert {(one.file, one.sample) for one in there} == {(one.file, one.sample) for one in here}
    assert not any(str(tempfile.gettempdir()) in str(one) for one in there)


def test_what_was_damaged_on_its_way_is_fetched_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    brought: list[str] = []
    real = verify_remote._bring

    def damages(files: RemoteFiles, name: str, size: int, place: Path, retry: Retries) -> object:
        problems = real(files, name, size, place, retry)
        if name not in brought:
            (place / name).write_bytes(bytes(size))
        brought.append(name)
        return problems

    monkeypatch.setattr(verify_remote, "_bring", damages)
    assert verify_at(url) == []
    assert brought.count("images-000000.tar") == 2


def test_verify_and_inspect_take_urls(url: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "verify", url, "--workers", "1"]) == 0
    assert capsys.readouterr().out == f"{url} is good\n"
    fsspec.filesystem("memory").rm_file("/proven/images-000000.tar")
    assert main(["prepare", "verify", url, "--workers", "1"]) == 1
    assert "images-000000.tar: cannot be read (memory://proven/" in capsys.readouterr().out
    assert main(["prepare", "verify", "memory://nowhere"]) == 2
    assert "cannot read memory://nowhere/manifest.json: there is no such file" in capsys.readouterr().err
    found = {}
    for place in (url, str(folder), f"{url}/pairs-000000.tar", f"{folder}/pairs-000000.tar"):
        assert main(["inspect", place, "--json"]) == 0
        found[place] = json.loads(capsys.readouterr().out)
        assert found[place].pop("path") == place
    assert found[url] == found[str(folder)]
    assert main(["prepare", "verify", f"file://{folder}", "--workers", "1"]) == 0
    for place in (str(folder), f"{folder}/pairs-000000.tar"):
        capsys.readouterr()
        assert main(["inspect", f"file://{place}", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {**found[place], "path": place}
    assert found[url]["first_samples"]
    assert found[f"{url}/pairs-000000.tar"] == found[f"{folder}/pairs-000000.tar"]
    with pytest.raises(UserError, match=r"cannot read memory://proven/other\.tar: there is no such file"):
        inspection.inspect_path(f"{url}/other.tar")
