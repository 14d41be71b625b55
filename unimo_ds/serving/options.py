"""Options shared by the commands that serve a model. Heavy modules are imported late, so that `--help` stays quick."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from unimo_ds.utils.errors import UserError

if TYPE_CHECKING:
    from unimo_ds.generation.generate import GenerationSettings
    from unimo_ds.serving.model import ServedModel

CHECKPOINT_HELP = (
    "run (its newest checkpoint is used), RUN/checkpoints/best, another checkpoint, an exported folder, or the folder of a "
    "fine-tuning with one seed (its best checkpoint is used)"
)


def add_model(parser: argparse.ArgumentParser, *, default: str = "") -> None:
    """default: describes the model used without `--checkpoint`; if empty, the option is required."""
    text = f"the model (default: {default})" if default else CHECKPOINT_HELP
    parser.add_argument("--checkpoint", type=Path, required=not default, metavar="RUN_OR_DIR", help=text)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer file or folder (default: the model's own)")
    parser.add_argument("--extractor", type=Path, help="region extractor or its data folder (default: the model's own)")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")


def read_lines(path: Path) -> list[str]:
    """Lines without their newline; other line separators (a form feed, U+2028) are part of a text.

    Raises:
        UserError: unreadable.
    """
    try:
        content = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the texts {path}: {error}") from None
    return content.removesuffix("\n").split("\n") if content else []


def open_model(arguments: argparse.Namespace) -> ServedModel:
    from unimo_ds.serving.model import ServedModel
    from unimo_ds.utils.machine import device_of

    return ServedModel.open(
        arguments.checkpoint,
        tokenizer=arguments.tokenizer,
        extractor=arguments.extractor,
        device=device_of(arguments.device),
    )


def add_generation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "decoding (defaults: the settings the model was fine-tuned with, or else those in brackets)"
    )
    group.add_argument("--beams", type=int, metavar="N", help="number of beams; 1: greedy (5)")
    group.add_argument(
        "--length-penalty",
        type=float,
        metavar="A",
        help="a in log P / ((5 + length) / 6) ** a; larger: longer texts (0.6)",
    )
    group.add_argument("--min-tokens", type=int, metavar="N", help="minimum length in tokens (0)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="maximum length in tokens (50)")
    group.add_argument(
        "--block-words", type=int, metavar="N", help="never repeat N consecutive words; 3: trigram blocking, 0: off (0)"
    )
    group.add_argument("--sample", action="store_true", help="sample tokens, with one beam unless --beams is given")
    group.add_argument("--temperature", type=float, metavar="T", help="sampling temperature (1)")
    group.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest tokens; 0: all (0)")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="sample among the likeliest tokens whose probabilities add up to P (1)"
    )
    group.add_argument("--seed", type=int, metavar="N", help="sampling seed (0)")
    group.add_argument("--texts", type=int, default=1, metavar="N", help="write N texts for each input, best first (1)")


def generation_settings(arguments: argparse.Namespace, model: ServedModel) -> GenerationSettings:
    """Settings from the options; the model's own for options not given.

    Raises:
        UserError: a sampling option without `--sample`.
    """
    from unimo_ds.serving.model import own_settings

    given = {
        "num_beams": 1 if arguments.sample and arguments.beams is None else arguments.beams,
        "length_penalty": arguments.length_penalty,
        "min_tokens": arguments.min_tokens,
        "max_tokens": arguments.max_tokens,
        "no_repeat_words": arguments.block_words,
        "num_texts": arguments.texts,
    }
    for name in ("temperature", "top_k", "top_p", "seed"):
        given[name] = getattr(arguments, name)
        if given[name] is not None and not arguments.sample:
            raise UserError(f"--{name.replace('_', '-')} changes nothing without --sample; give both or neither")
    chosen = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(own_settings(model.source), **chosen, sample=arguments.sample)
