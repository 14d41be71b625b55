"""Makes `wordnet.tsv.gz`, the part of WordNet 3.0 that rewriting needs, from WordNet's own database files.

    python -m benchmarks.preparation.wordnet_extract /usr/share/wordnet

(The files are in Debian's package wordnet-base and in the archives of wordnet.princeton.edu.) Kept are nouns, verbs and
adjectives that the tagger's lexicon knows or that WordNet's own corpus uses, their most frequent senses, and what those are
kinds of. The format is in `scene_graph/wordnet.py`. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unimo_ds.data.prepare.rewriting.scene_graph import wordnet
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.running import run_command

PARTS = {"n": "noun", "v": "verb", "a": "adj"}
MOST_SENSES = {"n": 3, "v": 4, "a": 3}
"""Rarer senses ("dog": a fellow) would rule out replacements that no reader would consider true."""
_UPWARD = {"n": ("@", "@i"), "v": ("@",), "a": ("&",)}
"""Pointers followed: hypernyms; for adjectives the head of their cluster."""


@dataclass(frozen=True)
class _Synset:
    topic: int
    """Number of WordNet's lexicographer file: 18 for persons, 5 for animals, ..."""
    parents: tuple[str, ...]


def extract(folder: Path, output: Path, *, known: frozenset[str]) -> int:
    """Write the extract. Returns its number of words.

    known: lower-case words to keep besides those in WordNet's own corpus.

    Raises:
        UserError: `folder` lacks a database file.
    """
    lines = []
    num_words = 0
    for part, name in PARTS.items():
        for kind in (f"index.{name}", f"data.{name}", f"{name}.exc"):
            if not (folder / kind).is_file():
                raise UserError(f"{folder} has no {kind}; name the folder with WordNet 3.0's database files")
        synsets = dict(_read_synsets(folder / f"data.{name}", part))
        words = {
            word: senses[: MOST_SENSES[part]]
            for word, num_tagged, senses in _read_index(folder / f"index.{name}")
            if word in known or num_tagged > 0
        }
        kept = sorted({ancestor for senses in words.values() for sense in senses for ancestor in _up(sense, synsets)})
        number = {synset: i for i, synset in enumerate(kept)}
        num_words += len(words)
        for synset in kept:
            parents = " ".join(str(number[parent]) for parent in synsets[synset].parents)
            lines.append(f"{part}\t@\t{synsets[synset].topic}\t{parents}")
        for word in sorted(words):
            lines.append(f"{part}\t{word}\t{' '.join(str(number[sense]) for sense in words[word])}\t")
        for inflected, base in _read_exceptions(folder / f"{name}.exc"):
            if base in words:
                lines.append(f"{part}\t!\t{inflected}\t{base}")
    output.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), compresslevel=9, mtime=0))
    return num_words


def _read_index(path: Path) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue
        fields = line.split()
        num_senses = int(fields[2])
        yield fields[0].replace("_", " "), int(fields[-num_senses - 1]), tuple(fields[-num_senses:])


def _read_synsets(path: Path, part: str) -> Iterator[tuple[str, _Synset]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue
        fields = line.split(" | ")[0].split()
        at = 4 + 2 * int(fields[3], 16)
        pointers = [fields[i : i + 4] for i in range(at + 1, at + 1 + 4 * int(fields[at]), 4)]
        # A cluster's head also points to its members; follow only pointers from members, to avoid cycles.
        upward = _UPWARD[part] if part != "a" or fields[2] == "s" else ()
        yield fields[0], _Synset(int(fields[1]), tuple(sorted({one[1] for one in pointers if one[0] in upward})))


def _read_exceptions(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        inflected, base, *_ = line.split()
        if "_" not in inflected:
            yield inflected, base


def _up(synset: str, synsets: dict[str, _Synset]) -> set[str]:
    found, waiting = set(), [synset]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += synsets[current].parents
    return found


def _run(folder: Path, output: Path) -> int:
    from textblob.en import lexicon

    known = frozenset(word.lower() for word in lexicon if word.isalpha() and word.islower())
    print(f"{extract(folder, output, known=known)} words, {output.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="WordNet 3.0's database files")
    parser.add_argument("--output", type=Path, default=Path(wordnet.__file__).with_name("wordnet.tsv.gz"))
    arguments = parser.parse_args()
    raise SystemExit(run_command(lambda: _run(arguments.folder, arguments.output)))
