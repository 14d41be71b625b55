"""A data folder to put into stores."""

import socket
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.data.shard_folders import make_folder
from unimo_ds.data.storage import retrying


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("local"))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_FIRST_PAUSE", 0.001)


def put(protocol: str, folder: Path) -> None:
    """The folder into `bucket/corpus`, through a client that is made anew."""
    files = fsspec.filesystem(protocol, skip_instance_cache=True)
    files.mkdir("bucket")
    for path in folder.iterdir():
        files.put_file(str(path), f"bucket/corpus/{path.name}")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of one that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
