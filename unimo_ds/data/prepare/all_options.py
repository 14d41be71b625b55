"""Options of `unimo prepare all`: a file that describes the corpus, or the inputs of a simple one."""

from __future__ import annotations

import argparse
from pathlib import Path

from unimo_ds.data.prepare import import_options, worker_options
from unimo_ds.data.prepare.corpus_plan import Plan, named, read_plan
from unimo_ds.data.prepare.settings import DEFAULT_VOCABULARY, ImportSettings, RewriteSettings
from unimo_ds.utils import command_line
from unimo_ds.utils.errors import UserError

EXAMPLE = """unimo prepare all --config corpus.toml --workers 8
  unimo prepare all --images photos.tar --captions captions.tsv --texts wiki.txt --output data/train
The file is described in docs/preparation.md"""


def add(stage: argparse.ArgumentParser) -> None:
    stage.add_argument(
        "--config",
        type=Path,
        help="TOML file that describes a whole corpus; replaces all options except --workers and --executor",
    )
    stage.add_argument("--images", type=Path, help="folder or tar of the images that have captions")
    stage.add_argument("--captions", type=Path, help="captions, lines of file<TAB>caption")
    stage.add_argument("--texts", type=Path, nargs="+", default=[], help="text files, one text a line")
    stage.add_argument(
        "--image-only", type=Path, nargs="+", default=[], help="folders or tars of images without captions"
    )
    stage.add_argument("--output", type=Path, help="data folder to create, or to continue")
    stage.add_argument(
        "--tokenizer", type=Path, help="use this tokenizer instead of training one on captions and texts"
    )
    import_options.add_extractor(stage)
    stage.add_argument(
        "--vocabulary-size",
        type=int,
        default=DEFAULT_VOCABULARY,
        help="size of a tokenizer trained here (default %(default)s)",
    )
    stage.add_argument("--keep-images", action="store_true", help="also store the JPEGs")
    stage.add_argument(
        "--seed", type=command_line.seed, default=0, help="seed of what is learned and of random choices (default 0)"
    )
    worker_options.add(stage)
    stage.add_argument("--json", action="store_true", help="print the reports as JSON")


def plan(arguments: argparse.Namespace) -> Plan:
    """
    Raises:
        UserError: an invalid file, or neither a file nor the inputs of a simple corpus.
    """
    given = [name for name in ("images", "captions", "output") if getattr(arguments, name) is not None]
    if arguments.config is not None:
        if given:
            raise UserError(f"--config says everything; leave --{given[0]} out")
        return read_plan(arguments.config)
    if len(given) < 3:
        raise UserError("unimo prepare all needs --config FILE, or --images, --captions and --output")
    output = arguments.output
    imports = [ImportSettings("pairs", output, images=(arguments.images,), captions=(arguments.captions,))]
    imports += [ImportSettings("texts", output, input=(path,)) for path in arguments.texts]
    imports += [ImportSettings("images", output, images=(path,)) for path in arguments.image_only]
    return Plan(
        output,
        named(imports),
        tokenizer=arguments.tokenizer,
        extractor=arguments.extractor,
        weights=arguments.weights,
        image_side=arguments.image_side,
        patch_side=arguments.patch_side,
        vocabulary_size=arguments.vocabulary_size,
        keep_images=arguments.keep_images,
        seed=arguments.seed,
        rewrite=RewriteSettings(seed=arguments.seed),
    )
