"""`unimo prepare retrieve`: related texts and images for every pair, from the single-modal samples of the same folder.

Texts: sentences of the text samples, by TF-IDF similarity to all captions of the pair. Images: image samples whose detected
classes overlap most with the pair's, ordered by feature similarity (paper section 2.1). Patches of pixels have no classes; for
them, related images found earlier from other regions are kept.

The search is exact (or among the proposals of an index, see `approximate`) and goes block by block: a task holds the pairs of
one shard and one block of the collection, whatever the collection's size, and rewrites its shard. Finished tasks are not
repeated if the stage is killed and restarted.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.retrieval import approximate as approximate_search
from unimo_ds.data.prepare.retrieval import collections_on_disk as collections
from unimo_ds.data.prepare.retrieval.approximate import Group, require_faiss
from unimo_ds.data.prepare.retrieval.collections_on_disk import Block, num_rows
from unimo_ds.data.prepare.retrieval.similarity import Nearest, distinct, tf_idf
from unimo_ds.data.prepare.settings import CollectionName, RetrieveSettings
from unimo_ds.data.prepare.stages import Stage, Transform
from unimo_ds.data.prepare.workers import Workers
from unimo_ds.data.schema import Kind
from unimo_ds.data.storage import shards
from unimo_ds.data.storage.manifest import Manifest
from unimo_ds.data.storage.shards import StoredSample
from unimo_ds.utils.errors import UserError

_CONSIDERED = 5
"""Images chosen by class overlap and ranked by features, as a multiple of the wanted number."""
_SPARE = 3
"""Sentences considered, as a multiple of the wanted number, since many say the same."""
_QUERIES = 64
"""Queries whose candidates' features are in memory at a time."""
_DIGITS = 5

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Search:
    """Arguments shared by all tasks."""

    work: Path
    fingerprint: str
    number: int
    num_classes: int
    blocks: dict[CollectionName, list[Block]]
    approximate: tuple[CollectionName, ...]
    """Collections that are searched with an index."""


def check(settings: RetrieveSettings) -> None:
    """
    Raises:
        UserError: a number below one, or FAISS is needed and missing.
    """
    if settings.number < 1:
        raise UserError(f"--number {settings.number} must be at least 1")
    if settings.approximate:
        require_faiss()


def retrieve_folder(folder: Path, settings: RetrieveSettings, workers: Workers) -> Report:
    """Store related texts and images with every pair, replacing earlier ones.

    Raises:
        UserError: as `check`; not a data folder, or damaged, or without pairs, or without single-modal samples.
    """
    check(settings)
    number, approximate = settings.number, settings.approximate
    stage = Stage(folder, "retrieve", [number, sorted(set(approximate))] if approximate else number)
    totals = stage.listed.totals
    if not totals.get("pair"):
        raise UserError(f"{folder} holds no pairs; import some with `unimo prepare import --kind pairs`")
    if not holds_related(stage.listed):
        nothing = "no images" if not totals.get("image") else "its images have no classes of regions"
        raise UserError(
            f"{folder} holds no texts and {nothing} to retrieve from; import some with --kind texts or images"
        )
    if not stage.begin():
        return Report({"already retrieved": 1})
    num_classes = stage.listed.num_region_classes
    texts = _text_blocks(stage, workers)
    images = _image_blocks(stage, workers) if num_classes > 1 else []
    report = Report({"sentences searched": num_rows(texts), "images searched": num_rows(images)})
    blocks: dict[CollectionName, list[Block]] = {"texts": texts, "images": images}
    search = _Search(stage.journal.path, stage.fingerprint, number, num_classes, blocks, approximate)
    if approximate:
        _index(search, workers)
    report.add(stage.each_shard(_with_related, search, stage.shards("pair"), workers, label="retrieving"))
    stage.finish()
    return report


def holds_related(listed: Manifest) -> bool:
    """Whether a folder holds anything to retrieve for pairs."""
    return bool(listed.totals.get("text") or (listed.totals.get("image") and listed.num_region_classes > 1))


def _text_blocks(stage: Stage, workers: Workers) -> list[Block]:
    """The text samples' sentences, vectorised; done once per journal."""
    names = stage.shards("text")
    sizes = stage.journal.read("sentences.json")
    if sizes is None and names:
        numbers = list(range(len(names)))
        work = stage.journal.path
        collecting = [(stage.folder / name, work, number) for number, name in enumerate(names)]
        workers.run_all(collections.collect_sentences, collecting, label="reading texts")
        num_sentences = collections.keep_first(work, numbers)
        frequencies: Counter[str] = Counter()
        counting = [(work, number) for number in numbers]
        for _, counted in workers.run(collections.count_words, counting, label="counting words", unit="shards"):
            frequencies.update(counted)
        collections.write_vocabulary(work, frequencies, num_sentences)
        vectorising = [(work, number, stage.fingerprint) for number in numbers]
        sizes = workers.run_all(collections.vectorise, vectorising, label="weighing words")
        stage.journal.write("sentences.json", sizes)
    return _blocks(names, sizes or [])


def _image_blocks(stage: Stage, workers: Workers) -> list[Block]:
    names = stage.shards("image")
    sizes = stage.journal.read("images.json")
    if sizes is None:
        num_classes = stage.listed.num_region_classes
        tasks = [(stage.folder / name, stage.journal.path, number, num_classes) for number, name in enumerate(names)]
        sizes = workers.run_all(collections.summarise_images, tasks, label="reading images")
        stage.journal.write("images.json", sizes)
    return _blocks(names, sizes)


def _blocks(names: Sequence[str], sizes: Sequence[int]) -> list[Block]:
    firsts = itertools.accumulate(sizes, initial=0)
    return [Block(i, *one) for i, one in enumerate(zip(names, firsts, sizes, strict=False))]


def _index(search: _Search, workers: Workers) -> None:
    """Build the missing indices of texts and images."""
    tasks = [
        (group, functools.partial(collections.vectors, search.work, kind), file)
        for kind in search.blocks
        if kind in search.approximate
        for file, group in _indices(search, kind)
        if not file.exists()
    ]
    workers.run_all(approximate_search.build, tasks, label="indexing", unit="indices")


def _indices(search: _Search, kind: CollectionName) -> list[tuple[Path, Group]]:
    """File and blocks of each index of a collection."""
    groups = approximate_search.groups_of(search.blocks[kind])
    return [(search.work / f"{kind}-{number:06d}.faiss", group) for number, group in enumerate(groups)]


def _with_related(search: _Search, path: Path, report: Report) -> Transform:
    captions: list[str] = []
    summaries: list[tuple[Floats, Floats]] = []
    numbers: dict[int, int] = {}
    has_classes = search.num_classes > 1
    for position, stored in enumerate(shards.read_shard(path, pixels=has_classes)):
        if stored.sample.kind is Kind.PAIR and stored.sample.regions is not None:
            numbers[position] = len(captions)
            captions.append(" ".join(caption.text for caption in stored.sample.captions))
            if has_classes:
                summaries.append(collections.summarise(stored.sample.regions, num_classes=search.num_classes))
    texts = related_texts(search, captions)
    images = related_images(search, [one for one, _ in summaries], [other for _, other in summaries])

    def transform(position: int, stored: StoredSample) -> StoredSample:
        if position not in numbers:
            return stored
        number = numbers[position]
        mine = texts[number], images[number] if has_classes else stored.sample.related_images
        report.count("pairs")
        report.count("related texts", len(mine[0]))
        report.count("related images", len(mine[1]))
        sample = replace(stored.sample, related_texts=tuple(mine[0]), related_images=tuple(mine[1]))
        return replace(stored, sample=sample)

    return transform


def related_texts(search: _Search, captions: Sequence[str]) -> list[list[str]]:
    """For each query the nearest sentences, without ones that repeat a nearer one (see `distinct`)."""
    if not search.blocks["texts"]:
        return [[] for _ in captions]
    queries = tf_idf(captions, collections.read_vocabulary(search.work, search.fingerprint))
    nearest = _nearest(search, "texts", queries, _SPARE * search.number)
    wanted = np.unique(np.concatenate(nearest.rows)) if captions else np.zeros(0, np.int64)
    strings: dict[int, str] = {}
    for block in search.blocks["texts"]:
        inside = wanted[(wanted >= block.first) & (wanted < block.first + block.size)]
        if len(inside):
            sentences = collections.sentences(search.work, block.number)
            strings.update((int(row), sentences[int(row) - block.first]) for row in inside)
    found = [[strings[int(row)] for row in rows] for rows in nearest.rows]
    return [list(distinct(texts, most=search.number)) for texts in found]


def related_images(
    search: _Search, classes: Sequence[Floats], features: Sequence[Floats]
) -> list[list[tuple[str, int]]]:
    """For each query up to `number` images: those whose classes overlap most, ordered by feature similarity."""
    images = search.blocks["images"]
    if not images:
        return [[] for _ in classes]
    queries = collections.class_rows(list(classes), search.num_classes)
    nearest = _nearest(search, "images", queries, _CONSIDERED * search.number)
    firsts = np.array([block.first for block in images])
    places = [collections.positions(search.work, block.number) for block in images]
    found: list[list[tuple[str, int]]] = []
    for start in range(0, len(classes), _QUERIES):
        group = nearest.rows[start : start + _QUERIES]
        wanted = np.unique(np.concatenate(group))
        if not len(wanted):
            found += [[] for _ in group]
            continue
        blocks = np.searchsorted(firsts, wanted, side="right") - 1
        held = np.concatenate(
            [_features(search, images[block], wanted[blocks == block]) for block in np.unique(blocks)]
        )
        for i, rows in enumerate(group):
            likeness = np.round(held[np.searchsorted(wanted, rows)] @ features[start + i], _DIGITS)
            best = rows[np.lexsort((rows, -likeness))][: search.number]
            at = np.searchsorted(firsts, best, side="right") - 1
            found.append(
                [
                    (images[block].shard, int(places[block][row - firsts[block]]))
                    for block, row in zip(at.tolist(), best.tolist(), strict=True)
                ]
            )
    return found


def _features(search: _Search, block: Block, rows: NDArray[np.int64]) -> Floats:
    stored = collections.features(search.work, block.number, search.fingerprint)
    return np.asarray(stored[rows - block.first], np.float32)


def _nearest(search: _Search, kind: CollectionName, queries: csr_matrix, number: int) -> Nearest:
    nearest = Nearest(queries, number=number)
    vectors = functools.partial(collections.vectors, search.work, kind)
    if kind in search.approximate and queries.shape[0]:
        for file, group in _indices(search, kind):
            approximate_search.search(nearest, group, vectors, file)
        return nearest
    for block in search.blocks[kind]:
        if block.size:
            nearest.search(vectors(block.number), first=block.first)
    return nearest
