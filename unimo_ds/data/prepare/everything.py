"""`unimo prepare all`: the stages in their order, from raw files to a verified data folder."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from unimo_ds.data import manifest, verify
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.prepare import importing, retrieval, rewriting
from unimo_ds.data.prepare.importing import ImportSettings
from unimo_ds.data.prepare.sources import Report, read_lines
from unimo_ds.data.tokenizer import Tokenizer
from unimo_ds.utils.errors import UserError


def prepare_all(
    output: Path,
    *,
    images: Path,
    captions: Path,
    texts: Sequence[Path] = (),
    image_only: Sequence[Path] = (),
    tokenizer: Path | None = None,
    extractor: Path | None = None,
    vocabulary_size: int = importing.DEFAULT_VOCABULARY,
    keep_images: bool = False,
    seed: int = 0,
) -> dict[str, Report]:
    """Import pairs, texts and images, rewrite, retrieve where there is something to retrieve, verify. Stage -> report.

    Raises:
        UserError: bad input, a folder that is already finished, or one that does not verify.
    """
    if (output / manifest.MANIFEST_FILE).exists():
        raise UserError(f"{output} is a data folder already; name a new one, or run the stages one by one")
    imports = [ImportSettings("pairs", output, images=images, captions=captions)]
    imports += [ImportSettings("texts", output, input=(path,)) for path in texts]
    imports += [ImportSettings("images", output, images=path) for path in image_only]
    for settings in imports:
        importing.check(settings)
    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if tokenizer is None:
            train_tokenizer([captions, *texts], vocabulary_size=vocabulary_size, output=Path(scratch))
        for number, settings in enumerate(imports):
            # The number keeps files of one name in different folders apart.
            name = f"{settings.kind}{number}_{importing.source_name(settings)}"
            settings = dataclasses.replace(
                settings,
                source=name,
                tokenizer=tokenizer or Path(scratch),
                extractor=extractor,
                keep_images=keep_images,
                seed=seed,
            )
            reports[f"import {name}"] = importing.run_import(settings)
    reports["rewrite"] = rewriting.rewrite_folder(output, seed=seed)
    if texts or image_only:
        reports["retrieve"] = retrieval.retrieve_folder(output)
    problems = verify.verify(output)
    if problems:
        raise UserError(f"{output} did not verify: {problems[0]}")
    return reports


def train_tokenizer(files: Sequence[Path], *, vocabulary_size: int, output: Path) -> tuple[Tokenizer, Report]:
    """A tokenizer of text files and captions (of a .tsv, all columns but the first), saved in `output`.

    Raises:
        UserError: a file that is not there or cannot be read, or too small a vocabulary.
    """
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} does not exist")
    report = Report()
    lines = (
        line.partition("\t")[2] if path.suffix == ".tsv" else line
        for path in files
        for _, line in read_lines(path, report)
    )
    return tokenizers.train(lines, vocabulary_size=vocabulary_size, output=output), report
