"""Images of a task: samples of a data folder made by `unimo prepare import`, found by file name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.corpus_check import check_made_alike, check_regions
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.evaluation import checkpoint
from unimo_ds.evaluation.pair_reader import PairReader
from unimo_ds.evaluation.pairs import choose_pairs
from unimo_ds.utils.errors import UserError

_LAST_NUMBER = re.compile(r"\d+$")
_SEVERAL = -1
"""In place of a sample's number, if several samples have the name."""
_SPLIT_FOLDERS = {"train": ("train",), "dev": ("dev", "val", "held_out"), "test": ("test",)}


def open_split(data: Path, split: str, config: RunConfig, *, tokenizer: Tokenizer | None) -> Corpus:
    """The data folder of a split below `data`.

    tokenizer: the model's, if the folder's own token counts are used.

    Raises:
        UserError: none there, or one made with another region extractor or tokenizer.
    """
    return check_images(find_split(data, split), config, tokenizer=tokenizer)


def open_pairs(data: Path, split: str, config: RunConfig, *, tokenizer: Tokenizer) -> PairReader:
    """Its pairs, with all their captions.

    Raises:
        UserError: as `open_split`, or it holds no pairs.
    """
    corpus = open_split(data, split, config, tokenizer=tokenizer)
    return PairReader.of(corpus, config, choose_pairs(corpus), tokenizer=tokenizer)


def find_split(data: Path, split: str) -> Corpus:
    """The data folder, not yet checked against the model.

    Raises:
        UserError: none there.
    """
    names = _SPLIT_FOLDERS.get(split, (split,))
    folder = next((data / name for name in names if (data / name / "manifest.json").is_file()), None)
    if folder is None:
        is_split = (data / "manifest.json").is_file()
        cure = "give the folder above it" if is_split else "make it with `unimo prepare import`"
        raise UserError(f"{data} has no data folder {' or '.join(names)}; {cure}")
    return Corpus.open(folder)


def check_images(corpus: Corpus, config: RunConfig, *, tokenizer: Tokenizer | None) -> Corpus:
    """
    Raises:
        UserError: see `open_split`.
    """
    check_regions(corpus, config)
    if tokenizer is not None and corpus.manifest.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{corpus.location} was prepared with another tokenizer than the model's; "
            "run `unimo prepare pack` on it with the model's, or import it with `--like` the pre-training data"
        )
    check_made_alike(corpus, _pretraining_data(config), parts=("extractor",), made_with=config.data.made_with)
    return corpus


def _pretraining_data(config: RunConfig) -> str:
    """Of the model, or of the one it was fine-tuned from; empty if no longer known."""
    if config.finetune is None:
        return config.data.path
    if not config.finetune.start:
        return ""
    try:
        return checkpoint.read_config(checkpoint.find(config.finetune.start).config).data.path
    except UserError:
        return ""


def name_of(corpus: Corpus, number: int) -> str | None:
    """Of a sample's image file, without folder and extension; None if it was not stored.

    Raises:
        CorruptSample: unreadable notes.
    """
    file = corpus.details(number).get("file")
    return None if file is None else Path(str(file)).stem


class ImageNames:
    """Finds the sample of an image by the name in an official file."""

    def __init__(self, corpus: Corpus) -> None:
        """Reads the notes of every sample that has an image, once.

        Raises:
            UserError: unreadable notes.
        """
        self._location = corpus.location
        self._by_name: dict[str, int] = {}
        self._by_id: dict[int, int] = {}
        for number in np.flatnonzero(np.asarray(corpus.num_regions) > 0).tolist():
            name = name_of(corpus, number) or corpus.key(number)
            self._by_name[name] = _SEVERAL if name in self._by_name else number
            if digits := _LAST_NUMBER.search(name):
                coco = int(digits[0])
                self._by_id[coco] = _SEVERAL if coco in self._by_id else number

    def find(self, name: str | int, where: str) -> int:
        """The sample of an image: by file name (ignoring folder and extension), by COCO number (the digits at a name's end), or
        by its key if file names were not stored.

        Raises:
            UserError: not found, or found several times.
        """
        number = (
            self._by_id.get(name)
            if isinstance(name, int)
            else self._by_name.get(name, self._by_name.get(Path(name).stem))
        )
        if number is None:
            raise UserError(f"{where} names the image {name!r}, which {self._location} does not hold; import it there")
        if number == _SEVERAL:
            raise UserError(
                f"{where} names the image {name!r}, of which {self._location} holds several; import files of different names"
            )
        return number
