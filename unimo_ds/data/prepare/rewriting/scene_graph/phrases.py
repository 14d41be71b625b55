"""Splits captions into pieces: noun phrases, verbs, prepositions and separators of clauses."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from unimo_ds.data.prepare.rewriting.scene_graph import wordnet
from unimo_ds.data.prepare.rewriting.scene_graph.lists import phrases, words
from unimo_ds.data.prepare.rewriting.scene_graph.tagging import COLOURS, QUANTIFIERS, Token


class PieceKind(enum.Enum):
    NOUN = "noun phrase"
    VERB = "verb"
    BE = "form of be"
    PREPOSITION = "preposition"
    QUALITY = "adjective without a noun"
    AND = "and, or, comma"
    CLAUSE = "beginning of a clause"
    PRONOUN = "it, her, each other"
    OTHER = "anything else"


@dataclass(frozen=True)
class Piece:
    """Tokens [start, end)."""

    kind: PieceKind
    start: int
    end: int
    head: int = -1
    """NOUN: first token of the object's name."""
    number: tuple[int, int] | None = None
    """NOUN: tokens of the quantity."""
    qualities: tuple[tuple[int, int], ...] = ()
    """NOUN: tokens of each attribute."""


_COMPOUND_PREPOSITIONS = phrases("""
in front of, on top of, next to, close to, inside of, outside of, out of, off of, away from, up to, on to, in to,
at the top of, at the edge of, on the edge of, in the middle of, at the end of, on the side of, on the back of,
in the back of, at the side of, at the bottom of, on the other side of, in between, along side, in back of,
on the top of, at the base of, up against
""")
_QUANTITIES = words("group bunch number couple pair set lot lots crowd handful row line series variety pack")
_MATERIALS = words("""
wood metal brick stone concrete plastic cardboard leather rubber straw silver gold navy denim steel marble cement iron
cotton wool tile bamboo chrome tan
""")
_IN_PHRASE = frozenset(("JJ", "JJR", "JJS", "VBN", "VBG", "NN", "NNS", "CD"))


def cut(tokens: Sequence[Token]) -> list[Piece]:
    """The caption's pieces, from left to right; they cover all tokens."""
    pieces = []
    i = 0
    while i < len(tokens):
        piece = _piece(tokens, i)
        pieces.append(piece)
        i = piece.end
    return pieces


def _piece(tokens: Sequence[Token], i: int) -> Piece:
    tag, word = tokens[i].tag, tokens[i].word
    compound = _compound(tokens, i)
    if compound:
        return Piece(PieceKind.PREPOSITION, i, i + compound)
    if tag in ("DT", "PRP$", "POS") or tag in _IN_PHRASE or word in QUANTIFIERS:
        phrase = _noun_phrase(tokens, i)
        if phrase is not None:
            return phrase
    if word in ("'s", "’s"):
        return Piece(PieceKind.OTHER, i, i + 1)
    if tag == "BE":
        return Piece(PieceKind.BE, i, i + 1)
    if tag == "IN" and word not in ("as", "while", "that"):
        return Piece(PieceKind.PREPOSITION, i, i + 1)
    if tag.startswith("VB"):
        return Piece(PieceKind.VERB, i, i + 1)
    if tag in ("JJ", "JJR"):
        return Piece(PieceKind.QUALITY, i, i + 1)
    if tag == "CC" or tag == ",":
        return Piece(PieceKind.AND, i, i + 1)
    if tag == "PRP" and word not in ("who", "which"):
        return Piece(PieceKind.PRONOUN, i, i + 1)
    if tag in ("WH", "PRP", "."):
        return Piece(PieceKind.CLAUSE, i, i + 1)
    if tag == "TO":
        followed = i + 1 < len(tokens) and tokens[i + 1].tag.startswith("VB")
        return Piece(PieceKind.OTHER if followed else PieceKind.PREPOSITION, i, i + 1)
    return Piece(PieceKind.OTHER, i, i + 1)


def _compound(tokens: Sequence[Token], i: int) -> int:
    """Number of tokens of a multi-word preposition that starts here; 0: none."""
    for phrase in _COMPOUND_PREPOSITIONS:
        if tokens[i].word == phrase[0] and tuple(one.word for one in tokens[i : i + len(phrase)]) == phrase:
            return len(phrase)
    return 0


def _noun_phrase(tokens: Sequence[Token], start: int) -> Piece | None:
    i = start
    number: tuple[int, int] | None = None
    determined = False
    while i < len(tokens) and (tokens[i].tag in ("DT", "PRP$", "POS", "CD") or tokens[i].word in QUANTIFIERS):
        if tokens[i].tag == "CD" or tokens[i].word in QUANTIFIERS:
            number = (i, i + 1)
        determined = True
        i += 1
    quantity = _quantity(tokens, i)
    if quantity:
        inner = _noun_phrase(tokens, quantity)
        if inner is not None:
            return Piece(PieceKind.NOUN, start, inner.end, inner.head, (i, quantity), inner.qualities)
    first = i
    names: list[int] = []
    qualities: list[int] = []
    while i < len(tokens):
        tag, word = tokens[i].tag, tokens[i].word
        if tag in ("NN", "NNS"):
            # "two children shovel snow"; but "a Sooners jersey"
            if names and tokens[names[-1]].tag == "NNS" and tag == "NN" and tokens[start].word not in ("a", "an"):
                break
            names.append(i)
        elif tag == "CD" and names:
            break
        elif tag in ("JJ", "JJR", "JJS", "VBN") and not names:
            if not (_noun_follows(tokens, i + 1) or _colour_pair(tokens, i + 1)):
                break
            qualities.append(i)
        elif tag == "VBG" and not names:
            # "a frying pan", "matching white shirts"; but "two dogs playing", "reading a book"
            if not (determined or qualities or (i > 0 and tokens[i - 1].tag in ("IN", "CC"))) or not _noun_follows(
                tokens, i + 1
            ):
                break
            qualities.append(i)
        elif names or not (word == "very" or (qualities and _colour_pair(tokens, i))):
            break
        i += 1
    if not names:
        return None
    # `names` is a contiguous run of nouns at the end; leading ones may be attributes.
    head = names[0]
    while head < names[-1] and (
        tokens[head].word in _MATERIALS
        or (tokens[head].word in COLOURS and head == names[0])
        or tokens[head].word in ("giant", "light", "dark")
        or (tokens[head].word.endswith("ing") and wordnet.load().topic(tokens[names[-1]].word) in ("person", "animal"))
    ):
        qualities.append(head)
        head += 1
    # "swimming pool" and "frying pan" are names as a whole.
    if (
        qualities
        and tokens[qualities[-1]].tag == "VBG"
        and qualities[-1] == head - 1
        and _names_thing(tokens, head - 1, names[-1])
    ):
        head = qualities.pop()
    return Piece(PieceKind.NOUN, start, names[-1] + 1, head, number, _join(tokens, qualities, first))


def _names_thing(tokens: Sequence[Token], first: int, last: int) -> bool:
    """Whether an -ing word and its noun form one name: the -ing word is also a noun, and the noun is a thing."""
    return (
        bool(wordnet.load().bases(tokens[first].word, "n"))
        and tokens[last].tag in ("NN", "NNS")
        and (
            wordnet.load().topic(tokens[last].word) not in ("person", "animal")
            and tokens[first].word not in ("running", "burning", "melting", "matching", "setting", "rising", "moving")
        )
    )


def _join(tokens: Sequence[Token], qualities: list[int], first: int) -> tuple[tuple[int, int], ...]:
    """Spans of attributes: "light brown", "long haired" and "tan colored" are one each."""
    spans: list[tuple[int, int]] = []
    for i in sorted(qualities):
        before = tokens[i - 1].word if i > first else ""
        joins = (
            spans
            and spans[-1][1] == i
            and (
                before in ("light", "dark", "bright")
                or tokens[i].word in ("colored", "haired", "clad", "sleeved", "legged")
            )
        )
        start = i - 1 if before == "very" else i
        if joins:
            spans[-1] = (spans[-1][0], i + 1)
        else:
            spans.append((start, i + 1))
    return tuple(spans)


def _quantity(tokens: Sequence[Token], i: int) -> int:
    """Index of the token after "group of", "large crowd of" and the like; 0: no such words."""
    j = i
    while j < len(tokens) and tokens[j].tag == "JJ":
        j += 1
    if j + 2 < len(tokens) and tokens[j].word in _QUANTITIES and tokens[j + 1].word == "of":
        return j + 2
    return 0


def _noun_follows(tokens: Sequence[Token], i: int) -> bool:
    """Whether a noun follows, after any adjectives and participles, joined by commas or "and"."""
    while i < len(tokens) and (
        tokens[i].tag in ("JJ", "JJR", "JJS", "VBN", "VBG")
        or (tokens[i].tag in ("CC", ",") and _colour_pair(tokens, i))
    ):
        i += 1
    return i < len(tokens) and tokens[i].tag in ("NN", "NNS")


def _colour_pair(tokens: Sequence[Token], i: int) -> bool:
    """Whether token i is "and", "or" or a comma, followed by an adjective and then a noun: "black and white dog"."""
    if i >= len(tokens) or tokens[i].tag not in ("CC", ","):
        return False
    j = i + 1
    if j < len(tokens) and tokens[j].tag == "CC":
        j += 1
    if j >= len(tokens) or not (tokens[j].tag in ("JJ", "JJR", "VBN") or tokens[j].word in COLOURS):
        return False
    return _noun_follows(tokens, j + 1) or _colour_pair(tokens, j + 1)
