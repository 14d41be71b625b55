"""VQA's accuracy as in its official evaluation: an answer counts more the more of the other annotators gave it, up to three.

Answers are normalised before they are compared: punctuation, number words, articles, missing apostrophes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
"""Every period not followed by a digit: the official pattern is meant to look behind as well, but does not."""
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = ("a", "an", "the")
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't
'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll
who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""


def _without_one_apostrophe() -> dict[str, str]:
    """Contractions by their forms that lack one apostrophe; and the one entry of the official table that removes one."""
    table = {"somebody'd": "somebodyd"}
    for word in _CONTRACTIONS.split():
        for place, letter in enumerate(word):
            if letter == "'":
                table[word[:place] + word[place + 1 :]] = word
    return table


_COMPLETED = _without_one_apostrophe()


def strip_punctuation(text: str) -> str:
    """Punctuation is deleted if it is next to a space (or the text has a number with a comma), else replaced by a space."""
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        is_loose = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if is_loose or has_number else " ")
    return _PERIOD.sub("", result)


@functools.lru_cache(maxsize=2**15)  # most annotators give the same few answers
def normalise(answer: str) -> str:
    """The form in which answers are compared if annotators disagree."""
    text = strip_punctuation(_tidy(answer))
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_COMPLETED.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(answer: str, people: Sequence[str]) -> float:
    """Mean, over leaving out each annotator in turn, of min(1, others who gave this answer / 3).

    answer: the system's. people: the annotators', usually ten. If all agree, nothing is normalised (the correction of 2021).
    """
    found, given = _tidy(answer), [_tidy(one) for one in people]
    if len(set(given)) > 1:
        found, given = normalise(found), [normalise(one) for one in given]
    agreeing = sum(one == found for one in given)
    return sum(min(1.0, (agreeing - (one == found)) / 3) for one in given) / len(given)


def _tidy(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
