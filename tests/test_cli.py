"""The public commands, run as a user runs them: help, results, JSON, and one sentence with status 2 on bad input."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch

from tests.data.prepare.raw import write_tar
from tests.engine.disks import files_of_at_most
from tests.evaluation import small
from unimo_ds import cli
from unimo_ds.commands.common import emit
from unimo_ds.config import to_dict
from unimo_ds.data import tokenizer as tokenizers
from unimo_ds.data.storage.folder import finish_folder
from unimo_ds.data.storage.shards import StoredSample, write_shards
from unimo_ds.overrides import apply_overrides
from unimo_ds.utils.errors import UserError

COMMANDS = (
    *("prepare", "plan", "inspect", "doctor", "evaluate", "finetune", "report"),
    *("export", "convert", "generate", "search", "kernels"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_corpus(tmp_path_factory.mktemp("data") / "pairs", num_pairs=12)


@pytest.fixture(scope="module")
def run_dir(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as the trainer leaves it, without the training."""
    run = tmp_path_factory.mktemp("runs") / "run"
    config = small.run_config(folder)
    target = run / "checkpoints" / "step-7"
    target.mkdir(parents=True)
    weights = dict(small.make_engine(config).module.named_parameters())
    safetensors.torch.save_file(
        {name: weight.detach() for name, weight in weights.items()}, target / "model.safetensors"
    )
    content = (target / "model.safetensors").read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (target / "manifest.json").write_text(json.dumps({"format": 1, "files": {"model.safetensors": entry}}))
    (target / "state.json").write_text(json.dumps({"progress": {"step": 7, "best": None}, "world_size": 2}))
    (run / "checkpoints" / "latest").write_text("step-7\n")
    (run / "config.json").write_text(json.dumps(to_dict(config)))
    lines = [
        {"step": 6, "time": 1.0, "loss": 3.5},
        {"step": 7, "time": 2.0, "loss": 3.25, "held_out/retrieval/mean_recall": 0.5},
    ]
    lines.append({"step": 7, "event": "saved", "stall_seconds": 0.25})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 8, "lo')
    return run


def test_help_is_quick_and_shows_an_example() -> None:
    code = "import sys; from unimo_ds import cli; cli._parser(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == ["False", "False"], "heavy packages wait until a command runs"


def test_no_words_are_a_question(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert not stopped.value.code
    assert "turn raw corpora into data folders" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "example:" in printed
    assert f"unimo {command}" in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--recipe", "small"], "no command 'train'; train with `python -m unimo_ds.train`"),
        (["plan", "--recipe", "bas_32xv100"], "did you mean 'base_32xv100'"),
        (["plan", "--recipe", "demo", "--set", "model.hiden_size=3"], "did you mean 'hidden_size'"),
        (["plan", "--recipe", "demo", "--data", "nowhere"], "no data folder at nowhere"),
        (["plan", "--recipe", "demo", "--devices", "0"], "must be at least 1"),
        (["evaluate", "retrieval", "--checkpoint", "nowhere", "--data", "x"], "no folder at nowhere"),
        (["evaluate", "retrieval", "--checkpoint", "x", "--data", "x", "--rerank", "-1"], "must not be negative"),
        (
            ["evaluate", "sst2", "--checkpoint", "x", "--data", "x", "--rerank", "3"],
            "--rerank is an option of zero-shot measures, not of a fine-tuned checkpoint; --set finetune.retrieval.rerank=K",
        ),
        (
            ["evaluate", "rewrites", "--checkpoint", "x", "--data", "x", "--predictions", "y"],
            "--predictions is an option of a fine-tuned checkpoint, not of zero-shot measures",
        ),
        (
            ["evaluate", "sst2", "--checkpoint", "x", "--data", "x", "--max-examples", "3", "--predictions", "y.tsv"],
            "y.tsv needs an answer for every example; leave --max-examples out",
        ),
        (["export", "--checkpoint", "nowhere", "--to", "y"], "no folder at nowhere"),
        (
            ["export", "--checkpoint", "x", "--to", "y", "--max-shard-gb", "inf"],
            "--max-shard-gb inf must be a number above 0",
        ),
        (["inspect", "nowhere"], "nothing to inspect at nowhere"),
        (["inspect", "n" * 300], "File name too long"),
        (["inspect", "order"], "needs --data"),
        (["inspect", "order", "--data", "x", "--steps", "3"], "must be A:B"),
        (["inspect", "order", "--data", "x", "--html", "y"], "unimo inspect order has no use for --html; leave it out"),
        (["inspect", "sample", "--data", "x", "--html", "y", "--step", "0"], "has no use for --step; leave it out"),
        (["inspect", "x", "--recipe", "demo"], "unimo inspect x has no use for --recipe"),
        (["inspect", "x", "--html", "y", "--samples", "3"], "has no use for --samples"),
        (["inspect", "batch", "--data", "x", "--steps", "3:4"], "unimo inspect batch has no use for --steps"),
        (["prepare", "verify", "nowhere"], "nowhere"),
        (
            ["prepare", "regions", "x", "--seed", str(2**63)],
            "argument --seed: 9223372036854775808 is no number of 64 bits",
        ),
        (["prepare", "rewrite", "s3://bucket/a"], "s3://bucket/a is a URL where a path on this machine belongs"),
        (
            ["prepare", "import", "--kind", "images", "--images", "https://h/a.tar", "--output", "o"],
            "https://h/a.tar is a",
        ),
        (["prepare", "import", "--kind", "texts", "--input", "a", "--output", "gs://b/o"], "gs://b/o is a URL"),
        (["export", "--checkpoint", "s3://bucket/run", "--to", "y"], "s3://bucket/run is a URL"),
        (
            ["search", "build", "--checkpoint", "x", "--texts", "y", "--output", "s3://bucket/z"],
            "s3://bucket/z is a URL",
        ),
        (["search", "build", "--checkpoint", "x", "--data", "file:///y", "--output", "z"], "file:///y is a URL"),
        (["search", "a dog", "--index", "gs://bucket/z"], "gs://bucket/z is a URL"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert sentence in printed.err
    assert not any(tmp_path.iterdir())


def test_plan_prints_a_table_or_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs_only = ["--set", "data.kind_weights.image=0", "--set", "data.kind_weights.text=0"]
    assert cli.main(["plan", "--recipe", "demo", "--data", str(folder), *pairs_only]) == 0
    assert "ZeRO stage 3" in capsys.readouterr().out
    tight = ["--set", "batch.micro_batch_tokens=10"]
    assert cli.main(["plan", "--recipe", "demo", "--data", str(folder), *pairs_only, *tight]) == 2
    written = capsys.readouterr()
    assert "ZeRO stage 3" in written.out
    assert "more than batch.micro_batch_tokens=10" in written.err, "what training would refuse"
    start = ["--set", "model.initialize_from=nowhere"]
    assert cli.main(["plan", "--recipe", "demo", "--data", str(folder), *pairs_only, *start]) == 2
    assert "error: nowhere has no config.json" in capsys.readouterr().err
    layers = ["--set", "model.num_image_layers=2"]
    for command in (["plan"], ["inspect", "order"]):
        assert cli.main([*command, "--recipe", "demo", "--data", str(folder), *pairs_only, *layers]) == 2
        assert "num_image_layers=2 needs images as numbered patches" in capsys.readouterr().err
    assert cli.main(["plan", "--recipe", "base_32xv100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"] == 32


def test_evaluate_writes_json_and_pictures(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(run_dir), "--data", str(folder), "--device", "cpu"]
    target = tmp_path / "deep" / "out.json"
    pictures = ["--rerank", "3", "--json", str(target), "--pictures", str(tmp_path / "pictures")]
    assert cli.main(["evaluate", "zero-shot", *words, *pictures]) == 0
    result = json.loads(target.read_text())
    assert (result["images"], result["captions"]) == (12, 18)
    assert {
        "retrieval/text_to_image/r@1",
        "retrieval_reranked/mean_recall",
        "rewrites/joint/word",
        "rewrites/joint/word_pairwise",
        "loss/sequence_to_sequence",
    } <= set(result["metrics"])
    assert 0.2 < result["chance_mean_recall"] < 0.9
    assert (tmp_path / "pictures" / "retrieval-000.png").read_bytes()[:4] == b"\x89PNG"
    assert "12 images, 18 captions" in capsys.readouterr().out
    assert cli.main(["evaluate", "retrieval", *words, "--num-pairs", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 5


def test_a_person_sees_how_far_an_evaluation_is(
    run_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", "retrieval", "--checkpoint", str(run_dir), "--data", str(folder), "--json"]
    assert cli.main(words) == 0
    quiet = capsys.readouterr()
    assert quiet.err == "", "nothing where nobody watches"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(words) == 0
    watched = capsys.readouterr()
    assert "30 sequences encoded" in watched.err
    assert watched.out == quiet.out


def test_export_gives_a_folder_that_evaluates_alike(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = tmp_path / "exported"
    assert cli.main(["export", "--checkpoint", str(run_dir), "--to", str(exported)]) == 0
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} < {
        path.name for path in exported.iterdir()
    }
    assert cli.main(["export", "--checkpoint", str(run_dir), "--to", str(exported)]) == 2, "never overwrites"
    results = []
    capsys.readouterr()
    for path in (run_dir, exported):
        assert cli.main(["evaluate", "retrieval", "--checkpoint", str(path), "--data", str(folder), "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out)["metrics"])
    assert results[0] == results[1]
    for room in (2_000, 20_000):  # what transformers writes by safetensors, and by tokenizers
        with files_of_at_most(room):
            assert cli.main(["export", "--checkpoint", str(run_dir), "--to", str(tmp_path / "full")]) == 2
        assert capsys.readouterr().err == f"error: cannot write {tmp_path / 'full'}: File too large\n"
    half = tmp_path / "half"
    assert cli.main(["export", "--checkpoint", str(exported), "--to", str(half), "--dtype", "bf16"]) == 0
    assert (half / "model.safetensors").stat().st_size < 0.6 * (exported / "model.safetensors").stat().st_size


def test_inspect_shows_folders_shards_runs_and_checkpoints(
    run_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(path: Path, *options: str) -> str:
        assert cli.main(["inspect", str(path), *options]) == 0
        return capsys.readouterr().out

    text = shown(folder)
    assert "data folder" in text
    assert text.count("  regions   ") == 1, "the summary is not lost among samples"
    found = json.loads(shown(folder / "pairs-000000.tar", "--json", "--samples", "2"))
    assert (found["what"], found["samples"], len(found["first_samples"])) == ("shard", 5, 2)
    assert found["first_samples"][1]["captions"][0]["negatives"][1]["level"] == "word"
    run = json.loads(shown(run_dir, "--json"))
    assert (run["what"], run["checkpoints"], run["latest"]) == ("run", [7], "step-7")
    assert run["metrics"]["loss"] == 3.25, "a line cut by a crash is not read"
    assert "stall_seconds" not in run["metrics"], "events are no metrics"
    assert "mean_recall" in shown(run_dir)
    assert json.loads(shown(run_dir / "checkpoints" / "step-7", "--json"))["what"] == "checkpoint"


def test_inspect_batch_takes_data_and_settings_from_a_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["data.kind_weights.image=0", "data.kind_weights.text=0", "batch.micro_batch_tokens=4096"]
    config = apply_overrides(small.run_config(folder), changes)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert cli.main(["inspect", "batch", "--run-dir", str(tmp_path), "--step", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert cli.main(["inspect", "order", "--run-dir", str(tmp_path), "--steps", "3:4", "--json"]) == 0
    order = json.loads(capsys.readouterr().out)["steps"][0]["global_batch"]
    assert sorted(order) == sorted(key for one in found["micro_batches"] for key in one["samples"])


def test_inspect_names_what_lies_one_folder_further(
    run_dir: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, *options: str) -> str:
        assert cli.main(["inspect", str(path), *options]) == 2
        return capsys.readouterr().err

    assert f"name one of those in it: {run_dir}" in refused(run_dir.parent)
    assert refused(folder, "--samples=-2") == "error: --samples -2 must not be negative\n"
    assert str(run_dir / "checkpoints" / "step-7") in refused(run_dir / "checkpoints")
    (tmp_path / "data").mkdir()
    assert "is not a data folder" in refused(tmp_path / "data")
    (tmp_path / "data" / "train").symlink_to(folder, target_is_directory=True)
    assert f"name one of the data folders in it: {tmp_path / 'data' / 'train'}" in refused(tmp_path / "data")
    (tmp_path / "begun" / ".prepare" / "import-photos").mkdir(parents=True)
    (tmp_path / "begun" / ".prepare" / "import-photos" / "begun.json").write_text("{}")
    assert "holds an import that was not finished (photos)" in refused(tmp_path / "begun")


def test_inspect_names_a_damaged_shard(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (folder / "pairs-000000.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(content[: len(content) // 2 + 100])
    assert cli.main(["inspect", str(cut)]) == 2
    assert f"shard {cut} is damaged" in capsys.readouterr().err
    raw = write_tar(tmp_path / "raw.tar", {"a.jpg": b"a photograph"})
    assert cli.main(["inspect", str(raw)]) == 2
    assert "raw images are for `unimo prepare import`" in capsys.readouterr().err


def test_inspect_order_agrees_between_world_sizes(folder: Path, tmp_path: Path) -> None:
    orders = []
    for world_size in (1, 2):
        target = tmp_path / f"{world_size}.json"
        words = ["inspect", "order", "--data", str(folder), "--recipe", "small", "--steps", "5:7"]
        words += ["--set", "batch.global_samples=6", "--world-size", str(world_size), "--json", str(target)]
        assert cli.main(words) == 0
        orders.append(json.loads(target.read_text())["steps"])
    assert [step["step"] for step in orders[0]] == [5, 6]
    assert [step["global_batch"] for step in orders[0]] == [step["global_batch"] for step in orders[1]]
    for step in orders[1]:
        assert sorted(key for rank in step["ranks"] for key in rank) == sorted(step["global_batch"])
    assert cli.main([*words[:6], "--step", "6", *words[8:]]) == 0
    assert json.loads(target.read_text())["steps"] == orders[1][1:]


def test_commands_read_several_folders_as_the_trainer_does(
    folder: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    write_shards(other, "pairs", (StoredSample(small.pair(number)) for number in range(12, 17)))
    shutil.copy(folder / "tokenizer.json", other)
    finish_folder(other, tokenizer=tokenizers.load(folder), num_region_classes=small.CLASSES, command="test")
    data = ["--data", str(folder), "--data", str(other)]
    words = ["--recipe", "demo", "--set", "data.kind_weights.image=0", "--set", "batch.global_samples=24", "--json"]
    assert cli.main(["plan", *data, *words]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "demo"
    assert cli.main(["inspect", "order", *data, *words]) == 0
    (step,) = json.loads(capsys.readouterr().out)["steps"]
    assert {Path(key).parent for key in step["global_batch"]} == {folder, other}
    unread = ["--data", "not-there", *data, "--set", "data.folder_weights=0,1,0"]
    assert cli.main(["inspect", "order", *unread, *words]) == 0
    (alone,) = json.loads(capsys.readouterr().out)["steps"]
    assert {Path(key).parent for key in alone["global_batch"]} == {Path()}, "keys of an only folder are short"
    page = tmp_path / "sample.html"
    key = next(key for key in step["global_batch"] if key.startswith(str(other)))
    assert cli.main(["inspect", "sample", *data, "--sample", key, "--html", str(page)]) == 0
    assert key in page.read_text()
    capsys.readouterr()
    assert cli.main(["evaluate", "retrieval", "--checkpoint", str(run_dir), *data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12 + 5
    assert cli.main(["plan", *data, *data[:2], *words]) == 2
    assert f"data folder {folder} is named twice" in capsys.readouterr().err


def test_doctor_answers_and_says_whether_this_machine_is_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fit"] is True


def test_an_interrupted_stage_says_that_it_can_go_on(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("".join(f"line {n} of a text that takes its time\n" for n in range(400_000)))
    words = ["prepare", "import", "--kind", "texts", "--input", "texts.txt", "--output", "data"]
    stage = subprocess.Popen(
        [sys.executable, "-m", "unimo_ds", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    while not (tmp_path / "data").exists() and stage.poll() is None:
        time.sleep(0.01)
    stage.send_signal(signal.SIGINT)
    _, said = stage.communicate(timeout=300)  # heard after what the tokenizer's library is at
    assert stage.returncode == 130
    assert said == "error: interrupted; the same command goes on where this one stopped\n"


def test_a_python_without_the_packages_is_told_what_it_lacks() -> None:
    environment = {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-S", "-m", "unimo_ds", "doctor"]  # -S: the standard library alone
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sys.executable} ")
    assert done.stderr.endswith("requirements.txt there (docs/install.md)\n")
    assert done.stderr.count("\n") == 1


def test_an_interrupted_demo_waits_for_its_ranks_without_a_traceback() -> None:
    handler = "import signal, time; signal.signal(signal.SIGINT, lambda *_: exit(3)); print('ready', flush=True); time.sleep(60)"
    launcher = f"import subprocess, sys; exit(subprocess.run([sys.executable, '-c', {handler!r}]).returncode)"
    demo = f"import sys; from unimo_ds import demo; sys.exit(demo.launch([sys.executable, '-c', {launcher!r}], {{}}))"
    process = subprocess.Popen(
        [sys.executable, "-c", demo], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, complaint = process.communicate(timeout=60)
    assert (process.returncode, out, complaint) == (3, "", "")


def test_a_closed_pipe_is_no_error() -> None:
    command = [sys.executable, "-m", "unimo_ds", "plan", "--recipe", "base_32xv100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    complaint = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert complaint == ""


def test_a_result_is_told_before_its_file_is_refused(tmp_path, capsys):
    """A measurement may have taken hours."""
    with pytest.raises(UserError, match="cannot write"):
        emit({"accuracy": 0.5}, "accuracy 50.0", str(tmp_path))
    assert capsys.readouterr().out == "accuracy 50.0\n"
