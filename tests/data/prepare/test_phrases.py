"""Phrases that are masked whole: found, stored with every text, kept by later stages, and used by the language objective."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.prepare.raw import small_extractor, write_photographs
from unimo_ds.config import MaskingConfig
from unimo_ds.data import masking
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.draws import Uniforms
from unimo_ds.data.fragments import cut_fragments
from unimo_ds.data.inputs import in_bytes
from unimo_ds.data.prepare.command import main
from unimo_ds.data.prepare.phrases import phrases_of
from unimo_ds.data.prepare.rewriting.scene_graph.rules import parse_caption
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.schema import Caption, Kind, Sample
from unimo_ds.data.storage import member_json, members
from unimo_ds.utils.seed import mix

CAPTION = "A black and white dog sits in front of two old men in New York City ."


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in phrases_of(parse_caption(text))]


def test_phrases_of_captions() -> None:
    assert words(CAPTION) == ["black and white dog", "in front of", "old men", "New York City"]
    assert words("A dog runs .") == []
    assert words("A dirt bike rider jumps") == ["dirt bike rider"]
    assert words("") == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw, output = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("data")
    photos, tsv = write_photographs(raw, 6)
    (raw / "lines.txt").write_text(
        "Ämter in Köln : The mayor of New York City spoke .\nnothing here\n", encoding="utf-8"
    )
    shared = ["import", "--output", str(output), "--vocabulary-size", "400", "--extractor", str(small_extractor(raw))]
    assert main([*shared, "--kind", "pairs", "--images", str(photos), "--captions", str(tsv)]) == 0
    assert main([*shared, "--kind", "texts", "--input", str(raw / "lines.txt")]) == 0
    return output


def test_phrases_are_stored_and_stay(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    assert main(["phrases", str(folder), "--workers", "1"]) == 0
    assert "texts: 14" in capsys.readouterr().out
    assert verify(folder) == []
    corpus = Corpus.open(folder)
    for i in range(len(corpus.kinds)):
        sample = corpus.read(i)
        for text, spans in (
            [(sample.text, sample.phrases)] if sample.text else [(one.text, one.phrases) for one in sample.captions]
        ):
            assert spans == phrases_of(parse_caption(text))
    assert any(corpus.read(i).phrases for i in range(len(corpus.kinds)) if corpus.kinds[i] == Kind.TEXT)
    assert main(["phrases", str(folder)]) == 0
    assert "stored already" in capsys.readouterr().out
    assert main(["rewrite", str(folder), "--workers", "1"]) == 0
    again = Corpus.open(folder)
    pair = int(np.flatnonzero(again.kinds == Kind.PAIR)[0])
    assert [one.phrases for one in again.read(pair).captions] == [one.phrases for one in corpus.read(pair).captions]
    assert again.read(pair).captions[0].phrases
    assert again.read(pair).captions[0].negatives
    assert {path.name for path in folder.glob("*.tar")} == set(before)
    assert main(["phrases", str(folder), "--parser", "spacy"]) == 2


def test_shards_without_phrases_are_as_before() -> None:
    plain = members.encode_sample(Sample("a.tar:0", Kind.TEXT, "books", text="a big dog"))
    assert plain["json"] == b'{"kind":"text","source":"books","text":"a big dog"}'
    sample = Sample("a.tar:0", Kind.TEXT, "books", text="a big dog", phrases=((2, 9),))
    stored = members.encode_sample(sample)
    assert members.decode_sample("a.tar:0", {members.JSON: stored["json"]}) == sample
    assert members.texts_of(sample)[0].phrases == ((2, 9),)


@pytest.mark.parametrize(
    "phrases",
    ["[[2,10]]", "[[3,3]]", "[[2,5],[4,9]]", "[[-1,3]]", "[[1.5,3]]", "[[2]]", "5", '[["a",3]]', "[[true,3]]"],
)
def test_wrong_phrases_are_refused(phrases: str) -> None:
    content = f'{{"kind":"text","source":"books","text":"a big dog","phrases":{phrases}}}'
    with pytest.raises(members.DecodeError, match="phrase"):
        members.decode_sample("a.tar:0", {members.JSON: content.encode()})


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.train([CAPTION, "Ämter in Köln", "a black dog"] * 3, vocabulary_size=330)


@pytest.mark.parametrize("text", [CAPTION, "Ämter in Köln : two big dogs — naïve café owners"])
def test_phrases_lie_where_their_words_lie(text: str, tokenizer: tokenizers.Tokenizer) -> None:
    """Every phrase is one word of `words_of`, from the white space before it to its last letter."""
    phrases = phrases_of(parse_caption(text)) or ((0, 13), (16, 28))
    vocabulary = masking.Vocabulary.of(tokenizer)
    tokens = tokenizer.encode(text)
    assert vocabulary.num_bytes[tokens].sum() == len(text.encode())
    found = masking.words_of(tokens, vocabulary, in_bytes(text, phrases))
    said = [tokenizer.decode(tokens[a:b]) for a, b in zip(found.bounds, found.bounds[1:], strict=False)]
    assert "".join(said) == text
    long = {text[a:b] for a, b in phrases if len(tokenizer.encode(text[a:b])) > masking.LONGEST_WORD}
    assert {said[i].strip() for i in found.phrases} == {text[a:b] for a, b in phrases} - long
    assert found.phrases
    plain = masking.words_of(tokens, vocabulary)
    assert set(found.bounds) < set(plain.bounds)
    # A text that is cut loses the phrases behind the cut, and nothing else.
    cut = masking.words_of(tokens[: len(tokens) // 2], vocabulary, in_bytes(text, phrases))
    assert cut.bounds[-1] == len(tokens) // 2
    assert len(cut.phrases) <= len(found.phrases)


def test_phrases_are_masked_whole_and_the_share_stays(tokenizer: tokenizers.Tokenizer) -> None:
    vocabulary, settings = masking.Vocabulary.of(tokenizer), MaskingConfig()
    tokens = tokenizer.encode(CAPTION)
    phrases = in_bytes(CAPTION, phrases_of(parse_caption(CAPTION)))
    found = masking.words_of(tokens, vocabulary, phrases)
    shares = {True: [], False: []}
    cut = 0
    for seed in range(400):
        for with_phrases in (True, False):
            _, chosen = masking.mask_tokens(
                tokens,
                vocabulary=vocabulary,
                masking=settings,
                draws=Uniforms(mix(seed)),
                phrases=phrases if with_phrases else (),
            )
            shares[with_phrases].append(len(chosen) / len(tokens))
            for i in found.phrases:
                inside = np.isin(np.arange(found.bounds[i], found.bounds[i + 1]), chosen)
                if with_phrases:
                    assert inside.all() or not inside.any()
                else:
                    cut += inside.any() and not inside.all()
    assert cut > 50
    # Neither refused where the share has no room for them (-0.015) nor always taken (+0.039).
    assert 0 <= np.mean(shares[True]) - np.mean(shares[False]) < 0.02
    assert min(shares[True]) > 0


def test_fragments_begin_and_end_with_phrases(tokenizer: tokenizers.Tokenizer) -> None:
    vocabulary = masking.Vocabulary.of(tokenizer)
    tokens = tokenizer.encode(CAPTION)
    found = masking.words_of(tokens, vocabulary, in_bytes(CAPTION, phrases_of(parse_caption(CAPTION))))
    for seed in range(50):
        for start, end in cut_fragments(found.bounds, [6], draws=Uniforms(mix(seed))):
            assert {start, end} <= set(found.bounds)


def test_a_caption_keeps_its_phrases_through_json() -> None:
    captions = (Caption("a big dog", phrases=((2, 9),)), Caption("a dog"))
    record = [member_json._caption_record(one) for one in captions]
    assert "phrases" not in record[1]
    assert [member_json._parse_caption(one) for one in record] == list(captions)
