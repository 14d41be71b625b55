"""Scene graphs of captions: what the rules read, what WordNet knows, and how parsers are scored."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.preparation import scene_graphs, wordnet_extract
from unimo_ds.data.prepare.rewriting.compatibility import Compatibility
from unimo_ds.data.prepare.rewriting.scene_graph import rules, tagging, wordnet
from unimo_ds.data.prepare.rewriting.scene_graph.graph import AttributeKind, SceneGraph
from unimo_ds.data.prepare.rewriting.scene_graph.lists import words
from unimo_ds.utils.errors import UserError


def said(graph: SceneGraph) -> tuple[list[str], list[str], list[str]]:
    """Objects, attributes and relations as words."""

    def name(index: int | None) -> str:
        return "-" if index is None else graph.words(graph.objects[index])

    return (
        [graph.words(one) for one in graph.objects],
        [f"{graph.words(one)} {name(one.owner)}" for one in graph.attributes],
        [f"{name(one.subject)} {graph.words(one)} {name(one.target)}" for one in graph.relations],
    )


@pytest.mark.parametrize(
    ("caption", "objects", "attributes", "relations"),
    [
        (
            "A small brown terrier leaps over a fallen log .",
            ["terrier", "log"],
            ["small terrier", "brown terrier", "fallen log"],
            ["terrier leaps over log"],
        ),
        (
            "Three old women sitting on a park bench in front of the red brick church",
            ["women", "park bench", "church"],
            ["Three women", "old women", "red church", "brick church"],
            ["women sitting on park bench", "women in front of church"],
        ),
        (
            "TWO KIDS WATCH A BLACK AND WHITE PONY .",
            ["KIDS", "PONY"],
            ["TWO KIDS", "BLACK PONY", "WHITE PONY"],
            ["KIDS WATCH PONY"],
        ),
        (
            "A group of cyclists in yellow riding past a swimming pool while a nurse waves .",
            ["cyclists", "swimming pool", "nurse"],
            ["group of cyclists", "yellow cyclists"],
            ["cyclists riding past swimming pool", "nurse waves -"],
        ),
        ("The goats chase each other .", ["goats"], [], ["goats chase -"]),
        (
            "A man's horse drinks water from a bucket",
            ["man", "horse", "water", "bucket"],
            [],
            ["horse drinks water", "horse from bucket"],
        ),
    ],
)
def test_captions_are_read(caption: str, objects: list[str], attributes: list[str], relations: list[str]) -> None:
    assert said(rules.parse_caption(caption)) == (objects, attributes, relations)


def test_verbs_prepositions_and_numbers_are_kept_apart() -> None:
    graph = rules.parse_caption("Two boys are sitting down on top of a rock")
    (relation,) = graph.relations
    assert relation.verb is not None
    assert relation.preposition is not None
    assert graph.text[slice(*relation.verb)] == "sitting"
    assert graph.text[slice(*relation.preposition)] == "on top of"
    assert relation.tag == "VBG"
    assert [one.kind for one in graph.attributes] == [AttributeKind.NUMBER]
    assert [one.tag for one in graph.objects] == ["NNS", "NN"]


@pytest.mark.parametrize(
    "caption", ["", " . ", "!!", "of", "is", "and and and", "a the a", "12 34", "très déjà 犬が走る"]
)
def test_odd_captions_are_read_without_complaint(caption: str) -> None:
    assert rules.parse_caption(caption).text == caption


WORDS = st.sampled_from(
    sorted(words("a dog dogs run running red and , of the two in front is who it 's . covered Black group"))
)


@settings(max_examples=150)
@given(st.lists(WORDS, max_size=14))
def test_every_node_lies_in_the_caption_and_points_at_an_object(drawn: list[str]) -> None:
    graph = rules.parse_caption(" ".join(drawn))
    for node in (*graph.objects, *graph.attributes, *graph.relations):
        assert 0 <= node.start < node.end <= len(graph.text)
        assert graph.words(node) == graph.words(node).strip()
    for index in [one.owner for one in graph.attributes] + [
        index for one in graph.relations for index in (one.subject, one.target)
    ]:
        assert index is None or 0 <= index < len(graph.objects)
    ends = [one.end for one in graph.objects]
    assert all(end <= one.start for end, one in zip(ends, graph.objects[1:], strict=False))


def test_parsing_does_not_depend_on_order() -> None:
    captions = ["A dog runs .", "Two cats sleep on a mat", "A dog runs ."]
    assert rules.parse(captions)[::-1] == rules.parse(captions[::-1])


@pytest.mark.parametrize(
    ("one", "other", "part", "expected"),
    [
        ("dogs", "puppy", "n", True),
        ("dog", "animals", "n", True),
        ("couch", "sofa", "n", True),
        ("dog", "cat", "n", False),
        ("boy", "girl", "n", False),
        ("tennis ball", "ball", "n", True),
        ("women", "woman", "n", True),
        ("jogging", "runs", "v", True),
        ("running", "sitting", "v", False),
        ("big", "large", "a", True),
        ("red", "blue", "a", False),
    ],
)
def test_words_that_would_stay_true(one: str, other: str, part: str, expected: bool) -> None:
    found = Compatibility({part: [one, other]})
    assert (other in found.compatible(one, part)) is expected
    assert (one in found.compatible(other, part)) is expected


def test_topics() -> None:
    topics = {
        word: wordnet.load().topic(word) for word in ("man", "children", "terrier", "street sign", "skateboarder")
    }
    assert topics == {
        "man": "person",
        "children": "person",
        "terrier": "animal",
        "street sign": "thing",
        "skateboarder": "person",
    }


def test_tagger_knows_captions() -> None:
    tags = {token.word: token.tag for token in tagging.tag("A dog jumps near a vegetable stand and girls dance .")}
    assert tags == {
        "a": "DT", "dog": "NN", "jumps": "VBZ", "near": "IN", "vegetable": "NN", "stand": "NN", "and": "CC", "girls": "NNS",
        "dance": "VBP", ".": ".",
    }  # fmt: skip


def _write_database(folder: Path) -> None:
    """A WordNet of two animals: synsets 00000010 (animal) and 00000020 (dog, a kind of it)."""
    header = "  1 This software and database is being provided to you.\n"
    (folder / "data.noun").write_text(
        header + "00000010 05 n 01 animal 0 001 ~ 00000020 n 0000 | a beast\n"
        "00000020 05 n 02 dog 0 domestic_dog 0 001 @ 00000010 n 0000 | a pet\n"
        "00000030 05 n 01 yeti 0 001 @ 00000010 n 0000 | unknown to all\n"
    )
    (folder / "index.noun").write_text(
        header + "animal n 1 1 ~ 1 1 00000010\ndog n 1 1 @ 1 0 00000020\nyeti n 1 1 @ 1 0 00000030\n"
    )
    (folder / "noun.exc").write_text("doggen dog\nyetim yeti\n")
    for name in ("verb", "adj"):
        for file in (f"data.{name}", f"index.{name}", f"{name}.exc"):
            (folder / file).write_text(header if file.startswith(("data", "index")) else "")


def test_the_extract_is_made_from_the_database_files(tmp_path: Path) -> None:
    _write_database(tmp_path)
    output = tmp_path / "small.tsv.gz"
    assert wordnet_extract.extract(tmp_path, output, known=frozenset(["dog"])) == 2
    small = wordnet.WordNet(gzip.decompress(output.read_bytes()).decode().splitlines())
    assert small.bases("doggen", "n") == ("dog",)
    assert small.bases("yeti", "n") == ()
    assert small.senses("animal", "n")[0] < small.senses("dogs", "n")[1], "a dog is an animal"
    assert small.topic("dogs") == "animal"
    first = output.read_bytes()
    wordnet_extract.extract(tmp_path, output, known=frozenset(["dog"]))
    assert output.read_bytes() == first
    with pytest.raises(UserError, match=r"has no index\.noun"):
        wordnet_extract.extract(tmp_path / "nowhere", output, known=frozenset())


def test_scores_count_what_is_found_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "captions.tsv").write_text("x.jpg\tA red fox sits on a log .\nx.jpg\tGeese\n")
    marks = tmp_path / "marks.tsv"
    marks.write_text(
        "# by hand\nx.jpg\t0\ttest\ta1:2-5 o1:6-9 r1>2:10-17 o2:20-23\nx.jpg\t1\ttest\to1:0-5 n1:0-5\n",
        encoding="utf-8",
    )
    graphs = [one.graph for one in scene_graphs.read_marks(marks, tmp_path / "captions.tsv")]
    found = rules.parse([graph.text for graph in graphs])
    scores = scene_graphs.score(graphs, found)
    assert (scores["object"].right, scores["object"].marked, scores["object"].found) == (3, 3, 3)
    assert scores["attribute"].f1 == scores["relation, subject too"].f1 == 1
    assert (scores["number"].precision, scores["number"].recall) == (0, 0)
    empty = scene_graphs.score(graphs, [SceneGraph(graph.text) for graph in graphs])
    assert empty["object"].recall == 0
    command = [
        sys.executable,
        "-m",
        "benchmarks.preparation.scene_graphs",
        "--marks",
        str(marks),
        "--captions",
    ]
    done = subprocess.run([*command, str(tmp_path / "captions.tsv")], capture_output=True, text=True, check=True)
    assert "| object | 3 | 3 | 1.000 | 1.000 | 1.000 |" in done.stdout
    for line, message in (
        ("y.jpg\t0\ttest\to1:0-1", "no caption 0 of y.jpg"),
        ("x.jpg\t1\ttest\to1:0-9", "no node of this caption"),
        ("x.jpg\t1", "is not FILE, NUMBER, SET and NODES"),
        ("x.jpg\t1\ttest\ta7:0-5", "no object 7"),
    ):
        marks.write_text(line + "\n")
        with pytest.raises(UserError, match=message):
            list(scene_graphs.read_marks(marks, tmp_path / "captions.tsv"))
