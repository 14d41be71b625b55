"""How well the rules read real captions: precision and recall by kind against marks made by hand.

    python -m benchmarks.preparation.scene_graphs --marks benchmarks/data/flickr8k_scene_graphs.tsv \
      --captions flickr8k/dev_captions.tsv

The marks stand off from the captions, which belong to their own corpus: a line names a file, the number of one of its captions,
and the characters of every node:

    FILE  NUMBER  SET  NODE NODE ...      SET: "tune" (looked at while the rules were made) or "test" (kept apart)
    o1:2-7        object 1 is characters [2, 7)      a1:0-3, n1:0-3    attribute, number of object 1
    r1>2:8-15     relation from object 1 to object 2; "r1>:8-15" of object 1 alone
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unimo_ds.data.prepare.rewriting.scene_graph import rules
from unimo_ds.data.prepare.rewriting.scene_graph.graph import Attribute, AttributeKind, Object, Relation, SceneGraph
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.running import run_command

_NODE = re.compile(r"(?:(o)(\d+)|([an])(\d+)|(r)(\d+)>(\d*)):(\d+)-(\d+)")


@dataclass(frozen=True)
class Marked:
    part: str
    graph: SceneGraph


@dataclass(frozen=True)
class Score:
    found: int
    marked: int
    right: int

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.marked if self.marked else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.found + self.marked) if self.found + self.marked else 0.0


def read_marks(marks: Path, captions: Path) -> Iterator[Marked]:
    """The marked captions.

    captions: file<TAB>caption; the captions of a file are numbered from 0, in order.

    Raises:
        UserError: an invalid line of marks, or a caption that is missing or shorter than its marks.
    """
    texts: dict[str, list[str]] = {}
    for line in captions.read_text(encoding="utf-8").splitlines():
        name, _, caption = line.partition("\t")
        texts.setdefault(name, []).append(caption)
    for number, line in enumerate(marks.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 4 or not fields[1].isdigit():
            raise UserError(f"{marks}:{number} is not FILE, NUMBER, SET and NODES between tabs")
        if int(fields[1]) >= len(texts.get(fields[0], [])):
            raise UserError(f"{captions} has no caption {fields[1]} of {fields[0]}; name the corpus that was marked")
        yield Marked(fields[2], _graph(texts[fields[0]][int(fields[1])], fields[3].split(), f"{marks}:{number}"))


def score(marked: Sequence[SceneGraph], found: Sequence[SceneGraph]) -> dict[str, Score]:
    """Scores by kind, with what must match.

    object: the last word of its name. attribute, number: a word and the owner. relation: a word and the target object.
    relation, subject too: its subject as well.
    """
    counts: dict[str, list[int]] = {}
    for truth, guess in zip(marked, found, strict=True):
        true_items, guessed_items = _items(truth), _items(guess)
        for kind, items in true_items.items():
            guesses = guessed_items[kind]
            of_kind = counts.setdefault(kind, [0, 0, 0])
            of_kind[0] += len(guesses)
            of_kind[1] += len(items)
            of_kind[2] += _matches(items, guesses)
    return {kind: Score(*values) for kind, values in counts.items()}


def _items(graph: SceneGraph) -> dict[str, list[tuple[object, ...]]]:
    """Items to compare: (values that must be equal, ..., places of which one must be shared)."""
    heads = [one.head for one in graph.objects]

    def head(index: int | None) -> int:
        return -1 if index is None else heads[index]

    def places(start: int, end: int) -> frozenset[int]:
        return frozenset(start + match.start() for match in re.finditer(r"\S+", graph.text[start:end]))

    items: dict[str, list[tuple[object, ...]]] = {
        "object": [(one.head, frozenset([one.head])) for one in graph.objects],
        "object, whole name": [(one.start, one.end, frozenset([one.head])) for one in graph.objects],
    }
    for kind, name in ((AttributeKind.QUALITY, "attribute"), (AttributeKind.NUMBER, "number")):
        of_kind = [one for one in graph.attributes if one.kind is kind]
        items[name] = [(head(one.owner), places(one.start, one.end)) for one in of_kind]
    items["relation"] = [(head(one.target), places(one.start, one.end)) for one in graph.relations]
    items["relation, subject too"] = [
        (head(one.subject), head(one.target), places(one.start, one.end)) for one in graph.relations
    ]
    return items


def _matches(items: list[tuple[object, ...]], guesses: list[tuple[object, ...]]) -> int:
    """Number of items with a matching guess, each guess used once."""
    left = list(guesses)
    matched = 0
    for item in items:
        for guess in left:
            if guess[:-1] == item[:-1] and guess[-1] & item[-1]:  # type: ignore[operator]
                left.remove(guess)
                matched += 1
                break
    return matched


def _graph(text: str, nodes: list[str], where: str) -> SceneGraph:
    objects: dict[str, Object] = {}
    parsed = []
    for node in nodes:
        match = _NODE.fullmatch(node)
        if match is None or int(match[9]) > len(text):
            raise UserError(f"{where}: {node!r} is no node of this caption")
        start, end = int(match[8]), int(match[9])
        parsed.append((match, start, end))
        if match[1]:
            objects[match[2]] = Object(start, end, start + text[start:end].rfind(" ") + 1, "NN")
    number = {name: i for i, name in enumerate(objects)}
    for match, _, _ in parsed:
        for name in (match[4], match[6], match[7]):
            if name and name not in number:
                raise UserError(
                    f"{where}: {match.group()} speaks of an object that is not marked: there is no object {name}"
                )
    attributes, relations = [], []
    for match, start, end in parsed:
        if match[3]:
            kind = AttributeKind.QUALITY if match[3] == "a" else AttributeKind.NUMBER
            attributes.append(Attribute(start, end, kind, "JJ", number[match[4]]))
        elif match[5]:
            target = number[match[7]] if match[7] else None
            relations.append(Relation(start, end, None, None, "IN", number[match[6]], target))
    return SceneGraph(text, tuple(objects.values()), tuple(attributes), tuple(relations))


def table(scores: dict[str, Score]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| kind | marked | found | precision | recall | F1 |", "|---|---|---|---|---|---|"]
    for kind, one in scores.items():
        lines.append(f"| {kind} | {one.marked} | {one.found} | {one.precision:.3f} | {one.recall:.3f} | {one.f1:.3f} |")
    return lines


def _run(arguments: argparse.Namespace) -> int:
    marked = list(read_marks(arguments.marks, arguments.captions))
    for part in sorted({one.part for one in marked}):
        graphs = [one.graph for one in marked if one.part == part]
        print(f"{part}: {len(graphs)} captions, parser rules")
        print("\n".join(table(score(graphs, rules.parse([graph.text for graph in graphs])))))
    return 0


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--marks", type=Path, required=True)
    cli.add_argument("--captions", type=Path, required=True)
    raise SystemExit(run_command(lambda: _run(cli.parse_args())))
