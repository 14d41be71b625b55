"""Can a reader who never sees the image tell rewrites from originals? If so, a model can learn that instead of looking.

    python -m benchmarks.preparation.giveaways data/train

Per level, a linear classifier over word and part-of-speech n-grams is trained on captions with one rewrite each, on part of
the images, and judged on others. Balanced accuracy 50 %: nothing is given away.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold

from unimo_ds.data.prepare.rewriting.scene_graph import tagging
from unimo_ds.data.schema import Caption, Kind, Level
from unimo_ds.data.storage import manifest, shards
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.running import run_command

_STRENGTHS = (0.1, 1.0, 10.0)
"""Inverse regularisation strengths; the best one counts, so that the test is not too easy to pass."""
_FOLDS = 10
_MOST = 20_000
"""Maximum of captions."""


@dataclass(frozen=True)
class Giveaway:
    level: Level
    num_pairs: int
    """Captions with a rewrite of this level."""
    accuracy: float
    """Balanced accuracy on held-out images, the best over features and strengths."""
    by_features: dict[str, float]


def measure(captions_of_images: Iterable[Sequence[Caption]], level: Level, *, folds: int = 2) -> Giveaway:
    """Train and evaluate on the first rewrite of each caption; no image is on both sides.

    folds: number of the ten folds to evaluate.

    Raises:
        UserError: fewer than 100 captions have a rewrite of this level.
    """
    texts: list[str] = []
    labels: list[int] = []
    groups: list[int] = []
    for image, captions in enumerate(captions_of_images):
        for caption in captions:
            rewrite = next((one.text for one in caption.negatives if one.level is level), None)
            if rewrite is not None and len(texts) < 2 * _MOST:
                texts += [caption.text, rewrite]
                labels += [0, 1]
                groups += [image, image]
    if len(texts) < 200:
        raise UserError(f"only {len(texts) // 2} captions have rewrites of level {level.name.lower()}; 100 are needed")
    features = {
        "words": _table(texts, ngrams=(1, 3), least=3),
        "words and tags": _table(
            [" ".join(one.tag for one in tagging.tag(text)) for text in texts], ngrams=(2, 4), least=5
        ),
    }
    features["words and tags"] = sparse.hstack([features["words"], features["words and tags"]]).tocsr()
    truth, groups_of = np.array(labels), np.array(groups)
    by_features = {
        name: max(_accuracy(table, truth, groups_of, strength, folds) for strength in _STRENGTHS)
        for name, table in features.items()
    }
    return Giveaway(level, len(texts) // 2, max(by_features.values()), by_features)


def _table(texts: list[str], *, ngrams: tuple[int, int], least: int) -> Any:
    vectorizer = TfidfVectorizer(
        token_pattern=r"\S+", lowercase=True, ngram_range=ngrams, min_df=least, sublinear_tf=True
    )
    return vectorizer.fit_transform(texts)


def _accuracy(table: Any, truth: Any, groups: Any, strength: float, folds: int) -> float:
    scores = []
    for fold, (train, test) in enumerate(GroupKFold(_FOLDS).split(table, truth, groups)):
        if fold == folds:
            break
        model = LogisticRegression(C=strength, max_iter=300).fit(table[train], truth[train])
        scores.append(balanced_accuracy_score(truth[test], model.predict(table[test])))
    return float(np.mean(scores))


def _run(arguments: argparse.Namespace) -> int:
    listed = manifest.load_manifest(arguments.folder)
    captions_of_images = [
        stored.sample.captions
        for entry in listed.shards
        if entry.kinds.get("pair")
        for stored in shards.read_shard(arguments.folder / entry.file, pixels=False)
        if stored.sample.kind is Kind.PAIR
    ]
    worst = 0.0
    for level in (Level.SENTENCE, Level.PHRASE, Level.WORD):
        found = measure(captions_of_images, level, folds=arguments.folds)
        worst = max(worst, found.accuracy)
        shares = ", ".join(f"{name} {share:.3f}" for name, share in found.by_features.items())
        print(f"{level.name.lower()}: {found.num_pairs} captions, balanced accuracy {shares}")
    return int(worst > arguments.limit)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="data folder with rewrites")
    parser.add_argument("--folds", type=int, default=2, help="of ten, how many are judged (default 2)")
    parser.add_argument("--limit", type=float, default=0.55, help="exit status 1 above this (default 0.55)")
    raise SystemExit(run_command(lambda: _run(parser.parse_args())))
