"""Files of answers as the tasks' own evaluations take them."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest

from tests.finetune import small
from tests.finetune.test_glue import MNLI_HEADER, write
from tests.finetune.test_image_text import NAMES, QUESTIONS, write_vqa
from tests.finetune.test_writing import coqa_file
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.finetune import answers, tasks
from unimo_ds.utils.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return small.train_tokenizer()


def predictions_of(name: str, folder, tokenizer, split: str, *changes: str):
    task, config, examples = small.open_task(name, folder, tokenizer, split, *changes)
    engine = small.plain_engine(config)
    return task.evaluate(engine, examples, config=config, tokenizer=tokenizer, quick=True).predictions


def test_glue_takes_tables_of_index_and_prediction(tmp_path, tokenizer):
    write(tmp_path, "test.tsv", "index\tsentence", "0\tthe film is good", "1\tthe plot is dull")
    found = predictions_of("sst2", tmp_path, tokenizer, "test")
    answers.check(tmp_path / "deep" / "SST-2.tsv", tasks.load("sst2").official_form)
    answers.write(tmp_path / "deep" / "SST-2.tsv", found)
    lines = (tmp_path / "deep" / "SST-2.tsv").read_text().splitlines()
    assert lines == ["index\tprediction", *(f"{row}\t{one['answer']}" for row, one in enumerate(found))]
    answers.write(tmp_path / "answers.jsonl", found)
    written = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert written == [{"key": one["key"], "answer": one["answer"]} for one in found]


def test_both_parts_of_mnli_have_a_file(tmp_path, tokenizer):
    line = "0\t1\t1n\tfiction\t( a )\t( b )\t(A)\t(B)\ta man\ta person\tneutral\tneutral"
    for part, count in (("matched", 2), ("mismatched", 1)):
        write(tmp_path, f"dev_{part}.tsv", MNLI_HEADER, *[line] * count)
    answers.write(tmp_path / "MNLI.tsv", predictions_of("mnli", tmp_path, tokenizer, "dev"))
    matched, mismatched = (
        [row.split("\t")[0] for row in (tmp_path / f"MNLI_{part}.tsv").read_text().splitlines()]
        for part in ("matched", "mismatched")
    )
    assert (matched, mismatched) == (["index", "0", "1"], ["index", "0"])
    assert not (tmp_path / "MNLI.tsv").exists()


def test_vqa_takes_the_numbers_of_questions(tmp_path, tokenizer):
    small.write_images(tmp_path / "images", NAMES, tokenizer)
    write_vqa(tmp_path, QUESTIONS)
    task, config, examples = small.open_task("vqa", tmp_path, tokenizer, "train", "finetune.answer_min_count=1")
    found = task.evaluate(small.plain_engine(config), examples, config=config, tokenizer=tokenizer).predictions
    answers.write(tmp_path / "answers.json", found)
    written = json.loads((tmp_path / "answers.json").read_text())
    assert written == [{"question_id": number, "answer": one["answer"]} for number, one in enumerate(found, start=1)]


def test_coqa_and_captions(tmp_path, tokenizer):
    short = "finetune.generation.max_tokens=4", "finetune.generation.min_tokens=0", "finetune.generation.beams=1"
    found = predictions_of("coqa", coqa_file(tmp_path), tokenizer, "train", *short)
    answers.write(tmp_path / "coqa.json", found)
    written = json.loads((tmp_path / "coqa.json").read_text())
    assert [(one["id"], one["turn_id"]) for one in written] == [("s1", 1), ("s1", 2), ("s1", 3)]
    assert [one["answer"] for one in written] == [one["answer"] for one in found]
    small.write_pairs(tmp_path / "pairs")
    own = tokenizers.load(tmp_path / "pairs" / "train")
    found = predictions_of("captioning", tmp_path / "pairs", own, "dev", *short)
    answers.write(tmp_path / "captions.json", found)
    written = json.loads((tmp_path / "captions.json").read_text())
    assert all(set(one) == {"image_id", "caption"} for one in written)
    assert len({one["image_id"] for one in written}) == len(found) == 6


def test_captions_name_images_by_their_number_in_coco_and_by_their_name_elsewhere(tmp_path):
    tokenizer = small.write_pairs(tmp_path)
    _, _, examples = small.open_task("captioning", tmp_path, tokenizer, "dev")
    for file, expected in (
        ("val2014/COCO_val2014_000000391895.jpg", 391895),
        ("1000092795.jpg", 1000092795),
        ("2217328285_b1d55c17c4.jpg", "2217328285_b1d55c17c4"),
    ):
        corpus = SimpleNamespace(details=lambda number, file=file: {"file": file})
        examples.pairs = dataclasses.replace(examples.pairs, shelf=SimpleNamespace(corpus=corpus))
        assert examples.official(0, "a dog") == {"image_id": expected, "caption": "a dog"}


@pytest.mark.parametrize(
    ("file", "task", "said"),
    [
        ("a.tsv", "snli-ve", r"no official form in \.tsv; give --predictions FILE\.jsonl"),
        ("a.tsv", "vqa", r"no official form in \.tsv"),
        ("a.json", "sst2", r"no official form in \.json"),
        ("a.json", "gigaword", r"no official form in \.json"),
        ("folder", "sst2", r"cannot write .*folder: it is a folder"),
        ("file/a.jsonl", "sst2", "cannot write"),
    ],
)
def test_files_that_cannot_be_are_told_before_anything_is_measured(tmp_path, file, task, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=said):
        answers.check(tmp_path / file, tasks.load(task).official_form)
