"""`unimo convert`: the officially released parameters as a folder for this project and transformers."""

from __future__ import annotations

from pathlib import Path

import torch

from unimo_ds.config import DataConfig, RunConfig
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.evaluation.checkpoint import CheckpointFiles
from unimo_ds.export.card import write_card
from unimo_ds.export.folder import write
from unimo_ds.export.source import Source
from unimo_ds.models import paddle
from unimo_ds.models.paddle import Report
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.new_folder import refuse_occupied


def convert(folder: Path, to: Path, *, tokenizer: Path, dtype: str = "fp32") -> tuple[Report, list[Path]]:
    """Write the parameters in `folder`, one file each, into the new folder `to`. Returns what matched, and the files written.

    tokenizer: RoBERTa's (the release has none in a form that libraries read). Region heads and temperature are not released:
    they are newly initialised, and the report lists the missing names.

    Raises:
        UserError: `to` is not empty, a damaged or missing file, or a tokenizer of another size.
    """
    refuse_occupied(to, option="--to")
    sizes = paddle.read_sizes(folder)
    model = Unimo(sizes).eval()
    report = paddle.load_paddle(model, folder)
    found = tokenizers.load(tokenizer)
    if found.vocabulary_size != sizes.vocabulary_size:
        raise UserError(
            f"the tokenizer has {found.vocabulary_size} pieces and the release {sizes.vocabulary_size}; give RoBERTa's own"
        )
    data = DataConfig(max_text_tokens=sizes.max_positions - 2, max_regions=100)
    config = RunConfig(recipe="released", model=sizes, data=data)
    source = Source(
        model,
        torch.device("cpu"),
        config,
        CheckpointFiles(folder / "word_embedding", folder / "config.json"),
        tokenizer=found,
        extractor=None,
    )
    written = write(source, to, dtype=dtype, card=lambda family: _card(source, family, report))
    return report, written


def _card(source: Source, family: str, report: Report) -> str:
    return (
        write_card(source, family).rstrip()
        + "\n\n## Origin\n\nThe officially released parameters, converted. Licence and terms are the release's.\n\n```\n"
        + report.text()
        + "\n```\n"
    )
