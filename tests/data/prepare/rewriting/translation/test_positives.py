"""Which versions of a caption are positives: every reason, and what the measures see."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from unimo_ds.data.prepare.rewriting.scene_graph.rules import parse
from unimo_ds.data.prepare.rewriting.translation import wording
from unimo_ds.data.prepare.rewriting.translation.meaning import closeness, is_same_meaning
from unimo_ds.data.prepare.rewriting.translation.positives import back_translate
from unimo_ds.data.prepare.rewriting.translation.protocol import Pivot

CAPTION = "A little girl in a red dress plays with two dogs on the grass ."


@dataclass
class Said:
    """A translator of a book: what it says of a text is written down."""

    book: dict[str, list[str]]

    def translate(self, texts: Sequence[str], *, number: int = 1) -> list[list[str]]:
        return [self.book.get(text, [])[:number] for text in texts]


def pivot(name: str, versions: list[str], *, trusted: bool) -> Pivot:
    return Pivot(name, Said({CAPTION: ["there"]}), Said({"there": versions}), trusted)


def test_versions_are_kept_or_left_out_by_reason() -> None:
    usual = wording.learn(["A small girl in a red dress .", "A small girl runs .", "on the lawn"] * 2)
    trusted = [
        "A small girl in a red gown plays with two dogs on the lawn .",
        "a little GIRL in a red dress plays with two dogs on the grass",
        "She plays .",
        "Three men repair an old car in front of the house now .",
        "A small girl wearing red is playing with two dogs in the grass .",
        "Another caption of the image , girl dress dogs",
    ]
    literal = ["A small girl in a red dress plays with two dogs on the grass ."]
    unusual = ["A diminutive girl in a red dress plays with two dogs on the grass ."]
    other = ["A small girl in a red dress runs with two dogs on the grass ."]
    kept, counts = back_translate(
        [CAPTION],
        taken=[frozenset({"another caption of the image girl dress dogs"})],
        pivots=[
            pivot("trusted", trusted, trusted=True),
            pivot("literal", literal, trusted=False),
            pivot("unusual", unusual, trusted=False),
            pivot("other", other, trusted=False),
            Pivot("dumb", Said({}), Said({}), is_trusted=True),
        ],
        number=6,
        usual=wording.UsualPairs(usual.hashes),
    )
    assert [(one.text, one.origin) for one in kept[0]] == [
        (trusted[0], "trusted"),
        (literal[0], "literal"),
        (trusted[4], "trusted"),
    ]
    assert counts == {
        "kept, trusted": 2,
        "kept, literal": 1,
        "not translated": 1,
        "identical": 2,
        "too short": 1,
        "too far": 1,
        "unusual wording": 2,
    }


def test_no_more_than_wanted() -> None:
    versions = [f"A little girl in a red dress plays with two dogs on the grass {i}x ." for i in range(3)]
    versions = [one.replace("0x", "today").replace("1x", "there").replace("2x", "again") for one in versions]
    kept, counts = back_translate(
        [CAPTION, "no version of this"],
        taken=[frozenset(), frozenset()],
        pivots=[pivot("trusted", versions, trusted=True)],
        number=2,
        usual=wording.learn([]),
    )
    assert [len(one) for one in kept] == [2, 0]
    assert counts == {"kept, trusted": 2, "not translated": 1}


def test_closeness() -> None:
    assert closeness("A dog runs on the beach .", "a DOG runs on the beach") == 1
    assert closeness("Two boys ran .", "Two boys are running .") == 1
    assert closeness("A boy rides a bike", "A child is riding a bicycle") == 1
    assert closeness("A boy rides a bike", "A crowd of clocks spends some") == 0
    assert closeness("the", "of") == 1
    assert closeness("a dog", "a dog dog dog dog") == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("text", "other", "same"),
    [
        ("A little girl holds a drink .", "A small girl holds a drink .", True),
        ("A man is near the street .", "A man is near the road .", True),
        ("A man is near the road .", "A man is near the street .", False),
        ("A dog is running on the beach .", "A dog is running in the beach .", False),
        ("A dog sits next to a man .", "A dog sits beside a man .", True),
        ("A dog chases a cat .", "A cat chases a dog .", False),
        ("Two dogs play .", "A dog plays .", False),
        ("Two dogs play .", "Three dogs play .", False),
        ("A dog has a ball in its mouth .", "A dog has a ball in his mouth .", False),
        ("A man plays the guitar .", "A man touches the guitar .", False),
        ("A dog in the water .", "Dog in water .", False),
        ("Three boys are in the water .", "Three boys is in the water .", False),
        ("A black and white dog .", "A black dog .", False),
        ("A dog in a pool .", "A dog in a group .", False),
    ],
)
def test_close_agreement(text: str, other: str, same: bool) -> None:
    assert is_same_meaning(*parse([text, other])) is same


def test_usual_pairs_are_those_of_two_captions() -> None:
    usual = wording.learn(["a dog runs", "a dog runs", "a dog sleeps"])
    assert usual.allow("anything", "a dog runs")
    assert not usual.allow("anything", "a dog sleeps")
    assert usual.allow("the dog sleeps", "the dog runs")
    assert not usual.allow("a cat runs", "a cat dog runs")
    assert not wording.learn([]).allow("a cat", "a dog")
    assert wording.learn([]).allow("a cat", "A cat !")


def test_counting_in_parts_is_counting_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"a dog number {i % 7} runs" for i in range(40)]
    whole = wording.learn(texts).hashes
    monkeypatch.setattr(wording, "_AT_ONCE", 11)
    assert (wording.learn(texts).hashes == whole).all()
    monkeypatch.setattr(wording, "_MOST", 4)
    assert set(wording.learn(texts).hashes) < set(whole)
