"""Parsers with weights: their real networks, tiny and made here; and what is done with what such networks say."""

import json
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as InnerTokenizer
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from unimo_ds.data.prepare.rewriting.scene_graph import parsers
from unimo_ds.data.prepare.rewriting.scene_graph.factual import FactualParser, graph_of
from unimo_ds.data.prepare.rewriting.scene_graph.graph import SceneGraph, from_json
from unimo_ds.data.prepare.rewriting.scene_graph.names import names_in
from unimo_ds.utils.errors import UserError

CAPTIONS = ["Two black dogs sit next to a man", "A girl is holding a red ball", "A girl is holding a red ball"]


def said(graph: SceneGraph) -> dict[str, set[str]]:
    def name(index: int | None) -> str:
        return "-" if index is None else graph.words(graph.objects[index])

    return {
        "objects": {graph.words(one) for one in graph.objects},
        "attributes": {f"{graph.words(one)}/{one.kind.value} of {name(one.owner)}" for one in graph.attributes},
        "relations": {f"{name(one.subject)} | {graph.words(one)} | {name(one.target)}" for one in graph.relations},
    }


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small layers with random weights, and a tokenizer of words."""
    folder = tmp_path_factory.mktemp("t5")
    words = sorted(
        {word for caption in CAPTIONS for word in caption.split()}
        | {"(", ")", ",", "is", "Generate", "Scene", "Graph:"}
    )
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    inner = InnerTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(vocabulary),
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    # Random weights would rather say nothing, or never stop.
    model.generation_config.suppress_tokens = [0, 2]
    model.generation_config.min_new_tokens = 8
    model.generation_config.exponential_decay_length_penalty = (8, 3.0)
    model.save_pretrained(folder)
    return folder


def test_t5_answers_in_any_company(t5: Path) -> None:
    parser = FactualParser(t5)
    graphs = parser.parse(CAPTIONS)
    assert [graph.text for graph in graphs] == CAPTIONS
    assert graphs[1] == graphs[2] == FactualParser(t5).parse(CAPTIONS[1:2])[0]
    answers = parser._answers(CAPTIONS[:2])
    assert all(answers)
    assert parser._answers(CAPTIONS[1:2]) == answers[1:]
    assert [graph_of(text, answer) for text, answer in zip(CAPTIONS, answers, strict=False)] == graphs[:2]
    assert parsers.load("factual", t5)(CAPTIONS) == graphs
    with pytest.raises(UserError, match="no T5 parser in"):
        FactualParser(t5.parent)
    with pytest.raises(UserError, match="is no folder"):
        FactualParser(t5 / "config.json")


def test_facts_are_found_in_the_caption() -> None:
    facts = "( dogs , is , two ) , ( dogs , is , black ) , ( dogs , v:sit next to , man ) , ( dogs , pv:paint on , wall"
    assert said(graph_of(CAPTIONS[0], facts)) == {
        "objects": {"dogs", "man"},
        "attributes": {"Two/number of dogs", "black/quality of dogs"},
        "relations": {"dogs | sit next to | man"},
    }
    graph = graph_of(CAPTIONS[0], facts)
    (relation,) = graph.relations
    assert (graph.text[slice(*relation.verb)], graph.text[slice(*relation.preposition)]) == ("sit", "next to")
    assert [one.tag for one in graph.objects] == ["NNS", "NN"]


def test_lemmas_indices_and_words_that_are_not_there() -> None:
    caption = "A monkey is sitting next to another monkey while a dog is running on its back"
    facts = (
        "( monkey , v:sit next to , monkey:1 ) , ( dog , is , running ) , ( dog , fly over , house ) , ( unicorn ) , ()"
    )
    graph = graph_of(caption, facts)
    assert said(graph)["relations"] == {"monkey | sitting next to | monkey", "dog | running | -"}
    assert [one.start for one in graph.objects] == [2, 36, caption.index("dog")]
    assert [(one.subject, one.target) for one in graph.relations] == [(0, 1), (2, None)]
    assert said(graph_of("bags on their backs", "( bags , on back of , pigs )"))["relations"] == set()
    assert graph_of("a dog", "dog , is )) (( ,,").objects == ()


def test_json_keeps_everything() -> None:
    for graph in (
        graph_of(CAPTIONS[0], "( dogs , v:sit next to , man )"),
        parsers.load("rules", None)(CAPTIONS)[1],
        SceneGraph("New York", names=((0, 8),)),
    ):
        assert from_json(json.loads(json.dumps(astuple(graph)))) == graph


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The mayor of New York City met Anna there .", ["New York City", "Anna"]),
        ("New York is large .", ["New York"]),
        ("Dogs run . Cats sleep in the Bank of England .", ["Bank of England"]),
        ("The dog runs .", []),
        ("A MAN RUNS", []),
        ("He saw Mary and the dog , then J. Smith-Jones .", ["Mary", "J. Smith-Jones"]),
        ("we saw The Times of India", ["The Times of India"]),
        ("", []),
    ],
)
def test_names(text: str, names: list[str]) -> None:
    assert [text[start:end] for start, end in names_in(text)] == names


_SENTENCES = [
    # words, tags, heads, dependencies
    (
        "A little girl holds two red balls",
        "DT JJ NN VBZ CD JJ NNS",
        [2, 2, 3, 3, 6, 6, 3],
        "det amod nsubj ROOT nummod amod dobj",
    ),
    (
        "A dog is running on the beach",
        "DT NN VBZ VBG IN DT NN",
        [1, 3, 3, 3, 3, 6, 4],
        "det nsubj aux ROOT prep det pobj",
    ),
    (
        "A dirt bike in front of a house",
        "DT NN NN IN NN IN DT NN",
        [2, 2, 2, 2, 3, 4, 7, 5],
        "det compound ROOT prep pobj prep det pobj",
    ),
]


def test_spacy_pipeline_by_path(tmp_path: Path) -> None:
    """A tagger and a parser trained on three sentences until they know them, saved and loaded by path."""
    spacy = pytest.importorskip("spacy")
    from spacy.training import Example

    from unimo_ds.data.prepare.rewriting.scene_graph.spacy_parser import SpacyParser

    spacy.util.fix_random_seed(0)
    pipeline = spacy.blank("en")
    pipeline.add_pipe("tagger")
    pipeline.add_pipe("parser", config={"min_action_freq": 1})
    examples = [
        Example.from_dict(
            pipeline.make_doc(text),
            {"words": text.split(), "tags": tags.split(), "heads": heads, "deps": dependencies.split()}
            | {"sent_starts": [i == 0 for i in range(len(heads))]},
        )
        for text, tags, heads, dependencies in _SENTENCES
    ]
    optimizer = pipeline.initialize(lambda: examples)
    for _ in range(25):
        pipeline.update(examples, sgd=optimizer)
    pipeline.to_disk(tmp_path / "pipeline")
    found = [said(graph) for graph in SpacyParser(tmp_path / "pipeline").parse([text for text, *_ in _SENTENCES])]
    assert found[0] == {
        "objects": {"girl", "balls"},
        "attributes": {"little/quality of girl", "two/number of balls", "red/quality of balls"},
        "relations": {"girl | holds | balls"},
    }
    assert found[1] == {"objects": {"dog", "beach"}, "attributes": set(), "relations": {"dog | running on | beach"}}
    assert "dirt bike" in found[2]["objects"]
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="has no parser and no tagger"):
        SpacyParser(tmp_path / "blank")
    with pytest.raises(UserError, match="no spaCy pipeline in"):
        SpacyParser(tmp_path / "nowhere")


def test_options_of_parsers() -> None:
    with pytest.raises(UserError, match="--parser spacy needs --parser-path"):
        parsers.load("spacy", None)
    with pytest.raises(UserError, match="the rules need no weights"):
        parsers.load("rules", Path("x"))
