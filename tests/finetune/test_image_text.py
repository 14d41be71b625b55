"""SNLI-VE and VQA: their official files, answers outside of the vocabulary, images that are not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.finetune import small
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.joined_texts import join_texts
from unimo_ds.data.sample_shelf import SampleShelf
from unimo_ds.finetune import tasks
from unimo_ds.finetune.batch import pack_examples
from unimo_ds.finetune.image_text import AnsweredRow, Columns, ImageTextExamples, ImageTextRow
from unimo_ds.finetune.images import ImageNames
from unimo_ds.finetune.tasks.vqa import soft_scores, vocabulary_of
from unimo_ds.utils.errors import UserError

NAMES = ["4705552913.jpg", "COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg"]


@pytest.fixture(scope="module")
def tokenizer():
    return small.train_tokenizer()


@pytest.fixture
def folder(tmp_path, tokenizer) -> Path:
    small.write_images(tmp_path / "images", NAMES, tokenizer)
    return tmp_path


def write_snli_ve(folder: Path, *lines: dict) -> None:
    (folder / "snli_ve_train.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")


def entailment(label: str, image: str = "4705552913", text: str = "a film is good") -> dict:
    return {"gold_label": label, "Flickr30K_ID": image, "sentence1": "unused", "sentence2": text, "pairID": "1"}


def test_snli_ve(folder, tokenizer):
    write_snli_ve(folder, entailment("neutral"), entailment("-"), entailment("entailment"))
    task, config, examples = small.open_task("snli-ve", folder, tokenizer)
    assert [row.targets for row in examples.rows] == [((0, 2.0),), ((0, 1.0),)]
    assert examples.lengths(0, 0) == [examples.make(0, 0).sequences[0].length]
    found = task.evaluate(small.plain_engine(config), examples, config=config, tokenizer=tokenizer)
    answers = [one["answer"] for one in found.predictions]
    right = np.mean([answers[0] == "neutral", answers[1] == "entailment"])
    assert found.metrics["accuracy"] == right


def test_columns_hold_what_was_read(folder, tokenizer):
    images = SampleShelf(Corpus.open(folder / "images"), max_regions=100)
    texts = ["a film", "", "the plot is great " * 30, "a film"]
    rows = [
        ImageTextRow(
            AnsweredRow(f"f:{n}", ((n, 0.3), (5, 1 / 3))[: n % 3], ("yes", "no", "yes")[: n % 4], n), n % 3, text
        )
        for n, text in enumerate(texts)
    ]
    columns = Columns.of(iter(rows), tokenizer, max_text_tokens=20)
    examples = ImageTextExamples(columns, images, target_size=6, fingerprint="")
    assert list(examples.rows) == [row.answered for row in rows]
    assert list(examples.select([3, 1]).rows) == [rows[3].answered, rows[1].answered]
    for index, text in enumerate(texts):
        (sequence,) = examples.make(index, 7).sequences
        assert sequence.token_ids.tolist() == join_texts([tokenizer.encode(text)], max_text_tokens=20).tolist()
        assert examples.lengths(index, 7) == [sequence.length]


def test_a_file_without_labels_gets_answers_and_no_measure(folder, tokenizer):
    (folder / "test.jsonl").write_text(json.dumps({"Flickr30K_ID": "4705552913", "sentence2": "a film is good"}))
    task, config, examples = small.open_task("snli-ve", folder, tokenizer, "test")
    found = task.evaluate(small.plain_engine(config), examples, config=config, tokenizer=tokenizer)
    assert (found.metrics, [one["key"] for one in found.predictions]) == ({}, [f"{folder}/test.jsonl:1"])
    assert "no labels" in found.notes["metrics"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (entailment("maybe"), r"train.jsonl:1 has the unknown label 'maybe'; this task knows contradiction"),
        (entailment("neutral", image="12"), r"train.jsonl:1 names the image '12', which .* does not hold"),
        (entailment("neutral", text="  "), r"train.jsonl:1 has an empty text"),
        (entailment("neutral", text="\ud800"), r"train.jsonl:1 has a text that is no Unicode"),
    ],
)
def test_bad_lines_of_snli_ve_are_named(folder, tokenizer, line, said):
    write_snli_ve(folder, line)
    with pytest.raises(UserError, match=said):
        small.open_task("snli-ve", folder, tokenizer)


def test_a_line_of_snli_ve_without_a_label_is_not_left_out(folder, tokenizer):
    line = {name: value for name, value in entailment("neutral").items() if name != "gold_label"}
    write_snli_ve(folder, entailment("neutral"), entailment("-"), line)
    task, _, examples = small.open_task("snli-ve", folder, tokenizer)
    assert task.unanswered(examples) == f"{folder / 'snli_ve_train.jsonl'}:3"


def test_images_without_a_kept_name_are_found_by_their_key(tmp_path, tokenizer):
    corpus = Corpus.open(small.write_images(tmp_path / "images", [""], tokenizer))
    assert ImageNames(corpus).find(corpus.key(0), "here") == 0


def test_a_name_of_several_images_is_refused_where_it_is_asked_for(tmp_path, tokenizer):
    """In folders of their own, files may have one name: none of them may be taken for the other."""
    files = ["a/1.jpg", "b/1.jpg", "b/2.jpg", "front-3.jpg", "back-3.jpg"]
    names = ImageNames(Corpus.open(small.write_images(tmp_path / "images", files, tokenizer)))
    assert [names.find(name, "here") for name in ("2", 2, "back-3.jpg")] == [2, 2, 4]
    for name in ("1", "a/1.jpg", 1, 3):
        with pytest.raises(UserError, match=f"here names the image {name!r}, of which .* holds several"):
            names.find(name, "here")


def test_missing_images_are_said(tmp_path, tokenizer):
    write_snli_ve(tmp_path, entailment("neutral"))
    with pytest.raises(UserError, match=r"there is no data folder at .*images; make it with"):
        small.open_task("snli-ve", tmp_path, tokenizer)


def write_vqa(folder: Path, questions: dict[int, tuple[int, str, list[str]]]) -> None:
    asked = [{"question_id": q, "image_id": image, "question": text} for q, (image, text, _) in questions.items()]
    given = [
        {
            "question_id": q,
            "image_id": image,
            "answers": [{"answer": one, "answer_id": n} for n, one in enumerate(people)],
        }
        for q, (image, _, people) in questions.items()
    ]
    (folder / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps({"questions": asked}))
    (folder / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": given}))


QUESTIONS = {
    1: (9, "is it good", ["yes"] * 10),
    2: (9, "is it dull", ["no"] * 6 + ["not really"] * 4),
    3: (25, "is it a film", ["Yes."] * 7 + ["maybe"] * 3),
    4: (25, "which film", ["casablanca"] * 10),
}


def test_vqa_vocabulary_and_soft_scores():
    people = [answers for _, _, answers in QUESTIONS.values()]
    assert vocabulary_of(people, 1) == ["yes", "casablanca", "no"]
    assert vocabulary_of(people, 2) == ["yes"]
    scores = dict(soft_scores(["no"] * 6 + ["not really"] * 2 + ["two"] + ["2"], {"no": 0, "2": 1, "not really": 2}))
    assert scores == pytest.approx({0: 1.0, 1: 0.6, 2: 0.6})
    assert soft_scores(["x"] * 10, {"no": 0}) == ()


def test_vqa(folder, tokenizer):
    write_vqa(folder, QUESTIONS)
    task, config, examples = small.open_task("vqa", folder, tokenizer, "train", "finetune.answer_min_count=2")
    assert config.finetune.num_outputs == 1
    assert [row.key.rpartition(" ")[2] for row in examples.rows] == ["1", "3"], "others cannot be answered"
    task, config, examples = small.open_task("vqa", folder, tokenizer, "train", "finetune.answer_min_count=1")
    engine = small.plain_engine(config)
    batch = pack_examples([examples.make(index, 0) for index in range(4)], feature_size=8, target_size=3)
    np.testing.assert_allclose(batch.targets[1].numpy(), [0, 0, 1.0])
    assert task.loss_sum(engine.forward(batch), batch, config.finetune).item() > 0
    found = task.evaluate(engine, examples, config=config, tokenizer=tokenizer)
    assert found.metrics["reachable"] == pytest.approx(1.0)
    assert 0 <= found.metrics["accuracy"] <= 1
    assert all(one["answer"] in ("yes", "casablanca", "no") for one in found.predictions)


def test_what_the_vocabulary_can_reach_is_counted_as_the_measure_counts(folder, tokenizer):
    """Where all people agree nothing is normalised, so a normalised answer is wrong."""
    write_vqa(folder, {1: (9, "how many", ["two"] * 10), 2: (9, "is it good", ["yes"] * 10)})
    task, config, examples = small.open_task("vqa", folder, tokenizer, "train", "finetune.answer_min_count=1")
    assert examples.answers == ["2", "yes"]
    found = task.evaluate(small.plain_engine(config), examples, config=config, tokenizer=tokenizer)
    assert found.metrics["reachable"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "has no list of objects named 'annotations'"),
        ('{"annotations": {"question_id": 1}}', "has no list of objects named 'annotations'"),
        ('{"annotations": []}', "has no entries in a list 'annotations'"),
        ('{"annotations": [{"question_id": 1, "answers": [{"answer": "yes"}]}', "is cut or not valid JSON"),
        ('{"annotations": [{"question_id": 1, "answers": [{"answer": NaN}]}]}', "is not valid JSON: NaN"),
        ('{"annotations": [7]}', "has no list of objects named 'annotations'"),
        (
            '{"annotations": [{"question_id": 1, "answers": [{"answr": "yes"}]}]}',
            "is not in VQA's form (KeyError: 'answer')",
        ),
        (
            '{"annotations": [{"question_id": 1e300, "answers": [{"answer": "yes"}]}]}',
            "is not in VQA's form (OverflowError",
        ),
        ('{"annotations": [{"question_id": 1, "answers": []}]}', "question 1 has no answers"),
        ('{"annotations": [{"question_id": 1, "answers": [{"answer": null}]}]}', "question 1 has null where a text"),
        (
            '{"annotations": [{"question_id": 1, "answers": [{"answer": "\\ud800"}]}]}',
            "question 1 has a text that is no",
        ),
        ('{"annotations": [{"question_id": 1.5, "answers": [{"answer": "yes"}]}]}', "1.5 is no whole number"),
        (json.dumps({"annotations": [{"question_id": 1, "answers": [{"answer": "a"}]}] * 2}), "1 has answers twice"),
        (b'{"annotations": [{"question_id": "\xff"}]}', "is not UTF-8: "),
        ("[" * 100, "is cut or not valid JSON"),
        *((opening + "[" * 100_000, "nested too deeply") for opening in ("", '{"annotations": ', '{"annotations": [')),
    ],
)
def test_damaged_documents_are_one_sentence(folder, tokenizer, content, said):
    write_vqa(folder, QUESTIONS)
    path = folder / "v2_mscoco_train2014_annotations.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(f"{path}") + ".*" + re.escape(said)) as caught:
        small.open_task("vqa", folder, tokenizer)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(str(path)) == 1


def test_answers_outside_of_the_vocabulary_are_said(folder, tokenizer):
    write_vqa(folder, QUESTIONS)
    with pytest.raises(UserError, match=r"no answer of .* occurs 9 times, so the vocabulary is empty; lower"):
        small.open_task("vqa", folder, tokenizer)
    task = tasks.load("vqa")
    config, _ = task.settle(small.task_config("vqa", tokenizer, "finetune.answer_min_count=1"), folder)
    with pytest.raises(UserError, match=r"the checkpoint scores 3 answers, but its task.json lists 2"):
        task.open(folder, "train", tokenizer=tokenizer, config=config, assets={"answers": ["yes", "no"]})
    with pytest.raises(UserError, match="every answer is outside of the vocabulary"):
        task.open(folder, "train", tokenizer=tokenizer, config=config, assets={"answers": ["a", "b", "c"]})


def test_a_question_without_answers_and_a_photograph_that_is_not_there(folder, tokenizer):
    write_vqa(folder, {**QUESTIONS, 5: (77, "where", ["yes"] * 10)})
    with pytest.raises(UserError, match=r"question 5 names the image 77, which"):
        small.open_task("vqa", folder, tokenizer, "train", "finetune.answer_min_count=1")
    write_vqa(folder, QUESTIONS)
    path = folder / "v2_OpenEnded_mscoco_train2014_questions.json"
    asked = json.loads(path.read_text())
    asked["questions"].append({"question_id": 8, "image_id": 9, "question": "why"})
    path.write_text(json.dumps(asked))
    with pytest.raises(UserError, match=r"question 8 has no answers in"):
        small.open_task("vqa", folder, tokenizer, "train", "finetune.answer_min_count=1")
