"""Long documents are cut without losing a word, at sentences where there are any."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.prepare import texts

TOKENIZER = tokenizers.train(["The dog runs over the grass . A cat sleeps ."] * 5, vocabulary_size=300)


@settings(max_examples=80)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300), st.integers(4, 40))
def test_pieces_are_short_and_nothing_is_lost(text: str, max_tokens: int) -> None:
    pieces = list(texts.pieces([text], TOKENIZER, max_tokens=max_tokens))
    if len(TOKENIZER.encode(text)) <= max_tokens:
        assert pieces == [text]
        return
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(len(TOKENIZER.encode(piece)) <= max_tokens for piece in pieces)


def test_cuts_fall_behind_sentences_then_between_words() -> None:
    sentences = ["The dog runs over the grass .", "A cat sleeps .", "The cat runs .", "A dog sleeps over the grass ."]
    pieces = list(texts.pieces([" ".join(sentences * 3)], TOKENIZER, max_tokens=30))
    assert len(pieces) > 2
    assert all(piece.endswith(".") for piece in pieces)
    words = "dog " * 200
    pieces = list(texts.pieces([words], TOKENIZER, max_tokens=20))
    assert {word for piece in pieces for word in piece.split()} == {"dog"}
    assert sum(len(piece.split()) for piece in pieces) == 200


def test_a_word_without_end_is_cut_between_characters() -> None:
    pieces = list(texts.pieces(["é猫" * 500], TOKENIZER, max_tokens=50))
    assert "".join(pieces) == "é猫" * 500


@pytest.mark.parametrize("number", [3, 2000])
def test_order_is_kept_over_batches(number: int) -> None:
    lines = [f"line {i}" for i in range(number)]
    assert list(texts.pieces(lines, TOKENIZER)) == lines
