"""Selects the rewrites of one caption from candidates: no negative may equal a caption or positive of the same image."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from unimo_ds.data.prepare.rewriting import word_classes
from unimo_ds.data.prepare.rewriting.scene_graph import names
from unimo_ds.data.schema import Caption, Level, Rewrite

NEGATIVE_LEVELS = (Level.SENTENCE, Level.PHRASE, Level.WORD)
SAME_IMAGE = "same image"
"""Origin of a positive that is another caption of the image."""


def rewritten(
    captions: Sequence[Caption],
    number: int,
    *,
    back_translated: Sequence[Sequence[Rewrite]],
    candidates: Mapping[Level, Sequence[Rewrite]],
    positives: int,
    negatives: int,
    randomness: np.random.Generator,
) -> Caption:
    """The image's caption `number` with its rewrites.

    back_translated: back-translations of every caption; those of other captions, also true of the image, cannot be negatives.
    positives: maximum of the image's other captions, in addition to back-translations. negatives: maximum per level.
    """
    caption = captions[number]
    normal = word_classes.normal(caption.text)
    others = [one.text for one in captions if word_classes.normal(one.text) != normal]
    others = list(dict.fromkeys(others))
    chosen = [others[i] for i in sorted(randomness.permutation(len(others))[:positives])]
    found = [Rewrite(one, Level.NONE, SAME_IMAGE) for one in chosen] + list(back_translated[number])
    of_image = [one.text for one in captions] + [one.text for of_caption in back_translated for one in of_caption]
    taken = set(map(word_classes.normal, of_image))
    kept: list[Rewrite] = []
    for level in NEGATIVE_LEVELS:
        num_kept = 0
        for one in candidates.get(level, ()):
            if num_kept == negatives:
                break
            normal = word_classes.normal(one.text)
            if normal not in taken:
                taken.add(normal)
                kept.append(one)
                num_kept += 1
    return dataclasses.replace(caption, positives=tuple(found), negatives=tuple(kept))


def substitute(text: str, start: int, end: int, new: str) -> str:
    """The text with `new` instead of [start, end), and a preceding a/an or a sentence-initial capital adjusted."""
    before = text[:start]
    article = re.search(r"\b([Aa])(n?)(\s+)$", before)
    if article:
        vowel = word_classes.sounds_like_vowel(new)
        before = before[: article.start()] + article.group(1) + ("n" if vowel else "") + article.group(3)
    if text[start].isupper() and names.is_by_place(text, start):
        new = new[0].upper() + new[1:]
    return before + new + text[end:]
