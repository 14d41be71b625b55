"""`unimo report`: published figures as published, ours where they were measured, nothing else."""

from __future__ import annotations

import json

import pytest

from unimo_ds import cli
from unimo_ds.finetune import tasks
from unimo_ds.reporting import report
from unimo_ds.reporting.tables import TABLES


def write(path, task: str, split: str, metrics: dict, **more) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"task": task, "split": split, "best_metric": "x", "metrics": metrics, **more}))


def seeds(mean: float, half_width: float | None) -> dict:
    return {"mean": mean, "confidence_95": half_width, "max": mean}


def test_every_column_is_filled_by_a_task_and_every_published_row_is_whole():
    for table in TABLES:
        for column in table.columns:
            assert tasks.load(column.task).name == column.task
        assert all(len(cells) == len(table.columns) for _, cells in table.published)
    base = dict(TABLES[1].published)["UNIMO-base"]
    assert base[0] == "95.1"
    assert dict(TABLES[3].published)["UNIMO"] == base, "the same model in two tables"


def test_measured_cells_are_filled_and_others_stay_empty(tmp_path):
    write(tmp_path / "sst2" / "results.json", "sst2", "dev", {"accuracy": seeds(0.825, 0.0123)}, seeds=[{}, {}, {}])
    recalls = {f"text_to_image/r@{k}": value for k, value in ((1, 0.1), (5, 0.25))}
    write(tmp_path / "retrieval_test.json", "retrieval", "test", recalls)
    write(tmp_path / "captions.json", "captioning", "dev", {"bleu_4": 0.125, "cider": 0.5})
    write(tmp_path / "vqa.json", "vqa", "dev", {"accuracy": 0.5})
    (tmp_path / "sst2" / "config.json").write_text("{}")
    (tmp_path / ".half-written.json").write_text("{")
    row = report.parse_row(f"two layers={tmp_path}")
    text = report.to_markdown([row])
    assert "| **two layers** | 82.50 ± 1.23 |  |  |  |  |  |  |  |" in text
    assert "| **two layers** | 10.00/25.00/– |  |  | 50.00 (dev) | 12.50/50.00 (dev) |" in text
    assert "| UNIMO-base | 74.66/93.40/96.08 |" in text
    assert f"`{tmp_path}/sst2/results.json` (3 seeds)" in text
    of_pairs, of_texts = (table["this_project"]["two layers"] for table in report.to_json([row])["tables"][:2])
    number = {"percent": 82.5, "confidence_95": pytest.approx(1.23), "seeds": 3, "split": "dev"}
    assert of_texts["SST-2"] == [number | {"file": f"{tmp_path}/sst2/results.json"}]
    number = {"percent": 50.0, "confidence_95": None, "seeds": 1, "split": "dev", "file": f"{tmp_path}/vqa.json"}
    assert of_pairs["VQA test-dev/test-std"] == [number]


def test_without_results_our_row_is_empty(capsys, tmp_path):
    target = tmp_path / "tables.json"
    assert cli.main(["report", "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "| **this project** |  |  |  |  |  |" in printed
    assert "None: nothing was measured yet." in printed
    tables = json.loads(target.read_text())["tables"]
    assert [table["title"][:7] for table in tables] == ["Table 1", "Table 2", "Table 3", "Table 4"]
    assert tables[0]["published"]["UNIMO-large"]["SNLI-VE val/test"] == "81.11/80.63"


def test_bad_input_is_said(tmp_path, capsys):
    assert cli.main(["report", "--ours", "runs"]) == 2
    assert "must be LABEL=FOLDER" in capsys.readouterr().err
    assert cli.main(["report", "--ours", f"a={tmp_path}/nothing"]) == 2
    assert "no folder at" in capsys.readouterr().err
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    assert cli.main(["report", "--ours", f"a={tmp_path}"]) == 2
    told = capsys.readouterr()
    assert f"{tmp_path} holds no results;" in told.err
    assert not told.out
    for name in ("one", "two"):
        write(tmp_path / name / "results.json", "cola", "dev", {"matthews": seeds(0.1, None)})
    assert cli.main(["report", "--ours", f"a={tmp_path}"]) == 2
    assert "both measure cola on dev" in capsys.readouterr().err
    write(tmp_path / "two" / "results.json", "sst2", "dev", {"accuracy": 0.5}, max_examples=50)
    assert cli.main(["report", "--ours", f"a={tmp_path}"]) == 2
    assert "measures 50 examples alone (--max-examples)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        (
            '{"task": "cola", "split": "dev", "best_metric": "matthews", "metrics": []}',
            "metrics has [] where an object belongs",
        ),
        ('{"task": 5, "split": "dev", "best_metric": "matthews", "metrics": {}}', "task has 5 where a text belongs"),
        (
            '{"task": "cola", "split": "dev", "best_metric": "matthews", "metrics": {"matthews": {"mean": NaN}}}',
            "metrics: matthews",
        ),
    ],
)
def test_a_damaged_result_is_said(tmp_path, capsys, content, said):
    """Its cell would be empty without a word."""
    (tmp_path / "results.json").write_text(content)
    assert cli.main(["report", "--ours", f"a={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert str(tmp_path / "results.json") in told
