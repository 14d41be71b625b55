"""Scene graphs by a sequence-to-sequence model like FACTUAL's (Li et al., Findings of ACL 2023), from a local folder.

Such a flan-T5 answers a caption with facts: `( dog , is , black ) , ( dog , v:sit next to , dog:1 )`. Relations are lemmas,
nodes with the same name may be numbered, v: and pv: mark verbs. The facts' words are located in the caption; those not found
are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unimo_ds.data.prepare.rewriting.scene_graph import alignment, tagging
from unimo_ds.data.prepare.rewriting.scene_graph.graph import (
    Attribute,
    AttributeKind,
    Object,
    Relation,
    SceneGraph,
    in_order,
)
from unimo_ds.data.prepare.rewriting.scene_graph.names import names_in
from unimo_ds.data.prepare.rewriting.scene_graph.tagging import Token
from unimo_ds.utils.batched import batched
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.foreign_models import WITHOUT_CODE, by_the_library
from unimo_ds.utils.machine import worker_device

_PROMPT = "Generate Scene Graph: "
_LONGEST = 200
"""Limit on tokens of a caption, and of its facts."""
_BATCH = 32
_FACT = re.compile(r"\(([^()]*)\)")
_NUMBER = re.compile(r"\d+|two|three|four|five|six|seven|eight|nine|ten")


class FactualParser:
    """One model, decoded greedily."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            UserError: the folder has no T5 model with its tokenizer.
        """
        from transformers import AutoConfig, AutoTokenizer, T5ForConditionalGeneration

        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; name one with a T5 model (config.json, weights, tokenizer)")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **WITHOUT_CODE)
            model: Any = T5ForConditionalGeneration
            config = by_the_library(AutoConfig.from_pretrained(folder, **WITHOUT_CODE))
            self._model = model.from_pretrained(folder, config=config, local_files_only=True)
        except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"no T5 parser in {folder}: {str(error).strip().splitlines()[0]}") from None
        self._device = worker_device()
        self._model = self._model.to(self._device).eval()

    def parse(self, captions: Sequence[str]) -> list[SceneGraph]:
        # Batches of similar length need little padding; equal captions are parsed once.
        texts = sorted(set(captions), key=lambda text: (-len(text), text))
        said: dict[str, str] = {}
        for batch in batched(texts, _BATCH):
            said.update(zip(batch, self._answers(batch), strict=True))
        return [graph_of(caption, said[caption]) for caption in captions]

    @torch.inference_mode()
    def _answers(self, captions: Sequence[str]) -> list[str]:
        inputs = self._tokenizer(
            [_PROMPT + caption for caption in captions],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=_LONGEST,
        ).to(self._device)
        made = self._model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=_LONGEST,
            num_beams=1,
            do_sample=False,
        )
        answers: list[str] = self._tokenizer.batch_decode(made, skip_special_tokens=True)
        return answers


def graph_of(caption: str, said: str) -> SceneGraph:
    """The graph of a caption from a model's facts. Truncated or malformed facts are skipped."""
    reading = _Reading(caption)
    for fact in _FACT.findall(said):
        reading.read([part.strip() for part in fact.split(",")])
    return reading.graph()


class _Reading:
    def __init__(self, caption: str) -> None:
        self.caption, self.tokens = caption, tagging.tag(caption)
        self.nodes: dict[str, int | None] = {}
        self.objects: list[Object] = []
        self.attributes: list[Attribute] = []
        self.relations: list[Relation] = []
        self.taken: set[int] = set()
        """Tokens of objects."""

    def read(self, parts: list[str]) -> None:
        if not parts[0]:
            return
        subject = self._object(parts[0])
        if len(parts) != 3 or not parts[1] or not parts[2]:
            return
        if parts[1] == "is":
            self._attribute(subject, parts[2].split())
        else:
            self._relation(subject, parts[1], self._object(parts[2]))

    def graph(self) -> SceneGraph:
        order = sorted(range(len(self.objects)), key=lambda i: self.objects[i].start)
        new: dict[int | None, int | None] = {None: None, **{old: i for i, old in enumerate(order)}}
        attributes = {(one.start, one.end): replace(one, owner=new[one.owner]) for one in self.attributes}
        relations = {
            (one.start, one.end, one.target): replace(one, subject=new[one.subject], target=new[one.target])
            for one in self.relations
        }
        objects = tuple(self.objects[i] for i in order)
        ordered = in_order(attributes.values()), in_order(relations.values())
        return SceneGraph(self.caption, objects, *ordered, names_in(self.caption))

    def _object(self, name: str) -> int | None:
        if name not in self.nodes:
            words = re.sub(r":\d+$", "", name).lower().split()
            place = alignment.find(self.tokens, words, self._is_free)
            if place is None or place[1] - place[0] > len(words):
                self.nodes[name] = None
            else:
                first, last = self.tokens[place[0]], self.tokens[place[1] - 1]
                self.taken.update(range(*place))
                self.nodes[name] = len(self.objects)
                plural = "NNS" if last.tag == "NNS" else "NN"
                self.objects.append(Object(first.start, last.end, last.start, plural))
        return self.nodes[name]

    def _attribute(self, owner: int | None, words: list[str]) -> None:
        near = self._token_of(owner)
        place = alignment.find(self.tokens, words, self._is_free, near=near)
        if place is None:
            return
        first, last = self.tokens[place[0]], self.tokens[place[1] - 1]
        if first.tag == "VBG" and owner is not None and first.start > self.objects[owner].start:
            # "( dog , is , running )" is an action, not an attribute.
            self.relations.append(
                Relation(first.start, last.end, (first.start, first.end), None, first.tag, owner, None)
            )
            return
        is_number = bool(_NUMBER.fullmatch(first.word)) or first.word in tagging.QUANTIFIERS
        kind = AttributeKind.NUMBER if is_number else AttributeKind.QUALITY
        self.attributes.append(Attribute(first.start, last.end, kind, last.tag, owner))

    def _relation(self, subject: int | None, said: str, target: int | None) -> None:
        marked = re.match(r"p?v:", said)
        words = re.sub(r"^p?v:", "", said).lower().split()
        place = alignment.find(self.tokens, words, self._is_free, near=self._token_of(subject))
        if place is None:
            return
        tokens: Sequence[Token] = self.tokens[place[0] : place[1]]
        is_verb = marked is not None or tokens[0].tag.startswith("VB")
        rest = tokens[1:] if is_verb else tokens
        self.relations.append(
            Relation(
                tokens[0].start,
                tokens[-1].end,
                (tokens[0].start, tokens[0].end) if is_verb else None,
                (rest[0].start, rest[-1].end) if rest else None,
                tokens[0].tag if is_verb else "IN",
                subject,
                target,
            )
        )

    def _is_free(self, start: int, end: int) -> bool:
        return self.taken.isdisjoint(range(start, end))

    def _token_of(self, number: int | None) -> int:
        """Index of the object's first token; 0 if there is no object."""
        if number is None:
            return 0
        start = self.objects[number].start
        return next(i for i, token in enumerate(self.tokens) if token.start == start)
