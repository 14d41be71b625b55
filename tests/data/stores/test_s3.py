"""s3:// through s3fs, from moto's server of the S3 protocol, with troubles in front of it."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.shard_folders import assert_same_sample
from tests.data.stores.conftest import put
from unimo_ds.data.corpus import Corpus, CorruptSample
from unimo_ds.data.prepare.verify_remote import verify_at
from unimo_ds.data.storage import remote_files
from unimo_ds.utils.errors import UserError

WHY = "no clients of object stores here: make stores"
s3fs = pytest.importorskip("s3fs", reason=WHY)
werkzeug_app = pytest.importorskip("moto.moto_server.werkzeug_app", reason=WHY)

URL = "s3://bucket/corpus"


class Troubled:
    """A WSGI application whose answers to GET have troubles, one after the other."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application
        self.troubles: list[str] = []
        self.met: list[str] = []

    def __call__(self, environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] != "GET" or not self.troubles:
            return self.application(environment, start_response)
        self.met.append(self.troubles.pop())
        if self.met[-1] == "busy":
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        start_response("206 Partial Content", [("Content-Length", "20000")])
        return [bytes(100)]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Troubled]]:
    from werkzeug.serving import make_server

    application = Troubled(werkzeug_app.DomainDispatcherApplication(werkzeug_app.create_backend_app))
    listening = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}", application
    listening.shutdown()
    thread.join()


@pytest.fixture(autouse=True)
def settings(server: tuple[str, Troubled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of a user whom the environment tells everything."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server[0])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    server[1].troubles.clear()


@pytest.fixture(scope="module")
def bucket(server: tuple[str, Troubled], folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server[0])
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        put("s3", folder)


def refusal(url: str = URL) -> str:
    with pytest.raises(UserError) as refused:
        Corpus.open(url, cache_dir="cache")
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert sentence.startswith(f"cannot read {url}")
    return sentence


@pytest.mark.usefixtures("bucket")
def test_a_corpus_in_a_bucket_is_the_local_one(folder: Path, tmp_path: Path) -> None:
    local, remote = Corpus.open(folder), Corpus.open(URL, cache_dir=str(tmp_path))
    for number in range(len(local)):
        assert_same_sample(remote.read(number), local.read(number))
    assert verify_at(URL) == []


@pytest.mark.usefixtures("bucket")
def test_workers_forked_after_the_client_was_made(folder: Path, tmp_path: Path) -> None:
    local, remote = Corpus.open(folder), Corpus.open(URL, cache_dir=str(tmp_path))
    remote.read(0)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [
        context.Process(target=lambda: queue.put([remote.read(number).key for number in range(len(remote))]))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert found == [[local.key(number) for number in range(len(local))]] * 2


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("trouble", ["busy", "cut"])
def test_passing_troubles_are_survived(
    folder: Path, server: tuple[str, Troubled], tmp_path: Path, trouble: str
) -> None:
    troubled = server[1]
    troubled.troubles[:], troubled.met[:] = [trouble] * 2, []
    remote = Corpus.open(URL, cache_dir=str(tmp_path))
    troubled.troubles[:] = [trouble] * 2
    assert_same_sample(remote.read(0), Corpus.open(folder).read(0))
    assert troubled.met == [trouble] * 4


@pytest.mark.usefixtures("bucket")
def test_an_object_that_is_gone(tmp_path: Path) -> None:
    remote = Corpus.open(URL, cache_dir=str(tmp_path))
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    content = files.cat_file("bucket/corpus/images-000000.tar")
    files.rm_file("bucket/corpus/images-000000.tar")
    try:
        with pytest.raises(CorruptSample, match=r"its shard cannot be read: s3://.*/images-000000\.tar: there is no"):
            remote.read(0)
        assert [(one.file, "there is no such file" in one.reason) for one in verify_at(URL)] == [
            ("images-000000.tar", True)
        ]
    finally:
        files.pipe_file("bucket/corpus/images-000000.tar", content)


def test_no_bucket_no_key() -> None:
    assert "bucket does not exist" in refusal("s3://nowhere/corpus")


@pytest.mark.usefixtures("bucket")
def test_no_object() -> None:
    assert "there is no such file; check the address" in refusal("s3://bucket/elsewhere")


@pytest.mark.usefixtures("bucket")
def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "Unable to locate credentials" in refusal()


@pytest.mark.usefixtures("bucket")
def test_credentials_that_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)
    assert "Forbidden (PermissionError)" in refusal()


@pytest.mark.usefixtures("bucket")
def test_a_profile_names_endpoint_and_credentials(
    server: tuple[str, Troubled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert "profile (lab) could not be found" in refusal()
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(
        f"[profile lab]\nendpoint_url = {server[0]}\naws_access_key_id = somebody\naws_secret_access_key = secret\n"
    )
    s3fs.S3FileSystem.clear_instance_cache()
    assert len(Corpus.open(URL, cache_dir=str(tmp_path / "cache"))) > 0


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    # botocore's own repetitions take six seconds each time.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert "Could not connect to the endpoint" in refusal()


def test_a_server_that_never_answers(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_PATIENCE", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", silent_server)
    assert "no answer within 0.5 seconds" in refusal()
