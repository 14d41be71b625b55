"""Settings of the stages: options of the command line and keys of a corpus file, used by readers and stages."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unimo_ds.data.vision.extractors import ExtractorChoice
from unimo_ds.utils import command_line
from unimo_ds.utils.options import option

DEFAULT_VOCABULARY = 8192

KindName = Literal["pairs", "texts", "images"]
TranslatorName = Literal["marian", "ctranslate2", "apertium"]
ParserName = Literal["rules", "factual", "spacy"]
CollectionName = Literal["texts", "images"]


@dataclass(frozen=True, kw_only=True)
class Shared(ExtractorChoice):
    """What a corpus of one import, or of several, is made with."""

    tokenizer: Path | None = option(
        None,
        "tokenizer.json, or a folder of RoBERTa or GPT-2 (default: the folder's own; if there is none, it is trained here)",
    )
    vocabulary_size: int = option(DEFAULT_VOCABULARY, "size of a tokenizer trained here")
    keep_images: bool = option(
        False, "also store the JPEGs, for `unimo prepare regions` and for pictures (patches always do)"
    )
    seed: int = option(0, "seed of what is learned and of random choices", type=command_line.seed)


@dataclass(frozen=True)
class ImportSettings(Shared):
    """What to import, and into which folder."""

    kind: KindName | None = option(
        purpose="import plain files of this kind (default: that of --format)", required=False
    )
    output: Path = option(purpose="data folder to create or to add to")
    format: str | None = option(None, "format of the files, one of those below (default: that of --kind)")
    images: tuple[Path, ...] = option((), "folders or tars of JPEG, PNG or WebP images")
    captions: tuple[Path, ...] = option((), "annotation files: file<TAB>caption, or as --format says")
    input: tuple[Path, ...] = option((), "text files; or, with --format webdataset, tars of images with captions")
    features: tuple[Path, ...] = option((), "files of region features, instead of --images")
    features_format: str | None = option(None, "format of --features, one of those below")
    feature_size: int = option(2048, "length of a region's feature vector")
    num_classes: int = option(1601, "number of the detector's classes, background included")
    max_classes: int = option(4, "how many of the likeliest classes to store for each region")
    feature_name: str | None = option(
        None, "name of the detector; a folder holds features of only one (default: the format)"
    )
    feature_columns: str | None = option(None, "names of the columns of a bottom-up TSV: image_id,image_w,image_h,...")
    feature_labels: Path | None = option(None, "VinVL's predictions.tsv")
    feature_classes: Path | None = option(
        None, "names of the classes, one per line, or JSON of name -> number, for files with names of classes"
    )
    column: str | None = option(None, "column or JSON key that holds the text")
    image_column: str | None = option(
        None, "column of the image: its file's name (csv; default: the first), or its bytes (parquet; default: image)"
    )
    paragraphs: bool = option(False, "texts are separated by empty lines, not one per line")
    splits: tuple[str, ...] = option((), "import only these splits", names=["--split"])
    image_name: str | None = option(
        None, 'how the downloader named the image of each line, such as "{line}_{crc32}" (docs/preparation.md)'
    )
    image_data: Path | None = option(
        None, "Visual Genome's image_data.json, so that --exclude knows its images by COCO ids too"
    )
    source: str | None = option(None, "name of this corpus in the folder (default: the name of its file)")
    exclude: tuple[Path, ...] = option(
        (),
        "files that list image names or ids to leave out (of a Karpathy JSON: its val and test images)",
        names=["--exclude", "--skip"],
    )
    like: Path | None = option(None, "use the tokenizer and the extractor of this data folder")
    replace: bool = option(False, "replace the shards of an earlier import of this source")


@dataclass(frozen=True)
class ParserChoice:
    """What parses captions."""

    parser: ParserName = option("rules", "parser of captions (docs/rewriting.md)")
    parser_path: Path | None = option(
        None, "folder with the parser's weights (factual) or pipeline (spacy)", metavar="DIR"
    )


@dataclass(frozen=True)
class PhraseSettings(ParserChoice):
    """How to find the phrases that are masked as a whole."""


@dataclass(frozen=True)
class RewriteSettings(ParserChoice):
    """How to rewrite captions."""

    negatives: int = option(4, "negatives stored for each caption and level")
    positives: int = option(4, "positives stored for each caption: other captions of its image")
    learn_from: Path | None = option(
        None,
        "data folder from which replacement words are learned (default: this one; a small one has too few)",
        metavar="FOLDER",
    )
    translator: TranslatorName | None = option(None, "add back-translated positives")
    to_pivot: tuple[Path, ...] = option(
        (), "folders of models into the pivot languages, one for each (marian, ctranslate2)", metavar="DIR"
    )
    from_pivot: tuple[Path, ...] = option((), "folders of the models back, in the same order", metavar="DIR")
    pivots: tuple[str, ...] = option((), "pivot languages of apertium (default: all installed)", metavar="LANGUAGE")
    back_translations: int = option(3, "back-translations added to each caption at most")
    translation_batch: int = option(32, "sentences translated at a time")
    beams: int = option(4, "beams of the translation models")
    seed: int = option(0, "seed of random choices", type=command_line.seed)


@dataclass(frozen=True)
class RetrieveSettings:
    """How to find related items."""

    number: int = option(10, "related texts and images stored for each pair", metavar="N")
    approximate: tuple[CollectionName, ...] = option(
        (), "search these through a FAISS index: for millions of images (for texts exact search is faster and better)"
    )


@dataclass(frozen=True)
class RegionSettings(ExtractorChoice):
    """How to make regions again; no extractor and no `refit`: by the folder's own."""

    refit: bool = option(False, "learn a new grid from the stored images")
    seed: int = option(0, "seed of what is learned from the images", type=command_line.seed)


SHARED = tuple(field.name for field in dataclasses.fields(Shared))
NEWER = ("image_side", "patch_side", "image_column")
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
    """All input paths in the settings but that of the extractor."""
    paths: list[Path] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in ("output", "extractor"):
            paths += [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Path)]
    return paths
