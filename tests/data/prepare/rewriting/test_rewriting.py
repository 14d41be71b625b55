"""Rewrites and related items: what is stored, and what never may be."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.preparation import giveaways
from tests.data.prepare.raw import COLOURS, PLACES, THINGS, captions, small_extractor, write_photographs
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.prepare.command import main
from unimo_ds.data.prepare.rewriting import (
    balancing,
    learned_file,
    replacements,
    similar_sentences,
    word_classes,
)
from unimo_ds.data.prepare.rewriting.caption_rewrites import rewritten, substitute
from unimo_ds.data.prepare.rewriting.compatibility import Compatibility, Together
from unimo_ds.data.prepare.rewriting.replacements import Filling, Replacements, facts_of
from unimo_ds.data.prepare.rewriting.scene_graph.graph import SceneGraph
from unimo_ds.data.prepare.rewriting.scene_graph.rules import parse
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.schema import Caption, Kind, Level, Rewrite
from unimo_ds.data.storage.manifest import load_manifest
from unimo_ds.utils.errors import UserError

IMAGES = [captions(i % 64) for i in range(256)]


@pytest.fixture(scope="module")
def learned() -> Replacements:
    """What the captions of 256 pictures teach."""
    return replacements.learn(map(parse, IMAGES))


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
    assert main(["rewrite", str(output), "--negatives", "3", "--workers", "1"]) == 0
    assert main(["retrieve", str(output), "--number", "4"]) == 0
    return output


def fillings_of(learned: Replacements, graphs: Sequence[SceneGraph], level: Level) -> list[Filling]:
    """Of the first caption of an image."""
    return learned.fillings(graphs[0], facts_of(graphs), level)


def rewrites(captions_of_image: list[str], learned: Replacements, level: Level) -> list[tuple[str, str]]:
    """(replaced, put in) of every candidate for the first caption."""
    found = fillings_of(learned, parse(captions_of_image), level)
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
    taught = replacements.learn(map(parse, images))
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
    read = [parse(captions_of_image) for captions_of_image in images]
    taught = replacements.learn(read)
    plural = {"dogs", "women", "men", "boys"}
    for graphs in read:
        for graph in graphs:
            for level in (Level.WORD, Level.PHRASE):
                for one in taught.fillings(graph, facts_of(graphs), level):
                    for new in one.texts:
                        assert (one.slot.text in plural) == (new in plural)
                        text = substitute(graph.text, one.slot.start, one.slot.end, new)
                        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
                        assert not {one.slot.text, new} & {"chase", "wash"} or one.slot.part == "v"


def imbalance(sentences: list[str]) -> tuple[float, float]:
    """Sum over all sentences of how much more or less often rewrites say them than originals do: as the corpus suggests rewrites,
    and as they are chosen (over six draws). Every sentence has one colour, which is what is replaced."""
    images = [parse([one]) for one in sentences]
    taught = replacements.learn(images)
    fillings = [[one for one in fillings_of(taught, graphs, Level.WORD) if one.slot.part == "a"] for graphs in images]
    originals = Counter(sentences)
    suggested: dict[str, float] = dict.fromkeys(originals, 0)
    for sentence, (one,) in zip(sentences, fillings, strict=True):
        for text, share in zip(one.texts, one.weights / one.weights.sum(), strict=True):
            suggested[substitute(sentence, one.slot.start, one.slot.end, text)] += share
    chosen: Counter[str] = Counter()
    for seed in range(6):
        for sentence, taken in zip(
            sentences, balancing.choose(fillings, number=1, randomness=np.random.default_rng(seed)), strict=True
        ):
            assert len({(one.slot.start, one.text) for one in taken}) == len(taken)
            chosen[substitute(sentence, taken[0].slot.start, taken[0].slot.end, taken[0].text)] += 1
    return (
        sum(abs(suggested[one] - number) for one, number in originals.items()),
        sum(abs(chosen[one] / 6 - number) for one, number in originals.items()),
    )


def test_words_are_put_in_as_often_as_they_are_taken_out() -> None:
    """By their frequency alone common words would be replaced often and put in seldom."""
    colours = {"white": 240, "blue": 150, "red": 90, "green": 60, "yellow": 36, "purple": 24}
    suggested, chosen = imbalance([f"There is a {one} hat ." for one, number in colours.items() for _ in range(number)])
    assert suggested > 80
    assert chosen < 0.4 * suggested


def test_neighbours_are_balanced_too() -> None:
    """Each colour is as frequent as the others, but not on each thing: pairs of colour and thing must keep their frequency."""
    shares = {"hat": (120, 90, 60, 30), "ball": (30, 60, 90, 120)}
    colours = ("red", "blue", "green", "black")
    suggested, chosen = imbalance(
        [
            f"There is a {colour} {thing} ."
            for thing, numbers in shares.items()
            for colour, number in zip(colours, numbers, strict=True)
            for _ in range(number)
        ]
    )
    assert suggested > 50
    assert chosen < 0.5 * suggested


def test_learning_and_choosing_are_deterministic(learned: Replacements, tmp_path: Path) -> None:
    """Learned again, or read from the file, it suggests the same; and the same is chosen."""
    images = [parse(captions_of_image) for captions_of_image in IMAGES]
    again = replacements.learn(images)
    learned_file.save(again, tmp_path / "learned.npz")
    learned_file.save(learned, tmp_path / "same.npz")
    assert (tmp_path / "learned.npz").read_bytes() == (tmp_path / "same.npz").read_bytes()
    from_file = learned_file.load(tmp_path / "learned.npz", "")
    assert from_file.spellings == learned.spellings == {}
    for level in (Level.WORD, Level.PHRASE):
        chosen = []
        for one in (learned, again, from_file):
            fillings = [fillings_of(one, graphs, level) for graphs in images]
            chosen.append(balancing.choose(fillings, number=3, randomness=np.random.default_rng(7)))
        assert chosen[0] == chosen[1] == chosen[2]
        assert sum(map(len, chosen[0])) > 256


def test_names_keep_their_capitals() -> None:
    """Most write "Frisbee" within a sentence; what opens one tells nothing."""
    said = (
        ["A dog bites a Frisbee ."] * 3 + ["a dog bites a frisbee", "Ball for a dog ."] + ["A dog bites a ball ."] * 3
    )
    learned = replacements.learn(parse([caption]) for caption in said)
    assert learned.spellings == {"frisbee": "Frisbee"}


@pytest.mark.parametrize("number", range(0, 64, 7))
def test_negatives_change_what_they_say_they_change(number: int, learned: Replacements) -> None:
    graphs = parse(captions(number))
    candidates = {
        Level.SENTENCE: [
            Rewrite(text, Level.SENTENCE)
            for text in ("Another one .", "a zebra runs", captions(number)[1], "a new one")
        ]
    }
    for level in (Level.PHRASE, Level.WORD):
        fillings = [fillings_of(learned, graphs, level)]
        found = balancing.choose(fillings, number=3, randomness=np.random.default_rng(number))[0]
        candidates[level] = [
            Rewrite(
                substitute(captions(number)[0], one.slot.start, one.slot.end, one.text),
                level,
                f"{one.slot.text}>{one.text}",
            )
            for one in found
        ]
    caption = rewritten(
        [Caption(text, phrases=((0, 2),)) for text in captions(number)],
        0,
        back_translated=[[Rewrite(text, Level.NONE, "apertium spa")] for text in ("A new one", "Another one")],
        candidates=candidates,
        positives=4,
        negatives=3,
        randomness=np.random.default_rng(number),
    )
    assert caption.phrases == ((0, 2),)
    assert [(one.text, one.origin) for one in caption.positives] == [
        (captions(number)[1], "same image"),
        ("A new one", "apertium spa"),
    ]
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
    assert substitute("A dog runs", 2, 5, "orange") == "An orange runs"
    assert substitute("an owl", 3, 6, "dog") == "a dog"
    assert substitute("Dogs run", 0, 4, "cats") == "Cats run"
    assert substitute("dogs run", 0, 4, "cats") == "cats run"
    assert substitute("the dog", 4, 7, "owl") == "the owl"
    assert substitute("an owl", 3, 6, "unicycle") == "a unicycle"
    assert substitute("a cat", 2, 5, "hourglass") == "an hourglass"
    # A name's capital is not what stands there instead, but the capital of a sentence or of a title is.
    assert substitute("An Asian woman", 3, 8, "young") == "A young woman"
    assert substitute("A dog . Asian women run", 8, 13, "young") == "A dog . Young women run"
    assert substitute("Two Dogs Run Fast", 4, 8, "cats") == "Two Cats Run Fast"


def test_similar_captions_are_of_other_images_and_no_duplicates() -> None:
    images = [["a black dog runs", "the dog"], ["a black dog runs"], ["a black dog sleeps"], ["two cats"]]
    found = similar_sentences.choose(images, number=2, randomness=np.random.default_rng(0))
    assert found[0] == [["a black dog sleeps"], ["a black dog sleeps"]]
    assert found[3] == [[]]
    # Twelve of thirteen words are the same.
    long = " ".join([*COLOURS, *THINGS, "tree", "house", "river", "boat"])
    nearly = similar_sentences.choose([[long], [f"{long} again"]], number=2, randomness=np.random.default_rng(0))
    assert nearly == [[[]], [[]]]


def test_a_caption_has_each_other_one_once_and_its_own_back_translation() -> None:
    image = [Caption(text) for text in ("a dog", "two cats", "two cats")]
    made = [
        rewritten(
            image,
            number,
            back_translated=[[Rewrite(f"another {other}", Level.NONE)] for other in range(3)],
            candidates={},
            positives=4,
            negatives=3,
            randomness=np.random.default_rng(0),
        )
        for number in range(3)
    ]
    assert [[one.text for one in caption.positives] for caption in made] == [
        ["two cats", "another 0"],
        ["a dog", "another 1"],
        ["a dog", "another 2"],
    ]


def test_words_go_together_by_lift_or_by_share() -> None:
    together = Together()
    for said in [("ball", "dog")] * 2 + [("dog", "park")] * 8 + [("cat", "park"), ("cat", "dog")] + [("park",)] * 8:
        together.add(said)
    assert together.go_together("dog", "ball"), "twice, and of 20 images 11 have a dog: a lift of 1.8"
    assert not together.go_together("dog", "cat"), "once"
    assert together.go_together("park", "dog"), "eight of its seventeen, though less than by chance"
    assert not together.go_together("park", "ball")


def test_what_may_be_true_as_well() -> None:
    known = Compatibility({"a": ["red", "maroon", "blue"], "n": ["man", "woman", "player", "dog"]})
    assert known.compatible("red", "a") == {"red", "maroon", "pink", "orange"}
    assert known.compatible("crimsonish", "a") == {"crimsonish"}
    assert known.compatible("man", "n") == {"man", "player"}


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


def test_stored_rewrites_are_many_and_deterministic(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert main(["rewrite", str(folder), "--negatives", "3", "--workers", "2"]) == 0
    assert load_manifest(folder).shards == before.shards
    assert main(["rewrite", str(folder), "--negatives", "3"]) == 0
    assert capsys.readouterr().out.endswith("already rewritten: 1\n")
    assert main(["rewrite", str(folder / "nowhere")]) == 2


def test_a_give_away_is_found_and_its_absence_too() -> None:
    """Rewrites that all have a tell-tale word are told apart; originals in other clothes are not."""

    def image(number: int, other: str) -> list[Caption]:
        return [Caption(captions(number)[0], (), (Rewrite(other, Level.WORD),))]

    told = [image(i % 64, captions(i % 64)[0].replace("runs", "hovers")) for i in range(200)]
    found = giveaways.measure(told, Level.WORD)
    assert found.accuracy > 0.95
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
