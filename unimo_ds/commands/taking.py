"""Using a model elsewhere: `unimo export`, `convert`, `generate`."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

from unimo_ds.commands.common import add_json, emit
from unimo_ds.export import SHARD_BYTES
from unimo_ds.serving.options import CHECKPOINT_HELP
from unimo_ds.utils.command_line import add_command
from unimo_ds.utils.errors import UserError


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    purpose = "write a model with its tokenizer and processor into a folder for transformers"
    _add_export(add_command(commands, "export", purpose, _export, _EXPORT_EXAMPLE))
    purpose = "convert the officially released Paddle parameters into a folder for transformers"
    _add_convert(add_command(commands, "convert", purpose, _convert, _CONVERT_EXAMPLE))
    _add_generate(commands)


_EXPORT_EXAMPLE = "unimo export --checkpoint runs/demo --to exported/demo"


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN_OR_DIR", help=CHECKPOINT_HELP)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer file or folder (default: the model's own)")
    parser.add_argument("--extractor", type=Path, help="region extractor or its data folder (default: the model's own)")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="precision of the stored weights (default fp32)",
    )
    parser.add_argument(
        "--max-shard-gb",
        type=float,
        default=SHARD_BYTES / 1e9,
        help="split weights larger than this into several files (default %(default)g)",
    )
    add_json(parser)


def _export(arguments: argparse.Namespace) -> None:
    from unimo_ds.data.vision.extractor_file import EXTRACTOR_FILE
    from unimo_ds.export.folder import export

    if not 0 < arguments.max_shard_gb < math.inf:
        raise UserError(f"--max-shard-gb {arguments.max_shard_gb} must be a number above 0")
    written = export(
        arguments.checkpoint,
        arguments.to,
        tokenizer=arguments.tokenizer,
        extractor=arguments.extractor,
        dtype=arguments.dtype,
        max_shard_bytes=int(arguments.max_shard_gb * 1e9),
    )
    sizes = {str(path): path.stat().st_size for path in written}
    lines = [f"wrote {name} ({size:,} bytes)" for name, size in sizes.items()]
    if not any(path.name == EXTRACTOR_FILE for path in written):
        lines.append(
            "no region extractor was found: this model takes regions, no photographs; --extractor DATA/train adds one"
        )
    emit({"folder": str(arguments.to), "files": sizes}, "\n".join(lines), arguments.json)


_CONVERT_EXAMPLE = "unimo convert --paddle unimo_base_en/params --tokenizer roberta-base --to pretrained/unimo-base"


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--paddle",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with one file for each parameter, as PaddlePaddle saves them",
    )
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder with RoBERTa's tokenizer")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="precision of the stored weights (default fp32)",
    )
    add_json(parser)


def _convert(arguments: argparse.Namespace) -> None:
    from unimo_ds.export.released import convert

    report, written = convert(arguments.paddle, arguments.to, tokenizer=arguments.tokenizer, dtype=arguments.dtype)
    result = {"folder": str(arguments.to), "files": [str(path) for path in written], **dataclasses.asdict(report)}
    emit(result, f"{report.text()}\nwrote {arguments.to}", arguments.json)


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from unimo_ds.serving import generate_command

    purpose = "write texts from photographs, from texts, or from both"
    parser = add_command(commands, "generate", purpose, _generate, generate_command.EXAMPLE)
    generate_command.add(parser)
    add_json(parser)


def _generate(arguments: argparse.Namespace) -> None:
    from unimo_ds.serving import generate_command

    result = generate_command.run(arguments)
    emit(result, generate_command.to_text(result), arguments.json)
