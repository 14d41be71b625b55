"""Tasks of `unimo prepare rewrite`. Each writes its entries into the journal's folder, or the shard itself, atomically.

graphs-SHARD.json       scene graphs of the captions, one list per image      back-SHARD.json    back-translated positives
LEVEL-SHARD.json        candidate negatives of a level
learned.npz, usual.npy  learned from the captions
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unimo_ds.data.prepare.journal import read_json_object, write_json
from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.rewriting import (
    balancing,
    caption_rewrites,
    learned_file,
    replacements,
    similar_sentences,
    word_classes,
)
from unimo_ds.data.prepare.rewriting.caption_rewrites import NEGATIVE_LEVELS, substitute
from unimo_ds.data.prepare.rewriting.scene_graph import parsers
from unimo_ds.data.prepare.rewriting.scene_graph.graph import SceneGraph, from_json
from unimo_ds.data.prepare.rewriting.translation import opening, wording
from unimo_ds.data.prepare.rewriting.translation.positives import back_translate
from unimo_ds.data.prepare.settings import RewriteSettings
from unimo_ds.data.prepare.stages import Transform
from unimo_ds.data.schema import Kind, Level, Rewrite
from unimo_ds.data.storage import shards
from unimo_ds.data.storage.shards import StoredSample
from unimo_ds.utils import seed as seeds

LEARNED, USUAL = "learned.npz", "usual.npy"


@dataclass(frozen=True)
class Rewriting:
    """Arguments shared by all tasks."""

    folder: Path
    work: Path
    fingerprint: str
    settings: RewriteSettings

    def entry(self, kind: str, name: str) -> Path:
        return self.work / f"{kind}-{name}.json"

    def is_done(self, kind: str, name: str) -> bool:
        return self.entry(kind, name).exists()


def parse_shard(rewriting: Rewriting, folder: Path, name: str, entry: Path) -> None:
    """Parse the captions of all pairs in a shard."""
    captions = list(captions_of(folder / name))
    parse = parsers.load(rewriting.settings.parser, rewriting.settings.parser_path)
    graphs = iter(parse([caption for of_image in captions for caption in of_image]))
    write_json(entry, [[astuple(next(graphs)) for _ in of_image] for of_image in captions])


def read_graphs(entry: Path) -> list[list[SceneGraph]]:
    """Read the output of `parse_shard`: for each image, the graphs of its captions."""
    return [[from_json(one) for one in of_image] for of_image in read_json_object(entry)]


def translate_shard(rewriting: Rewriting, name: str) -> None:
    """Find positives by back-translation."""
    captions = list(captions_of(rewriting.folder / name))
    flat = [caption for of_image in captions for caption in of_image]
    taken = [frozenset(word_classes.normal(other) for other in of_image) for of_image in captions for _ in of_image]
    found, counts = back_translate(
        flat,
        taken=taken,
        pivots=opening.pivots(rewriting.settings),
        number=rewriting.settings.back_translations,
        usual=wording.UsualPairs(np.load(rewriting.work / USUAL, allow_pickle=False)),
    )
    of_captions = iter(found)
    write_json(
        rewriting.entry("back", name),
        {
            "counts": dict(sorted(counts.items())),
            "positives": [[_records(next(of_captions)) for _ in of_image] for of_image in captions],
        },
    )


def find_negatives(rewriting: Rewriting, names: Sequence[str], level: Level) -> None:
    """Find candidate negatives of a level for a pool of shards, whose captions are balanced together."""
    graphs = [read_graphs(rewriting.entry("graphs", name)) for name in names]
    images = [of_image for of_shard in graphs for of_image in of_shard]
    finder = _similar if level is Level.SENTENCE else _replaced
    found = iter(finder(rewriting, images, level, seeds.generator(rewriting.settings.seed, level, *_parts(names[0]))))
    for name, of_shard in zip(names, graphs, strict=True):
        content = [[_records(next(found)) for _ in of_image] for of_image in of_shard]
        write_json(rewriting.entry(level.name.lower(), name), content)


def _similar(
    rewriting: Rewriting, images: Sequence[Sequence[SceneGraph]], level: Level, randomness: np.random.Generator
) -> Iterator[list[Rewrite]]:
    texts = [[graph.text for graph in graphs] for graphs in images]
    chosen = similar_sentences.choose(texts, number=rewriting.settings.negatives, randomness=randomness)
    for of_image in chosen:
        for similar in of_image:
            yield [Rewrite(text, level, "tf-idf") for text in similar]


def _replaced(
    rewriting: Rewriting, images: Sequence[Sequence[SceneGraph]], level: Level, randomness: np.random.Generator
) -> Iterator[list[Rewrite]]:
    learned = learned_file.load(rewriting.work / LEARNED, rewriting.fingerprint)
    fillings = []
    for of_image in images:
        facts = replacements.facts_of(of_image)
        fillings += [learned.fillings(one, facts, level) for one in of_image]
    chosen = balancing.choose(fillings, number=rewriting.settings.negatives, randomness=randomness)
    for graph, taken in zip(itertools.chain(*images), chosen, strict=True):
        yield [
            Rewrite(
                substitute(graph.text, one.slot.start, one.slot.end, learned.spellings.get(one.text, one.text)),
                level,
                f"{one.slot.text}>{one.text}",
            )
            for one in taken
        ]


def with_rewrites(rewriting: Rewriting, path: Path, report: Report) -> Transform:
    """The change of a shard that stores its rewrites."""
    settings, name = rewriting.settings, path.name
    candidates = {
        level: _rewrites(read_json_object(rewriting.entry(level.name.lower(), name)), level)
        for level in NEGATIVE_LEVELS
    }
    back: list[list[list[Rewrite]]] | None = None
    if settings.translator is not None:
        content = read_json_object(rewriting.entry("back", name))
        back = _rewrites(content["positives"], Level.NONE)
        for reason, number in content["counts"].items():
            report.count(f"back-translations, {reason}", number)
    images = iter(range(len(candidates[Level.WORD])))

    def transform(_: int, stored: StoredSample) -> StoredSample:
        if stored.sample.kind is not Kind.PAIR:
            return stored
        image = next(images)
        captions = []
        for number in range(len(stored.sample.captions)):
            caption = caption_rewrites.rewritten(
                stored.sample.captions,
                number,
                back_translated=back[image] if back else [()] * len(stored.sample.captions),
                candidates={level: of_level[image][number] for level, of_level in candidates.items()},
                positives=settings.positives,
                negatives=settings.negatives,
                randomness=seeds.generator(settings.seed, *_parts(stored.sample.key), number),
            )
            captions.append(caption)
            report.count("captions")
            report.count("positives", len(caption.positives))
            for level in NEGATIVE_LEVELS:
                report.count(f"{level.name.lower()} negatives", sum(one.level is level for one in caption.negatives))
        return replace(stored, sample=replace(stored.sample, captions=tuple(captions)))

    return transform


def captions_of(shard: Path) -> Iterator[list[str]]:
    """The captions of each pair in a shard."""
    for stored in shards.read_shard(shard, pixels=False):
        if stored.sample.kind is Kind.PAIR:
            yield [caption.text for caption in stored.sample.captions]


def _parts(name: str) -> list[int]:
    return [int.from_bytes(name.encode()[i : i + 7], "little") for i in range(0, len(name), 7)]


def _records(found: Sequence[Rewrite]) -> list[list[str]]:
    return [[one.text, one.origin] for one in found]


def _rewrites(content: Any, level: Level) -> list[list[list[Rewrite]]]:
    return [
        [[Rewrite(text, level, origin) for text, origin in of_caption] for of_caption in of_image]
        for of_image in content
    ]
