"""ROUGE of summaries, by `rouge-score` (with stemming; F1). Published figures come from Perl's ROUGE-1.5.5, which differs in
the second decimal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer


def rouge(written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """rouge_1, rouge_2 and rouge_l: means of F1. One sentence per line; if there is only one line, this is plain ROUGE-L."""
    names = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeLsum"}
    scorer = RougeScorer(list(names.values()), use_stemmer=True)
    found = [scorer.score(reference, text) for text, reference in zip(written, references, strict=True)]
    return {name: float(np.mean([one[inner].fmeasure for one in found])) for name, inner in names.items()}
