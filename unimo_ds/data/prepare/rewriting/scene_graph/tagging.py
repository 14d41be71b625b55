"""Part-of-speech tags (Penn Treebank) of a caption's words: TextBlob's tagger, then corrections for the style of captions.

The tagger's lexicon is in its package; nothing is downloaded. Made for newspapers, it takes verbs for plurals ("a dog leaps
over") and nouns for verbs ("a vegetable stand") in captions. The rules here correct such mistakes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from unimo_ds.data.prepare.rewriting.scene_graph import wordnet
from unimo_ds.data.prepare.rewriting.scene_graph.lists import words

_TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*|['’](?:s|re|ll|ve|d|t)\b|[^\w\s]")
_CLOSED = {
    "DT": "a an the this that these those some any each every another both all no either neither",
    "CD": "one two three four five six seven eight nine ten eleven twelve",
    "PRP$": "its his her their my our your",
    "PRP": "it he she they him them who which whom itself himself herself themselves",
    "JJ": "african american asian indian german oriental caucasian chinese japanese european hispanic muslim",
    "IN": (
        "in on at by with near over under above below behind beside between among through across into onto off from for of along "
        "around against toward towards inside beneath underneath amidst past via within without atop like during before after "
        "besides alongside upon up down out about"
    ),
    "CC": "and or but",
    "WH": "while as when where because so if than then whose",
    "BE": "is are was were be been being am",
    "MD": "can could will would may might must should",
    "RB": "outside outdoors indoors together very away back just nearby upside sideways not also too apart forward",
}
_CLOSED_TAGS = {word: tag for tag, words in _CLOSED.items() for word in words.split()}
QUANTIFIERS = words("several many few numerous various multiple")
COLOURS = words("""
black white red blue green yellow brown orange pink purple gray grey tan blond blonde golden beige silver gold navy
maroon turquoise teal khaki camouflage plaid
""")
_ONLY_NOUNS = words("""
building clothing wedding ceiling railing evening morning thing something anything nothing king ring string spring
wing sling swing awning lightning pudding sibling duckling stocking earring mooring housing crossing sidewalk
""")
_PLURAL_DETERMINERS = words("these those some all both several many few")
_PLURAL_SENSE = words("people couple crowd team group family class")
_PHRASE_ENDS = words(". , IN BE CC WH TO VBZ VBG VBP VB MD VBN VBD DT")
"""Tags of what may follow a noun phrase."""


@dataclass(frozen=True)
class Token:
    start: int
    end: int
    word: str
    """In lower case."""
    tag: str


def tokenize(text: str) -> list[tuple[int, int, str]]:
    """(start, end, lower-case word or punctuation mark) of each token."""
    return [(match.start(), match.end(), match.group().lower()) for match in _TOKEN.finditer(text)]


def tag(text: str) -> list[Token]:
    """The caption's tokens. Besides Penn tags: BE (forms of "be"), WH (words that start a clause), "." or "," (punctuation)."""
    spans = tokenize(text)
    words = [word for _, _, word in spans]
    tags = [found for _, found in _tagger()(words)]
    for i, word in enumerate(words):
        if word in _CLOSED_TAGS:
            tags[i] = _CLOSED_TAGS[word]
        elif word.isdigit():
            tags[i] = "CD"
        elif tags[i].startswith("NNP"):
            tags[i] = "NN" + ("S" if tags[i].endswith("S") else "")
    _correct(words, tags)
    return [Token(start, end, word, found) for (start, end, word), found in zip(spans, tags, strict=True)]


@functools.cache
def _tagger() -> Callable[[list[str]], list[list[str]]]:
    # Imported late, since it takes a second or two.
    from textblob.en import parser

    def find(words: list[str]) -> list[list[str]]:
        return parser.find_tags(words) if words else []  # type: ignore[no-any-return]

    return find


def _correct(words: list[str], tags: list[str]) -> None:
    lexicon = wordnet.load()
    plural = False
    for i, (word, found) in enumerate(zip(words, tags, strict=True)):
        before = tags[i - 1] if i else "."
        after = tags[i + 1] if i + 1 < len(tags) else "."
        if found in ("DT", "CD", "PRP$") or word in QUANTIFIERS:
            plural = (found == "CD" and word != "one") or word in _PLURAL_DETERMINERS or word in QUANTIFIERS
        verb = bool(lexicon.bases(word, "v"))
        # In "a bicyclist in blue goes" the colour does not modify the next word.
        dressed = i > 1 and words[i - 1] in COLOURS and words[i - 2] == "in"
        noun = bool(lexicon.bases(word, "n"))
        if word in ("other", "another") and i and words[i - 1] in ("each", "one"):
            tags[i - 1] = tags[i] = "PRP"
        elif found in ("NNS", "VBZ") and verb and i and words[i - 1] == "another":
            tags[i - 1], tags[i] = "PRP", "VBZ"
        elif dressed and verb and (word.endswith("ing") or found == "VBZ"):
            tags[i] = "VBG" if word.endswith("ing") else "VBZ"
        elif word in ("next", "close") and i + 1 < len(words) and words[i + 1] == "to":
            tags[i] = "IN"
        elif word.endswith("ing") and word in _ONLY_NOUNS:
            tags[i] = (
                "VBG" if word == "building" and before in ("NN", "NNS", "BE") and after in ("DT", "PRP$") else "NN"
            )
        elif found == "NN" and word.endswith("ing") and verb and before in ("NN", "NNS", "BE", "PRP"):
            if after not in ("NN", "NNS") or before == "BE":
                tags[i] = "VBG"
        elif found == "NNS" and verb and before == "NN" and not plural and after != "BE":
            if _singular_subject(words, tags, i, lexicon, noun_follows=after in ("NN", "NNS")):
                tags[i] = "VBZ"
        elif (
            found == "VBZ"
            and noun
            and (before in ("DT", "PRP$", "JJ", "CD", "POS", "IN") or (plural and before == "NN"))
        ):
            tags[i] = "NNS" if word.endswith("s") else found
        elif found in ("NN", "JJ") and before == "NNS" and verb and not word.endswith("ing") and after != "BE":
            tags[i] = "VBP" if not word.endswith("ed") else "VBN"
        elif found in ("VB", "VBP") and before in ("DT", "JJ", "PRP$", "NN", "POS", "IN", "VBN") and noun:
            # "a skate park", "vegetable stand"; but "the couple watch"
            if before != "NN" or words[i - 1] not in _PLURAL_SENSE:
                tags[i] = "NN"
        elif (
            found in ("RB", "JJ")
            and before in ("DT", "PRP$")
            and noun
            and after in _PHRASE_ENDS
            and word not in COLOURS
        ):
            tags[i] = "NN"
        elif word == "like" and before in ("PRP", "NNS"):
            tags[i] = "IN"
    for i, found in enumerate(tags):
        if found in ("VB", "VBP") and i and tags[i - 1] == "TO":
            tags[i] = "VB"
        elif found == "VBD" and words[i].endswith("ed") and i and tags[i - 1] in ("DT", "IN", "JJ", "CC"):
            tags[i] = "VBN"


def _singular_subject(
    words: list[str], tags: list[str], i: int, lexicon: wordnet.WordNet, *, noun_follows: bool
) -> bool:
    """Whether the noun before a word in -s is a singular subject, not the first part of a compound plural."""
    alive = lexicon.topic(words[i - 1]) in ("person", "animal")
    if noun_follows:
        return alive
    start = i - 1
    while start > 0 and tags[start - 1] in ("NN", "JJ", "VBN", "VBG"):
        start -= 1
    return alive or (start > 0 and words[start - 1] in ("a", "an", "one", "another", "this"))
