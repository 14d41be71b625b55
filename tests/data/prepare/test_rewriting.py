"""Rewrites and related items: what is stored, and what never may be."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.data.prepare.raw import COLOURS, PLACES, THINGS, captions, small_extractor, write_photographs
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.manifest import load_manifest
from unimo_ds.data.prepare import giveaways, replacements, retrieval, rewriting, similar_sentences, word_classes
from unimo_ds.data.prepare.command import main
from unimo_ds.data.prepare.replacements import Replacements
from unimo_ds.data.prepare.rewriting import rewrite_caption
from unimo_ds.data.prepare.scene_graph.rules import RuleParser
from unimo_ds.data.schema import Caption, Kind, Level, Rewrite
from unimo_ds.data.verify import verify
from unimo_ds.utils.errors import UserError

IMAGES = [captions(i % 64) for i in range(256)]


PARSER = RuleParser()


@pytest.fixture(scope="module")
def learned() -> Replacements:
    """What the captions of 256 pictures teach, balanced."""
    images = [rewriting.read_image(captions, PARSER) for captions in IMAGES]
    found = replacements.learn(image.graphs for image in images)
    for level in (Level.WORD, Level.PHRASE):
        found.calibrate([(image.graphs[0], image.facts) for image in images], level)
    return found


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


def rewrites(
    captions_of_image: list[str], learned: Replacements, level: Level, *, number: int = 0
) -> list[tuple[str, str]]:
    """(replaced, put in) of every candidate."""
    image = rewriting.read_image(captions_of_image, PARSER)
    found = learned.fillings(image.graphs[number], image.facts, level)
    return [(one.slot.text, text) for one in found for text in one.texts]


def test_replacements_are_of_the_same_kind(learned: Replacements) -> None:
    found = dict[str, set[str]]()
    for old, new in rewrites(captions(0), learned, Level.WORD):
        found.setdefault(old, set()).add(new)
    assert found == {"red": {*COLOURS} - {"red"}, "dog": {*THINGS} - {"dog"}, "grass": {*PLACES} - {"grass"}}


def test_what_may_be_true_of_the_image_is_never_put_in(learned: Replacements) -> None:
    assert ("dog", "horse") in rewrites(["A red dog runs over the grass ."], learned, Level.WORD)
    assert ("dog", "horse") not in rewrites(["A red dog runs over the grass .", "some horses"], learned, Level.WORD)
    assert ("dog", "horse") not in rewrites(["A red dog runs over the grass .", "an animal"], learned, Level.WORD)
    # A word that is never put in is not taken out.
    assert "puppy" not in {old for old, _ in rewrites(["A red puppy runs over the grass ."], learned, Level.WORD)}
    said = ["A red dog runs over the grass .", "A dog that is green", "a blue ball"]
    colours = {new for old, new in rewrites(said, learned, Level.WORD) if old == "red"}
    # The dog may be green; the ball's colour is not the dog's.
    assert colours == {"blue", "black"}


def test_words_said_of_the_same_image_do_not_replace_each_other() -> None:
    images = [
        [f"A {one} runs over the {place} .", f"A {other} runs over the {place} ."]
        for place in PLACES
        for one, other in (("bus", "vehicle"), ("kayak", "raft"), ("tent", "flag"))
    ] * 10
    read = [rewriting.read_image(captions_of_image, PARSER) for captions_of_image in images]
    taught = replacements.learn(image.graphs for image in read)
    found = rewrites(["A kayak runs over the grass ."], taught, Level.WORD)
    assert ("kayak", "raft") not in found
    assert ("kayak", "tent") in found


def test_grammar_is_kept() -> None:
    images = [
        ["Two dogs chase a cat .", "A man rides an old bicycle"],
        ["Three women wash an elephant .", "A girl holds a small umbrella"],
        ["Four men push a truck on the road .", "A woman wears a heavy coat"],
        ["Two boys kick a ball near the tree .", "A boy throws an orange frisbee"],
    ] * 5
    read = [rewriting.read_image(captions_of_image, PARSER) for captions_of_image in images]
    taught = replacements.learn(image.graphs for image in read)
    plural = {"dogs", "women", "men", "boys"}
    for image in read:
        for graph in image.graphs:
            for level in (Level.WORD, Level.PHRASE):
                for one in taught.fillings(graph, image.facts, level):
                    for new in one.texts:
                        assert (one.slot.text in plural) == (new in plural)
                        text = rewriting.substitute(graph.text, [(one.slot.start, one.slot.end, new)])
                        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
                        assert not {one.slot.text, new} & {"chase", "wash"} or one.slot.part == "v"


def test_words_are_put_in_as_often_as_they_are_taken_out() -> None:
    """Without the potentials a common word is replaced often and put in seldom."""
    randomness = np.random.default_rng(0)
    colours = ("white", "blue", "red", "green", "yellow", "purple")
    chances = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    drawn = randomness.choice(colours, size=600, p=chances)
    images = [rewriting.read_image([f"There is a {colour} hat ."], PARSER) for colour in drawn]
    taught = replacements.learn(image.graphs for image in images)

    originals = Counter(drawn.tolist())
    fillings = [taught.fillings(image.graphs[0], image.facts, Level.WORD) for image in images]

    def distance() -> float:
        """Between the colours of originals and rewrites, the latter averaged over several draws."""
        generator, times = np.random.default_rng(5), 10
        put_in = Counter(
            one.text
            for found in fillings
            for _ in range(times)
            for one in taught.draw(found, Level.WORD, generator, number=1)
        )
        return sum(abs(put_in[colour] / times - originals[colour]) for colour in colours)

    before = distance()
    assert taught.calibrate([(image.graphs[0], image.facts) for image in images], Level.WORD) < 0.01
    assert before > 60
    assert distance() < 0.4 * before


def test_learning_and_drawing_are_deterministic(learned: Replacements) -> None:
    images = [rewriting.read_image(captions_of_image, PARSER) for captions_of_image in IMAGES]
    again = replacements.learn(image.graphs for image in images)
    for level in (Level.WORD, Level.PHRASE):
        again.calibrate([(image.graphs[0], image.facts) for image in images], level)
    for image in images[:8]:
        made = [
            rewrite_caption(
                image, 1, similar=[], learned=one, positives=1, negatives=3, randomness=np.random.default_rng(7)
            )
            for one in (learned, again)
        ]
        assert made[0] == made[1]


@pytest.mark.parametrize("number", range(0, 64, 7))
def test_negatives_change_what_they_say_they_change(number: int, learned: Replacements) -> None:
    caption = rewrite_caption(
        rewriting.read_image(captions(number), PARSER),
        0,
        similar=["a zebra runs", captions(number)[1]],
        learned=learned,
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
    assert len(by_level[Level.WORD]) == len(by_level[Level.PHRASE]) == 3
    original = word_classes.words_of(caption.text)
    for one in by_level[Level.WORD]:
        changed = [
            (a, b)
            for a, b in zip(original, word_classes.words_of(one.text), strict=True)
            if a != b and {a, b} != {"a", "an"}
        ]
        assert changed == [tuple(one.origin.split(">"))]
    for one in by_level[Level.PHRASE]:
        old, new = one.origin.split(">")
        assert len(old.split()) > 1
        assert one.text.lower() == caption.text.lower().replace(old, new)


def test_articles_and_capitals_fit() -> None:
    assert rewriting.substitute("A dog runs", [(2, 5, "orange")]) == "An orange runs"
    assert rewriting.substitute("an owl", [(3, 6, "dog")]) == "a dog"
    assert rewriting.substitute("Dogs run", [(0, 4, "cats")]) == "Cats run"
    assert rewriting.substitute("the dog", [(4, 7, "owl")]) == "the owl"
    assert rewriting.substitute("an owl", [(3, 6, "unicycle")]) == "a unicycle"
    assert rewriting.substitute("a cat", [(2, 5, "hourglass")]) == "an hourglass"


def test_similar_captions_are_of_other_images_and_no_duplicates() -> None:
    images = [["a black dog runs", "the dog"], ["a black dog runs"], ["a black dog sleeps"], ["two cats"]]
    found = similar_sentences.choose(images, number=2)
    assert found[0] == [["a black dog sleeps"], ["a black dog sleeps"]]
    assert found[3] == [[]]


def test_no_similar_caption_is_used_much_more_than_others() -> None:
    """One sentence is near to all: by similarity alone it would be everybody's first."""
    count = 40
    found = [np.array([0, *((np.arange(1, 8) + i) % count)]) for i in range(count)]
    similarities = [np.array([0.8, *np.linspace(0.6, 0.5, 7)]) for _ in range(count)]
    order = similar_sentences.balanced_order(found, similarities, number=2, randomness=np.random.default_rng(0))
    used = Counter(int(columns[i]) for columns, ranks in zip(found, order, strict=True) for i in ranks[:2])
    assert sum(used.values()) == 2 * count
    assert used[0] <= 8
    assert all(sorted(ranks) == list(range(len(columns))) for columns, ranks in zip(found, order, strict=True))


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
    assert levels[Level.WORD] > 0.95 * 3 * 128
    assert min(levels[level] for level in (Level.SENTENCE, Level.PHRASE)) > 128
    before = load_manifest(folder)
    assert main(["rewrite", str(folder), "--negatives", "3"]) == 0
    assert load_manifest(folder).shards == before.shards


def test_a_give_away_is_found_and_its_absence_too() -> None:
    """Rewrites that all have a tell-tale word are told apart; originals in other clothes are not."""

    def image(number: int, other: str) -> list[Caption]:
        return [Caption(captions(number)[0], (), (Rewrite(other, Level.WORD),))]

    told = [image(i % 64, captions(i % 64)[0].replace("runs", "hovers")) for i in range(200)]
    found = giveaways.measure(told, Level.WORD)
    assert found.accuracy > 0.95
    assert "hovers" in {name for name, weight in found.telling if weight > 0}
    untold = [image(i % 64, captions((i * 7 + 3) % 64)[0]) for i in range(200)]
    assert giveaways.measure(untold, Level.WORD).accuracy < 0.65
    with pytest.raises(UserError, match="only 0 captions have rewrites of level phrase"):
        giveaways.measure(told, Level.PHRASE)


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
