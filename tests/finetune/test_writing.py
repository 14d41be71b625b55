"""Tasks that write: the sequences they train on, the official files, decoding that matches training, conversations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.finetune import small
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.packing import pack_sequences
from unimo_ds.data.schema import CLS, FIRST_POSITION, NO_TAG, SEP, Regions
from unimo_ds.finetune import tasks
from unimo_ds.finetune.batch import pack_examples
from unimo_ds.finetune.object_words import ObjectWords
from unimo_ds.finetune.tasks.captioning import CaptionExamples
from unimo_ds.finetune.tasks.cnndm import sentences_as_lines
from unimo_ds.finetune.tasks.squad_questions import words_of
from unimo_ds.generation.decoding import decode, encode_prefixes
from unimo_ds.utils.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return small.train_tokenizer()


def write_lines(path: Path, *lines: str) -> None:
    path.write_text("\n".join(lines) + "\n")


def gigaword(folder: Path, tokenizer, *changes: str):
    write_lines(folder / "train.src", "the film is good indeed", "the plot is dull")
    write_lines(folder / "train.tgt", "good film", "dull plot")
    return small.open_task("gigaword", folder, tokenizer, "train", *changes)


def test_source_and_target_begin_anew_and_mask_ends_the_text(tmp_path, tokenizer):
    _, _, examples = gigaword(tmp_path, tokenizer)
    sequence = examples.make(0, 5).sequences[0]
    source, target = tokenizer.encode("the film is good indeed").tolist(), tokenizer.encode("good film").tolist()
    assert sequence.token_ids.tolist() == [CLS, *source, SEP, CLS, *target, tokenizer.mask_id]
    assert sequence.prefix_length == len(source) + 2
    assert sequence.token_positions.tolist() == [
        *range(FIRST_POSITION, FIRST_POSITION + len(source) + 2),
        *range(FIRST_POSITION, FIRST_POSITION + len(target) + 2),
    ]
    assert sequence.language_targets.tolist() == [*target, tokenizer.mask_id]
    assert sequence.token_ids[sequence.language_at].tolist() == [CLS, *target]
    assert examples.lengths(0, 5) == [sequence.length]


def test_long_sources_and_targets_are_cut(tmp_path, tokenizer):
    changes = ("data.max_text_tokens=6", "finetune.max_target_tokens=2")
    _, _, examples = gigaword(tmp_path, tokenizer, *changes)
    sequence = examples.make(0, 0).sequences[0]
    assert sequence.prefix_length == 6
    assert len(sequence.language_targets) == 2
    assert sequence.language_targets[-1] == tokenizer.mask_id, "the end is learned of a cut text as well"


def test_decoding_step_by_step_has_the_logits_of_training(tmp_path, tokenizer):
    """What generation computes from the prompt is what the training sequence computed, tags included."""
    _, config, examples = small.open_task("coqa", coqa_file(tmp_path), tokenizer)
    model = small.plain_engine(config).module.eval()
    made = examples.make(2, 0)
    with torch.no_grad():
        trained = model.language_head(
            model.read_rows(pack_examples([made], feature_size=small.FEATURES, target_size=0)).language
        )[0]
        prompt = pack_sequences([examples.prompt(2)], feature_size=small.FEATURES)
        written = torch.tensor([[CLS, *made.sequences[0].language_targets[:-1].tolist()]])
        decoded = model.language_head(decode(model, written, encode_prefixes(model, prompt))[0])[0]
    torch.testing.assert_close(decoded, trained, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.head["tags"][0].weight[:3] *= -20.0
        other = model.language_head(decode(model, written, encode_prefixes(model, prompt))[0])[0]
    assert (other - decoded).abs().max() > 1e-3, "tags are seen"


def test_a_model_that_has_learned_two_texts_writes_them(tmp_path, tokenizer):
    task, config, examples = gigaword(
        tmp_path,
        tokenizer,
        "finetune.label_smoothing=0",
        "finetune.generation.min_tokens=1",
        "finetune.generation.beams=2",
    )
    engine = small.plain_engine(config)
    optimizer = torch.optim.Adam(engine.module.parameters(), lr=1e-2)
    batch = pack_examples([examples.make(0, 0), examples.make(1, 0)], feature_size=small.FEATURES, target_size=0)
    for _ in range(80):
        optimizer.zero_grad()
        loss = task.loss_sum(engine.forward(batch), batch, config.finetune) / task.count(batch)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    found = task.evaluate(engine, examples, config=config, tokenizer=tokenizer)
    assert [one["answer"] for one in found.predictions] == ["good film", "dull plot"]
    assert found.metrics == {"rouge_1": 1.0, "rouge_2": 1.0, "rouge_l": 1.0}
    assert engine.module.training, "the mode is put back"


def test_files_whose_lines_do_not_belong_together(tmp_path, tokenizer):
    gigaword(tmp_path, tokenizer)
    write_lines(tmp_path / "train.tgt", "good film")
    with pytest.raises(UserError, match=r"train.src has 2 lines and .*train.tgt 1; they must belong together"):
        small.open_task("gigaword", tmp_path, tokenizer)
    write_lines(tmp_path / "train.tgt", "good film", "")
    with pytest.raises(UserError, match=r"train.tgt:2 has an empty text"):
        small.open_task("gigaword", tmp_path, tokenizer)
    with pytest.raises(UserError, match=r"has none of dev.src with dev.tgt"):
        small.open_task("gigaword", tmp_path, tokenizer, "dev")


def test_cnndm_reads_tagged_sentences_as_lines_and_json(tmp_path):
    assert sentences_as_lines("<t> one two . </t> <t> three . </t>") == "one two .\nthree ."
    assert sentences_as_lines("plain") == "plain"
    write_lines(tmp_path / "val.txt.src", "an article")
    write_lines(tmp_path / "val.txt.tgt.tagged", "<t> a </t> <t> b </t>")
    (row,) = tasks.load("cnndm").read(tmp_path, "dev")
    assert (row.sources, row.references) == (("an article",), ("a\nb",))
    (tmp_path / "train.jsonl").write_text(json.dumps({"article": "long", "highlights": "short\nand"}) + "\n")
    (row,) = tasks.load("cnndm").read(tmp_path, "train")
    assert (row.sources, row.references) == (("long",), ("short\nand",))
    (tmp_path / "train.jsonl").write_text(json.dumps({"highlights": "x"}) + "\n")
    with pytest.raises(UserError, match=r"train.jsonl:1 has an empty text"):
        tasks.load("cnndm").read(tmp_path, "train")


def test_cnndm_leaves_out_what_has_no_article(tmp_path):
    """So the collection's own code does with 114 of its stories."""
    write_lines(tmp_path / "train.txt.src", "one", "", " ", "four")
    write_lines(tmp_path / "train.txt.tgt.tagged", *(f"<t> summary {number} </t>" for number in range(1, 5)))
    found = tasks.load("cnndm").read(tmp_path, "train")
    assert [found[index].references for index in range(len(found))] == [("summary 1",), ("summary 4",)]
    assert found[1].key == f"{tmp_path}/train.txt.src:4"
    articles = [{"article": article, "highlights": "x"} for article in ("a", "", "b")]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(one) + "\n" for one in articles))
    assert len(tasks.load("cnndm").read(tmp_path, "dev")) == 2


def squad(answers) -> dict:
    question = {"id": "q1", "question": "Who wrote it?", "answers": answers}
    return {"data": [{"title": "T", "paragraphs": [{"context": "Ann wrote it.", "qas": [question]}]}]}


def test_squad_questions(tmp_path):
    (tmp_path / "train-v1.1.json").write_text(json.dumps(squad([{"text": "Ann", "answer_start": 0}])))
    (row,) = tasks.load("squad-questions").read(tmp_path, "train")
    assert (row.sources, row.references) == (("Ann wrote it.", "Ann"), ("Who wrote it?",))
    (tmp_path / "train-v1.1.json").write_text(json.dumps(squad([])))
    with pytest.raises(UserError, match="question q1 has no answer"):
        tasks.load("squad-questions").read(tmp_path, "train")
    (tmp_path / "train-v1.1.json").write_text("{}")
    with pytest.raises(UserError, match=r"has no list of objects named 'data'"):
        tasks.load("squad-questions").read(tmp_path, "train")
    write_lines(tmp_path / "dev.pa.tok.txt", "a passage [SEP] an answer")
    write_lines(tmp_path / "dev.q.tok.txt", "a question ?")
    (row,) = tasks.load("squad-questions").read(tmp_path, "dev")
    assert (row.sources, row.references) == (("a passage", "an answer"), ("a question ?",))


def test_questions_are_compared_with_their_marks_as_published_ones_are():
    """Papineni's BLEU by hand: four of five words, three of four pairs, two of three triples, one of two quadruples."""
    measure, reference = tasks.load("squad-questions").measure, "who wrote the book ?"
    found, notes = measure(["Who wrote the book?"], [[reference]], quick=True)
    assert found["bleu_4"] == pytest.approx(1.0, abs=1e-6)
    assert "lower-case words and marks" in notes["tokenised"]
    found, _ = measure([f"{reference[:-2]} ,"], [["Who wrote the book?"]], quick=True)
    assert found["bleu_4"] == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, rel=1e-6)
    tokenised = "when did `` it '' -lrb- 3,000 u.s. men at 10:30 -rrb- n't , end : or ?"
    assert words_of(tokenised) == tokenised
    assert words_of('In "1999", (was) it: 3,000?') == 'in " 1999 " , ( was ) it : 3,000 ?'


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        ("cnndm", "train.jsonl", {"article": None, "highlights": "x"}, r"train.jsonl:1 has null where a text belongs"),
        (
            "squad-questions",
            "train-v1.1.json",
            {"data": [{"paragraphs": [{"context": 3}]}]},
            "has 3 where a text belongs",
        ),
        ("coqa", "train.json", {"data": [{"id": "s", "story": ["a"]}]}, r'story s has \["a"\] where a text belongs'),
        (
            "coqa",
            "train.json",
            {"data": [{"id": "s", "story": "a", "additional_answers": [1], "questions": [], "answers": []}]},
            "is not in CoQA's form",
        ),
        (
            "coqa",
            "train.json",
            {
                "data": [
                    {
                        "id": "s",
                        "story": "a",
                        "questions": [{"input_text": "b", "turn_id": 1}],
                        "answers": [{"input_text": "c"}],
                        "additional_answers": {"0": [{"input_text": None}]},
                    }
                ]
            },
            "story s, turn 1 has null where a text belongs",
        ),
    ],
)
def test_what_is_no_text_is_said(tmp_path, name, file, content, said):
    (tmp_path / file).write_text(json.dumps(content) + "\n")
    with pytest.raises(UserError, match=said):
        tasks.load(name).read(tmp_path, "train")


def coqa_file(folder: Path) -> Path:
    story = {
        "id": "s1",
        "story": "the film is good . the plot is dull .",
        "questions": [
            {"input_text": text, "turn_id": turn} for turn, text in enumerate(("the film", "the plot", "cast"), 1)
        ],
        "answers": [{"input_text": text, "turn_id": turn} for turn, text in enumerate(("good", "dull", "unknown"), 1)],
        "additional_answers": {"0": [{"input_text": text} for text in ("fine", "dull", "unknown")]},
    }
    (folder / "coqa-train-v1.0.json").write_text(json.dumps({"data": [story]}))
    return folder


def test_coqa_tags_passage_questions_and_answers(tmp_path, tokenizer):
    task, _, examples = small.open_task("coqa", coqa_file(tmp_path), tokenizer)
    assert len(examples) == 3
    assert examples.references(0) == ["good", "fine"]
    prompt = examples.prompt(2)
    sizes = [len(tokenizer.encode(text)) for text in examples.rows[2].sources]
    assert examples.rows[2].sources[1:] == ("the film", "good", "the plot", "dull", "cast")
    roles, turns = prompt.token_tags.tolist()
    expected_roles, expected_turns = [2] * (sizes[0] + 2), [0] * (sizes[0] + 2)
    for size, role, turn in zip(sizes[1:], (0, 1, 0, 1, 0), (3, 3, 2, 2, 1), strict=True):
        expected_roles += [role] * (size + 1)
        expected_turns += [turn] * (size + 1)
    assert (roles, turns) == (expected_roles, expected_turns)
    sequence = examples.make(2, 0).sequences[0]
    assert (sequence.token_tags[:, sequence.prefix_length :] == NO_TAG).all()
    references = [examples.references(number) for number in range(3)]
    assert task.measure(["good", "dull", "no idea"], references)[0]["f1"] == pytest.approx((0.5 + 1 + 0) / 3)


def test_a_long_conversation_keeps_the_question_and_some_passage(tmp_path, tokenizer):
    _, _, examples = small.open_task("coqa", coqa_file(tmp_path), tokenizer, "train", "data.max_text_tokens=16")
    for number in range(3):
        text = examples.prompt(number).token_ids
        assert len(text) <= 16
        question = tokenizer.encode(examples.rows[number].sources[-1]).tolist()
        assert text[-len(question) - 1 :].tolist() in ([*question, SEP], [*question[: len(text)], SEP])


def test_captioning_has_an_example_a_caption_and_a_prompt_an_image(tmp_path):
    small.write_pairs(tmp_path)
    tokenizer = tokenizers.load(tmp_path / "train")
    changes = ("finetune.generation.beams=2", "finetune.generation.max_tokens=8")
    task, config, examples = small.open_task("captioning", tmp_path, tokenizer, "dev", *changes)
    assert (len(examples), examples.num_prompts) == (9, 6)
    sequence = examples.make(4, 0).sequences[0]
    assert examples.lengths(4, 0) == [sequence.length]
    assert sequence.prefix_length == sequence.num_regions
    assert sequence.token_ids[0] == CLS
    assert sequence.language_targets[-1] == SEP
    image = int(examples.pairs.image_of_C[4])
    assert tokenizer.decode(sequence.language_targets) in examples.references(image)
    np.testing.assert_array_equal(examples.prompt(image).region_features, sequence.region_features)
    found = task.evaluate(small.plain_engine(config), examples, config=config, tokenizer=tokenizer, quick=True)
    assert len(found.predictions) == 6
    assert {"bleu_4", "cider", "rouge_l"} <= set(found.metrics)


def test_captions_are_written_from_the_names_of_sure_objects(tmp_path):
    small.write_pairs(tmp_path)
    tokenizer = tokenizers.load(tmp_path / "train")
    names = tmp_path / "objects.txt"
    write_lines(names, *(f"thing {letter},item {letter}" for letter in "abcde"))
    changes = (f"finetune.captioning.object_names={names}", "finetune.captioning.min_confidence=0.3")
    config = small.task_config("captioning", tokenizer, *changes, "finetune.generation.max_tokens=6")
    task = tasks.load("captioning")
    _, assets = task.settle(config, tmp_path)
    assert assets == {"object_names": ["", "thing a", "thing b", "thing c", "thing d", "thing e"]}
    examples = task.open(tmp_path, "dev", tokenizer=tokenizer, config=config, assets=assets)
    sequence, bare = examples.make(4, 7).sequences[0], CaptionExamples(examples.pairs, max_target_tokens=50)
    words = examples.object_text(int(examples.pairs.image_of_C[4]))
    assert sequence.prefix_length == sequence.num_regions + len(words)
    assert examples.lengths(4, 0) == [sequence.length]
    np.testing.assert_array_equal(sequence.token_ids[: len(words)], words)
    plain = bare.make(4, 7).sequences[0]
    np.testing.assert_array_equal(sequence.token_ids[len(words) :], plain.token_ids)
    np.testing.assert_array_equal(sequence.token_positions[len(words) :], plain.token_positions)
    assert examples.select([4]).objects is examples.objects
    assert examples.fingerprint != bare.fingerprint, "a run does not go on with other names"
    assert len(
        task.evaluate(small.plain_engine(config), examples, config=config, tokenizer=tokenizer, quick=True).predictions
    )
    with pytest.raises(UserError, match=r"task.json lists none; restore that file"):
        task.open(tmp_path, "dev", tokenizer=tokenizer, config=config, assets={})
    write_lines(names, "thing a")
    with pytest.raises(UserError, match="has 1 lines, but the images' detector has 6 classes"):
        task.settle(config, tmp_path)


def test_objects_are_named_surest_first(tokenizer):
    """One word a region, of its likeliest class that has a name; a region that is not sure enough has none."""
    ids, chances = [[1, 2], [0, 3], [2, 1], [1, 0]], [[0.5, 0.25], [0.6, 0.375], [0.875, 0], [0.25, 0.75]]
    regions = Regions(
        np.zeros((4, 4), np.float32),
        np.zeros((4, 2), np.float16),
        np.array(ids, np.int32),
        np.array(chances, np.float16),
    )

    def words(**changes) -> str:
        settings = {"min_confidence": 0.3, "max_tokens": 50, "max_regions": 10, **changes}
        text = ObjectWords(["", "film", "plot", "cast"], tokenizer, **settings).text(regions)
        assert (text[0], text[-1]) == (CLS, SEP)
        return tokenizer.decode(text[1:-1])

    assert words() == "plot film cast"
    assert words(min_confidence=0.2) == "plot film cast film"
    assert words(min_confidence=0.9) == ""
    assert words(max_regions=2) == "film cast"
    assert words(max_tokens=2 + len(tokenizer.encode("plot"))) == "plot"


@pytest.mark.parametrize("name", ["captioning", "squad-questions"])
def test_a_measure_that_is_not_installed_is_told_before_anything_is_trained(name: str, tmp_path, monkeypatch):
    monkeypatch.setattr("unimo_ds.finetune.metrics.captions.importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs pycocoevalcap; pip install"):
        tasks.load(name).settle(small.task_config(name, small.train_tokenizer()), tmp_path)
