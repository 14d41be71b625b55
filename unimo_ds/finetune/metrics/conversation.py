"""CoQA's F1 as in its official script: words that answer and reference share, after SQuAD's normalisation."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower-case words without punctuation and articles, separated by single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words; 1 if both have none, 0 if only one has none."""
    found, wanted = normalise(answer).split(), normalise(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


def turn_f1(answer: str, references: Sequence[str]) -> float:
    """Against several references: leave out each of them in turn, take the best of the others, and average.

    So a system is measured as a person is, who is only compared with the other people.
    """
    if len(references) == 1:
        return f1(answer, references[0])
    scores = [f1(answer, reference) for reference in references]
    return sum(max(scores[:left_out] + scores[left_out + 1 :]) for left_out in range(len(scores))) / len(scores)
