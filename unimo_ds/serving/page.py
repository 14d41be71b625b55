"""A small local page: find photographs by words or by a photograph, with generated captions.

Everything is rendered on the server; the browser runs no script and loads nothing from elsewhere. Only items of the index are
sent, chosen by number, never by a path in a request. Every user of a machine can reach its ports, and so can every page in a
browser there: only a browser that was given the key in the printed address is answered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import io
import logging
import secrets
import threading
from pathlib import Path
from typing import Any

from flask import Flask, abort, redirect, render_template, request
from flask.typing import ResponseReturnValue
from PIL import Image
from werkzeug.serving import BaseWSGIServer, make_server

from unimo_ds.data.vision import images
from unimo_ds.data.vision.images import BadImage
from unimo_ds.generation.generate import GenerationSettings
from unimo_ds.serving.index import Index, Item
from unimo_ds.serving.model import ServedModel, own_settings
from unimo_ds.serving.samples import read_picture
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.printable import printable

HOST = "127.0.0.1"
_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
)
_COUNT = 24
_SIMILAR = 12
_LARGEST_UPLOAD = 32 * 2**20
_COOKIE = "unimo_search_page_"
_LARGEST_SIDE = 1024
"""Largest width and height, in pixels, of a photograph sent to the browser."""


def make_app(index: Index, model: ServedModel, writer: ServedModel, *, key: str) -> Flask:
    """The page's WSGI application. writer: the model that generates captions. key: must come with a request (`/?key=...`), whose
    browser then keeps it."""
    app = Flask(__name__, template_folder="templates", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = _LARGEST_UPLOAD
    app.jinja_env.globals["what_is_written"] = (
        "fragments of captions (the model was only pre-trained)" if writer.source.task is None else "captions"
    )
    lock = threading.Lock()  # one model, several requests

    @app.before_request
    def refuse_strangers() -> ResponseReturnValue | None:
        # Against DNS rebinding: another site may point its own host name at this machine; answer only local names.
        if request.host.rpartition(":")[0] not in (HOST, "localhost") and request.host not in (HOST, "localhost"):
            abort(403)
        cookie = _COOKIE + request.host.rpartition(":")[2]  # a browser gives the cookies of one port to all
        if hmac.compare_digest(request.cookies.get(cookie, "").encode(), key.encode()):
            return None
        if not hmac.compare_digest(request.args.get("key", "").encode(), key.encode()):
            return "Open the whole address that `unimo search page` has printed: its key is missing here.", 403
        answer = redirect("/")
        answer.set_cookie(cookie, key, httponly=True, samesite="Lax")
        return answer

    @app.after_request
    def allow_only_this_page(response: Any) -> Any:
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response

    @app.get("/")
    def search() -> ResponseReturnValue:
        query = request.args.get("query", "").strip()
        found = []
        if query:
            with lock:
                found = index.search(model.text_vectors([query])[0], _COUNT)
        return _render("search.html", index=index, query=query, found=found)

    @app.post("/")
    def search_by_photograph() -> ResponseReturnValue:
        upload = request.files.get("photograph")
        if upload is None or not upload.filename:
            return _render("search.html", index=index, problem="Choose a photograph first."), 400
        content = upload.read()
        try:  # each model gets the image at the size of its training data
            seen = {side: images.decode(content, shrink_to=side) for side in {model.shrink_to, writer.shrink_to}}
        except BadImage as error:
            problem = f"{upload.filename} cannot be read: {error}. JPEG, PNG and WebP can."
            return _render("search.html", index=index, problem=problem), 400
        with lock:
            found = index.search(model.image_vectors([seen[model.shrink_to]])[0], _COUNT)
            captions = write_captions(writer, seen[writer.shrink_to])
        return _render("search.html", index=index, name=upload.filename, captions=captions, found=found)

    @app.get("/photograph/<int:number>")
    def photograph(number: int) -> ResponseReturnValue:
        item = item_of(number)
        path, problem, captions = Path(str(item.image)), "", []
        with lock:
            try:
                captions = write_captions(writer, read_picture(item, shrink_to=writer.shrink_to))
            except UserError as error:  # similar items need only the stored vector
                problem = str(error)
            similar = index.search(index.vector(number), _SIMILAR + 1)
        others = [one for one in similar if one.number != number]
        page = _render(
            "photograph.html", index=index, number=number, path=path, captions=captions, found=others, problem=problem
        )
        return page, 400 if problem else 200

    @app.get("/image/<int:number>")
    def image(number: int) -> ResponseReturnValue:
        found = read_picture(item_of(number))
        found.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
        buffer = io.BytesIO()
        found.save(buffer, format="JPEG", quality=88)
        return buffer.getvalue(), {"Content-Type": "image/jpeg", "Cache-Control": "max-age=3600"}

    @app.errorhandler(UserError)
    def explain(error: UserError) -> ResponseReturnValue:
        return _render("search.html", index=index, problem=str(error)), 400

    @app.errorhandler(413)
    def refuse_large(error: Exception) -> ResponseReturnValue:
        problem = f"A photograph of more than {_LARGEST_UPLOAD // 2**20} MB is not taken."
        return _render("search.html", index=index, problem=problem), 413

    def item_of(number: int) -> Item:
        if not 0 <= number < len(index) or index.items[number].image is None:
            abort(404)
        return index.items[number]

    return app


def _render(template: str, **values: Any) -> str:
    return printable(render_template(template, **values))


def write_captions(writer: ServedModel, image: Image.Image) -> list[str]:
    """Generated captions of a photograph, best first, without duplicates."""
    (written,) = writer.write([image], [None], _caption_settings(writer))
    return list(dict.fromkeys(text for text, _ in written if text))


def _caption_settings(writer: ServedModel) -> GenerationSettings:
    settings = own_settings(writer.source)
    num_beams = max(settings.num_beams, 3)
    return dataclasses.replace(settings, num_beams=num_beams, num_texts=3, max_tokens=min(settings.max_tokens, 40))


def make_local_server(app: Flask, *, port: int) -> BaseWSGIServer:
    """A server that only this machine can reach; port 0: any free one.

    Raises:
        UserError: the port is taken.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # werkzeug prints its own advice, and exits
            return make_server(HOST, port, app, threaded=True)
    except SystemExit:
        raise UserError(f"cannot listen on port {port}, another program does; give another --port") from None
    except OSError as error:
        raise UserError(f"cannot listen on port {port}: {error}; give another --port") from None


def serve(index: Index, model: ServedModel, writer: ServedModel, *, port: int) -> None:
    """Serve until interrupted.

    Raises:
        UserError: the port is taken, or `writer` cannot generate text.
    """
    own_settings(writer.source)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # not a line per picture
    key = secrets.token_urlsafe(16)
    server = make_local_server(make_app(index, model, writer, key=key), port=port)
    print(f"http://{HOST}:{server.server_port}/?key={key}   ({len(index):,} items; end with Ctrl-C)", flush=True)
    server.serve_forever()
