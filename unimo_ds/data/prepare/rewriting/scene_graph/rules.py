"""The parser without weights: a tagger with a lexicon, noun phrases, and rules that attach verbs, prepositions and attributes.

Captions are short and say who does what where, so a few rules suffice; docs/experiments.md has their measured accuracy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from unimo_ds.data.prepare.rewriting.scene_graph import phrases, tagging, wordnet
from unimo_ds.data.prepare.rewriting.scene_graph.graph import (
    Attribute,
    AttributeKind,
    Object,
    Relation,
    SceneGraph,
    in_order,
)
from unimo_ds.data.prepare.rewriting.scene_graph.lists import words
from unimo_ds.data.prepare.rewriting.scene_graph.names import names_in
from unimo_ds.data.prepare.rewriting.scene_graph.phrases import Piece, PieceKind
from unimo_ds.data.prepare.rewriting.scene_graph.tagging import Token

_PARTICLES = words("up down out off over around along back away by in on together nearby through")
_OF_LAST = frozenset(("of", "for", "to"))
"""Prepositions that attach to the noun directly before them, not to the subject."""
_LINKING = words("appears appear seems seem begins starts")


def parse(captions: Sequence[str]) -> list[SceneGraph]:
    """Scene graphs of English captions, in any letter case."""
    return [parse_caption(caption) for caption in captions]


def parse_caption(text: str) -> SceneGraph:
    tokens = tagging.tag(text)
    return _Reading(text, tokens).read(phrases.cut(tokens))


class _Reading:
    """One pass from left to right. Indices refer to `objects`; -1: none."""

    def __init__(self, text: str, tokens: Sequence[Token]) -> None:
        self.text = text
        self.tokens = tokens
        self.objects: list[Object] = []
        self.attributes: list[Attribute] = []
        self.relations: list[Relation] = []
        self.subject = -1
        """Subject of the clause."""
        self.last = -1
        """The last noun read."""
        self.acted = False
        """Whether the clause has a verb."""
        self.finite = False
        """Whether it has a finite verb."""
        self.verb: tuple[int, int] | None = None
        """Tokens of a verb whose object is still awaited."""
        self.preposition: tuple[int, int] | None = None
        self.verb_subject = -1

    def read(self, pieces: Sequence[Piece]) -> SceneGraph:
        for i, piece in enumerate(pieces):
            following = pieces[i + 1].kind if i + 1 < len(pieces) else PieceKind.CLAUSE
            before = pieces[i - 1].kind if i else PieceKind.CLAUSE
            if piece.kind is PieceKind.NOUN:
                self._noun(piece, following, before)
            elif piece.kind is PieceKind.VERB:
                self._verb(piece, following)
            elif piece.kind is PieceKind.PREPOSITION:
                self._preposition(piece, following)
            elif piece.kind is PieceKind.QUALITY:
                self._quality(piece)
            elif piece.kind is PieceKind.CLAUSE:
                self._finish()
                if self.tokens[piece.start].word in ("who", "which", "that"):
                    self.subject = self.last
                elif self.tokens[piece.start].word != "while" and following is not PieceKind.PRONOUN:
                    self.subject = -1
                self.acted = self.finite = False
            elif piece.kind is PieceKind.PRONOUN:
                if self.verb:
                    self._relate(-1)
                self._finish()
            elif piece.kind is PieceKind.AND:
                self._finish()
        self._finish()
        return SceneGraph(
            self.text, tuple(self.objects), in_order(self.attributes), in_order(self.relations), names_in(self.text)
        )

    def _noun(self, piece: Piece, following: PieceKind, before: PieceKind) -> None:
        first, last = self.tokens[piece.head], self.tokens[piece.end - 1]
        self.objects.append(Object(first.start, last.end, last.start, "NNS" if last.tag == "NNS" else "NN"))
        this = len(self.objects) - 1
        if piece.number:
            start, end = piece.number
            self._attribute(start, end, AttributeKind.NUMBER, this)
        for start, end in piece.qualities:
            self._attribute(start, end, AttributeKind.QUALITY, this)
        if self.tokens[piece.start].tag == "POS" and self.last >= 0:
            self._possess(self.last, this)
        elif self.verb or self.preposition:
            self._relate(this)
        elif before is PieceKind.CLAUSE or (
            before is PieceKind.AND and self.finite and following in (PieceKind.VERB, PieceKind.BE)
        ):
            # "... jumps over a log and a man watches"; but in "with a collar and a ball is running" the ball is in a list.
            self.subject = this
            self.acted = self.finite = False
        if self.subject < 0:
            self.subject = this
        self.last = this

    def _possess(self, owner: int, owned: int) -> None:
        """In "a man's hand", what was attached to the man moves to the hand."""
        if self.subject == owner:
            self.subject = owned
        if self.relations and self.relations[-1].target == owner:
            self.relations[-1] = dataclasses.replace(self.relations[-1], target=owned)

    def _verb(self, piece: Piece, following: PieceKind) -> None:
        self._finish()
        token = self.tokens[piece.start]
        if token.word in ("has", "have", "had", "do", "does") and following is PieceKind.VERB:
            return
        if token.word in _LINKING and following is not PieceKind.PREPOSITION:
            return
        self.verb_subject = self._actor(token)
        self.verb = (piece.start, piece.end)
        self.acted = True
        self.finite = (
            self.finite or token.tag in ("VBZ", "VBP", "VBD", "VB") or self.tokens[piece.start - 1].tag == "BE"
        )

    def _actor(self, verb: Token) -> int:
        """The verb's subject: that of the clause, or the last noun for a participle after it (-ing: if that is a being)."""
        if self.last < 0 or self.last == self.subject or verb.tag in ("VBZ", "VBP"):
            return self.subject
        if verb.tag == "VBN":
            return self.last
        head = self.objects[self.last]
        alive = wordnet.load().topic(self.text[head.head : head.end].lower()) in ("person", "animal")
        return self.last if alive and self.acted else self.subject

    def _preposition(self, piece: Piece, following: PieceKind) -> None:
        words = {self.tokens[i].word for i in range(piece.start, piece.end)}
        if following is PieceKind.QUALITY and words & {"in"}:
            self._finish()
            return
        if following is not PieceKind.NOUN:
            if self.verb and words <= _PARTICLES:
                # A particle, as in "sits down on".
                self.verb = (self.verb[0], piece.end)
                return
            if following is PieceKind.PREPOSITION and self.preposition is None:
                self.preposition = (piece.start, piece.end)
                return
            self._finish()
            return
        if self.preposition is not None:
            self.preposition = (self.preposition[0], piece.end)
        else:
            self.preposition = (piece.start, piece.end)

    def _quality(self, piece: Piece) -> None:
        word = self.tokens[piece.start].word
        owner = self.last if word in tagging.COLOURS and self.last >= 0 else self.subject
        if owner >= 0:
            self._attribute(piece.start, piece.end, AttributeKind.QUALITY, owner)

    def _relate(self, target: int) -> None:
        if self.verb:
            start, end = self.verb[0], (self.preposition or self.verb)[1]
            self._relation(start, end, self.verb_subject, target)
        elif self.preposition:
            start, end = self.preposition
            word = self.tokens[start].word
            subject = self.subject
            if word in _OF_LAST or self._of_last(start, target):
                subject = self.last
            self._relation(start, end, subject, target)
        self.verb = self.preposition = None

    def _of_last(self, start: int, target: int) -> bool:
        """Whether it attaches to the last noun: "in the background", "in its mouth"."""
        word = self.text[self.objects[target].head : self.objects[target].end].lower()
        owned = self.tokens[start + 1].tag == "PRP$" and wordnet.load().topic(word) == "body"
        return word in ("background", "foreground", "distance") or owned

    def _finish(self) -> None:
        """Close a pending verb, which found no object."""
        if self.verb:
            self._relation(*self.verb, self.verb_subject, -1)
        self.verb = self.preposition = None

    def _relation(self, start: int, end: int, subject: int, target: int) -> None:
        first = self.tokens[start]
        verb = (first.start, first.end) if self.verb else None
        at = self.preposition if self.preposition else (start + 1, end) if self.verb and end > start + 1 else None
        preposition = (self.tokens[at[0]].start, self.tokens[at[1] - 1].end) if at else None
        self.relations.append(
            Relation(
                first.start,
                self.tokens[end - 1].end,
                verb,
                preposition,
                first.tag if self.verb else "IN",
                subject if subject >= 0 else None,
                target if target >= 0 else None,
            )
        )

    def _attribute(self, start: int, end: int, kind: AttributeKind, owner: int) -> None:
        first, last = self.tokens[start], self.tokens[end - 1]
        self.attributes.append(Attribute(first.start, last.end, kind, last.tag, owner))
