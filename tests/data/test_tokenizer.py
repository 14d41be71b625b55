"""Byte-level BPE: RoBERTa's id order, lossless, deterministic, equal to the published implementation."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.data import tokenizer as tokenizer_module
from unimo_ds.data.tokenizer import Tokenizer, load, train
from unimo_ds.utils.errors import UserError

TEXTS = [
    "A black dog runs over the green grass .",
    "Two men are climbing a rock , and a woman watches them .",
    "A child in a pink dress is climbing up a set of stairs in an entry way .",
    "the dogs run and the men climb",
] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(TEXTS, vocabulary_size=400)


def test_ids_are_in_roberta_order(tokenizer: Tokenizer) -> None:
    assert tokenizer.pieces[:4] == ("<s>", "<pad>", "</s>", "<unk>")
    assert tokenizer.pieces[-1] == "<mask>"
    assert tokenizer.mask_id == tokenizer.vocabulary_size - 1
    assert tokenizer.vocabulary_size <= 400
    assert np.flatnonzero(tokenizer.special).tolist() == [0, 1, 2, 3, tokenizer.mask_id]


@settings(max_examples=100)
@given(st.text())
def test_every_text_survives_and_makes_no_special(text: str) -> None:
    tokenizer = _cached()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert not tokenizer.special[ids].any()


def test_special_names_in_a_text_are_ordinary_characters(tokenizer: Tokenizer) -> None:
    text = "a <mask> and <s> or </s><pad><unk>"
    ids = tokenizer.encode(text)
    assert not tokenizer.special[ids].any()
    assert tokenizer.decode(ids) == text


def test_words_start_with_white_space(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The dog climbs\nstairs .")
    words = 1 + int(tokenizer.starts_word[ids[1:]].sum())
    assert words == 5
    assert not tokenizer.starts_word[tokenizer.special].any()


def test_training_is_deterministic_and_saved_whole(tmp_path) -> None:
    first = train(TEXTS, vocabulary_size=350, output=tmp_path / "one")
    again = train(iter(TEXTS), vocabulary_size=350)
    other = train(TEXTS, vocabulary_size=300)
    assert first.fingerprint == again.fingerprint == load(tmp_path / "one").fingerprint
    assert first.fingerprint == load(tmp_path / "one" / "tokenizer.json").fingerprint
    assert first.fingerprint != other.fingerprint
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["tokenizer.json"]


def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    for ids, text in zip(tokenizer.encode_batch(TEXTS[:4]), TEXTS, strict=False):
        assert ids.tolist() == tokenizer.encode(text).tolist()


_NASTY = st.sampled_from(" \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u2028\u200b\u3000\ufeff's!.a1\u00e9\u65e5\u0301")


@settings(max_examples=300)
@given(st.lists(st.text(_NASTY | st.characters(exclude_categories=("Cs",)), max_size=30), max_size=4))
def test_a_batch_by_words_is_its_texts_whole(texts: list[str]) -> None:
    tokenizer = _cached()
    encoded = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in encoded] == [tokenizer.encode(text).tolist() for text in texts]


def test_pickled_tokenizer_is_the_same(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 - our own bytes
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode(TEXTS[0]).tolist() == tokenizer.encode(TEXTS[0]).tolist()


def test_roberta_folder_gives_the_ids_of_transformers(tokenizer: Tokenizer, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    model = json.loads(tokenizer.inner.to_str())["model"]
    vocabulary = {piece: i for i, piece in enumerate(tokenizer.pieces)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = [" ".join(merge) for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    reference = transformers.RobertaTokenizerFast(
        vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt")
    )
    ours = load(tmp_path)
    assert ours.fingerprint == tokenizer.fingerprint
    for text in [*TEXTS[:4], " It's 3 cats' way\n\nback é 猫 !", "a  b"]:
        assert ours.encode(text).tolist() == reference.encode(text, add_special_tokens=False)


def test_gpt2_folder_gets_the_specials(tokenizer: Tokenizer, tmp_path) -> None:
    plain = [piece for piece, special in zip(tokenizer.pieces, tokenizer.special, strict=True) if not special]
    vocabulary = {piece: i for i, piece in enumerate([*plain, "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = json.loads(tokenizer.inner.to_str())["model"]["merges"]
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(merge) for merge in merges), encoding="utf-8")
    assert load(tmp_path).pieces == tokenizer.pieces


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer at"),
        ({"tokenizer.json": "{broken"}, "is not JSON"),
        ({"tokenizer.json": json.dumps({"model": {"type": "WordPiece"}})}, "byte-level BPE"),
        ({"vocab.json": json.dumps({"<s>": 5, "a": 0}), "merges.txt": ""}, "RoBERTa has 0"),
        ({"tokenizer.json": json.dumps({"model": {"type": "BPE", "vocab": {}}})}, "byte-level BPE"),
        (
            {"tokenizer.json": json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": 3}})},
            "must join two pieces",
        ),
        ({"vocab.json": json.dumps(["a"]), "merges.txt": "a b"}, "must have a number"),
        ({"vocab.json": json.dumps({"a": "0"}), "merges.txt": "a b"}, "must have a number"),
        ({"vocab.json": json.dumps({"a": 0}), "merges.txt": "a b c"}, "must join two pieces"),
        ({"vocab.json": json.dumps({"a": 0}), "merges.txt": "a b"}, "do not fit together"),
    ],
)
def test_bad_folders_are_refused(files: dict[str, str], message: str, tmp_path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_what_is_no_word_but_data_neither_teaches_nor_delays() -> None:
    """As one word, this would take a day: learning a merge goes through all of it, again and again."""
    words = ["the dog runs", "the dog sits", "the dog runs home"]
    with_data = train([*words, f"see {'ab0' * 10**6} there"], vocabulary_size=300)
    assert with_data.fingerprint == train([*words, "see there"], vocabulary_size=300).fingerprint
    short = train([*words, f"see {'ab0' * 1000} there"], vocabulary_size=300)
    assert short.fingerprint != with_data.fingerprint


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="at least 261"):
        train(TEXTS, vocabulary_size=100)


_CACHE: list[Tokenizer] = []


def _cached() -> Tokenizer:
    if not _CACHE:
        _CACHE.append(tokenizer_module.train(TEXTS, vocabulary_size=400))
    return _CACHE[0]
