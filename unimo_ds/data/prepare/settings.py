"""What one import is asked to do, as one value: the command line makes it, readers take their inputs from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

DEFAULT_VOCABULARY = 8192

KindName = Literal["pairs", "texts", "images"]
TranslatorName = Literal["marian", "ctranslate2", "apertium"]
ParserName = Literal["rules", "factual", "spacy"]
CollectionName = Literal["texts", "images"]


@dataclass(frozen=True)
class ImportSettings:
    """What to import, and into which folder."""

    kind: KindName | None
    """None: what the format gives."""
    output: Path
    format: str | None = None
    """A name of `formats.FORMATS`; None: the plain format of the kind."""
    images: tuple[Path, ...] = ()
    """Folders and tars of encoded images."""
    captions: tuple[Path, ...] = ()
    """Annotation files of the format."""
    input: tuple[Path, ...] = ()
    """Text files, or tars that hold images and captions together."""
    features: tuple[Path, ...] = ()
    """Files of region features, instead of images."""
    features_format: str | None = None
    feature_size: int = 2048
    num_classes: int = 1601
    """Classes that the detector tells apart, background included: Visual Genome's 1600 and one."""
    feature_name: str | None = None
    """Name of the detector: features of one name may share a folder. None: the format's name."""
    feature_columns: str | None = None
    """Columns of a bottom-up TSV, where they are not one of the known sets."""
    feature_classes: Path | None = None
    """Names of the region classes, a line each, or a JSON of name -> number: where a format stores names."""
    feature_labels: Path | None = None
    """A second file with the classes of the regions (VinVL's predictions.tsv)."""
    max_classes: int = 4
    """Most likely classes that are kept of a stored distribution."""
    exclude: tuple[Path, ...] = ()
    """Lists of images that must not enter: names or ids, a line each, or a Karpathy JSON (its val and test images)."""
    splits: tuple[str, ...] = ()
    """Of formats that have splits: take these alone."""
    image_name: str | None = None
    """Of formats that know images by URL: how the file of a line is named."""
    image_data: Path | None = None
    """Visual Genome's image_data.json, which tells which of its images are COCO's."""
    source: str | None = None
    """Name of the corpus in the folder; None: the name of its file."""
    tokenizer: Path | None = None
    extractor: Path | None = None
    """An extractor's file or folder, or the name of a kind (`extractors.KINDS`)."""
    weights: Path | None = None
    """Of the network of that kind: a file or a folder."""
    image_side: int | None = None
    patch_side: int | None = None
    """Pixels, where the extractor is `patches`; None: its own."""
    like: Path | None = None
    """A data folder whose tokenizer and extractor are used."""
    vocabulary_size: int = DEFAULT_VOCABULARY
    keep_images: bool = False
    paragraphs: bool = False
    column: str | None = None
    replace: bool = False
    seed: int = 0


@dataclass(frozen=True)
class RewriteSettings:
    """How captions are rewritten. Field names are those of the options and of the corpus file."""

    positives: int = 4
    """Other captions of the image that are stored with each."""
    negatives: int = 4
    """Of each level."""
    back_translations: int = 3
    """Positives that the translator may add."""
    translator: TranslatorName | None = None
    """None: no back-translation."""
    to_pivot: tuple[Path, ...] = ()
    """Folders of models (marian, ctranslate2), a pivot language each."""
    from_pivot: tuple[Path, ...] = ()
    """Of the way back, in the same order."""
    pivots: tuple[str, ...] = ()
    """Languages of apertium; none: all that are installed."""
    translation_batch: int = 32
    """Sentences that a model translates at a time."""
    beams: int = 4
    parser: ParserName = "rules"
    parser_path: Path | None = None
    """Weights or pipeline of the parser, where it has any."""
    learn_from: Path | None = None
    """A data folder whose captions teach what may replace what (a small folder has too few); None: the folder itself."""
    seed: int = 0


@dataclass(frozen=True)
class PhraseSettings:
    """How the phrases that are masked whole are found."""

    parser: ParserName = "rules"
    parser_path: Path | None = None


@dataclass(frozen=True)
class RetrieveSettings:
    """How related items are found."""

    number: int = 10
    """Texts, and images, that are stored with each pair."""
    approximate: tuple[CollectionName, ...] = ()
    """Of these only what an index of FAISS proposes is looked at: for images by the million."""


NEWER = ("image_side", "patch_side")
"""Fields that say nothing where they are None: imports of before were finished without them."""
_NO_INPUT = ("output", "replace", "source")
"""Fields that say where things go, not what is made."""


def source_name(settings: ImportSettings) -> str:
    """The given name, or that of the imported file, in the characters a shard's name may have."""
    paths = (*settings.features, *settings.images, *settings.input, *settings.captions)
    raw = settings.source or (paths[0].stem if paths else "corpus")
    return re.sub(r"[^A-Za-z0-9_-]+", "_", raw)[:48] or "corpus"


def fingerprint(settings: ImportSettings) -> str:
    """16 hexadecimal digits over all that decides the shards: every option, and size and time of every input file.

    Folders of images are known by their names alone: listing a million files would take longer than many an import.
    """
    values = {name: _plain(value) for name, value in vars(settings).items() if name not in _NO_INPUT}
    values = {name: value for name, value in values.items() if value is not None or name not in NEWER}
    if settings.weights is not None and settings.weights.is_dir():
        values["weights"] = files_in(settings.weights)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def identity_of(settings: RewriteSettings) -> list[Any]:
    """All that decides the rewrites, models by their files' sizes and times; where results go plays no part."""
    values = {name: _plain(value) for name, value in vars(settings).items() if name != "learn_from"}
    folders = (*settings.to_pivot, *settings.from_pivot, settings.parser_path)
    return [values, [files_in(path) for path in folders]]


def files_in(folder: Path | None) -> list[Any]:
    """Names, sizes and times of a model folder's files: whether it is still the same."""
    return [] if folder is None else [_plain(file) for file in sorted(folder.glob("*"))]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        if not value.is_file():
            return [value.name]
        about = value.stat()
        return [value.name, about.st_size, about.st_mtime_ns]
    return value


def input_paths(settings: ImportSettings) -> list[Path]:
    """Every path that the settings name as an input."""
    paths: list[Path] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name != "output":
            paths += [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Path)]
    return paths
