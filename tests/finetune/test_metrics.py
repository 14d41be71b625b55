"""Each metric equals its package's own published example."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from unimo_ds.finetune.metrics import captions, classification, conversation, questions
from unimo_ds.finetune.metrics.summaries import rouge
from unimo_ds.finetune.results import join_seeds, summarise


def test_accuracy_as_in_scikit_learns_documentation():
    assert classification.accuracy([0, 2, 1, 3], [0, 1, 2, 3]) == 0.5


def test_matthews_as_in_scikit_learns_documentation():
    assert classification.matthews([+1, -1, +1, +1], [+1, +1, +1, -1]) == pytest.approx(-0.3333, abs=1e-4)
    with warnings.catch_warnings(action="error"):
        for predicted, true in (([1, 1, 1], [0, 1, 1]), ([0, 1, 1], [1, 1, 1]), ([1, 1], [1, 1])):
            assert classification.matthews(predicted, true) == 0.0


def test_correlations_as_in_scipys_documentation():
    pearson, _ = classification.correlations([10, 9, 2.5, 6, 4, 3, 2], [1, 2, 3, 4, 5, 6, 7])
    assert pearson == pytest.approx(-0.828503883588428, rel=1e-12)
    _, spearman = classification.correlations([5, 6, 7, 8, 7], [1, 2, 3, 4, 5])
    assert spearman == pytest.approx(0.8207826816681233, rel=1e-12)
    with warnings.catch_warnings(action="error"):
        assert classification.correlations([1, 1, 1], [0, 1, 2]) == (0.0, 0.0)
        assert classification.correlations([0, 1, 2], [1, 1, 1]) == (0.0, 0.0)
    assert classification.correlations([1, 2, float("nan")], [0, 1, 2]) == (0.0, 0.0)
    assert classification.correlations([1, 2, float("inf")], [0, 1, 2]) == (0.0, 0.0)


def test_rouge_as_in_the_packages_readme():
    """8 words against 9, 6 of them shared, 5 in order."""
    text, reference = "The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog"
    found = rouge([text], [reference])
    assert found["rouge_1"] == pytest.approx(2 * 0.75 * (6 / 9) / (0.75 + 6 / 9))
    assert found["rouge_l"] == pytest.approx(2 * 0.625 * (5 / 9) / (0.625 + 5 / 9))
    assert found["rouge_2"] == pytest.approx(2 * 2 / (7 + 8)), "two pairs of words of 7 and 8"
    assert rouge(["dogs running"], ["dog runs"])["rouge_1"] == 1.0, "stems are compared"


def test_rouge_l_takes_lines_as_sentences():
    reference = "one two three\nfour five six"
    swapped, in_order = "four five six\none two three", "one two three\nfour five six"
    assert rouge([swapped], [reference])["rouge_l"] == 1.0, "each sentence finds its own"
    assert rouge([swapped.replace("\n", " ")], [reference.replace("\n", " ")])["rouge_l"] == 0.5
    assert rouge([in_order], [reference])["rouge_l"] == 1.0


def test_bleu_as_in_papinenis_paper():
    """The paper's candidate 1 and its three references; the value is that of NLTK's documentation."""
    candidate = "It is a guide to action which ensures that the military always obeys the commands of the party"
    references = [
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is the guiding principle which guarantees the military forces always being under the command of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    ]
    found, _ = captions.measure([candidate], [references], tokenised=True, meteor=False)
    assert found["bleu_4"] == pytest.approx(0.5045666840058485, rel=1e-6)


def test_references_without_a_word_are_measured():
    found, _ = captions.measure(["a dog runs", "a cat"], [["..."], ["!"]], tokenised=False, meteor=False)
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-9)
    assert captions.measure(["a dog"], [[""]], tokenised=True, meteor=False)[0]["cider"] == 0


def test_rouge_l_of_captions_as_in_lins_paper():
    """ "police killed the gunman": three of four words in order, then two of four."""
    reference = ["police killed the gunman"]
    for text, expected in (("police kill the gunman", 0.75), ("the gunman kill police", 0.5)):
        found, _ = captions.measure([text], [reference], tokenised=True, meteor=False)
        assert found["rouge_l"] == pytest.approx(expected)


def test_a_perfect_caption_has_the_highest_cider():
    texts = ["a dog runs on grass", "two men ride a horse", "a red car on the street"]
    found, _ = captions.measure(texts, [[text] for text in texts], tokenised=True)
    assert found["cider"] == pytest.approx(10.0)
    assert found["bleu_4"] == pytest.approx(1.0, abs=1e-6)
    if captions.has_java():
        assert found["meteor"] == pytest.approx(1.0, abs=1e-6)
    worse, _ = captions.measure(list(reversed(texts)), [[text] for text in texts], tokenised=True, meteor=False)
    assert worse["cider"] < 5


IMPERFECT = json.loads((Path(__file__).parent / "data" / "imperfect_captions.json").read_text())
"""Captions with few or many words of their references, and the figures of `benchmarks/caption_reference.py`, which runs
pycocoevalcap's own evaluation in an environment of its own."""


@pytest.mark.parametrize("tokenised", [True, False])
def test_imperfect_captions_have_the_figures_of_the_reference(tokenised):
    if not tokenised and not captions.has_java():
        pytest.skip("PTB tokens and METEOR need Java")
    written = [one["written"] for one in IMPERFECT["sets"]]
    references = [one["references"] for one in IMPERFECT["sets"]]
    found, notes = captions.measure(written, references, tokenised=tokenised, meteor=not tokenised)
    expected = IMPERFECT["reference"]["scored" if tokenised else "evaluated"]
    assert found == pytest.approx({name.lower(): value for name, value in expected.items()}, rel=1e-9)
    assert notes == ({} if tokenised else {"tokenised": "PTB (Stanford CoreNLP)"})
    assert all(0.1 < value < 2 for value in expected.values()), "neither perfect nor worthless"
    shuffled, _ = captions.measure([*written[1:], written[0]], references, tokenised=tokenised, meteor=False)
    assert all(shuffled[name] < 0.8 * found[name] for name in shuffled), "the figures tell captions from each other"


def test_texts_are_lower_cased_and_lose_their_punctuation(monkeypatch):
    found, _ = captions.tokenise({0: ["A dog, running!  ", ""], 1: ["It's 3 o'clock (now)."]})
    assert found[0] == ["a dog running", ""]
    monkeypatch.setattr(captions, "has_java", lambda: False)
    plain, rule = captions.tokenise({0: ["A dog, running!  "]})
    assert plain == {0: ["a dog running"]}
    assert "no Java" in rule
    measured, notes = captions.measure(["a dog"], [["a dog"]])
    assert "meteor" not in measured
    assert "needs Java" in notes["meteor"]


_MEASURE = (
    "from unimo_ds.finetune.metrics import captions; print(captions.measure(['a dog'], [['a dog']], tokenised={}))"
)


def test_a_java_that_fails_is_told_and_makes_no_figures(tmp_path):
    """pycocoevalcap would take what it says for words, and wait for itself for ever."""
    (tmp_path / "java").write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    (tmp_path / "java").chmod(0o755)

    def measured(tokenised: bool) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = [sys.executable, "-c", _MEASURE.format(tokenised)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    said = "words cannot be split: Java failed (no memory); cure it, or take Java off the PATH for a plain rule instead"
    assert measured(tokenised=False).stderr.splitlines()[-1].endswith(said)
    found = measured(tokenised=True)
    assert found.returncode == 0
    assert "'meteor': 'not measured: Java failed (no memory)'" in found.stdout
    assert "'rouge_l': 1.0" in found.stdout


@pytest.mark.skipif(not captions.has_java(), reason="PTB tokens need Java")
def test_words_are_those_of_the_packages_own_tokenizer():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [
        "A dog, running!  ",
        "It's 3 o'clock (now)... -- [x]",
        "caf\u00e9 na\u00efve \U0001f642",
        "``a'' \"b\"; 3.5, 1,000",
        ".",
    ]
    official = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(texts)})
    assert captions.tokenise({number: [text] for number, text in enumerate(texts)})[0] == official


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The two dogs!", "2 dogs"),
        ("dont know", "don't know"),
        ("half/half", "half half"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("a t-shirt.", "t shirt"),
        ("none", "0"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
    ],
)
def test_vqa_answers_are_normalised_as_officially(answer, expected):
    assert questions.normalise(answer) == expected


def test_vqa_accuracy_is_the_official_one():
    """With n of ten people for an answer the accuracy is 0.3, 0.6, 0.9 and 1 (the ten choices of nine, averaged)."""
    for count, expected in ((0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)):
        people = ["red"] * count + ["blue"] * (10 - count)
        assert questions.accuracy("red", people) == pytest.approx(expected)
    assert questions.accuracy("the red.", ["red"] * 9 + ["blue"]) == 1.0
    assert questions.accuracy("the red.", ["red"] * 10) == 0.0, "where all agree nothing is normalised"
    assert questions.accuracy("red\tdog\n", ["red dog"] * 10) == 1.0, "but white space is"


def test_coqa_f1_as_its_script_counts():
    assert conversation.f1("The cat, a dog", "cat dog") == 1.0
    assert conversation.f1("red cat", "cat") == pytest.approx(2 / 3)
    assert conversation.f1("cat cat dog", "cat cat") == pytest.approx(4 / 5), "each as often as it is said"
    assert conversation.f1("", "") == 1.0
    assert conversation.f1("", "cat") == 0.0
    # Leaving out the only one who agrees leaves nothing: (0 + 1 + 1) / 3.
    assert conversation.turn_f1("cat", ["cat", "dog", "cow"]) == pytest.approx(2 / 3)
    assert conversation.turn_f1("cat", ["cat"]) == 1.0


def test_confidence_interval_of_seeds():
    """Mean 2, deviation 1, three values: t of 2 degrees of freedom at 97.5 % is 4.302653 (any table)."""
    found = summarise([1.0, 2.0, 3.0])
    assert found["mean"] == found["median"] == 2.0
    assert found["confidence_95"] == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    alone = summarise([0.5])
    assert alone["mean"] == 0.5
    assert alone["confidence_95"] is None
    joined = join_seeds([{"metrics": {"a": 1.0, "b": 0.0}}, {"metrics": {"a": 0.0}}])
    assert set(joined) == {"a"}
