"""`unimo prepare rewrite`: positive and negative rewrites of every caption, stored with the pair (paper section 2.1).

Positives are the other captions of the image. Negatives, by level:
- sentence: captions of other images, the most similar by TF-IDF (`similar_sentences`);
- phrase: several words of the caption's scene graph replaced at once: an object with its attributes, a verb with its preposition;
- word: one node replaced: an object, an attribute, a number, a verb, a preposition.
What may replace what, and how often, is in `replacements`. No rewrite is trusted to be true or false beyond that; each says in
`from` how it was made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unimo_ds.data import folder as folders
from unimo_ds.data import manifest, shards
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.prepare import replacements, similar_sentences, word_classes
from unimo_ds.data.prepare.importing import progress
from unimo_ds.data.prepare.replacements import Facts, Replacements
from unimo_ds.data.prepare.scene_graph.graph import SceneGraph, SceneGraphParser
from unimo_ds.data.prepare.scene_graph.rules import RuleParser
from unimo_ds.data.prepare.similar_sentences import similar_rows
from unimo_ds.data.prepare.sources import Report
from unimo_ds.data.schema import Caption, Kind, Level, Rewrite, Sample
from unimo_ds.data.shards import StoredSample
from unimo_ds.utils import seed as seeds

__all__ = ["ImageCaptions", "read_image", "rewrite_caption", "rewrite_folder", "similar_rows", "substitute"]

POOL_CAPTIONS = 40_000
"""Similar captions are searched among this many (whole shards), so time and memory stay linear in the corpus."""
_CALIBRATION_IMAGES = 4000
"""Images whose captions balance what is replaced against what is put in."""


@dataclass(frozen=True)
class ImageCaptions:
    """What is known of one pair while its rewrites are made."""

    graphs: tuple[SceneGraph, ...]
    """Of its captions, in their order."""
    facts: Facts
    taken: frozenset[str]
    """Its captions, normalised: no negative may equal one."""


def rewrite_folder(
    folder: Path,
    *,
    positives: int = 4,
    negatives: int = 4,
    seed: int = 0,
    learn_from: Path | None = None,
    parser: SceneGraphParser | None = None,
) -> Report:
    """Give every caption of every pair up to `positives` and, per level, `negatives` rewrites; earlier ones are replaced.

    learn_from: a data folder whose captions teach what may replace what (a small folder has too few); None: the folder itself.
    parser: reads captions; None: the rules, which need no weights.

    Raises:
        UserError: not a data folder, or a damaged one.
    """
    parser = parser or RuleParser()
    listed = manifest.load_manifest(folder)
    tokenizer = tokenizers.load(folder / listed.tokenizer.file)
    teacher = manifest.load_manifest(learn_from) if learn_from else listed
    learned = _learn(learn_from or folder, teacher, parser)
    report = Report()
    for pool in _pools(folder, _pair_shards(listed)):
        pool_captions = list(_captions(folder, pool))
        similar = similar_sentences.choose(pool_captions, number=negatives, seed=seed)
        first = 0
        for name in progress(pool, label="rewriting"):
            number = next(entry.kinds["pair"] for entry in listed.shards if entry.file == name)
            images = _read_images(pool_captions[first : first + number], parser)
            transform = _transformer(
                images, similar[first : first + number], learned, report, positives, negatives, seed
            )
            shards.rewrite_shard(folder / name, transform)
            first += number
    folders.finish_folder(folder, tokenizer=tokenizer, tokenizer_file=listed.tokenizer.file)
    return report


def rewrite_caption(
    image: ImageCaptions,
    number: int,
    *,
    similar: Sequence[str],
    learned: Replacements,
    positives: int,
    negatives: int,
    randomness: np.random.Generator,
) -> Caption:
    """The image's caption `number` with its rewrites. No negative equals a caption of the image or another negative."""
    text = image.graphs[number].text
    normal = _normal(text)
    others = [graph.text for i, graph in enumerate(image.graphs) if i != number and _normal(graph.text) != normal]
    others = list(dict.fromkeys(others))
    chosen = [others[i] for i in sorted(randomness.permutation(len(others))[:positives])]
    taken = set(image.taken)
    found: list[Rewrite] = []
    for level, candidates in (
        (Level.SENTENCE, ((one, "tf-idf") for one in similar)),
        (Level.PHRASE, _replaced(image, number, Level.PHRASE, learned, negatives, randomness)),
        (Level.WORD, _replaced(image, number, Level.WORD, learned, negatives, randomness)),
    ):
        num_found = 0
        for candidate, origin in candidates:
            if num_found == negatives:
                break
            normal = _normal(candidate)
            if normal not in taken:
                taken.add(normal)
                found.append(Rewrite(candidate, level, origin))
                num_found += 1
    return Caption(text, tuple(Rewrite(one, Level.NONE, "same image") for one in chosen), tuple(found))


def read_image(captions: Sequence[str], parser: SceneGraphParser) -> ImageCaptions:
    """Parse the captions of one image."""
    return _image(captions, parser.parse(captions))


def _read_images(captions_of_images: Sequence[Sequence[str]], parser: SceneGraphParser) -> list[ImageCaptions]:
    """The same for many images, parsed in one go."""
    graphs = iter(parser.parse([caption for captions in captions_of_images for caption in captions]))
    return [_image(captions, [next(graphs) for _ in captions]) for captions in captions_of_images]


def _image(captions: Sequence[str], graphs: Sequence[SceneGraph]) -> ImageCaptions:
    taken = frozenset(_normal(caption) for caption in captions)
    return ImageCaptions(tuple(graphs), replacements.facts_of(graphs), taken)


def _replaced(
    image: ImageCaptions, number: int, level: Level, learned: Replacements, wanted: int, randomness: np.random.Generator
) -> Iterator[tuple[str, str]]:
    graph = image.graphs[number]
    fillings = learned.fillings(graph, image.facts, level)
    # A few more than wanted: two replacements may give one sentence.
    for one in learned.draw(fillings, level, randomness, number=wanted + 2):
        yield substitute(graph.text, [(one.slot.start, one.slot.end, one.text)]), f"{one.slot.text}>{one.text}"


def substitute(text: str, places: Sequence[tuple[int, int, str]]) -> str:
    """The text with [start, end) replaced at each place (from left to right), its capitals and a/an made to fit."""
    result, last = "", 0
    for start, end, new in places:
        before = text[last:start]
        article = re.search(r"\b([Aa])(n?)(\s+)$", before)
        if article:
            vowel = word_classes.sounds_like_vowel(new)
            before = before[: article.start()] + article.group(1) + ("n" if vowel else "") + article.group(3)
        result += before + (new[0].upper() + new[1:] if text[start].isupper() else new)
        last = end
    return result + text[last:]


def _normal(text: str) -> str:
    return " ".join(word_classes.words_of(text))


def _transformer(
    images: Sequence[ImageCaptions],
    similar: Sequence[Sequence[Sequence[str]]],
    learned: Replacements,
    report: Report,
    positives: int,
    negatives: int,
    seed: int,
) -> Callable[[int, StoredSample], StoredSample]:
    """Rewrites the pairs of one shard."""
    numbers = iter(range(len(images)))

    def transform(_: int, stored: StoredSample) -> StoredSample:
        if stored.sample.kind is not Kind.PAIR:
            return stored
        position = next(numbers)
        captions = []
        for number in range(len(images[position].graphs)):
            rewritten = rewrite_caption(
                images[position],
                number,
                similar=similar[position][number],
                learned=learned,
                positives=positives,
                negatives=negatives,
                randomness=seeds.generator(seed, *_key_parts(stored.sample), number),
            )
            captions.append(rewritten)
            report.count("captions")
            report.count("positives", len(rewritten.positives))
            for level in (Level.SENTENCE, Level.PHRASE, Level.WORD):
                found = sum(one.level is level for one in rewritten.negatives)
                report.count(f"{level.name.lower()} negatives", found)
        return replace(stored, sample=replace(stored.sample, captions=tuple(captions)))

    return transform


def _learn(folder: Path, listed: manifest.Manifest, parser: SceneGraphParser) -> Replacements:
    """Vocabularies of all captions of a folder, their potentials from an even sample of its images."""
    names = _pair_shards(listed)
    stride = max(1, sum(entry.kinds.get("pair", 0) for entry in listed.shards) // _CALIBRATION_IMAGES)
    sample: list[tuple[SceneGraph, Facts]] = []

    def read() -> Iterator[Sequence[SceneGraph]]:
        number = 0
        for name in progress(names, label="learning"):
            for image in _read_images(list(_captions(folder, [name])), parser):
                if number % stride == 0:
                    sample.append((image.graphs[number // stride % len(image.graphs)], image.facts))
                number += 1
                yield image.graphs

    learned = replacements.learn(read())
    for level in (Level.PHRASE, Level.WORD):
        learned.calibrate(sample, level)
    return learned


def _key_parts(sample: Sample) -> list[int]:
    return [int.from_bytes(sample.key.encode()[i : i + 7], "little") for i in range(0, len(sample.key), 7)]


def _pair_shards(listed: manifest.Manifest) -> list[str]:
    return [entry.file for entry in listed.shards if entry.kinds.get("pair")]


def _captions(folder: Path, names: Sequence[str]) -> Iterator[list[str]]:
    for name in names:
        for stored in shards.read_shard(folder / name):
            if stored.sample.kind is Kind.PAIR:
                yield [caption.text for caption in stored.sample.captions]


def _pools(folder: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """Runs of shards with about `POOL_CAPTIONS` captions."""
    pool: list[str] = []
    size = 0
    for name in names:
        pool.append(name)
        size += sum(len(captions) for captions in _captions(folder, [name]))
        if size >= POOL_CAPTIONS:
            yield pool
            pool, size = [], 0
    if pool:
        yield pool
