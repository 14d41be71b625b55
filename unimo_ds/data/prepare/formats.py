"""The formats of `unimo prepare import`, by name: the inputs and the reader of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from unimo_ds.data.prepare.readers import coco, imagefolder, karpathy, lavis, table, url_table, visual_genome
from unimo_ds.data.prepare.readers.bottom_up_tsv import BottomUpTsv
from unimo_ds.data.prepare.readers.hdf5 import Hdf5
from unimo_ds.data.prepare.readers.image_files import ImageFiles
from unimo_ds.data.prepare.readers.pairs import AnnotatedPictures, AnnotationFile, LonePictures
from unimo_ds.data.prepare.readers.parquet_images import ParquetImages
from unimo_ds.data.prepare.readers.parquet_texts import ParquetTexts
from unimo_ds.data.prepare.readers.protocol import Pictures, Reader
from unimo_ds.data.prepare.readers.text_files import TextFiles
from unimo_ds.data.prepare.readers.uniter_lmdb import UniterLmdb
from unimo_ds.data.prepare.readers.vinvl_tsv import VinvlTsv
from unimo_ds.data.prepare.readers.webdataset_tars import WebDatasetTars
from unimo_ds.data.prepare.settings import ImportSettings, KindName, input_paths
from unimo_ds.utils.errors import UserError, nearest_name


@dataclass(frozen=True)
class Format:
    purpose: str
    kinds: tuple[KindName, ...]
    """Kinds it can give; the first is the default."""
    needs: tuple[str, ...]
    """Required inputs."""
    takes: tuple[str, ...]
    """Optional inputs."""
    reader: Callable[[ImportSettings], Reader]
    """Given checked inputs."""


_PICTURES = ("images", "features")
_ANNOTATED = ("features_format", "feature_classes", "feature_labels", "exclude")
FEATURE_FILES: dict[str, Callable[[ImportSettings], Pictures]] = {
    "bottom-up-tsv": BottomUpTsv,
    "vinvl-tsv": VinvlTsv,
    "uniter-lmdb": UniterLmdb,
    "hdf5": Hdf5,
}


def _pictures(settings: ImportSettings, *, without_suffix: bool = False) -> Pictures:
    if settings.features:
        return FEATURE_FILES[settings.features_format or ""](settings)
    return ImageFiles(settings.images, without_suffix=without_suffix)


def _captioned(purpose: str, read: AnnotationFile, *takes: str, without_suffix: bool = False) -> Format:
    """Annotation files beside images or region features. without_suffix: see `ImageFiles`."""

    def reader(settings: ImportSettings) -> Reader:
        return AnnotatedPictures(settings, _pictures(settings, without_suffix=without_suffix), read)

    return Format(purpose, ("pairs",), ("captions",), (*_PICTURES, *_ANNOTATED, *takes), reader)


def _texts(purpose: str, form: str, *, needs: tuple[str, ...] = (), takes: tuple[str, ...] = ()) -> Format:
    """Text files. form: see `TextFiles`."""
    return Format(purpose, ("texts",), ("input", *needs), takes, partial(TextFiles, form=form))


def _tars(settings: ImportSettings) -> Reader:
    return WebDatasetTars(settings, with_captions=kind_of(settings) == "pairs")


def _parquet(settings: ImportSettings) -> Reader:
    kind = kind_of(settings)
    return ParquetTexts(settings) if kind == "texts" else ParquetImages(settings, with_captions=kind == "pairs")


def _alone(settings: ImportSettings) -> Reader:
    return LonePictures(settings, _pictures(settings))


FORMATS: dict[str, Format] = {
    "table": _captioned("lines file<TAB>caption, beside images", table.read_annotations),
    "csv": _captioned(
        "rows file,caption, or two columns by name, beside images", table.read_csv, "column", "image_column"
    ),
    "lavis": _captioned("JSON list of image and caption, as of LAVIS, ALBEF and BLIP", lavis.read_annotations),
    "imagefolder": _captioned("metadata.jsonl of Hugging Face's imagefolder", imagefolder.read_annotations, "column"),
    "coco": _captioned("COCO captions JSON", coco.read_annotations),
    "karpathy": _captioned("JSON with Karpathy's splits", karpathy.read_annotations, "splits"),
    "visual-genome": _captioned(
        "Visual Genome's region_descriptions.json", visual_genome.read_annotations, "image_data"
    ),
    "conceptual-captions": _captioned(
        "lines caption<TAB>url, beside downloaded images",
        url_table.conceptual_captions,
        "image_name",
        without_suffix=True,
    ),
    "sbu": _captioned("SBU captions: JSON, two lists or a table", url_table.sbu, "image_name", without_suffix=True),
    "webdataset": Format("tars of img2dataset or WebDataset", ("pairs", "images"), ("input",), ("exclude",), _tars),
    "images": Format("images alone, or region features alone", ("images",), (), (*_PICTURES, *_ANNOTATED), _alone),
    "lines": _texts("text files, one text a line", "lines"),
    "paragraphs": _texts("text files, texts separated by empty lines", "paragraphs"),
    "column": _texts("one column of TSV files with a header", "column", needs=("column",)),
    "json-lines": _texts("one JSON object a line", "json-lines", takes=("column",)),
    "parquet": Format(
        "Parquet files of texts, or with --kind of images as bytes",
        ("texts", "pairs", "images"),
        ("input",),
        ("column", "image_column", "exclude"),
        _parquet,
    ),
    "headings": _texts("articles under = Headings =", "headings"),
}
"""A new format is a file in `readers/` and a line here."""
_CHECKED = (
    "images",
    "captions",
    "input",
    "features",
    "exclude",
    "splits",
    "image_name",
    "image_data",
    "column",
    "image_column",
)


def format_of(settings: ImportSettings) -> str:
    """The name of the settings' format: the one given, or the plain format of the kind.

    Raises:
        UserError: no such format, or it does not give the requested kind.
    """
    name = settings.format
    if name is None:
        if settings.kind is None:
            raise UserError(f"name a --format ({', '.join(FORMATS)}) or a --kind (pairs, texts, images)")
        if settings.kind == "texts":
            return "column" if settings.column else "paragraphs" if settings.paragraphs else "lines"
        return {"pairs": "table", "images": "images"}[settings.kind]
    if name not in FORMATS:
        raise UserError(f"there is no format {name!r}{nearest_name(name, FORMATS)}")
    if settings.kind is not None and settings.kind not in FORMATS[name].kinds:
        raise UserError(f"--format {name} gives {' or '.join(FORMATS[name].kinds)}, not --kind {settings.kind}")
    return name


def kind_of(settings: ImportSettings) -> KindName:
    return settings.kind or FORMATS[format_of(settings)].kinds[0]


def check(settings: ImportSettings) -> None:
    """
    Raises:
        UserError: a required input is not given or does not exist, or the format has no use for an input.
    """
    name = format_of(settings)
    one = FORMATS[name]
    asked = f"--format {name}" if settings.format else f"--kind {settings.kind}"
    for option in one.needs:
        if not getattr(settings, option):
            raise UserError(f"{asked} needs {_flag(option)}")
    if set(_PICTURES) <= set(one.takes) and not any(getattr(settings, option) for option in _PICTURES):
        raise UserError(f"{asked} needs --images or --features")
    if settings.images and settings.features:
        raise UserError("--images and --features are two sources of the same regions; name one of them")
    if settings.features and settings.features_format not in FEATURE_FILES:
        known = ", ".join(FEATURE_FILES)
        raise UserError(f"--features needs --features-format, one of {known}")
    if settings.features_format and not settings.features:
        raise UserError(f"--features-format {settings.features_format} needs --features")
    settings.check()
    if not 1 <= settings.max_classes <= settings.num_classes or settings.feature_size < 1:
        raise UserError(
            "--feature-size, --num-classes and --max-classes must be at least 1, the last at most the second"
        )
    for option in _CHECKED:
        if getattr(settings, option) and option not in (*one.needs, *one.takes):
            raise UserError(f"{asked} has no use for {_flag(option)}")
    for path in input_paths(settings):
        if not path.exists():
            unexpanded = "; the shell expands patterns only outside of quotes" if set("{*?[") & set(str(path)) else ""
            raise UserError(f"{path} does not exist{unexpanded}")


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-").replace("splits", "split")


def reader(settings: ImportSettings) -> Reader:
    """The reader for the settings' format; check the inputs first."""
    return FORMATS[format_of(settings)].reader(settings)


def described() -> str:
    """One line per format, and those of features, for `unimo prepare import --help`."""
    width = max(map(len, FORMATS))
    lines = [f"  {name:<{width}}  {one.purpose}" for name, one in FORMATS.items()]
    return "\n".join([*lines, f"\nformats of --features: {', '.join(FEATURE_FILES)}"])
