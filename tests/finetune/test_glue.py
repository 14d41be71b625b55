"""GLUE's files as their publisher writes them, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.finetune import small
from unimo_ds.data.joined_texts import join_texts
from unimo_ds.data.schema import CLS, SEP
from unimo_ds.finetune import predict, tasks
from unimo_ds.utils.errors import UserError

MNLI_HEADER = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
    "sentence1\tsentence2\tlabel1\tgold_label"
)
STSB_HEADER = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"


def rows(name: str, folder: Path, split: str):
    return [(row.texts, row.target) for row in tasks.load(name).read(folder, split)]


def write(folder: Path, name: str, *lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_sst2(tmp_path):
    write(tmp_path, "train.tsv", "sentence\tlabel", 'it "works" \t1', "it does not\t0")
    assert rows("sst2", tmp_path, "train") == [(('it "works"',), 1.0), (("it does not",), 0.0)]
    write(tmp_path, "test.tsv", "index\tsentence", "0\tno label here")
    ((texts, target),) = rows("sst2", tmp_path, "test")
    assert texts == ("no label here",)
    assert np.isnan(target)


def test_cola_has_no_header_but_in_its_test_set(tmp_path):
    write(tmp_path, "train.tsv", "gj04\t1\t\tOur friends won't buy this.", "bc01\t0\t*\tThey drank the pub.")
    assert rows("cola", tmp_path, "train") == [(("Our friends won't buy this.",), 1.0), (("They drank the pub.",), 0.0)]
    write(tmp_path, "test.tsv", "index\tsentence", "0\tBill coughed.")
    assert rows("cola", tmp_path, "test")[0][0] == ("Bill coughed.",)


def test_mnli_reads_both_development_parts(tmp_path, monkeypatch):
    line = "0\t1\t1n\tfiction\t( a )\t( b )\t(A)\t(B)\ta man\ta person\tneutral\t{}"
    write(tmp_path, "dev_matched.tsv", MNLI_HEADER, line.format("neutral"), line.format("entailment"))
    write(tmp_path, "dev_mismatched.tsv", MNLI_HEADER, line.format("contradiction"))
    found = list(tasks.load("mnli").read(tmp_path, "dev"))
    assert [row.target for row in found] == [2.0, 1.0, 0.0]
    assert found[0].texts == ("a man", "a person")
    tokenizer = small.train_tokenizer()
    task, config, examples = small.open_task("mnli", tmp_path, tokenizer, "dev")
    monkeypatch.setattr(predict, "scores", lambda *_, **__: np.eye(3, dtype=np.float32)[[2, 0, 0]])
    measured = task.evaluate(None, examples, config=config, tokenizer=tokenizer)
    assert measured.metrics == {"accuracy_matched": 0.5, "accuracy_mismatched": 1.0}


def test_stsb(tmp_path):
    line = "0\tmain\tmisc\t2012\t1\tnone\tnone\tA plane.\tAn air plane.\t{}"
    write(tmp_path, "train.tsv", STSB_HEADER, line.format("5.000"), line.format("3.8"))
    assert rows("stsb", tmp_path, "train") == [
        (("A plane.", "An air plane."), 5.0),
        (("A plane.", "An air plane."), 3.8),
    ]


def test_lines_end_where_the_publishers_do(tmp_path):
    """Quotes open nothing, Windows' ends and marks are no text, and other separators of Unicode end no line."""
    lines = ["sentence\tlabel", '"a quote is opened\t1', "two\u2028parts\x85and\x0bmore\t0", 'closed"\t1']
    (tmp_path / "train.tsv").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    found = rows("sst2", tmp_path, "train")
    assert [target for _, target in found] == [1.0, 0.0, 1.0]
    assert [text for (text,), _ in found] == ['"a quote is opened', "two\u2028parts\x85and\x0bmore", 'closed"']


@pytest.mark.parametrize(
    ("name", "lines", "said"),
    [
        (
            "sst2",
            ("sentence\tlabel", "fine\tpositive"),
            r"train.tsv:2 has the unknown label 'positive'; this task knows 0, 1",
        ),
        ("sst2", ("sentence\tlabel", "a\t1", " \t1"), r"train.tsv:3 has an empty text"),
        ("sst2", ("sentence\tlabel", "just one column"), r"train.tsv:2 has 1 columns where 2 are named"),
        ("sst2", ("sentnce\tlabel", "a\t1"), r"no column 'sentence'; did you mean 'sentnce'"),
        ("cola", ("gj04\t2\t\tHello.",), r"train.tsv:1 has the unknown label '2'"),
        ("stsb", (STSB_HEADER, "0\tm\tm\t1\t1\tn\tn\ta\tb\t7"), r"has the score '7', not a number from 0 to 5"),
        ("stsb", (STSB_HEADER, "0\tm\tm\t1\t1\tn\tn\ta\tb\tx"), r"has the score 'x'"),
    ],
)
def test_bad_lines_are_named(tmp_path, name, lines, said):
    write(tmp_path, "train.tsv", *lines)
    with pytest.raises(UserError, match=said):
        list(tasks.load(name).read(tmp_path, "train"))


def test_a_missing_file_and_an_unknown_task_are_named(tmp_path):
    with pytest.raises(UserError, match=r"has none of train.tsv, sst2_train.tsv"):
        list(tasks.load("sst2").read(tmp_path, "train"))
    for name in ("sst2", "gigaword"):
        with pytest.raises(UserError, match=r"there is no folder .*gone; give the folder"):
            list(tasks.load(name).read(tmp_path / "gone", "train"))
    with pytest.raises(UserError, match="unknown task 'sts2'; did you mean"):
        tasks.load("sts2")


def test_a_line_that_is_not_utf8_is_named_by_its_number(tmp_path):
    (tmp_path / "train.tsv").write_bytes(
        b"sentence\tlabel\n" + b"good\t1\n" * 3000 + b"caf\xe9\t1\n" + b"good\t1\n" * 9
    )
    with pytest.raises(UserError, match=r"train.tsv:3002 is not UTF-8"):
        list(tasks.load("sst2").read(tmp_path, "train"))


def test_no_file_of_a_split_may_be_without_examples(tmp_path):
    """MNLI's measure that chooses the best checkpoint would be missing, after an epoch of training."""
    header = "sentence1\tsentence2\tgold_label"
    write(tmp_path, "dev_matched.tsv", header)
    write(tmp_path, "dev_mismatched.tsv", header, "a\tb\tneutral")
    with pytest.raises(UserError, match=r"dev_matched.tsv holds no example"):
        list(tasks.load("mnli").read(tmp_path, "dev"))


def test_the_longer_text_loses_its_end():
    a, b = np.arange(10, 20, dtype=np.int32), np.arange(30, 34, dtype=np.int32)
    assert join_texts([a, b], max_text_tokens=64).tolist() == [CLS, *range(10, 20), SEP, *range(30, 34), SEP]
    cut = join_texts([a, b], max_text_tokens=11).tolist()
    assert cut == [CLS, *range(10, 14), SEP, *range(30, 34), SEP]
    assert len(join_texts([a, b], max_text_tokens=5)) == 5


def test_the_files_decide_the_fingerprint(tmp_path):
    small.write_sst2(tmp_path / "a")
    small.write_sst2(tmp_path / "b")
    tokenizer = small.train_tokenizer()

    def fingerprint(name: str) -> str:
        _, _, examples = small.open_task("sst2", tmp_path / name, tokenizer, "dev")
        return examples.fingerprint

    assert fingerprint("a") == fingerprint("b")
    with (tmp_path / "b" / "dev.tsv").open("a") as file:
        file.write("one more\t1\n")
    assert fingerprint("a") != fingerprint("b")
