"""A searchable collection: vectors of images and texts in a FAISS index, and the item behind each vector.

index.json     the model that made the vectors, their number and size
items.jsonl    one line per vector: {"image": path}, {"image": FOLDER/SHARD.tar:BASE, "sample": number} or {"text": text}
vectors.faiss  vectors of length 1, compared by inner product, i.e. cosine
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from torch import nn

from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.new_folder import new_folder

ABOUT_FILE, ITEMS_FILE, VECTORS_FILE = "index.json", "items.jsonl", "vectors.faiss"
SCHEMA = 1
_NEIGHBOURS = 32
"""Links of each vector in the graph of an approximate index."""
_WIDTH = 128
"""Candidates examined in building and searching the graph."""
_OWN_KINDS = (b"IxFI", b"IHNf")
"""How files of the two kinds of `write` begin. FAISS reads many more, and some name files that it then opens."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Item:
    """An image or a text."""

    image: str | None = None
    """Its file, or `FOLDER/SHARD.tar:BASE` for a sample."""
    text: str | None = None
    sample: int | None = None
    """Number in its data folder, if the image is a sample."""


@dataclass(frozen=True)
class Found:
    number: int
    item: Item
    score: float
    """Cosine."""


@dataclass(frozen=True)
class About:
    """Contents of `index.json`."""

    schema: int
    items: int
    size: int
    """D of a vector."""
    model: str
    """Fingerprint."""
    checkpoint: str
    approximate: bool


class Index:
    """An opened collection."""

    def __init__(self, about: About, items: Sequence[Item], vectors: Any, folder: Path) -> None:
        self.about, self.items, self._vectors, self.folder = about, items, vectors, folder

    def __len__(self) -> int:
        return len(self.items)

    @classmethod
    def open(cls, folder: Path) -> Index:
        """
        Raises:
            UserError: missing, damaged, or of another version.
        """
        if not (folder / ABOUT_FILE).is_file():
            raise UserError(f"no index at {folder}; make one with `unimo search build --output {folder}`")
        try:
            about: About = strict_json.read(folder / ABOUT_FILE, About)
            lines = (folder / ITEMS_FILE).read_text(encoding="utf-8").splitlines()
            items = [strict_json.typed(Item, strict_json.parsed(line), where="an item") for line in lines]
            with (folder / VECTORS_FILE).open("rb") as stream:
                if stream.read(4) not in _OWN_KINDS:
                    raise ValueError(f"{VECTORS_FILE} is of another kind than this program writes")
                stream.seek(0)
                vectors = faiss.read_index(faiss.PyCallbackIOReader(stream.read))  # type: ignore[attr-defined]
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"the index {folder} is damaged ({str(error).splitlines()[0]}); build it again") from None
        if about.schema != SCHEMA:
            raise UserError(f"the index {folder} has schema {about.schema}, not {SCHEMA}; build it again")
        if not (len(items) == vectors.ntotal == about.items and vectors.d == about.size):
            raise UserError(
                f"the index {folder} is damaged: {len(items)} items and {vectors.ntotal} vectors; build it again"
            )
        return cls(about, items, vectors, folder)

    def check_model(self, fingerprint: str) -> None:
        """
        Raises:
            UserError: another model made the vectors.
        """
        if self.about.model != fingerprint:
            raise UserError(
                f"{self.folder} was made by another model ({self.about.checkpoint}); give that one, or build the index again"
            )

    def search(self, query: Vectors, count: int) -> list[Found]:
        """The `count` items nearest to a query [D] of length 1, best first; fewer if the index has fewer."""
        scores, numbers = self._vectors.search(query[None], min(count, len(self)))
        pairs = zip(numbers[0].tolist(), scores[0].tolist(), strict=True)
        return [Found(number, self.items[number], score) for number, score in pairs if number >= 0]

    def vector(self, number: int) -> Vectors:
        """[D]"""
        vector: Vectors = self._vectors.reconstruct(number)
        return vector


def write(
    folder: Path,
    batches: Iterable[tuple[Sequence[Item], Vectors]],
    *,
    size: int,
    model: str,
    checkpoint: str,
    approximate: bool = False,
) -> Index:
    """Make an index in a new folder, which appears complete or not at all.

    batches: items and their vectors [n, size] of length 1. model: `fingerprint_of` the model that made them. approximate: use a
    graph that finds nearly all neighbours in almost constant time (for over about a million items), else compare every vector.

    Raises:
        UserError: the folder is not empty, there is nothing to index, or it cannot be written.
    """
    vectors: Any = faiss.IndexFlatIP(size)
    if approximate:
        vectors = faiss.IndexHNSWFlat(size, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        vectors.hnsw.efConstruction = vectors.hnsw.efSearch = _WIDTH
    items: list[Item] = []
    with new_folder(folder, option="--output") as aside:
        with (aside / ITEMS_FILE).open("w", encoding="utf-8") as file:
            for some, rows in batches:
                vectors.add(np.ascontiguousarray(rows, np.float32))
                items += some
                for item in some:
                    file.write(json.dumps({k: v for k, v in vars(item).items() if v is not None}) + "\n")
        if not items:
            raise UserError("there is nothing to index; give --images, --data or --texts")
        about = About(SCHEMA, len(items), size, model, checkpoint, approximate)
        (aside / ABOUT_FILE).write_text(json.dumps(vars(about), indent=2) + "\n")
        # FAISS's own file writer ignores a full disk and accepts only Unicode names.
        with (aside / VECTORS_FILE).open("wb") as stream:
            faiss.write_index(vectors, faiss.PyCallbackIOWriter(stream.write))  # type: ignore[attr-defined]
    return Index(about, items, vectors, folder)


def fingerprint_of(model: nn.Module) -> str:
    """16 hexadecimal digits, hashed from the weights: equal for a run and its export, wherever they are."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
