"""`unimo prepare rewrite`: positive and negative rewrites of every caption, stored with the pair (paper section 2.1).

Positives are the other captions of the image. Negatives, by level:
- sentence: the captions of other images that are most similar by TF-IDF, and say something that no caption of this image says;
- phrase: a noun phrase replaced by one with another head, or two noun phrases of the caption exchanged;
- word: a content word replaced by an alternative that the corpus teaches (`word_classes`), or a relation by its opposite.
No rewrite is trusted to be true or false beyond that; each says in `from` how it was made.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from unimo_ds.data import folder as folders
from unimo_ds.data import manifest, shards
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.prepare import word_classes
from unimo_ds.data.prepare.importing import progress
from unimo_ds.data.prepare.sources import Report
from unimo_ds.data.prepare.word_classes import WORD, WordClasses
from unimo_ds.data.schema import Caption, Kind, Level, Rewrite, Sample
from unimo_ds.data.shards import StoredSample
from unimo_ds.utils import seed as seeds

POOL_CAPTIONS = 40_000
"""Similar captions are searched among this many (whole shards), so time and memory stay linear in the corpus."""
_MAX_SIMILARITY = 0.9
"""More similar captions of other images are taken for the same sentence."""
_SEARCHED = 60
_BLOCK = 500


@dataclass(frozen=True)
class _Image:
    """What is known of one pair while its rewrites are made."""

    captions: tuple[str, ...]
    known: frozenset[str]
    """All words of its captions."""
    taken: frozenset[str]
    """Its captions, normalised: no negative may equal one."""


def rewrite_folder(
    folder: Path, *, positives: int = 4, negatives: int = 4, seed: int = 0, learn_from: Path | None = None
) -> Report:
    """Give every caption of every pair up to `positives` and, per level, `negatives` rewrites; earlier ones are replaced.

    learn_from: a data folder whose captions teach the word classes (a small folder has too few); None: the folder itself.

    Raises:
        UserError: not a data folder, or a damaged one.
    """
    listed = manifest.load_manifest(folder)
    tokenizer = tokenizers.load(folder / listed.tokenizer.file)
    teacher = manifest.load_manifest(learn_from) if learn_from else listed
    classes = word_classes.learn(_captions(learn_from or folder, _pair_shards(teacher)))
    report = Report()
    for pool in _pools(folder, _pair_shards(listed)):
        pool_captions = list(_captions(folder, pool))
        similar = similar_captions(pool_captions)
        first = 0
        for name in progress(pool, label="rewriting"):
            transform = _transformer(similar, classes, report, first, positives, negatives, seed)
            shards.rewrite_shard(folder / name, transform)
            first += next(entry.kinds["pair"] for entry in listed.shards if entry.file == name)
    folders.finish_folder(folder, tokenizer=tokenizer, tokenizer_file=listed.tokenizer.file)
    return report


def similar_captions(captions_of_images: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    """For each caption of each image, the captions of other images by falling TF-IDF similarity, near-duplicates left out.

    Memory: one block of rows at a time against all captions given.
    """
    texts = [caption for captions in captions_of_images for caption in captions]
    image_of = np.repeat(np.arange(len(captions_of_images)), [len(captions) for captions in captions_of_images])
    rows = similar_rows(texts, texts, number=_SEARCHED, max_similarity=_MAX_SIMILARITY, group=image_of)
    similar: list[list[list[str]]] = [[] for _ in captions_of_images]
    for image, found in zip(image_of, rows, strict=True):
        similar[image].append([texts[i] for i in found])
    return similar


def similar_rows(
    queries: Sequence[str],
    documents: Sequence[str],
    *,
    number: int,
    max_similarity: float = 1.0,
    group: NDArray[np.int64] | None = None,
) -> Iterator[NDArray[np.int64]]:
    """For each query, up to `number` documents by falling TF-IDF similarity, above 0 and at most `max_similarity`.

    group: [n] where queries and documents are the same list: documents of the query's own group are left out.
    """
    if not queries or not documents:
        yield from (np.zeros(0, np.int64) for _ in queries)
        return
    # Words in more than a twentieth of a large collection tell nothing apart and cost the most.
    max_df = 0.05 if len(documents) >= 2000 else 1.0
    vectorizer = TfidfVectorizer(
        token_pattern=WORD.pattern, stop_words=sorted(word_classes.FUNCTION_WORDS), max_df=max_df, sublinear_tf=True
    )
    try:
        table = vectorizer.fit_transform(documents).T.tocsr()
    except ValueError:  # every word is a function word: nothing is similar to anything
        yield from (np.zeros(0, np.int64) for _ in queries)
        return
    for start in range(0, len(queries), _BLOCK):
        scores = (vectorizer.transform(queries[start : start + _BLOCK]) @ table).tocsr()
        for i in range(scores.shape[0]):
            part = slice(scores.indptr[i], scores.indptr[i + 1])
            columns, values = scores.indices[part], np.round(scores.data[part], 6)
            wanted = values <= max_similarity
            if group is not None:
                wanted &= group[columns] != group[start + i]
            columns, values = columns[wanted], values[wanted]
            if len(values) > number:
                edge = np.partition(values, len(values) - number)[len(values) - number]
                columns, values = columns[values >= edge], values[values >= edge]
            yield columns[np.lexsort((columns, -values))][:number].astype(np.int64)


def rewrite_caption(
    image: _Image,
    number: int,
    *,
    similar: Sequence[str],
    classes: WordClasses,
    positives: int,
    negatives: int,
    randomness: np.random.Generator,
) -> Caption:
    """The image's caption `number` with its rewrites. No negative equals a caption of the image or another negative."""
    text = image.captions[number]
    normal = _normal(text)
    others = [other for i, other in enumerate(image.captions) if i != number and _normal(other) != normal]
    others = list(dict.fromkeys(others))
    chosen = [others[i] for i in sorted(randomness.permutation(len(others))[:positives])]
    taken = set(image.taken)
    found: list[Rewrite] = []
    for level, candidates in (
        (Level.SENTENCE, _sentence_candidates(image, similar)),
        (Level.PHRASE, _phrase_candidates(image, text, classes, randomness)),
        (Level.WORD, _word_candidates(image, text, classes, randomness)),
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


def make_image(captions: Sequence[str]) -> _Image:
    known = frozenset(word for caption in captions for word in word_classes.words_of(caption))
    return _Image(tuple(captions), known, frozenset(_normal(caption) for caption in captions))


def _sentence_candidates(image: _Image, similar: Sequence[str]) -> Iterator[tuple[str, str]]:
    for text in similar:
        # A sentence made of this image's words alone may well be true of it.
        if word_classes.content_words([text]) - image.known:
            yield text, "tf-idf"


def _word_candidates(
    image: _Image, text: str, classes: WordClasses, randomness: np.random.Generator
) -> Iterator[tuple[str, str]]:
    """One word changed; every place is used once before any is used again."""
    matches = list(WORD.finditer(text))
    places = [match for match in matches if match.group().lower() in classes.alternatives]
    places += [match for match in matches if match.group().lower() in word_classes.OPPOSITES]
    order = [places[i] for i in randomness.permutation(len(places))]
    for _ in range(3):
        for match in order:
            word = match.group().lower()
            if word in word_classes.OPPOSITES:
                other = word_classes.OPPOSITES[word]
            else:
                options = classes.alternatives[word]
                other = options[int(randomness.choice(len(options), p=classes.weights[word]))]
                if other in image.known:
                    continue
            yield substitute(text, [(match.start(), match.end(), other)]), f"{word}>{other}"


def _phrase_candidates(
    image: _Image, text: str, classes: WordClasses, randomness: np.random.Generator
) -> Iterator[tuple[str, str]]:
    """Noun phrases replaced, then exchanged."""
    matches = list(WORD.finditer(text))
    words = [match.group().lower() for match in matches]
    spans = [span for span in word_classes.phrase_spans(words) if words[span[1] - 1] in classes.alternatives]
    for _ in range(2):
        for i in randomness.permutation(len(spans)):
            start, end = spans[i]
            head = words[end - 1]
            options = classes.alternatives[head]
            other_head = options[int(randomness.choice(len(options), p=classes.weights[head]))]
            phrases = classes.phrases.get(other_head, (other_head,))
            phrase = phrases[int(randomness.integers(len(phrases)))]
            if other_head not in image.known:
                place = (matches[start].start(), matches[end - 1].end(), phrase)
                yield substitute(text, [place]), f"{' '.join(words[start:end])}>{phrase}"
    for one, other in itertools.pairwise(spans):
        between = words[one[1] : other[0]]
        # "a man and a woman" means the same the other way round.
        if words[one[1] - 1] == words[other[1] - 1] or not set(between) - word_classes.DETERMINERS - {"and", "or"}:
            continue
        ends = [(matches[start].start(), matches[end - 1].end()) for start, end in (one, other)]
        parts = [" ".join(words[start:end]) for start, end in (one, other)]
        yield substitute(text, [(*ends[0], parts[1]), (*ends[1], parts[0])]), f"{parts[0]}<>{parts[1]}"


def substitute(text: str, places: Sequence[tuple[int, int, str]]) -> str:
    """The text with [start, end) replaced at each place (from left to right), its capitals and a/an made to fit."""
    result, last = "", 0
    for start, end, new in places:
        before = text[last:start]
        article = re.search(r"\b([Aa])(n?)(\s+)$", before)
        if article:
            vowel = new[0] in "aeiou"
            before = before[: article.start()] + article.group(1) + ("n" if vowel else "") + article.group(3)
        result += before + (new[0].upper() + new[1:] if text[start].isupper() else new)
        last = end
    return result + text[last:]


def _normal(text: str) -> str:
    return " ".join(word_classes.words_of(text))


def _transformer(
    similar: Sequence[Sequence[Sequence[str]]],
    classes: WordClasses,
    report: Report,
    first: int,
    positives: int,
    negatives: int,
    seed: int,
) -> Callable[[int, StoredSample], StoredSample]:
    """Rewrites the pairs of one shard; `first` is the number of its first pair in the pool."""
    numbers = iter(range(first, len(similar)))

    def transform(_: int, stored: StoredSample) -> StoredSample:
        if stored.sample.kind is not Kind.PAIR:
            return stored
        position = next(numbers)
        image = make_image([caption.text for caption in stored.sample.captions])
        captions = []
        for number in range(len(image.captions)):
            randomness = seeds.generator(seed, *_key_parts(stored.sample), number)
            rewritten = rewrite_caption(
                image,
                number,
                similar=similar[position][number],
                classes=classes,
                positives=positives,
                negatives=negatives,
                randomness=randomness,
            )
            captions.append(rewritten)
            report.count("captions")
            report.count("positives", len(rewritten.positives))
            for level in (Level.SENTENCE, Level.PHRASE, Level.WORD):
                found = sum(one.level is level for one in rewritten.negatives)
                report.count(f"{level.name.lower()} negatives", found)
        return replace(stored, sample=replace(stored.sample, captions=tuple(captions)))

    return transform


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
