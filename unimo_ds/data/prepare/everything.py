"""`unimo prepare all`: all stages in order, from raw files to a verified data folder; finished ones are skipped."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.prepare import formats, importing, phrases, stages, verify
from unimo_ds.data.prepare.corpus_plan import Plan
from unimo_ds.data.prepare.journal import Journal, sweep
from unimo_ds.data.prepare.readers.files import read_lines
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.retrieval import retrieve_stage
from unimo_ds.data.prepare.rewriting import rewrite_stage
from unimo_ds.data.prepare.rewriting.scene_graph import parsers
from unimo_ds.data.prepare.settings import (
    NEWER,
    SHARED,
    ImportSettings,
    PhraseSettings,
    RewriteSettings,
    files_in,
    fingerprint,
    identity_of,
)
from unimo_ds.data.prepare.workers import Workers
from unimo_ds.data.storage import manifest, shards
from unimo_ds.data.tokenizer import TOKENIZER_FILE, Tokenizer
from unimo_ds.utils.errors import UserError


def prepare_all(plan: Plan, workers: Workers) -> dict[str, Report]:
    """Import everything, rewrite, retrieve if there is something to retrieve, verify. Returns stage -> report.

    If killed and restarted, it continues; if finished, it says so and does nothing.

    Raises:
        UserError: bad input, a folder made from another plan, or one that fails verification.
    """
    output = plan.output
    options = _options(plan)
    if (output / manifest.MANIFEST_FILE).exists():
        if stages.is_done(output, "all", options):
            Journal(output, "all").forget()
            return {
                "all": Report({f"{output} is finished already; shards": len(manifest.load_manifest(output).shards)})
            }
        if Journal(output, "all").begun != options:
            raise UserError(f"{output} is a data folder already; name a new one, or run the stages one by one")
    for one in plan.imports:
        formats.check(one)
    plan.check()
    if plan.phrases is not None:
        parsers.check(plan.phrases.parser, plan.phrases.parser_path)
    if plan.rewrite is not None:
        rewrite_stage.check(plan.rewrite)
    if plan.retrieve is not None:
        retrieve_stage.check(plan.retrieve)
    journal = Journal(output, "all")
    journal.begin(options)
    try:
        reports = _stages(plan, journal, workers)
    except UserError:
        if not shards.shard_files(output):  # otherwise keep it to continue
            journal.forget()
        raise
    stages.mark_done(output, "all", options)
    journal.forget()
    return reports


def _stages(plan: Plan, journal: Journal, workers: Workers) -> dict[str, Report]:
    """Run all stages of the plan, then verify."""
    output = plan.output
    reports: dict[str, Report] = {}
    tokenizer = plan.tokenizer or _trained(plan, journal)
    for one in plan.imports:
        shared = {name: getattr(plan, name) for name in SHARED if name != "vocabulary_size"}
        settings = dataclasses.replace(one, **{**shared, "tokenizer": tokenizer})
        reports[f"import {settings.source}"] = importing.run_import(settings, workers)
    listed = manifest.load_manifest(output)
    totals = listed.totals
    if plan.phrases is not None and (totals.get("pair") or totals.get("text")):
        reports["phrases"] = _phrases(output, plan.phrases, workers)
    if plan.rewrite is not None and totals.get("pair"):
        reports["rewrite"] = _rewrite(output, plan.rewrite, workers)
    if plan.retrieve is not None and totals.get("pair") and retrieve_stage.holds_related(listed):
        reports["retrieve"] = retrieve_stage.retrieve_folder(output, plan.retrieve, workers)
    sweep(output)
    problems = verify.verify(output, workers=workers)
    if problems:
        raise UserError(f"{output} did not verify: {problems[0]}")
    return reports


def _options(plan: Plan) -> str:
    """Fingerprint of the whole plan, its inputs included."""
    imports = [[one.source, fingerprint(one)] for one in plan.imports]
    phrasing = None if plan.phrases is None else [plan.phrases.parser, files_in(plan.phrases.parser_path)]
    rewrite = None if plan.rewrite is None else identity_of(plan.rewrite)
    retrieve = None if plan.retrieve is None else vars(plan.retrieve)
    other = ("imports", "output", "phrases", "rewrite", "retrieve")
    rest = {
        name: value
        for name, value in vars(plan).items()
        if name not in other and (value is not None or name not in NEWER)
    }
    return stages.identity([imports, rest, phrasing, rewrite, retrieve])


def _phrases(output: Path, settings: PhraseSettings, workers: Workers) -> Report:
    # Later stages keep the phrases and leave their own marks.
    if stages.was_done(output, "rewrite") or stages.was_done(output, "retrieve"):
        return Report({"phrases are stored already": 1})
    return phrases.phrase_folder(output, settings, workers)


def _rewrite(output: Path, settings: RewriteSettings, workers: Workers) -> Report:
    # Retrieval invalidates the mark of rewriting but keeps the rewrites.
    if stages.was_done(output, "retrieve"):
        return Report({"already rewritten": 1})
    return rewrite_stage.rewrite_folder(output, settings, workers)


def _trained(plan: Plan, journal: Journal) -> Path:
    """A tokenizer trained on the captions and texts of all imports; kept in the journal."""
    path = journal.path / TOKENIZER_FILE
    if not path.exists():
        aside = journal.path / "new"
        tokenizers.train(_texts(plan.imports), vocabulary_size=plan.vocabulary_size, output=aside)
        # Imports know their tokenizer by the size and time of its file, and write down what they know.
        os.utime(aside / TOKENIZER_FILE, ns=(0, 0))
        os.replace(aside / TOKENIZER_FILE, path)
    return path


def _texts(imports: Sequence[ImportSettings]) -> Iterator[str]:
    for one in imports:
        reader = formats.reader(one)
        for part in reader.parts(Report()):
            yield from reader.texts(part)


def train_tokenizer(files: Sequence[Path], *, vocabulary_size: int, output: Path) -> tuple[Tokenizer, Report]:
    """Train a tokenizer on text files and captions (of a .tsv, all columns but the first), and save it in `output`.

    Raises:
        UserError: no such file, one that cannot be read, or too small a vocabulary.
    """
    for path in files:
        if not path.is_file():
            raise UserError(f"there is no file {path}")
    report = Report()
    lines = (
        line.partition("\t")[2] if path.suffix == ".tsv" else line
        for path in files
        for _, line in read_lines(path, report)
    )
    return tokenizers.train(lines, vocabulary_size=vocabulary_size, output=output), report
