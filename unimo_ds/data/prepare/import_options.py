"""Options of `unimo prepare import`."""

from __future__ import annotations

import argparse
from pathlib import Path

from unimo_ds.data.prepare import formats, worker_options
from unimo_ds.data.prepare.settings import DEFAULT_VOCABULARY, ImportSettings
from unimo_ds.utils import command_line

EXTRACTOR_HELP = (
    "how regions are made: grid (the default, learned from the images); patches (of pixels, cut from the stored JPEG when it is "
    "read); with --weights vision-encoder (CLIP, SigLIP, DINOv2, ...), torchvision or bottom-up; or the extractor.safetensors of "
    "another data folder"
)

EXAMPLE = f"""unimo prepare import --kind texts --input wiki.txt --output data/train
  unimo prepare import --format coco --captions captions_train2017.json --images train2017 --output data/train

formats (--format; the command for each: docs/preparation.md):
{formats.described()}"""


def add(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("--format", help="format of the files, one of those below (default: that of --kind)")
    stage.add_argument("--kind", choices=("pairs", "texts", "images"), help="import plain files of this kind")
    stage.add_argument("--output", type=Path, required=True, help="data folder to create or to add to")
    stage.add_argument("--images", type=Path, nargs="+", default=[], help="folders or tars of JPEG, PNG or WebP images")
    stage.add_argument(
        "--captions", type=Path, nargs="+", default=[], help="annotation files: file<TAB>caption, or as --format says"
    )
    stage.add_argument(
        "--input",
        type=Path,
        nargs="+",
        default=[],
        help="text files; or, with --format webdataset, tars of images with captions",
    )
    stage.add_argument(
        "--features", type=Path, nargs="+", default=[], help="files of region features, instead of --images"
    )
    stage.add_argument("--features-format", help=f"format of --features: {', '.join(formats.FEATURE_FILES)}")
    stage.add_argument(
        "--feature-size",
        type=int,
        default=ImportSettings.feature_size,
        help="length of a region's feature vector (default %(default)s)",
    )
    stage.add_argument(
        "--num-classes",
        type=int,
        default=ImportSettings.num_classes,
        help="number of the detector's classes (default %(default)s)",
    )
    stage.add_argument(
        "--max-classes",
        type=int,
        default=ImportSettings.max_classes,
        help="how many of the likeliest classes to store for each region (default %(default)s)",
    )
    stage.add_argument(
        "--feature-name", help="name of the detector; a folder holds features of only one (default: the format)"
    )
    stage.add_argument(
        "--feature-columns", help="names of the columns of a bottom-up TSV: image_id,image_w,image_h,..."
    )
    stage.add_argument("--feature-labels", type=Path, help="VinVL's predictions.tsv")
    stage.add_argument(
        "--feature-classes", type=Path, help="names of the classes, one per line, or JSON of name -> number"
    )
    stage.add_argument("--column", help="column or JSON key that holds the text")
    stage.add_argument("--paragraphs", action="store_true", help="texts are separated by empty lines, not one per line")
    stage.add_argument("--split", dest="splits", nargs="+", default=[], help="import only these splits")
    stage.add_argument(
        "--image-name",
        help='how the downloader named the image of each line, such as "{line}_{crc32}" (docs/preparation.md)',
    )
    stage.add_argument(
        "--image-data",
        type=Path,
        help="Visual Genome's image_data.json, so that --exclude knows its images by COCO ids too",
    )
    stage.add_argument("--source", help="name of this corpus in the folder (default: the name of its file)")
    stage.add_argument(
        "--exclude",
        "--skip",
        type=Path,
        nargs="+",
        default=[],
        help="files that list image names or ids to leave out (of a Karpathy JSON: its val and test images)",
    )
    stage.add_argument(
        "--tokenizer",
        type=Path,
        help="tokenizer.json, or a folder of RoBERTa or GPT-2 (default: the folder's own; the first import trains it)",
    )
    add_extractor(stage)
    stage.add_argument("--like", type=Path, help="use the tokenizer and the extractor of this data folder")
    stage.add_argument(
        "--vocabulary-size",
        type=int,
        default=DEFAULT_VOCABULARY,
        help="size of a tokenizer trained here (default %(default)s)",
    )
    stage.add_argument(
        "--keep-images",
        action="store_true",
        help="also store the JPEGs, for `unimo prepare regions` and for pictures (patches always do)",
    )
    stage.add_argument("--replace", action="store_true", help="replace the shards of an earlier import of this source")
    stage.add_argument(
        "--seed", type=command_line.seed, default=0, help="seed of what is learned from the images (default 0)"
    )
    worker_options.add(stage)
    stage.add_argument("--json", action="store_true", help="print the report as JSON")


def add_extractor(stage: argparse.ArgumentParser) -> None:
    """Options that choose the region extractor."""
    stage.add_argument("--extractor", type=Path, help=EXTRACTOR_HELP)
    stage.add_argument(
        "--weights",
        type=Path,
        help="a detector's file (safetensors, or a state dict of torch), or a vision encoder's folder (save_pretrained)",
    )
    stage.add_argument(
        "--image-side", type=int, metavar="PIXELS", help="for patches: scale images to this side (default 224)"
    )
    stage.add_argument(
        "--patch-side", type=int, metavar="PIXELS", help="side of a patch, a divisor of --image-side (default 16)"
    )
