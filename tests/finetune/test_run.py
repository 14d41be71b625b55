"""`unimo finetune` as a user runs it: stopped and resumed to the bit, several seeds joined, and what bad input says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch

from tests.distributed.launching import launch
from tests.finetune import small
from tests.runs import logged
from unimo_ds import cli

MAIN = Path(__file__).parents[2] / "unimo_ds" / "__main__.py"
SETTINGS = ("finetune.epochs=2", "logging.every_steps=1", "batch.global_samples=8", "optimizer.peak_learning_rate=1e-3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("finetune")
    small.write_checkpoint(path / "start")
    small.write_sst2(path / "data", train=40, dev=10)
    return path


def arguments(folder: Path, name: str, *more: str) -> list[str]:
    changes = [part for setting in SETTINGS for part in ("--set", setting)]
    paths = ["--data", str(folder / "data"), "--checkpoint", str(folder / "start"), "--run-dir", str(folder / name)]
    return ["finetune", "sst2", *paths, *changes, *more]


def test_stopped_and_resumed_is_the_same_run_and_seeds_are_joined(folder, capsys):
    launch(MAIN, arguments(folder, "straight", "--seeds", "2"), processes=1)
    result = json.loads((folder / "straight" / "results.json").read_text())
    assert [one["seed"] for one in result["seeds"]] == [0, 1]
    values = [one["metrics"]["accuracy"] for one in result["seeds"]]
    assert result["metrics"]["accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    assert result["metrics"]["accuracy"]["confidence_95"] is not None
    straight = logged(folder / "straight" / "seed-0")
    assert straight != logged(folder / "straight" / "seed-1")
    assert [step for step, values in straight.items() if "dev/accuracy" in values] == [5, 10]

    stop = folder / "stopped" / "seed-0" / "stop"
    stop.parent.mkdir(parents=True)
    stop.touch()
    output = launch(MAIN, arguments(folder, "stopped"), processes=1)
    assert "stopped at step 1" in output
    assert not (folder / "stopped" / "results.json").exists()
    stop.unlink()
    output = launch(MAIN, arguments(folder, "stopped"), processes=1)
    assert "resuming from" in output
    assert logged(folder / "stopped" / "seed-0") == straight
    for name in ("model.safetensors", "exp_avg_sq.safetensors"):
        files = [folder / run / "seed-0" / "checkpoints" / "step-10" / name for run in ("straight", "stopped")]
        assert files[0].read_bytes() == files[1].read_bytes()
    again = json.loads((folder / "stopped" / "results.json").read_text())
    assert again["seeds"][0]["metrics"] == result["seeds"][0]["metrics"]

    # With --json, stdout is JSON alone.
    words = [*arguments(folder, "straight", "--seeds", "2"), "--json"]
    told = subprocess.run([sys.executable, str(MAIN), *words], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout)["seeds"] == result["seeds"]
    assert "nothing to do: " in told.stderr
    assert "Setting accelerator" not in told.stderr

    # What is done is not told as the result of another rate.
    written = (folder / "stopped" / "results.json").read_bytes()
    other_rate = arguments(folder, "stopped", "--set", "optimizer.peak_learning_rate=2e-3")
    refused = subprocess.run([sys.executable, str(MAIN), *other_rate], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "is trained and measured with optimizer.peak_learning_rate=0.001, not 0.002; give that" in refused.stderr
    assert (folder / "stopped" / "results.json").read_bytes() == written
    frozen = arguments(folder, "stopped", "--set", "optimizer.rate_factors.layers=0")
    refused = subprocess.run([sys.executable, str(MAIN), *frozen], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "is trained and measured with optimizer.rate_factors.layers=None, not 0.0; give that" in refused.stderr

    # With more steps it goes on, and is measured anew.
    launch(MAIN, arguments(folder, "stopped", "--set", "schedule.total_steps=11"), processes=1)
    longer = json.loads((folder / "stopped" / "results.json").read_text())
    assert longer["seeds"][0]["steps"] == 11

    # The best checkpoint is kept, measured, and measured alike by `unimo evaluate`.
    best = folder / "straight" / "seed-0" / "checkpoints" / "best"
    assert best.read_text().strip() == result["seeds"][0]["checkpoint"]
    target, written = folder / "evaluated.json", folder / "predictions.jsonl"
    command = ["evaluate", "sst2", "--checkpoint", str(best), "--data", str(folder / "data")]
    assert cli.main([*command, "--json", str(target), "--predictions", str(written)]) == 0
    assert json.loads(target.read_text())["metrics"] == result["seeds"][0]["metrics"]
    assert len(written.read_text().splitlines()) == 10
    assert cli.main([*command, "--set", "finetune.generation.beams=1"]) == 2
    assert "sst2 does not read it, tasks that write do" in capsys.readouterr().err


def test_a_frozen_body_keeps_its_bits_and_a_part_that_is_not_there_is_told(folder: Path) -> None:
    frozen = ("--set", "optimizer.rate_factors.text_embedding=0", "--set", "optimizer.rate_factors.layers=0")
    wrong = arguments(folder, "frozen", *frozen, "--set", "optimizer.rate_factors.layer.1=0.5")
    refused = subprocess.run([sys.executable, str(MAIN), *wrong], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    sentence = "optimizer.rate_factors.layer.1: the model has no such part; did you mean 'layers.1'?"
    assert refused.stderr.splitlines()[-1] == f"error: {sentence}"
    launch(MAIN, arguments(folder, "frozen", *frozen, "--set", "engine.deepspeed_config=zero2_bf16"), processes=2)
    before = safetensors.torch.load_file(folder / "start" / "model.safetensors")
    checkpoint = folder / "frozen" / "seed-0" / "checkpoints" / "step-10"
    after = safetensors.torch.load_file(checkpoint / "model.safetensors")
    moments = safetensors.torch.load_file(checkpoint / "exp_avg.safetensors")
    assert after["head.scores.output.weight"].any()
    assert not after["text_pooler.dense.weight"].equal(before["text_pooler.dense.weight"])
    for name in before:
        if name.startswith(("text_embedding.", "layers.")):
            assert after[name].equal(before[name])
            assert not moments[name].any()


def test_all_seeds_begin_with_the_same_weights(folder: Path) -> None:
    launch(MAIN, arguments(folder, "begun", "--seeds", "1"), processes=1)
    moved = safetensors.torch.load_file(folder / "start" / "model.safetensors")
    other = folder / "other"
    small.write_checkpoint(other)
    moved["text_pooler.dense.weight"] = moved["text_pooler.dense.weight"] + 1e-3
    safetensors.torch.save_file(moved, other / "model.safetensors")

    def answer(checkpoint: Path, seeds: int, *more: str) -> subprocess.CompletedProcess[str]:
        words = arguments(folder, "begun", "--seeds", str(seeds), "--checkpoint", str(checkpoint), *more)
        return subprocess.run(
            [sys.executable, str(MAIN), *words], capture_output=True, text=True, check=False, timeout=300
        )

    refused = answer(other, 2)
    assert refused.returncode == 2
    assert f"begun was begun with --checkpoint {folder / 'start'}, which is not the same" in refused.stderr
    assert "from scratch; give --checkpoint" in answer(folder / "start", 2, "--from-scratch").stderr
    assert not (folder / "begun" / "seed-1").exists()
    assert answer(other, 1).returncode == 2, "no result is told as that of other weights"
    record, note = folder / "begun" / "results.json", folder / "begun" / "start.json"
    written = record.read_text()
    assert answer(folder / "start", 1, "--from-scratch").returncode == 2
    kept = note.read_text()
    note.unlink()  # as of a directory from before
    assert answer(other, 1).returncode == 2
    assert answer(folder / "start", 1, "--from-scratch").returncode == 2
    assert answer(folder / "start", 1).returncode == 0
    assert note.read_text() == kept
    assert record.read_text() == written
    (folder / "start").rename(folder / "renamed")
    try:
        assert answer(folder / "renamed", 2).returncode == 0, "the same weights elsewhere"
    finally:
        (folder / "renamed").rename(folder / "start")
    note.write_text(kept.replace(json.loads(kept)["fingerprint"], 16 * "0"))
    assert answer(folder / "start", 2).returncode == 0, "what is done is read: a run may have gone on there"
    assert answer(folder / "start", 3).returncode == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("--checkpoint", "{folder}/data"), "is not a run, a checkpoint or an exported model"),
        (("--data", "{folder}/start"), "has none of train.tsv, sst2_train.tsv"),
        (("--set", "finetune.epoch=1"), "unknown key 'finetune.epoch'; did you mean 'epochs'?"),
        (("--set", "seed=3"), "--set seed=... is not taken; --seeds N"),
        (("--set", "data.path=x"), "--set data.path=... is not taken; give --data"),
        (("--set", "finetune.task=cola"), "--set finetune.task=... is not taken; name the task"),
        (("--set", "model.initialize_from=roberta"), "--set model.initialize_from=... is not taken; give --checkpoint"),
        (("--seeds", "0"), "--seeds 0 must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(folder, tmp_path, changes, said, capsys):
    filled = [text.format(folder=folder) for text in changes]
    assert cli.main([*arguments(folder, "bad"), *filled]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "dev"])
def test_files_without_labels_are_told_before_training(tmp_path, folder, split, capsys):
    data = small.write_sst2(tmp_path / "data")
    lines = (data / f"{split}.tsv").read_text().splitlines()
    (data / f"{split}.tsv").write_text("\n".join(line.partition("\t")[0] for line in lines))
    assert cli.main([*arguments(folder, "unlabelled"), "--data", str(data)]) == 2
    assert f"{split}.tsv:2 has no label, so it can be neither learned from nor measured on" in capsys.readouterr().err
    assert not (folder / "unlabelled").exists()


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        ("sst", (), "unknown task 'sst'; did you mean 'sst2'?"),
        ("sst2", ("--seeds", "0"), "--seeds 0 must be at least 1"),
        ("sst2", ("--set", "finetune.epoch=1"), "unknown key 'finetune.epoch'; did you mean 'epochs'?"),
        ("sst2", ("--data", "nowhere"), "there is nothing at --data nowhere; give the folder of the task's"),
        ("sst2", ("--checkpoint", "nowhere"), "there is nothing at --checkpoint nowhere; give a run directory"),
        ("sst2", ("--tokenizer", "nowhere"), "there is nothing at --tokenizer nowhere; give tokenizer.json"),
    ],
)
def test_mistakes_of_the_command_line_are_told_before_heavy_imports(tmp_path, task, changes, said):
    code = "import sys; from unimo_ds import cli; print(cli.main(sys.argv[1:]), *{'torch', 'numpy'} & {*sys.modules})"
    words = ["finetune", task, "--data", str(tmp_path), "--checkpoint", str(tmp_path), *changes]
    found = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=60)
    assert said in found.stderr
    assert found.stdout.split() == ["2"]


def test_the_wrong_kind_of_checkpoint_is_said(folder, capsys):
    data = ["--data", str(folder / "data")]
    assert cli.main(["evaluate", "sst2", "--checkpoint", str(folder / "start"), *data]) == 2
    assert "is a pre-trained model, not one fine-tuned on sst2; run `unimo finetune sst2" in capsys.readouterr().err
    tuned = folder / "straight" / "seed-0"
    if tuned.is_dir():
        assert cli.main(["evaluate", "cola", "--checkpoint", str(tuned), *data]) == 2
        assert "is fine-tuned on sst2, not on cola" in capsys.readouterr().err
