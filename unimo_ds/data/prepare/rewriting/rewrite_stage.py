"""`unimo prepare rewrite`: positive and negative rewrites of every caption, stored with the pair (paper section 2.1).

Positives are other captions of the image and, if a translator is given, back-translations of the caption. Negatives by level:
- sentence: similar captions of other images, by TF-IDF (`similar_sentences`);
- phrase: several words of the caption's scene graph replaced at once (object with attributes, verb with preposition);
- word: one node replaced (object, attribute, number, verb or preposition).
`replacements` finds candidates, `balancing` chooses among them. Nothing further ensures that a rewrite is true or false; its
`from` says how it was made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from unimo_ds.data.prepare.journal import read_json_object
from unimo_ds.data.prepare.progress import progress
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.rewriting import learned_file, replacements, rewrite_tasks
from unimo_ds.data.prepare.rewriting.caption_rewrites import NEGATIVE_LEVELS
from unimo_ds.data.prepare.rewriting.rewrite_tasks import LEARNED, USUAL, Rewriting
from unimo_ds.data.prepare.rewriting.scene_graph import parsers
from unimo_ds.data.prepare.rewriting.scene_graph.graph import SceneGraph
from unimo_ds.data.prepare.rewriting.translation import opening, wording
from unimo_ds.data.prepare.settings import RewriteSettings, identity_of
from unimo_ds.data.prepare.stages import Stage
from unimo_ds.data.prepare.workers import Workers
from unimo_ds.data.storage import manifest
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.whole_file import write_made

POOL_CAPTIONS = 40_000
"""Captions balanced together, and searched for similar ones (in whole shards): keeps time and memory linear in the corpus."""
_TEACHING_PAIRS = 200_000
"""Limit on pairs to learn from (every n-th shard): more would cost time and memory and add little."""
_MOST = 10_000
"""Limit on rewrites per caption, beams, and sentences at a time."""


def rewrite_folder(folder: Path, settings: RewriteSettings, workers: Workers) -> Report:
    """Store rewrites for every caption of every pair, replacing earlier ones.

    Raises:
        UserError: not a data folder, or damaged; or an unusable parser or translator.
    """
    check(settings)
    if settings.translator == "apertium":
        # All tasks use the languages installed now.
        settings = dataclasses.replace(settings, pivots=opening.languages(settings))
    taught_by = manifest.load_manifest(settings.learn_from) if settings.learn_from else None
    stage = Stage(folder, "rewrite", [identity_of(settings), taught_by.fingerprint if taught_by else None])
    if not stage.begin():
        return Report({"already rewritten": 1})
    work = Rewriting(folder, stage.journal.path, stage.fingerprint, settings)
    names = stage.shards("pair")
    _parse(work, folder, names, "graphs", workers)
    _learn(work, settings.learn_from or folder, taught_by or stage.listed, workers)
    if settings.translator is not None:
        waiting = [(work, name) for name in names if not work.is_done("back", name)]
        workers.run_all(rewrite_tasks.translate_shard, waiting, label="translating")
    _find_negatives(work, names, workers)
    report = stage.each_shard(rewrite_tasks.with_rewrites, work, names, workers, label="storing rewrites")
    stage.finish()
    return report


def check(settings: RewriteSettings) -> None:
    """
    Raises:
        UserError: numbers out of range, an unusable parser or translator, or no data folder to learn from.
    """
    least = {"positives": 0, "negatives": 0, "back_translations": 0, "translation_batch": 1, "beams": 1}
    for name, smallest in least.items():
        if not smallest <= getattr(settings, name) <= _MOST:
            option = f"--{name.replace('_', '-')} {getattr(settings, name)}"
            raise UserError(f"{option} must be from {smallest} to {_MOST}")
    parsers.check(settings.parser, settings.parser_path)
    opening.check(settings)
    if settings.translator == "apertium":
        opening.languages(settings)
    if settings.learn_from is not None:
        manifest.load_manifest(settings.learn_from)


def _parse(work: Rewriting, folder: Path, names: Sequence[str], kind: str, workers: Workers) -> None:
    waiting = [name for name in names if not work.is_done(kind, name)]
    tasks = [(work, folder, name, work.entry(kind, name)) for name in waiting]
    workers.run_all(rewrite_tasks.parse_shard, tasks, label="parsing")


def _learn(work: Rewriting, teacher: Path, taught_by: manifest.Manifest, workers: Workers) -> None:
    """Learn replacements and usual word pairs from the captions of a folder."""
    path = work.work / LEARNED
    if path.exists():
        return
    stride = -(-taught_by.totals.get("pair", 0) // _TEACHING_PAIRS)
    names = [entry.file for entry in taught_by.shards if entry.kinds.get("pair")][:: max(stride, 1)]
    kind = "graphs" if teacher == work.folder else "teacher"
    _parse(work, teacher, names, kind, workers)

    def read() -> Iterator[list[SceneGraph]]:
        for name in progress(names, label="learning"):
            yield from rewrite_tasks.read_graphs(work.entry(kind, name))

    if work.settings.translator == "apertium":
        usual = wording.learn(graph.text for graphs in read() for graph in graphs).hashes
    else:
        usual = np.zeros(0, np.uint64)
    write_made(work.work / USUAL, lambda stream: np.save(stream, usual))
    learned_file.save(replacements.learn(read()), path)


def _find_negatives(work: Rewriting, names: Sequence[str], workers: Workers) -> None:
    tasks = [
        (work, pool, level)
        for pool in _pools(work, names)
        for level in reversed(NEGATIVE_LEVELS)
        if not all(work.is_done(level.name.lower(), name) for name in pool)
    ]
    workers.run_all(rewrite_tasks.find_negatives, tasks, label="looking for negatives", unit="pools")


def _pools(work: Rewriting, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Groups of consecutive shards with about `POOL_CAPTIONS` captions."""
    pool: list[str] = []
    size = 0
    for name in names:
        pool.append(name)
        size += sum(map(len, read_json_object(work.entry("graphs", name))))
        if size >= POOL_CAPTIONS:
            yield tuple(pool)
            pool, size = [], 0
    if pool:
        yield tuple(pool)
