"""Remote folders are read through a bounded, shared, checked cache."""

from __future__ import annotations

import errno
import http.server
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import FileIO
from pathlib import Path

import fsspec
import pytest

from tests.data.shard_folders import assert_same_sample, finish, make_folder, make_image
from unimo_ds.data.corpus import Corpus, CorruptSample
from unimo_ds.data.storage import cache, retrying
from unimo_ds.data.storage.shards import StoredSample, write_shards
from unimo_ds.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("local"))


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """The folder in fsspec's memory."""
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        files.pipe_file(f"/corpus/{path.name}", path.read_bytes())
    yield "memory://corpus"
    files.rm("/corpus", recursive=True)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_FIRST_PAUSE", 0.001)


def cached_bytes(cache_dir: Path) -> int:
    return sum(path.stat().st_size for path in cache_dir.glob("*/*"))


def test_a_remote_corpus_is_the_local_one(folder: Path, url: str, tmp_path: Path) -> None:
    local, remote = Corpus.open(folder), Corpus.open(url, cache_dir=str(tmp_path))
    assert remote.fingerprint == local.fingerprint
    for number in range(len(local)):
        assert_same_sample(remote.read(number), local.read(number))
        assert remote.key(number) == local.key(number)
    assert remote.tokenizer_path.read_bytes() == local.tokenizer_path.read_bytes()


@pytest.fixture
def web(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server's address, and the troubles that its next answers have."""
    troubles: list[str] = []

    class Server(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            if troubles == ["busy"]:
                self.send_error(503)
            else:
                super().do_HEAD()

        def do_GET(self) -> None:
            trouble = troubles.pop() if troubles else ""
            if trouble == "busy":
                self.send_error(503)
            elif trouble == "breaks off":
                self.send_response(200)
                self.send_header("Content-Length", "20000")
                self.end_headers()
                self.wfile.write(bytes(100))
                self.close_connection = True
            else:
                super().do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", troubles
        server.shutdown()
        thread.join()


def test_over_http(folder: Path, web: tuple[str, list[str]], tmp_path: Path) -> None:
    address, _ = web
    remote = Corpus.open(address, cache_dir=str(tmp_path))
    assert_same_sample(remote.read(5), Corpus.open(folder).read(5))
    with pytest.raises(UserError, match=r"cannot read http.*/nowhere/manifest\.json"):
        Corpus.open(f"{address}/nowhere", cache_dir=str(tmp_path))
    with pytest.raises(UserError, match="Cannot connect"):
        Corpus.open("http://127.0.0.1:1/data", cache_dir=str(tmp_path))


@pytest.mark.parametrize("trouble", ["busy", "breaks off"])
def test_passing_troubles_of_a_server_are_survived(
    folder: Path, web: tuple[str, list[str]], tmp_path: Path, trouble: str
) -> None:
    address, troubles = web
    troubles[:] = [trouble]
    remote = Corpus.open(address, cache_dir=str(tmp_path))
    troubles[:] = [trouble, trouble]
    assert_same_sample(remote.read(5), Corpus.open(folder).read(5))
    assert troubles == []
    troubles[:] = [trouble] * 1000
    cause = "503" if trouble == "busy" else "images-000000"
    with pytest.raises(CorruptSample, match=f"its shard cannot be read: .*{cause}"):
        remote.read(0)
    troubles.clear()
    assert remote.read(0).source == "albums"


def test_forked_workers_connect_anew(folder: Path, web: tuple[str, list[str]], tmp_path: Path) -> None:
    """fsspec's file systems work on a thread of the process that opened them, and a forked one has no such thread."""
    local, remote = Corpus.open(folder), Corpus.open(web[0], cache_dir=str(tmp_path))
    remote.read(0)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def read_all() -> None:
        queue.put([remote.read(number).key for number in range(len(remote))])

    workers = [context.Process(target=read_all) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert found == [[local.key(number) for number in range(len(local))]] * 2
    shutil.rmtree(tmp_path)
    assert_same_sample(remote.read(5), local.read(5))


def test_a_full_disk_drops_what_is_old_before_it_refuses(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound allows more than the disk holds."""
    local, remote = Corpus.open(folder), Corpus.open(url, cache_dir=str(tmp_path))
    disk = 2 * max(shard.bytes for shard in local.manifest.shards)
    usage = shutil.disk_usage(tmp_path)

    def small_disk(_: Path) -> object:
        return usage._replace(free=disk - cached_bytes(tmp_path))

    monkeypatch.setattr(cache.shutil, "disk_usage", small_disk)
    for number in range(len(local)):
        assert_same_sample(remote.read(number), local.read(number))
        assert 0 < cached_bytes(tmp_path) <= disk
    remote.close()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    with pytest.raises(UserError, match=r"disk of the cache folder .* is full .*data\.cache_dir"):
        remote.read(0)


def test_the_cache_is_bounded_and_drops_the_least_recent(url: str, tmp_path: Path) -> None:
    largest = max(shard.bytes for shard in Corpus.open(url, cache_dir=str(tmp_path)).manifest.shards)
    bound = 2 * largest
    corpus = Corpus.open(url, cache_dir=str(tmp_path), cache_bytes=bound)
    samples = [corpus.read(number) for number in range(len(corpus))]
    assert 0 < cached_bytes(tmp_path) <= bound
    # Files that were dropped while open are still read; a fresh process fetches them again.
    again = Corpus.open(url, cache_dir=str(tmp_path), cache_bytes=bound)
    for number in range(len(corpus)):
        assert_same_sample(corpus.read(number), samples[number])
        assert_same_sample(again.read(number), samples[number])
    assert cached_bytes(tmp_path) <= bound
    assert len(list(tmp_path.glob("*/.*.lock"))) == 4, "without its lock, two processes would fetch a shard at once"


def test_a_shard_read_again_is_kept_longer(url: str, tmp_path: Path) -> None:
    sizes = [shard.bytes for shard in Corpus.open(url, cache_dir=str(tmp_path)).manifest.shards]
    corpus = Corpus.open(url, cache_dir=str(tmp_path), cache_bytes=sum(sizes) - min(sizes))
    for number in (0, 4, 7):  # one sample of each shard
        corpus.read(number)
    for at, path in enumerate(sorted(tmp_path.glob("*/*.tar"), key=lambda path: path.name.partition("-")[2])):
        os.utime(path, (at, at))
    corpus.close()
    corpus.read(0)
    corpus.read(9)
    kept = sorted(path.name.partition("-")[2] for path in tmp_path.glob("*/*.tar"))
    assert kept == ["images-000000.tar", "pairs-000001.tar", "texts-000000.tar"]


def test_a_shard_that_was_replaced_is_fetched_again(url: str, tmp_path: Path) -> None:
    """Under the same name and with as many bytes."""
    Corpus.open(url, cache_dir=str(tmp_path / "cache")).read(0)
    write_shards(tmp_path / "new", "images", [StoredSample(make_image(9))] * 4)
    finish(tmp_path / "new")
    files = fsspec.filesystem("memory")
    size = files.size("/corpus/images-000000.tar")
    for path in (tmp_path / "new").iterdir():
        files.pipe_file(f"/corpus/{path.name}", path.read_bytes())
    assert files.size("/corpus/images-000000.tar") == size
    assert_same_sample(Corpus.open(url, cache_dir=str(tmp_path / "cache")).read(0), make_image(9))


def test_a_cached_shard_that_was_cut_is_fetched_again(folder: Path, url: str, tmp_path: Path) -> None:
    """As by a disk that was full."""
    Corpus.open(url, cache_dir=str(tmp_path)).read(0)
    (shard,) = tmp_path.glob("*/*.tar")
    os.truncate(shard, 1000)
    assert_same_sample(Corpus.open(url, cache_dir=str(tmp_path)).read(0), Corpus.open(folder).read(0))


def test_a_cache_of_one_shard_serves_two_processes(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each makes room for its shard: while the other one fetches its own, and before the other one has opened it."""
    local = Corpus.open(folder)
    bound = max(shard.bytes for shard in local.manifest.shards) + 1000
    one, other = (Corpus.open(url, cache_dir=str(tmp_path), cache_bytes=bound) for _ in range(2))
    last = len(local) - 1
    turns: list[str] = []
    replace, open_file = os.replace, cache.FileIO

    def interrupted_replace(source: Path, target: Path) -> None:
        if not turns:
            turns.append("fetched")
            assert_same_sample(other.read(last), local.read(last))
        replace(source, target)

    def interrupted_open(path: Path) -> FileIO:
        if turns == ["fetched"]:
            turns.append("opened")
            path.unlink()
        return open_file(path)

    monkeypatch.setattr(cache.os, "replace", interrupted_replace)
    monkeypatch.setattr(cache, "FileIO", interrupted_open)
    assert_same_sample(one.read(0), local.read(0))
    assert turns == ["fetched", "opened"]


def test_what_a_killed_process_left_behind_is_dropped(url: str, tmp_path: Path) -> None:
    corpus = Corpus.open(url, cache_dir=str(tmp_path), cache_bytes=100_000)
    corpus.read(0)
    (shard,) = tmp_path.glob("*/*.tar")
    left, fresh = (shard.with_name(f".{name}.partial") for name in ("left", "fresh"))
    for path in (left, fresh):
        path.write_bytes(bytes(40_000))
    os.utime(left, (0, 0))
    corpus.read(len(corpus) - 1)
    assert not left.exists()
    assert fresh.exists()


def test_a_shard_larger_than_the_cache_is_refused(url: str, tmp_path: Path) -> None:
    corpus = Corpus.open(url, cache_dir=str(tmp_path), cache_bytes=1000)
    with pytest.raises(UserError, match=r"raise data\.cache_bytes"):
        corpus.read(0)


def test_a_cached_shard_is_not_fetched_twice(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    real = cache.RemoteStorage._fetch

    def counting(self: cache.RemoteStorage, name: str, *arguments: object) -> None:
        fetched.append(name)
        real(self, name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache.RemoteStorage, "_fetch", counting)
    corpora = [Corpus.open(url, cache_dir=str(tmp_path)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda corpus: corpus.read(0), corpora))
    Corpus.open(url, cache_dir=str(tmp_path)).read(1)
    assert fetched == ["images-000000.tar"]


def test_damage_on_the_way_is_fetched_again(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.open(url, cache_dir=str(tmp_path))
    files = fsspec.filesystem("memory")
    whole = files.cat_file("/corpus/images-000000.tar")
    attempts = []
    real = cache.RemoteStorage._fetch

    def heals(self: cache.RemoteStorage, *arguments: object) -> None:
        files.pipe_file("/corpus/images-000000.tar", whole[:5000] if not attempts else whole)
        attempts.append(1)
        real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache.RemoteStorage, "_fetch", heals)
    assert corpus.read(0).source == "albums"
    assert len(attempts) == 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer"])
def test_lasting_damage_is_named_and_never_cached(url: str, tmp_path: Path, damage: str) -> None:
    corpus = Corpus.open(url, cache_dir=str(tmp_path))
    files = fsspec.filesystem("memory")
    whole = files.cat_file("/corpus/images-000000.tar")
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    files.pipe_file(
        "/corpus/images-000000.tar", {"flipped": flipped, "cut": whole[:-1], "longer": whole + b"x"}[damage]
    )
    with pytest.raises(CorruptSample, match="is not what the manifest describes"):
        corpus.read(0)
    assert cached_bytes(tmp_path) == 0
    assert corpus.read(4).source == "photos"


def test_a_shard_that_is_gone(url: str, tmp_path: Path) -> None:
    corpus = Corpus.open(url, cache_dir=str(tmp_path))
    fsspec.filesystem("memory").rm("/corpus/images-000000.tar")
    with pytest.raises(CorruptSample, match="cannot be read"):
        corpus.read(0)


def test_a_cache_that_everybody_may_write_to_is_refused(url: str, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    place.mkdir(mode=0o777)
    place.chmod(0o1777)  # many users' folders may lie there
    Corpus.open(url, cache_dir=str(place))
    (own,) = place.iterdir()
    own.chmod(0o777)
    with pytest.raises(UserError, match=f"everybody may write to the cache folder {own}, and so choose"):
        Corpus.open(url, cache_dir=str(place))


def test_a_cache_that_cannot_be_made(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make the cache folder .*set data\.cache_dir"):
        Corpus.open(url, cache_dir=str(tmp_path / "file"))


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    if _has("s3fs"):
        pytest.skip("s3fs is installed here")
    with pytest.raises(UserError, match="s3fs"):
        Corpus.open("s3://bucket/corpus", cache_dir=str(tmp_path))


def _has(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None
