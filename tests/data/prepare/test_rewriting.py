"""Rewrites and related items: what is stored, and what never may be."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.prepare.raw import COLOURS, PLACES, THINGS, captions, small_extractor, write_photographs
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.manifest import load_manifest
from unimo_ds.data.prepare import retrieval, rewriting, word_classes
from unimo_ds.data.prepare.command import main
from unimo_ds.data.prepare.rewriting import make_image, rewrite_caption
from unimo_ds.data.schema import Kind, Level
from unimo_ds.data.verify import verify

IMAGES = [captions(i % 64) for i in range(256)]


@pytest.fixture(scope="module")
def classes() -> word_classes.WordClasses:
    return word_classes.learn(IMAGES, min_count=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-four pairs and some texts and images, rewritten and retrieved."""
    raw, output = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("data")
    photos, tsv = write_photographs(raw, 64)
    lines = [f"The {colour} {thing} was seen again in town ." for colour in COLOURS for thing in THINGS]
    (raw / "lines.txt").write_text(
        "\n".join([*lines, "stop", "A quite unrelated remark about music ."]), encoding="utf-8"
    )
    shared = ["import", "--output", str(output), "--vocabulary-size", "400", "--extractor", str(small_extractor(raw))]
    assert main([*shared, "--kind", "pairs", "--images", str(photos), "--captions", str(tsv)]) == 0
    assert main([*shared, "--kind", "images", "--images", str(photos), "--source", "pictures"]) == 0
    assert main([*shared, "--kind", "texts", "--input", str(raw / "lines.txt")]) == 0
    assert main(["rewrite", str(output), "--negatives", "3"]) == 0
    assert main(["retrieve", str(output), "--number", "4"]) == 0
    return output


def test_alternatives_are_of_the_same_kind(classes: word_classes.WordClasses) -> None:
    for kind in (COLOURS, THINGS, PLACES):
        for word in kind:
            assert set(classes.alternatives[word]) <= set(kind) - {word}
            assert classes.alternatives[word]
            assert classes.weights[word].sum() == pytest.approx(1)


def test_words_said_of_the_same_image_are_no_alternatives() -> None:
    images = [
        [f"A {one} runs over the {place} .", f"A {other} runs over the {place} ."]
        for place in PLACES
        for one, other in (("boy", "child"), ("girl", "lass"), ("horse", "mare"))
    ] * 10
    learned = word_classes.learn(images, min_count=5)
    assert "child" not in learned.alternatives["boy"]
    assert "horse" in learned.alternatives["boy"]


def test_learning_does_not_depend_on_dictionary_order(classes: word_classes.WordClasses) -> None:
    again = word_classes.learn(iter(IMAGES), min_count=5)
    assert again.alternatives == classes.alternatives
    assert again.phrases == classes.phrases


def test_noun_phrases_stand_behind_determiners() -> None:
    words = word_classes.words_of("A black dog runs over the green grass with two small children watching it")
    found = [" ".join(words[start:end]) for start, end in word_classes.phrase_spans(words)]
    assert found == ["black dog", "green grass", "small children"]


@pytest.mark.parametrize("number", range(0, 64, 7))
def test_negatives_change_what_they_say_they_change(number: int, classes: word_classes.WordClasses) -> None:
    image = make_image(captions(number))
    caption = rewrite_caption(
        image,
        0,
        similar=["a zebra runs", captions(number)[1]],
        classes=classes,
        positives=4,
        negatives=3,
        randomness=np.random.default_rng(number),
    )
    assert [one.text for one in caption.positives] == [captions(number)[1]]
    texts = [one.text for one in caption.negatives]
    assert len(set(texts)) == len(texts)
    assert not {*texts} & {*captions(number)}
    by_level = {level: [one for one in caption.negatives if one.level is level] for level in Level}
    assert [one.text for one in by_level[Level.SENTENCE]] == ["a zebra runs"]
    assert len(by_level[Level.WORD]) == 3
    original = word_classes.words_of(caption.text)
    for one in by_level[Level.WORD]:
        old, new = one.origin.split(">")
        words = word_classes.words_of(one.text)
        assert old in original
        assert new.split()[0] in words
        if len(new.split()) == 1:
            changed = [(a, b) for a, b in zip(original, words, strict=True) if a != b and {a, b} != {"a", "an"}]
            assert changed == [(old, new)]
    for one in by_level[Level.PHRASE]:
        assert ">" in one.origin
        assert one.text != caption.text


def test_articles_and_capitals_fit() -> None:
    assert rewriting.substitute("A dog runs", [(2, 5, "orange")]) == "An orange runs"
    assert rewriting.substitute("an owl", [(3, 6, "dog")]) == "a dog"
    assert rewriting.substitute("Dogs run", [(0, 4, "cats")]) == "Cats run"
    assert rewriting.substitute("the dog", [(4, 7, "owl")]) == "the owl"


def test_similar_captions_are_of_other_images_and_no_duplicates() -> None:
    images = [["a black dog runs", "the dog"], ["a black dog runs"], ["a black dog sleeps"], ["two cats"]]
    found = rewriting.similar_captions(images)
    assert found[0][0] == ["a black dog sleeps"]
    assert "the dog" not in found[0][0]
    assert found[3][0] == []


def test_stored_rewrites_are_many_and_deterministic(folder: Path) -> None:
    corpus = Corpus.open(folder)
    assert verify(folder) == []
    pairs = np.flatnonzero(corpus.kinds == Kind.PAIR)
    levels = dict.fromkeys(Level, 0)
    for i in pairs:
        sample = corpus.read(int(i))
        truths = {caption.text for caption in sample.captions}
        for caption in sample.captions:
            assert {one.text for one in caption.positives} == truths - {caption.text}
            assert not {one.text for one in caption.negatives} & truths
            for one in caption.negatives:
                levels[one.level] += 1
    assert levels[Level.WORD] > 0.98 * 3 * 128
    assert min(levels[level] for level in (Level.SENTENCE, Level.PHRASE)) > 128
    before = load_manifest(folder)
    assert main(["rewrite", str(folder), "--negatives", "3"]) == 0
    assert load_manifest(folder).shards == before.shards


def test_related_items_are_related(folder: Path) -> None:
    corpus = Corpus.open(folder)
    pairs = np.flatnonzero(corpus.kinds == Kind.PAIR)
    same = 0
    for i in pairs:
        sample = corpus.read(int(i))
        assert 1 <= len(sample.related_texts) <= 4
        words = word_classes.content_words(caption.text for caption in sample.captions)
        for text in sample.related_texts:
            assert words & word_classes.content_words([text])
            assert text != "stop"
        related = corpus.related_image_index[corpus.related_image_start[i] : corpus.related_image_start[i + 1]]
        assert len(related) == 4
        assert (corpus.kinds[related] == Kind.IMAGE).all()
        same += any(corpus.details(int(j))["file"] == corpus.details(int(i))["file"] for j in related)
    # The very same photograph lies in the image source too: its features are equal, and overlap puts it among the nearest.
    assert same > 0.9 * len(pairs)


def test_distinct_texts() -> None:
    assert retrieval.distinct(["this dog of a movie", "of this dog of a movie", "a cat"]) == (
        "this dog of a movie",
        "a cat",
    )


def test_retrieval_needs_something_to_retrieve(tmp_path: Path, capsys) -> None:
    photos, tsv = write_photographs(tmp_path, 4)
    output = tmp_path / "data"
    arguments = ["--images", str(photos), "--captions", str(tsv), "--extractor", str(small_extractor(tmp_path))]
    assert main(["import", "--kind", "pairs", "--output", str(output), "--vocabulary-size", "300", *arguments]) == 0
    assert main(["retrieve", str(output)]) == 2
    assert "no texts and no images" in capsys.readouterr().err
    assert main(["rewrite", str(output)]) == 0
    assert main(["rewrite", str(tmp_path / "nowhere")]) == 2
