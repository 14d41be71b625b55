"""`unimo search TEXT|IMAGE`, `search build` and `search page`: find images and texts in a collection by their content."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimo_ds.serving import options
from unimo_ds.utils import locations
from unimo_ds.utils.batched import batched
from unimo_ds.utils.command_line import ArgumentParser
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.printable import for_terminal
from unimo_ds.utils.running import run_command

if TYPE_CHECKING:
    from unimo_ds.serving.index import Index, Item, Vectors
    from unimo_ds.serving.model import ServedModel

_AT_ONCE = 32
_EXAMPLE = """example:
  unimo search build --checkpoint runs/photos --images photos/ --output index
  unimo search "two dogs in the snow" --index index
  unimo search holiday.jpg --index index --count 5 --json
  unimo search page --index index"""


def main(words: Sequence[str]) -> int:
    """Run `unimo search ...`. Returns the exit status."""
    if words[:1] == ["build"]:
        return run_command(lambda: _build(_parsed(_build_parser(), words[1:])))
    if words[:1] == ["page"]:
        return run_command(lambda: _page(_parsed(_page_parser(), words[1:])))
    return run_command(lambda: _search(_parsed(_search_parser(), words)))


def _parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    arguments = parser.parse_args(words)
    locations.check_local_options(arguments)
    return arguments


def _parser(program: str, purpose: str, epilog: str) -> ArgumentParser:
    return ArgumentParser(
        prog=f"unimo search{program}",
        description=purpose,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _search_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "",
        "Search photographs and texts by words or by an image. First build an index: `unimo search build`.",
        _EXAMPLE,
    )
    parser.add_argument("query", metavar="TEXT|IMAGE", help="words to search for, or an image file")
    _add_index(parser)
    parser.add_argument("--count", type=int, default=10, metavar="N", help="number of results (default 10)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _build_parser() -> argparse.ArgumentParser:
    parser = _parser(
        " build",
        "Build a search index (FAISS) of images and texts.",
        "example:\n  unimo search build --checkpoint runs/photos --images photos/ --output index",
    )
    options.add_model(parser)
    parser.add_argument("--images", type=Path, nargs="+", default=[], metavar="PHOTO", help="image files or folders")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="data folders of `unimo prepare`: their images (by the stored regions) and texts",
    )
    parser.add_argument("--texts", type=Path, metavar="FILE", help="texts, one per line; - reads standard input")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to create for the index")
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="search a graph (HNSW) instead of comparing every item: for more than a million items",
    )
    parser.add_argument("--skip-bad", action="store_true", help="skip files that cannot be read, and name them")
    return parser


def _page_parser() -> argparse.ArgumentParser:
    parser = _parser(
        " page",
        "Serve a search page to browsers on this machine, with generated captions for the photographs.",
        "example:\n  unimo search page --index index --port 8000",
    )
    _add_index(parser)
    parser.add_argument(
        "--captions",
        type=Path,
        metavar="RUN_OR_DIR",
        help="model that writes the captions (default: the model of the index)",
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0: any free one (default 8000)")
    return parser


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", type=Path, required=True, metavar="DIR", help="folder made by `unimo search build`")
    options.add_model(parser, default="the one that built the index")


def open_both(arguments: argparse.Namespace) -> tuple[Index, ServedModel]:
    """The index, and the model that made it.

    Raises:
        UserError: either is missing or damaged, or they do not belong together.
    """
    from unimo_ds.serving.index import Index, fingerprint_of

    index = Index.open(arguments.index)
    arguments.checkpoint = arguments.checkpoint or Path(index.about.checkpoint)
    model = options.open_model(arguments)
    index.check_model(fingerprint_of(model.source.module))
    return index, model


def _search(arguments: argparse.Namespace) -> None:
    from unimo_ds.serving.images import SUFFIXES, read_image

    if arguments.count < 1:
        raise UserError(f"--count {arguments.count} must be at least 1")
    path = Path(arguments.query)
    index, model = open_both(arguments)
    if path.suffix.lower() in SUFFIXES:
        vectors = model.image_vectors([read_image(path, shrink_to=model.shrink_to)])
    else:
        vectors = model.text_vectors([arguments.query])
    found = index.search(vectors[0], arguments.count)
    rows = [{"image": one.item.image, "text": one.item.text, "score": one.score} for one in found]
    if arguments.json:
        print(json.dumps({"query": arguments.query, "index": str(arguments.index), "found": rows}, indent=2))
        return
    for row in rows:
        print(for_terminal(f"{row['score']:.3f}  {row['image'] or row['text']}"))


def _build(arguments: argparse.Namespace) -> None:
    from unimo_ds.serving import index

    if not arguments.images and not arguments.data and arguments.texts is None:
        raise UserError("there is nothing to index; give --images, --data or --texts")
    model = options.open_model(arguments)
    made = index.write(
        arguments.output,
        _batches(arguments, model),
        size=model.size,
        model=index.fingerprint_of(model.source.module),
        checkpoint=str(model.source.files.weights.parent.resolve()),
        approximate=arguments.approximate,
    )
    print(f"wrote {arguments.output}: {len(made):,} items of {model.size} numbers")


def _batches(arguments: argparse.Namespace, model: ServedModel) -> Iterator[tuple[list[Item], Vectors]]:
    """Items with their vectors; a progress bar on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    from unimo_ds.serving import samples
    from unimo_ds.serving.images import find_images
    from unimo_ds.serving.index import Item

    console = Console(stderr=True)
    hidden = not console.is_terminal

    def watched(items: Sequence[Any], what: str) -> Any:
        return track(list(batched(items, _AT_ONCE)), description=what, console=console, disable=hidden)

    if arguments.images:
        for paths in watched(find_images(arguments.images), "images"):
            readable = [(path, image) for path in paths if (image := _readable(path, model, arguments)) is not None]
            if readable:
                items = [Item(image=str(path.resolve())) for path, _ in readable]
                yield items, model.image_vectors([image for _, image in readable])
    for folder in (Path(place) for given in arguments.data for place in locations.split(str(given))):
        corpus = samples.open_folder(folder, model)
        for numbers in watched(range(len(corpus)), str(folder)):
            yield from samples.encode(corpus, numbers, model, skip_bad=arguments.skip_bad)
    if arguments.texts is not None:
        lines = [line.strip() for line in options.read_lines(arguments.texts) if line.strip()]
        for some in watched(lines, "texts"):
            yield [Item(text=text) for text in some], model.text_vectors(some)


def _readable(path: Path, model: ServedModel, arguments: argparse.Namespace) -> Any:
    """The image, or None if it is bad and may be skipped."""
    import sys

    from unimo_ds.serving.images import read_image

    try:
        return read_image(path, shrink_to=model.shrink_to)
    except UserError as error:
        if not arguments.skip_bad:
            raise UserError(f"{error} (--skip-bad leaves such files out)") from None
        print(for_terminal(f"left out: {error}"), file=sys.stderr)
        return None


def _page(arguments: argparse.Namespace) -> None:
    from unimo_ds.serving.page import serve

    index, model = open_both(arguments)
    writer = model
    if arguments.captions is not None:
        from unimo_ds.serving.model import ServedModel

        writer = ServedModel.open(arguments.captions, extractor=arguments.extractor, device=model.source.device)
    serve(index, model, writer, port=arguments.port)
