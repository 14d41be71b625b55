"""Options of `unimo prepare all`: a file that describes the corpus, or the inputs of a simple one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unimo_ds.data.prepare.corpus_plan import Plan, named, read_plan
from unimo_ds.data.prepare.settings import ImportSettings, RewriteSettings, Shared
from unimo_ds.utils import options
from unimo_ds.utils.errors import UserError

EXAMPLE = """unimo prepare all --config corpus.toml --workers 8
  unimo prepare all --images photos.tar --captions captions.tsv --texts wiki.txt --output data/train
The file is described in docs/preparation.md"""
_INPUTS: dict[str, Any] = {"images": None, "captions": None, "texts": [], "image_only": [], "output": None}
"""Options of a simple corpus besides those of `Shared`, with their defaults."""


def add(stage: argparse.ArgumentParser) -> None:
    replaced = "TOML file that describes a whole corpus; replaces all options but --workers, --executor and --json"
    stage.add_argument("--config", type=Path, help=replaced)
    stage.add_argument("--images", type=Path, help="folder or tar of the images that have captions")
    stage.add_argument("--captions", type=Path, help="captions, lines of file<TAB>caption")
    stage.add_argument("--texts", type=Path, nargs="+", default=[], help="text files, one text a line")
    lone = "folders or tars of images without captions"
    stage.add_argument("--image-only", type=Path, nargs="+", default=[], help=lone)
    stage.add_argument("--output", type=Path, help="data folder to create, or to continue")
    options.add(stage, Shared)


def plan(arguments: argparse.Namespace) -> Plan:
    """
    Raises:
        UserError: an invalid file, or neither a file nor the inputs of a simple corpus.
    """
    if arguments.config is not None:
        defaults = {**_INPUTS, **vars(Shared())}
        if given := [name for name, default in defaults.items() if getattr(arguments, name) != default]:
            raise UserError(f"--config says everything; leave --{given[0].replace('_', '-')} out, or write it there")
        return read_plan(arguments.config)
    if None in (arguments.images, arguments.captions, arguments.output):
        raise UserError("unimo prepare all needs --config FILE, or --images, --captions and --output")
    output = arguments.output
    imports = [ImportSettings("pairs", output, images=(arguments.images,), captions=(arguments.captions,))]
    imports += [ImportSettings("texts", output, input=(path,)) for path in arguments.texts]
    imports += [ImportSettings("images", output, images=(path,)) for path in arguments.image_only]
    rewrite = RewriteSettings(seed=arguments.seed)
    return Plan(output, named(imports), rewrite=rewrite, **options.values(Shared, arguments))
