"""`unimo generate`: texts from photographs, from texts, or from both."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from unimo_ds.serving import options

EXAMPLE = """unimo generate --checkpoint runs/captions --image photo.jpg
  unimo generate --checkpoint runs/summaries --text "A long article ..." --block-words 3 --min-tokens 20 --max-tokens 128
  unimo generate --checkpoint runs/captions --image photos/ --sample --top-p 0.9 --texts 3 --json captions.json"""


def add(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument(
        "--image", type=Path, nargs="+", default=[], metavar="PHOTO", help="image files, or folders of them"
    )
    parser.add_argument("--text", nargs="+", default=[], help="source texts; with images: one for each, or one for all")
    parser.add_argument("--text-file", type=Path, help="source texts, one per line; - reads standard input")
    options.add_generation(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Generate for every input. Returns `{"checkpoint", "results": [{"image", "source", "texts": [{"text", "score", ...}]}]}`.

    Raises:
        UserError: no input, unequal numbers, a file that is missing or not an image, and as `ServedModel.write`.
    """
    from unimo_ds.serving.images import find_images, read_image
    from unimo_ds.utils.errors import UserError

    texts: list[str | None] = list(arguments.text)
    if arguments.text_file is not None:
        texts += options.read_lines(arguments.text_file)
    paths: list[Path | None] = list(find_images(arguments.image)) if arguments.image else []
    if not texts and not paths:
        raise UserError("there is nothing to write from; give --image PHOTO, --text TEXT, or both")
    if paths and len(texts) == 1:
        texts *= len(paths)
    if paths and texts and len(paths) != len(texts):
        raise UserError(
            f"{len(paths)} images and {len(texts)} texts; give as many texts as images, one for all, or none"
        )
    number = max(len(paths), len(texts))
    paths, texts = paths or [None] * number, texts or [None] * number
    model = options.open_model(arguments)
    settings = options.generation_settings(arguments, model)
    images = (None if path is None else read_image(path, shrink_to=model.shrink_to) for path in paths)
    results: list[dict[str, Any]] = []
    for path, text, written in zip(paths, texts, model.write(images, texts, settings), strict=True):
        results.append(
            {
                "image": None if path is None else str(path),
                "source": text,
                "texts": [
                    {"text": one, "score": found.score, "tokens": len(found.tokens), "is_finished": found.is_finished}
                    for one, found in written
                ],
            }
        )
    if not any(text["text"] for one in results for text in one["texts"]):
        print("every text came out empty: the model has not learned to write; see `unimo finetune`", file=sys.stderr)
    elif model.source.task is None:
        print(
            "note: a model that was only pre-trained writes fragments; for captions: `unimo finetune captioning`",
            file=sys.stderr,
        )
    return {"checkpoint": str(model.source.files.weights.parent), "task": model.source.task, "results": results}


def to_text(result: dict[str, Any]) -> str:
    """Only the texts if there is one input, otherwise each after its input."""
    several = len(result["results"]) > 1
    lines = []
    for one in result["results"]:
        name = one["image"] or " ".join(one["source"].split())[:60]
        lines += [(f"{name}\t" if several else "") + text["text"] for text in one["texts"]]
    return "\n".join(lines)
