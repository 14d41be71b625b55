"""`unimo prepare rewrite`: positive and negative rewrites of every caption, stored with the pair (paper section 2.1).

Positives are the other captions of the image and, where a translator is named, the caption translated there and back. Negatives,
by level:
- sentence: captions of other images, the most similar by TF-IDF (`similar_sentences`);
- phrase: several words of the caption's scene graph replaced at once: an object with its attributes, a verb with its preposition;
- word: one node replaced: an object, an attribute, a number, a verb, a preposition.
What may replace what is in `replacements`, what is chosen in `balancing`. No rewrite is trusted to be true or false beyond that;
each says in `from` how it was made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimo_ds.data import folder as folders
from unimo_ds.data import manifest
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.prepare import learned_file, replacements, rewrite_tasks, stage_marks
from unimo_ds.data.prepare.caption_rewrites import NEGATIVE_LEVELS
from unimo_ds.data.prepare.importing import progress
from unimo_ds.data.prepare.journal import Journal, read_json_object, report_of, sweep
from unimo_ds.data.prepare.rewrite_tasks import LEARNED, USUAL, Rewriting
from unimo_ds.data.prepare.scene_graph import parsers
from unimo_ds.data.prepare.scene_graph.graph import SceneGraph
from unimo_ds.data.prepare.settings import RewriteSettings, identity_of
from unimo_ds.data.prepare.sources import Report
from unimo_ds.data.prepare.translation import opening, wording
from unimo_ds.data.prepare.workers import Workers
from unimo_ds.utils.errors import UserError

POOL_CAPTIONS = 40_000
"""Captions that are balanced together, and among which similar ones are searched (whole shards): time and memory stay linear in
the corpus."""
_TEACHING_PAIRS = 200_000
"""Pairs that teach, at most (every n-th shard): more of them take more time and memory and teach little that is new."""
_ALREADY = "already rewritten"


def rewrite_folder(folder: Path, settings: RewriteSettings | None = None, workers: Workers | None = None) -> Report:
    """Give every caption of every pair its rewrites; earlier ones are replaced.

    Raises:
        UserError: not a data folder, a damaged one, or a parser or translator that cannot be used.
    """
    settings, workers = settings or RewriteSettings(), workers or Workers()
    listed = manifest.load_manifest(folder)
    check(settings)
    if settings.translator == "apertium":
        # All tasks use what is installed now.
        settings = dataclasses.replace(settings, pivots=opening.languages(settings))
    teacher = settings.learn_from or folder
    taught_by = manifest.load_manifest(teacher)
    options = [identity_of(settings), taught_by.fingerprint if settings.learn_from else None]
    if stage_marks.is_done(folder, "rewrite", options):
        Journal(folder, "rewrite").forget()
        return Report({_ALREADY: 1})
    journal = Journal(folder, "rewrite")
    fingerprint = stage_marks.identity([options, listed.fingerprint])
    journal.begin(fingerprint)
    sweep(folder)
    work = Rewriting(folder, journal.path, fingerprint, settings, folder / listed.tokenizer.file)
    names = _pair_shards(listed)
    _parse(work, folder, names, "graphs", workers)
    _learn(work, teacher, taught_by, workers)
    _back_translate(work, names, workers)
    _find_negatives(work, listed, workers)
    waiting = [name for name in names if not work.is_done("done", name)]
    _run(workers, rewrite_tasks.store_rewrites, [(work, name) for name in waiting], "storing rewrites")
    report = Report()
    for name in names:
        report.add(report_of(read_json_object(work.entry("done", name))))
    tokenizer = tokenizers.load(work.tokenizer)
    folders.finish_folder(folder, tokenizer=tokenizer, tokenizer_file=listed.tokenizer.file)
    stage_marks.mark_done(folder, "rewrite", options)
    journal.forget()
    return report


def check(settings: RewriteSettings) -> None:
    """
    Raises:
        UserError: numbers out of range, a parser or translator without what it needs.
    """
    for name in ("positives", "negatives", "back_translations"):
        if getattr(settings, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)} must not be negative")
    for name in ("translation_batch", "beams"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)} must be at least 1")
    parsers.check(settings.parser, settings.parser_path)
    opening.check(settings)


def _parse(work: Rewriting, folder: Path, names: Sequence[str], kind: str, workers: Workers) -> None:
    waiting = [name for name in names if not work.is_done(kind, name)]
    tasks = [(work, folder, name, work.entry(kind, name)) for name in waiting]
    _run(workers, rewrite_tasks.parse_shard, tasks, "parsing")


def _learn(work: Rewriting, teacher: Path, taught_by: manifest.Manifest, workers: Workers) -> None:
    """What may replace what, and which words stand side by side, from the captions of a folder."""
    path = work.work / LEARNED
    if path.exists():
        return
    names = _pair_shards(taught_by)
    stride = -(-sum(entry.kinds.get("pair", 0) for entry in taught_by.shards) // _TEACHING_PAIRS)
    names = names[:: max(stride, 1)]
    kind = "graphs" if teacher == work.folder else "teacher"
    _parse(work, teacher, names, kind, workers)

    def read() -> Iterator[list[SceneGraph]]:
        for name in progress(names, label="learning"):
            yield from rewrite_tasks.read_graphs(work.entry(kind, name))

    if work.settings.translator == "apertium":
        usual = wording.learn(graph.text for graphs in read() for graph in graphs).hashes
    else:
        usual = np.zeros(0, np.uint64)
    np.save(work.work / USUAL, usual)
    learned_file.save(replacements.learn(read()), path)


def _back_translate(work: Rewriting, names: Sequence[str], workers: Workers) -> None:
    if work.settings.translator is not None:
        waiting = [(work, name) for name in names if not work.is_done("back", name)]
        _run(workers, rewrite_tasks.translate_shard, waiting, "translating")


def _find_negatives(work: Rewriting, listed: manifest.Manifest, workers: Workers) -> None:
    tasks = [
        (work, pool, level)
        for pool in _pools(work, listed)
        for level in reversed(NEGATIVE_LEVELS)
        if not all(work.is_done(level.name.lower(), name) for name in pool)
    ]
    _run(workers, rewrite_tasks.find_negatives, tasks, "looking for negatives", unit="pools")


def _run(
    workers: Workers, function: Callable[..., None], tasks: Sequence[tuple[Any, ...]], label: str, unit: str = "shards"
) -> None:
    for _ in workers.run(function, tasks, label=label, unit=unit):
        pass


def _pair_shards(listed: manifest.Manifest) -> list[str]:
    return [entry.file for entry in listed.shards if entry.kinds.get("pair")]


def _pools(work: Rewriting, listed: manifest.Manifest) -> Iterator[tuple[str, ...]]:
    """Runs of shards with about `POOL_CAPTIONS` captions."""
    pool: list[str] = []
    size = 0
    for name in _pair_shards(listed):
        pool.append(name)
        size += sum(map(len, read_json_object(work.entry("graphs", name))))
        if size >= POOL_CAPTIONS:
            yield tuple(pool)
            pool, size = [], 0
    if pool:
        yield tuple(pool)
