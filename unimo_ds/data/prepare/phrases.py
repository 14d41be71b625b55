"""`unimo prepare phrases`: stores names and phrases with every caption and text, to be masked as a whole.

The paper detects "semantically complete phrases, such as name entities" by parsing and masks each like one word (section 2.3).
Here: names; objects with their preceding attributes ("black and white dog"); multi-word prepositions ("in front of").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from unimo_ds.data.prepare.report import Report
from unimo_ds.data.prepare.rewriting.scene_graph import parsers
from unimo_ds.data.prepare.rewriting.scene_graph.graph import AttributeKind, SceneGraph
from unimo_ds.data.prepare.settings import PhraseSettings, files_in
from unimo_ds.data.prepare.stages import Stage, Transform
from unimo_ds.data.prepare.workers import Workers
from unimo_ds.data.schema import Kind, Sample, Spans
from unimo_ds.data.storage import shards
from unimo_ds.data.storage.shards import StoredSample

_MOST_WORDS = 6
"""Longest phrase, in words: a longer one, if masked, could not be guessed from the rest."""


def phrase_folder(folder: Path, settings: PhraseSettings, workers: Workers) -> Report:
    """Store the phrases of all captions and texts of a folder, replacing earlier ones.

    Raises:
        UserError: not a data folder, or damaged; or an unusable parser.
    """
    parsers.check(settings.parser, settings.parser_path)
    stage = Stage(folder, "phrases", [settings.parser, files_in(settings.parser_path)])
    if not stage.begin():
        return Report({"phrases are stored already": 1})
    names = stage.shards("pair", "text")
    report = stage.each_shard(_with_phrases, settings, names, workers, label="looking for phrases")
    stage.finish()
    return report


def _with_phrases(settings: PhraseSettings, path: Path, report: Report) -> Transform:
    texts = [text for stored in shards.read_shard(path, pixels=False) for text in _texts(stored.sample)]
    graphs = parsers.load(settings.parser, settings.parser_path)(texts)
    found = iter([phrases_of(graph) for graph in graphs])

    def transform(_: int, stored: StoredSample) -> StoredSample:
        sample = stored.sample
        spans = [next(found) for _ in _texts(sample)]
        report.count("texts", len(spans))
        report.count("phrases", sum(map(len, spans)))
        if sample.kind is Kind.TEXT:
            return replace(stored, sample=replace(sample, phrases=spans[0]))
        captions = tuple(replace(one, phrases=own) for one, own in zip(sample.captions, spans, strict=True))
        return replace(stored, sample=replace(sample, captions=captions))

    return transform


def _texts(sample: Sample) -> list[str]:
    return [sample.text] if sample.text is not None else [caption.text for caption in sample.captions]


def phrases_of(graph: SceneGraph) -> Spans:
    """The multi-word phrases of a text. Of overlapping ones, names win, then objects, then prepositions, then earlier ones."""
    chosen: list[tuple[int, int]] = []
    for span in _candidates(graph):
        words = graph.text[slice(*span)].split()
        if 1 < len(words) <= _MOST_WORDS and all(span[1] <= start or end <= span[0] for start, end in chosen):
            chosen.append(span)
    return tuple(sorted(chosen))


def _candidates(graph: SceneGraph) -> Iterator[tuple[int, int]]:
    yield from graph.names
    for number, node in enumerate(graph.objects):
        yield _first_word(graph, number, node.start), node.end
    for relation in graph.relations:
        if relation.preposition is not None:
            yield relation.preposition


def _first_word(graph: SceneGraph, number: int, start: int) -> int:
    """Start of an object's name, including the attributes before it."""
    before = [one for one in graph.attributes if one.owner == number and one.end <= start]
    starts = [one.start for one in before if one.kind is AttributeKind.QUALITY]
    between = max([one.end for one in graph.objects[:number] if one.end <= start], default=0)
    return min([one for one in starts if one >= between], default=start)
