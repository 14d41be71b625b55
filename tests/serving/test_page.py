"""The page: over HTTP, and as a person uses it in a browser."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from tests.serving import browser
from unimo_ds import cli
from unimo_ds.serving.index import Index
from unimo_ds.serving.model import ServedModel
from unimo_ds.serving.page import HOST, make_app, make_local_server
from unimo_ds.utils.errors import UserError

KEY = "the key"


@pytest.fixture(scope="module")
def app(run: Path, index: Path):
    model = ServedModel.open(run)
    return make_app(Index.open(index), model, model, key=KEY)


def opened(app: Flask) -> FlaskClient:
    """A browser that has opened the printed address."""
    client = app.test_client()
    answer = client.get(f"/?key={KEY}")
    assert (answer.status_code, answer.location) == (302, "/")
    return client


@pytest.fixture
def client(app):
    return opened(app)


def test_words_find_items_best_first(client):
    page = client.get("/?query=two+dogs").get_data(as_text=True)
    scores = [float(part.partition("<")[0]) for part in page.split('class="score">')[1:]]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    assert page.index("two dogs") < page.index("/photograph/")
    assert "10 items" in client.get("/").get_data(as_text=True)


def test_a_photograph_is_shown_with_captions_and_likes(client, photographs: Path):
    page = client.get("/photograph/0").get_data(as_text=True)
    assert 'class="caption"' in page
    assert "/image/0" in page
    assert page.count("<li>") == 9
    answer = client.get("/image/0")
    assert answer.content_type == "image/jpeg"
    assert Image.open(io.BytesIO(answer.data)).size == Image.open(photographs / "0.png").size


def test_a_photograph_of_ones_own_finds_itself(client, photographs: Path):
    with (photographs / "deep" / "5.png").open("rb") as file:
        page = client.post("/", data={"photograph": (file, "mine.png")}).get_data(as_text=True)
    assert "mine.png, fragments of captions (the model was only pre-trained):" in page
    first = page[page.index("<li>") : page.index("</li>")]
    assert "5.png" in first
    assert "1.000" in first


def test_bad_requests_are_explained(client, index: Path):
    assert client.post("/", data={}).status_code == 400
    answer = client.post("/", data={"photograph": (io.BytesIO(b"no image"), "<b>x</b>.jpg")})
    assert answer.status_code == 400
    page = answer.get_data(as_text=True)
    assert "cannot be read" in page
    assert "<b>x</b>" not in page, "names are escaped"
    answer = client.post("/", data={"photograph": (io.BytesIO(bytes(33 * 2**20)), "x.jpg")})
    assert answer.status_code == 413
    assert "more than 32 MB" in answer.get_data(as_text=True)
    # Only photographs of the index are sent, and only to pages on this machine.
    for path in ("/image/7", "/image/99", "/photograph/9", "/image/..%2Findex.json", "/static/x"):
        assert client.get(path).status_code == 404, path
    assert client.get("/", headers={"Host": "evil.example:8000"}).status_code == 403
    elsewhere = {"Host": "localhost:8000"}
    assert client.get("/", headers=elsewhere).status_code == 403, "another port's page has another cookie"
    assert client.get(f"/?key={KEY}", headers=elsewhere).status_code == 302
    assert client.get("/", headers=elsewhere).status_code == 200
    assert client.get("/").headers["Content-Security-Policy"].startswith("default-src 'none'")
    query = "<script>alert(1)</script>"
    assert query not in client.get("/", query_string={"query": query}).get_data(as_text=True)


def test_without_the_key_nobody_is_answered(app: Flask, photographs: Path) -> None:
    stranger = app.test_client()
    paths = ("/", "/?query=dogs", "/photograph/0", "/image/0", "/?key=", "/?key=other", "/nowhere")
    answers = [stranger.get(path) for path in paths]
    answers.append(stranger.get("/image/0", headers={"Cookie": "unimo_search_page=other"}))
    with (photographs / "0.png").open("rb") as file:  # as a form of another site would send it
        answers.append(stranger.post(f"/?key={KEY[:-1]}", data={"photograph": (file, "mine.png")}))
    for answer in answers:
        assert answer.status_code == 403
        assert "its key is missing" in answer.get_data(as_text=True)
    cookie = app.test_client().get(f"/?key={KEY}").headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie, "no page of another site sends it along"


def test_a_photograph_that_is_gone_is_explained(run: Path, photographs: Path, index: Path):
    found = Index.open(index)
    found.items[0] = type(found.items[0])(image="/nowhere/gone.jpg")
    model = ServedModel.open(run)
    answer = opened(make_app(found, model, model, key=KEY)).get("/photograph/0")
    assert answer.status_code == 400
    page = answer.get_data(as_text=True)
    assert "cannot read the image /nowhere/gone.jpg" in page
    assert page.count("<li>") == 9, "what is alike is shown all the same"


def test_names_that_are_no_unicode_are_spelt_out(run: Path, photographs: Path, tmp_path: Path, monkeypatch):
    photograph = tmp_path / os.fsdecode(b"\xff.png")
    photograph.write_bytes((photographs / "0.png").read_bytes())
    folder = tmp_path / "index"
    given = ["--checkpoint", str(run), "--images", str(photograph), "--output", str(folder)]
    assert cli.main(["search", "build", *given]) == 0
    model = ServedModel.open(run)
    client = opened(make_app(Index.open(folder), model, model, key=KEY))
    for path in ("/?query=dogs", "/photograph/0"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "\\udcff.png" in answer.get_data(as_text=True)
    assert client.get("/image/0").status_code == 200
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="utf-8", write_through=True))
    assert cli.main(["search", "dogs", "--index", str(folder)]) == 0
    assert b"\\udcff.png" in printed.getvalue()


@pytest.fixture
def address(app) -> Iterator[str]:
    server = make_local_server(app, port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://{HOST}:{server.server_port}/?key={KEY}"
    server.shutdown()
    thread.join()


@pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))
def test_in_a_browser(address: str, photographs: Path, tmp_path: Path):
    with browser.Browser(tmp_path / "profile") as window:
        window.open(address)
        assert window.texts("h1") == ["Photographs"]
        window.type("#query", "two dogs")
        window.click("#search")
        window.wait_for("document.querySelectorAll('ul.found li').length == 10")
        assert window.texts("ul.found li p")[0].startswith("two dogs")
        window.wait_for("[...document.images].filter(i => i.complete && i.naturalWidth > 0).length >= 4")
        names = window.run("return [...document.images].map(i => i.alt + ' ' + i.closest('li').innerText.trim())")
        assert all(name.split()[0] == name.split()[1] for name in names), "an image is called by its file"
        widest = "Math.max(...[...document.querySelectorAll('*')].map(e => e.getBoundingClientRect().right))"
        for width in (320, 600, 1000):
            window.run(f"document.documentElement.style.width = '{width}px'")
            assert window.run(f"return {widest}") <= width, "nothing is cut off on a narrow screen"
        window.click("ul.found a")
        window.wait_for("document.querySelector('blockquote.caption')")
        assert window.texts("blockquote.caption")[0]
        window.type("#photograph", str(photographs / "4.png"))
        window.click("#upload")
        window.wait_for("document.body.innerText.includes('4.png, fragments of captions')")
        assert window.texts("ul.found li p")[0].split()[:2] == ["4.png", "1.000"]
        window.click("#upload")
        window.wait_for("document.querySelector('[role=alert]')")
        assert window.texts("[role=alert]") == ["Choose a photograph first."]
        if os.environ.get("UNIMO_SCREENSHOT"):
            window.screenshot(Path(os.environ["UNIMO_SCREENSHOT"]))


def test_a_taken_port_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port}, another program does; give another --port"):
            make_local_server(Flask("page"), port=port)
    assert capfd.readouterr() == ("", "")
