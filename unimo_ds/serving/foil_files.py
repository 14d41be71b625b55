"""Benchmarks of true captions against foils (nearly the same words, but false), read from their official files.

To add one, write a function from its folder to items, and add a line to `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.finetune.files import first_file, none_of, read_json_lines, text_of
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError

FOIL = -1
"""In `Item.image_of_text`, a text that describes none of the images."""
_VALID_VOTES = 2
"""Of VALSE's three annotators, how many must have chosen the caption over the foil; the paper's valid set."""


@dataclass(frozen=True)
class Item:
    """Images and texts to be matched."""

    category: str
    images: tuple[str, ...]
    """Names of their files, as the benchmark writes them: with or without folders and suffix."""
    texts: tuple[str, ...]
    image_of_text: tuple[int, ...]
    """For each text, the number of the image that it describes, or FOIL."""


def read(name: str, folder: Path) -> list[Item]:
    """The items of the benchmark `name` in the folder of its official files.

    Raises:
        UserError: no such folder or files, or a file that is damaged, naming the entry.
    """
    items = list(FORMATS[name](folder))
    if not items:
        raise UserError(f"the files of {name} in {folder} hold no item")
    return items


def _sugarcrepe(folder: Path) -> Iterator[Item]:
    """SugarCrepe (Hsieh et al. 2023) and SugarCrepe++ (Dumpala et al. 2024): one file per type of foil.

    SugarCrepe++ has a second true caption, which must outrank the foil too.
    """
    for path, where, entry in _entries(folder):
        captions = [entry.get("caption")] + ([entry["caption2"]] if "caption2" in entry else [])
        yield _told_apart(path.stem, where, entry.get("filename"), captions, [entry.get("negative_caption")])


def _valse(folder: Path) -> Iterator[Item]:
    """VALSE (Parcalabescu et al. 2022): one file per instrument; only foils confirmed by annotators."""
    for path, where, entry in _entries(folder):
        votes: dict[str, int] = strict_json.typed(dict[str, int], entry.get("mturk"), where=f"{where}: mturk")
        if votes.get("caption", 0) >= _VALID_VOTES:
            yield _told_apart(path.stem, where, entry.get("image_file"), [entry.get("caption")], [entry.get("foil")])


def _winoground(folder: Path) -> Iterator[Item]:
    """Winoground (Thrush et al. 2022): two images, and two captions made of the same words."""
    path = first_file(folder, ("examples.jsonl",))
    for line, entry in read_json_lines(path):
        where = f"{path}:{line}"
        texts = tuple(text_of(entry.get(f"caption_{number}"), where) for number in (0, 1))
        images = tuple(text_of(entry.get(f"image_{number}"), where) for number in (0, 1))
        yield Item("winoground", images, texts, (0, 1))


def _lines(folder: Path) -> Iterator[Item]:
    """The user's own JSON lines: image, captions, foils, and optionally a category (default: the file's name)."""
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise none_of(folder, "*.jsonl")
    for path in paths:
        for line, entry in read_json_lines(path):
            where = f"{path}:{line}"
            captions, foils = (_texts(entry, name, where) for name in ("captions", "foils"))
            yield _told_apart(str(entry.get("category", path.stem)), where, entry.get("image"), captions, foils)


FORMATS: Mapping[str, Callable[[Path], Iterator[Item]]] = {
    "sugarcrepe": _sugarcrepe,
    "valse": _valse,
    "winoground": _winoground,
    "lines": _lines,
}


def _told_apart(category: str, where: str, image: Any, captions: Sequence[Any], foils: Sequence[Any]) -> Item:
    """An item with one image."""
    texts = tuple(text_of(text, where) for text in (*captions, *foils))
    return Item(category, (text_of(image, where),), texts, (0,) * len(captions) + (FOIL,) * len(foils))


def _entries(folder: Path) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """(file, place, object) of every entry of every JSON file; a file is an object of objects or a list of them."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise none_of(folder, "*.json")
    for path in paths:
        content = strict_json.read(path, dict[str, dict[str, Any]] | list[dict[str, Any]])
        for key, entry in content.items() if isinstance(content, dict) else enumerate(content):
            yield path, f"{path}: {key}", entry


def _texts(entry: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """One text, or a list of texts."""
    found = entry.get(name)
    texts = found if isinstance(found, list) else [found]
    if not texts:
        raise UserError(f"{where} has no {name}; give at least one")
    return texts
