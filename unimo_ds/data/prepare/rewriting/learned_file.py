"""The result of `replacements.learn` on disk: one process learns, all tasks read. NumPy arrays, no pickle."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from unimo_ds.data.prepare.rewriting.compatibility import Compatibility, Together
from unimo_ds.data.prepare.rewriting.replacements import Replacements, make_group
from unimo_ds.utils.whole_file import write_made


def save(learned: Replacements, path: Path) -> None:
    """Write the file atomically; equal contents give equal bytes."""
    words: dict[str, int] = {}
    groups, shares, contexts, numbers, counts = [], [], [], [], []
    for number, (key, group) in enumerate(sorted(learned.groups.items())):
        groups.append([list(key), group.texts, group.heads])
        shares.append(group.share)
        for neighbour, seen in enumerate(group.contexts):
            for word, (rows, row_counts, _) in seen.items():
                contexts.append((number, neighbour, words.setdefault(word, len(words)), len(rows)))
                numbers.append(rows)
                counts.append(row_counts)
    together = learned.together
    of_word = [(words.setdefault(word, len(words)), count) for word, count in sorted(together.with_word.items())]
    pairs = [(words[one], words[other], count) for (one, other), count in sorted(together.with_both.items())]
    about = {
        "groups": groups,
        "vocabulary": learned.compatibility.vocabulary,
        "words": list(words),
        "images": together.images,
        "spellings": learned.spellings,
    }
    arrays: dict[str, Any] = {
        "about": np.frombuffer(json.dumps(about, separators=(",", ":")).encode(), np.uint8),
        "shares": np.concatenate([*shares, np.zeros(0)]),
        "contexts": np.array(contexts, np.int64).reshape(-1, 4),
        "numbers": np.concatenate([*numbers, np.zeros(0, np.int64)]).astype(np.int32),
        "counts": np.concatenate([*counts, np.zeros(0)]).astype(np.int32),
        "with_word": np.array(of_word, np.int64).reshape(-1, 2),
        "with_both": np.array(pairs, np.int32).reshape(-1, 3),
    }
    write_made(path, lambda stream: np.savez(stream, **arrays))


@functools.lru_cache(maxsize=1)
def load(path: Path, fingerprint: str) -> Replacements:
    """Read the output of `save`, cached for the next task. fingerprint: of the stage that the file belongs to."""
    with np.load(path, allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        shares, contexts, numbers, counts = (arrays[name] for name in ("shares", "contexts", "numbers", "counts"))
        with_word, with_both = arrays["with_word"].tolist(), arrays["with_both"].tolist()
    words: list[str] = about["words"]
    groups, keys, at = {}, [], 0
    for key, texts, heads in about["groups"]:
        keys.append(tuple(key))
        groups[tuple(key)] = make_group(texts, heads, shares[at : at + len(texts)])
        at += len(texts)
    at = 0
    numbers, counts = numbers.astype(np.int64), counts.astype(np.float64)
    for number, neighbour, word, size in contexts.tolist():
        of_word = counts[at : at + size]
        groups[keys[number]].contexts[neighbour][words[word]] = (numbers[at : at + size], of_word, float(of_word.sum()))
        at += size
    together = Together(
        about["images"],
        Counter({words[word]: count for word, count in with_word}),
        Counter({(words[one], words[other]): count for one, other, count in with_both}),
    )
    return Replacements(groups, together, Compatibility(about["vocabulary"]), about["spellings"])
