"""Byte-level BPE in RoBERTa's id order: `<s>`=0, `<pad>`=1, `</s>`=2, `<unk>`=3, pieces, and `<mask>` last.

Trained here, or read from a local RoBERTa or GPT-2 folder. Texts are encoded unchanged (cased, RoBERTa's own splitting, no
prefix space) and always without specials, which `examples` adds. Names of specials inside a text are ordinary characters, so no
corpus can put a `<mask>` into the input.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from unimo_ds.data.schema import CLS, PAD, SEP, UNK
from unimo_ds.utils import strict_json
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.printable import printable
from unimo_ds.utils.whole_file import make_folder, write_whole

TOKENIZER_FILE = "tokenizer.json"
FIRST_SPECIALS = {"<s>": CLS, "<pad>": PAD, "</s>": SEP, "<unk>": UNK}
MASK_NAME = "<mask>"
_LARGEST_VOCABULARY = 2**24
SMALLEST_VOCABULARY = len(FIRST_SPECIALS) + 256 + 1
_WORD_BREAKS = ("Ġ", "Ċ", "ĉ", "č")
"""A space, line feed, tab and carriage return at the start of a piece, in the byte alphabet."""
_SPACES = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WORD = re.compile(rf"[{_SPACES}]*[^{_SPACES}]+|[{_SPACES}]+")
"""White space (as in Unicode) and what follows it. RoBERTa's own splitting always ends a piece before white space that follows
something else, so words can be encoded separately and cached: most recur, and a look-up costs a fiftieth."""
_KNOWN_WORDS = 200_000
_ENDLESS = re.compile(rf"[^{_SPACES}]{{4096,}}")
"""No words but data, such as base64; learning merges within one takes time that grows with the square of its length."""


class Tokenizer:
    """A loaded tokenizer. Picklable, and equal in every process."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        """Wrap a byte-level BPE of the `tokenizers` library.

        Raises:
            UserError: the first ids are not RoBERTa's, there is no `<mask>`, or the ids have holes.
        """
        vocabulary = inner.get_vocab(with_added_tokens=True)
        for name, expected in FIRST_SPECIALS.items():
            if vocabulary.get(name) != expected:
                raise UserError(
                    f"the tokenizer gives {name} the id {vocabulary.get(name)} where RoBERTa has {expected}; "
                    "use a RoBERTa tokenizer or make one with `unimo prepare tokenizer`"
                )
        if MASK_NAME not in vocabulary:
            raise UserError("the tokenizer has no <mask>; use a RoBERTa tokenizer or `unimo prepare tokenizer`")
        self.vocabulary_size = len(vocabulary)
        if max(vocabulary.values()) != self.vocabulary_size - 1:
            raise UserError(
                f"the tokenizer's ids have holes: {self.vocabulary_size} pieces, largest id {max(vocabulary.values())}"
            )
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True
        self.inner = inner
        self.mask_id: int = vocabulary[MASK_NAME]
        self._ids_of_word: dict[str, list[int]] = {}

    def encode(self, text: str) -> NDArray[np.int32]:
        """Ids of the text, without specials: [n] int32.

        Raises:
            UserError: it is not valid Unicode, which can occur on a command line.
        """
        try:
            found = self.inner.encode(text, add_special_tokens=False)
        except TypeError:
            raise UserError(f"the text {printable(text)[:60]!r} is no Unicode; give it in UTF-8") from None
        return np.asarray(found.ids, dtype=np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Ids of each text, without specials: `encode` of each, with a cache of words."""
        if len(self._ids_of_word) > _KNOWN_WORDS:
            self._ids_of_word.clear()
        known = self._ids_of_word
        words_of_text = [_WORD.findall(text) for text in texts]
        unknown = list(set().union(*words_of_text).difference(known))
        for word, encoded in zip(unknown, self.inner.encode_batch_fast(unknown, add_special_tokens=False), strict=True):
            known[word] = encoded.ids
        ids_of_text = (itertools.chain.from_iterable(map(known.__getitem__, words)) for words in words_of_text)
        return [np.array([*ids], np.int32) for ids in ids_of_text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without specials. `decode(encode(text)) == text` for every text."""
        text: str = self.inner.decode([int(one) for one in ids], skip_special_tokens=True)
        return text

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """Every piece in the byte alphabet, by id."""
        by_id = sorted(self.inner.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
        return tuple(piece for piece, _ in by_id)

    @cached_property
    def special(self) -> NDArray[np.bool_]:
        """[V] True for ids that no text produces: the named specials and RoBERTa's filler pieces."""
        names = {*FIRST_SPECIALS, MASK_NAME}
        names.update(token.content for token in self.inner.get_added_tokens_decoder().values())
        return np.array([piece in names or piece.startswith("madeupword") for piece in self.pieces])

    @cached_property
    def starts_word(self) -> NDArray[np.bool_]:
        """[V] True if a piece starts a new word, that is, with white space. The first piece of a text starts one too."""
        return np.array([piece.startswith(_WORD_BREAKS) for piece in self.pieces])

    @cached_property
    def num_bytes(self) -> NDArray[np.int32]:
        """[V] bytes of text of each piece: in the byte alphabet a character is a byte."""
        return np.array([len(piece) for piece in self.pieces], dtype=np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """Hash, in 16 hexadecimal digits, of pieces and merges, which determine ids whatever library version wrote the file."""
        model = json.loads(self.inner.to_str())["model"]
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        return hashlib.sha256(json.dumps([self.pieces, merges]).encode()).hexdigest()[:16]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `tokenizer.json` into the folder, atomically. Returns its path."""
        path = Path(folder) / TOKENIZER_FILE
        make_folder(path.parent)
        write_whole(path, self.inner.to_str().encode())
        return path

    def __getstate__(self) -> dict[str, Any]:
        # Cached tables are rebuilt after unpickling; `encode_special_tokens` is not part of the library's own state.
        return {"text": self.inner.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state["text"]))  # type: ignore[misc]


def train(texts: Iterable[str], *, vocabulary_size: int, output: str | os.PathLike[str] | None = None) -> Tokenizer:
    """Learn a byte-level BPE from texts, and save it in the folder `output`, if given.

    Equal texts give equal tokenizers. Thousands of characters without white space are left out. A small corpus may run out of
    merges, so the vocabulary may be smaller than requested.

    Raises:
        UserError: a vocabulary smaller than the bytes and specials need, or too large.
    """
    if vocabulary_size < SMALLEST_VOCABULARY:
        raise UserError(f"a vocabulary of {vocabulary_size} cannot hold all bytes; take at least {SMALLEST_VOCABULARY}")
    if vocabulary_size > _LARGEST_VOCABULARY:
        raise UserError(f"a vocabulary of {vocabulary_size} is too large; take at most {_LARGEST_VOCABULARY}")
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 1,
        min_frequency=2,
        special_tokens=list(FIRST_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator((_ENDLESS.sub(" ", text) for text in texts), trainer=trainer)
    model = json.loads(learner.to_str())["model"]
    tokenizer = _assemble(model["vocab"], [tuple(merge) for merge in model["merges"]])
    if output is not None:
        tokenizer.save(output)
    return tokenizer


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """A tokenizer from `tokenizer.json` (the file or its folder), or from a folder with vocab.json and merges.txt.

    RoBERTa's specials are added to GPT-2's vocabulary, which has none of them; its pieces keep their order from id 4 on.

    Raises:
        UserError: missing, unreadable, or not byte-level BPE in RoBERTa's order.
    """
    path = Path(path)
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if file.is_file():
        content = strict_json.read(file, Any)
        try:
            kind, vocabulary, merges = (content["model"][name] for name in ("type", "vocab", "merges"))
            fillers = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
            vocabulary = {**vocabulary, **fillers}
        except (KeyError, TypeError):
            kind = None
        if kind != "BPE":
            raise UserError(
                f"{file} does not hold a byte-level BPE; use a RoBERTa tokenizer or `unimo prepare tokenizer`"
            )
        return _complete(vocabulary, merges)
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        vocabulary = strict_json.read(path / "vocab.json", Any)
        try:
            lines = (path / "merges.txt").read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path / 'merges.txt'}: {error}") from None
        merges = [line for line in lines if line and not line.startswith("#version")]
        return _complete(vocabulary, merges)
    raise UserError(f"no tokenizer at {path}: it needs tokenizer.json, or vocab.json and merges.txt")


def _complete(vocabulary: Any, merges: Any) -> Tokenizer:
    """The tokenizer of a RoBERTa vocabulary, or of a GPT-2 one after RoBERTa's specials; both as parsed JSON."""
    if not isinstance(vocabulary, dict) or not all(
        isinstance(piece, str) and type(number) is int and 0 <= number < 2**31 for piece, number in vocabulary.items()
    ):
        raise UserError("the tokenizer's pieces are damaged: each must have a number; fetch the file again")
    pairs = [_pair(merge) for merge in merges] if isinstance(merges, list) else [_pair(merges)]
    if not any(name in vocabulary for name in FIRST_SPECIALS):
        pieces = [
            piece for piece, _ in sorted(vocabulary.items(), key=lambda item: item[1]) if piece != "<|endoftext|>"
        ]
        vocabulary = {**FIRST_SPECIALS, **{piece: len(FIRST_SPECIALS) + i for i, piece in enumerate(pieces)}}
    return _assemble(vocabulary, pairs)


def _pair(merge: Any) -> tuple[str, str]:
    """The pieces that a merge joins: `"a b"` in older files, `["a", "b"]` in newer ones."""
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)]:
            return left, right
    raise UserError("the tokenizer's merges are damaged: each must join two pieces; fetch the file again")


def _assemble(vocabulary: dict[str, int], merges: list[tuple[Any, ...]]) -> Tokenizer:
    """RoBERTa's pipeline with these pieces and merges; `<mask>` is appended if missing."""
    if MASK_NAME not in vocabulary:
        vocabulary = {**vocabulary, MASK_NAME: len(vocabulary)}
    for left, right in merges:
        if not {left, right, left + right} <= vocabulary.keys():
            raise UserError(
                f"the tokenizer's pieces and merges do not fit together: {left!r} + {right!r}; fetch both files again"
            )
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    specials = [*FIRST_SPECIALS, MASK_NAME]
    inner.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in specials])
    return Tokenizer(inner)
