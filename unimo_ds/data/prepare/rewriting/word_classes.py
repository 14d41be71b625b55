"""Words of captions and sentences, and the function words among them."""

from __future__ import annotations

import re
from collections.abc import Iterable

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_FUNCTION_WORDS = """
a an the this that these those some any another other each every all both several many few more most his her
its their my your our he she it they him them who whom which what while as if when where there here and or but
nor so than then is are was were be been being am has have had having do does did doing done can could will
would shall should may might must not no yes of to at by for from with without in on into onto out off up down
over under above below behind between among through across along around near next against toward towards
beside during before after about inside outside upon past one's s t
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_VOWEL_SOUND = re.compile(r"[aeiou]|hour|honest|heir|x-ray")
_NO_VOWEL_SOUND = re.compile(r"uni(?!n|m)|use|usu|uten|euro|ewe|one\b|once|u-|u\b")


def words_of(text: str) -> list[str]:
    """Lower-case words, in order."""
    return WORD.findall(text.lower())


def normal(text: str) -> str:
    """Only the text's words: equal for texts that differ in case, punctuation and spaces."""
    return " ".join(words_of(text))


def content_words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in words_of(text)} - FUNCTION_WORDS


def sounds_like_vowel(text: str) -> bool:
    """Whether this text takes "an"."""
    low = text.lower()
    return bool(_VOWEL_SOUND.match(low)) and not _NO_VOWEL_SOUND.match(low)
