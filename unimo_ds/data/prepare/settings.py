"""Settings of imports, rewriting, phrases and retrieval: made by the command line, used by readers and stages."""

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
    """None: the format's default."""
    output: Path
    format: str | None = None
    """A name of `formats.FORMATS`; None: the plain format of the kind."""
    images: tuple[Path, ...] = ()
    """Folders and tars of encoded images."""
    captions: tuple[Path, ...] = ()
    """Annotation files of the format."""
    input: tuple[Path, ...] = ()
    """Text files, or tars with both images and captions."""
    features: tuple[Path, ...] = ()
    """Files of region features, instead of images."""
    features_format: str | None = None
    feature_size: int = 2048
    num_classes: int = 1601
    """Number of the detector's classes, background included: Visual Genome's 1600 and one."""
    feature_name: str | None = None
    """Name of the detector: features of one name may share a folder. None: the format's name."""
    feature_columns: str | None = None
    """Columns of a bottom-up TSV, if they are not one of the known sets."""
    feature_classes: Path | None = None
    """Names of the region classes, one per line, or JSON of name -> number, for formats that store names."""
    feature_labels: Path | None = None
    """A second file with the classes of the regions (VinVL's predictions.tsv)."""
    max_classes: int = 4
    """Number of likeliest classes kept from a stored distribution."""
    exclude: tuple[Path, ...] = ()
    """Lists of images to exclude: names or ids, one per line, or a Karpathy JSON (its val and test images)."""
    splits: tuple[str, ...] = ()
    """For formats with splits: import only these."""
    image_name: str | None = None
    """For formats with URLs of images: pattern of the file names."""
    image_data: Path | None = None
    """Visual Genome's image_data.json, which says which of its images are in COCO."""
    source: str | None = None
    """Name of the corpus in the folder; None: the name of its file."""
    tokenizer: Path | None = None
    extractor: Path | None = None
    """An extractor's file or folder, or the name of a kind (`extractors.KINDS`)."""
    weights: Path | None = None
    """Of that kind's network: a file or folder."""
    image_side: int | None = None
    patch_side: int | None = None
    """In pixels, if the extractor is `patches`; None: its default."""
    like: Path | None = None
    """A data folder whose tokenizer and extractor to use."""
    vocabulary_size: int = DEFAULT_VOCABULARY
    keep_images: bool = False
    paragraphs: bool = False
    column: str | None = None
    replace: bool = False
    seed: int = 0


@dataclass(frozen=True)
class RewriteSettings:
    """How to rewrite captions. Field names are those of the options and of the corpus file."""

    positives: int = 4
    """Other captions of the image stored with each caption."""
    negatives: int = 4
    """Per level."""
    back_translations: int = 3
    """Maximum of positives by translation."""
    translator: TranslatorName | None = None
    """None: no back-translation."""
    to_pivot: tuple[Path, ...] = ()
    """Folders of models (marian, ctranslate2), one per pivot language."""
    from_pivot: tuple[Path, ...] = ()
    """Folders of the models back, in the same order."""
    pivots: tuple[str, ...] = ()
    """Pivot languages for apertium; empty: all installed ones."""
    translation_batch: int = 32
    """Sentences translated at a time."""
    beams: int = 4
    parser: ParserName = "rules"
    parser_path: Path | None = None
    """Weights or pipeline of the parser, if it has any."""
    learn_from: Path | None = None
    """Data folder from whose captions to learn replacements (a small folder has too few); None: the folder itself."""
    seed: int = 0


@dataclass(frozen=True)
class PhraseSettings:
    """How to find the phrases that are masked as a whole."""

    parser: ParserName = "rules"
    parser_path: Path | None = None


@dataclass(frozen=True)
class RetrieveSettings:
    """How to find related items."""

    number: int = 10
    """Number of texts, and of images, stored with each pair."""
    approximate: tuple[CollectionName, ...] = ()
    """Collections to search through a FAISS index, for millions of images."""


NEWER = ("image_side", "patch_side")
"""Newer fields, left out of fingerprints if None, so that imports finished before they existed keep their fingerprints."""
_NO_INPUT = ("output", "replace", "source")
"""Fields that determine where the result goes, not its content."""


def source_name(settings: ImportSettings) -> str:
    """The given name, or that of the imported file, reduced to characters allowed in a shard's name."""
    paths = (*settings.features, *settings.images, *settings.input, *settings.captions)
    raw = settings.source or (paths[0].stem if paths else "corpus")
    return re.sub(r"[^A-Za-z0-9_-]+", "_", raw)[:48] or "corpus"


def fingerprint(settings: ImportSettings) -> str:
    """16 hexadecimal digits over everything that determines the shards: all options, sizes and times of all input files.

    Folders of images count only by name: listing a million files would take longer than many imports.
    """
    values = {name: _plain(value) for name, value in vars(settings).items() if name not in _NO_INPUT}
    values = {name: value for name, value in values.items() if value is not None or name not in NEWER}
    if settings.weights is not None and settings.weights.is_dir():
        values["weights"] = files_in(settings.weights)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def identity_of(settings: RewriteSettings) -> list[Any]:
    """Everything that determines the rewrites but `learn_from`; models by the sizes and times of their files."""
    values = {name: _plain(value) for name, value in vars(settings).items() if name != "learn_from"}
    folders = (*settings.to_pivot, *settings.from_pivot, settings.parser_path)
    return [values, [files_in(path) for path in folders]]


def files_in(folder: Path | None) -> list[Any]:
    """Names, sizes and times of a model folder's files, to detect changes."""
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
    """All input paths in the settings."""
    paths: list[Path] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name != "output":
            paths += [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Path)]
    return paths
