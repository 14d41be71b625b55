"""What is wrong with a fine-tuning's input is told once for all of its ranks, which all end with status 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.launching import deepspeed, launch, mpirun, started
from tests.finetune import small

MAIN = Path(__file__).parents[2] / "unimo_ds" / "__main__.py"
WORKER = Path(__file__).with_name("refused_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("refused")
    tokenizer = small.train_tokenizer()
    small.write_checkpoint(path / "start", tokenizer)
    for rank in range(2):
        small.write_sst2(path / f"alike-{rank}")
        small.write_sst2(path / f"uneven-{rank}", train=40 + 8 * rank)
        small.write_sst2(path / f"other-{rank}")
        small.write_sst2(path / f"one-bad-{rank}")
        small.write_sst2(path / f"all-bad-{rank}")
    (path / "other-1" / "dev.tsv").write_text("sentence\tlabel\nanother one\t1\n")
    (path / "one-bad-1" / "train.tsv").write_text("sentence\tlabel\na film\tmaybe\n")
    for rank in range(2):
        (path / f"all-bad-{rank}" / "train.tsv").write_text("sentence\tlabel\na film\n")
    small.write_checkpoint(path / "cut", tokenizer)
    (path / "cut" / "model.safetensors").write_bytes((path / "start" / "model.safetensors").read_bytes()[:999])
    small.write_checkpoint(path / "another", tokenizer)
    config = json.loads((path / "start" / "config.json").read_text())
    config["model"]["hidden_size"] = 64
    (path / "another" / "config.json").write_text(json.dumps(config))
    return path


def words(folder: Path, data: str, *more: str, start: str = "start", task: str = "sst2") -> list[str]:
    paths = {"--data": folder / data, "--checkpoint": folder / start, "--run-dir": folder / "run"}
    return ["finetune", task, *(str(word) for pair in paths.items() for word in pair), *more]


def test_each_problem_is_told_once_and_every_rank_ends(folder: Path) -> None:
    """Cases after the first find the process group joined, as those of a second seed do."""
    cases = {
        "no task": (words(folder, "alike-0", task="sts2"), "unknown task 'sts2'; did you mean 'stsb'?"),
        "no seeds": (words(folder, "alike-0", "--seeds", "0"), "--seeds 0 must be at least 1"),
        "no checkpoint": (
            words(folder, "alike-0", start="nowhere"),
            f"there is nothing at --checkpoint {folder / 'nowhere'}",
        ),
        "cut checkpoint": (words(folder, "alike-0", start="cut"), f"cannot read the weights {folder / 'cut'}"),
        "another model": (words(folder, "alike-0", start="another"), "does not fit the model of"),
        "no setting": (words(folder, "alike-0", "--set", "finetune.epoch=1"), "unknown key 'finetune.epoch'"),
        "no DeepSpeed file": (words(folder, "alike-0", "--set", "engine.deepspeed_config=zero9"), "zero9"),
        "no file": (words(folder, "start"), "has none of train.tsv, sst2_train.tsv"),
        "bad row": (words(folder, "all-bad-0"), f"{folder / 'all-bad-0' / 'train.tsv'}:2 has 1 columns"),
        "a rank's bad row": (words(folder, "one-bad-{rank}"), "train.tsv:2 has the unknown label 'maybe'"),
        "other data": (words(folder, "other-{rank}"), "differs from rank 0 in data.path="),
        "more data": (words(folder, "uneven-{rank}"), "differs from rank 0 in data.path="),
        "evaluated": (
            ["evaluate", "sst2", "--checkpoint", str(folder / "start"), "--data", str(folder / "alike-0")],
            "is a pre-trained model, not one fine-tuned on sst2",
        ),
        "too long": (words(folder, "alike-0", "--set", "batch.micro_batch_tokens=4"), "stream positions, more than"),
    }
    file = folder / "cases.json"
    file.write_text(json.dumps({name: case for name, (case, _) in cases.items()}))
    found = [json.loads(line) for line in launch(WORKER, [str(file)], processes=2).splitlines() if line[:1] == "{"]
    for name, (_, said) in cases.items():
        ranks = [one for one in found if one["case"] == name]
        assert [one["status"] for one in ranks] == [2, 2], (name, ranks)
        (error,) = [error for one in ranks for error in one["errors"]]
        assert said in error, name


@pytest.mark.parametrize("launcher", [deepspeed, mpirun])
def test_each_launcher_is_told_once(launcher, folder: Path) -> None:
    command = [*launcher(2), *(["--module", "unimo_ds"] if launcher is deepspeed else [str(MAIN)])]
    with started([*command, *words(folder, "all-bad-0")]) as family:
        output, _ = family.communicate(timeout=600)
    assert family.returncode != 0
    assert output.count("error: ") == 1, output[-4000:]
    assert "train.tsv:2 has 1 columns where 2 are named" in output
