"""Options of `unimo prepare import`."""

from __future__ import annotations

import argparse
from pathlib import Path

from unimo_ds.data.prepare import worker_options
from unimo_ds.data.prepare.settings import DEFAULT_VOCABULARY, ImportSettings

EXTRACTOR_HELP = (
    "what makes regions: grid (default: learned from the images); patches (pixels, cut from the stored JPEG when it is read); "
    "with --weights vision-encoder (CLIP, SigLIP, DINOv2, ...), torchvision or bottom-up; or extractor.safetensors of another "
    "folder"
)

EXAMPLE = """unimo prepare import --kind texts --input wiki.txt --output data/train
  unimo prepare import --format coco --captions captions_train2017.json --images train2017 --output data/train
Every format with its command: docs/preparation.md"""


def add(stage: argparse.ArgumentParser) -> None:
    stage.add_argument(
        "--format", help="what the files are: a wrong name lists the right ones (default: that of --kind)"
    )
    stage.add_argument("--kind", choices=("pairs", "texts", "images"), help="plain files of this kind")
    stage.add_argument("--output", type=Path, required=True, help="data folder, new or with other sources")
    stage.add_argument("--images", type=Path, nargs="+", default=[], help="folders or tars of JPEG, PNG or WebP images")
    stage.add_argument("--captions", type=Path, nargs="+", default=[], help="annotation files of the format")
    stage.add_argument("--input", type=Path, nargs="+", default=[], help="text files; or tars of images with captions")
    stage.add_argument(
        "--features", type=Path, nargs="+", default=[], help="files of region features, instead of images"
    )
    stage.add_argument(
        "--features-format", help="what they are: a wrong name lists the right ones (such as bottom-up-tsv)"
    )
    stage.add_argument(
        "--feature-size",
        type=int,
        default=ImportSettings.feature_size,
        help="numbers of a region's feature (default %(default)s)",
    )
    stage.add_argument(
        "--num-classes",
        type=int,
        default=ImportSettings.num_classes,
        help="classes of the detector (default %(default)s)",
    )
    stage.add_argument(
        "--max-classes",
        type=int,
        default=ImportSettings.max_classes,
        help="most likely classes stored per region (default %(default)s)",
    )
    stage.add_argument(
        "--feature-name", help="name of the detector: one folder holds features of one (default: format)"
    )
    stage.add_argument("--feature-columns", help="columns of a bottom-up TSV, such as image_id,image_w,image_h,...")
    stage.add_argument("--feature-labels", type=Path, help="VinVL's predictions.tsv")
    stage.add_argument(
        "--feature-classes", type=Path, help="names of the classes a line each, or JSON of name -> number"
    )
    stage.add_argument("--column", help="the column or JSON key that holds the text")
    stage.add_argument("--paragraphs", action="store_true", help="join lines up to an empty one into one text")
    stage.add_argument("--split", dest="splits", nargs="+", default=[], help="take these splits alone")
    stage.add_argument("--image-name", help='file name of a line\'s image, such as "{line}_{crc32}" (see the docs)')
    stage.add_argument("--image-data", type=Path, help="Visual Genome's image_data.json, so that COCO ids exclude")
    stage.add_argument("--source", help="name of this corpus in the folder (default: its file's name)")
    stage.add_argument(
        "--exclude",
        "--skip",
        type=Path,
        nargs="+",
        default=[],
        help="lists of image names or ids that must not enter; of a Karpathy JSON, its val and test images",
    )
    stage.add_argument("--tokenizer", type=Path, help="tokenizer.json, or a RoBERTa or GPT-2 folder")
    add_extractor(stage)
    stage.add_argument("--like", type=Path, help="take tokenizer and extractor of this data folder")
    stage.add_argument(
        "--vocabulary-size",
        type=int,
        default=DEFAULT_VOCABULARY,
        help="of a tokenizer trained here (default %(default)s)",
    )
    stage.add_argument(
        "--keep-images", action="store_true", help="store the JPEGs too, for `regions` and pictures (patches always do)"
    )
    stage.add_argument("--replace", action="store_true", help="replace the shards of an earlier import of this source")
    stage.add_argument("--seed", type=int, default=0, help="of what is learned from the images")
    worker_options.add(stage)
    stage.add_argument("--json", action="store_true", help="print the report as JSON")


def add_extractor(stage: argparse.ArgumentParser) -> None:
    """Which extractor makes regions of images."""
    stage.add_argument("--extractor", type=Path, help=EXTRACTOR_HELP)
    stage.add_argument(
        "--weights",
        type=Path,
        help="a detector's file (safetensors, or a state dict of torch), or a vision encoder's folder (save_pretrained)",
    )
    stage.add_argument("--image-side", type=int, help="pixels that an image is scaled to for patches (default 224)")
    stage.add_argument("--patch-side", type=int, help="pixels of a patch, a divisor of that (default 16)")
